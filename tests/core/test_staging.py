"""Staged pages: a retry continues where the last try stopped."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import staging as staging_module
from airflow_provider_unleash.core.pages import Snapshot
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.core.staging import Staging
from airflow_provider_unleash.exceptions import NotFoundError, SnapshotChangedError
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.paths import ROOT

DEVICE = "Wb8fabc31378ce07"
START, END = 1_768_176_000_000, 1_768_262_400_000
PAGES, ROWS = 12, 10
SOURCE = ("http://127.0.0.1", "compact", False)
NAME = "an-object"

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator(fixed_pages=PAGES, page_size=ROWS) as simulator:
        yield simulator


@pytest.fixture(params=["file", "memory"])
def dst(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    folder = UPath(f"file://{tmp_path}/lake" if request.param == "file" else "memory://test-staging/lake")
    yield folder
    if request.param == "memory":
        folder.fs.store.clear()


def new_staging(dst: Any, source: Sequence[object] = SOURCE, **options: Any) -> Staging:
    return Staging(dst, NAME, source, **{"checkpoint_pages": 3, "resume_within": timedelta(days=1), **options})


def read(sim: Simulator, staging: Staging, *, endpoint: Any = "compact", **options: Any) -> list[dict[str, Any]]:
    """Return the rows that a try reads, some of them maybe from staging."""
    with (
        UnleashClient(sim.api_key, sim.base_url, page_concurrency=1, max_attempts=2, **options) as client,
        staging,
    ):
        with client.open_pages(DEVICE, START, END, endpoint=endpoint) as reader:
            pages = [reader.first, *staging.load(reader.snapshot)]
            pages += staging.keep(reader.iter_from(staging.next_page))
        staging.remove()
    return [record for page in pages for record in page.records()]


def fail_at(sim: Simulator, page: int, staging: Staging, **options: Any) -> None:
    """Let a try fail at this page; at the last page, when it is read again in the end."""
    sim.add_fault(Fault("404", page=page, after=page == PAGES, times=None))
    with pytest.raises(NotFoundError):
        read(sim, staging, **options)
    sim.clear_faults()
    sim.clear_requests()


def requested_pages(sim: Simulator) -> list[int]:
    return [int(request.path.rpartition("/")[2]) for request in sim.requests]


def files(dst: Any) -> list[str]:
    """Return the names of all files below the folder."""
    return sorted(str(path)[len(dst.path) + 1 :] for path in dst.fs.find(dst.path))


def assert_resumes(sim: Simulator, staging: Staging, dst: Any, *, resumed: int) -> None:
    """Check that a retry reads all rows, uses this many staged pages, and leaves none."""
    sim.clear_requests()
    assert read(sim, staging) == sim.rows(DEVICE, START, END)
    assert staging.resumed_pages == resumed
    assert requested_pages(sim) == [1, 12, *range(2 + resumed, 12), 1, 12]
    assert files(dst) == []


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failing", "staged"), [(2, 0), (4, 0), (5, 3), (8, 6), (10, 6), (11, 9), (12, 9)])
def test_a_retry_requests_the_ends_and_the_pages_after_the_last_whole_file(sim, dst, failing, staged):
    fail_at(sim, failing, new_staging(dst))
    assert [name.rpartition("/")[2] for name in files(dst)] == [f"{index:05}.pages" for index in range(staged // 3)]
    assert_resumes(sim, new_staging(dst), dst, resumed=staged)


@pytest.mark.parametrize(("checkpoint_pages", "staged"), [(1, 10), (2, 10), (11, 0), (12, 0), (200, 0), (None, 0)])
def test_an_extraction_of_more_pages_than_a_file_holds_is_staged(sim, dst, checkpoint_pages, staged):
    fail_at(sim, 12, new_staging(dst, checkpoint_pages=checkpoint_pages))
    assert_resumes(sim, new_staging(dst, checkpoint_pages=checkpoint_pages), dst, resumed=staged)


RAGGED = [{"timestamp": None, "count": index} if index % 3 else {"other": [index]} for index in range(2 * PAGES)]


@given(st.integers(1, 14), st.lists(st.integers(2, PAGES), max_size=4), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_rows_are_the_same_after_any_number_of_tries(checkpoint_pages, failing, changes_length, is_ragged):
    endpoint, rows = ("tableau", {DEVICE: RAGGED}) if is_ragged else ("compact", None)
    dst = UPath("memory://test-staging/property")
    with Simulator(fixed_pages=PAGES, page_size=2, rows=rows) as sim:
        try:
            for index, page in enumerate(failing):
                sim.add_fault(Fault("404", page=page, after=page == PAGES, times=None))
                with suppress(NotFoundError):  # a staged page is not requested
                    length = checkpoint_pages + index * changes_length
                    read(sim, new_staging(dst, checkpoint_pages=length), endpoint=endpoint)
                sim.clear_faults()
            staging = new_staging(dst, checkpoint_pages=checkpoint_pages)
            assert read(sim, staging, endpoint=endpoint) == (RAGGED if is_ragged else sim.rows(DEVICE, START, END))
            assert files(dst) == []
        finally:
            dst.fs.store.clear()


KILLED = """
    import os, signal, sys
    from datetime import timedelta
    from upath import UPath
    from airflow_provider_unleash.client import UnleashClient
    from airflow_provider_unleash.core.staging import Staging

    base_url, dst, source, device, start, end = sys.argv[1:]
    client = UnleashClient("simulator-key", base_url)
    staging = Staging(UPath(dst), "an-object", eval(source), checkpoint_pages=3, resume_within=timedelta(1))
    with staging, client.open_pages(device, int(start), int(end)) as reader:
        list(staging.load(reader.snapshot))
        for page in staging.keep(reader.iter_from(2)):
            if page.number == 9:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_retry_resumes_after_its_process_was_killed(sim, tmp_path):
    dst = UPath(f"file://{tmp_path}/lake")
    arguments = map(str, (sim.base_url, dst, SOURCE, DEVICE, START, END))
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *arguments]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert_resumes(sim, new_staging(dst), dst, resumed=6)


