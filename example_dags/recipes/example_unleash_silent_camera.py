"""
Extract the rows of every device each day, and send an alert that names the cameras without rows.

``unleash_alerts`` is a connection to an incoming webhook (Slack, Teams, Mattermost or your own). Its password is the
webhook's path.
"""

from __future__ import annotations

# [START silent_camera]
import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, BaseHook, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_silent_camera"


def alert(context: Any) -> None:
    """Post why the task failed. You can use any Airflow notifier instead."""
    import requests

    webhook = BaseHook.get_connection("unleash_alerts")
    text = f"{context['ti'].dag_id}: {context.get('exception') or 'see the task log'}"
    # The secret path is the password, because requests puts the URL in its errors and Airflow masks passwords.
    requests.post(f"{webhook.host}{webhook.password}", json={"text": text}, timeout=30).raise_for_status()


with DAG(
    dag_id="example_unleash_silent_camera",
    description="Alerts if a camera has no rows in a day",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    extract = UnleashAccountToObjectStorageOperator(task_id="extract", dst=LAKE, file_format="parquet")

    @task(on_failure_callback=alert)
    def check_cameras(summary) -> None:
        """Fail with the ids of the cameras without rows. The manifest has a line for each camera."""
        manifest = ObjectStoragePath(summary["manifest"]["path"]).read_text()
        cameras = [json.loads(line) for line in manifest.splitlines()]
        silent = [camera["device_id"] for camera in cameras if camera["rows"] == 0]
        if silent:
            # No retry: these rows were requested a moment ago.
            raise AirflowFailException(f"No rows from {len(silent)} of {len(cameras)} cameras: {', '.join(silent)}")

    check_cameras(extract.output)
# [END silent_camera]
