"""One window of one device becomes one object, or a list of records."""

from __future__ import annotations

import doctest
import errno
import gzip
import io
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core.extract import MAX_XCOM_DEPTH, ExtractedRecords, Landed, fetch_records, land
from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    EmptyResultError,
    InvalidArgumentError,
    NotFoundError,
    ResultTooLargeError,
    ServerError,
    SnapshotChangedError,
    UnexpectedResponseError,
)
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.window import Window
from tests.support.expected_rows import files_in

DEVICE, SILENT = "Wb8fabc31378ce07", "W7d2e90b4c6a1f58"
START, END = 1_768_176_000_000, 1_768_262_400_000
DAY = Window(START, END)
NAME = f"device={DEVICE}/start_date=2026-01-12/20260112T000000Z_20260113T000000Z"
FORMATS = [("jsonl", None), ("jsonl", "gzip"), ("json", None), ("csv", None), ("csv", "gzip"), ("parquet", None)]

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator(fixed_pages=12, page_size=10) as simulator:
        yield simulator


def land_from(sim: Simulator, lake: Path, device_id: str = DEVICE, window: Window = DAY, **options: Any) -> Landed:
    with UnleashClient(sim.api_key, sim.base_url, page_concurrency=1, mask_stream_tokens=False) as client:
        return land(client, device_id, window, UPath(lake), **options)


def read_counts(path: Path) -> list[float]:
    """Return the count of each row, read by DuckDB, or gzip and json."""
    if path.suffix == ".parquet":
        return [count for (count,) in duckdb.sql(f"SELECT count FROM '{path}'").fetchall()]
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if ".csv" in path.name:
        return [count for (count,) in duckdb.sql(f"SELECT count FROM read_csv('{path}')").fetchall()]
    rows = json.loads(text) if ".json" in path.suffixes else list(map(json.loads, io.StringIO(text)))
    return [row["count"] for row in rows]


def counts_of(sim: Simulator, device_id: str = DEVICE) -> list[float]:
    return [row["count"] for row in sim.rows(device_id, START, END)]


# ---- landing -------------------------------------------------------------------------------------


def test_the_example_in_the_docstring_of_land_works(tmp_path):
    with Simulator(api_keys=["ul_pat_..."]) as sim:
        source = "".join(example.source for example in doctest.DocTestParser().get_examples(land.__doc__ or ""))
        for old, new in (('"ul_pat_..."', f'"ul_pat_...", "{sim.base_url}"'), ("/tmp/lake", str(tmp_path))):
            assert old in source
            source = source.replace(old, new)
        names: dict[str, Any] = {}
        exec(source, names)
        landed = names["landed"]
        assert read_counts(Path(landed.path)) == counts_of(sim)
        assert landed.counts.rows == len(counts_of(sim)) > 1000


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_each_format_is_published_as_one_object_with_all_rows(sim, tmp_path, file_format, compression, endpoint):
    landed = land_from(sim, tmp_path, file_format=file_format, compression=compression, endpoint=endpoint)
    [name] = files_in(tmp_path)
    assert name == f"{NAME}.{file_format}{'.gz' if compression else ''}"
    assert landed.path == UPath(tmp_path) / name
    assert read_counts(tmp_path / name) == counts_of(sim)
    assert landed.size == (tmp_path / name).stat().st_size
    assert (landed.counts.pages, landed.counts.rows) == (12, 120)
    assert (landed.resumed_pages, landed.is_skipped) == (0, False)


