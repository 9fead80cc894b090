"""Use the hook in your own task to find devices without rows. It reads page by page, so memory use stays small."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

# [START hook]
from airflow_provider_unleash.hooks import UnleashHook

with DAG(
    dag_id="example_unleash_hook",
    description="Counts the rows of each device, and names those without any",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
) as dag:

    @task
    def count_rows(data_interval_start=None, data_interval_end=None) -> dict[str, int]:
        """Return the number of rows per device. Airflow fills in both parameters."""
        hook = UnleashHook()
        # The API includes the end of the interval. One millisecond less, and no row is in two days.
        end = data_interval_end - timedelta(milliseconds=1)
        return {
            device: sum(len(page.rows) for page in hook.iter_pages(device, data_interval_start, end))
            for device in hook.list_devices()
        }

    @task
    def report_silent(rows) -> list[str]:
        """Return the devices without rows. Put an alert here."""
        return [device for device, count in rows.items() if count == 0]

    report_silent(count_rows())
# [END hook]
