"""
Write the day of every device with a mapped task per device, for devices that need their own retries or clearing.

For most accounts, one task for all devices is better: see ``example_unleash_daily.py``.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_mapped"

with DAG(
    dag_id="example_unleash_mapped",
    description="Writes the day of every device with one mapped task per device",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    # [START mapped]
    devices = UnleashListDevicesOperator(task_id="list_devices")

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",  # a camera without rows skips its task and writes no file
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)
    # [END mapped]

    @task(trigger_rule="none_failed")  # runs if cameras were skipped, but not if one failed
    def report(summaries) -> int:
        """Return the number of rows of the day."""
        # [:] requests all summaries at once; iterating over them logs an error at the end.
        return sum(summary["rows"] for summary in (summaries or ())[:])

    report(extract.output)
