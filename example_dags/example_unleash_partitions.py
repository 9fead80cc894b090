"""
Report each day, and each week when all its days have landed, in whatever order they land. Needs Airflow 3.3.

Every night, the first DAG extracts yesterday and whatever is missing of the last 14 days. Each day that has landed
becomes an event with the day as its partition key.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import (
    DAG,
    ObjectStoragePath,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfDayMapper,
    StartOfWeekMapper,
    WeekWindow,
    task,
)
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_unleash.assets import asset_of
from airflow_provider_unleash.coverage import read_coverage
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import (
    UnleashAccountToObjectStorageOperator,
    UnleashPlanWindowsOperator,
)

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_partitions"
DAY = "%Y-%m-%d"

lake = asset_of(LAKE)


def count_rows(day: str) -> int:
    """Return the number of rows of a day in the lake; an event has only those that its own task wrote."""
    start = datetime.fromisoformat(day).replace(tzinfo=timezone.utc)
    end = start + timedelta(days=1)
    devices = UnleashHook().list_devices()
    coverage = read_coverage(ObjectStoragePath(LAKE), device_ids=devices, start=start, end=end, every="day")
    return sum(cell.rows for cell in coverage)


with DAG(
    dag_id="example_unleash_partitions",
    description="Writes the missing days of the last two weeks, and signals each of them",
    tags=["unleash", "example"],
    schedule=CronTriggerTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two runs at once would plan the same gaps
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    plan = UnleashPlanWindowsOperator(task_id="plan", missing_in=LAKE, every="day", window=timedelta(days=14))
    UnleashAccountToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        outlets=[lake],
        partition_format=DAY,
        max_active_tis_per_dagrun=1,
    ).expand_kwargs(plan.output)

with DAG(
    dag_id="example_unleash_partitions_day",
    description="Reports the rows of a day",
    tags=["unleash", "example"],
    schedule=PartitionedAssetTimetable(
        assets=lake, default_partition_mapper=StartOfDayMapper(input_format=DAY, timezone="UTC")
    ),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
) as day_dag:

    @task
    def report_day(**context: Any) -> dict[str, Any]:
        """Return the day and the number of its rows."""
        day = context["partition_key"]
        return {"day": day, "rows": count_rows(day)}

    report_day()

with DAG(
    dag_id="example_unleash_partitions_week",
    description="Reports the rows of a week",
    tags=["unleash", "example"],
    schedule=PartitionedAssetTimetable(
        assets=lake,
        default_partition_mapper=RollupMapper(
            upstream_mapper=StartOfWeekMapper(input_format=DAY, timezone="UTC"), window=WeekWindow()
        ),
    ),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
) as week_dag:

    @task
    def report_week(**context: Any) -> dict[str, Any]:
        """Return the week, and the number of rows of each of its days."""
        days = sorted({event.extra["partition_key"] for event in context["triggering_asset_events"][lake]})
        return {"week": context["partition_key"], "days": {day: count_rows(day) for day in days}}

    report_week()
