"""Coverage: which windows of which devices a tree has, from its manifests alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from itertools import chain, groupby
from pathlib import Path
from typing import Literal, get_args

import msgspec

from airflow_provider_unleash.core.manifest import (
    Entry,
    Layout,
    choose_folders,
    layout_key,
    list_manifests,
    overlap,
    parse_manifest,
)
from airflow_provider_unleash.core.moments import format_ms, parse_duration
from airflow_provider_unleash.core.names import MANIFESTS, parse_window, window_name
from airflow_provider_unleash.core.protocol import check_device_id
from airflow_provider_unleash.core.stores import StoragePath, check_dst, list_names, split_dst, store_of
from airflow_provider_unleash.core.windows import Window, calendar_zone, plan_windows
from airflow_provider_unleash.exceptions import InvalidArgumentError

State = Literal["landed", "empty", "unsettled", "missing"]
STATES: tuple[State, ...] = get_args(State)

_READERS = 32
# Threads cost more than reading a small local file, so each reads many.
_LOCAL_FILES_PER_READ = 100


class Cell(msgspec.Struct, frozen=True, gc=False):
    """
    A device in a window.

    :ivar start: start of the window, in the calendar's time zone.
    :ivar end: end of the window, exclusive.
    :ivar state: ``landed`` (with rows), ``empty``, ``unsettled`` (extracted earlier than ``settle`` after the end of
        the window) or ``missing``.
    :ivar rows: number of rows.
    :ivar bytes: size of the object at ``path``; an object of many devices counts for each.
    :ivar path: object with the rows, relative to ``dst``; None if there is none.
    :ivar extracted_at: when it was last extracted, in UTC; None if it is missing.
    :ivar first_extracted_at: when it was first extracted, as far as the manifests still say.
    :ivar dag_id: DAG that extracted it last; None if it is missing or was extracted without Airflow.
    :ivar run_id: its run.
    """

    device_id: str
    start: datetime
    end: datetime
    state: State
    rows: int = 0
    bytes: int = 0
    path: str | None = None
    extracted_at: datetime | None = None
    first_extracted_at: datetime | None = None
    dag_id: str | None = None
    run_id: str | None = None

    @property
    def delay(self) -> timedelta | None:
        """How long after the end of the window it was last extracted."""
        return None if self.extracted_at is None else self.extracted_at - self.end

    @property
    def first_delay(self) -> timedelta | None:
        """How long after the end of the window it was first extracted."""
        return None if self.first_extracted_at is None else self.first_extracted_at - self.end


@dataclass(frozen=True, slots=True)
class Gap:
    """
    Consecutive windows of a device, from ``start`` to ``end``, that are missing.

    :param windows: how many they are.
    """

    device_id: str
    start: datetime
    end: datetime
    windows: int


@dataclass(frozen=True)
class Coverage:
    """
    Devices × windows of a tree. Iterating yields a :class:`Cell` for each, device by device, in order of time.

    :param device_ids: the devices.
    :param windows: the windows of the grid.
    :param zone: time zone of the grid's calendar.
    :param layout: layout of the objects; None if there are none.
    :param other_windows: names of windows of another grid that overlap the span. They are not counted.
    :param other_layouts: objects of another layout, by layout. They are not counted.
    """

    device_ids: Sequence[str]
    windows: Sequence[Window]
    zone: tzinfo
    layout: Layout | None
    other_windows: Sequence[str]
    other_layouts: Mapping[Layout, int]
    _settled_at: Sequence[str]
    _entries: Sequence[Mapping[str, Entry]]
    _first_extracted_at: Sequence[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.device_ids) * len(self.windows)

    def __iter__(self) -> Iterator[Cell]:
        bounds = self.bounds()
        for device_id in self.device_ids:
            for number, (state, (start, end)) in enumerate(zip(self.states_of(device_id), bounds, strict=True)):
                entry = self.entry_of(device_id, number)
                if entry is None:
                    yield Cell(device_id, start, end, state)
                    continue
                extracted_at = datetime.fromisoformat(entry.extracted_at)
                first = self.first_extracted_at(device_id, number)
                yield Cell(
                    *(device_id, start, end, state, entry.rows, entry.bytes, entry.path),
                    *(extracted_at, datetime.fromisoformat(first) if first else extracted_at),
                    *(entry.dag_id, entry.run_id),
                )

    def bounds(self) -> list[tuple[datetime, datetime]]:
        """Return start and end of the windows in the calendar's time zone."""
        return [(window.start.astimezone(self.zone), window.end.astimezone(self.zone)) for window in self.windows]

    def states_of(self, device_id: str) -> list[State]:
        states: list[State] = []
        for entries, settled_at in zip(self._entries, self._settled_at, strict=True):
            entry = entries.get(device_id)
            if entry is None:
                states.append("missing")
            elif entry.extracted_at < settled_at:
                states.append("unsettled")
            else:
                states.append("landed" if entry.rows else "empty")
        return states

    def entry_of(self, device_id: str, number: int) -> Entry | None:
        return self._entries[number].get(device_id)

    def first_extracted_at(self, device_id: str, number: int) -> str | None:
        """Return the time of the oldest line about a device in a window, if there are several."""
        return self._first_extracted_at[number].get(device_id)

    def counts(self) -> dict[State, int]:
        """Return the number of cells by state."""
        counter = Counter(chain.from_iterable(map(self.states_of, self.device_ids)))
        return {state: counter[state] for state in STATES}

    def gaps(self, state: State = "missing") -> list[Gap]:
        """Return the missing cells, or those of another state, with consecutive windows merged."""
        found, bounds = [], self.bounds()
        for device_id in self.device_ids:
            for is_gap, cells in groupby(enumerate(self.states_of(device_id)), lambda cell: cell[1] == state):
                if is_gap:
                    numbers = [number for number, _ in cells]
                    found.append(Gap(device_id, bounds[numbers[0]][0], bounds[numbers[-1]][1], len(numbers)))
        return found


