"""OpenLineage events name the device that rows came from and the folder they were written to, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_unleash.core.columns import COLUMNS, columns_of
from airflow_provider_unleash.lineage import Extraction, dataset_name, lineage_of
from airflow_provider_unleash.simulator import Simulator
from airflow_provider_unleash.window import Window
from tests.support.expected_rows import contents_in
from tests.support.python_processes import BLOCK, run_code, run_module
from tests.support.sample_day import CROWD, DAY_END, DAY_START, SILENT, STREET

BODY = """
from airflow_provider_unleash.assets import asset_of

lake = {lake!r}
street = dict(device_id={street!r})
csv = dict(dst=f"{{lake}}/csv", file_format="csv", column_types={{"confidence": "float64"}})
UnleashToObjectStorageOperator(task_id="csv", outlets=[asset_of(f"{{lake}}/csv")], **street, **csv)
UnleashGetAnalyticsOperator(task_id="rows", start="2026-01-12T06:00Z", end="2026-01-12T12:00Z", **street)
UnleashToObjectStorageOperator(task_id="skipped", device_id={silent!r}, dst=lake, on_empty="skip")
UnleashToObjectStorageOperator(task_id="empty", device_id={silent!r}, dst=f"{{lake}}/empty")
UnleashToObjectStorageOperator(task_id="unknown", device_id="no-such-device", dst=lake)
UnleashToObjectStorageOperator(task_id="unread", dst=lake, unleash_conn_id="unusable", **street)
UnleashAccountToObjectStorageOperator(task_id="account", dst=f"{{lake}}/account")
UnleashToObjectStorageOperator.partial(task_id="mapped", dst=f"{{lake}}/mapped").expand(device_id={mapped!r})
"""


@pytest.fixture(scope="module")
def sim() -> Any:
    with Simulator(rows_per_day=240, page_size=20) as sim:
        yield sim


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def events(sim: Simulator, lake: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the events that OpenLineage's file transport wrote for a DAG run in its own process."""
    pytest.importorskip("airflow.providers.openlineage.plugins.listener")
    folder = tmp_path_factory.mktemp("lineage")
    connection = {"conn_type": "unleash", "host": sim.base_url, "password": sim.api_key}
    transport = {"type": "file", "log_file_path": f"{folder}/events.json", "append": True}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")} | {
        "AIRFLOW_CONN_UNLEASH_DEFAULT": json.dumps(connection),
        "AIRFLOW_CONN_UNUSABLE": json.dumps({**connection, "host": "ftp://nowhere"}),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
    }
    body = BODY.format(lake=f"file://{lake}", street=STREET, silent=SILENT, mapped=[CROWD, STREET])
    run_module("lineage_runs", folder / "states.json", environment=environment, given=body)
    states = json.loads((folder / "states.json").read_text())
    failed = {task for task, state in states.items() if state == "failed"}
    assert failed == {"unknown", "unread"}, states
    return [json.loads(line) for line in (folder / "events.json").read_text().splitlines()]


