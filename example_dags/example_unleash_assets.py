"""
Each night's files make events of the lake's asset, and a second DAG loads the files that the events name into DuckDB.

The connection ``duckdb_default`` names DuckDB's file as its host. DuckDB reads the files itself: of a lake on S3 with
its extension httpfs and a secret, for which the Amazon provider has connections of type ``duckdb_aws``. Needs pyarrow
and apache-airflow-providers-duckdb.
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

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash")
WAREHOUSE = "duckdb_default"
RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=5)}

# [START assets]
MAKE_TABLES = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, told DOUBLE);
CREATE TABLE IF NOT EXISTS analytics (
    class_name TEXT, count DOUBLE, device_id TEXT, frame_number BIGINT, model_id TEXT, session_id TEXT,
    source_file_name TEXT, "timestamp" TIMESTAMPTZ, extra TEXT, path TEXT
);
"""

# A file's rows are replaced in one transaction, and not at all where they are not as many as its event said.
LOAD_FILES = """
{%- for file in ti.xcom_pull(task_ids='new_files') %}
{%- set path = "'" + file.path.replace("'", "''") + "'" %}
{%- set rows = file.rows | int %}
{%- set url = "'" + file.url.replace("'", "''") + "'" %}
BEGIN TRANSACTION;
DELETE FROM analytics WHERE path = {{ path }};
INSERT INTO analytics SELECT *, {{ path }} FROM read_parquet({{ url }}, hive_partitioning = false);
SELECT if(count(*) = {{ rows }}, 'ok', error(format('{} rows, and its event said {{ rows }}', count(*))))
FROM analytics WHERE path = {{ path }};
INSERT OR REPLACE INTO files VALUES ({{ path }}, {{ file.told | float }});
COMMIT;
{%- endfor %}
SELECT count(*) FROM files;
"""

lake = asset_of(LAKE)  # s3://lake/unleash: the connection is no part of it

with DAG(
    dag_id="example_unleash_assets",
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
        outlets=[lake],  # each task's event says which file it wrote, and how many rows are in it
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

with DAG(
    dag_id="example_unleash_assets_load",
    schedule=[lake],
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # DuckDB lets one write at a time
    default_args=RETRIES,
) as load_dag:
    # Common SQL's operator: another warehouse needs another connection, and its own words for reading a file.
    tables = SQLExecuteQueryOperator(task_id="make_tables", conn_id=WAREHOUSE, sql=MAKE_TABLES)

    @task(inlets=[lake])
    def new_files(**context: Any) -> list[dict[str, Any]]:
        """
        Return the files that are new, or written anew, each with the rows that its event said and the event's time.

        It reads all events of the asset, not those that started the run: of events that come at the same time, as those
        of mapped tasks do, Airflow hands some over only when the next one comes.
        """
        # Of a file that was written twice, only the last event is still true.
        events = sorted(context["inlet_events"][lake], key=lambda event: event.timestamp)
        newest = {
            file["path"]: {**file, "told": event.timestamp.timestamp()}
            for event in events
            for file in event.extra.get("files", ())  # an event that somebody made by hand has none
        }
        known = set(BaseHook.get_hook(WAREHOUSE).get_records("SELECT path, told FROM files"))
        return [file for file in newest.values() if (file["path"], file["told"]) not in known]

    load = SQLExecuteQueryOperator(task_id="load", conn_id=WAREHOUSE, sql=LOAD_FILES, split_statements=True)
    tables >> new_files() >> load
# [END assets]
