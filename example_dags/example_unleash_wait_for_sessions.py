"""Wait until the day has a session, then extract the day of every device."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_wait_for_sessions"

# [START wait_for_sessions]
with DAG(
    dag_id="example_unleash_wait_for_sessions",
    description="Waits for the day's first session, then writes the day as JSON lines",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    wait = UnleashNewSessionsSensor(
        task_id="wait_for_sessions",
        min_age=timedelta(minutes=30),  # give the data of a new session time to arrive
        deferrable=True,  # waits in the triggerer without a worker slot, and shares its polls
        poke_interval=300,
        timeout=6 * 60 * 60,
        soft_fail=True,  # skip a day without sessions instead of failing
    )
    extract = UnleashAccountToObjectStorageOperator(
        task_id="extract", dst=LAKE, file_format="jsonl", compression="gzip"
    )

    wait >> extract
# [END wait_for_sessions]
