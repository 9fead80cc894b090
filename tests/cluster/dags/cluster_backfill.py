"""Extract a span of days for every device, with one mapped task per device and day. All tasks share one pool."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_unleash.operators import (
    UnleashListDevicesOperator,
    UnleashPlanWindowsOperator,
    UnleashToObjectStorageOperator,
)

with DAG(
    dag_id="cluster_backfill",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    params={
        "start": Param("2026-01-12", type="string", format="date"),
        "end": Param("2026-01-19", type="string", format="date", description="exclusive"),
        "tree": Param("", type="string", description="suffix of the lake's folder"),
    },
    default_args={"retries": 4, "retry_delay": timedelta(seconds=5)},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    plan = UnleashPlanWindowsOperator(
        task_id="plan_windows",
        device_ids=devices.output,
        start="{{ params.start }}",
        end="{{ params.end }}",
        every="day",
    )

    UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=os.environ.get("UNLEASH_LAKE", "s3://lake@lake/tree") + "{{ params.tree }}",
        file_format="parquet",
        checkpoint_pages=int(os.environ.get("CHECKPOINT_PAGES", "200")),
        pool="unleash_api",
        map_index_template="{{ task.device_id }} {{ task.start[:10] }}",
    ).expand_kwargs(plan.output)
