"""Delta tables in a DAG: what is checked when it is parsed, and connections as options of the library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_unleash.core import columns
from airflow_provider_unleash.core.coverage import read_coverage
from airflow_provider_unleash.core.coverage_page import format_command, render_coverage
from airflow_provider_unleash.core.delta import WindowTable
from airflow_provider_unleash.delta import open_delta_table, storage_options_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Simulator
from airflow_provider_unleash.window import Window
from tests.support.answering import answering
from tests.support.not_retried import not_retried
from tests.support.sample_day import CROWD, DAY_END, DAY_START, STREET, make_context
from tests.support.secret_search import leaks

pytestmark = pytest.mark.usefixtures("quick_retries")


class Events:
    """The ``outlet_events`` of a task with one outlet; assets are not hashable in every Airflow."""

    def __init__(self) -> None:
        self.event = SimpleNamespace(extra={})

    def __getitem__(self, asset: object) -> SimpleNamespace:
        return self.event


def test_the_summary_and_the_event_are_those_of_other_formats(sim: Simulator, tmp_path: Path) -> None:
    outlet = Asset(uri="s3://lake/unleash")
    events = Events()
    summaries = {}
    for file_format in ("parquet", "delta"):
        operator = UnleashAccountToObjectStorageOperator(
            task_id="extract", dst=f"file://{tmp_path}/{file_format}", file_format=file_format, outlets=[outlet]
        )
        summaries[file_format] = operator.execute({**make_context(), "outlet_events": events})
    delta, parquet = summaries["delta"], summaries["parquet"]
    assert delta.keys() == parquet.keys()
    same = ("start", "end", "window_rule", "devices", "devices_with_rows", "pages", "rows", "requests")
    assert {name: delta[name] for name in same} == {name: parquet[name] for name in same}
    assert (delta["file_format"], delta["objects"]) == ("delta", 1)
    assert events.event.extra["manifest"] == delta["manifest"]
    assert open_delta_table(f"file://{tmp_path}/delta").to_pyarrow_table().num_rows == delta["rows"]


def test_the_operator_of_one_device_refuses_a_table_when_the_dag_is_parsed() -> None:
    with not_retried(InvalidArgumentError, match="UnleashAccountToObjectStorageOperator"):
        UnleashToObjectStorageOperator(task_id="t", device_id=STREET, dst="file:///lake", file_format="delta")


@pytest.mark.parametrize("arguments", [{"compression": "gzip"}, {"column_types": {"window_end": "string"}}])
def test_arguments_that_a_table_does_not_have_fail_when_the_dag_is_parsed(arguments: Any) -> None:
    with not_retried(InvalidArgumentError, match=next(iter(arguments))):
        UnleashAccountToObjectStorageOperator(task_id="t", dst="file:///lake", file_format="delta", **arguments)


def test_mapped_tasks_with_some_devices_each_keep_the_rows_of_the_others(sim: Simulator, tmp_path: Path) -> None:
    for index, device in enumerate((STREET, CROWD)):
        operator = UnleashAccountToObjectStorageOperator(
            task_id="t", dst=f"file://{tmp_path}", file_format="delta", split_by_device=False, device_ids=[device]
        )
        context = make_context()
        context["ti"] = SimpleNamespace(map_index=index)
        operator.execute(context)
    found = open_delta_table(f"file://{tmp_path}").to_pyarrow_table(columns=["device"]).column("device").to_pylist()
    expected = {device: len(sim.rows(device, DAY_START, DAY_END - 1)) for device in (STREET, CROWD)}
    assert {device: found.count(device) for device in found} == expected


def test_open_delta_table_names_the_extra_and_checks_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a URL"):
        open_delta_table("lake")
    with pytest.raises(InvalidArgumentError, match="missing_conn"):
        open_delta_table("s3://missing_conn@lake/t")
    monkeypatch.setattr(columns, "find_spec", lambda name: None)
    with pytest.raises(InvalidArgumentError, match=r"airflow-provider-unleash\[delta\]"):
        open_delta_table("file:///lake")


def test_a_coverage_page_has_the_log_as_file_and_the_options_of_the_store_in_its_command(
    sim: Simulator, tmp_path: Path
) -> None:
    day = {"start": "2026-01-12", "end": "2026-01-13"}
    dst = f"file://{tmp_path}"
    UnleashAccountToObjectStorageOperator(task_id="t", dst=dst, file_format="delta", **day).execute(make_context())
    coverage = read_coverage(dst, device_ids=[STREET], every="day", **day)
    [data] = re.findall('id="data">(.*?)</script>', render_coverage(coverage, dst))
    assert json.loads(data)["devices"][0]["paths"] == {"0": "_delta_log"}
    command = format_command(coverage, dst, with_airflow=True)
    assert "file_format='delta'" in command
    assert f"storage_options=lambda: storage_options_of({dst!r})" in command
    assert "storage_options" not in format_command(coverage, dst, with_airflow=False)


# ---- connections ---------------------------------------------------------------------------------

CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "azure: key": (
        "abfs",
        {"conn_type": "wasb", "login": "acc", "password": "key-of-acc"},
        {"account_name": "acc", "account_key": "key-of-acc"},
    ),
    "azure: host": (
        "abfss",
        {"conn_type": "wasb", "host": "acc.blob.core.windows.net", "extra": {"sas_token": "sv=1&sig=x"}},
        {"account_name": "acc", "sas_token": "sv=1&sig=x"},
    ),
    "azure: application": (
        "abfs",
        {
            "conn_type": "wasb",
            "host": "https://acc.blob.core.windows.net/",
            "login": "app",
            "password": "secret",
            "extra": {"tenant_id": "tenant"},
        },
        {"account_name": "acc", "client_id": "app", "client_secret": "secret", "tenant_id": "tenant"},
    ),
    "azure: managed identity": (
        "abfs",
        {"conn_type": "wasb", "login": "acc", "extra": {"managed_identity_client_id": "id"}},
        {"account_name": "acc", "client_id": "id"},
    ),
    "azure: old names of fields": (
        "abfs",
        {"conn_type": "wasb", "login": "acc", "extra": {"extra__wasb__sas_token": "sv=1"}},
        {"account_name": "acc", "sas_token": "sv=1"},
    ),
    "azure: connection string": (
        "abfs",
        {
            "conn_type": "wasb",
            "extra": {"connection_string": "AccountName=acc;AccountKey=a+/b==;BlobEndpoint=http://127.0.0.1:1/acc"},
        },
        {
            "account_name": "acc",
            "account_key": "a+/b==",
            "azure_storage_endpoint": "http://127.0.0.1:1/acc",
            "allow_http": "true",
        },
    ),
    "google: key": (
        "gs",
        {"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": {"type": "service_account"}}},
        {"google_service_account_key": '{"type": "service_account"}'},
    ),
    "google: key as text": (
        "gs",
        {"conn_type": "google_cloud_platform", "extra": {"extra__google_cloud_platform__keyfile_dict": "{}"}},
        {"google_service_account_key": "{}"},
    ),
    "google: file": (
        "gs",
        {"conn_type": "google_cloud_platform", "extra": {"key_path": "/key.json"}},
        {"google_service_account": "/key.json"},
    ),
    "google: public": (
        "gs",
        {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}},
        {"google_skip_signature": "true"},
    ),
    "google: environment": ("gs", {"conn_type": "google_cloud_platform"}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_connection_becomes_options(connect: Callable[..., None], name: str) -> None:
    scheme, fields, expected = CASES[name]
    connect(conn_id="store", **fields)
    assert storage_options_of(f"{scheme}://store@lake/unleash") == expected


@pytest.mark.parametrize("scheme", ["file", "gs", "abfs"])
def test_without_a_connection_the_environment_has_the_options(scheme: str) -> None:
    assert storage_options_of(f"{scheme}:///lake" if scheme == "file" else f"{scheme}://lake/t") == {}


def test_a_google_connection_that_the_library_cannot_use_is_an_error(connect: Callable[..., None]) -> None:
    connect(conn_id="store", conn_type="google_cloud_platform", extra={"impersonation_chain": "a@b"})
    with pytest.raises(InvalidArgumentError, match="impersonation_chain of the connection store"):
        storage_options_of("gs://store@lake/t")


def test_an_aws_connection_becomes_options(connect: Callable[..., None]) -> None:
    extra = {"aws_session_token": "token", "region_name": "eu-central-1", "endpoint_url": "http://127.0.0.1:8333"}
    connect(conn_id="store", conn_type="aws", login="key", password="secret", extra=extra)
    assert storage_options_of("s3://store@lake/t") == {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "aws_session_token": "token",
        "aws_region": "eu-central-1",
        "aws_endpoint_url": "http://127.0.0.1:8333",
        "aws_allow_http": "true",
    }


ASSUMED = b"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>role-key</AccessKeyId><SecretAccessKey>role-secret</SecretAccessKey><SessionToken>role-token</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""


def test_a_role_of_an_aws_connection_is_assumed(connect: Callable[..., None]) -> None:
    with answering(ASSUMED, content_type="text/xml") as url:
        extra = {
            "role_arn": "arn:aws:iam::123456789012:role/lake",
            "region_name": "eu-central-1",
            "service_config": {"sts": {"endpoint_url": url}},
        }
        connect(conn_id="store", conn_type="aws", login="key", password="secret", extra=extra)
        assert storage_options_of("s3://store@lake/t") == {
            "aws_access_key_id": "role-key",
            "aws_secret_access_key": "role-secret",
            "aws_session_token": "role-token",
            "aws_region": "eu-central-1",
        }


@pytest.mark.parametrize("scheme", ["s3", "abfs"])
def test_an_error_of_a_store_shows_no_credential(
    connect: Callable[..., None], caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    """Azure's errors have the URL with its signature."""
    secret = "rEcOgnisable4711key"
    upath = pytest.importorskip("upath")
    if scheme == "s3":
        extra = {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-central-1"}
        connect(conn_id="store", conn_type="aws", login="key", password=secret, extra=extra)
        dst = upath.UPath("s3://lake/t")
    else:
        string = f"AccountName=acc;SharedAccessSignature=sv=2024&sig={secret};BlobEndpoint=http://127.0.0.1:9/acc"
        connect(conn_id="store", conn_type="wasb", extra={"connection_string": string})
        dst = SimpleNamespace(protocol="abfs", path="lake/t", fs=None)
    options = {**storage_options_of(f"{scheme}://store@lake/t"), "max_retries": "0"}
    assert secret in json.dumps(options)
    with pytest.raises(OSError, match="Generic") as caught:
        WindowTable(dst, Window(DAY_START, DAY_END), None, lambda: options)
    assert leaks(secret, {"error": f"{caught.value!r} {caught.value}", "log": caplog.text}) == []


def test_an_error_of_open_delta_table_shows_no_credential(
    connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    secret = "rEcOgnisable4711key"
    extra = {"endpoint_url": f"http://127.0.0.1:9/{secret}", "region_name": "eu-central-1"}
    connect(conn_id="store", conn_type="aws", login="key", password=secret, extra=extra)
    quick = {**storage_options_of("s3://store@lake/t"), "max_retries": "0"}
    monkeypatch.setattr("airflow_provider_unleash.delta.storage_options_of", lambda dst: quick)
    with pytest.raises(OSError, match="Generic S3 error") as caught:
        open_delta_table("s3://store@lake/t")
    assert "127.0.0.1:9/***" in str(caught.value)
    assert leaks(secret, {"error": f"{caught.value!r} {caught.value}"}) == []


def test_a_templated_format_is_checked_when_the_task_runs(sim: Simulator, tmp_path: Path) -> None:
    with DAG(dag_id="templated"):
        operator = UnleashAccountToObjectStorageOperator(
            task_id="extract", dst=f"file://{tmp_path}", file_format="{{ 'delta' }}", compression="gzip"
        )
    operator.file_format = "delta"
    with not_retried(InvalidArgumentError, match="compression"):
        operator.execute(make_context())
    assert sim.requests == []
