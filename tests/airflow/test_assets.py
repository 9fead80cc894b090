"""An asset is named after its folder alone, and its events say in a few hundred bytes what was written there."""

from __future__ import annotations

import json
import socket
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import Asset, AssetAlias, ObjectStoragePath

from airflow_provider_unleash.assets import add_to_events, asset_of
from airflow_provider_unleash.exceptions import InvalidArgumentError, WindowError
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator
from tests.support.dag_runs import DagRun, run_dag
from tests.support.not_retried import not_retried
from tests.support.sample_day import CROWD, DAY_END, DAY_FOLDER, DAY_START, HOUR_MS, SILENT, STREET, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

needs_partitions = pytest.mark.skipif(
    tuple(map(int, airflow_version.split(".")[:2])) < (3, 3), reason="tasks give events partition keys since 3.3"
)
HAS_SDK = find_spec("airflow.sdk") is not None
FILE = {"path": "s3://c@lake/a.csv", "url": "s3://lake/a.csv", "rows": 2, "bytes": 99}
SUMMARY = {
    **{"device_id": STREET, "start": "2026-01-12T00:00:00.000Z", "end": "2026-01-13T00:00:00.000Z"},
    **{"rows": 2, "pages": 1, "files": [FILE], "window_rule": "start_end", "seconds": 0.1},
    **{"bytes": 99, "manifest": {"path": "s3://c@lake/a.manifest", "url": "s3://lake/a.manifest"}},
}
EXTRA = {name: value for name, value in SUMMARY.items() if name not in ("window_rule", "seconds")}


@pytest.mark.parametrize(
    ("dst", "uri"),
    [
        ("s3://lake/unleash", "s3://lake/unleash"),
        ("s3://aws_default@lake/unleash", "s3://lake/unleash"),
        ("s3://other@lake/unleash/", "s3://lake/unleash"),
        ("S3://lake/unleash", "s3://lake/unleash"),
        ("s3a://aws_default@lake/unleash", "s3://lake/unleash"),
        ("s3://aws_default@lake", "s3://lake/"),
        ("s3://lake/a@b", "s3://lake/a@b"),
        ("s3://lake/Ünleash #1?x", "s3://lake/%C3%9Cnleash%20%231%3Fx"),
        ("gs://google_default@lake/unleash", "gs://lake/unleash"),
        ("gcs://lake/unleash", "gs://lake/unleash"),
        ("abfs://wasb_default@lake/unleash", "abfs://lake/unleash"),
        ("abfss://lake/unleash/", "abfs://lake/unleash"),
        ("file:///data/unleash/", "file:///data/unleash"),
        ("file:///data//unleash", "file:///data/unleash"),
        ("/data/unleash", "file:///data/unleash"),
    ],
)
def test_an_asset_is_named_after_the_folder_whatever_connection_and_spelling_lead_there(dst, uri):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Airflow warns if it changes a URI
        asset = asset_of(dst)
        # The same asset as if an author writes the URI by hand.
        assert asset == Asset(uri)
    assert asset.uri == getattr(asset, "name", uri) == uri


def test_a_path_object_and_its_string_are_the_same_asset(tmp_path: Path):
    assert asset_of(ObjectStoragePath(f"file://{tmp_path}/lake")) == asset_of(f"{tmp_path}/lake")


def test_different_folders_are_different_assets():
    places = ["s3://a/b", "s3://a/c", "s3://b/b", "gs://a/b", "abfs://a/b", "file:///a/b", "s3://a/b?c", "s3://a/b#c"]
    assert len({asset_of(place).uri for place in places}) == len(places)


