"""The rows of an account in a window become one commit to a Delta table."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import columns, delta
from airflow_provider_unleash.core.account import LandedAccount, land_account
from airflow_provider_unleash.core.coverage import read_coverage
from airflow_provider_unleash.core.extract import land
from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    EmptyResultError,
    InvalidArgumentError,
    PartialExtractionError,
    TransientError,
    UnleashError,
)
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.window import Window
from tests.support.delta_reader import delta_scan
from tests.support.expected_rows import files_in
from tests.support.python_processes import import_root
from tests.support.waiting import wait_until
from tools.s3_lake import S3Lake
from tools.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

START, HOUR = 1_768_176_000_000, 3_600_000
DAY = Window(START, START + 24 * HOUR)
COUNTS = "SELECT device, epoch_ms(window_start), count, count(*) FROM t GROUP BY ALL ORDER BY ALL"

log = logging.getLogger(__name__)

pytestmark = pytest.mark.usefixtures("quick_retries")


def hour(number: int) -> Window:
    return Window(START + number * HOUR, START + (number + 1) * HOUR)


def rows_of(number: int, generation: float = 1, **values: Any) -> list[dict[str, Any]]:
    """Return rows at the half of each hour of the day; their ``count`` is the generation."""
    stamps = [f"2026-01-12T{hour:02}:30:00.000Z" for hour in range(24)]
    return [{"timestamp": stamp, "count": generation, **values} for stamp in stamps for _ in range(number)]


def serve(numbers: Mapping[str, int], generation: float = 1, **options: Any) -> Simulator:
    """Return a simulator of devices with so many rows in each hour."""
    return Simulator(rows={name: rows_of(number, generation) for name, number in numbers.items()}, **options)


def land_from(sim: Simulator, table: Any, window: Window = DAY, **options: Any) -> LandedAccount:
    with UnleashClient(sim.api_key, sim.base_url, max_attempts=2, mask_stream_tokens=False) as client:
        device_ids = options.pop("device_ids", None)
        dst = table if isinstance(table, UPath) else UPath(table)
        return land_account(client, device_ids, window, dst, **{"file_format": "delta", **options})


def fail_from(sim: Simulator, table: Path, *args: Any, **options: Any) -> Any:
    """Return the error that an extraction raises."""
    with pytest.raises(UnleashError) as caught:
        land_from(sim, table, *args, **options)
    return caught.value


Content = dict[tuple[str, int, float], int]


def content(table: Any, **options: Any) -> Content:
    """Return the number of rows by device, hour of the window's start and generation."""
    found = DeltaTable(str(table), **options).to_pyarrow_table(columns=["device", "window_start", "count"]).to_pylist()
    hours = [(row["window_start"].timestamp() * 1000 - START) / HOUR for row in found]
    return dict(Counter((row["device"], int(hour), row["count"]) for row, hour in zip(found, hours, strict=True)))


def active_files(table: Path) -> set[str]:
    return {uri.removeprefix(f"{table}/") for uri in DeltaTable(table).file_uris()}


# ---- what is in the table ------------------------------------------------------------------------


@pytest.mark.slow
def test_two_independent_readers_find_every_row_of_a_week_of_forty_cameras(tmp_path: Path) -> None:
    cameras = [f"W{index:03}" for index in range(40)]
    options: dict[str, Any] = {"devices": tuple(cameras), "rows_per_day": 24, "page_size": 10, "nulls": True}
    days = [Window(START + 24 * day * HOUR, START + 24 * (day + 1) * HOUR) for day in range(7)]
    with Simulator(**options, new_key="confidence") as sim:
        for day in (*days, days[3], days[0]):
            land_from(sim, tmp_path, day)
        land_from(sim, tmp_path, days[5], endpoint="tableau", device_ids=cameras[7:9])
        expected = [
            (device, day.start_ms, row)
            for day in days
            for device in cameras
            for row in sim.rows(device, day.start_ms, day.end_ms)
            if row["timestamp"] != day.end.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        ]
    names = list(columns.COLUMNS)
    wanted = sorted(
        repr((device, start, *[row.get(name) for name in names], row.get("confidence")))
        for device, start, row in ((device, start, as_stored(row)) for device, start, row in expected)
    )
    by_deltalake = [
        repr(
            (
                row["device"],
                int(row["window_start"].timestamp() * 1000),
                *[row[name] if name != "timestamp" else format_stamp(row[name]) for name in names],
                json.loads(row["extra"])["confidence"] if row["extra"] else None,
            )
        )
        for row in DeltaTable(tmp_path).to_pyarrow_table().to_pylist()
    ]
    assert len(wanted) > 5000
    assert sorted(by_deltalake) == wanted
    stamp = "strftime(timestamp, '%Y-%m-%dT%H:%M:%S.%gZ')"
    listed = ", ".join(stamp if name == "timestamp" else name for name in names)
    extra = "(extra->>'confidence')::DOUBLE"
    by_duckdb = delta_scan(f"SELECT device, epoch_ms(window_start), {listed}, {extra} FROM t", tmp_path)
    assert sorted(map(repr, by_duckdb)) == wanted
    assert delta_scan("SELECT DISTINCT start_date = window_start::DATE FROM t", tmp_path) == [(True,)]


