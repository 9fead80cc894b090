"""
One signal per complete day reaches each consumer once, and gaps heal after outages of the API.

A real Airflow runs DAGs that signal 20 days in any order, with and without partition keys, and two examples, one of
them during two outages. Takes ten minutes, so it runs only with ``make test-live``.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.dataset
import pytest

from airflow_provider_unleash.core.moments import UTC
from airflow_provider_unleash.simulator import DEFAULT_KEYS, generate_rows
from tests.support.dag_runs import DagRun
from tests.support.live_airflow import LIVE, LiveStage, live_stage, wait_until
from tests.support.paths import EXAMPLES
from tools.bounds import temporary_folder
from tools.stage import ask, processes_in

DEVICES = ("Wb8fabc31378ce07", "W7d2e90b4c6a1f58")
ROWS_PER_DAY = 48
BERLIN = ZoneInfo("Europe/Berlin")
MONDAY = date(2026, 1, 5)
DAYS = [MONDAY + timedelta(days=number) for number in range(20)]  # two weeks and six days
GAPS, PARTITIONS = "example_unleash_gaps", "example_unleash_partitions"
SCHEDULE = 'schedule=CronTriggerTimetable("@daily", timezone="UTC")'
DAGS = 7 + 1 + 3  # of tests/live/signal_dags and of both examples
OVER = ("success", "failed")


@dataclass(frozen=True)
class Seen:
    """
    What the DAGs left behind.

    :param runs: what the tasks of each DAG's runs returned, in the order of the runs.
    :param stranded: signals that have not started a run, by consumer.
    :param failures: entries of Airflow's audit log about partitions, by kind.
    :param planned: days that each run of the example of gaps planned, in the order of the runs.
    :param states: states of these runs.
    :param failed: days that the run with the outage in the middle did not extract.
    :param coverage: exit code and output of the command ``coverage``.
    :param rows: number of rows in the lake of the example of gaps, by device.
    """

    runs: dict[str, list[Any]]
    stranded: Counter[str]
    failures: Counter[str]
    planned: list[list[str]]
    states: list[str]
    failed: list[str]
    coverage: tuple[int, dict[str, Any]]
    rows: Counter[str]
    folder: Path


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Return what the runs left behind; nothing is running any more."""
    with temporary_folder() as folder, live_stage(folder, seconds=25 * 60) as stage:
        return watch(stage, folder)


