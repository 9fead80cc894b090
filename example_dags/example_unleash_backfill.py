"""
Backfill a past year of every device with one mapped task per device and month. Trigger it manually.

Each time span and step writes to its own tree: two grids of windows in one tree would contain rows twice.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_unleash.operators import (
    UnleashListDevicesOperator,
    UnleashPlanWindowsOperator,
    UnleashToObjectStorageOperator,
)

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/")

with DAG(
    dag_id="example_unleash_backfill",
    description="Loads a past span of every device; trigger it with its form",
    tags=["unleash", "example"],
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    params={
        "start": Param("2025-01-01", type="string", format="date"),
        "end": Param("2026-01-01", type="string", format="date", description="exclusive"),
        "every": Param("month", enum=["hour", "day", "week", "month", "quarter"]),
    },
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    # [START backfill]
    devices = UnleashListDevicesOperator(task_id="list_devices")

    plan = UnleashPlanWindowsOperator(
        task_id="plan_windows",
        device_ids=devices.output,
        start="{{ params.start }}",
        end="{{ params.end }}",
        every="{{ params.every }}",
    )

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE + "_{{ params.every }}s_{{ params.start }}_{{ params.end }}",  # one tree per grid of windows
        file_format="parquet",
        on_empty="skip",
        max_active_tis_per_dag=4,  # across all runs, like the API's limit
        map_index_template="{{ task.device_id }} {{ task.start[:10] }}",
    ).expand_kwargs(plan.output)
    # [END backfill]

    @task(trigger_rule="none_failed")
    def report(summaries) -> int:
        """Return the number of rows of all windows."""
        return sum(summary["rows"] for summary in (summaries or ())[:])

    report(extract.output)
