"""A task that Airflow kills ("mark failed", SIGTERM) stops its requests at once and leaves no part of an object."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_unleash.simulator import Fault
from tests.support.answering import trickling
from tests.support.killed_task import TASKS, run_task

IN_FLIGHT = 4
FOR_A_RETRY = {"staging": {".pages"}, "account": {".landed"}}
# Each task has its own process, forked from one that has imported what tasks need, which takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["tests.support.killed_task", "airflow_provider_unleash.client", "airflow.providers.amazon.aws.fs.s3", "pyarrow"]
)


def kill(name: str, lake: Path, is_busy: Callable[[], bool]) -> tuple[float, str]:
    """Send SIGTERM to a process that executes a task; return how long the task took to end, and its error."""
    received, report = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run_task, args=(name, f"file://{lake}", dict(os.environ), report))
    process.start()
    try:
        deadline = time.monotonic() + 100
        while not is_busy() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_busy()
        process.terminate()
        assert received.poll(20)
        error, seconds = received.recv()
        process.join(20)
        assert process.exitcode == 0
        assert error.partition("(")[0] in ("TransportError", "ServerError", "RateLimitError")
        return seconds, error
    finally:
        process.kill()
        process.join()


@pytest.mark.one_airflow
@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("devices", "sensor")])
def test_a_killed_task_sends_no_more_requests_and_leaves_files_only_for_a_retry(serve, lake, name):
    slow = Fault("slow", after=12, times=None, seconds=30)
    sim = serve(rows_per_day=4800, faults=[slow], extra={"page_concurrency": IN_FLIGHT})
    seconds, error = kill(name, lake, lambda: sim._number == 12 + IN_FLIGHT)
    assert seconds < 10, error
    assert sim._number == 12 + IN_FLIGHT
    left = [path for path in lake.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= FOR_A_RETRY.get(name, set())
    assert left or name != "staging"


@pytest.mark.parametrize("name", ["devices", "sensor", "jsonl"])
def test_a_killed_task_does_not_wait_for_a_response(connect, lake, name):
    with trickling() as (url, events):
        connect(host=url, password="any-key")
        seconds, error = kill(name, lake, lambda: "request" in events)
        assert seconds < 10, error
    assert not lake.exists()


@pytest.mark.one_airflow
@pytest.mark.parametrize("kind", ["429", "503"])
def test_a_killed_task_does_not_wait_for_a_retry(serve, lake, kind):
    sim = serve(faults=[Fault(kind, times=None, retry_after=50)])
    seconds, error = kill("jsonl", lake, lambda: len(sim.requests) > 0)
    assert seconds < 10, error
    assert len(sim.requests) == 1


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"
