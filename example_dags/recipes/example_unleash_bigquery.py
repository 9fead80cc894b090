"""
Load each day's files into a BigQuery table. Each load replaces the day's rows, so a rerun duplicates nothing.

``sql/bigquery_setup.sql`` creates the tables. The SQL is checked for syntax, but not run. Requires
apache-airflow-providers-google.
"""

from __future__ import annotations

# [START bigquery]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "gs://google_cloud_default@lake/unleash").rstrip("/") + "_bigquery"

with DAG(
    dag_id="example_unleash_bigquery",
    description="Replaces each day's rows in a BigQuery table",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # BigQuery cancels one of two concurrent transactions on the same table
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

    load = SQLExecuteQueryOperator(
        task_id="load",
        conn_id="bigquery_default",
        sql="sql/bigquery_load.sql",
        split_statements=False,  # run as one script, so in one transaction
        hook_params={"use_legacy_sql": False},
        trigger_rule="none_failed",  # devices without rows are skipped
    )
    extract >> load
# [END bigquery]
