"""The devices of an account become objects and a manifest."""

from __future__ import annotations

import doctest
import errno
import gc
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import account, journal
from airflow_provider_unleash.core.account import LandedAccount, land_account
from airflow_provider_unleash.core.extract import land
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.core.runner import Failures
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    EmptyReplacementError,
    EmptyResultError,
    InvalidArgumentError,
    NotFoundError,
    PartialExtractionError,
    PermanentPartialExtractionError,
    RateLimitError,
    ServerError,
    SnapshotChangedError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.window import Window
from tests.support.expected_rows import files_in
from tests.support.pages import duck
from tests.support.python_processes import import_root
from tests.support.waiting import wait_until

START, END = 1_768_176_000_000, 1_768_262_400_000
DAY = Window(START, END)
NAME = "start_date=2026-01-12/20260112T000000Z_20260113T000000Z"
LAYOUTS = pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])

pytestmark = pytest.mark.usefixtures("quick_retries", "no_threads_left")


def rows_of(device_id: str, number: int, **values: Any) -> list[dict[str, Any]]:
    row = {"timestamp": "2026-01-12T12:00:00.000Z", "device_id": device_id}
    return [{**row, "count": count, **values} for count in range(number)]


def serve(rows: dict[str, int] | list[str], **options: Any) -> Simulator:
    """Return a simulator of devices with so many rows, or three."""
    numbers = rows if isinstance(rows, dict) else dict.fromkeys(rows, 3)
    return Simulator(rows={name: rows_of(name, number) for name, number in numbers.items()}, **options)


def many(number: int) -> list[str]:
    return [f"W{index:03}" for index in range(number)]


class CountedPage(Page):
    """A page that counts those in memory."""

    alive = most = 0
    lock = threading.RLock()  # the garbage collector may run __del__ in a thread that holds it

    def __new__(cls, *args: Any, **kwargs: Any) -> CountedPage:
        with cls.lock:
            CountedPage.alive += 1
            CountedPage.most = max(cls.most, cls.alive)
        return super().__new__(cls)

    def __del__(self) -> None:
        with self.lock:
            CountedPage.alive -= 1


def open_client(sim: Simulator, page_concurrency: int = 4, **options: Any) -> UnleashClient:
    options = {"max_attempts": 2, "mask_stream_tokens": False, **options}
    return UnleashClient(sim.api_key, sim.base_url, page_concurrency=page_concurrency, **options)


def land_from(
    sim: Simulator, lake: Path, device_ids: list[str] | None = None, split: bool = True, **options: Any
) -> LandedAccount:
    concurrency = options.pop("page_concurrency", 4)
    window = options.pop("window", DAY)
    with open_client(sim, concurrency) as client:
        return land_account(client, device_ids, window, UPath(lake), split_by_device=split, **options)


def fail_from(sim: Simulator, lake: Path, *args: Any, **options: Any) -> Any:
    """Return the error that an extraction raises."""
    with pytest.raises(UnleashError) as caught:
        land_from(sim, lake, *args, **options)
    return caught.value


def objects(lake: Path) -> dict[str, bytes]:
    """Return the objects with their content, without manifests and staged files."""
    return {name: (lake / name).read_bytes() for name in files_in(lake) if not name.startswith("_")}


