"""
Write the analytics of every device to the lake as Parquet, once a day.

One mapped task per device. Each run covers its own data interval, so a rerun or a backfill replaces the same files.
``UNLEASH_LAKE`` is the folder to write to: any URL that Airflow's ObjectStoragePath supports.
"""

from __future__ import annotations

# [START daily]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash")

with DAG(
    dag_id="example_unleash_daily",
    description="Writes the day of every device to the lake, one Parquet file each",
    tags=["unleash", "example"],
    # Not "@daily": on Airflow 3, it gives runs an empty data interval.
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # The first retry waits 5 minutes, each later one twice as long: enough for an outage of two hours.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": True},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",  # a camera without rows skips its task and writes no file
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

    @task(trigger_rule="none_failed")  # runs if cameras were skipped, but not if one failed
    def report(summaries) -> int:
        """Return the number of rows of the day; put your next step here."""
        # [:] requests all summaries at once; iterating over them logs an error at the end.
        return sum(summary["rows"] for summary in (summaries or ())[:])

    report(extract.output)
# [END daily]
