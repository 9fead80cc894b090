"""The Salesforce recipe, with Airflow's provider, against a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.expected_rows import daily_means
from tests.support.salesforce import Salesforce, serve_salesforce
from tests.support.sample_day import DAY_END, DAY_FOLDER, DAY_START, SILENT, STREET

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def salesforce(connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Salesforce]:
    held = Salesforce()
    with serve_salesforce(held, tmp_path) as (proxy, certificate):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        connect(
            conn_id="salesforce_default",
            conn_type="salesforce",
            login="airflow@example.com",
            password="a password",
            extra={"security_token": "a token", "proxies": {"https": proxy}},
        )
        yield held


def means(held: Salesforce) -> dict[tuple[str, str], tuple[float, int]]:
    assert {record["Day__c"] for record in held.records.values()} == {DAY_FOLDER}
    return {
        (record["Device__c"], record["Class__c"]): (float(record["Mean__c"]), int(record["Rows__c"]))
        for record in held.records.values()
    }


def test_salesforce_holds_each_count_once_however_often_the_day_is_sent(run_recipe, serve, salesforce):
    for seed in (1, 2):
        sim = serve(devices=(STREET, SILENT), seed=seed)
        run = run_recipe("salesforce")
        expected = daily_means(sim, DAY_START, DAY_END - 1)
        assert means(salesforce) == expected
        assert run.xcoms["upsert"] == len(expected)
    assert all(job["operation"] == "upsert" and job["object"] == "Camera_Day__c" for job in salesforce.jobs)
    assert "a passworda token" in salesforce.logins[0]


def test_salesforce_task_fails_without_a_retry_if_a_record_is_rejected(run_recipe, serve, salesforce):
    salesforce.rejects = ("car",)
    serve(devices=(STREET,))
    run = run_recipe("salesforce", state="failed")
    assert run.tries["upsert"] == 1  # a retry would be rejected again
    assert {record["Class__c"] for record in salesforce.records.values()} == {"person", "truck", "bicycle"}
