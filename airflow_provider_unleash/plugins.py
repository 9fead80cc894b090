"""
What Airflow loads of this package besides the provider: a listener in the scheduler that says which pool is missing.

A task whose pool does not exist stays ``scheduled`` until the run times out. On Airflow 3 neither tasks nor the DAG
processor see pools (2.11's makes a warning of them); the scheduler does, but says so in its log only, of no task.
"""

from __future__ import annotations

import logging
import shlex
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowPlugin, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import Session, SessionTransaction

log = logging.getLogger(__name__)

# Tells a note of ours from one that somebody wrote.
_NOTE_BEGINS = "airflow-provider-unleash, "
_MAX_NOTE = 1000  # characters: the column of Airflow's database
_MAX_NAMES = 3
_MAX_WAIT = "2s"


class _Start(NamedTuple):
    dag_id: str
    run_id: str
    task_ids: frozenset[str]


class PoolListener:
    """
    Says at the start of a DAG run which pools do not exist that its tasks of this package wait for.

    It says so in the note of the run, which the UI shows, and as an error in the scheduler's log; it fails nothing.
    A note that somebody wrote stays as it is. Tasks of other packages, ``@task`` functions, and operators that a user
    derived from those of this package are not looked at.
    """

    def __init__(self) -> None:
        self._starts: list[_Start] = []

    @hookimpl
    def on_dag_run_running(self, dag_run: DagRun, msg: str) -> None:
        """Look, once the scheduler has committed it, at a run that it starts; ``msg`` is not used."""
        from sqlalchemy import event
        from sqlalchemy.orm import object_session

        with _logging_failures(dag_run.dag_id):
            dag: Any = dag_run.dag
            task_ids = frozenset(task.task_id for task in dag.tasks if _is_of_this_package(task))
            session = object_session(dag_run)
            if not task_ids or session is None:
                return
            # Nothing is asked or written in the scheduler's transaction: what fails there ends the scheduler, and its
            # locks keep another out. At its end, after its commit, its connection is free again.
            self._starts.append(_Start(dag_run.dag_id, dag_run.run_id, task_ids))
            # Airflow 2.11 has one session for as long as the scheduler lives.
            if not event.contains(session, "after_transaction_end", self._look):
                event.listen(session, "after_transaction_end", self._look)

    def _look(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        while self._starts:
            start = self._starts.pop()
            with _logging_failures(start.dag_id):
                _report_missing_pools(session.get_bind(), start)


class UnleashPlugin(AirflowPlugin):
    """Register :class:`PoolListener`; found through the entry point ``airflow.plugins``."""

    name = "unleash"
    listeners: list[Any] = [PoolListener()]  # noqa: RUF012  (as Airflow declares it)


@contextmanager
def _logging_failures(dag_id: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # of any kind: here it would end the scheduler, Airflow 2.11's from a listener, too
        log.exception("Cannot tell whether the pools of DAG %s exist", dag_id)


def _is_of_this_package(task: Any) -> bool:
    return getattr(task, "_task_module", "").partition(".")[0] == __package__


def _report_missing_pools(bind: Any, start: _Start) -> None:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session

    with Session(bind) as session:
        if bind.dialect.name == "postgresql":  # which else waits for a lock of others without end
            session.execute(text(f"SET LOCAL lock_timeout = '{_MAX_WAIT}'"))
        missing = _find_missing_pools(session, start)
        if not missing:
            return
        started = session.query(DagRun).filter_by(dag_id=start.dag_id, run_id=start.run_id, state="running")
        run = started.one_or_none()
        if run is None:  # the start was rolled back
            return
        said = " ".join(_say_missing(pool, task_ids) for pool, task_ids in missing.items())
        log.error("Run %s of DAG %s: %s", start.run_id, start.dag_id, said)
        try:
            _write_note(session, run, said)
        except SQLAlchemyError as error:  # somebody writes a note at the same time
            log.warning("The note of run %s of DAG %s is not written: %s", start.run_id, start.dag_id, error)


def _write_note(session: Session, run: DagRun, said: str) -> None:
    from airflow.models.dagrun import DagRunNote

    note = session.query(DagRunNote).filter_by(dag_run_id=run.id).with_for_update().one_or_none()
    if note is None or not note.content or note.content.startswith(_NOTE_BEGINS):
        now = datetime.now(timezone.utc)
        run.note = f"{_NOTE_BEGINS}{now:%Y-%m-%d %H:%M} UTC: {said}"[:_MAX_NOTE]
        run.dag_run_note.user_id = None  # of who had emptied it
        session.commit()


def _find_missing_pools(session: Session, start: _Start) -> dict[str, list[str]]:
    """Return the tasks that still have to run, by each pool of theirs that does not exist."""
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance

    waiting = (
        session.query(TaskInstance.pool, TaskInstance.task_id)
        .distinct()
        .outerjoin(Pool, Pool.pool == TaskInstance.pool)
        .filter(TaskInstance.dag_id == start.dag_id, TaskInstance.run_id == start.run_id, Pool.id.is_(None))
        .filter(TaskInstance.state.is_(None) | (TaskInstance.state == "scheduled"))
        .order_by(TaskInstance.pool, TaskInstance.task_id)
    )
    missing: dict[str, list[str]] = {}
    for pool, task_id in waiting:
        if task_id in start.task_ids:
            missing.setdefault(pool, []).append(task_id)
    return missing


def _say_missing(pool: str, task_ids: list[str]) -> str:
    rest = f" and {len(task_ids) - _MAX_NAMES} more" if len(task_ids) > _MAX_NAMES else ""
    return (
        f"The pool {pool!r} does not exist, and these tasks wait for it: {', '.join(task_ids[:_MAX_NAMES])}{rest}. "
        f"Make it under Admin > Pools, or with: airflow pools set {shlex.quote(pool)} SLOTS DESCRIPTION"
    )
