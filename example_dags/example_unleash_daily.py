"""
Write the analytics of every device to the lake as Parquet, once a day.

There is one mapped task per device. A run covers its own data interval, so a rerun or a backfill writes the same files
again. ``UNLEASH_LAKE`` is the folder: any URL that Airflow's ObjectStoragePath can reach.
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
    # Not "@daily": on Airflow 3, that gives runs an empty data interval.
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # The first retry waits 5 minutes, each further one twice as long: enough for two hours without the API.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": True},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",  # a device without rows is skipped
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

    @task(trigger_rule="none_failed")  # skipped devices are fine, failed ones are not
    def report(summaries) -> int:
        """Return the number of rows of the day. Put what follows the extraction here."""
        return sum(summary["rows"] for summary in summaries or ())

    report(extract.output)
# [END daily]
