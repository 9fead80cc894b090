"""An object is published whole or not at all, whatever fails and whoever else writes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_provider_unleash.core.formats import FileFormat, Format
from airflow_provider_unleash.core.stores import check_dst, place_of, remove_tree, url_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from tests.support.pages import FORMATS, Place, page_of, read_file, read_records, record, sample, tree, write
from tests.support.python_processes import import_root

every_format = pytest.mark.parametrize(("file_format", "compression"), FORMATS)


class StopError(Exception):
    """Stops a write."""


def before_the_first_page(writer: Any) -> None:
    raise StopError


def after_many_pages(writer: Any) -> None:
    for number in range(20):
        writer.write_page(page_of(*[record(class_name=os.urandom(1000).hex())] * 5, number=number))
    raise StopError


def interrupted(writer: Any) -> None:
    writer.write_page(page_of(record()))
    raise KeyboardInterrupt


def exiting(writer: Any) -> None:
    writer.write_page(page_of(record()))
    raise SystemExit(1)


failing = pytest.mark.parametrize("fail", [before_the_first_page, after_many_pages, interrupted, exiting])


def write_and_fail(fail: Callable[[Any], None], path: Any, file_format: Any, compression: Any = None) -> None:
    with (
        pytest.raises((StopError, KeyboardInterrupt, SystemExit)),
        Format(file_format, compression).open(path) as writer,
    ):
        fail(writer)


@every_format
@failing
def test_a_failed_write_keeps_the_previous_object(file_format: str, compression: Any, fail: Any, folder: Any) -> None:
    path = folder / "device=W1" / "o"
    write(path, [sample("compact")], file_format, compression)
    before = tree(folder)
    write_and_fail(fail, path, file_format, compression)
    assert tree(folder) == before


@every_format
@failing
def test_a_failed_write_leaves_no_file_and_no_folder(
    file_format: str, compression: Any, fail: Any, folder: Any
) -> None:
    Path((folder / "mine").path).mkdir()
    write_and_fail(fail, folder / "lake" / "device=W1" / "start_date=2020-08-17" / "o", file_format, compression)
    assert tree(folder) == {"mine": None}


def test_a_failed_write_leaves_what_others_write_to_the_same_folders(folder: Any) -> None:
    path = folder / "device=W1" / "start_date=2020-08-17" / "o"

    def write_others_and_fail(writer: Any) -> None:
        write(folder / "device=W1" / "other", [], "jsonl")
        raise StopError

    write_and_fail(write_others_and_fail, path, "jsonl")
    assert tree(folder) == {"device=W1": None, "device=W1/other": b""}
    with Format("jsonl").open(path) as survivor:
        write_and_fail(before_the_first_page, path, "jsonl")
        survivor.write_page(page_of({"a": 1}))
    assert Path(path.path).read_bytes() == b'{"a":1}\n'


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """Make writes beyond this size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@every_format
@pytest.mark.parametrize("size", [0, 10, 4096])
def test_a_full_disk_keeps_the_previous_object(file_format: str, compression: Any, size: int, folder: Any) -> None:
    path = folder / "device=W1" / "o"
    write(path, [sample("compact")], file_format, compression)
    before = tree(folder)
    pages = [page_of(*(record(class_name=os.urandom(200).hex()) for _ in range(100))) for _ in range(3)]
    with limited_file_size(size), pytest.raises(OSError, match="too large"):
        write(path, pages, file_format, compression)
    assert tree(folder) == before


def test_a_path_that_cannot_be_written_is_an_error_that_changes_nothing(folder: Any) -> None:
    Path((folder / "file").path).write_text("mine")
    Path((folder / "folder").path).mkdir()
    Path((folder / "loop").path).symlink_to("loop")
    names = ("x" * 220, "x" * 300, f"new/{'x' * 300}/o", "file/o", "file/new/o", "folder", "loop/o")
    for name in names:
        with pytest.raises(InvalidArgumentError, match="or use another dst") as caught:
            write(folder / name, [], "jsonl")
        assert caught.value.argument == "dst"
        assert name.partition("/")[0] in str(caught.value.path)
    Path((folder / "loop").path).unlink()
    assert tree(folder) == {"file": b"mine", "folder": None}