def as_stored(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "count": None if row["count"] is None else float(row["count"])}


def format_stamp(stamp: Any) -> str:
    return f"{stamp:%Y-%m-%dT%H:%M:%S}.{stamp.microsecond // 1000:03}Z"


def test_columns_have_the_types_of_parquet_files_with_timestamps_in_microseconds(tmp_path: Path) -> None:
    with serve({"A": 1}) as sim:
        types = {"zone": "string", "visits": "int64", "seen": "bool", "score": "float64", "until": "timestamp"}
        land_from(sim, tmp_path / "table", column_types=types)
        land_from(sim, tmp_path / "file", column_types=types, file_format="parquet")
    [file] = tmp_path.glob("file/device=A/*/*.parquet")
    expected = {field.name: str(field.type).replace("[ms", "[us") for field in pq.read_schema(file)}
    found = {field.name: str(field.type) for field in pa.schema(DeltaTable(tmp_path / "table").schema().to_arrow())}
    window = {"device": "string", "window_start": "timestamp[us, tz=UTC]", "window_end": "timestamp[us, tz=UTC]"}
    assert found == {"start_date": "date32[day]", **window, **expected}
    assert [*found][1:4] == ["device", "window_start", "window_end"]


def test_a_row_belongs_to_the_device_that_was_requested_whatever_its_own_device_id_is(tmp_path: Path) -> None:
    strange = [{"device_id": "B"}, {"device_id": None}, {}]
    rows = {"A": [{**rows_of(1)[0], **values} for values in strange], "B": rows_of(1, device_id="B")[:2]}
    for _ in range(2):
        with Simulator(rows=rows) as sim:
            land_from(sim, tmp_path)
    with Simulator(rows={"A": rows["A"], "B": []}) as sim:
        land_from(sim, tmp_path, device_ids=["A"])
        land_from(sim, tmp_path, device_ids=["B"], replace_with_empty=True)
    assert delta_scan("SELECT device, device_id FROM t ORDER BY ALL", tmp_path) == [
        ("A", "B"),
        ("A", None),
        ("A", None),
    ]


