"""
Convert each day's files of all devices to one Tableau extract (.hyper), with Tableau's own engine.

``UNLEASH_HYPER`` is the folder for the extracts. Requires tableauhyperapi (Linux on x86, macOS or Windows).
"""

from __future__ import annotations

# [START tableau]
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_tableau"
HYPER = os.environ.get("UNLEASH_HYPER", "s3://aws_default@lake/hyper")

with DAG(
    dag_id="example_unleash_tableau",
    description="Converts each day to a Tableau extract",
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

    @task(trigger_rule="none_failed")
    def make_extract(summaries) -> str:
        """Write the day's rows of all devices to one .hyper file, and return its path."""
        from tableauhyperapi import Connection, CreateMode, HyperProcess, Telemetry, escape_string_literal

        files = [file for summary in (summaries or ())[:] for file in summary["files"]]
        if not files:
            raise AirflowSkipException("No device has rows")
        with TemporaryDirectory() as folder:
            local = [Path(folder, f"{number}.parquet") for number in range(len(files))]
            for file, path in zip(files, local, strict=True):
                path.write_bytes(ObjectStoragePath(file["path"]).read_bytes())
            paths = ", ".join(escape_string_literal(str(path)) for path in local)
            hyper = Path(folder, "unleash.hyper")
            with (
                HyperProcess(Telemetry.DO_NOT_SEND_USAGE_DATA_TO_TABLEAU, parameters={"log_config": ""}) as process,
                Connection(process.endpoint, hyper, CreateMode.CREATE_AND_REPLACE) as connection,
            ):
                rows = f"external(ARRAY[{paths}], FORMAT => 'parquet')"
                connection.execute_command(f"CREATE TABLE analytics AS (SELECT * FROM {rows})")
            target = ObjectStoragePath(HYPER) / f"unleash_{summaries[0]['start'][:10]}.hyper"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(hyper.read_bytes())
        return str(target)

    make_extract(extract.output)
# [END tableau]
