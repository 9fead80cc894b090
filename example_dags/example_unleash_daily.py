"""
Write the analytics of every device to the lake as Parquet, once a day.

One task extracts all devices. Each run covers its own data interval, so a rerun or a backfill replaces the same files.
``UNLEASH_LAKE`` is the folder to write to: any URL that Airflow's ObjectStoragePath supports.
"""

from __future__ import annotations

# [START daily]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

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
    extract = UnleashAccountToObjectStorageOperator(task_id="extract", dst=LAKE, file_format="parquet")

    @task
    def report(summary) -> int:
        """Return the number of rows of the day; put your next step here."""
        return summary["rows"]

    report(extract.output)
# [END daily]
