"""Execute a task as Airflow's task runner does, which calls ``on_kill`` in the handler of SIGTERM."""

from __future__ import annotations

import signal
import sys
from typing import Any

from airflow_provider_unleash.operators import (
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
    "plan": lambda dst: UnleashPlanWindowsOperator(
        task_id="a", device_ids=[STREET], every="PT1M", max_pages=1, max_windows=9999
    ),
    "devices": lambda dst: UnleashListDevicesOperator(task_id="a"),
    "sensor": lambda dst: UnleashNewSessionsSensor(task_id="a", poke_interval=0.1, min_sessions=10**6),
}


def main(name: str, dst: str) -> None:
    task = TASKS[name](dst)
    signal.signal(signal.SIGTERM, lambda *signal: task.on_kill())
    task.execute(make_context())


if __name__ == "__main__":
    main(*sys.argv[1:])
