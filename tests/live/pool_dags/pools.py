"""Two DAGs that list the devices: one in a pool that nobody has made, one in Airflow's own."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.sdk import DAG

from airflow_provider_unleash.operators import UnleashListDevicesOperator

for dag_id, pool in {"in_missing_pool": "unleash_api", "in_default_pool": "default_pool"}.items():
    with DAG(dag_id=dag_id, schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
        UnleashListDevicesOperator(task_id="list", pool=pool)
