"""
Run extractions under random faults, kills, reruns, duels (two tries at once) and late rows, and check what they leave.

An extraction is one of a device, or of an account in either layout. ``make chaos`` runs this for minutes,
tests/test_chaos.py for a minute. The lake is a real S3-compatible store and a folder, the API is a simulator, and each
try of an extraction is a process. The seed determines the plan; what happens also depends on timing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
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
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from airflow_provider_unleash.simulator import FAULT_KINDS, Fault, Simulator
from tools.chaos_worker import CHECKPOINT_PAGES, JOURNAL_SECONDS, Job, Report, run_try
from tools.s3_lake import S3Lake, connection_to
from tools.seaweedfs import SeaweedFS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
DAY = datetime(2026, 1, 12, tzinfo=timezone.utc)
ROWS_A_DAY, PAGE_SIZE = 4000, 200
SILENT = "W7d2e90b4c6a1f58"
DEVICES = ("Wb8fabc31378ce07", "W022abc5be35bb72", "Weea288bc1faaddd", "W9d3f1bcad8e8abd", SILENT)
ACCOUNT = tuple(sorted((*DEVICES, *(f"W{index:015x}" for index in range(7)))))
# One page, about twenty, and so many that the upload of the object has several parts.
LENGTHS = (timedelta(hours=2), timedelta(days=1), timedelta(days=11))
FORMATS = ("parquet", "jsonl", "csv")
STATUSES = ("400", "401", "403", "404", "408", "500", "502", "503", "504")
KINDS = (*FAULT_KINDS, *STATUSES)
# Tries with faults and kills. After them, a try has to succeed.
TRIES = 3
TARGETS_OF_A_LANE, ACCOUNTS_OF_A_LANE = 12, 8
# Added to the number of a generation: the same rows, and one that arrives between two tries or during the first.
LATE = 10_000
ARRIVING = 20_000
# What delays the first usable response of a page.
DELAYS = ("slow", "slow", "reset", "500", "garbage", "half_body")
SECONDS_OF_A_TRY = 90.0
# A try that is killed so long after a device has landed has saved it in its journal, even on a busy machine.
SECONDS_TO_REMEMBER = JOURNAL_SECONDS + 4.0

Row = tuple[Any, ...]


class ViolationError(Exception):
    """A promise of the package is broken."""


# ---- plans -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """
    The objects that extractions write.

    :param layout: the object of one device, one object per device of the account, or one for all devices.
    """

    store: str
    layout: Literal["device", "split", "one"]
    lane: int
    devices: tuple[str, ...]
    length: timedelta
    day: int
    file_format: str

    @property
    def window(self) -> tuple[datetime, datetime]:
        start = DAY + timedelta(days=self.day)
        return start, start + self.length

    @property
    def window_ms(self) -> tuple[int, int]:
        start, end = (int(moment.timestamp() * 1000) for moment in self.window)
        return start, end

    @property
    def tree(self) -> str:
        return f"{self.layout}-{self.file_format}-{self.lane}"

    @property
    def window_name(self) -> str:
        start, end = self.window
        return f"start_date={start:%Y-%m-%d}/{start:%Y%m%dT%H%M%SZ}_{end:%Y%m%dT%H%M%SZ}"

    @property
    def objects(self) -> dict[str, tuple[str, ...]]:
        """Return the devices of each object, by its name in the tree."""
        name = f"{self.window_name}.{self.file_format}"
        if self.layout == "one":
            return {name: self.devices}
        return {f"device={device}/{name}": (device,) for device in self.devices}

    @property
    def manifest(self) -> str:
        ids = f".{hashlib.sha256(self.devices[0].encode()).hexdigest()[:8]}" if self.layout == "device" else ""
        return f"_manifest/{self.window_name}{ids}.manifest"

    @property
    def late_device(self) -> str:
        """The device whose rows may arrive late."""
        return next((device for device in self.devices if device != SILENT), SILENT)


@dataclass(frozen=True)
class Plan:
    """
    The plan for one extraction: faults and kill of each try, two tries at once or not, and how the rows change.

    :param arrives_at: number of the late device's response from which on it has another row; 0 if it never has.
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
    is_account = rng.random() < 0.6
    index = TARGETS_OF_A_LANE + rng.randrange(ACCOUNTS_OF_A_LANE) if is_account else rng.randrange(TARGETS_OF_A_LANE)
    target = _make_target(lane, index)
    kills = [_make_kill(rng) for _ in range(TRIES)]
    if number % 12 == 7:
        target = replace(target, store="s3")
        kills[0] = Kill("store", rng.choice((rng.random(), 1.0)), rng.uniform(0, 0.08))
    plan = Plan(
        target,
        # Each extraction of an account has other rows, so the objects tell which devices have landed.
        generation=number if is_account else rng.randrange(3),
        faults=tuple(_make_faults(rng, target) for _ in range(TRIES)),
        kills=tuple(kills),
        is_duel=rng.random() < 0.1,
        # With one page, there is nothing to grow while it is extracted.
        grows=(fate := rng.random()) < 0.1 and target.length > LENGTHS[0],
        is_late=fate > 0.85,
    )
    if target.late_device == SILENT or target.length == LENGTHS[0] or rng.random() > (0.2 if is_account else 0.6):
        return plan
    pages = -(-len(_api_rows(target, target.late_device, plan.generation + ARRIVING)) // PAGE_SIZE)
    late = Fault(
        rng.choice(DELAYS),
        path=f"/{target.late_device}/",
        page=rng.choice((1, rng.randint(2, pages), pages, pages)),
        seconds=rng.choice((0.5, 1.5)),
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
    day = 20 * lane + index % 3
    if index >= TARGETS_OF_A_LANE:
        layout: Literal["split", "one"] = "one" if index % 2 else "split"
        store = "file" if index in (15, 16) else "s3"
        return Target(store, layout, lane, ACCOUNT, LENGTHS[index // 2 % 2], day, FORMATS[index % len(FORMATS)])
    length = LENGTHS[(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2)[index]]
    return Target(
        store="file" if index % 4 == 1 else "s3",
        layout="device",
        lane=lane,
        devices=(DEVICES[(index + lane) % len(DEVICES)],),
        length=length,
        day=day,
        file_format="jsonl" if length == LENGTHS[2] else FORMATS[index % len(FORMATS)],
    )


def _make_faults(rng: random.Random, target: Target) -> tuple[Fault, ...]:
    return tuple(_make_fault(rng, target) for _ in range(rng.choice((0, 1, 1, 2, 4))))


def _make_fault(rng: random.Random, target: Target) -> Fault:
    kind = rng.choice(KINDS)
    pages = max(1, int(target.length / timedelta(days=1) * ROWS_A_DAY / PAGE_SIZE))
    is_silent = target.devices == (SILENT,)
    paths = [""]
    if is_silent or target.layout != "device":  # the devices are listed for an account, or if there are no rows
        paths.append("/devices")
    if target.layout != "device":
        paths += [f"/{device}/" for device in rng.sample(ACCOUNT, 6)]
    return Fault(
        kind,
        path=rng.choice(paths),
        page=None if is_silent else rng.choice((None, None, 1, 2, rng.randint(1, pages), pages)),
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

    def url(self, target: Target) -> str:
        root = "s3://lake_conn@lake" if target.store == "s3" else f"file://{self._folder}"
        return f"{root}/tree/{target.tree}"

    def read(self, target: Target, name: str) -> bytes | None:
        if target.store == "file":
            with suppress(FileNotFoundError):
                return self._path(target, name).read_bytes()
            return None
        return self._s3.read(f"{target.tree}/{name}")

    def modified(self, target: Target, name: str) -> float:
        """Return when an object was written, in seconds since the epoch."""
        if target.store == "file":
            return self._path(target, name).stat().st_mtime
        key = f"{self._s3.prefix}{target.tree}/{name}"
        return float(self._s3.client.head_object(Bucket="lake", Key=key)["LastModified"].timestamp())

    def names(self, target: Target) -> set[str]:
        tree = self._path(target, "")
        if target.store == "file":
            return {str(path.relative_to(tree)) for path in _files(tree)}
        return {name.removeprefix(f"{target.tree}/") for name in self._s3.names() if name.startswith(f"{target.tree}/")}

    def all_names(self) -> set[tuple[str, str]]:
        tree = self._folder / "tree"
        found = {("file", str(path.relative_to(tree))) for path in _files(tree)}
        return found | {("s3", name) for name in self._s3.names()}

    def tamper(self, target: Target) -> None:
        """Remove the last row of a JSON lines object and of a manifest in S3; add another object and an open upload."""
        for name in (next(iter(target.objects)), target.manifest):
            lines = (self.read(target, name) or b"").splitlines(keepends=True)
            self._s3.client.put_object(Bucket="lake", Key=f"tree/{target.tree}/{name}", Body=b"".join(lines[:-1]))
        self._s3.client.put_object(Bucket="lake", Key="tree/stray", Body=b"")
        self._s3.client.create_multipart_upload(Bucket="lake", Key="tree/upload")

    def _path(self, target: Target, name: str) -> Path:
        return self._folder / "tree" / target.tree / name


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


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


@dataclass
class Progress:
    """
    What the tries of one extraction have reached so far.

    :param landed: the generation of each device whose object is new.
    :param remembered: devices that the next try must not request, because the journal must have them.
    """

    landed: dict[str, int] = field(default_factory=dict)
    remembered: set[str] = field(default_factory=set)


class Chaos:
    """Runs plans in lanes. Each extraction starts from the state that the one before left."""

    def __init__(self, store: SeaweedFS, folder: Path, seed: int) -> None:
        self._store = store
        self._folder = folder
        self._seed = seed
        self.lake = Lake(store, folder)
        self.counts = Counts()
        self._old: dict[Target, dict[str, int]] = {}  # the generation of each device's rows in the lake
        self._manifests: dict[Target, bytes] = {}
        self._restarting = threading.Lock()
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
        self.counts.add(**{"late rows during a try": plan.arrives_at > 0, f"layout {plan.target.layout}": 1})
        progress = Progress()
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
                succeeded = self._try(plan, api, progress, kill)
                self._count_faults(api)
                api.clear_faults()
                if succeeded:
                    break
            else:
                # No more faults in this extraction, but other lanes may still kill the store.
                for _ in range(3):
                    if self._try(plan, api, progress, None, alone=True):
                        break
                else:
                    raise ViolationError("no success without faults")
            # The loser of a duel may have checkpointed pages after the winner cleaned up.
            if plan.is_duel and not self._try(plan, api, progress, None, alone=True):
                raise ViolationError("the rerun after a duel did not succeed")

    def _open_api(self, plan: Plan, port: int = 0) -> Simulator:
        target = plan.target
        options: dict[str, Any] = {"page_size": PAGE_SIZE, "devices": ACCOUNT}
        if plan.generation >= LATE:
            options["rows"] = {device: _api_rows(target, device, plan.generation) for device in target.devices}
        if plan.arrives_at:
            has_arrived = threading.Event()

            def clock() -> float:  # the simulator asks for the time for each page that it serves
                if sum(f"/{target.late_device}/" in request.path for request in api.requests) + 1 >= plan.arrives_at:
                    has_arrived.set()
                return (target.window_ms[1] - (0 if has_arrived.is_set() else 2) + 0.5) / 1000

            options |= {"clock": clock, "sessions_from": target.window_ms[0]}
        if plan.grows:
            options["growing"] = 400 * max(1, target.length.days)
        api = Simulator(port, seed=plan.generation % LATE, rows_per_day=ROWS_A_DAY, **options)
        return api

    # ---- one try ----

    def _try(self, plan: Plan, api: Simulator, progress: Progress, kill: Kill | None, alone: bool = False) -> bool:
        """Run one process, or two at once, check what they leave, and return whether one succeeded."""
        api.clear_requests()
        job = self._job(plan, api)
        with self._restarting:
            stores_killed = self.counts.happened["stores killed"]
        began_at = time.time()
        tries = [_Try(self._context, job) for _ in range(2 if plan.is_duel and not alone else 1)]
        self.counts.add(tries=len(tries))
        killed = kill is not None and self._kill(plan, api, kill, tries[0])
        ended_at = time.time()
        reports = [one.finish() for one in tries]
        for report in reports:
            self._count_report(report)
        if not killed and None in reports:
            raise ViolationError("a try that was not killed ended without a report")
        requested = {device for device in plan.target.devices if any(f"/{device}/" in one.path for one in api.requests)}
        with self._restarting:  # the store is unavailable while it restarts
            store_was_up = self.counts.happened["stores killed"] == stores_killed
            # Of two tries at once, one may start after the other has succeeded, and then extracts everything again.
            if store_was_up and len(tries) == 1 and (again := requested & progress.remembered):
                raise ViolationError(f"a retry requested devices that had landed: {sorted(again)}")
            self.counts.add(**{"devices remembered": len(progress.remembered)})
            succeeded = self._check_lake(plan, progress, reports, requested, store_was_up)
            has_journal = plan.target.layout == "split" and not plan.arrives_at
            if not has_journal or not store_was_up or len(tries) > 1:
                progress.remembered.clear()
            else:
                deadline = ended_at - SECONDS_TO_REMEMBER if killed else math.inf
                progress.remembered |= self._landed_between(plan.target, progress, began_at, deadline)
        return succeeded

    def _landed_between(self, target: Target, progress: Progress, began_at: float, deadline: float) -> set[str]:
        """Return the devices whose new object was certainly written between two times."""
        found = set()
        for name, (device,) in target.objects.items():
            if device in progress.landed and device != SILENT:
                modified = self.lake.modified(target, name)  # S3 has whole seconds
                if began_at <= modified and modified + 1 < deadline:
                    found.add(device)
        return found

    def _job(self, plan: Plan, api: Simulator) -> Job:
        extra = {"timeout": 1, "max_attempts": 3, "mask_stream_tokens": False}
        unleash = {"conn_type": "unleash", "host": api.base_url, "password": api.api_key, "extra": extra}
        lake = connection_to(self._store.url)
        target = plan.target
        arguments: dict[str, Any] = {"dst": self.lake.url(target), "file_format": target.file_format}
        if target.layout == "device":
            arguments |= {"device_id": target.devices[0], "checkpoint_pages": CHECKPOINT_PAGES}
        else:
            arguments["split_by_device"] = target.layout == "split"
        if plan.arrives_at:
            # With staging, a try may wait for the digest of the last page, which hides a late one.
            arguments["resume_within"] = None
        return Job(str(self._folder), {"unleash_default": unleash, "lake_conn": lake}, target.window, arguments)

    def _kill(self, plan: Plan, api: Simulator, kill: Kill, victim: _Try) -> bool:
        """Kill the worker or the store at the planned time, and return whether the worker was killed."""
        target = plan.target
        requests = sum(len(_rows(target, device, plan.generation)) // PAGE_SIZE + 1 for device in target.devices) + (
            1 if target.layout == "device" else 2
        )
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
            self.counts.add(**{"stores killed": 1})
            self._store.kill()
            time.sleep(random.Random(due).uniform(0, 0.5))
            self._store.start()
        return False

    # ---- checks ----

    def _check_lake(
        self, plan: Plan, progress: Progress, reports: list[Report | None], requested: set[str], store_was_up: bool
    ) -> bool:
        """Check that each object is the old or the new one, as is the manifest; return whether a try succeeded."""
        target = plan.target
        succeeded = any(report is not None and report.summary is not None for report in reports)
        old = self._old.get(target, {})
        # What an earlier try has landed is not requested again, even if rows have arrived since.
        earlier = {device: number for device, number in progress.landed.items() if device not in requested}
        new = dict.fromkeys(target.devices, plan.generation) | earlier
        must_have_landed = set(target.devices) if succeeded else _landed_by_name(target, reports)
        found = {name: self.lake.read(target, name) for name in target.objects}
        rows = {
            name: None if content is None else rows_in(content, target.file_format) for name, content in found.items()
        }
        self.counts.add(**{"objects checked": len(found), "rows checked": sum(len(one or ()) for one in rows.values())})
        for name, devices in target.objects.items():
            if rows[name] == _object_rows(target, devices, new):
                self._old.setdefault(target, {}).update((device, new[device]) for device in devices)
                progress.landed.update((device, new[device]) for device in devices)
            elif must_have_landed.issuperset(devices) or rows[name] != _object_rows(target, devices, old):
                state = "is missing" if (content := rows[name]) is None else f"has {len(content)} rows"
                raise ViolationError(f"{name} {state}: expected new rows, or old ones; success: {succeeded}")
        is_new = self._check_manifest(target, found, rows)
        if succeeded and not is_new:
            raise ViolationError("a success left the old manifest")
        if is_new and not succeeded and store_was_up and None not in reports:
            raise ViolationError("a failed try published a manifest")
        if not succeeded:
            return False
        if len(reports) == 1:
            if uploads := self.lake.uploads(target.tree):
                raise ViolationError(f"open uploads after a success: {uploads}")
            if staged := [name for name in self.lake.names(target) if name.startswith("_staging")]:
                raise ViolationError(f"staged files after a success: {staged}")
        total = sum(len(_rows(target, device, new[device])) for device in target.devices)
        for report in reports:
            if report is not None and report.summary is not None and report.summary["rows"] != total:
                raise ViolationError(f"the summary counts {report.summary['rows']} rows, not {total}")
        return True

    def _check_manifest(
        self, target: Target, found: dict[str, bytes | None], rows: dict[str, list[Row] | None]
    ) -> bool:
        """Return whether there is a new manifest, and check that it describes the objects."""
        content = self.lake.read(target, target.manifest)
        if content == self._manifests.get(target):
            return False
        if content is None:
            raise ViolationError("the manifest is gone")
        self._manifests[target] = content
        self.counts.add(manifests=1)
        expected = []
        for device in target.devices:
            name = next(name for name, devices in target.objects.items() if device in devices)
            number = sum(row[1] == device for row in rows[name] or ())
            path = name if number or target.layout == "device" else None
            size = len(found[name] or b"") if path else 0
            expected.append((device, *target.window, number, size, path))
        lines = [json.loads(line) for line in content.splitlines()]
        described = [
            (
                *(line["device_id"], *(datetime.fromisoformat(line[key]) for key in ("start", "end"))),
                *(line[key] for key in ("rows", "bytes", "path")),
            )
            for line in lines
        ]
        if described != expected:
            wrong = [one for one in described if one not in expected] or f"{len(lines)} lines"
            raise ViolationError(f"the manifest does not describe the objects: {wrong}")
        return True

    def tamper(self) -> None:
        """Create violations: remove a row of an object, a line of a manifest; add an object, an upload and a file."""
        harmed = next(
            target
            for target in self._manifests
            if (target.store, target.file_format) == ("s3", "jsonl") and target.late_device != SILENT
        )
        self.lake.tamper(harmed)
        (self._folder / "tmp" / "stray").touch()

    def check_leftovers(self) -> None:
        """Look for stray objects, uploads and temporary files, and compare every object and manifest again."""
        names = self.lake.all_names()
        expected = {(target.store, f"{target.tree}/{target.manifest}") for target in self._manifests}
        for target, generations in self._old.items():
            if self.lake.read(target, target.manifest) != self._manifests.get(target):
                self.counts.violations.append(f"the manifest of {target} differs from its last extraction")
            for name, devices in target.objects.items():
                rows = _object_rows(target, devices, generations)
                if rows is not None:
                    expected.add((target.store, f"{target.tree}/{name}"))
                    self.counts.add(**{"objects checked": 1, "rows checked": len(rows)})
                found = self.lake.read(target, name)
                if (None if found is None else rows_in(found, target.file_format)) != rows:
                    self.counts.violations.append(f"{name} of {target} differs from its last extraction")
        if strays := names - expected:
            self.counts.violations.append(f"stray objects: {sorted(strays)}")
        if missing := expected - names:
            self.counts.violations.append(f"missing objects: {sorted(missing)}")
        if uploads := self.lake.uploads():
            self.counts.violations.append(f"open uploads: {uploads}")
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
            resumed = {f"{what} resumed": report.summary.get(f"resumed_{what}", 0) for what in ("pages", "devices")}
            self.counts.add(**{"pages": report.summary["pages"]}, **resumed)

    def _count_faults(self, api: Simulator) -> None:
        kinds = [request.fault for request in api.requests if request.fault]
        self.counts.add_to(self.counts.faults, kinds)
        self.counts.add(requests=len(api.requests))


def _api_rows(target: Target, device: str, generation: int, excluded_ms: int = 0) -> list[dict[str, Any]]:
    """Return the API's rows of a window. A late generation has another row, which may be the one stamped last."""
    start, end = target.window_ms
    source = Simulator(seed=generation % LATE, rows_per_day=ROWS_A_DAY, page_size=PAGE_SIZE, devices=ACCOUNT)
    rows = source.rows(device, start, end - excluded_ms)
    if generation < LATE or device != target.late_device or not rows:
        return rows
    # Early in the window, so that an arriving row is in a page that most tries have read already.
    index = len(rows) // (3 if generation < ARRIVING else 10)
    late = {**rows[index], "frame_number": 4711}
    if generation >= ARRIVING:
        last = target.window[1] - timedelta(milliseconds=1)
        late["timestamp"] = last.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [*rows[:index], late, *rows[index:]]


@lru_cache(maxsize=512)
def _rows(target: Target, device: str, generation: int) -> list[Row]:
    """Return the rows of a device that an extraction must write."""
    return [_canonical(row) for row in _api_rows(target, device, generation, excluded_ms=1)]


def _object_rows(target: Target, devices: tuple[str, ...], generations: dict[str, int]) -> list[Row] | None:
    """Return the rows of an object, or None if there is none."""
    if not generations.keys() >= set(devices):
        return None
    rows = [row for device in devices for row in _rows(target, device, generations[device])]
    # The operator for one device also writes an object without rows.
    return rows if rows or target.layout == "device" else None


def _landed_by_name(target: Target, reports: list[Report | None]) -> set[str]:
    """Return the devices that a failed try must have landed, because its error names only others."""
    landed = set()
    for report in reports:
        if report is not None and report.error.endswith("PartialExtractionError") and target.layout == "split":
            landed |= {device for device in target.devices if f"\n{device}:" not in report.message}
    return landed


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
    happened, endings = counts.happened, counts.endings
    faults = ", ".join(f"{kind} {number}" for kind, number in counts.faults.most_common())
    errors = ", ".join(f"`{name}` {number}" for name, number in endings.most_common() if name.endswith("Error"))
    rows = {
        f"extractions (seed {seed})": f"{happened['extractions']:,}, "
        f"{happened['layout split']} of an account with one object per device, {happened['layout one']} with one for "
        f"all devices; {happened['reruns']} over existing objects",
        "tries": f"{happened['tries']:,}; {happened['duels']} extractions with two tries at once, "
        f"{happened['late rows between tries']} with a row that arrived between two tries, "
        f"{happened['late rows during a try']} with one that arrived while a page was late",
        "tries that succeeded": f"{endings['success']:,}",
        "tries that were killed": f"{endings['killed']:,}",
        "tries that failed": errors,
        "faults of the API": f"{counts.faults.total():,}: {faults}",
        "the store was killed": f"{happened['stores killed']} times",
        "pages read": f"{happened['pages']:,}, {happened['pages resumed']:,} of them staged by an earlier try",
        "devices not requested again": f"{happened['devices remembered']:,}",
        "objects compared": f"{happened['objects checked']:,}, with {happened['rows checked']:,} rows",
        "manifests compared": f"{happened['manifests']:,}",
        "**violations**": f"**{len(counts.violations)}**",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    head, rest = PAGE.read_text().split("--page -->\n")
    end = rest[rest.index("<!-- end -->") :]
    PAGE.write_text(f"{head}--page -->\n\n| | |\n| --- | --- |\n{table}\n\n{end}")


def show(counts: Counts, facts: str) -> None:
    tables = {"what happened": counts.happened, "how tries ended": counts.endings, "faults of the API": counts.faults}
    for title, counter in tables.items():
        print(f"\n{title}")
        for name, number in counter.most_common():
            print(f"  {number:>11,}  {name}")
    print(f"\nviolations: {len(counts.violations)}   ({facts})", *counts.violations, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
