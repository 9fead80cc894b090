"""Write each hour of an account with thousands of devices to one Parquet file."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_account_hourly"

# [START hourly]
with DAG(
    dag_id="example_unleash_hourly",
    description="Writes each hour of all devices to one Parquet file",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # one task at a time, so at most page_concurrency requests are in flight
    default_args={"retries": 5, "retry_delay": timedelta(minutes=2)},
) as dag:
    UnleashAccountToObjectStorageOperator(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        split_by_device=False,  # one file an hour instead of thousands
        execution_timeout=timedelta(minutes=50),
    )
# [END hourly]
