"""Pass the last hour of one camera through XCom and count it by class in a TaskFlow task."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, Param, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashGetAnalyticsOperator

# [START aggregate]
with DAG(
    dag_id="example_unleash_aggregate",
    description="Counts the last hour of one camera by class, through XCom",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    params={"device_id": Param("Wb8fabc31378ce07", type="string")},
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    rows = UnleashGetAnalyticsOperator(task_id="get_rows", device_id="{{ params.device_id }}")

    @task
    def count_by_class(records) -> dict[str, float]:
        """Return the sum of the counts per class."""
        counts: Counter[str] = Counter()
        for record in records:
            counts[record["class_name"]] += record["count"] or 0
        return dict(counts)

    count_by_class(rows.output)
# [END aggregate]
