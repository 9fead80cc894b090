"""A pool that is missing is named at the start of a run, as the scheduler starts it, and nothing else is touched."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, TaskGroup
from dag_runs import DAY, STREET, UTC

from airflow_provider_unleash.operators import UnleashGetAnalyticsOperator, UnleashListDevicesOperator
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor

ROOT = Path(__file__).parent.parent
_numbers = count(1)


def as_the_scheduler_has_it(dag: DAG) -> Any:
    """Return a DAG as it comes out of Airflow's database."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # before Airflow 3.2
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization
    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


@pytest.fixture
def start(airflow_home: Path) -> Iterator[Callable[..., str | None]]:
    """
    Give a function that makes a run of these tasks, starts it as Airflow's scheduler does, and returns the run's note.

    :param note: the note that the run has before.
    :param states: of tasks that are not new, by id.
    :param commit: whether the scheduler's transaction comes to its end.
    """
    from airflow.models import DagRun, TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.sqlalchemy import prohibit_commit
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import QueuePool

    runs: list[str] = []
    # As that of Airflow 2.11: one session for all runs. And with no connection but its own.
    one_connection = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
    scheduler = Session(create_engine(f"sqlite:///{airflow_home}/airflow.db", **one_connection))

    def start(
        *add_tasks: Callable[[], object],
        note: str | None = None,
        states: dict[str, str] | None = None,
        commit: bool = True,
    ) -> str | None:
        runs.append(f"test_plugins_{next(_numbers)}")
        with DAG(dag_id=runs[-1], schedule=None, start_date=DAY) as dag:
            for add_task in add_tasks:
                add_task()
        stored = as_the_scheduler_has_it(dag)
        has_run_after = hasattr(DagRun, "run_after")
        dates = {"logical_date": DAY, "run_after": DAY} if has_run_after else {"execution_date": DAY}
        version = {"dag_version_id": None} if hasattr(TaskInstance, "dag_version_id") else {}
        with create_session() as session:
            run = DagRun(dag_id=runs[-1], run_id=runs[-1], run_type="manual", state="queued", **dates)
            session.add(run)
            session.flush()
            run.note = note
            for task in stored.tasks:
                session.add(TaskInstance(task, run_id=runs[-1], state=(states or {}).get(task.task_id), **version))
        with scheduler, prohibit_commit(scheduler) as guard:
            run = find(scheduler)
            run.dag = stored
            run.state = "running"
            scheduler.flush()
            run.notify_dagrun_state_changed(msg="started")
            assert (list(scheduler.new), list(scheduler.dirty)) == ([], []), "the scheduler would have to write it"
            if commit:
                guard.commit()
            else:
                scheduler.rollback()
        with create_session() as session:
            return find(session).note

    def find(session: Any) -> Any:
        return session.query(DagRun).filter(DagRun.run_id == runs[-1]).one()

    yield start
    scheduler.get_bind().dispose()
    with create_session() as session:
        for model in (TaskInstance, DagRun):
            session.query(model).filter(model.run_id.in_(runs)).delete()


@pytest.fixture
def pool(airflow_home: Path) -> Iterator[str]:
    from airflow.models.pool import Pool

    Pool.create_or_update_pool("unleash_api", slots=4, description="", include_deferred=False)
    yield "unleash_api"
    Pool.delete_pool("unleash_api")


def in_pool(pool: str, task_id: str = "extract") -> Callable[[], object]:
    return lambda: UnleashListDevicesOperator(task_id=task_id, pool=pool)


def said_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "airflow_provider_unleash.plugins"]


def test_a_missing_pool_is_named_in_the_note_of_the_run_and_in_the_log(start, caplog):
    note = start(in_pool("unleash_api"))
    said = (
        "The pool 'unleash_api' does not exist, and these tasks wait for it: extract. "
        "Make it under Admin > Pools, or with: airflow pools set unleash_api SLOTS DESCRIPTION"
    )
    name, when, text = re.fullmatch(r"(.*), (.*) UTC: (.*)", note).groups()
    assert (name, text) == ("airflow-provider-unleash", said)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(f"{when}+00:00")) < timedelta(minutes=2)
    page = (ROOT / "docs" / "scale.md").read_text()
    assert said in " ".join(page.replace("\n> ", "\n").split())
    [record] = said_in(caplog)
    assert record.levelname == "ERROR"
    assert re.fullmatch(rf"Run test_plugins_\d+ of DAG test_plugins_\d+: {re.escape(said)}", record.getMessage())


