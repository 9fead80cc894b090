"""Real DAG runs, in process on SQLite."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sqlite3
import textwrap
from contextlib import closing
from datetime import datetime
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from tests.support.airflow_home import dags_folder
from tests.support.sample_day import NEXT_DAY

_HEADER = """
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow_provider_unleash.operators import *
from airflow_provider_unleash.sensors import *

with DAG(dag_id={dag_id!r}, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), catchup=False, {arguments}) as dag:
"""
DAILY = 'schedule=CronDataIntervalTimetable("@daily", timezone="UTC")'
_numbers = count(1)


class DagRun:
    """A finished DAG run, read from Airflow's database."""

    def __init__(self, home: Path, dag_id: str, run_id: str) -> None:
        self._home, self._dag_id, self._run_id = home, dag_id, run_id

    def query(self, sql: str) -> list[Any]:
        """Query Airflow's database; the first placeholder is the DAG's id, the second the run's."""
        with closing(sqlite3.connect(self._home / "airflow.db")) as database:
            return database.execute(sql, (self._dag_id, self._run_id)[: sql.count("?")]).fetchall()

    @cached_property
    def state(self) -> str:
        [(state,)] = self.query("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?")
        return state

    @cached_property
    def states(self) -> dict[Any, str]:
        """States by task id; for mapped tasks, by task id and index."""
        rows = self.query("SELECT task_id, map_index, state FROM task_instance WHERE dag_id = ? AND run_id = ?")
        return {_name(task_id, index): state for task_id, index, state in rows}

    @cached_property
    def tries(self) -> dict[Any, int]:
        """Number of tries of each task, with the keys of ``states``."""
        rows = self.query("SELECT task_id, map_index, try_number FROM task_instance WHERE dag_id = ? AND run_id = ?")
        return {_name(task_id, index): tries for task_id, index, tries in rows}

    @cached_property
    def labels(self) -> dict[Any, str]:
        """Names of mapped tasks in the web interface, with the keys of ``states``."""
        rows = self.query(
            "SELECT task_id, map_index, rendered_map_index FROM task_instance WHERE dag_id = ? AND run_id = ?"
        )
        return {_name(task_id, index): label for task_id, index, label in rows if label is not None}

    @cached_property
    def xcoms(self) -> dict[Any, Any]:
        """Results of the tasks, with the keys of ``states``."""
        rows = self.query(
            "SELECT task_id, map_index, value FROM xcom WHERE dag_id = ? AND run_id = ? AND key = 'return_value'"
        )
        return {_name(task_id, index): _plain(value) for task_id, index, value in rows}

    @cached_property
    def events(self) -> list[tuple[str, Any]]:
        """URI and extra of each asset event, ordered by task and index."""
        kind = "asset" if importlib.util.find_spec("airflow.sdk") else "dataset"
        rows = self.query(
            f"SELECT uri, event.extra FROM {kind}_event AS event JOIN {kind} ON {kind}.id = {kind}_id"
            " WHERE source_dag_id = ? AND source_run_id = ? ORDER BY source_task_id, source_map_index, uri"
        )
        return [(uri, _plain(extra)) for uri, extra in rows]


def _name(task_id: str, map_index: int) -> Any:
    return task_id if map_index < 0 else (task_id, map_index)


def _plain(value: Any) -> Any:
    """Return the value of a JSON column; Airflow 3 stores JSON inside of a JSON string."""
    value = json.loads(value) if isinstance(value, (str, bytes)) else value
    return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[", '"') else value


def load_dag(path: Path, variable: str = "dag") -> Any:
    """Return the ``dag`` of a file, or another of its DAGs."""
    return getattr(_load_module(path), variable)


def dags_of(path: Path) -> list[Any]:
    """Return all DAGs of a file."""
    return [value for name, value in vars(_load_module(path)).items() if name == "dag" or name.endswith("_dag")]


def _load_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_runs_without_dates(dag: Any) -> bool:
    """Return whether this Airflow has runs without a logical date."""
    return "logical_date" in inspect.signature(dag.test).parameters


def has_asset_state_store() -> bool:
    """Return whether this Airflow has an asset state store."""
    try:
        from airflow.sdk.execution_time import context
    except ImportError:
        return False
    return hasattr(context, "AssetStateStoreAccessors")


def _register_assets(dag: Any) -> None:
    """Register a DAG's assets as the scheduler does, because dag.test() does not create events of unknown assets."""
    if hasattr(dag, "sync_to_db"):  # Airflow 2
        dag.sync_to_db()
        return
    from airflow.models.asset import AssetActive, AssetModel
    from airflow.sdk import Asset
    from airflow.utils.session import create_session

    with create_session() as session:
        for asset in [asset for task in dag.tasks for asset in (*task.outlets, *task.inlets)]:
            if isinstance(asset, Asset) and not session.query(AssetModel).filter_by(uri=asset.uri).all():
                session.add(AssetModel(name=asset.name, uri=asset.uri, group=asset.group))
                session.flush()
                session.add(AssetActive(name=asset.name, uri=asset.uri))


def run_dag_file(
    home: Path,
    path: Path,
    moment: datetime | None = NEXT_DAY,
    variable: str = "dag",
    conf: dict[str, Any] | None = None,
) -> DagRun:
    """Run the DAG of a file at a logical date, or without one, and remove the file."""
    try:
        dag = load_dag(path, variable)
        _register_assets(dag)
        name = "logical_date" if has_runs_without_dates(dag) else "execution_date"
        dag_run = dag.test(**{name: moment}, run_conf=conf)
        return DagRun(home, dag.dag_id, dag_run.run_id)
    finally:
        path.unlink()
        # A file of the same name, size and second would get the bytecode of this one.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def run_dag(home: Path, body: str, moment: datetime | None = NEXT_DAY, arguments: str = DAILY) -> DagRun:
    """Run a DAG with these tasks."""
    dag_id = f"test_{next(_numbers)}"
    # Airflow 3 only runs DAGs from this folder.
    path = dags_folder() / f"{dag_id}.py"
    path.write_text(_HEADER.format(dag_id=dag_id, arguments=arguments) + textwrap.indent(textwrap.dedent(body), "    "))
    return run_dag_file(home, path, moment)


def can_reschedule(home: Path) -> bool:
    """Return whether dag.test() can reschedule a sensor, tried with one that is not ours; that of 3.0 cannot."""
    run = run_dag(
        home,
        """
        from airflow.providers.common.compat.sdk import BaseSensorOperator

        class Never(BaseSensorOperator):
            def poke(self, context):
                return False

        Never(task_id="wait", mode="reschedule", poke_interval=0.1, timeout=0.3, soft_fail=True)
        """,
    )
    return run.states == {"wait": "skipped"}