def manifest(lake: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of all manifests, by device."""
    paths = sorted(lake.glob("_manifest/*/*.manifest"), key=lambda path: path.stat().st_mtime_ns)
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {line["device_id"]: line for line in lines}


def devices_in(lake: Path) -> set[str]:
    return {name.partition("/")[0].removeprefix("device=") for name in objects(lake)}


def requested(sim: Simulator) -> list[str]:
    """Return the devices of which a page was requested."""
    return sorted({request.path.split("/")[3] for request in sim.requests if request.path.count("/") == 6})


# ---- one object per device -----------------------------------------------------------------------


def test_the_example_in_the_docstring_of_land_account_works(tmp_path: Path) -> None:
    with Simulator(api_keys=["ul_pat_..."], rows_per_day=240) as sim:
        source = "".join(example.source for example in doctest.DocTestParser().get_examples(land_account.__doc__ or ""))
        for old, new in (('"ul_pat_..."', f'"ul_pat_...", "{sim.base_url}"'), ("/tmp/lake", str(tmp_path))):
            assert old in source
            source = source.replace(old, new)
        exec(source, {})
    assert len(manifest(tmp_path)) == 6


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize(
    ("file_format", "compression"), [("jsonl", None), ("csv", "gzip"), ("json", None), ("parquet", None)]
)
def test_split_objects_are_those_that_single_extractions_write(
    tmp_path: Path, file_format: Any, compression: Any, endpoint: Any
) -> None:
    options = {"file_format": file_format, "compression": compression, "endpoint": endpoint}
    with Simulator(rows_per_day=240, page_size=50, nulls=True, new_key="zone") as sim:
        with open_client(sim) as client:
            single = [land(client, device_id, DAY, UPath(tmp_path / "single"), **options) for device_id in sim.devices]
        landed = land_from(sim, tmp_path / "account", **options)
    with_rows = {str(one.path.path)[len(f"{tmp_path}/single/") :] for one in single if one.counts.rows}
    expected = {name: data for name, data in objects(tmp_path / "single").items() if name in with_rows}
    assert objects(tmp_path / "account") == expected
    assert landed.counts.rows == sum(one.counts.rows for one in single) > 1000
    assert landed.size == sum(map(len, expected.values()))
    assert (len(landed.device_ids), landed.devices_with_rows, landed.objects, landed.resumed_devices) == (6, 5, 5, 0)
    assert (landed.is_skipped, landed.overlapping) == (False, ())


@LAYOUTS
def test_the_manifest_has_a_line_for_each_device_silent_ones_too(tmp_path: Path, split: bool) -> None:
    with serve({"A": 5, "B": 0, "C": 3}, page_size=2) as sim:
        landed = land_from(sim, tmp_path, split=split, dag_id="daily", run_id="run 1")
    lines = manifest(tmp_path)
    assert str(landed.manifest.path) == f"{tmp_path}/_manifest/{NAME}.manifest"
    assert {name: (line["rows"], line["pages"]) for name, line in lines.items()} == {
        "A": (5, 3),
        "B": (0, 1),
        "C": (3, 2),
    }
    prefix = {name: f"device={name}/" if split else "" for name in lines}
    for name in ("A", "C"):
        assert lines[name]["path"] == f"{prefix[name]}{NAME}.jsonl"
        assert lines[name]["bytes"] == (tmp_path / lines[name]["path"]).stat().st_size
    assert (lines["B"]["path"], lines["B"]["bytes"]) == (None, 0)
    for line in lines.values():
        assert (line["start"], line["end"]) == ("2026-01-12T00:00:00.000Z", "2026-01-13T00:00:00.000Z")
        assert (line["dag_id"], line["run_id"]) == ("daily", "run 1")
        assert duck(f"SELECT abs(epoch(now()) - epoch('{line['extracted_at']}'::TIMESTAMPTZ)) < 60") == [(True,)]


# ---- one object for all devices ------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "compression"), [("jsonl", "gzip"), ("csv", None), ("parquet", None)])
def test_one_object_has_the_rows_of_all_devices_ordered_by_device(
    tmp_path: Path, file_format: Any, compression: Any
) -> None:
    with Simulator(rows_per_day=240, page_size=50, latency=0.002) as sim:
        landed = land_from(sim, tmp_path, split=False, file_format=file_format, compression=compression)
        expected = [
            (row["device_id"], row["frame_number"], row["class_name"])
            for device_id in sorted(sim.devices)
            for row in sim.rows(device_id, START, END)
        ]
    [name] = objects(tmp_path)
    assert name == f"{NAME}.{file_format}{'.gz' if compression else ''}"
    assert duck(f"SELECT device_id, frame_number, class_name FROM '{tmp_path}/{name}'") == expected
    assert (landed.objects, landed.devices_with_rows, len(landed.device_ids)) == (1, 5, 6)
    assert (landed.counts.rows, landed.size) == (len(expected), (tmp_path / name).stat().st_size)


def test_readers_of_parquet_skip_the_row_groups_of_other_devices(tmp_path: Path) -> None:
    """300 000 rows: devices of one page, and one of 200 pages."""
    numbers = {**dict.fromkeys(many(200), 1000), "W100": 100_000}
    numbers["W101"] = 1001
    stamp = {"timestamp": "2026-01-12T12:00:00.000Z"}
    rows = {
        name: [{**stamp, "device_id": name, "frame_number": index} for index in range(number)]
        for name, number in numbers.items()
    }
    with Simulator(rows=rows, page_size=1000) as sim:
        land_from(sim, tmp_path, split=False, file_format="parquet", page_concurrency=8)
    path = tmp_path / f"{NAME}.parquet"
    groups = [pq.ParquetFile(path).metadata.row_group(index) for index in range(pq.ParquetFile(path).num_row_groups)]
    ends = [(group.column(2).statistics.min, group.column(2).statistics.max) for group in groups]
    assert groups[0].column(2).path_in_schema == "device_id"
    assert sum(ends, ()) == tuple(sorted(sum(ends, ())))
    assert len(groups) >= 3
    [file] = ds.dataset(path).get_fragments()
    for name, most in (("W000", 100_000), ("W050", 100_000), ("W199", 100_000), ("W100", 200_000), ("W101", 200_000)):
        read = [
            group.num_rows
            for part in file.split_by_row_group(ds.field("device_id") == name)
            for group in part.row_groups
        ]
        assert sum(read) <= most
        assert duck(f"SELECT count(*) FROM '{path}' WHERE device_id = '{name}'") == [(numbers[name],)]
    assert not file.split_by_row_group(ds.field("device_id") == "X")


# ---- one budget ----------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize(
    ("numbers", "device_ids"),
    [
        (dict.fromkeys(many(60), 1), None),
        ({"W": 60}, None),
        ({**dict.fromkeys(many(30), 1), "A": 30, "Z": 30}, None),
        ({**dict.fromkeys(many(30), 0), "A": 30}, [*many(30), "A"]),
    ],
    ids=["many devices", "many pages", "both", "given and silent"],
)
def test_all_devices_share_the_requests_in_flight(
    tmp_path: Path, split: bool, numbers: dict[str, int], device_ids: list[str] | None
) -> None:
    for latency in (0.02, 0.1, 0.5):  # on a busy machine, requests overlap only if responses take longer
        with serve(numbers, page_size=1, latency=latency) as sim:
            landed = land_from(sim, tmp_path / str(latency), device_ids, split, page_concurrency=6)
            assert landed.counts.rows == sum(numbers.values())
            assert sim.max_in_flight <= 6
        if sim.max_in_flight >= 5:
            return
    pytest.fail(f"Only {sim.max_in_flight} requests were in flight")


@LAYOUTS
def test_one_request_at_a_time_is_possible(tmp_path: Path, split: bool) -> None:
    with serve({"A": 5, "B": 1, "C": 0, "D": 4}, page_size=1) as sim:
        land_from(sim, tmp_path, split=split, page_concurrency=1)
        assert sim.max_in_flight == 1
    assert {name: line["rows"] for name, line in manifest(tmp_path).items()} == {"A": 5, "B": 1, "C": 0, "D": 4}


@LAYOUTS
def test_one_refusal_pauses_the_requests_of_all_devices(
    tmp_path: Path, split: bool, pauses: Callable[[], list[float]]
) -> None:
    with serve(many(60), latency=0.01) as sim:
        sim.add_fault(Fault("429", path="/W020/", retry_after=1))
        land_from(sim, tmp_path, split=split)
        assert len(sim.requests) == 62
        refused = next(request.number for request in sim.requests if request.status == 429)
    assert refused < 40
    [pause] = pauses()
    assert pause >= 1


def test_objects_are_published_while_requests_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    dst = UPath("memory://test-account/lake")
    put_file, one_at_a_time = type(dst.fs).put_file, threading.Lock()
    in_flight: list[int] = []  # at each put

    def wait_for(condition: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + 30
        while not condition() and time.monotonic() < ends_at:
            time.sleep(0.002)  # let the other threads go on

    with serve(many(24)) as sim, open_client(sim, 2) as client:
        respond = sim._respond_well

        def respond_after_a_put(request: Any) -> Any:
            """Hold the request of W002 until the first put, that of W003 until the second, and so on."""
            device = request.path.split("/")[3]
            if device in many(12):
                wait_for(lambda: len(in_flight) > int(device[1:]) - 2 or not set(in_flight) <= {2})
            return respond(request)

        def put_when_two_are_in_flight(*args: Any) -> None:
            with one_at_a_time:
                if len(in_flight) < 8 and set(in_flight) <= {2}:
                    wait_for(lambda: sim._in_flight == 2)
                in_flight.append(sim._in_flight)
            put_file(*args)

        monkeypatch.setattr(sim, "_respond_well", respond_after_a_put)
        monkeypatch.setattr(type(dst.fs), "put_file", put_when_two_are_in_flight)
        try:
            land_account(client, None, DAY, dst)
        finally:
            dst.fs.store.clear()
    assert in_flight[:8] == [2] * 8


@LAYOUTS
@pytest.mark.parametrize("fails", [False, True], ids=["good", "failing"])
def test_pages_in_memory_are_bounded_by_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool, fails: bool
) -> None:
    """Also those of devices that fail, which an error's traceback would keep."""
    CountedPage.alive = CountedPage.most = 0
    monkeypatch.setattr("airflow_provider_unleash.core.protocol.Page", CountedPage)
    values = {"count": "many"} if fails else {}
    rows = {name: rows_of(name, 3, **values) for name in many(150)}
    rows["W149"] = rows_of("W149", 100)
    error = None
    with Simulator(rows=rows, page_size=2) as sim:
        try:
            land_from(sim, tmp_path, split=split, file_format="parquet", page_concurrency=2)
        except PermanentPartialExtractionError as caught:
            error = caught
    assert (error is not None) == fails
    gc.collect()
    assert CountedPage.alive <= 10
    assert 4 < CountedPage.most <= 40


# ---- failures of single devices ------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize(
    ("fault", "kind", "is_transient"),
    [
        (Fault("404", "/BAD/", times=None), NotFoundError, False),
        (Fault("500", "/BAD/", page=2, times=None), ServerError, True),
        (Fault("garbage", "/BAD/", page=3, times=None), TransportError, True),
        (Fault("html", "/BAD/", times=None), TransportError, True),
        (Fault("reset", "/BAD/", times=None), TransportError, True),
        (Fault("half_body", "/BAD/", times=None), TransportError, True),
        (Fault("wrong_shape", "/BAD/", times=None), UnexpectedResponseError, False),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_the_error_of_one_device_does_not_stop_the_others(
    tmp_path: Path, split: bool, fault: Fault, kind: type[Exception], is_transient: bool
) -> None:
    good = many(20)
    with serve({**dict.fromkeys(good, 3), "BAD": 3, "SILENT": 0}, page_size=1, faults=[fault]) as sim:
        error = fail_from(sim, tmp_path, split=split)
        assert {*good, "SILENT", "BAD"} == set(requested(sim))
        assert type(error) is (PartialExtractionError if is_transient else PermanentPartialExtractionError)
        assert {name: type(found) for name, found in error.errors.items()} == {"BAD": kind}
        assert str(error).startswith("1 of 22 devices failed. ")
        assert f"\nBAD: {kind.__name__}: " in str(error)
        assert manifest(tmp_path) == {}
        assert set(objects(tmp_path)) == ({f"device={name}/{NAME}.jsonl" for name in good} if split else set())
        sim.clear_faults()
        land_from(sim, tmp_path, split=split)
    assert {name: line["rows"] for name, line in manifest(tmp_path).items()} == {
        **dict.fromkeys(good, 3), "BAD": 3, "SILENT": 0,
    }  # fmt: skip


@LAYOUTS
def test_a_value_that_does_not_fit_its_column_fails_its_device_only(tmp_path: Path, split: bool) -> None:
    rows = {name: rows_of(name, 3) for name in ("A", "B", "C")}
    rows["B"][2]["count"] = "many"
    with Simulator(rows=rows, page_size=2) as sim:
        error = fail_from(sim, tmp_path, split=split, file_format="parquet")
    assert type(error) is PermanentPartialExtractionError
    [found] = error.errors.values()
    assert (found.page, found.row, found.field, found.value) == (2, 0, "count", "many")
    assert devices_in(tmp_path) == ({"A", "C"} if split else set())


@LAYOUTS
def test_pages_that_always_change_fail_their_device_only(tmp_path: Path, split: bool) -> None:
    with serve({"A": 1, "B": 60, "C": 2}, page_size=2, growing=1) as sim:
        error = fail_from(sim, tmp_path, split=split)
    assert type(error) is PartialExtractionError
    assert {name: type(found) for name, found in error.errors.items()} == {"B": SnapshotChangedError}


@LAYOUTS
@pytest.mark.parametrize("unknown_device", ["empty", "404"])
def test_a_device_that_the_account_does_not_have_fails_alone(tmp_path: Path, split: bool, unknown_device: str) -> None:
    with serve({"A": 3, "B": 0, "C": 0}, unknown_device=unknown_device) as sim:
        error = fail_from(sim, tmp_path, ["A", "B", "C", "NONE"], split)
        assert sum(request.path.endswith("/devices") for request in sim.requests) == 1
    assert type(error) is PermanentPartialExtractionError
    assert {name: type(found) for name, found in error.errors.items()} == {"NONE": NotFoundError}


@LAYOUTS
def test_device_ids_that_cannot_be_names_fail_alone(tmp_path: Path, split: bool) -> None:
    odd = ["", "..", "a/b", "x" * 300, " ", "\n"]
    with serve(["A", "\u00e9 %2f=?#", *odd]) as sim:
        error = fail_from(sim, tmp_path / "lake", split=split)
    assert type(error) is PermanentPartialExtractionError
    assert set(error.errors) == set(odd)
    assert {type(found) for found in error.errors.values()} == {InvalidArgumentError}
    assert devices_in(tmp_path / "lake") == ({"A", "%C3%A9%20%252f%3D%3F%23"} if split else set())
    assert {path.name for path in tmp_path.iterdir()} <= {"lake"}


def test_a_store_that_refuses_the_name_of_one_device_fails_that_device(tmp_path: Path) -> None:
    (tmp_path / "device=B").write_text("a file")
    with serve(["A", "B", "C"]) as sim:
        error = fail_from(sim, tmp_path)
    assert {name: type(found) for name, found in error.errors.items()} == {"B": InvalidArgumentError}
    assert error.errors["B"].path == str(next(tmp_path.glob("device=A/*/*"))).replace("device=A", "device=B")
    assert type(error) is PermanentPartialExtractionError
    assert devices_in(tmp_path) == {"A", "B", "C"}


@LAYOUTS
def test_an_error_names_20_devices_and_counts_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: bool
) -> None:
    with serve(many(30), faults=[Fault("404", "/W0", times=None)]) as sim:
        error = fail_from(sim, tmp_path, split=split)
    assert str(error).startswith("30 of 30 devices failed. ")
    assert [line.partition(":")[0] for line in str(error).splitlines()[1:]] == [*many(20), "and 10 more"]
    assert len(error.errors) == 30
    assert caplog.text.count(" failed: ") == 20


def test_one_transient_error_makes_the_failure_transient_and_has_its_retry_after(tmp_path: Path) -> None:
    faults = [Fault("404", "/A/", times=None), Fault("503", "/B/", times=None, retry_after=1)]
    with (
        serve(["A", "B", "C"], faults=faults) as sim,
        open_client(sim, max_attempts=1) as client,
        pytest.raises(PartialExtractionError) as caught,
    ):
        land_account(client, None, DAY, UPath(tmp_path))
    assert caught.value.retry_after == 1
    assert set(caught.value.errors) == {"A", "B"}


# ---- failures of all devices ---------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("device_ids", [None, many(300)], ids=["listed", "given"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("401", times=None, after=10), AuthenticationError),
        (Fault("403", times=None, after=10), AuthenticationError),
        (Fault("429", times=None, after=10, retry_after=3600), RateLimitError),
        (Fault("503", times=None, after=10, retry_after=3600), ServerError),
        (Fault("429", times=None, after=10), RateLimitError),
    ],
    ids=["401", "403", "long 429", "long 503", "429"],
)
def test_an_error_that_concerns_all_devices_ends_the_extraction_at_once(
    tmp_path: Path, split: bool, device_ids: Any, fault: Fault, kind: type[Exception]
) -> None:
    with serve(many(300), faults=[fault]) as sim:
        assert type(fail_from(sim, tmp_path, device_ids, split)) is kind
        assert len(sim.requests) <= 10 + 6 * 4
    assert manifest(tmp_path) == {}