@pytest.mark.parametrize(("time", "rows_at_end"), [("12T23:59:59.9999995Z", 0), ("13T00:00:00.000Z", 1)])
def test_only_rows_stamped_at_the_end_of_the_window_are_left_to_the_next_window(tmp_path, time, rows_at_end):
    rows = [{"timestamp": f"2026-01-{stamp}", "count": 1} for stamp in ("12T12:00:00.000Z", time)]
    with Simulator(rows={DEVICE: rows}) as sim:
        counts = land_from(sim, tmp_path).counts
    assert (counts.rows, counts.rows_at_end) == (2 - rows_at_end, rows_at_end)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"device_id": "../x"}, "device_id"), ({"file_format": "xml"}, "file_format"), ({"endpoint": "xml"}, "endpoint")],
)
def test_an_invalid_argument_is_named_and_nothing_is_written(sim, tmp_path, arguments, named):
    with pytest.raises(InvalidArgumentError) as caught:
        land_from(sim, tmp_path, **arguments)
    assert caught.value.argument == named
    assert files_in(tmp_path) == []


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
@pytest.mark.parametrize(("kind", "error"), [("404", NotFoundError), ("500", ServerError)])
def test_a_failed_extraction_keeps_the_previous_object(sim, tmp_path, file_format, compression, kind, error):
    landed = land_from(sim, tmp_path, file_format=file_format, compression=compression)
    before = Path(landed.path.path).read_bytes()
    sim.add_fault(Fault(kind, page=7, times=None))
    with pytest.raises(error):
        land_from(sim, tmp_path, file_format=file_format, compression=compression)
    assert files_in(tmp_path) == [str(Path(landed.path.path).relative_to(tmp_path))]
    assert Path(landed.path.path).read_bytes() == before


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_a_retry_resumes_and_writes_the_same_object(sim, tmp_path, file_format):
    options = {"file_format": file_format, "checkpoint_pages": 3}
    whole = land_from(sim, tmp_path / "whole", **options)
    sim.add_fault(Fault("404", page=9))
    with pytest.raises(NotFoundError):
        land_from(sim, tmp_path / "lake", **options)
    assert [name.split("/")[0] for name in files_in(tmp_path / "lake")] == ["_staging"] * 2
    sim.clear_requests()
    landed = land_from(sim, tmp_path / "lake", **options)
    assert landed.resumed_pages == 6
    pages = [int(request.path.rpartition("/")[2]) for request in sim.requests]
    assert pages == [1, 12, 8, 9, 10, 11, 1, 12]
    assert files_in(tmp_path / "lake") == files_in(tmp_path / "whole")
    assert Path(landed.path.path).read_bytes() == Path(whole.path.path).read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"checkpoint_pages": None}, {"resume_within": None}, {"resume_within": timedelta(0)}, {"checkpoint_pages": 12}],
)
def test_staging_can_be_turned_off_and_is_off_for_short_extractions(sim, tmp_path, options):
    sim.add_fault(Fault("404", page=9))
    with pytest.raises(NotFoundError):
        land_from(sim, tmp_path, **{"checkpoint_pages": 3, **options})
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("other", [{"endpoint": "tableau"}, {"file_format": "csv"}, {"window": Window(START, END - 1)}])
def test_pages_that_another_kind_of_extraction_staged_are_not_used(sim, tmp_path, other):
    sim.add_fault(Fault("404", page=9))
    with pytest.raises(NotFoundError):
        land_from(sim, tmp_path, checkpoint_pages=3)
    assert land_from(sim, tmp_path, checkpoint_pages=3, **other).resumed_pages == 0


def test_staging_fails_no_extraction_that_fits_without_it(monkeypatch):
    """A store has room for the object and its manifest, but not for staged pages too."""
    dst = UPath("memory://test-extract/lake")
    put_file, stored = type(dst.fs).put_file, dst.fs.store

    with Simulator(fixed_pages=12, page_size=10) as sim, UnleashClient(sim.api_key, sim.base_url) as client:
        land(client, DEVICE, DAY, dst, checkpoint_pages=None)
        room = sum(file.getbuffer().nbytes for file in stored.values())
        stored.clear()

        def put(fs: Any, source: Any, target: str) -> None:
            size = Path(source).stat().st_size
            if sum(file.getbuffer().nbytes for file in stored.values()) + size > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            put_file(fs, source, target)

        monkeypatch.setattr(type(dst.fs), "put_file", put)
        try:
            landed = land(client, DEVICE, DAY, dst, checkpoint_pages=3)
            assert landed.counts.rows == 120
            assert sorted(stored) == [landed.manifest.path, landed.path.path]
        finally:
            stored.clear()


def test_a_disk_without_room_for_the_object_is_an_error(sim, monkeypatch):
    dst = UPath("memory://test-extract/lake")

    def put(fs: Any, source: Any, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(dst.fs), "put_file", put)
    with UnleashClient(sim.api_key, sim.base_url) as client, pytest.raises(OSError, match="No space left"):
        land(client, DEVICE, DAY, dst, checkpoint_pages=3)
    assert not dst.fs.find(dst.path)


# ---- changing pages ------------------------------------------------------------------------------


def test_pages_that_change_are_read_again_and_the_object_has_every_row_once(tmp_path):
    with Simulator(page_size=100, growing=600) as sim:
        landed = land_from(sim, tmp_path, checkpoint_pages=3)
        assert read_counts(Path(landed.path.path)) == counts_of(sim)
        assert sum(request.path.endswith("/1") for request in sim.requests) > 2
    assert files_in(tmp_path) == [f"{NAME}.jsonl"]


def test_pages_that_change_four_times_leave_neither_object_nor_staged_pages(tmp_path, caplog):
    with Simulator(page_size=10, growing=1) as sim, pytest.raises(SnapshotChangedError):
        land_from(sim, tmp_path, checkpoint_pages=3)
    assert caplog.text.count("Reading the window again") == 3
    assert files_in(tmp_path) == []


