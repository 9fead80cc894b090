"""Load a day of each device into a pandas data frame and count its rows by class. Needs the extra pandas."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashListDevicesOperator

with DAG(
    dag_id="example_unleash_data_frame",
    description="Finds the busiest hour of each device with pandas",
    tags=["unleash", "example"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
) as dag:
    # [START data_frame]
    @task
    def busiest_hour(device_id, **context) -> dict[str, int]:
        """Return the number of rows per class in the busiest hour. All rows of the day are in memory."""
        hook = UnleashHook()
        window = hook.window_of(context, window=timedelta(days=1))
        rows = hook.get_df(device_id, window=window)  # df_type="polars" returns a polars frame
        hour = rows["timestamp"].dt.hour
        busiest = hour.value_counts().idxmax() if len(rows) else None
        return rows["class_name"][hour == busiest].value_counts().to_dict()

    # [END data_frame]
    devices = UnleashListDevicesOperator(task_id="list_devices")
    busiest_hour.expand(device_id=devices.output)
