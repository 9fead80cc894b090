"""
Extract yesterday every night and, of the last 14 days, whatever is missing or was extracted before it had settled.

After an outage of a week, the next run extracts that week. An object's name depends only on device, window and format,
so extracting a day again replaces its objects: no row is duplicated.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_unleash.operators import (
    UnleashAccountToObjectStorageOperator,
    UnleashPlanWindowsOperator,
)

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_gaps"

# [START gaps]
with DAG(
    dag_id="example_unleash_gaps",
    description="Writes the days of the last two weeks that are missing or were extracted too early",
    tags=["unleash", "example"],
    schedule=CronTriggerTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two runs at once would plan the same gaps
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    plan = UnleashPlanWindowsOperator(
        task_id="plan",
        missing_in=LAKE,
        every="day",
        window=timedelta(days=14),  # up to the run
        settle=timedelta(days=2),
    )
    UnleashAccountToObjectStorageOperator.partial(
        task_id="extract", dst=LAKE, file_format="parquet", max_active_tis_per_dagrun=1
    ).expand_kwargs(plan.output)
# [END gaps]
