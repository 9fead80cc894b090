"""One simulated account: its options, and its rows as pages. No I/O."""

from __future__ import annotations

import gzip
import json
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal
from zlib import crc32

from airflow_provider_unleash.simulator import data

MAX_DAYS = 92
# Without device_id and timestamp, so that a test can identify each row.
NULLABLE_KEYS = ("count", "frame_number", "model_id", "session_id", "source_file_name")


def _option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Options:
    """Behavior of account and server; each field is a keyword of ``Simulator`` and a command line option."""

    seed: int = _option(0, "seed of the generated rows and sessions")
    devices: tuple[str, ...] = _option((), "comma-separated device IDs that replace the default ones")
    rows_per_day: int = _option(data.ROWS_PER_DAY, "approximate number of rows per device and day")
    session_period: float = _option(data.SESSION_PERIOD, "average seconds between new sessions")
    sessions_from: int | None = _option(None, "list sessions since this time, in epoch ms (default: 3 days ago)")
    page_size: int = _option(1000, "rows in a full page")
    latency: float = _option(0.0, "seconds to delay each response")
    inclusive_to: bool = _option(True, "include rows with a timestamp equal to the end of the window")
    selection_lag_ms: int = _option(0, "select rows by their timestamp plus this many milliseconds")
    unknown_device: Literal["empty", "404"] = _option("empty", "unknown devices: no rows, or 404", ("empty", "404"))
    empty_total: Literal[0, 1] = _option(0, "total_num_pages of a window without rows", (0, 1))
    fixed_pages: int = _option(0, "give every window this many full pages, for benchmarks; 0 disables it")
    gzip: bool = _option(True, "compress pages if the client accepts it")
    cache_bytes: int = _option(64 * 1024 * 1024, "maximum size of all cached pages")
    reorder_keys: bool = _option(False, "use a different order of keys on each page")
    new_key: str = _option("", "additional key, such as confidence, of the rows from --new-key-page on")
    new_key_page: int = _option(2, "first page with the new key")
    nulls: bool = _option(False, "set some values to null")
    growing: int = _option(0, "show half of a window's rows to its first request, and X more to each later one")

    def __post_init__(self) -> None:
        if self.page_size < 1 or self.session_period <= 0:
            raise ValueError("page_size and session_period must be greater than zero")
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{option.name} must be one of {choices}, not {value!r}")