def test_a_pipe_in_the_place_of_an_object_is_an_error_and_not_waited_for(folder: Any) -> None:
    os.mkfifo((folder / "o").path)
    with pytest.raises(InvalidArgumentError, match="it is not a file"):
        write(folder / "o", [], "jsonl")


@every_format
def test_readers_see_the_previous_object_until_the_new_one_is_complete(
    file_format: FileFormat, compression: Any, folder: Any
) -> None:
    path = folder / "o"
    write(path, [sample("metrics")] * 50, file_format, compression)
    before = Path(path.path).read_bytes()
    with Format(file_format, compression).open(path) as writer:
        for _ in range(3):
            writer.write_page(sample("metrics"))
            assert {name: data for name, data in tree(folder).items() if not name.startswith(".")} == {"o": before}
        assert writer.size == 0
    assert tree(folder).keys() == {"o"}
    assert len(read_file(path, file_format, compression)) == 12
    assert writer.size == Path(path.path).stat().st_size


KILLED = """
import sys, time
from upath import UPath
from airflow_provider_unleash.core.formats import FileFormat, Format
from airflow_provider_unleash.core.protocol import Page
with Format("jsonl").open(UPath(sys.argv[1])) as writer:
    for number in range(1, 100):
        writer.write_page(Page(number, 99, ("a",), [("x" * 1000,)] * 100))
    print("in the middle", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_previous_object_and_the_next_one_removes_its_file(folder: Any) -> None:
    path = folder / "device=W1" / "o.jsonl"
    write(path, [sample("compact")], "jsonl")
    before = tree(folder)
    command, environment = [sys.executable, "-c", KILLED, str(path)], import_root(dict(os.environ))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in the middle\n"
            write_and_fail(before_the_first_page, path, "jsonl")
            assert len(tree(folder)) == 3, "the file of a living writer stays"
        finally:
            process.send_signal(signal.SIGKILL)
    [abandoned] = tree(folder).keys() - before.keys()
    assert tree(folder)["device=W1/o.jsonl"] == before["device=W1/o.jsonl"]

    write(folder / "device=W1" / "other.jsonl", [], "jsonl")
    assert abandoned in tree(folder), "it belongs to another object"
    write(path, [sample("metrics")], "jsonl")
    assert tree(folder).keys() == {"device=W1", "device=W1/o.jsonl", "device=W1/other.jsonl"}
    assert len(read_file(path, "jsonl")) == 4


def test_files_with_similar_names_are_left_alone(folder: Any) -> None:
    for name in (".o.jsonl.swp", ".other.jsonl.0123.tmp", "o.jsonl.tmp", ".o.jsonl.tmp"):
        Path((folder / name).path).write_text("mine")
    before = tree(folder)
    write(folder / "o.jsonl", [], "jsonl")
    assert {**before, "o.jsonl": b""} == tree(folder)


@every_format
def test_two_writers_of_one_object_both_succeed_and_the_last_one_wins(
    file_format: FileFormat, compression: Any, folder: Any
) -> None:
    path = folder / "new" / "o"
    with Format(file_format, compression).open(path) as one:
        one.write_page(sample("compact"))
        write(path, [sample("metrics")], file_format, compression)
        assert len(read_file(path, file_format, compression)) == 4
    assert len(read_file(path, file_format, compression)) == 2
    assert tree(folder).keys() == {"new", "new/o"}
    assert one.size == Path(path.path).stat().st_size


def write_concurrently(paths: list[Any], fails: Callable[[int], bool]) -> list[BaseException]:
    """Write each object from six threads at once, some of which fail, and return unexpected errors."""
    start = threading.Barrier(6)
    errors: list[BaseException] = []

    def write_all(name: str) -> None:
        for turn, path in enumerate(paths):
            start.wait()
            try:
                with suppress(StopError), Format("jsonl").open(path) as writer:
                    writer.write_page(page_of(*[{"writer": name}] * 50))
                    if fails(turn):
                        raise StopError
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=write_all, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns so often that each step of one falls between two steps of another."""
    seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(seconds)


