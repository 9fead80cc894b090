"""Write each day of the whole account to a Delta table, and compact it once a week."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.delta import open_delta_table
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

TABLE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_delta"

# [START delta]
with DAG(
    dag_id="example_unleash_delta",
    description="Writes the day of every device to a Delta table, in one commit",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 5, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": True},
) as dag:
    UnleashAccountToObjectStorageOperator(task_id="extract", dst=TABLE, file_format="delta")
# [END delta]

# [START maintenance]
with DAG(
    dag_id="example_unleash_delta_maintenance",
    description="Merges small files of the Delta table, and removes files that no version of the last week uses",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@weekly", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    # A compaction loses against an extraction that replaces the same rows, so it needs a retry.
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as maintenance_dag:

    @task
    def compact() -> int:
        """Merge small files of each day, and return how many were merged."""
        return open_delta_table(TABLE).optimize.compact()["numFilesRemoved"]

    @task
    def vacuum() -> int:
        """Remove files that are unused for a week, also those of killed tasks, and return how many they are."""
        return len(open_delta_table(TABLE).vacuum(retention_hours=7 * 24, dry_run=False, full=True))

    compact() >> vacuum()
# [END maintenance]
