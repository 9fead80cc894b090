"""Extract days of many devices while workers are killed and the API refuses requests, and collect the results."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from airflow_provider_unleash.simulator import DEFAULT_KEYS, PROFILES, generate_rows
from airflow_provider_unleash.simulator.data import STREET
from tests.support.secret_search import files_under, leaks
from tools.cluster import (
    BATCHES_DAG_ID,
    DAG_ID,
    PAGE_CONCURRENCY,
    POOL_SLOTS,
    WORKERS,
    Cluster,
    device_ids,
    open_cluster,
)
from tools.stage import ask

DAY = datetime(2026, 1, 12, tzinfo=timezone.utc)
DAY_MS = 86_400_000
RUN_ID = "proof"
CHECKPOINT_PAGES = 4
# Shares of finished extractions at which a worker is killed, a different one each time.
KILLS = (0.2, 0.55)
SECONDS_WITHOUT_A_WORKER = 5.0
SECONDS_BETWEEN_BURSTS, SECONDS_OF_A_BURST = 20.0, 3.0
# Shorter than five attempts, so that tasks wait until it is over.
BURST = {"kind": "429", "path": "/v1/analytics/W", "times": None, "retry_after": "1"}
# Every third burst starts with two of these. The client does not wait that long within a task, so Airflow retries the
# task after the delay that the API asks for.
LONG = {"kind": "429", "path": "/v1/analytics/W", "times": 2, "retry_after": "75"}


@dataclass(frozen=True)
class Size:
    """
    How much is extracted.

    :param latency: seconds that the API takes for each page.
    :param batch_size: devices of a mapped task; 0 for the operator of one device.
    """

    devices: int
    days: int
    rows_a_day: int
    page_size: int
    latency: float
    batch_size: int = 0

    @property
    def windows(self) -> int:
        return self.devices * self.days

    @property
    def extractions(self) -> int:
        return -(-self.devices // self.batch_size) * self.days if self.batch_size else self.windows

    @property
    def dag_id(self) -> str:
        return BATCHES_DAG_ID if self.batch_size else DAG_ID

    @property
    def resumed(self) -> str:
        """What a retry does not request again."""
        return "devices" if self.batch_size else "pages"

    @property
    def pages_at_kill(self) -> tuple[float, float]:
        """Return between how many pages of a task its worker may be killed, so that the task has saved some."""
        return (0.6 * self.batch_size, 0.9 * self.batch_size) if self.batch_size else (8, 20)


MAPPED = Size(24, 5, rows_a_day=1500, page_size=50, latency=0.15)
# One page per device and day.
BATCHES = Size(2000, 2, rows_a_day=60, page_size=1000, latency=0.15, batch_size=250)


@dataclass(frozen=True)
class Try:
    """An extraction's try that did not succeed."""

    map_index: int
    number: int
    cause: str