def test_naming_an_asset_makes_no_requests(monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert asset_of("s3://no_such_connection@lake/unleash").uri == "s3://lake/unleash"


@pytest.mark.parametrize(
    "dst", ["s3://lake/{{ ds }}", "{{ var.value.lake }}", "lake", "s3://c@/x", "s3://lake/../x", ""]
)
def test_a_template_or_an_invalid_folder_has_no_asset(dst):
    with pytest.raises(InvalidArgumentError, match="dst="):
        asset_of(dst)


def extract(lake: Path, more: str, header: str = "") -> str:
    return f"""
    from airflow_provider_unleash.assets import asset_of

    lake = "file://{lake}"
    {header}
    extract = UnleashToObjectStorageOperator.partial(task_id="extract", dst=lake, {more})
    extract.expand(device_id={[CROWD, SILENT, STREET]!r})
    """


def test_the_event_of_each_mapped_task_matches_its_summary(airflow_home, serve, tmp_path):
    sim = serve()
    run = run_dag(airflow_home, extract(tmp_path, "outlets=[asset_of(lake)]"))
    assert run.state == "success"
    assert [uri for uri, _ in run.events] == [f"file://{tmp_path}"] * 3
    for index, device in enumerate((CROWD, SILENT, STREET)):
        extra, summary = run.events[index][1], run.xcoms["extract", index]
        [line] = Path(extra.pop("manifest")["path"].removeprefix("file://")).read_text().splitlines()
        assert (json.loads(line)["device_id"], json.loads(line)["rows"]) == (device, extra["rows"])
        assert extra.pop("bytes") == sum(file["bytes"] for file in summary["files"])
        assert extra == {name: summary[name] for name in ("device_id", "start", "end", "rows", "pages", "files")}
        assert (extra["device_id"], extra["rows"]) == (device, len(sim.rows(device, DAY_START, DAY_END - 1)))
        assert Path(extra["files"][0]["path"].removeprefix("file://")).exists()
        assert len(json.dumps(extra)) < 1000
    assert run.events[1][1]["rows"] == 0


@pytest.mark.parametrize("split_by_device", [True, False])
@pytest.mark.parametrize("count", [3, 60])
def test_the_event_of_an_account_has_totals_and_the_manifest_but_no_list_of_devices(
    airflow_home, serve, tmp_path, split_by_device, count
):
    serve(devices=tuple(f"W{number}" for number in range(count)), fixed_pages=1, page_size=2)
    run = run_dag(
        airflow_home,
        f"""
        from airflow_provider_unleash.assets import asset_of

        UnleashAccountToObjectStorageOperator(
            task_id="extract", dst="file://{tmp_path}", outlets=[asset_of("file://{tmp_path}")],
            split_by_device={split_by_device},
        )
        """,
    )
    assert run.state == "success"
    [(uri, extra)], summary = run.events, run.xcoms["extract"]
    assert uri == f"file://{tmp_path}"
    names = ("devices", "devices_with_rows", "start", "end", "rows", "pages", "bytes", "objects", "manifest")
    assert extra == {name: summary[name] for name in names}
    assert (extra["devices"], extra["rows"], extra["objects"]) == (count, 2 * count, count if split_by_device else 1)
    manifest = Path(extra["manifest"]["path"].removeprefix("file://"))
    assert len(manifest.read_text().splitlines()) == count
    assert len(json.dumps(extra)) < 600
    assert len(json.dumps(summary)) < 1000


@pytest.mark.parametrize(("on_empty", "state"), [("skip", "skipped"), ("fail", "failed")])
def test_a_skipped_or_failed_task_has_no_event(airflow_home, serve, tmp_path, on_empty, state):
    serve()
    run = run_dag(airflow_home, extract(tmp_path, f"outlets=[asset_of(lake)], on_empty={on_empty!r}"))
    assert run.states["extract", 1] == state
    assert [extra["device_id"] for _, extra in run.events] == [CROWD, STREET]


def test_an_outlet_that_is_not_the_asset_of_dst_gets_the_same_event(airflow_home, serve, tmp_path):
    serve()
    header = "from airflow.providers.common.compat.sdk import Asset"
    run = run_dag(airflow_home, extract(tmp_path, 'outlets=[asset_of(lake), Asset("rows")], on_empty="skip"', header))
    assert sorted(uri for uri, _ in run.events) == [f"file://{tmp_path}"] * 2 + ["rows"] * 2
    assert len({json.dumps(extra) for _, extra in run.events}) == 2


class Events(dict[str, Any]):
    """The ``outlet_events`` of a task; keyed by text, because assets are not hashable in every Airflow."""

    def __getitem__(self, outlet: object) -> Any:
        return self.setdefault(repr(outlet), SimpleNamespace(extra={}))


def test_an_event_has_the_partition_key_of_the_run_if_any():
    for key, expected in (("2026-01-12", {**EXTRA, "partition_key": "2026-01-12"}), (None, EXTRA)):
        context = {"outlet_events": Events(), "dag_run": SimpleNamespace(partition_key=key)}
        add_to_events(context, [asset_of("/lake")], SUMMARY)
        assert context["outlet_events"][asset_of("/lake")].extra == expected


def test_an_event_keeps_what_the_author_put_into_it():
    context = {"outlet_events": Events()}
    context["outlet_events"][asset_of("/lake")].extra["by"] = "me"
    add_to_events(context, [asset_of("/lake")], SUMMARY)
    assert context["outlet_events"][asset_of("/lake")].extra == {**EXTRA, "by": "me"}


@pytest.mark.skipif(not HAS_SDK, reason="Airflow 2 has no references to assets")
@pytest.mark.parametrize("by", [{"name": "rows"}, {"uri": "s3://lake/unleash"}])
def test_a_reference_to_an_asset_gets_the_event_too(by):
    reference = Asset.ref(**by)
    context = {"outlet_events": Events()}
    add_to_events(context, [reference], SUMMARY)
    assert context["outlet_events"][reference].extra == EXTRA


def test_aliases_and_other_outlets_get_no_event():
    context = {"outlet_events": Events()}
    add_to_events(context, ["a table", {"name": "b"}, AssetAlias("a")], SUMMARY)
    assert context["outlet_events"] == {}


# ---- partition keys ---------------------------------------------------------------------------------


def account(lake: Path | str = "/lake", **arguments: Any) -> UnleashAccountToObjectStorageOperator:
    arguments = {"dst": str(lake), "outlets": [asset_of(str(lake))], "partition_format": "%Y-%m-%d", **arguments}
    return UnleashAccountToObjectStorageOperator(task_id="extract", **arguments)


@needs_partitions
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("split_by_device", [True, False])
def test_the_partition_key_of_an_event_is_the_day_in_the_time_zone_of_the_timetable(
    airflow_home, serve, tmp_path, zone, split_by_device
):
    serve()
    run = run_dag(
        airflow_home,
        f"""
        from airflow_provider_unleash.assets import asset_of

        UnleashAccountToObjectStorageOperator(
            task_id="extract", dst="file://{tmp_path}", outlets=[asset_of("file://{tmp_path}")],
            partition_format="%Y-%m-%d", split_by_device={split_by_device},
        )
        """,
        arguments=f'schedule=CronDataIntervalTimetable("@daily", timezone="{zone}")',
    )
    assert run.state == "success"
    [(_, extra)] = run.events
    assert extra["partition_key"] == DAY_FOLDER
    assert extra["start"] == {"UTC": "2026-01-12T00:00:00.000Z", "Europe/Berlin": "2026-01-11T23:00:00.000Z"}[zone]
    assert keys_of(run) == [DAY_FOLDER]


def keys_of(run: DagRun) -> list[str | None]:
    """Return the partition keys of a run's events in Airflow's database."""
    sql = "SELECT partition_key FROM asset_event WHERE source_dag_id = ? AND source_run_id = ? ORDER BY partition_key"
    return [key for (key,) in run.query(sql)]


@needs_partitions
def test_each_planned_window_has_an_event_with_its_own_partition_key(airflow_home, serve, tmp_path):
    serve()
    run = run_dag(
        airflow_home,
        f"""
        from airflow_provider_unleash.assets import asset_of

        lake = "file://{tmp_path}"
        plan = UnleashPlanWindowsOperator(
            task_id="plan", missing_in=lake, every="day", start="2026-01-10", end="2026-01-13"
        )
        UnleashAccountToObjectStorageOperator.partial(
            task_id="extract", dst=lake, outlets=[asset_of(lake)], partition_format="%Y-%m-%d"
        ).expand_kwargs(plan.output)
        """,
    )
    assert run.state == "success"
    assert keys_of(run) == ["2026-01-10", "2026-01-11", "2026-01-12"]


@needs_partitions
def test_a_window_without_a_partition_of_its_own_fails_before_the_first_request(serve, tmp_path):
    sim = serve()
    with not_retried(WindowError, match="shares its partition key '2026-01-12'"):
        account(tmp_path, start=DAY_START, end=DAY_START + HOUR_MS).execute(make_context())
    assert sim.requests == []


@needs_partitions
def test_mapped_batches_with_a_partition_format_fail_before_the_first_request(serve, tmp_path):
    sim = serve()
    context = {**make_context(), "ti": SimpleNamespace(map_index=0)}
    with not_retried(InvalidArgumentError, match="report the window as complete"):
        account(tmp_path, device_ids=[STREET]).execute(context)
    assert sim.requests == []


@needs_partitions
@pytest.mark.parametrize("partition_format", ["%d", "day", 1])
def test_a_partition_format_that_does_not_name_a_date_fails_when_the_dag_is_parsed(partition_format):
    with not_retried(InvalidArgumentError, match="partition_format="):
        account(partition_format=partition_format)


def test_a_partition_format_needs_airflow_3_3(monkeypatch):
    monkeypatch.setattr("airflow.__version__", "3.2.2")
    with not_retried(InvalidArgumentError, match=r"needs Airflow 3\.3; this is 3\.2\.2"):
        account()
