"""
Every day, the analytics of every device as Parquet in the lake.

One mapped task a device; a run covers its own data interval, so a backfill or a re-run writes the same files again.
``UNLEASH_LAKE`` is the folder: any URL that Airflow's ObjectStoragePath can reach.
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
    # Not "@daily": on Airflow 3 that gives runs an empty data interval.
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # 5 minutes later, then twice as long each time: two hours without the API cost nothing.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": True},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",  # a silent camera writes nothing and fails nothing
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

    @task(trigger_rule="none_failed")  # skipped cameras are fine, failed ones are not
    def report(summaries) -> int:
        """Return the day's rows; the place for what comes after the extraction."""
        return sum(summary["rows"] for summary in summaries or ())

    report(extract.output)
# [END daily]
