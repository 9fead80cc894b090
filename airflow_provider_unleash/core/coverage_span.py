"""Choose the span to show by default: the newest windows of the tree."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import tzinfo

from airflow_provider_unleash.core.coverage_text import format_bound
from airflow_provider_unleash.core.moments import from_epoch_ms, now_ms, parse_moment, shift, to_ms
from airflow_provider_unleash.core.windows import STEPS, Window, count_steps, parse_step
from airflow_provider_unleash.exceptions import InvalidArgumentError

WINDOWS = 30


@dataclass(frozen=True)
class Span:
    """
    A span of a grid.

    :param every: length of the windows, as ``parse_step`` reads it.
    :param zone: time zone of the calendar.
    """

    start_ms: int
    end_ms: int
    every: str
    zone: tzinfo

    def count_windows(self) -> int:
        step = parse_step(self.every)
        return count_steps(Window(self.start_ms, self.end_ms), step, self.zone) if step else 0

    def bounds(self) -> tuple[str, str]:
        start, end = (from_epoch_ms(moment).astimezone(self.zone) for moment in (self.start_ms, self.end_ms))
        return format_bound(start), format_bound(end)


def choose_span(
    *, start: str | None, end: str | None, every: str | None, zone: tzinfo, window: Window | None, newest: Window | None
) -> Span:
    """
    Return the span to show.

    :param start: start of the span in ISO 8601, in ``zone`` if it has no offset; by default 30 windows before the end.
    :param end: end of the span; by default the end of ``window``, else that of the last complete window.
    :param every: length of the windows; by default that of ``window``, else that of the newest window.
    :param window: a window that the span must contain.
    :param newest: the newest window of the tree; the windows are days if there is none.
    """
    known = window or newest
    every = every or (_name_step(known, zone) if known else "day")
    step = parse_step(every)
    if step is None:
        raise InvalidArgumentError("every is missing", argument="every")
    end_ms = parse_moment(end, "end", zone)
    start_ms = parse_moment(start, "start", zone)
    try:
        if end_ms is None:
            if window:
                end_ms = window.end_ms
            else:
                first = newest.end_ms if newest else _midnight(zone)
                complete = count_steps(Window(first, now_ms() + 1), step, zone) - 1 if first <= now_ms() else 0
                end_ms = to_ms(shift(from_epoch_ms(first), step, zone, complete))
        if start_ms is None:
            start_ms = to_ms(shift(from_epoch_ms(end_ms), step, zone, -WINDOWS))
    except (OverflowError, ValueError):
        raise InvalidArgumentError(f"every={every!r} leads out of the years 1 to 9999", argument="every") from None
    return Span(start_ms, end_ms, every, zone)


def _midnight(zone: tzinfo) -> int:
    now = from_epoch_ms(now_ms()).astimezone(zone)
    return to_ms(now.replace(hour=0, minute=0, second=0, microsecond=0))


def _name_step(window: Window, zone: tzinfo) -> str:
    for name, step in STEPS.items():
        with suppress(OverflowError, ValueError):  # after the year 9999
            if to_ms(shift(window.start, step, zone)) == window.end_ms:
                return name
    length = window.end_ms - window.start_ms
    for size, unit in ((3_600_000, "H"), (60_000, "M")):
        if length % size == 0:
            return f"PT{length // size}{unit}"
    return f"PT{length / 1000:f}S"