def test_many_concurrent_writers_leave_one_complete_object(folder: Any, eager_threads: None) -> None:
    path = folder / "new" / "deep" / "o"
    assert write_concurrently([path] * 200, lambda turn: turn % 3 == 0) == []
    assert tree(folder).keys() == {"new", "new/deep", "new/deep/o"}
    rows = read_file(path, "jsonl")
    assert (len(rows), len({row["writer"] for row in rows})) == (50, 1)


def test_concurrent_writers_that_fail_and_remove_their_folders_do_not_disturb_each_other(folder: Any) -> None:
    assert write_concurrently([folder / str(turn) / "deep" / "o" for turn in range(150)], lambda turn: True) == []
    assert set(tree(folder).values()) <= {None}


def test_a_rerun_keeps_mode_and_owner_of_a_file(folder: Any) -> None:
    target = Path((folder / "o").path)
    write(folder / "o", [], "jsonl")
    new = target.stat()
    if os.getuid() == 0:
        os.chown(target, 12345, 23456)
    target.chmod(0o640)
    before = target.stat()
    write(folder / "o", [page_of({"a": 1})], "jsonl")
    after = target.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert target.read_bytes() == b'{"a":1}\n'
    assert new.st_mode & 0o777 == 0o666 & ~umask(), "a new file has the usual mode"


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_file_is_never_readable_by_more_users_than_the_one_it_replaces(folder: Any) -> None:
    write(folder / "o", [], "jsonl")
    Path((folder / "o").path).chmod(0o600)
    with Format("jsonl").open(folder / "o"):
        assert {path.stat().st_mode & 0o777 for path in Path(folder.path).iterdir()} == {0o600}


@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_stays_one_and_its_target_is_replaced(exists: bool, folder: Any) -> None:
    link, target = Path((folder / "lake" / "o").path), Path((folder / "disk" / "data").path)
    for path in (link, target):
        path.parent.mkdir()
    link.symlink_to("../disk/data")
    if exists:
        target.write_text("previous")
    write_and_fail(after_many_pages, folder / "lake" / "o", "jsonl")
    assert target.exists() == exists
    write(folder / "lake" / "o", [page_of({"a": 1})], "jsonl")
    assert (link.is_symlink(), target.is_symlink()) == (True, False)
    assert target.read_bytes() == b'{"a":1}\n'
    assert len(tree(folder)) == 4, "no temporary file"


