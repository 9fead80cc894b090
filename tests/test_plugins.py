"""A pool that is missing is named at the start of a run, as the scheduler starts it, and nothing else is touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from dag_runs import DAY, STREET

from airflow_provider_unleash.operators import UnleashGetAnalyticsOperator, UnleashListDevicesOperator
from airflow_provider_unleash.plugins import PoolListener

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
    """Give a function that has Airflow start a run of a DAG, perhaps with a note, and returns its note after that."""
    from airflow.models import DagRun
    from airflow.utils.session import create_session

    def start(*tasks: Callable[[], object], note: str | None = None) -> str | None:
        run_id = f"test_plugins_{next(_numbers)}"
        with DAG(dag_id="test_plugins", schedule=None, start_date=DAY) as dag:
            for add_task in tasks:
                add_task()
        has_run_after = hasattr(DagRun, "run_after")
        dates = {"logical_date": DAY, "run_after": DAY} if has_run_after else {"execution_date": DAY}
        with create_session() as session:
            run = DagRun(dag_id=dag.dag_id, run_id=run_id, run_type="manual", state="running", **dates)
            session.add(run)
            session.flush()
            if note is not None:
                run.note = note
            run.dag = as_the_scheduler_has_it(dag)
            run.notify_dagrun_state_changed(msg="started")
        with create_session() as session:
            run = session.query(DagRun).filter(DagRun.run_id == run_id).one()
            note = run.note
            session.delete(run)
        return note

    return start


@pytest.fixture
def pool(airflow_home: Path) -> Iterator[str]:
    from airflow.models.pool import Pool

    Pool.create_or_update_pool("unleash_api", slots=4, description="", include_deferred=False)
    yield "unleash_api"
    Pool.delete_pool("unleash_api")


def in_pool(pool: str, task_id: str = "extract") -> Callable[[], object]:
    return lambda: UnleashListDevicesOperator(task_id=task_id, pool=pool)


def test_a_missing_pool_is_named_in_the_note_of_the_run_and_in_the_log(start, caplog):
    note = start(in_pool("unleash_api"))
    said = (
        "The pool 'unleash_api' does not exist, so these tasks will wait for it: extract. "
        "Make it under Admin > Pools, or with: airflow pools set unleash_api SLOTS DESCRIPTION"
    )
    assert note == f"airflow-provider-unleash: {said}"
    [record] = [record for record in caplog.records if record.name == "airflow_provider_unleash.plugins"]
    assert record.levelname == "ERROR"
    page = (ROOT / "docs" / "scale.md").read_text()
    assert note in " ".join(page.replace("\n> ", "\n").split())
    assert re.fullmatch(rf"Run test_plugins_\d+ of DAG test_plugins: {re.escape(said)}", record.getMessage())


def test_each_missing_pool_is_named_with_its_tasks_mapped_ones_too(start, pool):
    def add_mapped() -> None:
        UnleashGetAnalyticsOperator.partial(task_id="mapped", pool="other").expand(device_id=[STREET])

    note = start(add_mapped, in_pool(pool, "fine"), *(in_pool("many", f"task_{number}") for number in range(5)))
    assert "'other' does not exist, so these tasks will wait for it: mapped. " in note
    assert "'many' does not exist, so these tasks will wait for it: task_0, task_1, task_2 and 2 more. " in note
    assert "fine" not in note


def test_a_note_is_no_longer_than_airflow_takes(start):
    note = start(*(in_pool("p" * 200 + str(number), f"task_{number}") for number in range(5)))
    assert len(note) == 1000


def test_nothing_is_said_where_the_pools_are_there(start, pool):
    assert start(in_pool(pool)) is None
    assert start(in_pool("default_pool")) is None
    assert start(in_pool(pool), note="by hand") == "by hand"


def test_nothing_is_said_of_tasks_of_others(start):
    assert start(lambda: BaseOperator(task_id="theirs", pool="missing")) is None
    note = start(lambda: BaseOperator(task_id="theirs", pool="missing"), in_pool("unleash_api"))
    assert "'unleash_api'" in note
    assert "missing" not in note


def test_a_note_that_somebody_wrote_stays(start):
    assert start(in_pool("unleash_api"), note="by hand") == "by hand"


def test_the_note_is_of_the_latest_start_of_the_run(start, pool):
    earlier = start(in_pool("missing"))
    assert start(in_pool(pool), note=earlier) is None
    assert "'elsewhere'" in start(in_pool("elsewhere"), note=earlier)


def test_a_run_whose_dag_is_gone_is_left_alone(airflow_home, caplog):
    PoolListener().on_dag_run_running(SimpleNamespace(dag=None, dag_id="gone"), "started")
    assert caplog.records == []


def test_a_failure_of_the_check_does_not_stop_the_scheduler(caplog):
    PoolListener().on_dag_run_running(SimpleNamespace(dag="no DAG", dag_id="broken"), "started")
    [record] = [record for record in caplog.records if record.name == "airflow_provider_unleash.plugins"]
    assert record.getMessage() == "Cannot tell whether the pools of DAG broken exist"
    assert record.exc_info
