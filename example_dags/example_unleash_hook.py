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
    def count_rows(**context) -> dict[str, int]:
        """Return the number of rows per device in the window of the run, as the operators would extract it."""
        hook = UnleashHook()
        window = hook.window_of(context, window=timedelta(days=1))
        rows = {}
        for device in hook.list_devices():
            rows[device] = sum(len(page.rows) for page in hook.iter_pages(device, window=window))
        return rows

    @task
    def report_silent(rows) -> list[str]:
        """Return the devices without rows. Put an alert here."""
        return [device for device, count in rows.items() if count == 0]

    report_silent(count_rows())
# [END hook]
