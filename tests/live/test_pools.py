"""
The scheduler of a real Airflow says in a run's note that its pool is missing, and the run ends once the pool is made.

Takes half a minute, so it runs only when asked for: ``make test-live``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from bounds import temporary_folder
from live_airflow import HERE, LiveStage, live_stage, wait_until

from stage import ask

IN_MISSING, IN_DEFAULT = "in_missing_pool", "in_default_pool"
SECONDS_ALTOGETHER = 5 * 60


@dataclass(frozen=True)
class Seen:
    """
    Runs by DAG, as the public API of Airflow has them.

    :param waiting: when one of them is over, and the other waits.
    :param after: when the pool was made and both are over.
    :param log: what the parts of Airflow wrote.
    """

    waiting: dict[str, Any]
    after: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def seen() -> Seen:
    with temporary_folder() as folder, live_stage(folder, SECONDS_ALTOGETHER) as stage:
        return watch(stage)


def watch(stage: LiveStage) -> Seen:
    stage.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(HERE / "pool_dags")
    stage.start_simulator()
    stage.run_airflow("db", "migrate")
    stage.start_api_server()
    stage.start_airflow("dag-processor")
    wait_until(lambda: stage.has_api_server() and len(stage.query("SELECT dag_id FROM serialized_dag")) == 2, stage)
    stage.start_airflow("scheduler", "-s")
    wait_until(_are(stage, IN_DEFAULT, "success"), stage)
    wait_until(_are(stage, IN_MISSING, "running"), stage)
    waiting = _read_runs(stage)
    stage.run_airflow("pools", "set", "unleash_api", "1", "made late")
    wait_until(_are(stage, IN_MISSING, "success"), stage)
    return Seen(waiting, _read_runs(stage), stage.log.read_text())


def _are(stage: LiveStage, dag_id: str, state: str) -> Callable[[], bool]:
    return lambda: stage.query(f"SELECT state FROM dag_run WHERE dag_id = '{dag_id}'") == [(state,)]


def _read_runs(stage: LiveStage) -> dict[str, Any]:
    runs = ask(f"{stage.url}/api/v2/dags/~/dagRuns")["dag_runs"]
    return {run["dag_id"]: run for run in runs}


def test_the_run_that_waits_says_in_its_note_which_pool_is_missing(seen: Seen) -> None:
    run = seen.waiting[IN_MISSING]
    assert run["state"] == "running"
    assert "The pool 'unleash_api' does not exist, and these tasks wait for it: list. " in run["note"]
    assert f"Run {run['dag_run_id']} of DAG {IN_MISSING}: The pool 'unleash_api' does not exist" in seen.log


def test_a_run_with_its_pool_has_no_note(seen: Seen) -> None:
    assert seen.waiting[IN_DEFAULT]["note"] is None


def test_the_run_ends_when_the_pool_is_made_and_its_note_says_when_it_was_missing(seen: Seen) -> None:
    assert [run["state"] for run in seen.after.values()] == ["success", "success"]
    assert seen.after[IN_MISSING]["note"] == seen.waiting[IN_MISSING]["note"]
    assert re.match(r"airflow-provider-unleash, \d{4}-\d\d-\d\d \d\d:\d\d UTC: ", seen.after[IN_MISSING]["note"])
