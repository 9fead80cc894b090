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
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfDayMapper,
    StartOfWeekMapper,
    WeekWindow,
    task,
)
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_unleash.assets import asset_of
from airflow_provider_unleash.operators import (
    UnleashAccountToObjectStorageOperator,
    UnleashPlanWindowsOperator,
)

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_partitions"
DAY = "%Y-%m-%d"

lake = asset_of(LAKE)

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
        events = context["triggering_asset_events"][lake]
        return {"day": context["partition_key"], "rows": events[-1].extra["rows"]}

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
        events = context["triggering_asset_events"][lake]
        days = {event.extra["partition_key"]: event.extra["rows"] for event in events}
        return {"week": context["partition_key"], "days": dict(sorted(days.items()))}

    report_week()
