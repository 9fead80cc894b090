"""
Write files every night and load them into DuckDB from a second DAG, which asset events start.

The host of the connection ``duckdb_default`` is DuckDB's file. DuckDB reads the files itself. To read a lake on S3, it
needs its httpfs extension and a secret, which a connection of type ``duckdb_aws`` (Amazon provider) supplies. Needs
pyarrow and apache-airflow-providers-duckdb.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, BaseHook, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.assets import asset_of
from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_assets"
WAREHOUSE = "duckdb_default"
RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=5)}

# [START assets]
CREATE_TABLES = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, event_time DOUBLE);
CREATE TABLE IF NOT EXISTS analytics (
    class_name TEXT, count DOUBLE, device_id TEXT, frame_number BIGINT, model_id TEXT, session_id TEXT,
    source_file_name TEXT, "timestamp" TIMESTAMPTZ, extra TEXT, path TEXT
);
"""

# Replace the rows of each file in one transaction. Roll back if the file's row count differs from its event.
LOAD_FILES = """
{%- for file in ti.xcom_pull(task_ids='new_files') %}
{%- set path = "'" + file.path.replace("'", "''") + "'" %}
{%- set rows = file.rows | int %}
{%- set url = "'" + file.url.replace("'", "''") + "'" %}
BEGIN TRANSACTION;
DELETE FROM analytics WHERE path = {{ path }};
INSERT INTO analytics SELECT *, {{ path }} FROM read_parquet({{ url }}, hive_partitioning = false);
SELECT if(count(*) = {{ rows }}, 'ok', error(format('{} rows, but the event says {{ rows }}', count(*))))
FROM analytics WHERE path = {{ path }};
INSERT OR REPLACE INTO files VALUES ({{ path }}, {{ file.event_time | float }});
COMMIT;
{%- endfor %}
SELECT count(*) FROM files;
"""

lake = asset_of(LAKE)  # s3://lake/unleash_assets, without the connection

with DAG(
    dag_id="example_unleash_assets",
    description="Writes files every night; their asset events start the load",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args=RETRIES,
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")
    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",  # no file, no event
        outlets=[lake],  # each task's event names its file and the number of rows
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

with DAG(
    dag_id="example_unleash_assets_load",
    description="Loads new files into DuckDB when their asset events arrive",
    tags=["unleash", "example"],
    schedule=[lake],
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # DuckDB allows one writer at a time
    default_args=RETRIES,
) as load_dag:
    # The common SQL operator: for another warehouse, change the connection and the SQL that reads a file.
    create_tables = SQLExecuteQueryOperator(task_id="create_tables", conn_id=WAREHOUSE, sql=CREATE_TABLES)

    @task(inlets=[lake])
    def new_files(**context: Any) -> list[dict[str, Any]]:
        """
        Return the files that are new or rewritten, each with the row count and the time of its event.

        Read all events of the asset, not only those that started this run: if events arrive together, as those of
        mapped tasks do, Airflow delivers some of them only with the next event.
        """
        # If a file was written more than once, only its last event is current.
        events = sorted(context["inlet_events"][lake], key=lambda event: event.timestamp)
        newest = {
            file["path"]: {**file, "event_time": event.timestamp.timestamp()}
            for event in events
            for file in event.extra.get("files", ())  # an event that was created manually has no files
        }
        known = set(BaseHook.get_hook(WAREHOUSE).get_records("SELECT path, event_time FROM files"))
        return [file for file in newest.values() if (file["path"], file["event_time"]) not in known]

    load = SQLExecuteQueryOperator(task_id="load", conn_id=WAREHOUSE, sql=LOAD_FILES, split_statements=True)
    create_tables >> new_files() >> load
# [END assets]
