"""
Extract the last three days of every device again each night, for data that arrives late.

A file's name depends only on device, window and format, so extracting a day again replaces its file: no row is
duplicated.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_late_data"

# [START late_data]
with DAG(
    dag_id="example_unleash_late_data",
    description="Writes the last three days of every device again, for late rows",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two consecutive nights write the same days
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")
    extractions = []
    for days_ago in (2, 1, 0):
        extract = UnleashToObjectStorageOperator.partial(
            task_id=f"extract_{days_ago}_days_ago",
            dst=LAKE,
            file_format="parquet",
            start=f"{{{{ data_interval_start.subtract(days={days_ago}) }}}}",
            end=f"{{{{ data_interval_end.subtract(days={days_ago}) }}}}",
            on_empty="skip",
            max_active_tis_per_dagrun=4,
        ).expand(device_id=devices.output)
        extractions.append(extract)

    @task(trigger_rule="none_failed")
    def done() -> None:
        """Run once the rows of every device have landed."""

    extractions >> done()
# [END late_data]
