"""Extract when new sessions appear: an event starts the DAG, a cursor tracks what is new. Needs Airflow 3.3."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_unleash.cursor import SessionCursor
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from airflow_provider_unleash.triggers import UnleashNewSessionsEventTrigger

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_sessions"

# [START event_driven]
SINCE = int(datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp() * 1000)
MIN_AGE = timedelta(minutes=30)  # give the data of a new session time to arrive

sessions = Asset(
    name="unleash_sessions",
    uri="unleash://unleash_default/sessions",
    watchers=[
        AssetWatcher(
            name="unleash_new_sessions",
            trigger=UnleashNewSessionsEventTrigger(since=SINCE, min_age=MIN_AGE.total_seconds()),
        )
    ],
)

with DAG(
    dag_id="example_unleash_event_driven",
    description="Writes the rows of new sessions as soon as they appear",
    tags=["unleash", "example"],
    schedule=[sessions],
    catchup=False,
    max_active_runs=1,  # only one run at a time may move the cursor
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:

    @task(inlets=[sessions])  # gives the task access to the asset's state store
    def begin(**context: Any) -> list[dict[str, Any]]:
        """Return the window that follows the last one, for every device."""
        hook = UnleashHook()
        end = datetime.now(timezone.utc) - MIN_AGE
        window = SessionCursor(context, sessions, since=SINCE).begin_window(
            hook.list_sessions(), int(end.timestamp() * 1000)
        )
        if window is None:
            raise AirflowSkipException("No new sessions: this event is a duplicate")
        return [{"device_id": device, "start": window["start"], "end": window["end"]} for device in hook.list_devices()]

    windows = begin()
    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract", dst=LAKE, file_format="parquet", max_active_tis_per_dagrun=4
    ).expand_kwargs(windows)

    @task(inlets=[sessions])
    def finish(windows: Any, **context: Any) -> None:
        """Move the cursor once the rows of every device are in the lake."""
        SessionCursor(context, sessions).finish_window(windows[0], UnleashHook().list_sessions())

    extract >> finish(windows)
# [END event_driven]
