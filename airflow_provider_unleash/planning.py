"""Devices and a span become a bounded list of windows: by calendar steps, or by the pages that the API has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta, tzinfo
from itertools import islice

from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.window import STEPS, Window, count_steps, iter_steps

log = logging.getLogger(__name__)

MINUTE_MS = 60_000


@dataclass(frozen=True)
class DeviceWindow:
    """A window of a device: what one task extracts."""

    device_id: str
    window: Window

    def halves(self) -> tuple[DeviceWindow, ...]:
        """Return it in two parts, cut at a whole minute; none where it is shorter than two minutes."""
        start, end = self.window.start_ms, self.window.end_ms
        if end - start < 2 * MINUTE_MS:
            return ()
        # A minute, so that the names of objects are short; the middle, so that a plan of another day cuts there, too.
        middle = (start + end) // 2 // MINUTE_MS * MINUTE_MS
        parts = replace(self.window, end_ms=middle), replace(self.window, start_ms=middle)
        return tuple(replace(self, window=part) for part in parts)


PageCounts = Callable[[Sequence[DeviceWindow]], Generator[int, None, None]]


def plan_steps(
    device_ids: Sequence[str], span: Window, step: timedelta | None, zone: tzinfo, *, max_windows: int
) -> list[DeviceWindow]:
    """
    Return the windows of all devices, device by device, each in the order of time.

    :param step: as :func:`~airflow_provider_unleash.window.parse_step` reads it; None makes the span one window.
    :raises InvalidArgumentError: they are more than ``max_windows``; says which step would fit.
    """
    if not device_ids:
        log.warning("There are no devices, and so no windows")
        return []
    most = max_windows // len(device_ids)
    # No more of them than are needed to see that they are too many.
    windows = [span] if step is None else list(islice(iter_steps(span, step, zone), most + 1))
    if len(windows) > most:
        number = 1 if step is None else max(len(windows), count_steps(span, step, zone))
        raise InvalidArgumentError(
            f"{len(device_ids)} devices in {number} windows each are {len(device_ids) * number} windows, "
            f"more than max_windows={max_windows}: {_ways_out(len(device_ids), span, zone, max_windows)}",
            argument="max_windows",
        )
    return [DeviceWindow(device_id, window) for device_id in device_ids for window in windows]


def _ways_out(devices: int, span: Window, zone: tzinfo, max_windows: int) -> str:
    others = "plan a shorter span or fewer devices in one run, or raise Airflow's [core] max_map_length and max_windows"
    for name, step in STEPS.items():
        number = devices * count_steps(span, step, zone)
        if number <= max_windows:
            return f'every="{name}" makes {number}; or {others}'
    return f"no step fits: {others}"


def split_by_size(
    planned: Sequence[DeviceWindow], count_pages: PageCounts, *, max_pages: int, max_windows: int
) -> list[DeviceWindow]:
    """
    Return the same span in windows of at most ``max_pages`` pages, each cut in halves until it is.

    Asks for fewer than ``2 * max_windows`` first pages. A window shorter than two minutes is not cut any more.

    :param planned: at most ``max_windows``.
    :param count_pages: yields the number of pages of each window.
    :raises InvalidArgumentError: they are more than ``max_windows``.
    """
    order = {device_id: number for number, device_id in enumerate(dict.fromkeys(one.device_id for one in planned))}
    fitting: list[DeviceWindow] = []
    whole, asked = len(planned), 0
    while planned:
        asked += len(planned)
        cut: list[DeviceWindow] = []
        with closing(count_pages(planned)) as counts:
            for done, (one, pages) in enumerate(zip(planned, counts, strict=True), 1):
                halves = one.halves() if pages > max_pages else ()
                if pages > max_pages and not halves:
                    log.warning("%d pages of %s in %s, which is not cut any more", pages, one.device_id, one.window)
                if halves:
                    cut += halves
                else:
                    fitting.append(one)
                if len(fitting) + len(cut) + len(planned) - done > max_windows:
                    raise InvalidArgumentError(
                        f"Windows of at most max_pages={max_pages} are more than max_windows={max_windows} "
                        f"(one of {one.device_id} has {pages} pages): give a larger max_pages, plan a shorter span or "
                        "fewer devices in one run, or raise Airflow's [core] max_map_length and max_windows",
                        argument="max_windows",
                    )
        planned = cut
    log.info("Counted the pages of %d windows; %d were planned, %d are left", asked, whole, len(fitting))
    return sorted(fitting, key=lambda one: (order[one.device_id], one.window.start_ms))
