"""Deferred sensors: two mapped ones that find their sessions, and two that time out."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG

from airflow_provider_unleash.sensors import UnleashNewSessionsSensor

SINCE = int(os.environ["SESSIONS_SINCE"])
NEVER = SINCE + 36_000_000

with DAG(
    dag_id="wait_deferred",
    schedule="@once",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    default_args={"retries": 3, "retry_delay": timedelta(seconds=1)},
):
    wait = {"deferrable": True, "poke_interval": 6.0}
    UnleashNewSessionsSensor.partial(task_id="find", min_sessions=60, **wait).expand(since=[SINCE, SINCE + 1])
    UnleashNewSessionsSensor(task_id="skip", since=NEVER, timeout=10, soft_fail=True, **wait)
    UnleashNewSessionsSensor(task_id="fail", since=NEVER, timeout=10, **wait)
