"""
Tests for every object store: an object is published whole, or the previous one stays.

The tests of a store inherit :class:`StoreCases` and :class:`ProcessCases` and have a fixture ``lake``, an empty store.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import pytest

from airflow_provider_unleash.core.formats import Format
from airflow_provider_unleash.core.names import MANIFESTS
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.delta import open_delta_table
from airflow_provider_unleash.exceptions import EmptyReplacementError, ServerError
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.not_retried import not_retried
from tests.support.pages import read_records
from tests.support.python_processes import import_root
from tests.support.sample_day import DAY_END, DAY_START, STREET, make_context
from tests.support.secret_search import leaks
from tests.support.waiting import wait_until

one_airflow = pytest.mark.one_airflow

CONN_ID = "lake_conn"
NAME = f"device={STREET}/start_date=2026-01-12/20260112T000000Z_20260113T000000Z"
FORMATS = ("jsonl", "json", "csv", "parquet")
# A process ends within a few seconds, but a busy machine needs longer.
SECONDS = 300


class Store(Protocol):
    """
    A store seen through its own client, which is an independent reader; all names are relative to ``dst``.

    :ivar scheme: scheme of the URLs for Airflow.
    :ivar url_scheme: scheme of the URLs in the summary, for other readers.
    :ivar endpoint: address of the store.
    """

    scheme: str
    url_scheme: str
    endpoint: str

    def connection(self, endpoint: str) -> dict[str, Any]:
        """Return the fields of an Airflow connection to the store at this address."""

    def names(self) -> list[str]:
        """Return the names of all objects."""

    def read(self, name: str) -> bytes: ...

    def put(self, name: str, body: bytes) -> None: ...

    def leftovers(self) -> list[str]:
        """Return the names of incomplete uploads, which no reader sees."""

    def clear(self) -> None:
        """Remove all objects."""


def names_in(lake: Store) -> list[str]:
    """Return the names of all objects except manifests."""
    return [name for name in lake.names() if not name.startswith(f"{MANIFESTS}/")]


def objects(lake: Store) -> dict[str, bytes]:
    return {name: lake.read(name) for name in names_in(lake)}


def dst(lake: Store) -> str:
    return f"{lake.scheme}://{CONN_ID}@lake/unleash"


def secrets_of(lake: Store) -> list[str]:
    """Return the secrets of the connection, also those in a connection string."""
    fields = lake.connection(lake.endpoint)
    text = str(fields.get("extra", {}).get("connection_string", ""))
    parts = [part.partition("=")[2] for part in text.split(";") if part.startswith("AccountKey=")]
    return [secret for secret in (fields.get("password"), *parts) if secret]


def path_of(lake: Store, name: str) -> Any:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    return ObjectStoragePath(dst(lake)) / name


def extract(lake: Store, **arguments: Any) -> Any:
    arguments = {"device_id": STREET, "dst": dst(lake), **arguments}
    return UnleashToObjectStorageOperator(task_id="extract", **arguments).execute(make_context())


def in_window(sim: Simulator, device_id: str = STREET) -> list[dict[str, Any]]:
    return sim.rows(device_id, DAY_START, DAY_END - 1)


def page_of(rows: int, text: str = "x") -> Page:
    return Page(1, 1, ("class_name", "source_file_name"), [("person", text) for _ in range(rows)])


def write_megabytes(lake: Store, name: str, number: int) -> int:
    """Write an object of this many megabytes and return its size."""
    with Format("jsonl").open(path_of(lake, name)) as writer:
        for _ in range(number):
            writer.write_page(page_of(1000, "x" * 1000))
    return writer.size


_EXTRACT = """
import sys
from datetime import timezone
from types import SimpleNamespace
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator

operator = UnleashToObjectStorageOperator(
    task_id="extract", dst=sys.argv[1], device_id=sys.argv[2], start="2026-01-12T00:00:00Z", end="2026-01-13T00:00:00Z"
)
operator.execute({"dag": SimpleNamespace(timezone=timezone.utc), "dag_run": SimpleNamespace(run_type="manual")})
"""

_WRITE = """
import sys
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow_provider_unleash.core.formats import Format
from airflow_provider_unleash.core.protocol import Page