def test_rows_stamped_outside_their_window_stay_with_it(tmp_path: Path) -> None:
    with serve({"A": 1}, selection_lag_ms=-HOUR) as sim:
        for number in (3, 4, 5, 4, 3):
            land_from(sim, tmp_path, hour(number))
        stamps = "SELECT epoch_ms(window_start), epoch_ms(timestamp) FROM t ORDER BY ALL"
        expected = [(hour(number).start_ms, hour(number + 1).start_ms + HOUR // 2) for number in (3, 4, 5)]
        assert delta_scan(stamps, tmp_path) == expected


def test_rows_are_ordered_by_device_and_split_by_device_makes_no_difference(tmp_path: Path) -> None:
    for split in (True, False):
        with serve({"C": 3, "A": 2, "B": 1}, page_size=5) as sim:
            landed = land_from(sim, tmp_path / str(split), split_by_device=split)
        [file] = active_files(tmp_path / str(split))
        devices = pq.read_table(tmp_path / str(split) / file, partitioning=None).column("device").to_pylist()
        assert devices == ["A"] * 48 + ["B"] * 24 + ["C"] * 72
        assert (landed.objects, landed.devices_with_rows, landed.counts.rows) == (1, 3, 144)
        assert landed.size == (tmp_path / str(split) / file).stat().st_size


def test_statistics_let_readers_skip_files_and_contain_no_stream_tokens(tmp_path: Path) -> None:
    token = "W1?token=sneaky-firefox-288"
    long = {"class_name": "x" * 100, "model_id": None, "zone": token, "note": token}
    rows = {"A": rows_of(2, 7, **long, source_file_name=token, frame_number=5), "B": rows_of(1, source_file_name="y")}
    with Simulator(rows=rows) as sim:
        land_from(sim, tmp_path, column_types={"zone": "string"})
    log = "".join(path.read_text() for path in tmp_path.glob("_delta_log/*"))
    assert "firefox" not in log
    [actions] = pa.table(DeltaTable(tmp_path).get_add_actions(flatten=True)).to_pylist()
    assert (actions["num_records"], actions["min.device"], actions["max.device"]) == (72, "A", "B")
    assert (actions["min.count"], actions["max.count"], actions["null_count.model_id"]) == (1.0, 7.0, 72)
    assert (actions["min.frame_number"], actions["null_count.frame_number"]) == (5, 24)
    dataset = DeltaTable(tmp_path).to_pyarrow_dataset()
    for filter_, number in (
        (pa.dataset.field("class_name") == "x" * 100, 48),
        (pa.dataset.field("zone") == token, 48),
        (pa.dataset.field("source_file_name") == "y", 24),
        (pa.dataset.field("extra").is_valid(), 48),
        (pa.dataset.field("count") > 5, 48),
    ):
        assert dataset.count_rows(filter=filter_) == number
    assert delta_scan(f"SELECT count(*) FROM t WHERE zone = '{token}' AND class_name > 'x'", tmp_path) == [(48,)]


# ---- what a commit replaces ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_runs_and_maintenance_leaves_the_last_rows_of_each_device_and_window(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    expected: Content = {}
    numbers = {"A": 1, "B": 2, "C": 3}
    for generation in range(1, 16):
        window, some = rng.randrange(6), sorted(rng.sample("ABC", rng.randint(1, 3)))
        device_ids = rng.choice([None, some])
        with serve(numbers, generation) as sim:
            land_from(sim, tmp_path, hour(window), device_ids=device_ids)
        for device in device_ids or numbers:
            expected = {key: rows for key, rows in expected.items() if key[:2] != (device, window)}
            expected[device, window, generation] = numbers[device]
        if rng.random() < 0.3:
            DeltaTable(tmp_path).optimize.compact()
        if rng.random() < 0.2:
            DeltaTable(tmp_path).optimize.z_order(["timestamp"])
        if rng.random() < 0.2:
            vacuum(tmp_path)
        assert content(tmp_path) == expected
    scanned = delta_scan(COUNTS, tmp_path)
    assert {(name, (start - START) // HOUR, count): rows for name, start, count, rows in scanned} == expected


def vacuum(table: Any, **options: Any) -> None:
    retention = {"retention_hours": 0, "enforce_retention_duration": False}
    DeltaTable(str(table), **options).vacuum(**retention, dry_run=False, full=True)


def test_a_rerun_replaces_only_its_own_files(tmp_path: Path) -> None:
    with serve({"A": 1, "B": 1}) as sim:
        land_from(sim, tmp_path, hour(1))
        before = active_files(tmp_path)
        land_from(sim, tmp_path, hour(2))
        land_from(sim, tmp_path, hour(2))
        assert len(active_files(tmp_path)) == 2
        assert before < active_files(tmp_path)
        assert DeltaTable(tmp_path).version() == 3


def test_files_without_statistics_are_replaced_too(tmp_path: Path) -> None:
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path, hour(1))
    log = sorted(tmp_path.glob("_delta_log/*.json"))[-1]
    log.write_text(re.sub(r'"stats":".*?[^\\]",', "", log.read_text()))
    assert pa.table(DeltaTable(tmp_path).get_add_actions(flatten=True)).column_names[-1] != "max.device"
    with serve({"A": 1}, 2) as sim:
        land_from(sim, tmp_path, hour(2))
        land_from(sim, tmp_path, hour(1))
    assert content(tmp_path) == {("A", 1, 2): 1, ("A", 2, 2): 1}


def test_another_name_for_the_day_of_files_doubles_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library does not document the names of these columns, so a later version may have others."""
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path)
        list_files = DeltaTable.get_add_actions

        def rename(table: DeltaTable, flatten: bool = False) -> Any:
            actions = pa.table(list_files(table, flatten))
            return actions.rename_columns([name.replace("partition.", "day.") for name in actions.column_names])

        with monkeypatch.context() as patched:
            patched.setattr(DeltaTable, "get_add_actions", rename)
            with pytest.raises(KeyError, match="start_date"):
                land_from(sim, tmp_path)
    assert content(tmp_path) == {("A", 0, 1): 24}


def test_a_device_that_the_account_no_longer_lists_keeps_its_rows(tmp_path: Path) -> None:
    with serve({"A": 1, "OLD": 1}) as sim:
        land_from(sim, tmp_path)
    with serve({"A": 1}, 2) as sim:
        land_from(sim, tmp_path)
    assert content(tmp_path) == {("A", 0, 2): 24, ("OLD", 0, 1): 24}


def test_an_empty_response_never_removes_rows(tmp_path: Path) -> None:
    with serve({"A": 1, "B": 1, "C": 0}) as sim:
        land_from(sim, tmp_path)
    before = content(tmp_path), files_in(tmp_path)
    with serve({"A": 1, "B": 0, "C": 1}, 2) as sim:
        for on_empty in ("succeed", "skip", "fail"):
            error = fail_from(sim, tmp_path, on_empty=on_empty)
            assert isinstance(error, EmptyReplacementError)
            assert re.search(r"rows of B in the window", str(error))
            assert (content(tmp_path), files_in(tmp_path)) == before
        land_from(sim, tmp_path, replace_with_empty=True)
        assert content(tmp_path) == {("A", 0, 2): 24, ("C", 0, 2): 24}
    with serve({"A": 0, "C": 0}) as sim:
        assert isinstance(fail_from(sim, tmp_path, replace_with_empty=True, on_empty="fail"), EmptyResultError)
        assert content(tmp_path) == {("A", 0, 2): 24, ("C", 0, 2): 24}
        landed = land_from(sim, tmp_path, replace_with_empty=True, on_empty="skip")
        assert (landed.is_skipped, landed.objects, landed.size) == (True, 0, 0)
    assert content(tmp_path) == {}


def test_a_window_without_rows_creates_no_table_but_a_manifest(tmp_path: Path) -> None:
    with serve({"A": 0}) as sim:
        landed = land_from(sim, tmp_path)
        assert (landed.objects, landed.counts.rows) == (0, 0)
        assert [path.name for path in tmp_path.iterdir()] == ["_manifest"]
        assert isinstance(fail_from(sim, tmp_path, on_empty="fail"), EmptyResultError)
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path)
    assert content(tmp_path) == {("A", 0, 1): 24}


# ---- failures ------------------------------------------------------------------------------------


def test_a_failed_device_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    with serve({"A": 1, "B": 1, "C": 1}) as sim:
        land_from(sim, tmp_path)
    before = content(tmp_path), files_in(tmp_path)
    with serve({"A": 1, "B": 1, "C": 1}, 2, faults=[Fault("500", "/B/", times=None)]) as sim:
        error = fail_from(sim, tmp_path)
        assert isinstance(error, PartialExtractionError)
        assert list(error.errors) == ["B"]
        assert (content(tmp_path), files_in(tmp_path)) == before
        sim.clear_faults()
        land_from(sim, tmp_path)
    assert content(tmp_path) == {(device, 0, 2): 24 for device in "ABC"}


def test_a_lost_race_repeats_the_commit_but_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tasks replace the same rows, compact the files, and add a column."""
    with serve({"A": 1, "B": 1}) as sim:
        land_from(sim, tmp_path, hour(1))
        land_from(sim, tmp_path, hour(2))
    with serve({"A": 1, "B": 1}, 9) as other, serve({"A": 1, "B": 1}, 2) as sim:
        others: list[Callable[[], Any]] = [
            lambda: land_from(other, tmp_path, hour(1), device_ids=["A"]),
            lambda: DeltaTable(tmp_path).optimize.compact(),
            lambda: land_from(other, tmp_path, hour(1), column_types={"zone": "string"}),
        ]
        commit = delta.WindowTable._commit

        def commit_after_another(self: Any, plan: Any) -> None:
            monkeypatch.setattr(delta.WindowTable, "_commit", commit)
            if others:
                others.pop(0)()
            monkeypatch.setattr(delta.WindowTable, "_commit", commit_after_another)
            commit(self, plan)

        monkeypatch.setattr(delta.WindowTable, "_commit", commit_after_another)
        land_from(sim, tmp_path, hour(1))
        assert len(sim.requests) == 3
    assert others == []
    expected = {("A", 1, 2): 1, ("B", 1, 2): 1, ("A", 2, 1): 1, ("B", 2, 1): 1}
    assert content(tmp_path) == expected


def test_a_commit_that_landed_although_it_failed_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalake.exceptions import CommitFailedError

    commit = delta.WindowTable._commit

    def commit_and_fail(self: Any, plan: Any) -> None:
        commit(self, plan)
        raise CommitFailedError("connection reset")

    monkeypatch.setattr(delta.WindowTable, "_commit", commit_and_fail)
    with serve({"A": 1}) as sim:
        for _ in range(2):
            land_from(sim, tmp_path, hour(1))
    assert content(tmp_path) == {("A", 1, 1): 1}
    assert DeltaTable(tmp_path).version() == 2


def test_endless_conflicts_end_in_a_transient_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = delta.WindowTable._commit

    def commit_after_another(self: Any, plan: Any) -> None:
        DeltaTable(tmp_path).alter.set_table_description("another commit")
        commit(self, plan)

    monkeypatch.setattr(delta.WindowTable, "_commit", commit_after_another)
    with serve({"A": 1}) as sim:
        error = fail_from(sim, tmp_path)
    assert type(error) is TransientError
    assert "25 times in a row" in str(error)
    assert content(tmp_path) == {}


def test_a_table_that_refuses_the_commit_says_why_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalake.exceptions import CommitFailedError

    commit = delta.WindowTable._commit
    commits: list[Any] = []

    def count_and_commit(self: Any, plan: Any) -> None:
        commits.append(plan)
        commit(self, plan)

    monkeypatch.setattr(delta.WindowTable, "_commit", count_and_commit)
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path)
        DeltaTable(tmp_path).alter.set_table_properties({"delta.appendOnly": "true"})
        with pytest.raises(CommitFailedError, match="append-only"):
            land_from(sim, tmp_path)
    assert len(commits) == 2


@pytest.mark.parametrize("windows", [1, 4])
def test_tasks_that_commit_at_once_all_land(tmp_path: Path, windows: int) -> None:
    """The table does not exist yet, so they also compete for creating it."""
    errors: list[Exception] = []

    def run(number: int) -> None:
        try:
            with serve({"A": 2, "B": 3}, number) as sim:
                for _ in range(3):
                    land_from(sim, tmp_path, hour(number % windows))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = content(tmp_path)
    assert sorted(rows for rows in found.values()) == [2] * windows + [3] * windows
    assert len({(device, number) for device, number, _ in found}) == 2 * windows


def test_a_reader_that_polls_sees_whole_versions_only(tmp_path: Path) -> None:
    numbers = {"A": 50, "B": 70}
    with serve(numbers, 0) as sim:
        land_from(sim, tmp_path)
    seen: list[Content] = []
    is_done = threading.Event()

    def poll() -> None:
        while not is_done.is_set():
            seen.append(content(tmp_path))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for generation in range(1, 8):
            with serve(numbers, generation) as sim:
                land_from(sim, tmp_path)
            enough = len(seen) + 2  # the second read begins after the commit
            wait_until(lambda enough=enough: len(seen) >= enough)
    finally:
        is_done.set()
        reader.join()
    assert {next(iter(found))[2] for found in seen} >= set(range(1, 8))
    for found in seen:
        [generation] = {key[2] for key in found}
        assert found == {("A", 0, generation): 50 * 24, ("B", 0, generation): 70 * 24}


# ---- kills ---------------------------------------------------------------------------------------

KILLS = int(os.environ.get("UNLEASH_DELTA_KILLS", "6"))


@contextmanager
def open_worker() -> Iterator[Callable[[Mapping[str, Any]], str]]:
    """Yield a function that runs an extraction in another process and kills it."""
    command = [sys.executable, "-m", "tests.support.delta_worker"]
    environment = import_root(dict(os.environ))
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        stdin, stdout = worker.stdin, worker.stdout

        def run(job: Mapping[str, Any]) -> str:
            print(json.dumps(job), file=stdin, flush=True)
            return stdout.readline().strip()

        try:
            yield run
        finally:
            stdin.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", ["file", "s3"])
def test_kill_9_at_any_moment_loses_and_doubles_no_row(tmp_path: Path, store: str) -> None:
    """UNLEASH_DELTA_KILLS is their number."""
    if store == "file":
        lake = tmp_path / "lake"
        kill_often(f"file://{lake}", {}, {})
        assert {name for name in files_in(lake) if name.endswith(".parquet")} == active_files(lake)
        return
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    with SeaweedFS() as s3:
        bucket = S3Lake(s3)
        kill_often("s3://lake/tree", {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": s3.url}, s3_options(s3))
        table = DeltaTable("s3://lake/tree", storage_options=s3_options(s3))
        active = {uri.rpartition("/tree/")[2] for uri in table.file_uris()}
        assert {name for name in bucket.names() if name.endswith(".parquet")} == active


def s3_options(store: SeaweedFS) -> dict[str, str]:
    return {
        "aws_access_key_id": ACCESS_KEY,
        "aws_secret_access_key": SECRET_KEY,
        "aws_endpoint_url": store.url,
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }


def kill_often(dst: str, file_system: dict[str, Any], storage_options: dict[str, str]) -> None:
    """Kill extractions of generation after generation; after each, the table has the old or the new one."""
    numbers = {"A": 2, "B": 300, "C": 5}
    options = {"storage_options": storage_options}
    uri = dst.removeprefix("file://")

    def expected(generation: float) -> Content:
        hours = {(name, 1, 0): number for name, number in numbers.items()}
        return {**hours, **{(name, 0, generation): 24 * number for name, number in numbers.items()}}

    with open_worker() as run:

        def extract(generation: int, window: Window = DAY, delay: float = 60.0, at_commit: bool = False) -> str:
            job = {"dst": dst, "file_system": file_system, **options, "window": [window.start_ms, window.end_ms]}
            with serve(numbers, generation) as sim:
                return run({**job, "url": sim.base_url, "delay": delay, "at_commit": at_commit})

        def seconds_of(answer: str) -> float:
            code, seconds = answer.split()
            assert code == "0"
            return float(seconds)

        seconds_of(extract(0, hour(1)))
        seconds = {at_commit: seconds_of(extract(0, at_commit=at_commit)) for at_commit in (False, True)}
        before = seed = killed = landed = 0
        # A store may still complete the commit of a killed process, after the table was read.
        may_land: set[int] = set()
        while killed < KILLS:
            seed += 1
            rng = random.Random(seed)
            at_commit = rng.random() < 0.6
            answer = extract(seed, DAY, rng.uniform(0, 1.2 * seconds[at_commit]), at_commit)
            if answer != "killed":
                seconds[at_commit] = seconds_of(answer)
            may_land.add(seed)
            found = content(uri, **options)
            [generation] = {number for _, hour_of_day, number in found if hour_of_day == 0}
            assert generation in {before, *may_land}, seed
            assert found == expected(generation), seed
            if answer != "killed":
                assert generation == seed
            killed += answer == "killed"
            if generation != before:
                landed += answer == "killed"
                before = generation
                may_land = {number for number in may_land if number > generation}
        log.info("%d extractions: %d were killed, %d of them after the commit", seed, killed, landed)
        seconds_of(extract(seed + 1))
    assert content(uri, **options) == expected(seed + 1)
    vacuum(uri, **options)
    assert content(uri, **options) == expected(seed + 1)


# ---- schemas and layouts -------------------------------------------------------------------------


def test_a_column_declared_later_evolves_the_schema_and_old_versions_stay_readable(tmp_path: Path) -> None:
    rows = {"A": rows_of(1, zone="north", score=0.5)}
    with Simulator(rows=rows) as sim:
        land_from(sim, tmp_path, hour(1))
        land_from(sim, tmp_path, hour(2), column_types={"zone": "string"})
        land_from(sim, tmp_path, hour(3), column_types={"score": "float64", "zone": "string"})
        land_from(sim, tmp_path, hour(4))
        land_from(sim, tmp_path, hour(2), device_ids=["A"], column_types={"score": "float64"})
    found = delta_scan("SELECT epoch_ms(window_start), zone, score, extra FROM t ORDER BY 1", tmp_path)
    both, zone = '{"score":0.5,"zone":"north"}', '{"zone":"north"}'
    assert found == [
        (hour(1).start_ms, None, None, both),
        (hour(2).start_ms, None, 0.5, zone),
        (hour(3).start_ms, "north", 0.5, None),
        (hour(4).start_ms, None, None, both),
    ]
    last = DeltaTable(tmp_path).version()
    counted = [DeltaTable(tmp_path, version=version).to_pyarrow_table().num_rows for version in range(last + 1)]
    assert counted == [0, 1, 1, 2, 2, 3, 4, 4]


def test_a_compacted_file_keeps_the_values_of_all_columns(tmp_path: Path) -> None:
    with Simulator(rows={"A": rows_of(1, zone="north"), "B": rows_of(1, zone="south")}) as sim:
        land_from(sim, tmp_path, hour(1))
        land_from(sim, tmp_path, hour(2), column_types={"zone": "string"})
        DeltaTable(tmp_path).optimize.compact()
        assert len(active_files(tmp_path)) == 1
        land_from(sim, tmp_path, hour(2), device_ids=["A"])
    assert delta_scan("SELECT epoch_ms(window_start), device, zone, extra FROM t ORDER BY ALL", tmp_path) == [
        (hour(1).start_ms, "A", None, '{"zone":"north"}'),
        (hour(1).start_ms, "B", None, '{"zone":"south"}'),
        (hour(2).start_ms, "A", None, '{"zone":"north"}'),
        (hour(2).start_ms, "B", "south", None),
    ]


def test_a_column_cannot_change_its_type(tmp_path: Path) -> None:
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path, column_types={"zone": "string"})
        sim.clear_requests()
        error = fail_from(sim, tmp_path, column_types={"zone": "int64"})
        assert isinstance(error, InvalidArgumentError)
        assert error.argument == "column_types"
        assert "'zone'" in str(error)
        assert sim.requests == []


def test_columns_cannot_differ_in_case_only(tmp_path: Path) -> None:
    """Delta Lake compares names case-insensitively, so Spark could not read the table."""
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path, column_types={"zone": "string"})
        error = fail_from(sim, tmp_path, column_types={"Zone": "string"})
    assert (type(error), error.argument) == (InvalidArgumentError, "column_types")
    assert re.search(r"has the column 'zone', so it cannot have 'Zone'", str(error))


@pytest.mark.parametrize("name", ["device", "window_start", "Window_End", "start_date"])
def test_column_types_cannot_declare_the_columns_of_the_window(tmp_path: Path, name: str) -> None:
    with serve({"A": 1}) as sim:
        error = fail_from(sim, tmp_path, column_types={name: "string"})
    assert (type(error), error.argument) == (InvalidArgumentError, "column_types")


@pytest.mark.parametrize("keep_manifests", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_files_and_tables_do_not_mix(tmp_path: Path, split: bool, keep_manifests: bool) -> None:
    with serve({"A": 1}) as sim, UnleashClient(sim.api_key, sim.base_url, mask_stream_tokens=False) as client:
        land_from(sim, tmp_path / "table")
        land_from(sim, tmp_path / "files", file_format="parquet", split_by_device=split)
        if not keep_manifests:
            for path in (tmp_path / "table").rglob("*.manifest"):
                path.unlink()
        sim.clear_requests()
        errors = [
            fail_from(sim, tmp_path / "table", file_format="parquet", split_by_device=split),
            fail_from(sim, tmp_path / "files"),
        ]
        with pytest.raises(InvalidArgumentError) as caught:
            land(client, "A", DAY, UPath(tmp_path / "table"))
        for error in (*errors, caught.value):
            assert (type(error), error.argument) == (InvalidArgumentError, "dst")
            assert "a Delta table" in str(error)
        assert sim.requests == []


def test_a_table_of_somebody_else_is_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pa.table({"device": ["A"], "count": [1.0]}))
    with serve({"A": 1}) as sim:
        error = fail_from(sim, tmp_path)
        assert (type(error), error.argument, sim.requests) == (InvalidArgumentError, "dst", [])
    assert DeltaTable(tmp_path).version() == 0


def test_a_table_with_deletion_vectors_is_refused(tmp_path: Path) -> None:
    """Deleted rows would come back when a file is rewritten."""
    from deltalake import TableFeatures

    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path)
        DeltaTable(tmp_path).alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
        sim.clear_requests()
        error = fail_from(sim, tmp_path)
        assert (type(error), error.argument, sim.requests) == (InvalidArgumentError, "dst", [])
        assert "deletionVectors" in str(error)


def test_wrong_arguments_fail_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"A": 1}) as sim, UnleashClient(sim.api_key, sim.base_url) as client:
        error = fail_from(sim, tmp_path, compression="gzip")
        assert (type(error), error.argument) == (InvalidArgumentError, "compression")
        error = fail_from(sim, UPath("memory://lake"))  # type: ignore[arg-type]
        assert (type(error), error.argument) == (InvalidArgumentError, "dst")
        with pytest.raises(InvalidArgumentError, match="UnleashAccountToObjectStorageOperator"):
            land(client, "A", DAY, UPath(tmp_path), file_format="delta")
        monkeypatch.setattr(columns, "find_spec", lambda name: None if name == "deltalake" else name)
        error = fail_from(sim, tmp_path)
        assert (type(error), error.argument) == (InvalidArgumentError, "file_format")
        assert "airflow-provider-unleash[delta]" in str(error)
        assert sim.requests == []
    assert list(tmp_path.iterdir()) == []