class Account:
    """Devices, sessions and rendered pages of one account."""

    def __init__(
        self, options: Options, rows: Mapping[str, Iterable[data.Record]] | None, clock: Callable[[], float]
    ) -> None:
        self.devices = list(options.devices or (data.PROFILES if rows is None else rows))
        self._options, self._clock = options, clock
        self._given = None if rows is None else {device: _with_times(rows[device]) for device in rows}
        self._fixed = rows is None and options.fixed_pages > 0
        start = options.sessions_from
        self._sessions_from = self._now() - 72 * data.HOUR_MS if start is None else start
        self._select = lru_cache(maxsize=4)(self._select_records)
        self._reads: Counter[tuple[str, int, int]] = Counter()
        self.cache = PageCache(options.cache_bytes)
        # Rendering is CPU-bound; with this lock, concurrent readers of a window generate its rows only once.
        self._rendering = threading.Lock()

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def sessions(self, now_ms: int | None) -> list[str]:
        now, options = self._now() if now_ms is None else now_ms, self._options
        return [
            str(start)
            for start in data.generate_sessions(options.seed, self._sessions_from, now, options.session_period)
        ]

    def rows(self, device_id: str, start_ms: int, end_ms: int) -> list[data.Record]:
        low, high = self._bounds(start_ms, end_ms)
        pages = self._page(device_id, low, high, 1)[1]
        return [dict(row) for number in range(1, pages + 1) for row in self._page(device_id, low, high, number)[0]]

    def body(
        self, device_id: str, start_ms: int, end_ms: int, number: int, *, tableau: bool, compressed: bool
    ) -> bytes:
        """Render one page as JSON; raise ValueError if the window is too wide to generate."""
        low, high = self._bounds(start_ms, end_ms)
        with self._rendering:
            reads = self._count_read(device_id, start_ms, end_ms) if self._options.growing else None
            key = (device_id, low, high, number, reads, tableau, compressed)
            if (body := self.cache.get(key)) is None:
                records, pages = self._page(device_id, low, high, number, reads)
                body = _render_page(records, pages, number if self._options.reorder_keys else 0, tableau)
                body = gzip.compress(body, 1, mtime=0) if compressed else body
                self.cache.put(key, body)
            return body

    def _count_read(self, device_id: str, start_ms: int, end_ms: int) -> int:
        self._reads[device_id, start_ms, end_ms] += 1
        return self._reads[device_id, start_ms, end_ms] - 1

    def _bounds(self, start_ms: int, end_ms: int) -> tuple[int, int]:
        if self._fixed:
            return start_ms, end_ms
        lag, excluded = self._options.selection_lag_ms, 0 if self._options.inclusive_to else 1
        low, high = max(start_ms - lag, 0), min(end_ms - lag - excluded, self._now())
        if self._given is None and high - low > MAX_DAYS * 24 * data.HOUR_MS:
            raise ValueError(f"The simulator generates at most {MAX_DAYS} days per window")
        return low, high

    def _page(
        self, device_id: str, low: int, high: int, number: int, reads: int | None = None
    ) -> tuple[list[data.Record], int]:
        size, rows = self._options.page_size, self._select(device_id, low, high)
        total = len(rows)
        visible = total if reads is None else min(total, total // 2 + reads * self._options.growing)
        records = [self._vary(rows[index], number) for index in range((number - 1) * size, min(number * size, visible))]
        return records, math.ceil(visible / size) or self._options.empty_total

    def _select_records(self, device_id: str, low: int, high: int) -> list[data.Record] | data.EvenRows:
        options = self._options
        if device_id not in self.devices:
            return []
        if self._fixed:
            return data.EvenRows(options.seed, device_id, low, high, options.fixed_pages * options.page_size)
        if self._given is not None:
            given = self._given.get(device_id, [])
            return [record for time_ms, record in given if time_ms is None or low <= time_ms <= high]
        density, period = options.rows_per_day, options.session_period
        return list(data.generate_rows(options.seed, device_id, low, high, rows_per_day=density, session_period=period))

    def _vary(self, record: data.Record, number: int) -> data.Record:
        options = self._options
        if not options.nulls and not options.new_key:
            return record
        digest = crc32(repr(record).encode())
        key = NULLABLE_KEYS[digest // 8 % len(NULLABLE_KEYS)]
        if options.new_key and number >= options.new_key_page:
            record = {**record, options.new_key: 0.5 + digest % 500 / 1000}
        return {**record, key: None} if options.nulls and digest % 8 == 0 and key in record else record


def _with_times(records: Iterable[data.Record]) -> list[tuple[int | None, data.Record]]:
    return [(data.parse_timestamp(record.get("timestamp")), record) for record in records]


def _render_page(records: Sequence[data.Record], pages: int, shift: int, tableau: bool) -> bytes:
    keys = list(dict.fromkeys(key for record in records for key in record)) or list(data.KEYS)
    if tableau:
        keys.sort(key=(*data.TABLEAU_KEYS, *keys).index)
    keys = keys[shift % len(keys) :] + keys[: shift % len(keys)]
    if tableau:
        objects = [{key: record[key] for key in keys if key in record} for record in records]
        return encode_json({"total_num_pages": pages, "data": objects})
    values = [[record.get(key) for key in keys] for record in records]
    return encode_json({"keys": keys, "total_num_pages": pages, "data": values})


def encode_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class PageCache:
    """A cache that drops the least recently used pages when it exceeds its limit. Not thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._pages: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> bytes | None:
        if key in self._pages:
            self._pages.move_to_end(key)
        return self._pages.get(key)

    def put(self, key: tuple[Any, ...], page: bytes) -> None:
        self._pages[key] = page
        self.size += len(page)
        while self.size > self.limit:
            self.size -= len(self._pages.popitem(last=False)[1])