# ---- no rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_no_rows_replace_rows_only_with_permission(sim, tmp_path, file_format, compression):
    options: dict[str, Any] = {"file_format": file_format, "compression": compression}
    path = Path(land_from(sim, tmp_path, **options).path.path)
    before = path.read_bytes()
    with Simulator(rows={DEVICE: []}) as empty:
        for on_empty, error in (("succeed", EmptyReplacementError), ("fail", EmptyResultError)):
            with pytest.raises(error):
                land_from(empty, tmp_path, on_empty=on_empty, **options)
        assert land_from(empty, tmp_path, on_empty="skip", **options).is_skipped
        assert path.read_bytes() == before
        assert land_from(empty, tmp_path, replace_with_empty=True, **options).counts.rows == 0
        assert read_counts(path) == []
        land_from(empty, tmp_path, **options)  # an empty object may be replaced
    land_from(sim, tmp_path, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("on_empty", "written"), [("succeed", [f"{NAME.replace(DEVICE, SILENT)}.jsonl"]), ("skip", []), ("fail", [])]
)
def test_a_window_without_rows_is_an_empty_object_nothing_or_an_error(sim, tmp_path, on_empty, written):
    if on_empty == "fail":
        with pytest.raises(EmptyResultError):
            land_from(sim, tmp_path, SILENT, on_empty=on_empty)
    else:
        landed = land_from(sim, tmp_path, SILENT, on_empty=on_empty)
        assert (landed.counts.rows, landed.is_skipped) == (0, on_empty == "skip")
    assert files_in(tmp_path) == written


@pytest.mark.parametrize("on_empty", ["succeed", "skip", "fail"])
def test_a_device_that_the_account_does_not_have_is_an_error(sim, tmp_path, on_empty):
    with pytest.raises(NotFoundError, match="UnleashListDevicesOperator") as caught:
        land_from(sim, tmp_path, "Wunknown", on_empty=on_empty)
    assert caught.value.device_id == "Wunknown"
    assert files_in(tmp_path) == []


# ---- records -------------------------------------------------------------------------------------


def fetch_from(sim: Simulator, device_id: str = DEVICE, **options: Any) -> ExtractedRecords:
    with UnleashClient(sim.api_key, sim.base_url, page_concurrency=1) as client:
        return fetch_records(client, device_id, DAY, **{"max_bytes": 1 << 20, **options})


def test_records_are_those_of_the_window_and_their_bytes_have_a_limit(sim):
    expected = sim.rows(DEVICE, START, END)
    fetched = fetch_from(sim)
    size = fetched.size
    assert fetched.records == expected
    assert (fetched.counts.rows, fetched.counts.pages) == (120, 12)
    assert fetch_from(sim, max_bytes=size) == fetched
    sim.clear_requests()
    with pytest.raises(ResultTooLargeError, match="UnleashToObjectStorageOperator") as caught:
        fetch_from(sim, max_bytes=size // 3)
    assert caught.value.limit == size // 3
    assert len(sim.requests) < 8


def test_records_of_a_silent_or_unknown_device_follow_on_empty(sim):
    assert fetch_from(sim, SILENT).records == []
    with pytest.raises(EmptyResultError):
        fetch_from(sim, SILENT, on_empty="fail")
    with pytest.raises(NotFoundError):
        fetch_from(sim, "Wunknown")


@pytest.mark.parametrize("value", [{"zone": {"__type": 1}}, {"zone": [[{"a": {"__type": 1}}]]}, {"__type": None}])
def test_a_record_with_a_reserved_key_is_an_error_that_names_its_page_row_and_key(value):
    rows = [{"timestamp": "2026-01-12T12:00:00.000Z", "zone": "__type", "count": count} for count in range(4)]
    with Simulator(rows={DEVICE: [*rows[:3], {**rows[3], **value}]}, page_size=2) as sim:
        assert len(fetch_from(sim, endpoint="tableau").records) == 4
        with pytest.raises(UnexpectedResponseError, match="Page 2, row 1 has the key '__type'") as caught:
            fetch_from(sim, endpoint="tableau", reserved_keys={"__type", "__var"})
    assert (caught.value.page, caught.value.row, caught.value.field) == (2, 1, "__type")


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"n": 2**64}, "n"),
        ({"n": [{"m": [-(2**63) - 1]}]}, "m"),
        ({"n": nested(MAX_XCOM_DEPTH)}, "a"),
        ({"n": nested(600)}, "a"),
    ],
    ids=["2**64", "-2**63 - 1", "100 levels", "600 levels"],
)
def test_a_record_that_xcom_cannot_carry_is_an_error_that_names_its_page_row_and_key(value, key):
    good = {"timestamp": "2026-01-12T12:00:00.000Z", "n": [2**64 - 1, -(2**63), nested(MAX_XCOM_DEPTH - 2)]}
    message = f"Page 2, row 1 has the key '{key}'.* cannot carry"
    with (
        Simulator(rows={DEVICE: [good, good, good, {**good, **value}]}, page_size=2) as sim,
        pytest.raises(UnexpectedResponseError, match=message) as caught,
    ):
        fetch_from(sim)
    assert (caught.value.page, caught.value.row, caught.value.field) == (2, 1, key)
    with Simulator(rows={DEVICE: [good]}) as sim:
        assert fetch_from(sim).records == [good]


def test_records_are_read_again_if_pages_change():
    with Simulator(page_size=100, growing=600) as sim:
        assert fetch_from(sim, max_bytes=1 << 24).records == sim.rows(DEVICE, START, END)