def test_a_success_means_that_file_and_folders_are_flushed_to_disk(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def record_flush(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append(str(path.relative_to(Path(folder.path).resolve())) if path.is_dir() else "file")

    monkeypatch.setattr(os, "fsync", record_flush)
    write(folder / "new" / "deep" / "o", [], "jsonl")
    assert flushed[0] == "file", "before it is renamed"
    assert set(flushed[1:]) == {"new/deep", "new", "."}
    flushed.clear()
    write(folder / "new" / "deep" / "o", [], "jsonl")
    assert flushed == ["file", "new/deep"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_only_a_file_system_that_cannot_flush_may_fail_to(
    code: int, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    write(folder / "o", [], "jsonl")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="nput/output error") if code == errno.EIO else nullcontext():
        write(folder / "o", [page_of({"a": 1})], "jsonl")
    assert tree(folder) == {"o": b"" if code == errno.EIO else b'{"a":1}\n'}


def test_without_file_locks_an_abandoned_file_is_removed_after_a_day(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    now = time.time()
    for name, hours in (("old", 25), ("young", 23)):
        path = Path((folder / f".o.{name}.tmp").path)
        path.write_text("half")
        os.utime(path, (now, now - hours * 3600))
    write(folder / "o", [], "jsonl")
    assert tree(folder) == {"o": b"", ".o.young.tmp": b"half"}


@pytest.fixture
def in_memory() -> Iterator[Any]:
    """Return a path in a store that publishes whatever is closed, as adlfs does."""
    path = UPath("memory://test-stores/o")
    yield path
    path.fs.store.clear()


@every_format
def test_an_object_in_another_store_is_read_back_unchanged(file_format: Any, compression: Any, in_memory: Any) -> None:
    assert not Format(file_format, compression).has_rows(in_memory)
    size = write(in_memory, [sample("compact")], file_format, compression)
    assert size == len(in_memory.fs.cat(in_memory.path))
    assert Format(file_format, compression).has_rows(in_memory)
    if not compression:
        assert len(read_records(in_memory.fs.cat(in_memory.path), file_format)) == 2


@failing
def test_a_failed_write_to_another_store_keeps_the_previous_object(fail: Any, in_memory: Any) -> None:
    write_and_fail(fail, in_memory, "jsonl")
    assert not in_memory.exists()
    in_memory.fs.pipe(in_memory.path, b"previous")
    write_and_fail(fail, in_memory, "jsonl")
    assert in_memory.fs.cat(in_memory.path) == b"previous"


@pytest.mark.parametrize("url", ["file://{}", "memory://test-stores"])
def test_a_tree_is_removed_and_its_neighbors_stay(url: str, tmp_path: Path) -> None:
    root = UPath(url.format(tmp_path))
    try:
        for name in ("a*/1", "a*/2/3", "ab/1"):
            write(root / name, [], "jsonl")
        remove_tree(root / "a*")
        remove_tree(root / "missing")
        assert [path.rpartition("/")[0].endswith("/ab") for path in root.fs.find(root.path)] == [True]
    finally:
        remove_tree(root / "ab")


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "local://{}"])
def test_a_local_object_is_a_file_however_its_path_is_spelled(spelling: str, tmp_path: Path) -> None:
    path = UPath(spelling.format(tmp_path)) / "new" / "o.jsonl"
    write(path, [page_of({"a": 1})], "jsonl")
    assert (tmp_path / "new" / "o.jsonl").read_bytes() == b'{"a":1}\n'
    assert Format("jsonl").has_rows(path)
    assert url_of(path) == f"file://{tmp_path}/new/o.jsonl"


@pytest.mark.parametrize(
    ("place", "url"),
    [
        *((Place("/data/x", protocol), "file:///data/x") for protocol in ("file", "", "local")),
        *((Place("lake/x", protocol), "az://lake/x") for protocol in ("abfs", "abfss", "adl")),
        *((Place("lake/x", protocol), "gs://lake/x") for protocol in ("gs", "gcs")),
        *((Place("lake/device=a%20b/x", protocol), "s3://lake/device=a%20b/x") for protocol in ("s3", "s3a")),
    ],
)
def test_a_url_has_no_connection(place: Any, url: str) -> None:
    assert url_of(place) == url


@pytest.mark.parametrize(
    ("dst", "problem"),
    [
        *((dst, "is not a URL or absolute path") for dst in ("None", "", "lake", "//lake", "file://x", "file:////x")),
        *(("s3://lake/s3://x", "contains two URLs"), ("s3:///x", "has no bucket"), ("gs://conn@/x", "has no bucket")),
        *((f"s3://aws@{name}/x", "has a bucket with characters") for name in ("my lake", "lake!", "{lake}", "lake:x")),
        *((dst, "dot segment") for dst in ("/lake/../x", "s3://lake/./x", "s3://lake/%2e%2e/x", "s3://..@lake/x")),
        *((dst, "white space") for dst in ("s3://lake/x ", "/lake\n", "/lake\u200b/x")),
    ],
)
def test_a_dst_that_could_lead_elsewhere_is_an_error(dst: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        check_dst(dst)
    assert caught.value.argument == "dst"


@pytest.mark.parametrize(
    "dst",
    [f"{scheme}u:SECRET@lake/x" for scheme in ("s3://", "ftp://", "s3:/", "s3:", "S3://")] + ["gs://u:SEC/SECRET@lake"],
)
def test_a_password_in_a_dst_is_an_error_that_does_not_show_it(dst: str) -> None:
    with pytest.raises(InvalidArgumentError, match="dst") as caught:
        check_dst(dst)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "spellings",
    [
        ("/data/lake", "file:///data/lake/", "local:///data//lake", "FILE:///data/lake"),
        ("s3://lake/x", "s3://aws_default@lake/x/", "s3a://other@lake/x"),
        ("abfs://lake/x", "abfss://wasb_default@lake/x", "az://lake/x"),
    ],
)
def test_spellings_of_one_folder_are_the_same_place(spellings: tuple[str, ...]) -> None:
    for dst in spellings:
        check_dst(dst)
    assert len(set(map(place_of, spellings))) == 1
