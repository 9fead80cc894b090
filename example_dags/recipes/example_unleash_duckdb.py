"""
Load each day's files into a DuckDB table of daily counts, through Airflow's own connection to the store.

``UNLEASH_WAREHOUSE`` is the path of the DuckDB file. Requires duckdb.
"""

from __future__ import annotations

# [START duckdb]
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_duckdb"
WAREHOUSE = os.environ.get("UNLEASH_WAREHOUSE", "unleash.duckdb")
SQL = Path(__file__).parent / "sql" / "duckdb_load.sql"

with DAG(
    dag_id="example_unleash_duckdb",
    description="Replaces each day's counts in a DuckDB table",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # only one process can write to a DuckDB file at a time
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

    @task(trigger_rule="none_failed")
    def load(summaries) -> int:
        """Replace the counts for the files that this run wrote, and return the number of counts in the table."""
        import duckdb

        urls = [file["url"] for summary in (summaries or ())[:] for file in summary["files"]]
        if not urls:
            return 0
        with duckdb.connect(WAREHOUSE) as warehouse:
            # DuckDB reads s3://, gs:// and az:// URLs through Airflow's connection, so it needs no credentials.
            warehouse.register_filesystem(ObjectStoragePath(LAKE).fs)
            warehouse.execute("SET VARIABLE urls = $urls", {"urls": urls})
            warehouse.execute(SQL.read_text())
            [(counts,)] = warehouse.execute("SELECT count(*) FROM daily_counts").fetchall()
            return counts

    load(extract.output)
# [END duckdb]