# ---- manifests, staging, maintenance -------------------------------------------------------------


def test_manifests_and_coverage_are_those_of_other_formats(tmp_path: Path) -> None:
    with serve({"A": 1, "B": 0}) as sim:
        land_from(sim, tmp_path, hour(1), dag_id="daily", run_id="run 1")
        land_from(sim, tmp_path, hour(3))
    lines = [json.loads(line) for path in tmp_path.rglob("*.manifest") for line in path.read_text().splitlines()]
    found = {(line["device_id"], line["rows"], line["path"]) for line in lines}
    assert found == {("A", 1, "_delta_log"), ("B", 0, None)}
    assert {(line["dag_id"], line["run_id"]) for line in lines} == {("daily", "run 1"), (None, None)}
    start = datetime(2026, 1, 12, 1, tzinfo=timezone.utc)
    coverage = read_coverage(
        str(tmp_path), device_ids=["A", "B"], start=start, end=start + timedelta(hours=3), every="PT1H"
    )
    states = [cell.state for cell in coverage]
    assert states == ["landed", "missing", "landed", "empty", "missing", "empty"]
    assert str(coverage.layout) == "a Delta table"


def test_vacuum_removes_orphans_and_keeps_manifests_and_staged_pages(tmp_path: Path) -> None:
    with serve({"A": 1}) as sim:
        land_from(sim, tmp_path, hour(1))
        land_from(sim, tmp_path, hour(1))
    [active] = active_files(tmp_path)
    (tmp_path / "start_date=2026-01-12/orphan.parquet").write_bytes(b"PAR1")
    (tmp_path / "_staging/x").mkdir(parents=True)
    (tmp_path / "_staging/x/00000.pages").write_bytes(b"x")
    vacuum(tmp_path)
    names = [name for name in files_in(tmp_path) if not name.startswith("_delta_log")]
    assert names == ["_staging/x/00000.pages", active]
    assert len(list(tmp_path.rglob("*.manifest"))) == 1
    assert delta_scan("SELECT count(*) FROM t", tmp_path) == [(1,)]


