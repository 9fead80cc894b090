"""
Extract the last three days of every device again each night, for data that arrives late.

A file's name depends only on device, window and format, so extracting a day again replaces its file: no row is
duplicated.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

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
    for days_ago in (2, 1, 0):
        UnleashAccountToObjectStorageOperator(
            task_id=f"extract_{days_ago}_days_ago",
            dst=LAKE,
            file_format="parquet",
            start=f"{{{{ data_interval_start.subtract(days={days_ago}) }}}}",
            end=f"{{{{ data_interval_end.subtract(days={days_ago}) }}}}",
        )
# [END late_data]