@dataclass
class Proof:
    """
    The results.

    :param states: number of mapped tasks by final state.
    :param tries: last try number and maximum number of tries, by map index.
    :param lost: tries that did not succeed, each with its cause.
    :param victims: killed workers, each with the map index of an extraction that had checkpointed pages by then.
    :param killed: map index and number of the tries that killed workers were running.
    :param max_running: maximum number of extractions that ran at the same time.
    :param summaries: what each extraction returned, by map index.
    :param names: names of all objects in the bucket, without manifests.
    :param entries: lines of all manifests.
    :param manifests: number of manifests.
    :param uploads: open multipart uploads.
    :param answered: number of successful responses for each page, by path.
    :param refused: number of requests with response 429.
    :param missing: number of the simulator's rows that the lake does not have.
    :param extra: number of the lake's rows that the simulator does not have.
    :param missing_without_one_row: ``missing`` if one row were removed from the lake, to check the comparison.
    :param redelivered: messages that Celery delivered again and Airflow ignored.
    :param refused_messages: messages that Celery delivered again and Airflow refused.
    :param folders: folders of everything that ran.
    """

    size: Size
    run_state: str = ""
    minutes: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    tries: dict[int, tuple[int, int]] = field(default_factory=dict)
    lost: list[Try] = field(default_factory=list)
    victims: list[tuple[str, int]] = field(default_factory=list)
    killed: set[tuple[int, int]] = field(default_factory=set)
    bursts: int = 0
    summaries: dict[int, dict[str, Any]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    manifests: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    max_in_flight: int = 0
    max_running: int = 0
    rows: int = 0
    expected_rows: int = 0
    missing: int = 0
    extra: int = 0
    missing_without_one_row: int = 0
    leaks: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    redelivered: int = 0
    refused_messages: int = 0
    xcom_bytes: int = 0
    metadata: dict[str, int] = field(default_factory=dict)

    @property
    def causes(self) -> Counter[str]:
        """Number of lost tries by cause."""
        return Counter(one.cause for one in self.lost)

    @property
    def twice(self) -> dict[str, int]:
        """Extra responses for each page, by path; in windows of several pages, without the first and last."""
        if self.size.batch_size:
            return {path: times - 1 for path, times in self.answered.items() if times > 1}
        last = {(s["device_id"], s["start"]): s["pages"] for s in self.summaries.values()}
        found = {}
        for path, times in self.answered.items():
            device, start, _, page = path.split("/")[-4:]
            # Each try reads the first and last pages twice by design.
            if 1 < int(page) < last[device, _stamp(int(start))] and times > 1:
                found[path] = times - 1
        return found


def prove(size: Size) -> Proof:
    """Run everything, stop it, and return the results."""
    proof = Proof(size)
    with open_cluster() as cluster:
        proof.folders = cluster.folders
        cluster.environ |= {"CHECKPOINT_PAGES": str(CHECKPOINT_PAGES), "BATCH_SIZE": str(size.batch_size or 250)}
        cluster.start_simulator(
            *("--devices", ",".join(device_ids(size.devices)), "--rows-per-day", str(size.rows_a_day)),
            *("--page-size", str(size.page_size), "--latency", str(size.latency)),
        )
        for name in WORKERS:
            cluster.start_celery_worker(name)
        cluster.start_parts()
        before = metadata_bytes(cluster)
        end = DAY + timedelta(days=size.days)
        began = time.monotonic()
        cluster.trigger(RUN_ID, size.dag_id, start=f"{DAY:%Y-%m-%d}", end=f"{end:%Y-%m-%d}")
        _Disruptor(cluster, proof).run_to_the_end()
        proof.minutes = (time.monotonic() - began) / 60
        _read_tasks(cluster, proof)
        _read_requests(cluster, proof)
        _read_lake(cluster, proof)
        proof.metadata = grown(before, metadata_bytes(cluster), size.windows)
        texts: dict[str, str | bytes] = {**files_under(cluster.folder), **_database_texts(cluster)}
        proof.leaks = leaks(DEFAULT_KEYS[0], texts)
    return proof


class _Disruptor:
    """Kills and restarts workers, and makes the API refuse requests, until the run is over."""

    def __init__(self, cluster: Cluster, proof: Proof) -> None:
        self._cluster, self._proof = cluster, proof
        self._pages = _PagesOfTries(cluster.requests_log)
        self._to_kill = list(zip(KILLS, WORKERS, strict=True))
        self._to_start: list[tuple[float, str]] = []
        self._next_burst = time.monotonic() + SECONDS_BETWEEN_BURSTS
        self._burst_ends = math.inf
        self._plan: list[dict[str, Any]] = []

    def run_to_the_end(self) -> None:
        while (state := self._cluster.run_state(RUN_ID)) not in ("success", "failed"):
            self._cluster.check_alive()
            self._pages.read()
            running = self._cluster.query(
                "SELECT map_index, pid FROM task_instance WHERE task_id = 'extract' AND state = 'running'"
            )
            self._proof.max_running = max(self._proof.max_running, len(running))
            [(done,)] = self._cluster.query(
                "SELECT count(*) FROM task_instance WHERE task_id = 'extract' AND state = 'success'"
            )
            share = done / self._proof.size.extractions
            if self._to_kill and share >= self._to_kill[0][0]:
                self._kill(self._to_kill[0][1], running)
            for moment, name in [one for one in self._to_start if one[0] <= time.monotonic()]:
                self._cluster.start_celery_worker(name)
                self._to_start.remove((moment, name))
            if running and time.monotonic() >= self._next_burst and share < 0.8:
                self._refuse()
            if time.monotonic() >= self._burst_ends:
                ask(f"{self._cluster.api}/_simulator/faults", method="DELETE")
                self._burst_ends = math.inf
            time.sleep(0.1)
        self._proof.run_state = state

    def _kill(self, name: str, running: list[tuple[int, int]]) -> None:
        """Kill the worker if one of its tasks is in the middle of an extraction and has checkpointed pages."""
        if not self._plan:
            self._plan = read_xcoms(self._cluster, "plan_windows")[-1]
        worker = self._cluster.workers[name].pid
        for map_index, pid in running:
            least, most = self._proof.size.pages_at_kill
            if least < self._pages.of(self._plan[map_index]) < most and _is_below(pid, worker):
                killed = [process.pid for process in psutil.Process(worker).children(recursive=True)]
                self._cluster.kill_celery_worker(name)
                self._proof.victims.append((name, map_index))
                self._proof.killed |= set(
                    self._cluster.query(
                        "SELECT map_index, try_number FROM task_instance WHERE task_id = 'extract'"
                        f" AND state = 'running' AND pid IN ({', '.join(map(str, killed))})"
                    )
                )
                self._to_kill.pop(0)
                self._to_start.append((time.monotonic() + SECONDS_WITHOUT_A_WORKER, name))
                return

    def _refuse(self) -> None:
        self._proof.bursts += 1
        faults = [LONG, BURST] if self._proof.bursts % 3 == 0 else [BURST]
        ask(f"{self._cluster.api}/_simulator/faults", json.dumps(faults))
        self._burst_ends = time.monotonic() + SECONDS_OF_A_BURST
        self._next_burst = time.monotonic() + SECONDS_BETWEEN_BURSTS


class _PagesOfTries:
    """Counts the pages of each extraction that the API has returned, from the API's log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = 0
        self._seen: defaultdict[tuple[str, int], set[str]] = defaultdict(set)

    def read(self) -> None:
        with self._log.open() as lines:
            lines.seek(self._offset)
            while (line := lines.readline()).endswith("\n"):
                self._offset += len(line)
                request = json.loads(line)
                parts = request["path"].split("/")
                if request["status"] == 200 and len(parts) == 7:
                    self._seen[parts[3], int(parts[4])].add(parts[6])

    def of(self, window: dict[str, Any]) -> int:
        start = int(datetime.fromisoformat(window["start"]).timestamp() * 1000)
        return sum(len(self._seen[device, start]) for device in window.get("device_ids") or [window["device_id"]])


def _is_below(pid: int, ancestor: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return ancestor in {process.pid for process in psutil.Process(pid).parents()}
    return False


def read_xcoms(cluster: Cluster, task_id: str, run_id: str = RUN_ID) -> dict[int, Any]:
    """Return what a task returned, by map index."""
    rows = cluster.query(
        "SELECT map_index, value FROM xcom"
        f" WHERE task_id = '{task_id}' AND run_id = '{run_id}' AND key = 'return_value'"
    )
    return {index: json.loads(value) if isinstance(value, str) else value for index, value in rows}


def _read_tasks(cluster: Cluster, proof: Proof) -> None:
    rows = cluster.query(
        "SELECT map_index, state, try_number, max_tries FROM task_instance WHERE task_id = 'extract' ORDER BY 1"
    )
    proof.states = Counter(state for _, state, *_ in rows)
    proof.tries = {index: (number, most + 1) for index, _, number, most in rows}
    timeouts = cluster.query(
        "SELECT map_index, try_number FROM log WHERE task_id = 'extract' AND event = 'heartbeat timeout'"
    )
    for index, (number, _) in proof.tries.items():
        for one in range(1, number):
            cause = (
                "worker killed"
                if (index, one) in proof.killed
                else _cause(cluster, proof.size.dag_id, index, one, timeouts)
            )
            proof.lost.append(Try(index, one, cause))
    proof.summaries = read_xcoms(cluster, "extract")
    [(size,)] = cluster.query("SELECT sum(octet_length(value::text)) FROM xcom WHERE task_id = 'extract'")
    proof.xcom_bytes = round(size / len(proof.summaries))
    log = cluster.log.read_text(errors="replace")
    # Airflow's two log messages for a redelivered message: its task runs elsewhere, or has ended.
    proof.redelivered = log.count("ignoring redelivered message")
    proof.refused_messages = len(re.findall("Task execute_workload.* raised unexpected", log))


def _cause(cluster: Cluster, dag_id: str, map_index: int, number: int, timeouts: list[tuple[int, int]]) -> str:
    if (map_index, number) in timeouts:
        return "heartbeat too late"
    folder = cluster.home / "logs" / f"dag_id={dag_id}" / f"run_id={RUN_ID}" / "task_id=extract"
    with suppress(FileNotFoundError):
        lines = (folder / f"map_index={map_index}" / f"attempt={number}.log").read_text().splitlines()
        errors = [error["exc_type"] for line in lines for error in json.loads(line).get("error_detail") or ()]
        if errors:
            return str(errors[-1])
    return "unknown"


def _read_requests(cluster: Cluster, proof: Proof) -> None:
    seen = ask(f"{cluster.api}/_simulator/requests")
    proof.max_in_flight = seen["max_in_flight"]
    for request in seen["requests"]:
        proof.refused += request["status"] == 429
        if request["status"] == 200 and request["path"].count("/") == 6:
            proof.answered[request["path"]] += 1


def _read_lake(cluster: Cluster, proof: Proof) -> None:
    names, proof.uploads = cluster.lake.names(), cluster.lake.uploads()
    manifests = {name for name in names if name.startswith("_manifest/")}
    proof.names, proof.manifests = names - manifests, len(manifests)
    lines = [line for name in manifests for line in (cluster.lake.read(name) or b"").splitlines()]
    proof.entries = list(map(json.loads, lines))
    expected = expected_rows(proof.size)
    found = lake_rows(cluster)
    proof.rows, proof.expected_rows = found.num_rows, expected.num_rows
    proof.missing, proof.extra = difference(expected, found), difference(found, expected)
    # Check that the comparison notices a single missing row.
    proof.missing_without_one_row = difference(expected, found.slice(1))


_COLUMNS = (
    *("class_name", "device_id", "model_id", "session_id", "source_file_name", "count", "frame_number"),
    *("timestamp", "device", "start_date"),
)


def lake_rows(cluster: Cluster) -> pa.Table:
    """Return the rows of all objects, with the device and day from their paths."""
    import pyarrow.dataset
    import s3fs

    connection = json.loads(cluster.environ["AIRFLOW_CONN_LAKE"])
    store = s3fs.S3FileSystem(
        key=connection["login"],
        secret=connection["password"],
        endpoint_url=connection["extra"]["endpoint_url"],
        client_kwargs={"region_name": "us-east-1"},
    )
    keys = pa.schema([("device", pa.string()), ("start_date", pa.string())])
    partitioning = pyarrow.dataset.partitioning(keys, flavor="hive")
    tree = pyarrow.dataset.dataset("lake/tree", filesystem=store, format="parquet", partitioning=partitioning)
    return tree.to_table(columns=list(_COLUMNS))


def expected_rows(size: Size) -> pa.Table:
    """Return the simulator's rows, with the device and day that the paths of their objects must have."""
    rows = list(_generate(size))
    columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    stamps = [datetime.fromisoformat(stamp.replace("Z", "+00:00")) for stamp in columns["timestamp"]]
    columns["count"] = list(map(float, columns["count"]))
    return pa.table(columns | {"timestamp": pa.array(stamps, pa.timestamp("ms", "UTC"))})


def _generate(size: Size) -> Iterator[dict[str, Any]]:
    for device in device_ids(size.devices):
        for day in range(size.days):
            start = int(DAY.timestamp() * 1000) + day * DAY_MS
            stamp = f"{DAY + timedelta(days=day):%Y-%m-%d}"
            for row in generate_rows(0, device, start, start + DAY_MS - 1, rows_per_day=size.rows_a_day):
                yield {**row, "device": device, "start_date": stamp}


def difference(one: pa.Table, other: pa.Table) -> int:
    """Return how many rows of one table are missing in the other, counting duplicates and comparing all columns."""
    import duckdb

    columns = ", ".join(_COLUMNS)
    with duckdb.connect() as database:
        database.register("one", one)
        database.register("other", other)
        [(number,)] = database.execute(
            f"SELECT count(*) FROM (SELECT {columns} FROM one EXCEPT ALL SELECT {columns} FROM other)"
        ).fetchall()
    return int(number)


def expected_names(size: Size) -> set[str]:
    """Return the names of exactly the objects that must exist; batches write none without rows."""
    days = [(DAY + timedelta(days=day), DAY + timedelta(days=day + 1)) for day in range(size.days)]
    return {
        f"device={device}/start_date={start:%Y-%m-%d}/{start:%Y%m%dT%H%M%SZ}_{end:%Y%m%dT%H%M%SZ}.parquet"
        for device in device_ids(size.devices)
        for start, end in days
        if PROFILES.get(device, STREET).classes or not size.batch_size
    }


def _stamp(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def metadata_bytes(cluster: Cluster) -> dict[str, int]:
    """Return the size of each table in bytes, with indexes and without dead rows."""
    import psycopg

    with psycopg.connect(cluster.database_url, autocommit=True) as database:
        database.execute("VACUUM FULL")
    return dict(
        cluster.query(
            "SELECT relname::text, pg_total_relation_size(oid) FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
    )


def grown(before: dict[str, int], after: dict[str, int], extractions: int) -> dict[str, int]:
    """Return by how many bytes each table has grown per extraction, largest first."""
    growth = {name: (size - before.get(name, 0)) / extractions for name, size in after.items()}
    return {name: round(size) for name, size in sorted(growth.items(), key=lambda one: -one[1]) if size >= 1}


def _database_texts(cluster: Cluster) -> dict[str, str]:
    """Return the rows of all tables as strings."""
    tables = cluster.query(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return {
        f"table {name}": "\n".join(row for (row,) in cluster.query(f'SELECT t::text FROM "{name}" t'))
        for (name,) in tables
    }


def table(proof: Proof) -> list[tuple[str, str]]:
    """Return the results for the page."""
    size, what = proof.size, f"resumed_{proof.size.resumed}"
    resumed = [summary[what] for summary in proof.summaries.values() if summary[what]]
    batches = f" in batches of {size.batch_size}" if size.batch_size else ""
    ends = "" if size.batch_size else ", not counting the first and last page"
    pages = sum(s["pages"] for s in proof.summaries.values())
    states = ", ".join(f"{state} {number}" for state, number in proof.states.items())
    lost = ", ".join(f"{cause} {number}" for cause, number in proof.causes.most_common())
    return [
        ("mapped tasks", f"{size.extractions:,}: {size.devices:,} devices × {size.days} days{batches}; {states}"),
        ("minutes", f"{proof.minutes:.1f}"),
        ("workers killed with all their tasks", f"{len(proof.victims)}"),
        ("lost tries by cause", f"{len(proof.lost)}: {lost}"),
        ("maximum tries of a task", f"{max(number for number, _ in proof.tries.values())}"),
        ("throttled requests (429)", f"{proof.refused:,} in {proof.bursts} bursts"),
        ("rows", f"{proof.rows:,}; missing {proof.missing}, duplicate or unexpected {proof.extra}"),
        ("objects", f"{len(proof.names):,}; open uploads {len(proof.uploads)}"),
        ("manifests", f"{proof.manifests:,}, with {len(proof.entries):,} lines"),
        ("resumed extractions", f"{len(resumed)}, with {sum(resumed)} {size.resumed} not requested again"),
        ("pages", f"{pages:,}; requested twice{ends}: {sum(proof.twice.values())}"),
        ("redelivered messages, refused", f"{proof.redelivered + proof.refused_messages}"),
        (
            "maximum requests in flight",
            f"{proof.max_in_flight}; {POOL_SLOTS} slots × page_concurrency {PAGE_CONCURRENCY}",
        ),
    ]


def bytes_table(proof: Proof) -> list[tuple[str, str]]:
    """Return the bytes that an extraction adds to the metadata database, for the page."""
    most = ", ".join(f"`{name}` {size:,}" for name, size in list(proof.metadata.items())[:6])
    total = sum(proof.metadata.values())
    xcom = proof.xcom_bytes * proof.size.extractions / proof.size.windows
    return [
        ("XCom of a task", f"{proof.xcom_bytes:,}"),
        ("whole metadata database, per device and day", f"{total:,}: {most}, …"),
        ("a million devices and days", f"{total / 1000:.2f} GB, of which {xcom / 1000:.2f} GB XCom text"),
    ]
