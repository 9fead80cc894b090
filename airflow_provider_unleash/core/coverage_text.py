"""Coverage as text: a heat map and the gaps for a terminal, JSON for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

import msgspec

from airflow_provider_unleash.core.coverage import Coverage, Gap, State
from airflow_provider_unleash.core.phrases import name_first, plural

# Landed windows by number of rows, from few to many.
_SHADES = "░▒▓█"
_MARKS: dict[State, str] = {"empty": "·", "unsettled": "?", "missing": "X"}
_ASCII = str.maketrans("░▒▓█·×…", "1234.x.")
_COLORS: dict[State, str] = {"unsettled": "\33[30;43m", "missing": "\33[97;41m"}
_NO_COLOR = "\33[0m"
# If several windows share a character, it shows the first of these.
_WORST_FIRST: tuple[State, ...] = ("missing", "unsettled", "landed", "empty")
_MAX_ID_WIDTH = 28
_NAMED_DEVICES = 3


@dataclass(frozen=True)
class Screen:
    """
    What a terminal can show.

    :param columns: characters in a line.
    :param lines: the most devices in the heat map.
    """

    columns: int = 80
    lines: int = 40
    has_colors: bool = False
    has_unicode: bool = True


def format_report(coverage: Coverage, screen: Screen) -> str:
    text = "\n".join(_iter_lines(coverage, screen))
    return text if screen.has_unicode else text.translate(_ASCII)


def _iter_lines(coverage: Coverage, screen: Screen) -> Iterator[str]:
    bounds = coverage.bounds()
    devices, windows = len(coverage.device_ids), len(bounds)
    yield f"{plural(devices, 'device')} × {plural(windows, 'window')}, times in {coverage.zone}"
    yield ""
    if len(coverage):
        yield from _draw(coverage, screen)
        yield ""
    yield ", ".join(f"{number:,} {state}" for state, number in coverage.counts().items())
    delays = [cell.first_delay for cell in coverage if cell.first_delay is not None]
    if delays:
        least, middle, most = (_format_delay(pick(delays)) for pick in (min, statistics.median_low, max))
        yield f"First extracted after the end of the window: {least} to {most}, median {middle}"
    states: tuple[State, ...] = ("missing", "unsettled")
    for state in states:
        gaps = group_gaps(coverage, state)
        if gaps:
            yield ""
            yield f"{state.capitalize()}, from, until (exclusive):"
            for gap, device_ids in gaps:
                yield (
                    f"  {format_bound(gap.start)}  {format_bound(gap.end)}  {plural(gap.windows, 'window')}  "
                    f"{name_devices(device_ids, devices)}"
                )
    others = list(describe_others(coverage))
    if others:
        yield ""
        yield from others


def describe_others(coverage: Coverage) -> Iterator[str]:
    if coverage.other_windows:
        yield f"Not counted, because they are windows of another grid: {name_first(coverage.other_windows, 3)}"
    for layout, number in coverage.other_layouts.items():
        yield f"Not counted, because most are {coverage.layout}: {number} {layout}"


def _draw(coverage: Coverage, screen: Screen) -> Iterator[str]:
    shown = _choose_devices(coverage, screen.lines)
    width = min(max(map(len, shown)), _MAX_ID_WIDTH)
    windows = len(coverage.windows)
    step = math.ceil(windows / max(screen.columns - width - 1, 10))
    bounds = coverage.bounds()
    first, last = format_bound(bounds[0][0]), format_bound(bounds[-1][0])
    dates = f"{first}{last:>{max(math.ceil(windows / step) - len(first), len(last) + 1)}}" if windows > 1 else first
    yield f"{'':{width}} {dates}"
    most = max(cell.rows for cell in coverage)
    for device_id in shown:
        name = device_id if len(device_id) <= width else f"{device_id[: width - 1]}…"
        states = coverage.states_of(device_id)
        line = []
        for number in range(0, windows, step):
            state = min(states[number : number + step], key=_WORST_FIRST.index)
            numbers = range(number, min(number + step, windows))
            rows = [entry.rows for one in numbers if (entry := coverage.entry_of(device_id, one))]
            mark = _MARKS.get(state) or _SHADES[min(int(4 * max(rows) / most), 3)]
            has_color = screen.has_colors and state in _COLORS
            line.append(f"{_COLORS[state]}{mark}{_NO_COLOR}" if has_color else mark)
        yield f"{name:{width}} {''.join(line)}"
    if len(shown) < len(coverage.device_ids):
        yield f"… and {plural(len(coverage.device_ids) - len(shown), 'device')} with no more gaps than these"
    marks = "  ".join(f"{mark} {state}" for state, mark in _MARKS.items())
    yield ""
    yield f"{_SHADES} landed, up to {plural(most, 'row')}  {marks}"
    if step > 1:
        yield f"Each character is {step} windows, and shows the worst of them"


def _choose_devices(coverage: Coverage, most: int) -> Sequence[str]:
    if len(coverage.device_ids) <= most:
        return coverage.device_ids
    by_gaps = sorted(coverage.device_ids, key=lambda device_id: -coverage.states_of(device_id).count("missing"))
    chosen = set(by_gaps[:most])
    return [device_id for device_id in coverage.device_ids if device_id in chosen]


def group_gaps(coverage: Coverage, state: State = "missing") -> list[tuple[Gap, list[str]]]:
    shared: dict[tuple[datetime, datetime], tuple[Gap, list[str]]] = {}
    for gap in coverage.gaps(state):
        shared.setdefault((gap.start, gap.end), (gap, []))[1].append(gap.device_id)
    return [shared[bounds] for bounds in sorted(shared)]


def name_devices(device_ids: Sequence[str], total: int) -> str:
    if len(device_ids) == total > 1:
        return f"all {total:,} devices"
    return name_first(device_ids, _NAMED_DEVICES)


def format_bound(moment: datetime) -> str:
    """Return a start or end: only the date at midnight."""
    return f"{moment:%Y-%m-%d}" if moment.time() == time(0) else moment.isoformat(timespec="minutes")


def _format_delay(delay: timedelta) -> str:
    minutes = round(delay.total_seconds() / 60)
    if abs(minutes) < 120:
        return f"{minutes} min"
    return f"{round(minutes / 60)} h" if abs(minutes) < 2 * 24 * 60 else f"{round(minutes / 60 / 24)} days"


def format_json(coverage: Coverage) -> str:
    document = {
        "devices": len(coverage.device_ids),
        "windows": len(coverage.windows),
        "counts": coverage.counts(),
        "missing": coverage.gaps("missing"),
        "unsettled": coverage.gaps("unsettled"),
        "other_windows": coverage.other_windows,
        "other_layouts": {str(layout): number for layout, number in coverage.other_layouts.items()},
        "cells": list(coverage),
    }
    return msgspec.json.encode(document).decode()
