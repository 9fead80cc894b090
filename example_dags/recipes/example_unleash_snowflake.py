"""
Load each day's files into a Snowflake table. Each load replaces the day's rows, so a rerun duplicates nothing.

``sql/snowflake_setup.sql`` creates the stage and the table. The SQL is checked for syntax, but not run. Requires
apache-airflow-providers-snowflake.
"""

from __future__ import annotations

# [START snowflake]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_snowflake"

with DAG(
    dag_id="example_unleash_snowflake",
    description="Replaces each day's rows in a Snowflake table",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
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
        conn_id="snowflake_default",
        sql="sql/snowflake_load.sql",
        split_statements=True,
        trigger_rule="none_failed",  # devices without rows are skipped
    )
    extract >> load
# [END snowflake]
