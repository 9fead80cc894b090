"""Tasks to kill, executed as Airflow's task runner does, which calls ``on_kill`` in the handler of SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from airflow_provider_unleash.operators import (
    UnleashAccountToObjectStorageOperator,
    UnleashListDevicesOperator,
    UnleashPlanWindowsOperator,
    UnleashToObjectStorageOperator,
)
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from tests.support.sample_day import STREET, make_context

TASKS: dict[str, Any] = {
    "jsonl": lambda dst: UnleashToObjectStorageOperator(task_id="a", device_id=STREET, dst=dst),
    "staging": lambda dst: UnleashToObjectStorageOperator(task_id="a", device_id=STREET, dst=dst, checkpoint_pages=2),
    "parquet": lambda dst: UnleashToObjectStorageOperator(
        task_id="a", device_id=STREET, dst=dst, file_format="parquet"
    ),
    "account": lambda dst: UnleashAccountToObjectStorageOperator(task_id="a", dst=dst),
    "account in one object": lambda dst: UnleashAccountToObjectStorageOperator(
        task_id="a", dst=dst, split_by_device=False
    ),
    "plan": lambda dst: UnleashPlanWindowsOperator(
        task_id="a", device_ids=[STREET], every="PT1M", max_pages=1, max_windows=9999
    ),
    "devices": lambda dst: UnleashListDevicesOperator(task_id="a"),
    "sensor": lambda dst: UnleashNewSessionsSensor(task_id="a", poke_interval=0.1, min_sessions=10**6),
}


def run_task(name: str, dst: str, environment: dict[str, str], report: Connection) -> None:
    """Execute a task, and report its error and the seconds from the signal to the end of the task."""
    os.environ |= environment
    task = TASKS[name](dst)
    killed_at = 0.0

    def kill(*signal: object) -> None:
        nonlocal killed_at
        killed_at = time.monotonic()
        task.on_kill()

    signal.signal(signal.SIGTERM, kill)
    try:
        task.execute(make_context())
    except Exception as error:
        report.send((repr(error), time.monotonic() - killed_at))