def test_each_missing_pool_is_named_with_its_tasks(start, pool):
    def add_mapped() -> None:
        UnleashGetAnalyticsOperator.partial(task_id="mapped", pool="other").expand(device_id=[STREET])

    def add_grouped() -> None:
        with TaskGroup("group"):
            UnleashNewSessionsSensor(task_id="sensor", pool="third")

    many = (in_pool("many", f"task_{number}") for number in range(5))
    note = start(add_mapped, add_grouped, in_pool(pool, "fine"), *many)
    assert "'other' does not exist, and these tasks wait for it: mapped. " in note
    assert "'third' does not exist, and these tasks wait for it: group.sensor. " in note
    assert "'many' does not exist, and these tasks wait for it: task_0, task_1, task_2 and 2 more. " in note
    assert "fine" not in note


def test_a_note_is_no_longer_than_airflow_takes(start):
    note = start(*(in_pool("p" * 200 + str(number), f"task_{number}") for number in range(5)))
    assert len(note) == 1000


def test_nothing_is_said_where_the_pools_are_there(start, pool, caplog):
    assert start(in_pool(pool)) is None
    assert start(in_pool("default_pool")) is None
    assert start(in_pool(pool), note="by hand") == "by hand"
    assert said_in(caplog) == []


def test_nothing_is_said_of_tasks_that_are_not_of_this_package(start, caplog):
    class Derived(UnleashListDevicesOperator):
        pass

    def add_others() -> None:
        BaseOperator(task_id="theirs", pool="missing")
        Derived(task_id="derived", pool="missing")

    assert start(add_others) is None
    assert said_in(caplog) == []
    note = start(add_others, in_pool("unleash_api"))
    assert "'unleash_api'" in note
    assert "missing" not in note


def test_nothing_is_said_of_tasks_that_are_over(start):
    assert start(in_pool("gone"), states={"extract": "success"}) is None
    note = start(in_pool("gone", "over"), in_pool("gone", "cleared"), states={"over": "success"})
    assert "wait for it: cleared. " in note


def test_a_note_that_somebody_wrote_stays(start, caplog):
    assert start(in_pool("unleash_api"), note="by hand") == "by hand"
    assert len(said_in(caplog)) == 1


@pytest.mark.parametrize(
    "note", ["", "airflow-provider-unleash, 2026-01-01 00:00 UTC: The pool 'other' does not exist"]
)
def test_a_note_that_is_empty_or_of_an_earlier_start_is_replaced(start, note):
    assert "The pool 'unleash_api' does not exist" in start(in_pool("unleash_api"), note=note)


def test_a_scheduler_with_one_session_looks_at_each_run_once(start, caplog):
    for _ in range(3):
        start(in_pool("unleash_api"))
    assert len(said_in(caplog)) == 3


@pytest.mark.parametrize("broken", ["_find_missing_pools", "_is_of_this_package"])
def test_a_failure_of_the_check_does_not_stop_the_scheduler(start, caplog, monkeypatch, broken):
    from sqlalchemy.exc import OperationalError

    def fail(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the database went away"))

    monkeypatch.setattr(f"airflow_provider_unleash.plugins.{broken}", fail)
    assert start(in_pool("unleash_api")) is None
    [record] = said_in(caplog)
    assert re.fullmatch(r"Cannot tell whether the pools of DAG test_plugins_\d+ exist", record.getMessage())
    assert record.exc_info


def test_nothing_is_said_of_a_start_that_was_rolled_back(start, pool, caplog):
    assert start(in_pool("unleash_api_2"), commit=False) is None
    assert start(in_pool(pool)) is None
    assert said_in(caplog) == []


def test_a_note_that_cannot_be_written_is_said_in_the_log_beside_the_pool(start, caplog, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("canceling statement due to lock timeout"))

    monkeypatch.setattr("airflow_provider_unleash.plugins._write_note", fail)
    assert start(in_pool("unleash_api")) is None
    error, warning = said_in(caplog)
    assert "The pool 'unleash_api' does not exist" in error.getMessage()
    assert warning.levelname == "WARNING"
    assert "lock timeout" in warning.getMessage()