def watch(stage: LiveStage, folder: Path) -> Seen:
    dags, lake = folder / "dags", folder / "lake"
    shutil.copytree(LIVE / "signal_dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (GAPS, PARTITIONS):
        text = (EXAMPLES / f"{name}.py").read_text()
        for old, new in (("minutes=5", "seconds=1"), (SCHEDULE, "schedule=None")):  # this test creates the runs
            assert old in text
            text = text.replace(old, new)
        (dags / f"{name}.py").write_text(text)
    stage.start_simulator("--devices", ",".join(DEVICES), "--rows-per-day", str(ROWS_PER_DAY))
    connection = {"conn_type": "unleash", "host": stage.api, "password": DEFAULT_KEYS[0]}
    connection["extra"] = json.dumps({"max_attempts": 1, "mask_stream_tokens": False})
    stage.environ |= {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW_CONN_UNLEASH_DEFAULT": json.dumps(connection),
        "UNLEASH_LAKE": f"file://{lake}",
    }
    stage.run_airflow("db", "migrate")
    stage.start_api_server()
    stage.start_airflow("dag-processor")
    wait_until(lambda: stage.has_api_server() and len(stage.query("SELECT dag_id FROM serialized_dag")) == DAGS, stage)
    stage.start_airflow("scheduler", "-s")

    for day in random.Random(7).sample(DAYS, len(DAYS)):
        post_day(stage, "extract_keyed", day)
    post_run(stage, PARTITIONS, date(2026, 1, 19))
    for number, day in enumerate(DAYS, 1):
        post_day(stage, "extract_plain", day)
        # An asset event that arrives before the last one has started a run is part of that run.
        wait_until(lambda number=number: len(runs_of(stage, "plain_of_plain")) >= number, stage)
    # The outages concern all DAGs, so let the others end first.
    wait_until(lambda: len(runs_of(stage, f"{PARTITIONS}_week")) == 2 and is_quiet(stage), stage)
    failed = heal_after_outages(stage)
    return read(stage, folder, failed)


def heal_after_outages(stage: LiveStage) -> list[str]:
    """Run the example of gaps before, during and after two outages, and return what the first one cost."""
    # In the middle of a run, for longer than the retries of a task last.
    post_run(stage, GAPS, date(2026, 1, 15))
    wait_until(lambda: states_of(stage, "success") >= 3, stage)
    stop_api(stage)
    wait_until(lambda: states_of(stage, "failed") >= 2, stage)
    start_api(stage)
    [run_id] = runs_of(stage, GAPS)
    stage.wait_for_run(GAPS, run_id, 300)
    run = DagRun(stage.home, GAPS, run_id)
    failed = [
        window["start"][:10]
        for index, window in enumerate(run.xcoms["plan"])
        if run.states["extract", index] != "success"
    ]
    run_gaps(stage, date(2026, 1, 16))
    # For a week: in two nights the API is down, in five the DAG does not run.
    stop_api(stage)
    run_gaps(stage, date(2026, 1, 17))
    run_gaps(stage, date(2026, 1, 18))
    start_api(stage)
    run_gaps(stage, date(2026, 1, 24))
    run_gaps(stage, date(2026, 1, 24), hour=1)
    return failed


def stop_api(stage: LiveStage) -> None:
    ask(f"{stage.api}/_simulator/faults", json.dumps({"kind": "503", "times": None}))


def start_api(stage: LiveStage) -> None:
    ask(f"{stage.api}/_simulator/faults", method="DELETE")


def post_day(stage: LiveStage, dag_id: str, day: date) -> None:
    """Create a run whose data interval is a day of Berlin."""
    start, end = (datetime(one.year, one.month, one.day, tzinfo=BERLIN) for one in (day, day + timedelta(days=1)))
    interval = {"data_interval_start": start.isoformat(), "data_interval_end": end.isoformat()}
    post(stage, dag_id, {"logical_date": start.isoformat(), **interval})


def post_run(stage: LiveStage, dag_id: str, day: date, hour: int = 0) -> str:
    return post(stage, dag_id, {"logical_date": datetime(day.year, day.month, day.day, hour, tzinfo=UTC).isoformat()})


def post(stage: LiveStage, dag_id: str, run: dict[str, Any]) -> str:
    return str(ask(f"{stage.url}/api/v2/dags/{dag_id}/dagRuns", json.dumps(run))["dag_run_id"])


def run_gaps(stage: LiveStage, day: date, hour: int = 0) -> None:
    stage.wait_for_run(GAPS, post_run(stage, GAPS, day, hour), 300)


def runs_of(stage: LiveStage, dag_id: str) -> list[str]:
    return [run_id for (run_id,) in stage.query(f"SELECT run_id FROM dag_run WHERE dag_id = '{dag_id}' ORDER BY id")]


def states_of(stage: LiveStage, state: str) -> int:
    """Return how many windows of the example of gaps are in a state."""
    tasks = f"FROM task_instance WHERE dag_id = '{GAPS}' AND task_id = 'extract'"
    [(number,)] = stage.query(f"SELECT count(*) {tasks} AND state = '{state}'")
    return int(number)


def is_quiet(stage: LiveStage) -> bool:
    """Return whether all runs have ended."""
    return not stage.query(f"SELECT run_id FROM dag_run WHERE state NOT IN {OVER}")


def read(stage: LiveStage, folder: Path, failed: list[str]) -> Seen:
    consumers = ("plain_of_keyed", "plain_of_plain", "day_of_keyed", "day_of_plain", "week_of_keyed")
    consumers += (f"{PARTITIONS}_day", f"{PARTITIONS}_week")
    runs: dict[str, list[Any]] = {}
    for dag_id in consumers:
        found = [DagRun(stage.home, dag_id, run_id) for run_id in runs_of(stage, dag_id)]
        assert {run.state for run in found} <= {"success"}
        runs[dag_id] = [result for run in found for result in run.xcoms.values()]
    pending = stage.query("SELECT target_dag_id FROM asset_partition_dag_run WHERE created_dag_run_id IS NULL")
    queued = stage.query("SELECT target_dag_id FROM asset_dag_run_queue")
    lake = folder / "lake_gaps"
    span = ("--start", "2026-01-01", "--end", "2026-01-24", "--every", "day", "--json")
    command = subprocess.run(
        [sys.executable, "-m", "airflow_provider_unleash.coverage", str(lake), *span],
        env=stage.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    table: Any = pyarrow.dataset.dataset(lake, format="parquet").to_table(columns=["device_id"])
    gaps = [DagRun(stage.home, GAPS, run_id) for run_id in runs_of(stage, GAPS)]
    return Seen(
        runs,
        Counter(dag_id for (dag_id,) in pending + queued),
        Counter(event for (event,) in stage.query("SELECT event FROM log WHERE event LIKE '%partition%'")),
        [[window["start"][:10] for window in run.xcoms.get("plan", [])] for run in gaps],
        [run.state for run in gaps],
        failed,
        (command.returncode, json.loads(command.stdout)),
        Counter(table.column("device_id").to_pylist()),
        folder,
    )


def starts(days: list[date]) -> list[str]:
    """Return when days of Berlin begin, as events contain it; in January, an hour before midnight in UTC."""
    return [f"{day - timedelta(days=1)}T23:00:00.000Z" for day in days]


def test_a_plain_consumer_runs_once_per_day(seen):
    runs = seen.runs["plain_of_plain"]
    assert [run["starts"] for run in runs] == [[start] for start in starts(DAYS)]
    assert {run["key"] for run in runs} == {None}


def test_events_with_a_partition_key_never_start_a_plain_consumer(seen):
    assert seen.runs["plain_of_keyed"] == []


def test_events_without_a_partition_key_never_start_a_partitioned_consumer(seen):
    assert seen.runs["day_of_plain"] == []


def test_a_partitioned_consumer_gets_each_day_once_in_the_time_zone_of_the_dag(seen):
    runs = sorted(seen.runs["day_of_keyed"], key=lambda run: run["key"])
    assert [run["key"] for run in runs] == [str(day) for day in DAYS]
    assert [run["starts"] for run in runs] == [[start] for start in starts(DAYS)]
    dates = [datetime.fromisoformat(run["date"]).astimezone(BERLIN) for run in runs]
    assert [f"{one:%Y-%m-%d %H:%M}" for one in dates] == [f"{day} 00:00" for day in DAYS]


def test_a_weekly_roll_up_runs_once_after_the_seven_days_of_a_week_in_any_order(seen):
    runs = sorted(seen.runs["week_of_keyed"], key=lambda run: run["key"])
    assert [run["key"] for run in runs] == ["2026-01-05 (W02)", "2026-01-12 (W03)"]
    assert [run["starts"] for run in runs] == [starts(DAYS[:7]), starts(DAYS[7:14])]


def test_the_example_reports_each_day_and_each_week_once(seen):
    days = [str(day) for day in DAYS[:14]]
    reports = {report["day"]: report["rows"] for report in seen.runs[f"{PARTITIONS}_day"]}
    assert sorted(reports) == days
    assert len(seen.runs[f"{PARTITIONS}_day"]) == 14
    weeks = sorted(seen.runs[f"{PARTITIONS}_week"], key=lambda report: report["week"])
    assert [list(week["days"]) for week in weeks] == [days[:7], days[7:]]
    assert {**weeks[0]["days"], **weeks[1]["days"]} == reports
    assert all(reports.values())


def test_no_signal_is_stranded_except_those_of_the_week_that_is_not_over(seen):
    assert seen.stranded == {"week_of_keyed": 1}
    assert seen.failures == {"missing partition key": len(DAYS)}  # of day_of_plain


def test_what_an_outage_in_the_middle_of_a_run_cost_is_extracted_by_the_next_run(seen):
    assert seen.states[:2] == ["failed", "success"]
    assert seen.planned[0] == [f"2026-01-{day:02}" for day in range(1, 15)]
    assert 2 <= len(seen.failed) <= 11
    assert seen.planned[1] == [*seen.failed, "2026-01-15"]


def test_an_outage_of_a_week_is_extracted_by_the_next_run(seen):
    assert seen.states[2:5] == ["failed", "failed", "success"]
    assert seen.planned[4] == [f"2026-01-{day}" for day in range(16, 24)]


def test_after_the_outages_a_second_plan_is_empty_and_nothing_is_missing(seen):
    assert (seen.planned[5], seen.states[5]) == ([], "success")
    code, report = seen.coverage
    assert (code, report["counts"]["missing"], report["counts"]["unsettled"]) == (0, 0, 0)
    assert sum(report["counts"].values()) == len(DEVICES) * 23


@pytest.mark.parametrize("device", DEVICES)
def test_after_the_outages_the_lake_has_each_row_once(seen, device):
    first, last = (int(datetime(2026, 1, day, tzinfo=UTC).timestamp() * 1000) for day in (1, 24))
    assert seen.rows[device] == len(list(generate_rows(0, device, first, last - 1, rows_per_day=ROWS_PER_DAY)))


def test_no_process_and_no_folder_is_left(seen):
    assert not seen.folder.exists()
    assert processes_in(seen.folder) == []