page = Page(1, 1, ("source_file_name",), [("x" * 1000,) for _ in range(1000)])
with Format("jsonl").open(ObjectStoragePath(sys.argv[1]) / "large.jsonl") as writer:
    for _ in range(int(sys.argv[2])):
        writer.write_page(page)
    LAST
"""


@contextmanager
def running(program: str, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in this environment; if it still runs when the block ends, kill it."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = import_root({**os.environ, **variables})
    # Not a pipe, because a full one would block the program.
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


class StallingProxy:
    """
    A proxy that passes on this many bytes and then stalls.

    :ivar stalled: set when it stalls.
    """

    def __init__(self, endpoint: str, after: int) -> None:
        self._target = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
        self._left = after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.stalled = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> StallingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._left -= len(data)
                if self._left < 0:
                    self.stalled.set()
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class _Connected:
    @pytest.fixture(autouse=True)
    def _connection(self, lake: Store, connect: Callable[..., None], airflow_home: object) -> None:
        connect(conn_id=CONN_ID, **lake.connection(lake.endpoint))


class StoreCases(_Connected):
    """Tests within this process; they take seconds."""

    @pytest.mark.parametrize(("file_format", "compression"), [*product(FORMATS[:3], (None, "gzip")), ("parquet", None)])
    def test_an_object_has_the_rows_of_the_api_and_the_summary_names_it(
        self, serve: Callable[..., Simulator], lake: Store, file_format: str, compression: Any
    ) -> None:
        sim = serve()
        [written] = extract(lake, file_format=file_format, compression=compression)["files"]
        name = f"{NAME}.{file_format}" + (".gz" if compression else "")
        [(found, body)] = objects(lake).items()
        assert found == name
        assert written["path"] == f"{dst(lake)}/{name}"
        assert written["url"] == f"{lake.url_scheme}://lake/unleash/{name}"
        assert written["bytes"] == len(body)
        [manifest] = set(lake.names()) - {name}
        assert json.loads(lake.read(manifest))["path"] == name
        rows = read_records(gzip.decompress(body) if compression else body, file_format)
        assert [str(row["frame_number"]) for row in rows] == [str(row["frame_number"]) for row in in_window(sim)]

    def test_a_device_id_with_reserved_characters_is_percent_encoded_in_the_name(
        self, serve: Callable[..., Simulator], lake: Store
    ) -> None:
        device_id = "a b?versionid=1#c%20d+ü"
        rows = [{"timestamp": "2026-01-12T10:00:00.000Z", "class_name": "person", "device_id": device_id}]
        serve(rows={device_id: rows})
        for _ in range(2):
            assert extract(lake, device_id=device_id)["rows"] == 1
        assert names_in(lake) == [NAME.replace(STREET, quote(device_id, safe="")) + ".jsonl"]

    @pytest.mark.parametrize("file_format", FORMATS)
    def test_a_rerun_replaces_its_own_object_and_nothing_else(
        self, serve: Callable[..., Simulator], lake: Store, file_format: str
    ) -> None:
        serve()
        lake.put("other", b"other")
        lake.put(f"{NAME}.{file_format}", b"not whole")
        extract(lake, file_format=file_format)
        before = objects(lake)
        assert sorted(before) == [f"{NAME}.{file_format}", "other"]
        assert before[f"{NAME}.{file_format}"] != b"not whole"
        extract(lake, file_format=file_format)
        assert objects(lake) == before

    @one_airflow
    @pytest.mark.parametrize("file_format", FORMATS)
    def test_no_rows_do_not_replace_rows(self, serve: Callable[..., Simulator], lake: Store, file_format: str) -> None:
        serve()
        extract(lake, file_format=file_format)
        before = objects(lake)
        serve(rows={STREET: []})
        with not_retried(EmptyReplacementError):
            extract(lake, file_format=file_format)
        gc.collect()
        assert objects(lake) == before
        extract(lake, file_format=file_format, replace_with_empty=True)
        assert objects(lake) != before

    @pytest.mark.parametrize("file_format", FORMATS)
    def test_an_empty_window_becomes_an_empty_object(
        self, serve: Callable[..., Simulator], lake: Store, file_format: str
    ) -> None:
        serve(rows={STREET: []})
        for _ in range(2):  # an empty object may replace an empty one
            assert extract(lake, file_format=file_format)["rows"] == 0
        [(name, body)] = objects(lake).items()
        assert name == f"{NAME}.{file_format}"
        assert read_records(body, file_format) == []

    @one_airflow
    @pytest.mark.parametrize("has_object", [False, True], ids=["new", "old"])
    @pytest.mark.parametrize("file_format", FORMATS)
    def test_a_failed_extraction_keeps_the_previous_object(
        self, serve: Callable[..., Simulator], lake: Store, quick_retries: None, file_format: str, has_object: bool
    ) -> None:
        sim = serve()
        if has_object:
            extract(lake, file_format=file_format)
        before = objects(lake)
        sim.add_fault(Fault("500", page=7, times=None))
        with pytest.raises(ServerError):
            extract(lake, file_format=file_format)
        gc.collect()  # fsspec publishes abandoned handles when they are collected
        assert objects(lake) == before
        assert lake.leftovers() == []

    @pytest.mark.parametrize("root", [False, True], ids=["folder", "root"])
    def test_a_retry_resumes_with_the_staged_pages(
        self, serve: Callable[..., Simulator], lake: Store, quick_retries: None, root: bool
    ) -> None:
        where = {"dst": dst(lake).removesuffix("/unleash")} if root else {}
        sim = serve(faults=[Fault("500", page=10, times=None)])
        with pytest.raises(ServerError):
            extract(lake, checkpoint_pages=2, **where)
        staged = names_in(lake)
        assert len(staged) >= 3
        assert all("_staging/" in name and name.endswith(".pages") for name in staged)
        sim.clear_faults()
        sim.clear_requests()
        summary = extract(lake, checkpoint_pages=2, **where)
        assert summary["resumed_pages"] == 2 * len(staged)
        assert summary["requests"] == len(sim.requests) == summary["pages"] + 2 - summary["resumed_pages"]
        assert names_in(lake) == [f"{NAME}.jsonl"]
        assert root or read_records(lake.read(f"{NAME}.jsonl"), "jsonl") == in_window(sim)

    @one_airflow
    @pytest.mark.parametrize("old", [{}, {"large.jsonl": b"old"}], ids=["new", "old"])
    def test_a_failed_write_of_a_large_object_keeps_the_previous_one(self, lake: Store, old: dict[str, bytes]) -> None:
        def fail() -> None:
            with Format("jsonl").open(path_of(lake, "large.jsonl")) as writer:
                for _ in range(20):
                    writer.write_page(page_of(1000, "x" * 1000))
                raise ZeroDivisionError

        for name, body in old.items():
            lake.put(name, body)
        with pytest.raises(ZeroDivisionError):
            fail()
        gc.collect()
        assert objects(lake) == old
        assert lake.leftovers() == []

    @one_airflow
    @pytest.mark.parametrize("size", [20, 80])  # Azure's client sends up to 64 MiB in one request
    def test_a_large_object_is_published_whole_at_the_end(self, lake: Store, size: int) -> None:
        lake.put("large.jsonl", b"old")
        with Format("jsonl").open(path_of(lake, "large.jsonl")) as writer:
            for _ in range(size):
                writer.write_page(page_of(1000, "x" * 1000))
            assert objects(lake) == {"large.jsonl": b"old"}
        body = lake.read("large.jsonl")
        assert names_in(lake) == ["large.jsonl"]
        assert lake.leftovers() == []
        assert len(body) == writer.size
        assert body.count(b"\n") == size * 1000


class TableCases(_Connected):
    """Delta tables; no emulator of Google Cloud Storage has the API that deltalake uses."""

    @pytest.mark.slow  # on the class, it would apply to all tests of the classes that inherit it
    def test_a_commit_replaces_the_rows_of_a_window_in_a_delta_table(
        self, serve: Callable[..., Simulator], lake: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        pytest.importorskip("deltalake", reason="the extra delta is not installed")
        caplog.set_level("DEBUG")
        for seed in (1, 2):
            sim = serve(seed=seed)
            operator = UnleashAccountToObjectStorageOperator(task_id="extract", dst=dst(lake), file_format="delta")
            summary = operator.execute(make_context())
            table = open_delta_table(dst(lake))
            found = Counter(table.to_pyarrow_table(columns=["device"]).column("device").to_pylist())
            expected = {device: len(in_window(sim, device)) for device in sim.devices}
            assert found == {device: rows for device, rows in expected.items() if rows}
            assert (summary["file_format"], summary["rows"]) == ("delta", found.total())
        files = [name for name in names_in(lake) if not name.startswith("_delta_log/")]
        assert len(files) == 2
        vacuumed = table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        assert len(vacuumed) == 1
        assert set(vacuumed) < set(files)
        log = b"".join(lake.read(name) for name in lake.names() if name.startswith("_"))
        for secret in secrets_of(lake):
            assert leaks(secret, {"log": caplog.text, "objects": log, "summary": json.dumps(summary)}) == []


class ProcessCases(_Connected):
    """Tests of processes that are killed; they take a minute, because each process imports Airflow."""

    @pytest.mark.parametrize("last", ["raise ZeroDivisionError", "raise KeyboardInterrupt", "sys.exit(1)"])
    def test_an_exception_ends_the_process_and_publishes_nothing(self, lake: Store, last: str) -> None:
        lake.put("large.jsonl", b"old")
        with running(_WRITE.replace("LAST", last), dst(lake), 20) as process:
            assert process.wait(SECONDS) not in (0, None)
        assert objects(lake) == {"large.jsonl": b"old"}
        assert lake.leftovers() == []

    @pytest.mark.parametrize("has_object", [False, True], ids=["new", "old"])
    def test_a_kill_between_pages_keeps_the_previous_object_and_a_rerun_replaces_it(
        self, serve: Callable[..., Simulator], lake: Store, has_object: bool
    ) -> None:
        sim = serve()
        if has_object:
            lake.put(f"{NAME}.jsonl", b"old")
        before = objects(lake)
        sim.add_fault(Fault("slow", page=7, seconds=SECONDS))
        with running(_EXTRACT, dst(lake), STREET) as process:
            wait_until(lambda: len(sim.requests) >= 6, process, SECONDS)
            process.kill()
        assert objects(lake) == before
        sim.clear_faults()
        extract(lake)
        [(name, body)] = objects(lake).items()
        assert name == f"{NAME}.jsonl"
        assert read_records(body, "jsonl") == in_window(sim)

    @pytest.mark.parametrize(("size", "old"), [(20, {}), (80, {"large.jsonl": b"old"})], ids=["new", "old"])
    def test_a_kill_during_an_upload_keeps_the_previous_object_and_a_rerun_replaces_it(
        self, lake: Store, size: int, old: dict[str, bytes]
    ) -> None:
        for name, body in old.items():
            lake.put(name, body)
        with StallingProxy(lake.endpoint, after=size * 500_000) as proxy:
            # Only this process uses the proxy.
            by_proxy = {f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(lake.connection(proxy.endpoint))}
            with running(_WRITE.replace("LAST", ""), dst(lake), size, **by_proxy) as process:
                wait_until(proxy.stalled.is_set, process, SECONDS)
                process.kill()
        assert objects(lake) == old
        assert [path for path in path_of(lake, "").fs.find("lake/unleash") if "large" in path] == [
            f"lake/unleash/{name}" for name in old
        ]
        assert write_megabytes(lake, "large.jsonl", size) == len(lake.read("large.jsonl"))
        assert names_in(lake) == ["large.jsonl"]
        assert lake.leftovers() == []
