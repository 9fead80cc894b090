"""Manifests: the record of what completed tasks have landed, by window and device."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from itertools import islice

import msgspec

from airflow_provider_unleash.core.moments import format_ms, now_ms
from airflow_provider_unleash.core.names import (
    DELTA,
    DELTA_LOG,
    MANIFESTS,
    manifest_name,
    parse_window,
    window_name,
)
from airflow_provider_unleash.core.phrases import name_first
from airflow_provider_unleash.core.stores import StoragePath, check_is_folder, list_names, publish
from airflow_provider_unleash.core.windows import Window
from airflow_provider_unleash.exceptions import InvalidArgumentError

log = logging.getLogger(__name__)

# The layout of a tree can be seen from one line about an object; a manifest may have ten thousand.
_HEAD_BYTES = 1 << 16
_MAX_HEADS = 20


class Entry(msgspec.Struct, frozen=True, gc=False):
    """
    One line of a manifest: a device in a window.

    :param start: start of the window, ISO 8601 in UTC.
    :param end: end of the window, exclusive.
    :param bytes: size of the object at ``path``; an object of many devices counts for each.
    :param path: object with the rows, relative to ``dst``; None if there is none.
    :param extracted_at: when the extraction of the device began, ISO 8601 in UTC.
    :param dag_id: DAG of the task; None without Airflow.
    :param run_id: its run.
    """

    device_id: str
    start: str
    end: str
    rows: int
    pages: int
    bytes: int
    path: str | None
    extracted_at: str
    dag_id: str | None = None
    run_id: str | None = None


_LINE = msgspec.json.Decoder(Entry)


def format_now() -> str:
    return format_ms(now_ms())


def publish_manifest(
    dst: StoragePath, device_ids: Iterable[str] | None, window: Window, entries: Mapping[str, Entry]
) -> StoragePath:
    """
    Write the entries of a window, by device, and return the path of the manifest.

    The manifest of the whole account keeps its old entries of other devices, such as those no longer listed.
    """
    path = dst / manifest_name(device_ids, window)
    kept = read_manifest(path) if device_ids is None else []
    merged = {entry.device_id: entry for entry in kept} | dict(entries)
    with publish(path) as stream:
        stream.write(msgspec.json.Encoder().encode_lines([merged[device_id] for device_id in sorted(merged)]))
    return path


def read_manifest(path: StoragePath) -> list[Entry]:
    try:
        return parse_manifest(path, path.fs.cat_file(path.path))
    except FileNotFoundError:
        return []


def read_newest(dst: StoragePath) -> tuple[Window, list[Entry]] | None:
    """Return the newest window of a tree with the entries of a manifest; None if there is none."""
    root = dst / MANIFESTS
    for day in sorted(list_names(root), reverse=True):
        if day.startswith("start_date="):
            for name in sorted(list_manifests(root / day), reverse=True):
                if window := parse_window(name):
                    return window, read_manifest(root / day / name)
    return None


def parse_manifest(path: object, data: bytes) -> list[Entry]:
    try:
        return _LINE.decode_lines(data)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"{path} is not a manifest ({error}). Remove it", argument="dst") from None


# ---- the tree that a task writes to --------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What all objects of a tree have in common: one per device or one for all devices, and the extension."""

    is_split: bool
    extension: str

    def __str__(self) -> str:
        if self.extension == DELTA:
            return "a Delta table"
        return f"{self.extension} objects, one {'per device' if self.is_split else 'for all devices'}"


def layout_key(path: str) -> tuple[bool, str]:
    """Return the fields of a :class:`Layout`; creating one for each object would take longer than reading manifests."""
    return (True, DELTA) if path == DELTA_LOG else (path.startswith("device="), path[path.rfind("Z.") + 2 :])


@dataclass(frozen=True)
class Tree:
    """
    The manifests of a tree, for one window.

    :param overlapping: names of other windows that overlap it.
    """

    dst: StoragePath
    window: Window
    overlapping: tuple[str, ...]

    def read_entries(self) -> dict[str, Entry]:
        folder, _, name = window_name(self.window).partition("/")
        parent = self.dst / MANIFESTS / folder
        found = [parent / other for other in list_manifests(parent) if other.startswith(f"{name}.")]
        entries = [entry for path in found for entry in read_manifest(path)]
        return {entry.device_id: entry for entry in sorted(entries, key=lambda entry: entry.extracted_at)}


