"""
Run extractions under random faults, kills, reruns, duels (two tries at once) and late rows, and check each object.

``make chaos`` runs this for minutes, tests/test_chaos.py for half a minute. The lake is a real S3-compatible store and
a folder, the API is a simulator, and each try of an extraction is a process. The seed determines the plan; what happens
also depends on timing.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

from airflow_provider_unleash.simulator import FAULT_KINDS, Fault, Simulator
from tests.support.s3_lake import S3Lake, connection_to
from tests.support.seaweedfs import SeaweedFS
from tools.chaos_worker import Job, Report, run_try

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
DAY = datetime(2026, 1, 12, tzinfo=timezone.utc)
ROWS_A_DAY, PAGE_SIZE, CHECKPOINT_PAGES = 4000, 200, 6
SILENT = "W7d2e90b4c6a1f58"
DEVICES = ("Wb8fabc31378ce07", "W022abc5be35bb72", "Weea288bc1faaddd", "W9d3f1bcad8e8abd", SILENT)
# Two pages, about twenty, and so many that the upload of the object has several parts.
LENGTHS = (timedelta(hours=2), timedelta(days=1), timedelta(days=11))
FORMATS = ("parquet", "jsonl", "csv")
STATUSES = ("400", "401", "403", "404", "408", "500", "502", "503", "504")
KINDS = (*FAULT_KINDS, *STATUSES)
# Tries with faults and kills. After them, a try has to succeed.
TRIES = 3
TARGETS_OF_A_LANE = 12
# Added to the number of a generation: the same rows, and one that arrives between two tries or during the first.
LATE = 100
ARRIVING = 200
# What delays the first usable response of a page.
DELAYS = ("slow", "slow", "reset", "500", "garbage", "half_body")
SECONDS_OF_A_TRY = 90.0

Row = tuple[Any, ...]


class ViolationError(Exception):
    """A promise of the package is broken."""


# ---- plans -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """An object that extractions write."""

    store: str
    device: str
    length: timedelta
    day: int
    file_format: str

    @property
    def window(self) -> tuple[datetime, datetime]:
        start = DAY + timedelta(days=self.day)
        return start, start + self.length

    @property
    def name(self) -> str:
        start, end = self.window
        folder = f"device={self.device}/start_date={start:%Y-%m-%d}"
        return f"{folder}/{start:%Y%m%dT%H%M%SZ}_{end:%Y%m%dT%H%M%SZ}.{self.file_format}"

    @property
    def window_ms(self) -> tuple[int, int]:
        start, end = (int(moment.timestamp() * 1000) for moment in self.window)
        return start, end


@dataclass(frozen=True)
class Plan:
    """
    The plan for one extraction: faults and kill of each try, two tries at once or not, and how the rows change.

    :param arrives_at: the number of the page response from which on the API has another row; 0 if it never has.
    """

    target: Target
    generation: int
    faults: tuple[tuple[Fault, ...], ...]
    kills: tuple[Kill | None, ...]
    is_duel: bool
    grows: bool
    is_late: bool
    arrives_at: int = 0


@dataclass(frozen=True)
class Kill:
    """Kill the worker or the store some seconds after a share of the requests has a response."""

    what: str
    share: float
    seconds: float


def make_plan(seed: int, lane: int, number: int) -> Plan:
    """Return the plan of an extraction. Lanes share no objects."""
    rng = random.Random(f"{seed}/{number}")
    target = _make_target(lane, rng.randrange(TARGETS_OF_A_LANE))
    kills = [_make_kill(rng) for _ in range(TRIES)]
    if number % 12 == 7:
        target = replace(target, store="s3")
        kills[0] = Kill("store", rng.choice((rng.random(), 1.0)), rng.uniform(0, 0.08))
    plan = Plan(
        target,
        generation=rng.randrange(3),
        faults=tuple(_make_faults(rng, target) for _ in range(TRIES)),
        kills=tuple(kills),
        is_duel=rng.random() < 0.1,
        # With one page, there is nothing to grow during the extraction.
        grows=(fate := rng.random()) < 0.1 and target.length > LENGTHS[0],
        is_late=fate > 0.85,
    )
    if target.device == SILENT or target.length == LENGTHS[0] or rng.random() > 0.6:
        return plan
    pages = -(-len(_api_rows(target, plan.generation + ARRIVING, *target.window_ms)) // PAGE_SIZE)
    late = Fault(
        rng.choice(DELAYS), page=rng.choice((1, rng.randint(2, pages), pages, pages)), seconds=rng.choice((0.5, 1.5))
    )
    return replace(
        plan,
        generation=plan.generation + ARRIVING,
        faults=((late,), *plan.faults[1:]),
        kills=(None,) * TRIES,
        grows=False,
        is_late=False,
        arrives_at=rng.randint(pages // 4, pages - 2),
    )


def _make_target(lane: int, index: int) -> Target:
    length = LENGTHS[(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2)[index]]
    return Target(
        store="file" if index % 4 == 1 else "s3",
        device=DEVICES[(index + lane) % len(DEVICES)],
        length=length,
        day=20 * lane + index % 3,
        file_format="jsonl" if length == LENGTHS[2] else FORMATS[index % len(FORMATS)],
    )


def _make_faults(rng: random.Random, target: Target) -> tuple[Fault, ...]:
    return tuple(_make_fault(rng, target) for _ in range(rng.choice((0, 1, 1, 2, 4))))


def _make_fault(rng: random.Random, target: Target) -> Fault:
    kind = rng.choice(KINDS)
    pages = max(1, int(target.length / timedelta(days=1) * ROWS_A_DAY / PAGE_SIZE))
    return Fault(
        kind,
        # The devices are listed only if there are no rows.
        path=rng.choice(("", "/devices")) if target.device == SILENT else "",
        page=rng.choice((None, None, 1, 2, rng.randint(1, pages), pages)) if target.device != SILENT else None,
        times=rng.choice((1, 1, 2, 3, None)),
        after=rng.choice((0, 0, 1, rng.randint(1, pages))),
        probability=rng.choice((1.0, 1.0, 0.2)),
        retry_after=rng.choice((None, 0.05, "date:1", 120)) if kind in ("429", "503") else None,
        seconds=rng.choice((0.05, 1.5)),  # the timeout of the client is one second
    )


def _make_kill(rng: random.Random) -> Kill | None:
    if rng.random() < 0.5:
        return None
    # More often at the critical time: all pages are read, and the object is being published.
    return Kill("worker", rng.choice((rng.random(), rng.random(), 1.0)), rng.choice((0.0, rng.uniform(0, 0.08))))


# ---- the lake --------------------------------------------------------------------------------------


class Lake:
    """The lake, read without this package."""

    def __init__(self, store: SeaweedFS, folder: Path) -> None:
        self._folder = folder
        self._s3 = S3Lake(store)
        self.uploads = self._s3.uploads

    def url(self, store: str) -> str:
        return "s3://lake_conn@lake/tree" if store == "s3" else f"file://{self._folder}/tree"

    def read(self, target: Target) -> bytes | None:
        if target.store == "file":
            with suppress(FileNotFoundError):
                return (self._folder / "tree" / target.name).read_bytes()
            return None
        return self._s3.read(target.name)

    def names(self) -> set[tuple[str, str]]:
        """Return the store and the name of each object."""
        found = {("s3", name) for name in self._s3.names()}
        tree = self._folder / "tree"
        return found | {("file", str(path.relative_to(tree))) for path in tree.rglob("*") if path.is_file()}

    def tamper(self, target: Target) -> None:
        """Remove the last row of a JSON lines object in S3, and add another object and an open upload."""
        lines = (self.read(target) or b"").splitlines(keepends=True)
        self._s3.client.put_object(Bucket="lake", Key=f"tree/{target.name}", Body=b"".join(lines[:-1]))
        self._s3.client.put_object(Bucket="lake", Key="tree/stray", Body=b"")
        self._s3.client.create_multipart_upload(Bucket="lake", Key="tree/upload")


def rows_in(content: bytes, file_format: str) -> list[Row]:
    """Read an object with independent readers."""
    if file_format == "parquet":
        import pyarrow.parquet as pq

        return [_canonical(row) for row in pq.read_table(io.BytesIO(content)).to_pylist()]
    if file_format == "csv":
        return [_canonical(row) for row in csv.DictReader(io.StringIO(content.decode(), newline=""))]
    return [_canonical(json.loads(line)) for line in content.splitlines()]


def _canonical(row: dict[str, Any]) -> Row:
    stamp = row["timestamp"]
    moment = stamp if isinstance(stamp, datetime) else datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    texts = (row[key] for key in ("class_name", "device_id", "model_id", "session_id", "source_file_name"))
    return (*texts, float(row["count"]), int(row["frame_number"]), moment)


# ---- running plans ---------------------------------------------------------------------------------


@dataclass
class Counts:
    """The events of all extractions."""

    happened: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **numbers: int) -> None:
        with self._lock:
            self.happened.update(numbers)

    def add_to(self, counter: Counter[str], names: list[str]) -> None:
        with self._lock:
            counter.update(names)


class Chaos:
    """Runs plans in lanes. Each extraction starts from the state that the one before left."""

    def __init__(self, store: SeaweedFS, folder: Path, seed: int) -> None:
        self._store = store
        self._folder = folder
        self._seed = seed
        self.lake = Lake(store, folder)
        self.counts = Counts()
        self._old: dict[Target, int] = {}  # the generation of each object
        self._restarting = threading.Lock()
        self._expected: dict[tuple[int, str, datetime, datetime], list[Row]] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tools.chaos_worker"])

    def run(self, extractions: int, lanes: int) -> None:
        """Run a number of extractions, one at a time per lane."""
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lambda lane: self._run_lane(lane, range(lane, extractions, lanes)), range(lanes)))
        self.check_leftovers()

    def _run_lane(self, lane: int, numbers: range) -> None:
        for number in numbers:
            plan = make_plan(self._seed, lane, number)
            try:
                self._extract(plan)
            except Exception as error:
                self.counts.violations.append(f"extraction {number} of seed {self._seed}, {plan.target}: {error!r}")

    def _extract(self, plan: Plan) -> None:
        self.counts.add(extractions=1, reruns=plan.target in self._old, duels=plan.is_duel, growing=plan.grows)
        self.counts.add(**{"late rows during a try": plan.arrives_at > 0})
        with ExitStack() as stack:
            api = stack.enter_context(self._open_api(plan))
            for number, (faults, kill) in enumerate(zip(plan.faults, plan.kills, strict=True)):
                if number == 1 and plan.is_late:
                    # Rows that arrive between two tries, without a change of the first page or the number of pages.
                    stack.close()
                    plan = replace(plan, generation=plan.generation + LATE)
                    api = stack.enter_context(self._open_api(plan, api.port))
                    self.counts.add(**{"late rows between tries": 1})
                for fault in faults:
                    api.add_fault(fault)
                reports = self._try(plan, api, kill)
                self._count_faults(api)
                api.clear_faults()
                if self._check_object(plan, reports):
                    break
            else:
                # No more faults in this extraction, but other lanes may still kill the store.
                for _ in range(3):
                    if self._check_object(plan, self._try(plan, api, None, alone=True)):
                        break
                else:
                    raise ViolationError("no success without faults")
            # The loser of a duel may have checkpointed pages after the winner cleaned up.
            if plan.is_duel and not self._check_object(plan, self._try(plan, api, None, alone=True)):
                raise ViolationError("the rerun after a duel did not succeed")

    def _open_api(self, plan: Plan, port: int = 0) -> Simulator:
        options: dict[str, Any] = {"page_size": PAGE_SIZE, "devices": DEVICES}
        if plan.generation >= LATE:
            start, end = plan.target.window_ms
            options["rows"] = {plan.target.device: _api_rows(plan.target, plan.generation, start, end)}
        if plan.arrives_at:
            served = count(1)

            def clock() -> float:  # the simulator asks for the time once for each page that it serves
                return (plan.target.window_ms[1] - (2 if next(served) < plan.arrives_at else 0) + 0.5) / 1000

            options |= {"clock": clock, "sessions_from": plan.target.window_ms[0]}
        if plan.grows:
            options["growing"] = 400 * max(1, plan.target.length.days)
        return Simulator(port, seed=plan.generation % LATE, rows_per_day=ROWS_A_DAY, **options)

    # ---- one try ----

    def _try(self, plan: Plan, api: Simulator, kill: Kill | None, alone: bool = False) -> list[Report | None]:
        """Run one process, or two at once, and return their reports; None if killed."""
        api.clear_requests()
        job = self._job(plan, api)
        tries = [_Try(self._context, job) for _ in range(2 if plan.is_duel and not alone else 1)]
        self.counts.add(tries=len(tries))
        killed = kill is not None and self._kill(plan, api, kill, tries[0])
        reports = [one.finish() for one in tries]
        for report in reports:
            self._count_report(report)
        if not killed and None in reports:
            raise ViolationError("a try that was not killed ended without a report")
        return reports

    def _job(self, plan: Plan, api: Simulator) -> Job:
        extra = {"timeout": 1, "max_attempts": 3, "mask_stream_tokens": False}
        unleash = {"conn_type": "unleash", "host": api.base_url, "password": api.api_key, "extra": extra}
        lake = connection_to(self._store.url)
        target = plan.target
        arguments = {
            "device_id": target.device,
            "dst": self.lake.url(target.store),
            "file_format": target.file_format,
            # With staging, a try may wait for the digest of the last page, which hides a late one.
            "checkpoint_pages": None if plan.arrives_at else CHECKPOINT_PAGES,
        }
        return Job(str(self._folder), {"unleash_default": unleash, "lake_conn": lake}, target.window, arguments)

    def _kill(self, plan: Plan, api: Simulator, kill: Kill, victim: _Try) -> bool:
        """Kill the worker or the store at the planned time, and return whether the worker was killed."""
        requests = len(self._rows(plan.target, plan.generation)) // PAGE_SIZE + 2
        due = int(kill.share * requests)
        while len(api.requests) < due and victim.is_alive():
            time.sleep(0.002)
        time.sleep(kill.seconds)
        if kill.what == "worker":
            if not victim.is_alive():
                return False
            victim.kill()
            self.counts.add(**{"workers killed": 1, f"workers killed {_phase(kill.share)}": 1})
            return True
        with self._restarting:
            self._store.kill()
            time.sleep(random.Random(due).uniform(0, 0.5))
            self._store.start()
            self.counts.add(**{"stores killed": 1})
        return False

    # ---- checks ----

    def _check_object(self, plan: Plan, reports: list[Report | None]) -> bool:
        """Check that the object is the old or the new one, and return whether a try succeeded."""
        target = plan.target
        with self._restarting:  # the store is unavailable while it restarts
            content = self.lake.read(target)
        found = None if content is None else rows_in(content, target.file_format)
        old = self._rows(target, self._old[target]) if target in self._old else None
        new = self._rows(target, plan.generation)
        succeeded = any(report is not None and report.summary is not None for report in reports)
        self.counts.add(**{"objects checked": 1, "rows checked": len(found or ())})
        if found != new and (succeeded or found != old):
            state = "is missing" if found is None else f"has {len(found)} rows"
            before = "no object" if old is None else f"the old {len(old)} rows"
            raise ViolationError(
                f"the object {state}; expected the new {len(new)} rows or {before}; success: {succeeded}"
            )
        if found == new:
            self._old[target] = plan.generation
        if not succeeded:
            return False
        if not plan.is_duel and (uploads := self.lake.uploads(target.name)):
            raise ViolationError(f"open uploads after a success: {uploads}")
        for report in reports:
            if report is not None and report.summary is not None and report.summary["rows"] != len(new):
                raise ViolationError(f"the summary counts {report.summary['rows']} rows, not {len(new)}")
        return True

    def _rows(self, target: Target, generation: int) -> list[Row]:
        key = (generation, target.device, *target.window)
        if key not in self._expected:
            start, end = target.window_ms
            self._expected[key] = [_canonical(row) for row in _api_rows(target, generation, start, end - 1)]
        return self._expected[key]

    def tamper(self) -> None:
        """Create violations: remove a row of an object, add another object, an upload and a temporary file."""
        harmed = next(
            target
            for target, generation in self._old.items()
            if (target.store, target.file_format) == ("s3", "jsonl") and self._rows(target, generation)
        )
        self.lake.tamper(harmed)
        (self._folder / "tmp" / "stray").touch()

    def check_leftovers(self) -> None:
        """Look for stray objects, uploads and temporary files, and compare every object again."""
        names = self.lake.names()
        expected = {(target.store, target.name) for target in self._old}
        if strays := names - expected:
            self.counts.violations.append(f"stray objects: {sorted(strays)}")
        if missing := expected - names:
            self.counts.violations.append(f"missing objects: {sorted(missing)}")
        if uploads := self.lake.uploads():
            self.counts.violations.append(f"open uploads: {uploads}")
        for target, generation in self._old.items():
            content = self.lake.read(target)
            rows = self._rows(target, generation)
            self.counts.add(**{"objects checked": 1, "rows checked": len(rows)})
            if content is None or rows_in(content, target.file_format) != rows:
                self.counts.violations.append(f"{target} differs from its last extraction")
        if temporary := [path.name for path in (self._folder / "tmp").iterdir()]:
            self.counts.violations.append(f"temporary files: {temporary}")
        self.counts.add(objects=len(expected))

    # ---- counting ----

    def _count_report(self, report: Report | None) -> None:
        if report is None:
            self.counts.add_to(self.counts.endings, ["killed"])
            return
        # fsspec keeps a daemon thread for its event loop, and that loop one for host names.
        if threads := [name for name in report.threads if name not in ("fsspecIO", "asyncio_0")]:
            raise ViolationError(f"threads still run: {threads}")
        self.counts.add_to(self.counts.endings, [report.error or "success"])
        if report.summary is not None:
            self.counts.add(**{"pages": report.summary["pages"], "pages resumed": report.summary["resumed_pages"]})

    def _count_faults(self, api: Simulator) -> None:
        kinds = [request.fault for request in api.requests if request.fault]
        self.counts.add_to(self.counts.faults, kinds)
        self.counts.add(requests=len(api.requests))


def _api_rows(target: Target, generation: int, start: int, end: int) -> list[dict[str, Any]]:
    """Return the API's rows of a window. A late generation has another row, which may be the one stamped last."""
    source = Simulator(seed=generation % LATE, rows_per_day=ROWS_A_DAY, page_size=PAGE_SIZE, devices=DEVICES)
    rows = source.rows(target.device, start, end)
    if generation < LATE or not rows:
        return rows
    # Early in the window, so that an arriving row is in a page that most tries have read already.
    index = len(rows) // (3 if generation < ARRIVING else 10)
    late = {**rows[index], "frame_number": 4711}
    if generation >= ARRIVING:
        last = target.window[1] - timedelta(milliseconds=1)
        late["timestamp"] = last.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [*rows[:index], late, *rows[index:]]