def read_coverage(
    dst: str | StoragePath,
    *,
    device_ids: Iterable[str],
    start: object,
    end: object,
    every: object,
    timezone: object = None,
    settle: timedelta | str = timedelta(0),
) -> Coverage:
    """
    Return which windows of which devices have landed below ``dst``; reads manifests only.

    >>> coverage = read_coverage(
    ...     "s3://lake/unleash", device_ids=["W1", "W2"], start="2026-01-01", end="2026-02-01", every="day"
    ... )
    >>> coverage.counts()
    >>> [(cell.device_id, cell.start) for cell in coverage if cell.state == "missing"]

    Lists the manifests of the days in the span, and reads them concurrently.

    :param dst: folder of the tree: a path that has a file system, such as ``ObjectStoragePath`` or ``UPath``, or a URL
        or path, which is read with the credentials of the environment.
    :param device_ids: the devices that should be there.
    :param start: start of the span, like that of ``window.plan_windows``; it must be a bound of the tree's grid.
    :param end: end of the span, exclusive.
    :param every: length of the windows: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, ``timedelta`` or
        ISO 8601 duration.
    :param timezone: time zone whose calendar the windows follow; by default that of ``start``, else UTC.
    :param settle: how long after the end of a window rows may arrive: ``timedelta`` or ISO 8601 duration. A window that
        was extracted earlier is unsettled.
    :raises InvalidArgumentError: if an argument cannot be parsed, or a manifest is damaged.
    """
    if isinstance(device_ids, (str, bytes)) or not isinstance(device_ids, Iterable):
        raise InvalidArgumentError(f"device_ids={device_ids!r} must be a list of ids", argument="device_ids")
    return scan_tree(dst, device_ids, start=start, end=end, every=every, timezone=timezone, settle=settle)


def scan_tree(
    dst: str | StoragePath,
    device_ids: Iterable[str] | None,
    *,
    start: object,
    end: object,
    every: object,
    timezone: object,
    settle: timedelta | str | None,
    check_lines: Callable[[int], None] | None = None,
) -> Coverage:
    """
    Like :func:`read_coverage`, also for devices that are not known.

    :param device_ids: None means the devices that the manifests of the span name.
    :param check_lines: is called with the number of lines of each manifest, and may raise.
    """
    if device_ids is not None:
        device_ids = list(map(check_device_id, dict.fromkeys(device_ids)))
    folder = open_path(dst)
    windows = plan_windows(start, end, every=every, timezone=timezone)
    settle_ms = _parse_settle(settle)
    try:
        settled_at = [format_ms(window.end_ms + settle_ms) for window in windows]
    except OverflowError:
        raise InvalidArgumentError(f"settle={settle!r} is too long", argument="settle") from None
    scan = _Scan(windows, check_lines)
    if windows:
        scan.read(folder, Window(windows[0].start_ms, windows[-1].end_ms))
    layouts = scan.drop_other_layouts()
    return Coverage(
        device_ids=sorted(set().union(*scan.entries)) if device_ids is None else device_ids,
        windows=windows,
        zone=calendar_zone(start, timezone),
        layout=layouts[0][0] if layouts else None,
        other_windows=sorted(scan.other_windows),
        other_layouts=dict(layouts[1:]),
        _settled_at=settled_at,
        _entries=scan.entries,
        _first_extracted_at=scan.first_extracted_at,
    )


