"""The hook in a task of your own: which devices were seen at all, page by page, whatever the number of pages."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

# [START hook]
from airflow_provider_unleash.hooks import UnleashHook

with DAG(
    dag_id="example_unleash_hook",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
) as dag:

    @task
    def count_rows(data_interval_start=None, data_interval_end=None) -> dict[str, int]:
        """Return the rows of each device; Airflow fills the two parameters, and few pages are in memory at a time."""
        hook = UnleashHook()
        # The API's «to» is part of what it returns: without the last millisecond, two days share no row.
        end = data_interval_end - timedelta(milliseconds=1)
        return {
            device: sum(len(page.rows) for page in hook.iter_pages(device, data_interval_start, end))
            for device in hook.list_devices()
        }

    @task
    def report_silent(rows) -> list[str]:
        """Return the cameras without a row: the place for an alert."""
        return [device for device, count in rows.items() if count == 0]

    report_silent(count_rows())
# [END hook]
