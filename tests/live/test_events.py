"""
No session is lost while triggerer and consumers are killed in turn, and the event-driven example leaves no gap.

A real Airflow with all its components runs three DAGs: one records each session that it handles, one is the example,
and one has deferred sensors. Takes three minutes, so it runs only with ``make test-live``.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from airflow_provider_unleash.simulator import generate_rows, generate_sessions
from tests.support.dag_runs import DagRun
from tests.support.live_airflow import LIVE, LiveStage, live_stage, wait_until
from tests.support.paths import EXAMPLES
from tests.support.sample_day import HOUR_MS
from tools.bounds import temporary_folder
from tools.stage import processes_in

SESSIONS = 100
SESSION_PERIOD = 1.2
SECONDS_BETWEEN_KILLS = 9.0
DEVICES = ("Wb8fabc31378ce07", "W7d2e90b4c6a1f58")
ROWS_PER_DAY = 5000
EXAMPLE = "example_unleash_event_driven"


@dataclass(frozen=True)
class Seen:
    """
    What the DAGs left behind.

    :param expected: the first hundred sessions since the start.
    :param handled: sessions that each try of the consumer's task handled, in order.
    :param marked: tries that moved the cursor.
    :param killed: how often each component was killed.
    :param windows: start and end of the windows of the example's runs, by device.
    :param rows: number of rows in the example's lake, by device.
    :param waited: states, tries and XComs of the deferred sensors.
    """

    expected: list[str]
    handled: dict[str, list[str]]
    marked: set[str]
    killed: Counter[str]
    windows: dict[str, list[tuple[int, int]]]
    rows: dict[str, int]
    waited: DagRun
    folder: Path


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Return what a hundred sessions left behind; nothing is running any more."""
    with temporary_folder() as folder, live_stage(folder) as stage:
        return watch(stage, folder)