def test_two_tries_at_once_both_read_all_rows_and_leave_no_file(sim, dst):
    for _ in range(5):
        together = threading.Barrier(2)
        results: list[list[dict[str, Any]]] = []

        def one_try() -> None:
            together.wait()  # noqa: B023  # both end within the iteration
            results.append(read(sim, new_staging(dst, checkpoint_pages=2)))  # noqa: B023

        tries = [threading.Thread(target=one_try) for _ in range(2)]
        for thread in tries:
            thread.start()
        for thread in tries:
            thread.join()
        assert results == [sim.rows(DEVICE, START, END)] * 2
        assert files(dst) == []


# ---- not resuming --------------------------------------------------------------------------------

SNAPSHOT = Snapshot(5, b"first", b"last")
STAGED = [Page(number, 5, ("count",), [(number,)]) for number in range(2, 6)]


@contextmanager
def failing(staging: Staging, error: Exception | None = None) -> Iterator[Staging]:
    """Let the try of the block fail in the end, so that its files stay."""
    with suppress(OSError, SnapshotChangedError), staging:
        yield staging
        raise error or OSError("the store is down")


@pytest.mark.parametrize(
    "other",
    [
        *(replace(SNAPSHOT, total_pages=total) for total in (4, 6)),
        *(replace(SNAPSHOT, first=b"other"), replace(SNAPSHOT, last=b"other")),
        Snapshot(5, b"last", b"first"),
    ],
)
def test_staged_pages_are_used_only_for_an_equal_snapshot(dst, other):
    for snapshot, found in ((SNAPSHOT, []), (SNAPSHOT, STAGED[:2]), (other, [])):
        with failing(new_staging(dst, checkpoint_pages=2)) as staging:
            loaded = list(staging.load(snapshot))
            list(staging.keep(STAGED if snapshot is SNAPSHOT else []))
        assert loaded == found
        assert staging.resumed_pages == len(found)
        assert len(files(dst)) == (1 if snapshot is SNAPSHOT else 0)


@pytest.mark.parametrize("index", [0, 15, 65, 114])
def test_a_row_that_arrives_between_two_tries_comes_once_and_so_do_all_others(sim, dst, index):
    rows = sim.rows(DEVICE, START, END)[:-5]
    with Simulator(rows={DEVICE: rows}, page_size=ROWS) as before:
        fail_at(before, 8, new_staging(dst))
    late = [*rows[:index], {**rows[index], "count": 4711}, *rows[index:]]
    with Simulator(rows={DEVICE: late}, page_size=ROWS) as after:
        staging = new_staging(dst)
        assert read(after, staging) == late
    assert staging.resumed_pages == 0
    assert files(dst) == []