def open_path(dst: str | StoragePath) -> StoragePath:
    if not isinstance(dst, str):
        return dst
    from upath import UPath

    if "://" not in dst:
        dst = str(Path(dst).absolute())
    check_dst(dst)
    _, store, place = split_dst(dst)
    if store.name in ("s3", "gs") and "@" in place.partition("/")[0]:
        raise InvalidArgumentError(
            f"dst={dst!r} names an Airflow connection. Use ObjectStoragePath(dst) in Python, the command `airflow "
            "unleash coverage` of Airflow 3.2, or the URL without the connection and credentials from the environment",
            argument="dst",
        )
    path: StoragePath = UPath(dst)
    return path


def _parse_settle(settle: object) -> int:
    length = None if settle == timedelta(0) else parse_duration(settle, "settle")
    return round((length or timedelta(0)).total_seconds() * 1000)


class _Scan:
    """
    The entries of manifests, by window of the grid and device.

    :param check_lines: called before each manifest with the number of lines read so far; what it raises ends the scan.
    """

    def __init__(self, windows: Sequence[Window], check_lines: Callable[[int], None] | None) -> None:
        self.entries: list[dict[str, Entry]] = [{} for _ in windows]
        self.first_extracted_at: list[dict[str, str]] = [{} for _ in windows]
        self.other_windows: set[str] = set()
        self._check_lines = check_lines
        self._lines = 0
        self._numbers = {window_name(window): number for number, window in enumerate(windows)}

    def read(self, dst: StoragePath, span: Window) -> None:
        root = dst / MANIFESTS
        is_local = store_of(root.protocol).name == "file"
        load = (lambda path: Path(path).read_bytes()) if is_local else root.fs.cat_file
        size = _LOCAL_FILES_PER_READ if is_local else 1
        days = choose_folders(list_names(root), span)
        with ThreadPoolExecutor(_READERS, "unleash-manifest") as readers:
            listed = readers.map(lambda day: [f"{day}/{name}" for name in list_manifests(root / day)], days)
            names = [name for name in chain.from_iterable(listed) if self._is_in_grid(name, span)]
            batches = [names[first : first + size] for first in range(0, len(names), size)]
            loaded = readers.map(lambda batch: list(self._load(load, root, batch)), batches)
            for name, entries in chain.from_iterable(loaded):
                self._add(self._numbers[_window_in(name)], entries)

    def _load(
        self, load: Callable[[str], bytes], root: StoragePath, names: Iterable[str]
    ) -> Iterator[tuple[str, list[Entry]]]:
        for name in names:
            if self._check_lines:
                self._check_lines(self._lines)
            with suppress(FileNotFoundError):  # removed meanwhile
                entries = parse_manifest(f"{root}/{name}", load(f"{root.path}/{name}"))
                self._lines += len(entries)
                yield name, entries

    def _is_in_grid(self, name: str, span: Window) -> bool:
        window = _window_in(name)
        if window not in self._numbers and window not in self.other_windows:
            found = parse_window(window)
            if found and overlap(found, span):
                self.other_windows.add(window)
        return window in self._numbers

    def _add(self, number: int, entries: Iterable[Entry]) -> None:
        newest, first = self.entries[number], self.first_extracted_at[number]
        for entry in entries:
            known = newest.setdefault(entry.device_id, entry)
            if known is not entry:
                oldest = first.get(entry.device_id, known.extracted_at)
                first[entry.device_id] = min(oldest, entry.extracted_at)
                newest[entry.device_id] = max(known, entry, key=lambda entry: entry.extracted_at)

    def drop_other_layouts(self) -> list[tuple[Layout, int]]:
        """Drop objects that do not have the most common layout; return layouts and counts, the most common first."""
        numbers = Counter(layout_key(entry.path) for found in self.entries for entry in found.values() if entry.path)
        layouts = numbers.most_common()
        if len(layouts) > 1:
            for found in self.entries:
                for device_id, entry in list(found.items()):
                    if entry.path and layout_key(entry.path) != layouts[0][0]:
                        del found[device_id]
        return [(Layout(*key), number) for key, number in layouts]


def _window_in(name: str) -> str:
    """Return the window's name in that of a manifest; after its last Z come a hash and the extension."""
    return name[: name.rfind("Z") + 1]
