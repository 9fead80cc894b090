"""
Share the day of a large account among several workers: each mapped task extracts a batch of devices.

When all of them are done, one asset event starts the DAGs that need the whole day.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from itertools import chain

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.assets import asset_of
from airflow_provider_unleash.coverage import read_coverage
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashListDevicesOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_batches"
lake = asset_of(LAKE)

with DAG(
    dag_id="example_unleash_batches",
    description="Writes the day of every device in batches of 500 devices",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 5, "retry_delay": timedelta(minutes=5)},
) as dag:
    # [START batches]
    batches = UnleashListDevicesOperator(task_id="list_devices", batch_size=500)

    extract = UnleashAccountToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        max_active_tis_per_dagrun=4,  # each has up to page_concurrency requests in flight
    ).expand(device_ids=batches.output)
    # [END batches]

    @task(outlets=[lake])  # one event for all batches
    def complete(batches, **context) -> int:
        """Return the number of rows of the day, or fail if a device has not landed."""
        window = UnleashHook().window_of(context)
        coverage = read_coverage(
            ObjectStoragePath(LAKE),
            device_ids=chain(*batches),
            start=window.start,
            end=window.end,
            every=window.end - window.start,
        )
        if coverage.counts()["missing"]:
            raise RuntimeError(f"Not extracted: {coverage.gaps()}")
        return sum(cell.rows for cell in coverage)

    extract >> complete(batches.output)
