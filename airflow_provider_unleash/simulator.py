"""
A stand-in for the Unleash live Analytics API, for demos, tests and people without API access.

::

    python -m airflow_provider_unleash.simulator --port 8642
    curl -H 'x-api-key: simulator-key' http://127.0.0.1:8642/v1/analytics/devices

``--help`` lists every option and fault. In a test: ``with Simulator(page_size=10) as sim: sim.base_url``.
"""

from __future__ import annotations

import argparse
import gzip
import ipaddress
import json
import math
import random
import re
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from email.message import Message
from email.utils import formatdate
from functools import lru_cache, partial
from http.client import responses
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import unquote
from zlib import crc32

Record = dict[str, Any]

DEFAULT_KEYS = ("simulator-key", "ul_pat_simulator")
API_VERSION = "1.0.1"
HOUR_MS = 3_600_000
FRAMES_PER_SECOND = 15
ROWS_PER_DAY = 5000
SESSION_PERIOD = 4 * 3600.0
MAX_DAYS = 92
CONTROL = "/_simulator/"
MAINTENANCE = b"<html><head><title>Maintenance</title></head><body>We will be back soon</body></html>"

# The documented examples have this order in descriptive answers, the alphabet's in compact ones.
TABLEAU_KEYS = (
    *("timestamp", "class_name", "count", "device_id"),
    *("source_file_name", "frame_number", "model_id", "session_id"),
)
KEYS = tuple(sorted(TABLEAU_KEYS))
# Without device_id and timestamp: a row has to stay findable for a test to say what became of it.
NULLABLE_KEYS = ("count", "frame_number", "model_id", "session_id", "source_file_name")

# How busy a place is, by hour of the day: quiet nights, two rush hours.
BUSY = (
    *(0.05, 0.03, 0.02, 0.02, 0.05, 0.20, 0.50, 0.90, 1.00, 0.70, 0.55, 0.60),
    *(0.70, 0.65, 0.60, 0.70, 0.90, 1.00, 0.85, 0.60, 0.40, 0.30, 0.20, 0.10),
)
ADJECTIVES = ("sneaky", "gentle", "brave", "quiet", "rapid", "sunny", "clever", "lucky")
ANIMALS = ("firefox", "wombat", "heron", "otter", "badger", "lynx", "magpie", "gecko")


# ---- rows and sessions: functions of seed, device and time ---------------------------------------


@dataclass(frozen=True)
class Profile:
    """What a device sees: its classes as (name, weight, highest count), none for a silent device."""

    model_id: str
    classes: tuple[tuple[str, int, int], ...]
    crowd: bool = False
    recorded: bool = False


STREET = Profile("starter-ai", (("person", 4, 7), ("car", 5, 9), ("truck", 1, 2), ("bicycle", 2, 4)))
CROWD = (
    *(("this_frame_persons_count", 1, 12), ("number_of_groups", 1, 4)),
    *(("group_pixel_size", 1, 900), ("total_count", 1, 60)),
)
PROFILES = {
    "Wb8fabc31378ce07": STREET,
    "W022abc5be35bb72": Profile("starter-ai", (("bicycle", 5, 6), ("person", 4, 5), ("car", 1, 3))),
    "Weea288bc1faaddd": Profile("vehicle-counting", (("car", 6, 14), ("truck", 3, 4), ("bicycle", 1, 2))),
    "W9d3f1bcad8e8abd": Profile("sparse-crowd-density-alphapose", CROWD, crowd=True),
    "W41f0c6e7a9d2b38": replace(STREET, recorded=True),
    "W7d2e90b4c6a1f58": replace(STREET, classes=()),
}


