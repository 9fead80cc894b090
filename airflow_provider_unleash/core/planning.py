"""Devices and a span become a bounded list of windows: by calendar, by size, or by what is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from itertools import islice

import pendulum

from airflow_provider_unleash.core.coverage import Coverage
from airflow_provider_unleash.core.moments import to_ms
from airflow_provider_unleash.core.phrases import plural
from airflow_provider_unleash.core.windows import STEPS, Window, count_steps, iter_steps
from airflow_provider_unleash.exceptions import InvalidArgumentError

log = logging.getLogger(__name__)

MINUTE_MS = 60_000
_GAPS = ("missing", "unsettled")
_OTHER_OPTIONS = (
    "plan a shorter span or fewer devices per run, or raise max_windows and Airflow's [core] max_map_length"
)


# Both have the ids that one task extracts; None stands for the whole account.
DeviceWindow = tuple[str, Window]
AccountWindow = tuple[list[str] | None, Window]


def plan_steps(
    span: Window, step: timedelta | None, zone: tzinfo, *, max_windows: int, devices: int = 1
) -> list[Window]:
    """Return the windows of a span, at most ``max_windows`` for all devices together; without a step, one window."""
    if not devices:
        log.warning("There are no devices, so there are no windows")
        return []
    limit = max_windows // devices
    # Create only as many windows as it takes to see that there are too many.
    windows = [span] if step is None else list(islice(iter_steps(span, step, zone), limit + 1))
    if len(windows) > limit:
        number = 1 if step is None else max(len(windows), count_steps(span, step, zone))
        product = f"{plural(devices, 'device')} × {plural(number, 'window')} = {devices * number:,} tasks"
        raise InvalidArgumentError(
            f"{product if devices > 1 else plural(number, 'window')}, but max_windows={max_windows}: "
            f"{_suggest_step(devices, span, zone, max_windows)}",
            argument="max_windows",
        )
    return windows


def _suggest_step(devices: int, span: Window, zone: tzinfo, max_windows: int) -> str:
    for name, step in STEPS.items():
        number = devices * count_steps(span, step, zone)
        if number <= max_windows:
            return f'use every="{name}", which makes {number}; or {_OTHER_OPTIONS}'
    return f"no step fits: {_OTHER_OPTIONS}"


def split_by_size(
    planned: Sequence[DeviceWindow],
    count_pages: Callable[[Sequence[DeviceWindow]], Generator[int, None, None]],
    *,
    max_pages: int,
    max_windows: int,
) -> list[DeviceWindow]:
    """
    Halve windows until each has at most ``max_pages`` pages or is shorter than two minutes.

    Requests fewer than ``2 * max_windows`` pages; ``planned`` has at most ``max_windows`` windows.
    """
    order = {device_id: number for number, device_id in enumerate(dict.fromkeys(device_id for device_id, _ in planned))}
    fitting: list[DeviceWindow] = []
    before, counted = len(planned), 0
    while planned:
        counted += len(planned)
        halves: list[DeviceWindow] = []
        with closing(count_pages(planned)) as counts:
            for done, ((device_id, window), pages) in enumerate(zip(planned, counts, strict=True), 1):
                parts = halve(window) if pages > max_pages else ()
                if pages > max_pages and not parts:
                    log.warning(
                        "Cannot cut %s of %s any shorter, although it has %s",
                        *(window, device_id, plural(pages, "page")),
                    )
                if parts:
                    halves += [(device_id, part) for part in parts]
                else:
                    fitting.append((device_id, window))
                if len(fitting) + len(halves) + len(planned) - done > max_windows:
                    raise InvalidArgumentError(
                        f"With max_pages={max_pages}, there are more windows than max_windows={max_windows} (one of "
                        f"{device_id} has {plural(pages, 'page')}): raise max_pages, {_OTHER_OPTIONS}",
                        argument="max_windows",
                    )
        planned = halves
    log.info("Counted the pages of %s: %d planned, %d remain", plural(counted, "window"), before, len(fitting))
    return sorted(fitting, key=lambda one: (order[one[0]], one[1].start_ms))


def halve(window: Window) -> tuple[Window, ...]:
    """Return a window in two parts, cut at a whole minute; none if it is shorter than two minutes."""
    start, end = window.start_ms, window.end_ms
    if end - start < 2 * MINUTE_MS:
        return ()
    # Whole minutes keep object names short, and later plans cut at the same places.
    middle = (start + end) // 2 // MINUTE_MS * MINUTE_MS
    return replace(window, end_ms=middle), replace(window, start_ms=middle)


def cut_to_grid(span: Window, step: timedelta, zone: tzinfo) -> Window:
    """
    Return the whole windows of a span: its start and end moved back to a bound of the calendar in ``zone``.

    Only the steps in ``STEPS`` have bounds that do not depend on the span.
    """
    unit = next((name for name, known in STEPS.items() if known == step), None)
    if unit is None:
        return span
    return replace(span, start_ms=_floor(span.start, unit, zone), end_ms=_floor(span.end, unit, zone))


def _floor(moment: datetime, unit: str, zone: tzinfo) -> int:
    local = pendulum.instance(moment.astimezone(zone))
    return to_ms(local.first_of("quarter") if unit == "quarter" else local.start_of(unit))


def check_max_windows(planned: Sequence[object], max_windows: int) -> None:
    if len(planned) > max_windows:
        raise InvalidArgumentError(
            f"{plural(len(planned), 'window')} are missing or unsettled, more than max_windows={max_windows}: "
            f"{_OTHER_OPTIONS}",
            argument="max_windows",
        )


def plan_device_gaps(coverage: Coverage) -> list[DeviceWindow]:
    return [
        (device_id, window)
        for device_id in coverage.device_ids
        for window, state in zip(coverage.windows, coverage.states_of(device_id), strict=True)
        if state in _GAPS
    ]


def plan_account_gaps(coverage: Coverage) -> list[AccountWindow]:
    """
    Return the windows that are missing or unsettled for some devices, in order of time.

    If one object has the rows of all devices, a window with a gap is one of the whole account.
    """
    lacking: list[list[str]] = [[] for _ in coverage.windows]
    for device_id in coverage.device_ids:
        for devices, state in zip(lacking, coverage.states_of(device_id), strict=True):
            if state in _GAPS:
                devices.append(device_id)
    is_split = coverage.layout is None or coverage.layout.is_split
    return [
        (devices if is_split else None, window)
        for devices, window in zip(lacking, coverage.windows, strict=True)
        if devices
    ]
