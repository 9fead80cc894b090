"""Pass the last hour of one camera through XCom and count its rows by class in a TaskFlow task."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, Param, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashGetAnalyticsOperator

# [START aggregate]
with DAG(
    dag_id="example_unleash_aggregate",
    description="Counts the rows of one camera's last hour by class, through XCom",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    params={"device_id": Param("Wb8fabc31378ce07", type="string")},
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    rows = UnleashGetAnalyticsOperator(task_id="get_rows", device_id="{{ params.device_id }}")

    @task
    def count_by_class(records) -> dict[str, int]:
        """Return the number of rows per class."""
        return dict(Counter(record["class_name"] for record in records))

    count_by_class(rows.output)
# [END aggregate]