def generate_rows(
    seed: int,
    device_id: str,
    start_ms: int,
    end_ms: int,
    *,
    rows_per_day: int = ROWS_PER_DAY,
    session_period: float = SESSION_PERIOD,
) -> Iterator[Record]:
    """
    Yield the rows of a device stamped in [start_ms, end_ms], both included, in the order of time.

    A row depends on seed, device and time alone, so windows that overlap agree about their overlap.
    A device that :data:`PROFILES` does not have is a street camera.

    :param rows_per_day: about how many rows a day has
    :param session_period: seconds between two new sessions, on average
    """
    for hour in range(max(start_ms, 0) // HOUR_MS, end_ms // HOUR_MS + 1):
        for moment, record in _hour_records(seed, device_id, hour, rows_per_day, session_period):
            if start_ms <= moment <= end_ms:
                yield dict(record)


def generate_even_rows(
    seed: int, device_id: str, start_ms: int, end_ms: int, total: int, first: int, last: int
) -> Iterator[Record]:
    """Yield rows [first, last) of total rows spread evenly in [start_ms, end_ms), for benchmarks."""
    profile = PROFILES.get(device_id, STREET)
    session = session_start(seed, start_ms)
    source = _source_file_name(seed, device_id, start_ms // HOUR_MS)
    for index in range(first, last):
        moment = start_ms + index * (end_ms - start_ms) // total
        chance = crc32(f"{seed}/{device_id}/{moment}/{index}".encode())
        name, _, most = profile.classes[chance % len(profile.classes)]
        what = (name, 1 + chance // 16 % most)
        yield _record(what, device_id, index + 1, profile.model_id, session, source, moment)


def generate_sessions(seed: int, start_ms: int, end_ms: int, session_period: float = SESSION_PERIOD) -> Iterator[int]:
    """Yield when the sessions of [start_ms, end_ms] began, in epoch milliseconds."""
    period = _milliseconds(session_period)
    for index in range(start_ms // period, end_ms // period + 1):
        if start_ms <= (start := _nth_session(seed, index, period)) <= end_ms:
            yield start


def session_start(seed: int, moment_ms: int, session_period: float = SESSION_PERIOD) -> int:
    """Return when the session of that moment began, in epoch milliseconds."""
    period = _milliseconds(session_period)
    index = moment_ms // period
    start = _nth_session(seed, index, period)
    return start if start <= moment_ms else _nth_session(seed, index - 1, period)


def _nth_session(seed: int, index: int, period: int) -> int:
    return index * period + crc32(f"{seed}/session/{index}".encode()) % max(1, period * 3 // 4)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


@lru_cache(maxsize=256)
def _hour_records(
    seed: int, device_id: str, hour: int, rows_per_day: int, session_period: float
) -> tuple[tuple[int, Record], ...]:
    profile = PROFILES.get(device_id, STREET)
    rng = random.Random(f"{seed}/{device_id}/{hour}")
    source = _source_file_name(seed, device_id, hour)
    seen_in_second: Counter[int] = Counter()
    records = []
    for second in _frame_seconds(rng, profile, hour, rows_per_day):
        moment = hour * HOUR_MS + second * 1000
        session = session_start(seed, moment, session_period)
        # A crowded second stops at its last frame, so frame numbers never run backwards.
        nth = min(seen_in_second[second], FRAMES_PER_SECOND - 1)
        seen_in_second[second] += 1
        frame = (moment - session) * FRAMES_PER_SECOND // 1000 + nth
        for what in _draw_counts(rng, profile, hour):
            record = _record(what, device_id, frame, profile.model_id, session, source, moment)
            records.append((moment, record))
    return tuple(records)


def _frame_seconds(rng: random.Random, profile: Profile, hour: int, rows_per_day: int) -> list[int]:
    if not profile.classes:
        return []
    rows = rows_per_day * BUSY[hour % 24] / sum(BUSY) * (0.8 + 0.4 * rng.random())
    frames = round(rows / len(profile.classes)) if profile.crowd else round(rows)
    return sorted(int(rng.random() * 3600) for _ in range(frames))


def _draw_counts(rng: random.Random, profile: Profile, hour: int) -> list[tuple[str, int]]:
    classes, busy = profile.classes, BUSY[hour % 24]
    if profile.crowd:
        return [(name, int(rng.random() * (1 + most * busy))) for name, _, most in classes]
    [(name, _, most)] = rng.choices(classes, [weight for _, weight, _ in classes])
    return [(name, 1 + int(rng.random() ** 2 * most * busy))]


@lru_cache(maxsize=1024)
def _source_file_name(seed: int, device_id: str, hour: int) -> str:
    if PROFILES.get(device_id, STREET).recorded:
        start = hour * HOUR_MS // 1000
        return f"{device_id}-{start}-{time.strftime('%d-%b-%y-%H-%M-%S', time.gmtime(start))}.mp4"
    rng = random.Random(f"{seed}/{device_id}")
    return f"{device_id}?token={rng.choice(ADJECTIVES)}-{rng.choice(ANIMALS)}-{rng.randrange(100, 1000)}"


def _record(
    what: tuple[str, int], device_id: str, frame: int, model_id: str, session: int, source: str, moment: int
) -> Record:
    values = (*what, device_id, frame, model_id, str(session), source, _format_stamp(moment))
    return dict(zip(KEYS, values, strict=True))


def _format_stamp(moment: int) -> str:
    second, millisecond = divmod(moment, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{millisecond:03d}Z"


def _parse_stamp(stamp: Any) -> int | None:
    try:
        moment = datetime.fromisoformat(re.sub("Z$", "+00:00", stamp))  # Python 3.10 does not read the Z
    except (TypeError, ValueError):
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1000)


# ---- the account: rows and sessions under the options, as pages -------------------------------------


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Options:
    """How account and server behave; each field is a keyword of Simulator and a command line option."""

    seed: int = _option(0, "another seed, other rows and sessions")
    devices: tuple[str, ...] = _option((), "device ids, comma separated, instead of the default ones")
    rows_per_day: int = _option(ROWS_PER_DAY, "about how many rows a device has each day")
    session_period: float = _option(SESSION_PERIOD, "seconds between two new sessions, on average")
    sessions_from: int | None = _option(None, "list sessions from that epoch ms (default: 3 days ago)")
    page_size: int = _option(1000, "rows in a full page")
    latency: float = _option(0.0, "seconds that each request takes longer")
    inclusive_to: bool = _option(True, "whether rows stamped exactly «to» are in the window")
    selection_lag_ms: int = _option(0, "rows are selected by their stamp plus so many milliseconds")
    unknown_device: Literal["empty", "404"] = _option("empty", "no rows, or 404", choices=("empty", "404"))
    empty_total: Literal[0, 1] = _option(0, "total_num_pages of a window without rows", choices=(0, 1))
    fixed_pages: int = _option(0, "every window has so many full pages, for benchmarks; 0 is off")
    gzip: bool = _option(True, "compress pages for clients that accept it")
    cache_bytes: int = _option(64 * 1024 * 1024, "how much rendered pages may occupy")
    reorder_keys: bool = _option(False, "each page has its own order of keys")
    new_key: str = _option("", "a further key, such as confidence, that rows have from --new-key-page on")
    new_key_page: int = _option(2, "first page with the new key")
    nulls: bool = _option(False, "some values are null")
    growing: int = _option(0, "a window's first request sees half its rows, each later one X more")

    def __post_init__(self) -> None:
        if self.page_size < 1 or self.session_period <= 0:
            raise ValueError("page_size and session_period must be greater than zero")
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{option.name} must be one of {choices}, not {value!r}")


class Account:
    """The devices, sessions and rows of one account, as pages of bytes; it does no I/O."""

    def __init__(
        self, options: Options, rows: Mapping[str, Iterable[Record]] | None, clock: Callable[[], float]
    ) -> None:
        self.devices = list(options.devices or (PROFILES if rows is None else rows))
        self._options, self._clock = options, clock
        self._given = None if rows is None else {device: _with_stamps(rows[device]) for device in rows}
        self._fixed = rows is None and options.fixed_pages > 0
        start = options.sessions_from
        self._sessions_from = self._now() - 72 * HOUR_MS if start is None else start
        self._select = lru_cache(maxsize=4)(self._select_records)
        self._reads: Counter[tuple[str, int, int]] = Counter()
        self._bodies = _BodyCache(options.cache_bytes)
        # Rendering holds the GIL anyway; this way concurrent readers of one window generate its rows once.
        self._rendering = threading.Lock()

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def sessions(self, now_ms: int | None) -> list[str]:
        """Return the ids of the sessions that have begun by now."""
        now, options = self._now() if now_ms is None else now_ms, self._options
        return [
            str(start) for start in generate_sessions(options.seed, self._sessions_from, now, options.session_period)
        ]

    def rows(self, device_id: str, start_ms: int, end_ms: int) -> list[Record]:
        """Return what all pages hold together, once nothing grows any more."""
        low, high = self._bounds(start_ms, end_ms)
        pages = self._page(device_id, low, high, 1)[1]
        chosen = (self._page(device_id, low, high, number)[0] for number in range(1, pages + 1))
        return [dict(record) for records in chosen for record in records]

    def body(
        self, device_id: str, start_ms: int, end_ms: int, number: int, *, tableau: bool, compressed: bool
    ) -> bytes:
        """Return one page as JSON; ValueError for a window too wide to generate."""
        low, high = self._bounds(start_ms, end_ms)
        with self._rendering:
            reads = self._count_read(device_id, start_ms, end_ms) if self._options.growing else None
            key = (device_id, low, high, number, reads, tableau, compressed)
            if (body := self._bodies.get(key)) is None:
                records, pages = self._page(device_id, low, high, number, reads)
                body = _render_page(records, pages, number if self._options.reorder_keys else 0, tableau)
                body = gzip.compress(body, 1, mtime=0) if compressed else body
                self._bodies.put(key, body)
            return body

    def _count_read(self, device_id: str, start_ms: int, end_ms: int) -> int:
        self._reads[device_id, start_ms, end_ms] += 1
        return self._reads[device_id, start_ms, end_ms] - 1

    def _bounds(self, start_ms: int, end_ms: int) -> tuple[int, int]:
        """Turn a request's window into the first and the last stamp that it selects."""
        if self._fixed:
            return start_ms, end_ms
        lag, excluded = self._options.selection_lag_ms, 0 if self._options.inclusive_to else 1
        low, high = max(start_ms - lag, 0), min(end_ms - lag - excluded, self._now())
        if self._given is None and high - low > MAX_DAYS * 24 * HOUR_MS:
            raise ValueError(f"The simulator generates at most {MAX_DAYS} days at once")
        return low, high

    def _page(
        self, device_id: str, low: int, high: int, number: int, reads: int | None = None
    ) -> tuple[list[Record], int]:
        size, total = self._options.page_size, self._total(device_id, low, high)
        visible = total if reads is None else min(total, total // 2 + reads * self._options.growing)
        first, last = (number - 1) * size, min(number * size, visible)
        records = self._slice(device_id, low, high, first, last) if first < last else []
        pages = math.ceil(visible / size) or self._options.empty_total
        return [self._vary(record, number) for record in records], pages

    def _total(self, device_id: str, low: int, high: int) -> int:
        if not self._fixed:
            return len(self._select(device_id, low, high))
        silent = device_id not in self.devices or not PROFILES.get(device_id, STREET).classes
        return 0 if silent else self._options.fixed_pages * self._options.page_size

    def _slice(self, device_id: str, low: int, high: int, first: int, last: int) -> list[Record]:
        if not self._fixed:
            return self._select(device_id, low, high)[first:last]
        total = self._total(device_id, low, high)
        return list(generate_even_rows(self._options.seed, device_id, low, high, total, first, last))

    def _select_records(self, device_id: str, low: int, high: int) -> list[Record]:
        if device_id not in self.devices:
            return []
        if self._given is not None:
            given = self._given.get(device_id, [])
            return [record for moment, record in given if moment is None or low <= moment <= high]
        density, period = self._options.rows_per_day, self._options.session_period
        rows = generate_rows(self._options.seed, device_id, low, high, rows_per_day=density, session_period=period)
        return list(rows)

    def _vary(self, record: Record, number: int) -> Record:
        options, chance = self._options, 0
        if options.nulls or options.new_key:
            chance = crc32(repr(record).encode())
        if options.new_key and number >= options.new_key_page:
            record = {**record, options.new_key: 0.5 + chance % 500 / 1000}
        key = NULLABLE_KEYS[chance // 8 % len(NULLABLE_KEYS)]
        return {**record, key: None} if options.nulls and chance % 8 == 0 and key in record else record


def _with_stamps(records: Iterable[Record]) -> list[tuple[int | None, Record]]:
    return [(_parse_stamp(record.get("timestamp")), record) for record in records]


def _render_page(records: Sequence[Record], pages: int, turn: int, tableau: bool) -> bytes:
    keys = list(dict.fromkeys(key for record in records for key in record)) or list(KEYS)
    if tableau:
        keys.sort(key=(*TABLEAU_KEYS, *keys).index)
    keys = keys[turn % len(keys) :] + keys[: turn % len(keys)]
    if tableau:
        objects = [{key: record[key] for key in keys if key in record} for record in records]
        return _encode({"total_num_pages": pages, "data": objects})
    values = [[record.get(key) for key in keys] for record in records]
    return _encode({"keys": keys, "total_num_pages": pages, "data": values})


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class _BodyCache:
    """Rendered pages; the least recently used leave first. The caller locks."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._bodies: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> bytes | None:
        if key in self._bodies:
            self._bodies.move_to_end(key)
        return self._bodies.get(key)

    def put(self, key: tuple[Any, ...], body: bytes) -> None:
        self._bodies[key] = body
        self._size += len(body)
        while self._size > self._limit:
            self._size -= len(self._bodies.popitem(last=False)[1])


# ---- faults ------------------------------------------------------------------------------------------

FAULT_KINDS = {
    "429": "that status, as any other of 400 to 599 (401, 403, 404, 408, 500, 503, …), and a JSON message",
    "redirect": "302 to «location», if not given the same path on http://localhost",
    "reset": "the connection is reset before any answer",
    "half_body": "the right Content-Length, half of the bytes, end of connection",
    "html": "200 with the HTML of a maintenance page",
    "garbage": "200 with bytes that are no JSON, but are called so",
    "wrong_shape": "200 with JSON that is not this API's",
    "slow": "the right answer, «seconds» later",
    "echo_key": "401 with a body that repeats the key that was sent",
}


@dataclass(frozen=True)
class Fault:
    """
    Something that goes wrong with the requests that it matches.

    :param kind: one of :data:`FAULT_KINDS`, or a status from 400 to 599
    :param path: matches requests whose path contains this
    :param page: matches requests for this page
    :param times: how often it happens; None is for ever
    :param probability: how likely it happens to a request that it matches
    :param retry_after: the header's value; ``date:5`` sends an HTTP date 5 seconds ahead
    :param after: how many matching requests it spares first
    :param seconds: how long ``slow`` takes
    :param location: where ``redirect`` points to
    :param status: another status than the kind has, such as 400 for ``echo_key`` or 503 for ``html``
    """

    kind: str
    path: str = ""
    page: int | None = None
    times: int | None = 1
    probability: float = 1.0
    retry_after: str | float | None = None
    after: int = 0
    seconds: float = 1.0
    location: str = ""
    status: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS and not re.fullmatch("[45][0-9][0-9]", self.kind):
            raise ValueError(f"Unknown kind of fault {self.kind!r}; there are {', '.join(FAULT_KINDS)}")


_FAULT_TYPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("kind", "path", "retry_after", "location"), str),
    **dict.fromkeys(("page", "times", "after", "status"), int),
    **dict.fromkeys(("probability", "seconds"), float),
}


def parse_fault(values: str | Mapping[str, Any]) -> Fault:
    """Return the fault that ``kind=429,times=3`` or a JSON object means; ValueError when it means none."""
    if isinstance(values, str):
        pairs = [pair.partition("=") for pair in values.split(",")]
        values = {name.strip(): value for name, _, value in pairs}
    if "kind" not in values or not set(values) <= set(_FAULT_TYPES):
        raise ValueError(f"A fault has a kind and any of {', '.join(_FAULT_TYPES)}, not {', '.join(values)}")
    given: dict[str, Any] = {
        name: None if value in (None, "none") else _FAULT_TYPES[name](value) for name, value in values.items()
    }
    return Fault(**given)


@dataclass
class _ArmedFault:
    fault: Fault
    matched: int = 0
    happened: int = 0

    def happens(self, path: str, rng: random.Random) -> bool:
        fault = self.fault
        if fault.times is not None and self.happened >= fault.times:
            return False
        if fault.path not in path or fault.page not in (None, _page_of(path)):
            return False
        self.matched += 1
        if self.matched <= fault.after or rng.random() >= fault.probability:
            return False
        self.happened += 1
        return True


def _page_of(path: str) -> int | None:
    last = path.partition("?")[0].rpartition("/")[2]
    return int(last) if last.isdecimal() else None


# ---- the server --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoggedRequest:
    """
    What was asked and what came of it; never the key.

    ``status`` is 0 where the connection was reset, ``auth`` is ``x-api-key``, ``bearer`` or None.
    """

    number: int
    time: float
    method: str
    path: str
    status: int
    fault: str | None
    auth: str | None
    user_agent: str | None
    accept_encoding: str | None


@dataclass(frozen=True)
class _Asked:
    method: str
    path: str
    headers: Message

    def credential(self) -> tuple[str | None, str]:
        if (key := self.headers.get("x-api-key")) is not None:
            return "x-api-key", key.strip()
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return ("bearer", key.strip()) if scheme.lower() == "bearer" else (None, "")


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delivery: Literal["whole", "half", "reset"] = "whole"

    def and_headers(self, **headers: str) -> _Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.headers, **named})


def _message(status: int, text: str = "") -> _Answer:
    return _Answer(status, _encode({"message": text or responses.get(status, "Error")}))


class Simulator:
    """
    The API on a real port, served by background threads for as long as the ``with`` block lasts.

    :param port: 0 picks a free one
    :param host: address to listen on
    :param api_keys: what is accepted, in either header
    :param rows: rows by device that replace the generated ones; without a readable stamp, in every window.
        Where a row lacks a key of its page, the compact answer has null, the tableau answer nothing
    :param clock: seconds since the epoch; nothing stamped later exists
    :param log: file that each request is appended to, as a line of JSON
    :param faults: faults to begin with
    :param options: fields of :class:`Options`
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        api_keys: Sequence[str] = DEFAULT_KEYS,
        rows: Mapping[str, Iterable[Record]] | None = None,
        clock: Callable[[], float] = time.time,
        log: str | Path | None = None,
        faults: Iterable[Fault] = (),
        **options: Any,
    ) -> None:
        self.host, self.port, self.api_keys, self.api_key = host, port, tuple(api_keys), api_keys[0]
        self.options = Options(**options)
        self._account = Account(self.options, rows, clock)
        self.devices = self._account.devices
        self.max_in_flight = self._in_flight = self._number = 0
        self._requests: list[LoggedRequest] = []
        self._faults = [_ArmedFault(fault) for fault in faults]
        self._rng = random.Random(self.options.seed)
        self._log_path = log
        self._log: IO[str] | None = None
        self._lock, self._stopping = threading.Lock(), threading.Event()

    def __enter__(self) -> Simulator:
        self._server = _Server((self.host, self.port), partial(_Handler, self))
        self.port = self._server.server_address[1]
        if self._log_path is not None:
            self._log = Path(self._log_path).open("a", encoding="utf-8", buffering=1)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._log is not None:
            self._log.close()

    @property
    def base_url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[LoggedRequest]:
        """What was answered so far, in the order of arrival."""
        with self._lock:
            return sorted(self._requests, key=lambda request: request.number)

    def clear_requests(self) -> None:
        """Forget the requests so far, and how many were in flight."""
        with self._lock:
            self._requests.clear()
            self.max_in_flight = self._in_flight

    def add_fault(self, fault: Fault) -> None:
        """Add a fault; of several that match a request, the first that happens is the only one."""
        with self._lock:
            self._faults.append(_ArmedFault(fault))

    def clear_faults(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def rows(self, device_id: str, start_ms: int, end_ms: int) -> list[Record]:
        """Return what a correct client gets for that request, once nothing grows any more."""
        return self._account.rows(device_id, start_ms, end_ms)

    def sessions(self, now_ms: int | None = None) -> list[str]:
        """Return the ids of the sessions that have begun by now."""
        return self._account.sessions(now_ms)

    def answer(self, asked: _Asked) -> _Answer:
        """Return the answer to one request of the API, and log it."""
        arrived = time.time()
        number, fault = self._begin(asked)
        try:
            self._stopping.wait(self.options.latency)
            answer = self._answer_well(asked) if fault is None else self._answer_badly(fault, asked)
        finally:
            # Before the answer leaves: who has it may send the next request at once, on another connection.
            with self._lock:
                self._in_flight -= 1
        self._append(number, arrived, asked, answer.status, fault)
        return answer

    def answer_control(self, method: str, path: str, body: bytes) -> _Answer:
        """Return the answer to one request of somebody who steers the simulator; no key needed."""
        match method, path.removeprefix(CONTROL):
            case "GET", "requests":
                requests = [asdict(request) for request in self.requests]
                return _Answer(200, _encode({"requests": requests, "max_in_flight": self.max_in_flight}))
            case "DELETE", "requests":
                self.clear_requests()
            case "DELETE", "faults":
                self.clear_faults()
            case "POST", "faults":
                return self._add_posted_faults(body)
            case _:
                return _message(404)
        return _message(200)

    def _add_posted_faults(self, body: bytes) -> _Answer:
        try:
            posted = json.loads(body)
            faults = [parse_fault(values) for values in (posted if isinstance(posted, list) else [posted])]
        except (TypeError, ValueError) as error:
            return _message(400, str(error))
        for fault in faults:
            self.add_fault(fault)
        return _Answer(200, _encode({"faults": len(faults)}))

    def _begin(self, asked: _Asked) -> tuple[int, Fault | None]:
        with self._lock:
            self._number += 1
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            happening = (armed.fault for armed in self._faults if armed.happens(asked.path, self._rng))
            return self._number, next(happening, None)

    def _append(self, number: int, arrived: float, asked: _Asked, status: int, fault: Fault | None) -> None:
        auth, key = asked.credential()
        path = asked.path.replace(key, "***") if key else asked.path
        agent, encoding = asked.headers.get("User-Agent"), asked.headers.get("Accept-Encoding")
        kind = fault.kind if fault else None
        request = LoggedRequest(number, arrived, asked.method, path, status, kind, auth, agent, encoding)
        with self._lock:
            self._requests.append(request)
            if self._log is not None:
                self._log.write(json.dumps(asdict(request)) + "\n")

    def _answer_well(self, asked: _Asked) -> _Answer:
        auth, key = asked.credential()
        if asked.method != "GET":
            return _message(405).and_headers(Allow="GET")
        if key not in self.api_keys:
            return _message(403 if auth else 401)
        match asked.path.partition("?")[0].split("/"):
            case ["", "v1", "analytics", "version"]:
                return _Answer(200, _encode(API_VERSION))
            case ["", "v1", "analytics", "devices"]:
                return _Answer(200, _encode(self.devices))
            case ["", "v1", "analytics", "sessions"]:
                return _Answer(200, _encode(self.sessions()))
            case ["", "v1", "analytics", "tableau", device, *numbers] if len(numbers) == 3:
                return self._answer_page(asked, unquote(device), numbers, tableau=True)
            case ["", "v1", "analytics", device, *numbers] if len(numbers) == 3:
                return self._answer_page(asked, unquote(device), numbers, tableau=False)
        return _message(404)

    def _answer_page(self, asked: _Asked, device_id: str, numbers: list[str], *, tableau: bool) -> _Answer:
        # Fourteen digits end in the year 5138, before the standard library's calendar does.
        if not all(re.fullmatch("[0-9]{1,14}", number) for number in numbers):
            return _message(400, "from, to and page must be integers")
        start, end, page = map(int, numbers)
        if page < 1:
            return _message(400, "page starts at 1")
        if device_id not in self.devices and self.options.unknown_device == "404":
            return _message(404)
        compressed = self.options.gzip and "gzip" in asked.headers.get("Accept-Encoding", "")
        try:
            body = self._account.body(device_id, start, end, page, tableau=tableau, compressed=compressed)
        except ValueError as error:
            return _message(400, str(error))
        return _Answer(200, body).and_headers(**{"Content-Encoding": "gzip"} if compressed else {})

    def _answer_badly(self, fault: Fault, asked: _Asked) -> _Answer:
        match fault.kind:
            case "slow":
                self._stopping.wait(fault.seconds)
                return self._answer_well(asked)
            case "half_body":
                return replace(self._answer_well(asked), delivery="half")
            case "reset":
                return _Answer(0, b"", delivery="reset")
        answer = self._make_up(fault, asked)
        answer = replace(answer, status=fault.status or answer.status)
        return answer if fault.retry_after is None else answer.and_headers(Retry_After=_retry_after(fault))

    def _make_up(self, fault: Fault, asked: _Asked) -> _Answer:
        match fault.kind:
            case "redirect":
                # Another name of the same host is another origin: here one sees what a client sends there.
                there = f"http://localhost:{self.port}{asked.path}"
                return _message(302).and_headers(Location=fault.location or there)
            case "html":
                return _Answer(200, MAINTENANCE, {"Content-Type": "text/html; charset=utf-8"})
            case "garbage":
                return _Answer(200, b"\x80\x81" + self._rng.randbytes(200))
            case "wrong_shape":
                return _Answer(200, _encode({"items": [], "next": None}))
            case "echo_key":
                return _message(401, f"Invalid key: {asked.credential()[1]}")
        return _message(int(fault.kind))


def _retry_after(fault: Fault) -> str:
    value = str(fault.retry_after)
    if not value.startswith("date:"):
        return value
    # Rounded up: an HTTP date has whole seconds, and a test may not find the wait too short.
    return formatdate(math.ceil(time.time() + float(value.removeprefix("date:"))), usegmt=True)


class _Server(socketserver.ThreadingTCPServer):
    """A server that leaves nothing behind; HTTPServer would first ask DNS for the host's name."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, *args: Any) -> None:
        self._connections: dict[threading.Thread, Any] = {}
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections = {thread: sock for thread, sock in self._connections.items() if thread.is_alive()}
        target, args = self.process_request_thread, (request, client_address)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._connections[thread] = request
        thread.start()

    def server_close(self) -> None:
        super().server_close()
        for thread, request in self._connections.items():
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, simulator: Simulator, *args: Any) -> None:
        self._simulator = simulator
        super().__init__(*args)

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(int(length)) if length.isdecimal() else b""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
        if not self.path.startswith(CONTROL):
            self._deliver(self._simulator.answer(_Asked(self.command, self.path, self.headers)))
        elif ipaddress.ip_address(self.client_address[0]).is_loopback:
            self._deliver(self._simulator.answer_control(self.command, self.path, body))
        else:
            self._deliver(_message(404))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815, http.server's names

    def _deliver(self, answer: _Answer) -> None:
        if answer.delivery == "reset":
            self._reset()
            return
        body = b"" if self.command == "HEAD" else answer.body
        if answer.delivery == "half":
            self.close_connection = True
            body = body[: len(body) // 2]
        # In one piece: two small sends would be two packets.
        self.wfile.write(self._head(answer) + body)

    def _head(self, answer: _Answer) -> bytes:
        headers = {"Date": self.date_time_string(), **answer.headers, "Content-Length": str(len(answer.body))}
        if self.close_connection:
            headers["Connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}\r\n{lines}\r\n".encode("latin-1")

    def _reset(self) -> None:
        self.close_connection = True
        # With a linger of zero, closing resets; the reader holds the socket open as well.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        pass


# ---- the command line --------------------------------------------------------------------------------

FAULT_HELP = """\
faults:
{kinds}

  Further names, all optional: path (a part of the request's path), page, times (1; none is for ever),
  after (spare so many first), probability (1), retry_after (seconds, or date:SECONDS for an HTTP date),
  seconds, location, status (another one than the kind has).
  Here page 2 is refused three times, then one answer in ten is cut short:

    --fault kind=429,times=3,retry_after=1,page=2 --fault kind=half_body,times=none,probability=0.1

steering it while it runs, from this machine, no key needed:
  POST /_simulator/faults {{"kind": "429", "times": 3}} or a list of such; DELETE /_simulator/faults;
  GET or DELETE /_simulator/requests, what was asked so far
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    parser = _build_parser()
    values = vars(parser.parse_args(argv))
    ends = {signal.SIGTERM, signal.SIGINT}
    # Blocked before there is a thread that could take it: a handler that sets an event can deadlock with its waiter.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with Simulator(**values) as simulator:
            print(f"Unleash live simulator on {simulator.base_url}", flush=True)
            signal.sigwait(ends)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {kind:<12} {text}" for kind, text in FAULT_KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_unleash.simulator",
        description="A stand-in for the Unleash live Analytics API.",
        epilog=FAULT_HELP.format(kinds=kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--host", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8642, help="0 picks a free one (default: 8642)")
    keys = " and ".join(DEFAULT_KEYS)
    add("--api-key", dest="api_keys", action="append", metavar="KEY", help=f"instead of {keys}; repeatable")
    add("--log", metavar="FILE", help="append each request as a line of JSON")
    add("--fault", dest="faults", action="append", type=_fault_argument, metavar="F", help="see below")
    for option in fields(Options):
        add(f"--{option.name.replace('_', '-')}", **_argument_of(option))
    return parser


def _argument_of(option: Field[Any]) -> dict[str, Any]:
    default, text = option.default, option.metadata["help"]
    if default not in (None, "", ()):
        text += f" (default: {default})"
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "help": text}
    kind = {tuple: lambda ids: tuple(ids.split(",")), type(None): int}.get(type(default), type(default))
    choices = option.metadata.get("choices")
    return {"type": kind, "choices": choices, "metavar": None if choices else "X", "help": text}


def _fault_argument(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
