"""Extract two days for every device, with one mapped task per batch of devices and day. All tasks share one pool."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashListDevicesOperator

with DAG(
    dag_id="cluster_batches",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    params={"start": "2026-01-12", "end": "2026-01-14"},
    default_args={"retries": 4, "retry_delay": timedelta(seconds=5)},
) as dag:
    batches = UnleashListDevicesOperator(task_id="list_devices", batch_size=int(os.environ.get("BATCH_SIZE", "250")))

    @task
    def plan_windows(batches: list[list[str]], params: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """Return the arguments of each extraction."""
        assert params is not None
        start, end = (datetime.fromisoformat(params[bound]).replace(tzinfo=timezone.utc) for bound in ("start", "end"))
        days = [start + timedelta(days=number) for number in range((end - start).days)]
        return [
            {"device_ids": batch, "start": day.isoformat(), "end": (day + timedelta(days=1)).isoformat()}
            for day in days
            for batch in batches
        ]

    UnleashAccountToObjectStorageOperator.partial(
        task_id="extract",
        dst=os.environ.get("UNLEASH_LAKE", "s3://lake@lake/tree"),
        file_format="parquet",
        pool="unleash_api",
    ).expand_kwargs(plan_windows(batches.output))
