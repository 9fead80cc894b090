"""
What Airflow loads of this package besides the provider: a listener in the scheduler that says which pool is missing.

A task whose pool does not exist stays ``scheduled`` for ever. Since Airflow 3.0 neither tasks nor the DAG processor see
pools, and Airflow itself no longer warns of them; the scheduler is the one place that knows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowPlugin, hookimpl

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

log = logging.getLogger(__name__)

# Tells a note of ours from one that somebody wrote.
_NOTE_BEGINS = "airflow-provider-unleash: "
_MAX_NOTE = 1000  # characters: the column of Airflow's database
_MAX_NAMES = 3


class PoolListener:
    """
    Says at the start of a DAG run which pools do not exist that its tasks of this package ask for.

    It says so in the note of the run, which the UI shows, and as an error in the scheduler's log; it fails nothing.
    A note that somebody wrote stays as it is. Its own goes when the run is started again and finds all pools. Tasks of
    other packages, and of operators that a user derived from those of this package, are not looked at.
    """

    @hookimpl
    def on_dag_run_running(self, dag_run: DagRun, msg: str) -> None:
        """Look at a run that the scheduler has just started; ``msg`` is not used."""
        try:
            _report_missing_pools(dag_run)
        except Exception:  # Airflow 2.11's scheduler would stop.
            log.exception("Cannot tell whether the pools of DAG %s exist", dag_run.dag_id)


class UnleashPlugin(AirflowPlugin):
    """Register :class:`PoolListener`; found through the entry point ``airflow.plugins``."""

    name = "unleash"
    listeners: list[Any] = [PoolListener()]  # noqa: RUF012  (as Airflow declares it)


def _report_missing_pools(dag_run: DagRun) -> None:
    from airflow.models.pool import Pool
    from sqlalchemy.orm import object_session

    dag: Any = dag_run.dag
    tasks_by_pool: dict[str, list[str]] = {}
    for task in dag.tasks if dag is not None else ():
        if getattr(task, "_task_module", "").partition(".")[0] == __package__:
            tasks_by_pool.setdefault(task.pool, []).append(task.task_id)
    # The scheduler's own session, which it commits: another would wait for it.
    session = object_session(dag_run) if tasks_by_pool else None
    if session is None:
        return
    with session.no_autoflush:
        missing = [pool for pool in tasks_by_pool if Pool.get_pool(pool, session=session) is None]
        note = dag_run.note or ""
    if missing:
        said = " ".join(_say_missing(pool, tasks_by_pool[pool]) for pool in missing)
        log.error("Run %s of DAG %s: %s", dag_run.run_id, dag_run.dag_id, said)
        if not note or note.startswith(_NOTE_BEGINS):
            dag_run.note = (_NOTE_BEGINS + said)[:_MAX_NOTE]
    elif note.startswith(_NOTE_BEGINS):
        dag_run.note = None


def _say_missing(pool: str, task_ids: list[str]) -> str:
    rest = f" and {len(task_ids) - _MAX_NAMES} more" if len(task_ids) > _MAX_NAMES else ""
    return (
        f"The pool {pool!r} does not exist, so these tasks will wait for it: {', '.join(task_ids[:_MAX_NAMES])}{rest}. "
        f"Make it under Admin > Pools, or with: airflow pools set {pool} SLOTS DESCRIPTION"
    )