@pytest.fixture
def ends(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the last event of each try, by task."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["eventType"] != "START":
            found.setdefault(event["job"]["name"].partition(".")[2], []).append(event)
    return found


def names(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


def columns(dataset: dict[str, Any]) -> dict[str, str]:
    return {field["name"]: field["type"] for field in dataset["facets"]["schema"]["fields"]}


@pytest.mark.slow
def test_the_event_of_an_extraction_has_device_folder_columns_and_size(ends, sim, lake):
    [event] = ends["csv"]
    assert event["eventType"] == "COMPLETE"
    assert names(event["inputs"]) == [(f"unleash://{urlsplit(sim.base_url).netloc}", f"analytics/{STREET}")]
    assert names(event["outputs"]) == [("file", f"{lake}/csv")]
    assert columns(event["inputs"][0]) == COLUMNS
    assert columns(event["outputs"][0]) == columns_of({"confidence": "float64"})
    [file] = (lake / "csv").rglob("*.csv")
    statistics = event["outputs"][0]["outputFacets"]["outputStatistics"]
    assert statistics["rowCount"] == len(sim.rows(STREET, DAY_START, DAY_END - 1))
    assert statistics["size"] == file.stat().st_size
    [event] = ends["empty"]
    assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 0


@pytest.mark.slow
def test_rows_in_xcom_are_an_input_without_an_output(ends):
    [event] = ends["rows"]
    assert [name for _, name in names(event["inputs"])] == [f"analytics/{STREET}"]
    assert event["outputs"] == []


@pytest.mark.slow
def test_the_event_of_a_mapped_task_has_its_own_device(ends, lake):
    inputs = {name for event in ends["mapped"] for _, name in names(event["inputs"])}
    assert inputs == {f"analytics/{CROWD}", f"analytics/{STREET}"}
    assert [names(event["outputs"]) for event in ends["mapped"]] == [[("file", f"{lake}/mapped")]] * 2


@pytest.mark.slow
def test_the_event_of_an_account_has_its_devices_and_one_folder(ends, sim, lake):
    [event] = ends["account"]
    assert [name for _, name in names(event["inputs"])] == [f"analytics/{device}" for device in sorted(sim.devices)]
    assert names(event["outputs"]) == [("file", f"{lake}/account")]
    statistics = event["outputs"][0]["outputFacets"]["outputStatistics"]
    assert statistics["rowCount"] == sum(len(sim.rows(device, DAY_START, DAY_END - 1)) for device in sim.devices)
    assert statistics["size"] == sum(map(len, contents_in(lake / "account").values()))


@pytest.mark.parametrize("task", ["unknown", "unread", "skipped"])
@pytest.mark.slow
def test_a_task_that_wrote_nothing_has_no_output(ends, task):
    assert [event["outputs"] for event in ends.get(task, [])] == [[]] * len(ends.get(task, []))
    assert task == "skipped" or ends[task][0]["eventType"] == "FAIL"  # not all versions report skipped tasks


@pytest.mark.parametrize(
    ("dst", "account", "namespace", "name"),
    [
        ("s3://aws_default@lake/unleash/", None, "s3://lake", "unleash"),
        ("s3a://lake/a/b", None, "s3://lake", "a/b"),
        ("s3://lake", None, "s3://lake", "/"),
        ("gs://google_default@lake/unleash", None, "gs://lake", "unleash"),
        ("gcs://lake/unleash", None, "gs://lake", "unleash"),
        ("abfs://c@lake/unleash", "acme", "abfss://lake@acme.dfs.core.windows.net", "unleash"),
        ("abfss://lake/unleash", None, "abfss://lake", "unleash"),
        ("file:///data/unleash/", None, "file", "/data/unleash"),
        ("/data/unleash", None, "file", "/data/unleash"),
    ],
)
def test_a_folder_is_named_by_openlineages_convention(dst, account, namespace, name):
    assert dataset_name(dst, account) == (namespace, name)


def test_the_names_match_those_of_openlineages_own_client():
    naming = pytest.importorskip("openlineage.client.naming.dataset")
    for dst, own in (
        ("s3://c@lake/unleash", naming.S3("lake", "unleash")),
        ("gs://c@lake/unleash", naming.GCS("lake", "unleash")),
        ("abfs://c@lake/unleash", naming.ABFSS("lake", "acme", "unleash")),
        ("file:///data/unleash", naming.LocalFileSystem("/data/unleash")),
    ):
        assert dataset_name(dst, "acme") == (own.get_namespace(), own.get_name())


@pytest.mark.parametrize(("rule", "is_set"), [("window", True), ("partition_date", True), ("start_end", False)])
def test_the_window_is_the_nominal_time_unless_the_author_set_start_and_end(rule, is_set):
    pytest.importorskip("airflow.providers.openlineage.extractors")
    facets = lineage_of(Extraction("https://api.unleashlive.com", [STREET], Window(0, 1500, rule))).run_facets
    assert ("nominalTime" in facets) is is_set
    if is_set:
        facet = facets["nominalTime"]
        assert (facet.nominalStartTime, facet.nominalEndTime) == (
            "1970-01-01T00:00:00.000Z",
            "1970-01-01T00:00:01.500Z",
        )


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (["a", "b"], ["analytics/a", "analytics/b"]),
        (list("c" * 100), ["analytics/c"] * 100),
        (list("c" * 101), ["analytics"]),
        ([], ["analytics"]),  # all devices of the account
    ],
)
def test_each_device_is_an_input_unless_there_are_more_than_a_hundred(devices, names):
    pytest.importorskip("airflow.providers.openlineage.extractors")
    inputs = lineage_of(Extraction("https://api.unleashlive.com/v1", devices, Window(0, 1))).inputs
    assert [dataset.name for dataset in inputs] == names
    assert {dataset.namespace for dataset in inputs} == {"unleash://api.unleashlive.com"}


def test_before_the_first_request_and_without_openlineage_there_is_no_lineage_and_no_error():
    assert lineage_of(None) is None
    code = BLOCK.replace('name.partition(".")[0]', '(name if "openlineage" in name else "")').format(
        blocked=["airflow.providers.openlineage", "openlineage"]
    ) + (
        "from airflow_provider_unleash.lineage import Extraction, Written, lineage_of\n"
        "from airflow_provider_unleash.window import Window\n"
        "written = Written('s3://lake', '', {}, 1, 2)\n"
        "print(lineage_of(Extraction('https://a', ['b'], Window(0, 1), written)))\n"
    )
    assert run_code(code).splitlines()[-1] == "None"
