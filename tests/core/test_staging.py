"""Pages that are put aside, so that a retry goes on where the last try ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import staging as staging_module
from airflow_provider_unleash.core.protocol import Page, Response, parse_page, render_page
from airflow_provider_unleash.core.staging import Staging, check_checkpoint_pages
from airflow_provider_unleash.core.stores import publish
from airflow_provider_unleash.exceptions import InvalidArgumentError, NotFoundError
from airflow_provider_unleash.simulator import Fault, Simulator

DEVICE = "Wb8fabc31378ce07"
START, END = 1_768_176_000_000, 1_768_262_400_000
PAGES, ROWS = 12, 10
NAME = f"device={DEVICE}/start_date=2026-01-12/20260112T000000Z_20260113T000000Z.parquet"
A_DAY = timedelta(days=1)

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


def staging_of(dst: Any, source: Sequence[object] = (DEVICE, START, END), name: str = NAME, **options: Any) -> Staging:
    return Staging(dst, name, source, **{"checkpoint_pages": 3, "resume_within": A_DAY, **options})


def read(sim: Simulator, staging: Staging, **options: Any) -> list[Page]:
    """Return the pages of a try."""
    with (
        UnleashClient(sim.api_key, sim.base_url, page_concurrency=1, max_attempts=2, **options) as client,
        closing(client.iter_pages(DEVICE, START, END, resume=staging.resume)) as asked,
        closing(staging.keep(asked)) as pages,
    ):
        return list(pages)


def fail_at(sim: Simulator, page: int, staging: Staging, **options: Any) -> None:
    """Have a try that ends at that page."""
    sim.add_fault(Fault("404", page=page, times=None))
    with pytest.raises(NotFoundError):
        read(sim, staging, **options)
    sim.clear_faults()
    sim.clear_requests()


def asked_pages(sim: Simulator) -> list[int]:
    return [int(request.path.rpartition("/")[2]) for request in sim.requests]


def files(dst: Any) -> list[str]:
    """Return the names of all files under the folder, from there on."""
    return sorted(str(path)[len(dst.path) + 1 :] for path in dst.fs.find(dst.path))


def runs(dst: Any) -> list[str]:
    return [name.rpartition("/")[2] for name in files(dst)]


def rows_of(pages: Sequence[Page]) -> list[dict[str, Any]]:
    return [record for page in pages for record in page.records()]


# ---- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failing", "kept", "asked"),
    [
        (2, 0, [1, 12, *range(2, 12), 1, 12]),
        (3, 0, [1, 12, *range(2, 12), 1, 12]),
        (4, 3, [1, 12, *range(4, 12), 1, 12]),
        (8, 6, [1, 12, *range(7, 12), 1, 12]),
        (12, 9, [1, 12, 10, 11, 1, 12]),
    ],
)
def test_a_retry_asks_for_the_first_page_and_those_after_the_last_whole_run(sim, dst, failing, kept, asked):
    fail_at(sim, failing, staging_of(dst))
    assert runs(dst) == [f"{index:05}.pages" for index in range(kept // 3)]
    retry = staging_of(dst)
    pages = read(sim, retry)
    assert asked_pages(sim) == asked
    assert rows_of(pages) == sim.rows(DEVICE, START, END)
    assert retry.resumed_pages == max(0, kept - 1)


def test_the_pages_are_the_same_wherever_they_come_from(sim, dst):
    fail_at(sim, 11, staging_of(dst))
    assert read(sim, staging_of(dst)) == read(sim, staging_of(dst / "elsewhere"))


def test_a_try_that_has_all_pages_still_looks_whether_the_ends_have_changed(sim, dst):
    read(sim, staging_of(dst))
    sim.clear_requests()
    pages = read(sim, staging_of(dst))
    assert asked_pages(sim) == [1, 12, 1, 12]
    assert rows_of(pages) == sim.rows(DEVICE, START, END)


def test_each_of_many_tries_goes_on_where_the_last_one_ended(sim, dst):
    for failing in (5, 8, 8, 11):
        fail_at(sim, failing, staging_of(dst))
    read(sim, staging_of(dst))
    assert asked_pages(sim) == [1, 12, 10, 11, 1, 12]


@pytest.mark.parametrize("checkpoint_pages", [12, 13, 200])
def test_an_extraction_of_no_more_pages_than_a_run_has_puts_none_aside(sim, dst, checkpoint_pages):
    read(sim, staging_of(dst, checkpoint_pages=checkpoint_pages))
    assert files(dst) == []


@pytest.mark.parametrize(("first", "then"), [(3, 1), (3, 5), (1, 3), (2, 200)])
def test_a_retry_with_runs_of_another_length_goes_on_just_so(sim, dst, first, then):
    fail_at(sim, 8, staging_of(dst, checkpoint_pages=first))
    pages = read(sim, staging_of(dst, checkpoint_pages=then))
    whole = 7 // first * first
    assert asked_pages(sim) == [1, 12, *range(whole + 1, 12), 1, 12]
    assert rows_of(pages) == sim.rows(DEVICE, START, END)
    sim.clear_requests()
    assert rows_of(read(sim, staging_of(dst, checkpoint_pages=4))) == sim.rows(DEVICE, START, END)


@given(st.integers(1, 14), st.lists(st.integers(2, PAGES), max_size=4), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_rows_are_the_same_however_many_tries_it_takes(checkpoint_pages, failing, changes_length):
    with Simulator(fixed_pages=PAGES, page_size=2) as sim:
        dst = UPath("memory://test-staging/property")
        try:
            for index, page in enumerate(failing):
                sim.add_fault(Fault("404", page=page, times=None))
                with suppress(NotFoundError):  # a page that was put aside already is not asked for
                    read(sim, staging_of(dst, checkpoint_pages=checkpoint_pages + index * changes_length))
                sim.clear_faults()
            staging = staging_of(dst, checkpoint_pages=checkpoint_pages)
            assert rows_of(read(sim, staging)) == sim.rows(DEVICE, START, END)
            staging.remove()
            assert files(dst) == []
        finally:
            dst.fs.store.clear()


@pytest.mark.parametrize("options", [{}, {"nulls": True}, {"new_key": "confidence", "new_key_page": 2}])
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_what_is_put_aside_reads_as_what_came(endpoint, options):
    with (
        Simulator(page_size=20, reorder_keys=True, **options) as sim,
        UnleashClient(sim.api_key, sim.base_url) as client,
    ):
        for page in client.iter_pages(DEVICE, START, START + 3_600_000 * 12, endpoint=endpoint):
            body, as_endpoint = render_page(page)
            again = parse_page(Response("", 200, {}, body), page.number, as_endpoint)
            assert again == page
            assert again.records() == page.records()


@pytest.mark.parametrize(
    "body",
    [
        b'{"total_num_pages": 2, "data": [{"a": 1}, {"b": null, "a": 1.0}, {}]}',
        b'{"total_num_pages": 2, "data": [{"a": [1, {"b": 2}], "c": 18446744073709551616}]}',
        '{"total_num_pages": 2, "data": [{"ä\\n": "\\ud83d\\ude00\\u0000", "b": 1e300}]}'.encode(),
        b'{"total_num_pages": 0, "data": []}',
    ],
    ids=["ragged", "nested", "texts", "empty"],
)
def test_rows_of_any_form_read_as_what_came(body):
    page = parse_page(Response("", 200, {}, body), 1, "tableau")
    rendered, endpoint = render_page(page)
    assert parse_page(Response("", 200, {}, rendered), 1, endpoint) == page


# ---- not going on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        ("W022abc5be35bb72", START, END),
        (DEVICE, START - 1, END),
        (DEVICE, START, END, "tableau"),
        (DEVICE, START, END, True),
    ],
)
def test_pages_of_another_source_are_removed_and_not_used(sim, dst, source):
    fail_at(sim, 8, staging_of(dst, source))
    staging = staging_of(dst)
    pages = read(sim, staging)
    assert asked_pages(sim) == [1, 12, *range(2, 12), 1, 12]
    assert rows_of(pages) == sim.rows(DEVICE, START, END)
    staging.remove()
    assert files(dst) == []


def test_pages_that_another_version_put_aside_are_removed_and_not_used(sim, dst, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(staging_module, "__version__", "0.0.1")
        fail_at(sim, 8, staging_of(dst))
    staging = staging_of(dst)
    read(sim, staging)
    assert asked_pages(sim) == [1, 12, *range(2, 12), 1, 12]
    staging.remove()
    assert files(dst) == []


@pytest.mark.parametrize("options", [{"seed": 7}, {"fixed_pages": PAGES + 1}], ids=["rows", "pages"])
def test_pages_are_not_used_after_the_first_page_or_their_number_has_changed(sim, dst, options):
    fail_at(sim, 8, staging_of(dst))
    with Simulator(**{"fixed_pages": PAGES, "page_size": ROWS, **options}) as changed:
        staging = staging_of(dst)
        pages = read(changed, staging)
        assert rows_of(pages) == changed.rows(DEVICE, START, END)
    assert staging.resumed_pages == 0
    staging.remove()
    assert files(dst) == []


def test_a_last_page_that_has_changed_since_it_was_put_aside_is_found(sim, dst):
    read(sim, staging_of(dst))
    rows = sim.rows(DEVICE, START, END)
    rows[-1] = {**rows[-1], "count": 999}
    with Simulator(rows={DEVICE: rows}, page_size=ROWS) as changed:
        staging = staging_of(dst)
        assert rows_of(read(changed, staging)) == rows
        assert staging.resumed_pages == 0
        assert rows_of(read(changed, staging_of(dst))) == rows


@pytest.mark.parametrize("index", [15, 35, 65, 105])
def test_a_row_that_comes_between_two_tries_is_there_once_like_all_others(sim, dst, index):
    """Neither the number of pages nor the first page tells of it."""
    rows = sim.rows(DEVICE, START, END)[:-5]
    with Simulator(rows={DEVICE: rows}, page_size=ROWS) as before:
        fail_at(before, 8, staging_of(dst))
        port = before.port
    late = [*rows[:index], {**rows[index], "count": 4711}, *rows[index:]]
    with Simulator(port, rows={DEVICE: late}, page_size=ROWS) as after, staging_of(dst) as staging:
        assert rows_of(read(after, staging)) == late
    assert staging.resumed_pages == 0
    assert files(dst) == []


@pytest.mark.parametrize(("age", "resumed"), [(3500, 5), (3700, 0)])
def test_pages_that_are_too_old_are_removed_and_not_used(sim, dst, monkeypatch, age, resumed):
    with monkeypatch.context() as patch:
        now = time.time()
        patch.setattr(staging_module.time, "time", lambda: now - age)
        fail_at(sim, 8, staging_of(dst))
    staging = staging_of(dst, resume_within=timedelta(hours=1))
    pages = read(sim, staging)
    assert staging.resumed_pages == resumed
    assert rows_of(pages) == sim.rows(DEVICE, START, END)


def test_only_the_runs_before_the_first_that_is_too_old_are_used(sim, dst):
    fail_at(sim, 11, staging_of(dst))
    [_, second, third] = [f"{dst.path}/{name}" for name in files(dst)]
    content = bytearray(dst.fs.cat(second))
    content[len(staging_module._MAGIC) : len(staging_module._MAGIC) + 8] = b"\0" * 8
    dst.fs.pipe(second, bytes(content))
    pages = read(sim, staging_of(dst))
    assert asked_pages(sim) == [1, 12, *range(4, 12), 1, 12]
    assert rows_of(pages) == sim.rows(DEVICE, START, END)
    assert dst.fs.exists(third)  # written anew


def test_other_objects_keep_what_they_have_put_aside(sim, dst):
    others = [NAME.replace("parquet", "csv"), NAME.replace(DEVICE, "W1"), NAME.replace("20260113", "20260114")]
    for name in others:
        fail_at(sim, 5, staging_of(dst, name=name))
    before = files(dst)
    staging = staging_of(dst)
    fail_at(sim, 8, staging)
    read(sim, staging_of(dst))
    staging.remove()
    assert files(dst) == before
    assert len(before) == len(others)


# ---- damage ------------------------------------------------------------------------------------


def test_any_damage_to_what_was_put_aside_costs_requests_only(sim, dst, caplog):
    rng = random.Random(0)
    expected = sim.rows(DEVICE, START, END)
    for _ in range(25):
        fail_at(sim, 11, staging_of(dst))
        path = f"{dst.path}/{rng.choice(files(dst))}"
        content = bytearray(dst.fs.cat(path))
        match rng.randrange(3):
            case 0:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            case 1:
                del content[rng.randrange(len(content)) :]
            case 2:
                content += rng.randbytes(rng.randrange(1, 40))
        dst.fs.pipe(path, bytes(content))
        staging = staging_of(dst)
        assert rows_of(read(sim, staging)) == expected
        staging.remove()
        assert files(dst) == []
    assert "is not used" in caplog.text


def test_what_is_removed_while_it_is_read_is_asked_for(sim, dst):
    fail_at(sim, 11, staging_of(dst))
    staging = staging_of(dst)
    with UnleashClient(sim.api_key, sim.base_url) as client:
        pages = []
        for page in staging.keep(client.iter_pages(DEVICE, START, END, resume=staging.resume)):
            pages.append(page)
            if page.number == 2:
                dst.fs.rm(dst.path, recursive=True)  # by another try, which is done
    assert rows_of(pages) == sim.rows(DEVICE, START, END)


def test_a_gap_between_runs_is_filled_by_asking(sim, dst):
    fail_at(sim, 11, staging_of(dst))
    dst.fs.rm(f"{dst.path}/{files(dst)[1]}")
    pages = read(sim, staging_of(dst))
    assert asked_pages(sim) == [1, 12, *range(4, 12), 1, 12]
    assert rows_of(pages) == sim.rows(DEVICE, START, END)


def test_a_store_that_takes_nothing_fails_nothing(sim, tmp_path, caplog):
    dst = UPath(f"file://{tmp_path}/lake")
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "_staging").write_text("a file where the folder should be")
    staging = staging_of(dst)
    assert rows_of(read(sim, staging)) == sim.rows(DEVICE, START, END)
    staging.remove()
    assert caplog.text.count("No more pages are put aside") == 1
    assert files(dst) == ["_staging"]


def test_what_cannot_be_removed_is_named_and_fails_nothing(sim, tmp_path, caplog, monkeypatch):
    dst = UPath(f"file://{tmp_path}/lake")
    staging = staging_of(dst)
    read(sim, staging)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("may write, but not delete")

    monkeypatch.setattr(type(dst.fs), "rm", refuse)
    staging.remove()
    assert "is left behind and can be removed: may write, but not delete" in caplog.text


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_the_end_of_a_task_is_not_taken_for_a_store_that_may_recover(sim, tmp_path, monkeypatch, end):
    """Airflow ends a task that takes too long by an exception at whatever it is doing, once."""
    dst = UPath(f"file://{tmp_path}/lake")
    staging = staging_of(dst)
    read(sim, staging)

    def stop(*args: object, **kwargs: object) -> None:
        raise end

    monkeypatch.setattr(type(dst.fs), "rm", stop)
    with pytest.raises(end):
        staging.remove()


def test_a_full_disk_is_not_kept_full(sim, tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("no space left")

    spools = []
    spool = tempfile.SpooledTemporaryFile
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda *args: spools.append(spool(*args)) or spools[-1])
    monkeypatch.setattr(staging_module, "publish", fail)
    staging = staging_of(UPath(f"file://{tmp_path}/lake"))
    with UnleashClient(sim.api_key, sim.base_url) as client:
        for page in staging.keep(client.iter_pages(DEVICE, START, END, resume=staging.resume)):
            assert page.number < 3 or [one.closed for one in spools] == [True]


def test_what_was_put_aside_is_removed_where_the_store_never_said_that_it_took_it(sim, dst, monkeypatch):
    @contextmanager
    def publish_and_fail(path: Any) -> Iterator[Any]:
        with publish(path) as stream:
            yield stream
        raise OSError("the answer was lost")

    monkeypatch.setattr(staging_module, "publish", publish_and_fail)
    with staging_of(dst) as staging:
        read(sim, staging)
        assert len(files(dst)) == 1
    assert files(dst) == []


@pytest.mark.parametrize("name", ["lake[1]", "lake*", "la?e"])
def test_a_folder_whose_name_is_a_pattern_too_is_that_one_only(sim, name):
    root = UPath("memory://test-staging")
    try:
        for folder in (root / name, root / "lake1"):
            fail_at(sim, 8, staging_of(folder))
        before = files(root / "lake1")
        with staging_of(root / name) as staging:
            read(sim, staging)
        assert staging.resumed_pages == 5
        assert files(root) == [f"lake1/{file}" for file in before]
    finally:
        root.fs.store.clear()


# ---- nothing is left ---------------------------------------------------------------------------


def test_nothing_is_left_once_it_is_removed_not_even_a_folder(sim, tmp_path):
    dst = UPath(f"file://{tmp_path}/lake")
    staging = staging_of(dst)
    read(sim, staging)
    assert len(files(dst)) == 4
    staging.remove()
    assert list((tmp_path / "lake").iterdir()) == []


def test_a_try_that_ends_in_the_middle_of_a_run_leaves_whole_runs_only(sim, dst):
    staging = staging_of(dst)
    with UnleashClient(sim.api_key, sim.base_url) as client:
        pages = staging.keep(client.iter_pages(DEVICE, START, END, resume=staging.resume))
        for page in pages:
            if page.number == 5:
                break
        pages.close()
    assert runs(dst) == ["00000.pages"]


def test_names_are_no_names_of_data(sim, dst):
    fail_at(sim, 8, staging_of(dst))
    for name in files(dst):
        staging, folder, file = name.split("/")
        assert staging.startswith("_")
        assert file.endswith(".pages")
        assert DEVICE not in folder


def test_masked_tokens_are_not_put_aside(sim, dst):
    fail_at(sim, 8, staging_of(dst), mask_stream_tokens=True)
    tokens = {str(row["source_file_name"]).partition("token=")[2] for row in sim.rows(DEVICE, START, END)} - {""}
    assert tokens
    for name in files(dst):
        content = dst.fs.cat(f"{dst.path}/{name}")
        texts = [content, *_unpacked(content)]
        assert len(texts) == 4
        assert not [token for token in tokens for text in texts if token.encode() in text]


def _unpacked(content: bytes) -> list[bytes]:
    """Return the bodies of a file of pages."""
    start = b"\x1f\x8b\x08"
    return [zlib.decompressobj(wbits=31).decompress(start + piece) for piece in content.split(start)[1:]]


# ---- two at once, and ends that nobody chose ---------------------------------------------------


@pytest.mark.parametrize("repetition", range(5))
def test_two_tries_at_once_both_read_all_and_leave_nothing(sim, dst, repetition):
    together = threading.Barrier(2)
    results: list[list[dict[str, Any]]] = []

    def one_try() -> None:
        staging = staging_of(dst, checkpoint_pages=2)
        together.wait()
        results.append(rows_of(read(sim, staging)))
        staging.remove()

    tries = [threading.Thread(target=one_try) for _ in range(2)]
    for thread in tries:
        thread.start()
    for thread in tries:
        thread.join()
    assert results == [sim.rows(DEVICE, START, END)] * 2
    assert files(dst) == []


KILLED = """
    import os, signal, sys
    from datetime import timedelta
    from upath import UPath
    from airflow_provider_unleash.client import UnleashClient
    from airflow_provider_unleash.staging import Staging

    base_url, dst, name, at = sys.argv[1:]
    staging = Staging(UPath(dst), name, [{device!r}, {start}, {end}], checkpoint_pages=3, resume_within=timedelta(1))
    client = UnleashClient("simulator-key", base_url)
    for page in staging.keep(client.iter_pages({device!r}, {start}, {end}, resume=staging.resume)):
        if page.number == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("at", "asked"), [(5, [1, 12, *range(4, 12), 1, 12]), (12, [1, 12, 1, 12])])
def test_what_a_killed_process_put_aside_is_used(sim, tmp_path, at, asked):
    dst = f"file://{tmp_path}/lake"
    script = textwrap.dedent(KILLED.format(device=DEVICE, start=START, end=END))
    killed = subprocess.run([sys.executable, "-c", script, sim.base_url, dst, NAME, str(at)], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    sim.clear_requests()
    staging = staging_of(UPath(dst))
    pages = read(sim, staging)
    assert asked_pages(sim) == asked
    assert rows_of(pages) == sim.rows(DEVICE, START, END)
    staging.remove()
    assert files(UPath(dst)) == []


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "200"])
def test_a_number_of_pages_that_is_none_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="checkpoint_pages"):
        check_checkpoint_pages(value)


@pytest.mark.parametrize("value", [1, 200, None])
def test_a_number_of_pages_or_none_is_taken(value):
    check_checkpoint_pages(value)