@pytest.mark.parametrize("position", range(len(SOURCE)))
def test_pages_of_another_source_are_removed_and_not_used(sim, dst, position):
    other = [*SOURCE]
    other[position] = "other"
    fail_at(sim, 8, new_staging(dst, other))
    assert len(files(dst)) == 2
    assert_resumes(sim, new_staging(dst), dst, resumed=0)


def test_pages_that_another_version_of_this_package_staged_are_not_used(sim, dst, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(staging_module, "__version__", "0.0.1")
        fail_at(sim, 8, new_staging(dst))
    staging = new_staging(dst)
    read(sim, staging)
    assert staging.resumed_pages == 0


def test_pages_older_than_resume_within_are_removed_and_not_used(sim, dst):
    fail_at(sim, 8, new_staging(dst))
    assert_resumes(sim, new_staging(dst, resume_within=timedelta(microseconds=1)), dst, resumed=0)


# ---- damage and failures -------------------------------------------------------------------------


def test_any_damage_to_staged_files_costs_requests_but_no_rows(sim, dst, caplog):
    rng = random.Random(0)
    expected = sim.rows(DEVICE, START, END)
    for damage in ["flip a bit"] * 30 + ["cut", "extend"] * 5:
        fail_at(sim, 11, new_staging(dst))
        path = f"{dst.path}/{rng.choice(files(dst))}"
        content = bytearray(dst.fs.cat(path))
        match damage:
            case "flip a bit":
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            case "cut":
                del content[rng.randrange(len(content)) :]
            case "extend":
                content += rng.randbytes(rng.randrange(1, 40))
        dst.fs.pipe(path, bytes(content))
        assert read(sim, new_staging(dst)) == expected
        assert files(dst) == []
    assert "Cannot use staged pages" in caplog.text


@pytest.mark.parametrize("is_header", [True, False])
def test_a_staged_gzip_bomb_takes_little_memory(tmp_path, is_header):
    dst = UPath(f"file://{tmp_path}/lake")
    with failing(new_staging(dst, ("a",), checkpoint_pages=2)) as staging:
        list(staging.load(Snapshot(9, b"", b"")))
        list(staging.keep([replace(page, total_pages=9) for page in STAGED]))
    [name, *_] = files(dst)
    header = gzip.decompress(dst.fs.cat(f"{dst.path}/{name}")).partition(b"\n")[0]
    start = b"" if is_header else gzip.compress(header + b"\n00000000 compact ")
    dst.fs.pipe(f"{dst.path}/{name}", start + 64 * gzip.compress(bytes(1 << 24)))
    assert dst.fs.size(f"{dst.path}/{name}") < 1 << 21
    tracemalloc.start()
    try:
        assert list(new_staging(dst, ("a",)).load(Snapshot(9, b"", b""))) == []
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_a_page_that_is_too_large_for_a_line_is_not_staged(dst, monkeypatch, caplog):
    monkeypatch.setattr(staging_module, "_MAX_LINE_BYTES", 1000)
    large = Page(3, 5, ("zone",), [("a" * 1000,)])
    with failing(new_staging(dst, checkpoint_pages=1)) as staging:
        list(staging.load(SNAPSHOT))
        assert list(staging.keep([STAGED[0], large, STAGED[2]])) == [STAGED[0], large, STAGED[2]]
    assert "Cannot stage pages" in caplog.text
    assert files(dst) == []


def test_pages_after_a_missing_file_are_requested(sim, dst):
    fail_at(sim, 11, new_staging(dst))
    dst.fs.rm(f"{dst.path}/{files(dst)[1]}")
    assert_resumes(sim, new_staging(dst), dst, resumed=3)


def test_files_that_are_removed_while_they_are_read_are_requested(sim, dst):
    fail_at(sim, 11, new_staging(dst))
    client = UnleashClient(sim.api_key, sim.base_url)
    with client, client.open_pages(DEVICE, START, END) as reader, new_staging(dst) as staging:
        numbers = []
        for page in staging.load(reader.snapshot):
            numbers.append(page.number)
            if page.number == 2:
                dst.fs.rm(dst.path, recursive=True)  # by another try, which has finished
        numbers += [page.number for page in staging.keep(reader.iter_from(staging.next_page))]
    assert numbers == list(range(2, PAGES + 1))


def test_a_store_without_room_for_staged_pages_fails_nothing(sim, tmp_path, caplog):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "_staging").write_text("a file in place of the folder")
    dst = UPath(f"file://{tmp_path}/lake")
    assert read(sim, new_staging(dst)) == sim.rows(DEVICE, START, END)
    assert caplog.text.count("Cannot stage pages") == 1
    assert files(dst) == ["_staging"]