def watch(stage: LiveStage, folder: Path) -> Seen:
    since = int(time.time() * 1000)
    dags, handled = folder / "dags", folder / "handled"
    handled.mkdir()
    shutil.copytree(LIVE / "event_dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLES / f"{EXAMPLE}.py", dags)
    stage.start_simulator(
        *("--devices", ",".join(DEVICES), "--rows-per-day", str(ROWS_PER_DAY)),
        *("--sessions-from", str(since - HOUR_MS), "--session-period", str(SESSION_PERIOD)),
    )
    stage.environ |= {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "UNLEASH_LAKE": f"file://{folder}/lake",
        "SESSIONS_SINCE": str(since),
        "HANDLED": str(handled),
    }
    stage.run_airflow("db", "migrate")
    stage.start_api_server()
    stage.start_airflow("dag-processor")
    wait_until(lambda: stage.has_api_server() and len(stage.query("SELECT dag_id FROM serialized_dag")) == 3, stage)
    stage.start_airflow("scheduler", "-s")
    expected = [str(start) for start in generate_sessions(0, since, since + 10 * HOUR_MS, SESSION_PERIOD)][:SESSIONS]
    killed = kill_until_all_is_handled(stage, handled, set(expected))
    tries, marked = read_log(handled)
    [(run_id,)] = stage.query("SELECT run_id FROM dag_run WHERE dag_id = 'wait_deferred'")
    waited = DagRun(stage.home, "wait_deferred", run_id)
    assert waited.states
    assert waited.tries
    assert waited.xcoms
    return Seen(expected, tries, marked, killed, *read_example(stage, folder / "lake_sessions"), waited, folder)


def kill_until_all_is_handled(stage: LiveStage, handled: Path, expected: set[str]) -> Counter[str]:
    """Kill the triggerer and the consumer's task in turn while sessions arrive, until every session is handled."""
    killed: Counter[str] = Counter()
    triggerer = stage.start_airflow("triggerer", "-s")
    next_kill = time.monotonic() + 2 * SECONDS_BETWEEN_KILLS
    last_arrives = max(map(int, expected)) / 1000
    while not (all_marked(handled) >= expected and has_example_runs(stage, 2) and is_over(stage, "wait_deferred")):
        stage.check_alive()
        if time.monotonic() >= next_kill and time.time() < last_arrives:
            if killed["triggerer"] <= killed["consumer"]:
                stage.kill(triggerer)
                triggerer = stage.start_airflow("triggerer", "-s")
                killed["triggerer"] += 1
            elif kill_consumer(handled):
                killed["consumer"] += 1
            else:
                continue  # the consumer is idle
            next_kill = time.monotonic() + SECONDS_BETWEEN_KILLS
        time.sleep(0.1)
    return killed


def kill_consumer(handled: Path) -> bool:
    """Kill the consumer's task if it is handling sessions, and return whether it was."""
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        lines = (handled / "handled").read_text().splitlines()
        if lines and not lines[-1].endswith(" marked"):
            os.kill(int((handled / "pid").read_text()), signal.SIGKILL)
            return True
    return False


def read_log(handled: Path) -> tuple[dict[str, list[str]], set[str]]:
    """Return the sessions that each try handled, and the tries that moved the cursor."""
    tries: dict[str, list[str]] = defaultdict(list)
    marked: set[str] = set()
    with suppress(FileNotFoundError):
        for line in (handled / "handled").read_text().splitlines():
            name, _, what = line.rpartition(" ")
            if what == "marked":
                marked.add(name)
            else:
                tries[name].append(what)
    return tries, marked


def all_marked(handled: Path) -> set[str]:
    tries, marked = read_log(handled)
    return {session for name in marked for session in tries[name]}


def has_example_runs(stage: LiveStage, least: int) -> bool:
    states = stage.query(f"SELECT state FROM dag_run WHERE dag_id = '{EXAMPLE}'")
    return states.count(("success",)) >= least and set(states) == {("success",)}


def is_over(stage: LiveStage, dag_id: str) -> bool:
    return {state for (state,) in stage.query(f"SELECT state FROM dag_run WHERE dag_id = '{dag_id}'")} == {"failed"}


def read_example(stage: LiveStage, lake: Path) -> tuple[dict[str, list[tuple[int, int]]], dict[str, int]]:
    """Return the windows of the example's runs and the number of rows in its lake, by device."""
    windows: dict[str, list[tuple[int, int]]] = {device: [] for device in DEVICES}
    for (run_id,) in stage.query(f"SELECT run_id FROM dag_run WHERE dag_id = '{EXAMPLE}' ORDER BY id"):
        for window in DagRun(stage.home, EXAMPLE, run_id).xcoms.get("begin", []):
            windows[window["device_id"]].append((window["start"], window["end"]))
    table: Any = pyarrow.dataset.dataset(lake, format="parquet").to_table(columns=["device_id"])
    counts = Counter(table.column("device_id").to_pylist())
    return windows, {device: counts[device] for device in DEVICES}


def test_triggerer_and_consumer_were_killed_repeatedly(seen):
    assert seen.killed["triggerer"] >= 3
    assert seen.killed["consumer"] >= 3


def test_every_session_was_handled(seen):
    handled = {session for sessions in seen.handled.values() for session in sessions}
    assert [session for session in seen.expected if session not in handled] == []


def test_a_session_is_handled_again_only_if_an_earlier_try_was_killed(seen, capsys):
    marked = Counter(session for name in seen.marked for session in seen.handled[name])
    assert {session: times for session, times in marked.items() if times > 1} == {}
    times = Counter(session for sessions in seen.handled.values() for session in sessions)
    killed = {session for name, sessions in seen.handled.items() if name not in seen.marked for session in sessions}
    again = {session for session, number in times.items() if number > 1}
    assert again <= killed
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(times)} sessions handled, {len(again)} of them more than once, each because a try was killed "
            f"before it moved the cursor; killed: {dict(seen.killed)}\n"
        )


def test_deferred_sensors_succeed_skip_and_fail_as_in_other_modes(seen):
    assert seen.waited.states == {("find", 0): "success", ("find", 1): "success", "skip": "skipped", "fail": "failed"}
    # Airflow does not retry a sensor that timed out.
    assert seen.waited.tries["fail"] == 1
    for index in (0, 1):
        found = seen.waited.xcoms["find", index]
        assert len(found) >= 60
        assert found[:60] == [session for session in seen.expected if session in found][:60]


def test_the_windows_of_the_example_have_no_gaps_and_no_overlaps(seen):
    for device in DEVICES:
        windows = seen.windows[device]
        assert len(windows) >= 2
        assert [start for start, _ in windows[1:]] == [end for _, end in windows[:-1]]


@pytest.mark.parametrize("device", DEVICES)
def test_the_lake_of_the_example_has_each_row_once(seen, device):
    start, end = seen.windows[device][0][0], seen.windows[device][-1][1]
    expected = sum(1 for _ in generate_rows(0, device, start, end - 1, rows_per_day=ROWS_PER_DAY))
    assert seen.rows[device] == expected


def test_no_process_and_no_folder_is_left(seen):
    assert not seen.folder.exists()
    assert processes_in(seen.folder) == []