@LAYOUTS
def test_a_wrong_key_costs_one_request(tmp_path: Path, split: bool) -> None:
    with serve(many(300)) as sim, UnleashClient("wrong-key", sim.base_url) as client:
        with pytest.raises(AuthenticationError):
            land_account(client, None, DAY, UPath(tmp_path), split_by_device=split)
        assert len(sim.requests) == 1
    assert files_in(tmp_path) == []


@LAYOUTS
def test_an_api_that_cannot_be_reached_is_not_asked_for_every_device(tmp_path: Path, split: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # does not listen, and nothing else can take the port
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with UnleashClient("any-key", url, max_attempts=2) as client, pytest.raises(TransportError) as caught:
            land_account(client, many(300), DAY, UPath(tmp_path), split_by_device=split)
    assert client.traffic.requests <= 2 * 6 * 4
    assert caught.value.reason == "connection"


@LAYOUTS
def test_an_api_that_is_down_is_not_asked_for_every_device(tmp_path: Path, split: bool) -> None:
    with serve(many(300), faults=[Fault("502", times=None, after=11)]) as sim:
        error = fail_from(sim, tmp_path, split=split)
        assert len(sim.requests) < 2 * 100
    assert type(error) is PartialExtractionError
    assert "50 devices failed one after the other, so the other" in str(error)
    assert error.untried == 300 - 10 - len(error.errors) > 200


@LAYOUTS
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_store_that_cannot_be_written_ends_the_extraction_at_once(
    monkeypatch: pytest.MonkeyPatch, split: bool, code: int
) -> None:
    dst = UPath("memory://test-account/lake")
    monkeypatch.setattr(type(dst.fs), "put_file", lambda *args: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with serve(many(60)) as sim, open_client(sim) as client:
        with pytest.raises(OSError, match=os.strerror(code)):
            land_account(client, None, DAY, dst, split_by_device=split)
        assert len(sim.requests) <= (1 + 6 * 4 if split else 1 + 2 * 60)
    assert not dst.fs.find(dst.path)


def test_staging_fails_no_object_of_all_devices_that_fits_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store has room for the object and its manifest, but not for pages that this or another task has staged."""
    monkeypatch.setattr("airflow_provider_unleash.core.account.CHECKPOINT_PAGES", 3)
    dst = UPath("memory://test-account/lake")
    put_file, stored = type(dst.fs).put_file, dst.fs.store

    def put(fs: Any, source: Any, target: str) -> None:
        if "_staging" not in target and any("_staging" in name for name in stored):
            raise OSError(errno.ENOSPC, "No space left on device")
        put_file(fs, source, target)

    monkeypatch.setattr(type(dst.fs), "put_file", put)
    with Simulator(fixed_pages=12, page_size=10) as sim, open_client(sim) as client:
        try:
            sim.add_fault(Fault("500", path=f"/{sim.devices[1]}/", page=8, times=None))
            with pytest.raises(UnleashError):
                land_account(client, sim.devices[:2], Window(START, END - 1), dst, split_by_device=False)
            assert len(dst.fs.find(dst.path)) > 4  # files of both devices
            sim.clear_faults()
            landed = land_account(client, sim.devices[:2], DAY, dst, split_by_device=False)
            assert landed.counts.rows == 240
            assert sorted(dst.fs.find(dst.path)) == [landed.manifest.path, f"{dst.path}/{NAME}.jsonl"]
        finally:
            stored.clear()


def test_a_value_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    rows = {"W1": [{"count": number, "deep": deep} for number in range(2)]}
    with Simulator(rows=rows, page_size=1) as sim:
        error = fail_from(sim, tmp_path, split=False).errors["W1"]
    assert isinstance(error, UnexpectedResponseError)
    assert "Page 1 has a value that is nested too deeply" in str(error)


@LAYOUTS
@pytest.mark.parametrize("place", ["file", "file/lake"])
def test_a_file_in_the_place_of_the_tree_is_an_error_before_any_request(
    tmp_path: Path, split: bool, place: str
) -> None:
    (tmp_path / "file").write_text("a file")
    with serve(["A"]) as sim:
        error = fail_from(sim, tmp_path / place, split=split)
        assert sim.requests == []
    assert type(error) is InvalidArgumentError
    assert str(error).endswith(f"{tmp_path}/file is not a folder")
    assert files_in(tmp_path) == ["file"]


# ---- retries -------------------------------------------------------------------------------------


def test_a_retry_extracts_only_devices_that_have_not_landed(tmp_path: Path) -> None:
    with serve(
        {**dict.fromkeys(many(40), 3), "SILENT": 0}, faults=[Fault("404", "/W007/"), Fault("404", "/W023/")]
    ) as sim:
        assert set(fail_from(sim, tmp_path, run_id="first").errors) == {"W007", "W023"}
        sim.clear_requests()
        landed = land_from(sim, tmp_path, run_id="second")
        assert sorted(request.path.split("/")[3] for request in sim.requests) == ["W007", "W023", "devices"]
    assert landed.resumed_devices == 39
    assert (landed.objects, landed.counts.rows, landed.devices_with_rows) == (40, 120, 40)
    assert len(manifest(tmp_path)) == 41
    assert not (tmp_path / "_staging").exists()


def test_the_retry_of_an_empty_result_asks_for_all_devices_again(tmp_path: Path) -> None:
    """The data may be late."""
    with serve({"A": 0, "B": 0}) as sim:
        for _ in range(2):
            with pytest.raises(EmptyResultError):
                land_from(sim, tmp_path, on_empty="fail")
            assert requested(sim) == ["A", "B"]
            sim.clear_requests()
        sim._account = serve({"A": 3, "B": 0})._account
        assert land_from(sim, tmp_path, on_empty="fail").counts.rows == 3


def test_a_cleared_success_extracts_all_devices_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the journal of a failed try could not be removed."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(UPath(f"file://{tmp_path}").fs), "rm", refuse)
    with serve(many(5), faults=[Fault("404", "/W003/")]) as sim:
        fail_from(sim, tmp_path)
        land_from(sim, tmp_path)
        before = manifest(tmp_path)
        for _ in range(2):
            sim.clear_requests()
            assert land_from(sim, tmp_path).resumed_devices == 0
            assert requested(sim) == many(5)
    assert all(line["extracted_at"] > before[name]["extracted_at"] for name, line in manifest(tmp_path).items())


@pytest.mark.parametrize("resume_within", [None, timedelta(0), timedelta(microseconds=1)])
def test_without_resuming_a_retry_extracts_all_devices(tmp_path: Path, resume_within: timedelta | None) -> None:
    with serve(many(5), faults=[Fault("404", "/W003/")]) as sim:
        fail_from(sim, tmp_path, resume_within=resume_within)
        sim.clear_requests()
        assert land_from(sim, tmp_path, resume_within=resume_within).resumed_devices == 0
        assert requested(sim) == many(5)


@pytest.mark.parametrize(
    "other",
    [{"endpoint": "tableau"}, {"file_format": "csv"}, {"window": Window(START, END - 1)}, {"device_ids": many(5)}],
)
def test_what_another_kind_of_extraction_has_landed_is_extracted(tmp_path: Path, other: dict[str, Any]) -> None:
    with serve(many(5), faults=[Fault("404", "/W003/")]) as sim:
        fail_from(sim, tmp_path)
        assert land_from(sim, tmp_path, **other).resumed_devices == 0


@LAYOUTS
def test_a_retry_of_a_big_device_goes_on_at_its_page(tmp_path: Path, split: bool) -> None:
    with serve({"A": 1, "BIG": 250, "C": 1}, page_size=1, faults=[Fault("404", "/BIG/", page=230)]) as sim:
        fail_from(sim, tmp_path / "lake", split=split)
        sim.clear_requests()
        land_from(sim, tmp_path / "lake", split=split)
        pages = [int(request.path.rpartition("/")[2]) for request in sim.requests if "/BIG/" in request.path]
        land_from(sim, tmp_path / "whole", split=split)
    assert pages[:2] == [1, 250]
    assert sorted(pages[2:]) == sorted([*range(202, 250), 1, 250])
    assert objects(tmp_path / "lake") == objects(tmp_path / "whole")
    assert not (tmp_path / "lake/_staging").exists()


KILLED = """
import sys
from upath import UPath
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import account, journal
from airflow_provider_unleash.window import Window

url, lake, split, start, end = sys.argv[1:]
journal.SAVE_SECONDS = 0.05
with UnleashClient("simulator-key", url, page_concurrency=2, user_agent="killed") as client:
    print("start", flush=True)
    account.land_account(
        client, None, Window(int(start), int(end)), UPath(lake), split_by_device=split == "True", run_id="killed"
    )
"""


def start_extraction(sim: Simulator, lake: Path, split: bool) -> subprocess.Popen[str]:
    """Start an extraction in another process, and return when it begins."""
    command = [sys.executable, "-c", KILLED, sim.base_url, lake, split, START, END]
    environment = import_root(dict(os.environ))
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "start\n"
    return process


def test_after_kill_9_another_worker_extracts_only_what_has_not_landed(tmp_path: Path) -> None:
    with serve(many(200), latency=0.01) as sim:
        with start_extraction(sim, tmp_path / "lake", True) as process:
            wait_until(lambda: any(tmp_path.glob("lake/_staging/*/00002.landed")), process)
            process.kill()
        landed = land_from(sim, tmp_path / "lake")
        assert landed.resumed_devices >= 3
        later = [request.path for request in sim.requests if not str(request.user_agent).endswith(" killed")]
        assert len(later) == len(set(later)) == 1 + 200 - landed.resumed_devices
        land_from(sim, tmp_path / "whole")
    assert objects(tmp_path / "lake") == objects(tmp_path / "whole")
    assert set(manifest(tmp_path / "lake")) == set(many(200))
    assert not (tmp_path / "lake/_staging").exists()


def test_a_journal_has_what_was_being_published_when_an_error_ended_the_extraction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dst = UPath("memory://test-journal/lake")
    put_file = type(dst.fs).put_file

    with serve(many(5), faults=[Fault("401", "/W004/")]) as sim, open_client(sim) as client:

        def put_after_the_error(*args: Any) -> None:
            while "W004" not in requested(sim):
                time.sleep(0.01)
            time.sleep(0.5)
            put_file(*args)

        monkeypatch.setattr(type(dst.fs), "put_file", put_after_the_error)
        try:
            with pytest.raises(AuthenticationError):
                land_account(client, None, DAY, dst)
            landed = [name for name in dst.fs.find(dst.path) if name.endswith(".jsonl")]
            assert landed
            assert land_account(client, None, DAY, dst).resumed_devices == len(landed)
        finally:
            dst.fs.store.clear()


def test_a_journal_is_saved_while_one_device_takes_long(tmp_path: Path) -> None:
    slow = Fault("slow", path="/W019/", seconds=50)

    def saved() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("lake/_staging/*/*.landed"))

    with serve(many(20), faults=[slow]) as sim:
        with start_extraction(sim, tmp_path / "lake", True) as process:
            ends_at = time.monotonic() + 45
            while not all(device in saved() for device in many(19)) and time.monotonic() < ends_at:
                time.sleep(0.05)
            process.kill()
        sim.clear_faults()
        assert land_from(sim, tmp_path / "lake").resumed_devices == 19


@LAYOUTS
def test_kill_9_at_any_moment_leaves_whole_objects_and_the_old_or_the_new_manifest(tmp_path: Path, split: bool) -> None:
    names = many(40)
    rng = random.Random(split)
    outcomes = set()
    with serve(dict.fromkeys(names, 3)) as sim:
        land_from(sim, tmp_path / "lake", split=split, run_id="old")
        old = objects(tmp_path / "lake")
    with serve(dict.fromkeys(names, 5), latency=0.005) as sim:
        land_from(sim, tmp_path / "new", split=split)
        new = objects(tmp_path / "new")
        # The last one is not killed: it sends 41 requests.
        for requests in (rng.randint(0, 10), rng.randint(11, 41), 99):
            until = sim._number + requests
            with start_extraction(sim, tmp_path / "lake", split) as process:
                while sim._number < until and process.poll() is None:
                    time.sleep(0.001)  # let it send requests
                process.kill()
            found = objects(tmp_path / "lake")
            visible = {name: data for name, data in found.items() if not name.rpartition("/")[2].startswith(".")}
            assert set(visible) == set(old)
            assert all(data in (old[name], new[name]) for name, data in visible.items())
            lines = manifest(tmp_path / "lake")
            runs = {(line["run_id"], line["rows"]) for line in lines.values()}
            assert set(lines) == set(names)
            assert runs in ({("old", 3)}, {("killed", 5)})
            if runs == {("killed", 5)}:
                assert visible == new
            outcomes |= runs
    assert outcomes == {("old", 3), ("killed", 5)}


# ---- no rows, and rows that would be lost --------------------------------------------------------


@LAYOUTS
def test_devices_that_are_no_longer_listed_stay_in_the_manifest(tmp_path: Path, split: bool) -> None:
    with serve({"A": 3, "B": 0, "C": 3} if not split else ["A", "B", "C"]) as sim:
        land_from(sim, tmp_path, split=split, run_id="old")
    with serve(["A", "C"]) as sim:
        land_from(sim, tmp_path, split=split, run_id="new")
    assert {name: line["run_id"] for name, line in manifest(tmp_path).items()} == {"A": "new", "B": "old", "C": "new"}
    if split:
        assert devices_in(tmp_path) == {"A", "B", "C"}


@pytest.mark.parametrize(
    ("numbers", "device_ids", "lost"),
    [
        ({"A": 3}, None, "of B,"),
        ({"A": 3, "B": 3}, ["A"], "of B,"),
        ({"A": 3, "B": 0}, None, "of B,"),
        ({"A": 0, "B": 0}, None, "of A, B,"),
        ({"A": 0, "B": 0}, ["A"], "of A, B,"),
    ],
    ids=["no longer listed", "not in device_ids", "empty now", "all empty", "one of them"],
)
def test_one_object_loses_the_rows_of_a_device_only_with_permission(
    tmp_path: Path, numbers: dict[str, int], device_ids: list[str] | None, lost: str
) -> None:
    with serve(["A", "B"]) as sim:
        land_from(sim, tmp_path, split=False)
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    with serve(numbers) as sim:
        error = fail_from(sim, tmp_path, device_ids, split=False)
        assert type(error) is EmptyReplacementError
        assert f"has rows {lost}" in str(error)
        assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before
        landed = land_from(sim, tmp_path, device_ids, split=False, replace_with_empty=True)
    content = (tmp_path / f"{NAME}.jsonl").read_text()
    assert [json.loads(line)["device_id"] for line in io.StringIO(content)] == ["A"] * numbers["A"]
    lines = manifest(tmp_path)
    assert {name: line["rows"] for name, line in lines.items()} == {"A": numbers["A"], "B": 0}
    assert lines["B"]["path"] is None
    assert landed.objects == 1


def test_rows_that_another_task_publishes_meanwhile_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = account._OneObject.check

    def check_after_another_task(self: Any, *args: Any) -> bool:
        monkeypatch.setattr(account._OneObject, "check", check)
        land_from(sim, tmp_path, ["B"], split=False)
        return check(self, *args)

    monkeypatch.setattr(account._OneObject, "check", check_after_another_task)
    with serve(["A", "B"]) as sim, pytest.raises(EmptyReplacementError, match="has rows of B,"):
        land_from(sim, tmp_path, ["A"], split=False)
    assert '"A"' not in (tmp_path / f"{NAME}.jsonl").read_text()


@pytest.mark.parametrize("on_empty", ["succeed", "skip"])
def test_a_split_object_loses_its_rows_only_with_permission(tmp_path: Path, on_empty: Any) -> None:
    with serve(["A", "B"]) as sim:
        land_from(sim, tmp_path)
    with serve({"A": 0, "B": 5}) as sim:
        error = fail_from(sim, tmp_path, on_empty=on_empty)
        assert type(error) is PermanentPartialExtractionError
        assert {name: type(found) for name, found in error.errors.items()} == {"A": EmptyReplacementError}
        assert {name: line["rows"] for name, line in manifest(tmp_path).items()} == {"A": 3, "B": 3}
        land_from(sim, tmp_path, on_empty=on_empty, replace_with_empty=True)
    assert [data.count(b"\n") for data in objects(tmp_path).values()] == [0, 5]
    assert {name: line["rows"] for name, line in manifest(tmp_path).items()} == {"A": 0, "B": 5}


@LAYOUTS
@pytest.mark.parametrize("numbers", [{"A": 0, "B": 0}, {}], ids=["silent", "no devices"])
def test_an_account_without_rows_succeeds_is_skipped_or_fails(
    tmp_path: Path, split: bool, numbers: dict[str, int]
) -> None:
    with serve(numbers) as sim:
        with pytest.raises(EmptyResultError):
            land_from(sim, tmp_path, split=split, on_empty="fail")
        assert manifest(tmp_path) == {}
        for on_empty in ("succeed", "skip"):
            landed = land_from(sim, tmp_path, split=split, on_empty=on_empty)
            assert landed.is_skipped == (on_empty == "skip")
            assert (landed.objects, landed.size, landed.devices_with_rows) == (0, 0, 0)
            assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / f"_manifest/{NAME}.manifest"]
            assert {name: (line["rows"], line["path"]) for name, line in manifest(tmp_path).items()} == dict.fromkeys(
                numbers, (0, None)
            )


@LAYOUTS
@pytest.mark.parametrize("on_empty", ["skip", "fail"])
def test_one_device_with_rows_is_enough(tmp_path: Path, split: bool, on_empty: Any) -> None:
    with serve({"A": 0, "B": 1}) as sim:
        assert not land_from(sim, tmp_path, split=split, on_empty=on_empty).is_skipped
    assert set(manifest(tmp_path)) == {"A", "B"}


# ---- the tree ------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Simulator, Path, Window], Any]] = {
    "jsonl of one device": lambda sim, lake, window: land(open_client(sim), "A", window, UPath(lake)),
    "split jsonl": lambda sim, lake, window: land_from(sim, lake, window=window),
    "split parquet": lambda sim, lake, window: land_from(sim, lake, window=window, file_format="parquet"),
    "whole jsonl": lambda sim, lake, window: land_from(sim, lake, window=window, split=False),
    "whole csv": lambda sim, lake, window: land_from(sim, lake, window=window, split=False, file_format="csv"),
}


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_a_tree_of_another_layout_or_format_is_refused_before_the_first_request(
    tmp_path: Path, old: str, new: str
) -> None:
    with serve(["A", "B"]) as sim:
        KINDS[old](sim, tmp_path, DAY)
        before = files_in(tmp_path)
        for window in (DAY, Window(END, 2 * END - START), Window(START + 90 * 86_400_000, END + 90 * 86_400_000)):
            sim.clear_requests()
            if old == new or {old, new} == {"jsonl of one device", "split jsonl"}:
                KINDS[new](sim, tmp_path, window)
                continue
            with pytest.raises(InvalidArgumentError, match="A tree has one layout and format"):
                KINDS[new](sim, tmp_path, window)
            assert sim.requests == []
            assert files_in(tmp_path) == before


@pytest.mark.parametrize("arguments", [{"file_format": "xml"}, {"compression": "gzip", "file_format": "parquet"}])
def test_an_invalid_format_is_refused_before_the_first_request(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with serve(["A"]) as sim:
        assert type(fail_from(sim, tmp_path, **arguments)) is InvalidArgumentError
        assert sim.requests == []


@LAYOUTS
def test_windows_of_another_grid_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, split: bool) -> None:
    with serve(["A"]) as sim:
        assert land_from(sim, tmp_path, split=split, window=Window(START, START + 3_600_000)).overlapping == ()
        assert land_from(sim, tmp_path, split=split).overlapping == (NAME.replace("0113T00", "0112T01"),)
    assert "their rows are there twice" in caplog.text


@LAYOUTS
def test_two_tasks_on_one_window_both_succeed(tmp_path: Path, split: bool) -> None:
    with serve({**dict.fromkeys(many(20), 3), "BIG": 210}, page_size=1) as sim, ThreadPoolExecutor(2) as tasks:
        for landed in tasks.map(lambda _: land_from(sim, tmp_path / "lake", split=split), range(2)):
            assert landed.counts.rows == 270
        land_from(sim, tmp_path / "whole", split=split)
    assert objects(tmp_path / "lake") == objects(tmp_path / "whole")
    assert {name: line["rows"] for name, line in manifest(tmp_path / "lake").items()} == {
        **dict.fromkeys(many(20), 3), "BIG": 210,
    }  # fmt: skip
    assert not (tmp_path / "lake/_staging").exists()


# ---- ended from outside --------------------------------------------------------------------------

SLOW = {**dict.fromkeys(many(60), 3), "BIG": 500}


@LAYOUTS
@pytest.mark.parametrize("after", [0, 20, 100])
def test_cancelling_the_client_ends_the_extraction_at_once(tmp_path: Path, split: bool, after: int) -> None:
    fault = Fault("slow", after=after, times=None, seconds=30)
    with (
        serve(SLOW, page_size=1, latency=0.01, faults=[fault]) as sim,
        open_client(sim) as client,
        ThreadPoolExecutor(1) as task,
    ):
        extraction = task.submit(land_account, client, None, DAY, UPath(tmp_path), split_by_device=split)
        while sim._number <= after:
            assert not extraction.done()
            time.sleep(0.01)
        cancelled_at = time.monotonic()
        client.cancel()
        with pytest.raises(TransportError) as caught:
            extraction.result(60)
        assert time.monotonic() - cancelled_at < 10
    assert caught.value.reason == "cancelled"
    assert manifest(tmp_path) == {}


@LAYOUTS
@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8])
def test_an_exception_in_the_main_thread_ends_the_extraction_at_once(
    tmp_path: Path, split: bool, seconds: float
) -> None:
    """As Airflow's execution timeout does."""

    class TaskTimeoutError(BaseException):
        pass

    def end(*args: object) -> None:
        raise TaskTimeoutError

    def land_with_a_time_limit(sim: Simulator) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        land_from(sim, tmp_path, split=split)

    before = signal.signal(signal.SIGALRM, end)
    try:
        with serve(SLOW, page_size=1, latency=0.02, faults=[Fault("slow", "/W04", times=None, seconds=30)]) as sim:
            began = time.monotonic()
            with pytest.raises((TaskTimeoutError, RuntimeError)) as caught:
                land_with_a_time_limit(sim)
            # If it comes while the interpreter handles a lock, that raises another error.
            assert isinstance(caught.value, TaskTimeoutError) or isinstance(caught.value.__context__, TaskTimeoutError)
            assert time.monotonic() - began < seconds + 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert manifest(tmp_path) == {}
    assert not any(".tmp" in name for name in files_in(tmp_path))


def test_a_journal_is_saved_when_an_exception_ends_the_extraction(tmp_path: Path) -> None:
    with serve(many(40), faults=[Fault("401", "/W030/")]) as sim:
        assert type(fail_from(sim, tmp_path)) is AuthenticationError
        assert journal.SAVE_SECONDS == 5
        assert 20 < land_from(sim, tmp_path).resumed_devices < 40


def test_the_log_shows_a_device_id_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(1, 1, "The others have landed")
    failures.add("a\nb", UnexpectedResponseError("bad"))
    assert [record.getMessage() for record in caplog.records] == ["Device 'a\\nb' failed: UnexpectedResponseError: bad"]
