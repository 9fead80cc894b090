"""
Upsert each day's counts by device and class as records of a custom object in Salesforce, with Bulk API 2.0.

The upsert matches records by an external id, so a rerun replaces the day's records. Requires
apache-airflow-providers-salesforce and pyarrow.
"""

from __future__ import annotations

# [START salesforce]
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash").rstrip("/") + "_salesforce"

with DAG(
    dag_id="example_unleash_salesforce",
    description="Upserts each day's counts into Salesforce",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    devices = UnleashListDevicesOperator(task_id="list_devices")

    extract = UnleashToObjectStorageOperator.partial(
        task_id="extract",
        dst=LAKE,
        file_format="parquet",
        on_empty="skip",
        max_active_tis_per_dagrun=4,
    ).expand(device_id=devices.output)

    @task(trigger_rule="none_failed")
    def upsert(summaries) -> int:
        """Send one record per device and class, and return the number of records that Salesforce processed."""
        import pyarrow.parquet as pq
        from airflow.providers.salesforce.hooks.salesforce import SalesforceHook

        records = []
        for summary in (summaries or ())[:]:
            device, day = summary["device_id"], summary["start"][:10]
            for file in summary["files"]:
                with ObjectStoragePath(file["path"]).open("rb") as stream:
                    rows = pq.read_table(stream, columns=["class_name", "count"]).group_by("class_name")
                for counts in rows.aggregate([("count", "mean"), ("count", "count")]).to_pylist():
                    records.append(
                        {
                            "Key__c": f"{device}/{day}/{counts['class_name']}",
                            "Device__c": device,
                            "Day__c": day,
                            "Class__c": counts["class_name"],
                            "Mean__c": counts["count_mean"],
                            "Rows__c": counts["count_count"],
                        }
                    )
        if not records:
            return 0
        camera_days = SalesforceHook("salesforce_default").get_conn().bulk2.Camera_Day__c
        jobs = camera_days.upsert(records=records, external_id_field="Key__c")
        # Salesforce accepts what it can, rejects the rest, and reports success.
        for job in jobs:
            if job["numberRecordsFailed"]:
                rejected = camera_days.get_failed_records(job["job_id"])
                raise AirflowFailException(f"Records rejected by Salesforce: {job['numberRecordsFailed']}\n{rejected}")
        return sum(job["numberRecordsProcessed"] for job in jobs)

    upsert(extract.output)
# [END salesforce]