def open_tree(dst: StoragePath, window: Window, layout: Layout, *, same_day: bool = False) -> Tree:
    """
    Check that a tree fits the objects to write, and warn if other windows overlap.

    Other windows are found if they are hours, days, weeks, months, quarters or years; with ``same_day``, only those
    that start on the days of the window. Then thousands of mapped tasks do not each list a week of manifests.

    :raises InvalidArgumentError: if ``dst`` cannot be a folder, or has objects of another layout or format.
    """
    check_is_folder(dst)
    root = dst / MANIFESTS
    folders = {name for name in list_names(root) if name.startswith("start_date=")}
    near = choose_folders(folders, window, same_day=same_day)
    names = [f"{folder}/{name}" for folder in near for name in list_manifests(root / folder)]
    # Each window once: a tree with a task per device has thousands of manifests of the same window.
    windows = {found for name in {name.rpartition("Z")[0] + "Z" for name in names} if (found := parse_window(name))}
    overlapping = sorted({window_name(other) for other in windows if overlap(other, window)} - {window_name(window)})
    if overlapping:
        shown = name_first(overlapping, 5)
        log.warning("%s has windows that overlap this one, so their rows are there twice: %s", dst, shown)
    if not names and folders:
        last = max(folders)
        names = [f"{last}/{name}" for name in list_manifests(root / last)]
    _check_layout(dst, sorted(names, reverse=True), layout)
    return Tree(dst, window, tuple(overlapping))


def list_manifests(folder: StoragePath) -> list[str]:
    """List the manifests only: a killed task leaves a part of one, with another ending."""
    return [name for name in list_names(folder) if name.endswith(".manifest")]


def choose_folders(folders: Iterable[str], window: Window, *, same_day: bool = False) -> list[str]:
    """
    Return the folders, sorted, that may have windows overlapping this one.

    They are of the days of the window and, without ``same_day``, of those on which a longer window that contains its
    start may begin.
    """
    first, last = window.start.date(), window.end.date()
    begins = {first}
    if not same_day:
        for month in (first.month, (first.month - 1) // 3 * 3 + 1, 1):
            begin = first.replace(month=month, day=1)
            begins |= {begin, _days_before(begin, 1)}  # the latter in a time zone east of UTC
        first = _days_before(first, 7)  # for weeks that begin on any day
    # Go through the folders, not the days: a span may have millions.
    days = {name: _day_of(name) for name in folders}
    return sorted(name for name, day in days.items() if day and (first <= day <= last or day in begins))


def _day_of(folder: str) -> date | None:
    with suppress(ValueError):
        return date.fromisoformat(folder.removeprefix("start_date="))
    return None


def _days_before(day: date, days: int) -> date:
    return date.fromordinal(max(day.toordinal() - days, 1))


def overlap(one: Window, other: Window) -> bool:
    return one.start_ms < other.end_ms and other.start_ms < one.end_ms


def _check_layout(dst: StoragePath, names: Iterable[str], layout: Layout) -> None:
    for name in islice(dict.fromkeys(names), _MAX_HEADS):
        path = _object_in_head(dst / MANIFESTS / name)
        if path is None:
            continue
        _check_same(dst, Layout(*layout_key(path)), f"such as {path}", layout)
        return
    # Some stores keep a folder, or list it in itself, after its objects were removed.
    if layout.extension != DELTA and any(name.endswith(".json") for name in list_names(dst / DELTA_LOG)):
        _check_same(dst, Layout(True, DELTA), f"see {DELTA_LOG}", layout)


def _check_same(dst: StoragePath, found: Layout, evidence: str, layout: Layout) -> None:
    if found != layout:
        raise InvalidArgumentError(
            f"dst={str(dst)!r} has {found}, {evidence}; this task would write {layout}. A tree has one layout and "
            "format: use another dst",
            argument="dst",
        )


def _object_in_head(path: StoragePath) -> str | None:
    """Return the name of the first object in a manifest; most have one in their first lines."""
    with suppress(FileNotFoundError):  # removed meanwhile
        head = path.fs.cat_file(path.path, start=0, end=_HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            return _first_object(parse_manifest(path, head))
        complete = head[: head.rfind(b"\n") + 1]
        return _first_object(parse_manifest(path, complete)) or _first_object(read_manifest(path))
    return None


def _first_object(entries: Iterable[Entry]) -> str | None:
    return next((entry.path for entry in entries if entry.path), None)