def test_a_retry_of_a_long_device_requests_only_the_rest(tmp_path: Path) -> None:
    rows = {"A": rows_of(1)[:1], "BIG": [{**row, "frame_number": i} for i, row in enumerate(rows_of(20)[:250])]}
    with Simulator(rows=rows, page_size=1, faults=[Fault("404", "/BIG/", page=230)]) as sim:
        fail_from(sim, tmp_path)
        sim.clear_requests()
        land_from(sim, tmp_path)
        pages = [request for request in sim.requests if "/BIG/" in request.path]
    assert len(pages) < 60
    assert content(tmp_path) == {("A", 0, 1): 1, ("BIG", 0, 1): 250}
    assert not (tmp_path / "_staging").exists()


# ---- stores --------------------------------------------------------------------------------------


def test_a_table_on_s3(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    with SeaweedFS() as store:
        S3Lake(store)
        dst = UPath("s3://lake/tree", key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=store.url)
        options = s3_options(store)
        for generation in (1, 2):
            with serve({"A": 1, "B": 2}, generation) as sim:
                land_from(sim, dst, hour(1), storage_options=lambda: options)
                if generation == 1:
                    land_from(sim, dst, hour(2), storage_options=lambda: options)
                    DeltaTable("s3://lake/tree", storage_options=options).optimize.compact()
        expected = {("A", 1, 2): 1, ("A", 2, 1): 1, ("B", 1, 2): 2, ("B", 2, 1): 2}
        assert content("s3://lake/tree", storage_options=options) == expected


def test_errors_of_a_store_contain_no_credentials(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    dst = UPath("s3://lake/tree", key="AKIDEXAMPLE", secret="secret-of-the-key", endpoint_url="http://127.0.0.1:9")
    options = {
        "aws_access_key_id": "AKIDEXAMPLE",
        "aws_secret_access_key": "secret-of-the-key",
        "aws_endpoint_url": "http://127.0.0.1:9/secret-of-the-key?sig=abc%2Fdef",
        "aws_allow_http": "true",
        "aws_region": "us-east-1",
        "max_retries": "0",
    }
    with pytest.raises(OSError, match="Generic S3 error") as caught:
        delta.WindowTable(dst, DAY, None, lambda: options)
    assert not re.search("secret-of|AKID|abc|\x1b", str(caught.value))


def test_odd_folder_names(tmp_path: Path) -> None:
    folder = tmp_path / "a lake#ä+b='c"
    with serve({"A": 1}) as sim:
        for _ in range(2):
            land_from(sim, folder, hour(1))
        error = fail_from(sim, tmp_path / "lake%20")
        assert (type(error), error.argument) == (InvalidArgumentError, "dst")
    assert content(folder) == {("A", 1, 1): 1}


@pytest.mark.parametrize("name", ["tree#1", "tree?1", "a//tree", "tree%201", "a\\tree"])
def test_names_of_a_bucket_that_the_library_would_read_as_another_folder_are_refused(name: str) -> None:
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    with pytest.raises(InvalidArgumentError, match="the folder of a Delta table cannot have") as caught:
        delta.table_uri(UPath(f"s3://lake/{name}"))
    assert caught.value.argument == "dst"
