"""An account whose days are signalled with and without partition keys, and the DAGs that these signals start."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import (
    DAG,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfDayMapper,
    StartOfWeekMapper,
    WeekWindow,
    task,
)

from airflow_provider_unleash.assets import asset_of
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

LAKE = os.environ["UNLEASH_LAKE"]
DAY = "%Y-%m-%d"
ZONE = "Europe/Berlin"  # the date of its midnight in UTC is another one
KEYED, PLAIN = f"{LAKE}_keyed", f"{LAKE}_plain"
SETTINGS: dict[str, Any] = {"start_date": datetime(2026, 1, 1, tzinfo=ZoneInfo(ZONE)), "catchup": False}


@task
def describe_run(asset: Any, **context: Any) -> dict[str, Any]:
    """Return the partition of the run, and the days of the events that started it."""
    events = context["triggering_asset_events"][asset]
    date = context["dag_run"].partition_date
    return {
        "key": context["partition_key"],
        "date": date and date.isoformat(),
        "starts": sorted(event.extra["start"] for event in events),
    }


with DAG("extract_keyed", schedule=None, max_active_runs=2, **SETTINGS):
    UnleashAccountToObjectStorageOperator(task_id="extract", dst=KEYED, outlets=[asset_of(KEYED)], partition_format=DAY)

with DAG("extract_plain", schedule=None, **SETTINGS):
    UnleashAccountToObjectStorageOperator(task_id="extract", dst=PLAIN, outlets=[asset_of(PLAIN)])

with DAG("plain_of_keyed", schedule=[asset_of(KEYED)], **SETTINGS):
    describe_run(asset_of(KEYED))

with DAG("plain_of_plain", schedule=[asset_of(PLAIN)], **SETTINGS):
    describe_run(asset_of(PLAIN))

for name, lake in (("keyed", asset_of(KEYED)), ("plain", asset_of(PLAIN))):
    with DAG(
        f"day_of_{name}",
        schedule=PartitionedAssetTimetable(
            assets=lake, default_partition_mapper=StartOfDayMapper(input_format=DAY, timezone=ZONE)
        ),
        **SETTINGS,
    ):
        describe_run(lake)

with DAG(
    "week_of_keyed",
    schedule=PartitionedAssetTimetable(
        assets=asset_of(KEYED),
        default_partition_mapper=RollupMapper(
            upstream_mapper=StartOfWeekMapper(input_format=DAY, timezone=ZONE), window=WeekWindow()
        ),
    ),
    **SETTINGS,
):
    describe_run(asset_of(KEYED))