def _phase(share: float) -> str:
    return "at the end" if share == 1.0 else "in the middle"


class _Try:
    """A process that runs one try."""

    def __init__(self, context: Any, job: Job) -> None:
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=run_try, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def is_alive(self) -> bool:
        alive: bool = self._process.is_alive()
        return alive

    def kill(self) -> None:
        self._process.kill()

    def finish(self) -> Report | None:
        """Return the report, or None if the process was killed."""
        report = None
        with suppress(EOFError):
            if not self._ours.poll(SECONDS_OF_A_TRY):
                self._process.kill()
                raise ViolationError(f"a try did not end within {SECONDS_OF_A_TRY:.0f} s")
            report = self._ours.recv()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            raise ViolationError("a process did not end after its report")
        return report


@contextmanager
def open_chaos(seed: int) -> Iterator[Chaos]:
    """Yield a ``Chaos`` with a store and a temporary folder."""
    with SeaweedFS() as store, tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        for child in ("tree", "tmp", "home"):
            (folder / child).mkdir()
        environ = {
            "AIRFLOW_HOME": str(folder / "home"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "AWS_MAX_ATTEMPTS": "8",
        }
        before = dict(os.environ)
        os.environ.update(environ)
        try:
            yield Chaos(store, folder, seed)
        finally:
            os.environ.clear()
            os.environ.update(before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=3, help="extractions at once (default: %(default)s)")
    parser.add_argument(
        "--tamper", action="store_true", help="at the end, create violations and show that the checks find them"
    )
    parser.add_argument("--page", action="store_true", help=f"write the results to {PAGE.name}")
    options = parser.parse_args(argv)
    began = time.monotonic()
    with open_chaos(options.seed) as chaos:
        chaos.run(options.extractions, options.lanes)
        counts = chaos.counts
        show(counts, f"seed {options.seed}, {time.monotonic() - began:.0f} s")
        if options.page:
            write_page(counts, options.seed)
        if options.tamper:
            violations = list(counts.violations)
            chaos.tamper()
            chaos.check_leftovers()
            print("found after tampering:", *counts.violations[len(violations) :], sep="\n")
            return bool(violations)
    return bool(counts.violations)


def write_page(counts: Counts, seed: int) -> None:
    """Write the results into docs/reliability.md."""
    happened, endings = counts.happened, counts.endings
    faults = ", ".join(f"{kind} {number}" for kind, number in counts.faults.most_common())
    errors = ", ".join(f"`{name}` {number}" for name, number in endings.most_common() if name.endswith("Error"))
    rows = {
        f"extractions (seed {seed})": f"{happened['extractions']:,}, "
        f"{happened['reruns']} of them over an existing object",
        "tries": f"{happened['tries']:,}; {happened['duels']} extractions with two tries at once, "
        f"{happened['late rows between tries']} with a row that arrived between two tries, "
        f"{happened['late rows during a try']} with one that arrived while a page was late",
        "tries that succeeded": f"{endings['success']:,}",
        "tries that were killed": f"{endings['killed']:,}",
        "tries that failed": errors,
        "faults of the API": f"{counts.faults.total():,}: {faults}",
        "the store was killed": f"{happened['stores killed']} times",
        "pages read": f"{happened['pages']:,}, {happened['pages resumed']:,} of them staged by an earlier try",
        "objects compared": f"{happened['objects checked']:,}, with {happened['rows checked']:,} rows",
        "**violations**": f"**{len(counts.violations)}**",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    head, rest = PAGE.read_text().split("--page -->\n")
    end = rest[rest.index("<!-- end -->") :]
    PAGE.write_text(f"{head}--page -->\n\n| | |\n| --- | --- |\n{table}\n\n{end}")


def show(counts: Counts, facts: str) -> None:
    """Print the events and the violations."""
    tables = {"what happened": counts.happened, "how tries ended": counts.endings, "faults of the API": counts.faults}
    for title, counter in tables.items():
        print(f"\n{title}")
        for name, number in counter.most_common():
            print(f"  {number:>11,}  {name}")
    print(f"\nviolations: {len(counts.violations)}   ({facts})", *counts.violations, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