@pytest.mark.parametrize("is_written", [False, True], ids=["full disk", "lost response"])
def test_a_store_that_fails_later_keeps_no_staged_page_and_fails_nothing(sim, monkeypatch, caplog, is_written):
    dst = UPath("memory://test-staging/lake")
    put_file, calls = type(dst.fs).put_file, []

    def put(fs: Any, source: Any, target: str) -> None:
        calls.append(files(dst))
        if len(calls) < 3 or is_written:
            put_file(fs, source, target)
        if len(calls) == 3:
            raise OSError("no space left on device")

    monkeypatch.setattr(type(dst.fs), "put_file", put)
    staging, left = new_staging(dst), None
    with UnleashClient(sim.api_key, sim.base_url) as client, client.open_pages(DEVICE, START, END) as reader, staging:
        assert list(staging.load(reader.snapshot)) == []
        numbers = []
        for page in staging.keep(reader.iter_from(2)):
            numbers.append(page.number)
            left = files(dst)
    assert numbers == list(range(2, PAGES + 1))
    assert [len(names) for names in calls] == [0, 1, 2]
    assert left == []
    assert caplog.text.count("Cannot stage pages") == 1


def test_files_that_cannot_be_removed_are_named_and_fail_nothing(sim, tmp_path, caplog, monkeypatch):
    dst = UPath(f"file://{tmp_path}/lake")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("may write, but not delete")

    monkeypatch.setattr(type(dst.fs), "rm", refuse)
    assert read(sim, new_staging(dst)) == sim.rows(DEVICE, START, END)
    assert re.search("Cannot remove .*_staging.*: may write, but not delete", caplog.text)


def test_a_task_timeout_while_files_are_removed_is_not_swallowed(sim, tmp_path, monkeypatch):
    dst = UPath(f"file://{tmp_path}/lake")

    timeouts = iter([KeyboardInterrupt])  # like Airflow's, not an Exception, and raised once

    def stop(*args: object, **kwargs: object) -> None:
        for timeout in timeouts:
            raise timeout

    monkeypatch.setattr(type(dst.fs), "rm", stop)
    with pytest.raises(KeyboardInterrupt):
        read(sim, new_staging(dst))


# ---- files ---------------------------------------------------------------------------------------


def test_nothing_is_left_after_success_or_a_changed_snapshot_not_even_a_folder(sim, tmp_path):
    dst = UPath(f"file://{tmp_path}/lake")
    read(sim, new_staging(dst))
    assert list((tmp_path / "lake").iterdir()) == []
    with failing(new_staging(dst), SnapshotChangedError("other rows")) as staging:
        assert list(staging.load(SNAPSHOT)) == []
        list(staging.keep(STAGED))
        assert files(dst) != []
    assert list((tmp_path / "lake").iterdir()) == []


@pytest.mark.parametrize("mask", [False, True])
def test_a_file_is_gzip_of_a_header_and_pages_without_masked_tokens_and_its_name_hides_the_device(sim, dst, mask):
    fail_at(sim, 8, new_staging(dst), mask_stream_tokens=mask)
    token = sim.rows(DEVICE, START, END)[0]["source_file_name"].partition("token=")[2]
    for index, name in enumerate(files(dst)):
        assert re.fullmatch(rf"_staging/[0-9a-f]{{16}}/0000{index}\.pages", name)
        content = gzip.decompress(dst.fs.cat(f"{dst.path}/{name}"))
        header, *pages = content.splitlines()
        assert json.loads(header)["snapshot"]["total_pages"] == PAGES
        assert len(pages) == 3
        assert (token.encode() in content) is not mask


@pytest.mark.parametrize("name", ["lake[1]", "lake*", "la?e"])
def test_a_folder_whose_name_is_a_glob_pattern_means_only_itself(sim, name):
    root = UPath("memory://test-staging")
    try:
        fail_at(sim, 8, new_staging(root / "lake1"))
        before = files(root)
        fail_at(sim, 8, new_staging(root / name))
        assert_resumes(sim, new_staging(root / name), root / name, resumed=6)
        assert files(root) == before
    finally:
        root.fs.store.clear()
