"""
Copy each day for analysts: devices under pseudonyms, without stream tokens, sessions and file names.

Restrict access to ``UNLEASH_LAKE``, and share ``UNLEASH_SHARED``. The key for the pseudonyms is the password of the
connection ``unleash_pseudonyms``. Requires pyarrow.
"""

from __future__ import annotations

# [START privacy]
import hmac
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, BaseHook, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_privacy"
SHARED = os.environ.get("UNLEASH_SHARED", "s3://aws_default@shared/unleash")
# An allowlist: columns that are added later are not shared by accident.
SHARED_COLUMNS = ["timestamp", "class_name", "count", "frame_number", "model_id"]

with DAG(
    dag_id="example_unleash_privacy",
    description="Copies each day for analysts, under pseudonyms",
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

    @task(trigger_rule="none_failed", multiple_outputs=False)
    def share(summary) -> dict[str, int]:
        """Copy one device's day under its pseudonym, and return the number of rows by the path of the copy."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        key = BaseHook.get_connection("unleash_pseudonyms").password
        if not key:
            raise AirflowFailException("unleash_pseudonyms has no password, so anyone could compute the pseudonyms")
        # A keyed hash: without the key, a list of device ids is not enough to reverse the pseudonyms.
        camera = hmac.new(key.encode(), summary["device_id"].encode(), "sha256").hexdigest()[:32]

        copied = {}
        for file in summary["files"]:
            source = ObjectStoragePath(file["path"])
            with source.open("rb") as stream:
                rows = pq.read_table(stream, columns=SHARED_COLUMNS)
            rows = rows.append_column("camera_id", pa.repeat(camera, len(rows)))
            buffer = pa.BufferOutputStream()
            pq.write_table(rows, buffer, compression="zstd")
            copy = ObjectStoragePath(SHARED) / f"camera={camera}" / source.parent.name / source.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(buffer.getvalue().to_pybytes())  # same name each time, so a rerun replaces it
            copied[str(copy)] = len(rows)
        return copied

    share.expand(summary=extract.output)
# [END privacy]
