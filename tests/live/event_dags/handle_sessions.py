"""A consumer of session events that records each session it handles, slowly enough to be killed while it does."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_unleash.cursor import SessionCursor
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.triggers import UnleashNewSessionsEventTrigger

FOLDER = Path(os.environ["HANDLED"])
SINCE = int(os.environ["SESSIONS_SINCE"])

sessions = Asset(
    name="sessions_to_handle",
    uri="unleash://unleash_default/sessions-to-handle",
    watchers=[
        AssetWatcher(
            name="new_sessions", trigger=UnleashNewSessionsEventTrigger(since=SINCE, poke_interval=2.0, reminder=20.0)
        )
    ],
)

with DAG(
    dag_id="handle_sessions",
    schedule=[sessions],
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 9, "retry_delay": timedelta(seconds=1)},
):

    @task(inlets=[sessions])
    def handle(**context: Any) -> int:
        name = f"{context['run_id']}/{context['ti'].try_number}"
        (FOLDER / "pid").write_text(str(os.getpid()))
        listed = UnleashHook().list_sessions()
        cursor = SessionCursor(context, sessions, since=SINCE)
        pending = cursor.pending(listed)
        with (FOLDER / "handled").open("a", buffering=1) as log:
            for session in pending:
                log.write(f"{name} {session}\n")
                time.sleep(0.2)
            cursor.mark_handled(pending, listed)
            log.write(f"{name} marked\n")
        return len(pending)

    handle()
