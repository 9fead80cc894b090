"""
A daily DAG for backfilling a year: it starts at the first day of that year, and limits the load on the API.

``UNLEASH_POOL`` is the name of an Airflow pool. All tasks in a pool share its slots, whichever DAG they belong to.
"""

from __future__ import annotations

# [START past_year]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_past_year"

with DAG(
    dag_id="example_unleash_past_year",
    description="Writes the days of a past year; start a backfill to run them",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=timezone.utc),  # runs before this date have no tasks
    catchup=False,  # past days run when you backfill them, not when you unpause the DAG
    max_active_runs=3,
    default_args={
        "retries": 5,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "pool": os.environ.get("UNLEASH_POOL", "default_pool"),
    },
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",
        max_active_tis_per_dag=8,  # across all runs of this DAG
    ).expand(device_id=devices.output)
# [END past_year]
