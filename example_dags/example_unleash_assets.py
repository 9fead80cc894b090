"""
Each night's files make events of the lake's asset, and a second DAG loads the files that the events name into DuckDB.

``UNLEASH_WAREHOUSE`` is DuckDB's file. Needs duckdb and pyarrow.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.assets import asset_of
from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash")
WAREHOUSE = os.environ.get("UNLEASH_WAREHOUSE", "unleash.duckdb")
RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=5)}

# [START assets]
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

    @task(inlets=[lake], multiple_outputs=False)  # a path would be no key of an XCom
    def load(**context: Any) -> dict[str, int]:
        """
        Load the files that are new, or written anew, and return their rows by path.

        It reads all events of the asset, not those that started the run: of events that come at the same time, as those
        of mapped tasks do, Airflow hands some over only when the next one comes.
        """
        import duckdb
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        loaded = {}
        # Of a file that was written twice, only the last event is still true.
        events = sorted(context["inlet_events"][lake], key=lambda event: event.timestamp)
        newest = {
            file["path"]: (event.timestamp.timestamp(), file) for event in events for file in event.extra["files"]
        }
        with duckdb.connect(WAREHOUSE) as warehouse:
            warehouse.execute("CREATE TABLE IF NOT EXISTS files (path TEXT, told DOUBLE)")
            known = set(warehouse.execute("FROM files").fetchall())
            for path, (told, file) in newest.items():
                if (path, told) in known:
                    continue
                with ObjectStoragePath(path).open("rb") as stream:
                    warehouse.register("rows", pq.read_table(stream))
                warehouse.execute("BEGIN")
                warehouse.execute("CREATE TABLE IF NOT EXISTS analytics AS SELECT *, '' AS path FROM rows LIMIT 0")
                warehouse.execute("DELETE FROM analytics WHERE path = ?", [path])
                warehouse.execute("INSERT INTO analytics SELECT *, ? FROM rows", [path])
                [count] = warehouse.execute("SELECT count(*) FROM analytics WHERE path = ?", [path]).fetchone() or [0]
                if count != file["rows"]:
                    raise ValueError(f"{path} has {count} rows, and its event said {file['rows']}")
                warehouse.execute("DELETE FROM files WHERE path = ?", [path])
                warehouse.execute("INSERT INTO files VALUES (?, ?)", [path, told])
                warehouse.execute("COMMIT")
                loaded[path] = count
        return loaded

    load()
# [END assets]
