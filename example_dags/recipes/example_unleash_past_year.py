"""
A daily DAG that is fit for a backfill of a year: it begins a year ago, and asks the API for few things at a time.

``UNLEASH_POOL`` is a pool of Airflow's; what runs through it shares its slots, whichever DAG it is of.
"""

from __future__ import annotations

# [START past_year]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash")

with DAG(
    dag_id="example_unleash_past_year",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=timezone.utc),  # runs of days before it would have no tasks
    catchup=False,  # the past comes when it is asked for, not when the DAG is switched on
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
        max_active_tis_per_dag=8,  # of all days together
    ).expand(device_id=devices.output)
# [END past_year]
