"""Which ``[start, end)`` a DAG run extracts, how a span is cut into windows, and which rows a window keeps."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta, tzinfo
from itertools import count

import pendulum

from airflow_provider_unleash.core.moments import (
    UTC,
    are_all_between,
    format_ms,
    from_epoch_ms,
    is_missing,
    parse_duration,
    parse_moment,
    parse_moment_string,
    parse_timestamp_or_none,
    parse_timezone,
    shift,
    split_duration,
    to_ms,
)
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.exceptions import InvalidArgumentError, WindowError

log = logging.getLogger(__name__)

TOLERATED_DIFFERENCE = timedelta(hours=1)

_RULES = {
    "start_end": "the task's start and end",
    "data_interval": "the run's data interval",
    "partition_date": "the run's partition date and window",
    "window": "window, counted back from the run",
}


@dataclass(frozen=True)
class Window:
    """
    A half-open interval ``[start, end)`` in epoch milliseconds.

    :param start_ms: first millisecond in the window.
    :param end_ms: first millisecond after the window; equal to ``start_ms`` only if the user asked for that.
    :param rule: the rule that gave the window: start_end, data_interval, partition_date or window.
    """

    start_ms: int
    end_ms: int
    rule: str = "start_end"

    @property
    def start(self) -> datetime:
        """The start as a datetime in UTC."""
        return from_epoch_ms(self.start_ms)

    @property
    def end(self) -> datetime:
        """The end as a datetime in UTC."""
        return from_epoch_ms(self.end_ms)

    def __str__(self) -> str:
        return f"[{format_ms(self.start_ms)}, {format_ms(self.end_ms)}) from {_RULES[self.rule]}"


@dataclass(frozen=True)
class RunTimes:
    """
    The times of a run, None if it does not have them.

    :param undated_partition: key of the run's partition if its date is unknown.
    :param timezone: time zone in which whole days count.
    :param run_kind: what started the run, for errors.
    """

    data_interval_start: datetime | None = None
    data_interval_end: datetime | None = None
    partition_date: datetime | None = None
    logical_date: datetime | None = None
    run_after: datetime | None = None
    undated_partition: str | None = None
    timezone: tzinfo = UTC
    run_kind: str = ""

    def data_interval(self) -> Window | None:
        if self.data_interval_start is None or self.data_interval_end is None:
            return None
        interval = Window(to_ms(self.data_interval_start), to_ms(self.data_interval_end), "data_interval")
        return interval if interval.start_ms < interval.end_ms else None


def resolve_window(times: RunTimes, *, start: object = None, end: object = None, window: object = None) -> Window:
    """
    Return the window of a run by the first rule that applies.

    1. ``start`` and ``end`` are given.
    2. The data interval is longer than zero.
    3. ``window`` is given and the run has a partition date: ``[partition_date, partition_date + window)``.
    4. ``window`` is given: ``[moment - window, moment)``, where the moment is the logical date, else the end of the
       data interval, else ``run_after``. ``airflow dags trigger -l`` sets only the logical date, so it comes first.

    Rules 3 and 4 count in ``timezone``; whole days are calendar days. They do not apply to a run with an
    ``undated_partition``, because it may lie anywhere.
    """
    given, length = given_window(start, end), parse_duration(window)
    if given is not None:
        return given
    interval = times.data_interval()
    if interval is not None:
        _warn_if_different(interval, length, times.timezone)
        return interval
    if times.undated_partition:
        raise WindowError(
            f"The run is for partition {times.undated_partition!r}, and this Airflow version does not provide its date "
            "(3.3 does). Set start and end, for example with {{ dag_run.partition_key }}",
            argument="start",
        )
    if length is not None and times.partition_date is not None:
        return _span(times.partition_date, length, 1, times.timezone, "partition_date")
    moment = times.logical_date or times.data_interval_end or times.run_after
    if length is not None and moment is not None:
        return _span(moment, length, -1, times.timezone, "window")
    raise WindowError(_explain_no_window(times), argument="window")


def given_window(start: object, end: object) -> Window | None:
    start_ms, end_ms = parse_moment(start, "start"), parse_moment(end, "end")
    if start_ms is None and end_ms is None:
        return None
    if start_ms is None or end_ms is None:
        missing = "start" if start_ms is None else "end"
        raise WindowError(f"Give both start and end: {missing} is missing", argument=missing)
    if start_ms > end_ms:
        raise WindowError(f"start {format_ms(start_ms)} is after end {format_ms(end_ms)}", argument="start")
    return Window(start_ms, end_ms, "start_end")


def _span(moment: datetime, length: timedelta, direction: int, zone: tzinfo, rule: str) -> Window:
    try:
        first, last = sorted((to_ms(moment), to_ms(shift(moment, length, zone, direction))))
    except (OverflowError, ValueError):
        raise WindowError(
            f"window={length} from {moment} ends outside the years 1 to 9999", argument="window"
        ) from None
    return Window(first, last, rule)


def _warn_if_different(interval: Window, length: timedelta | None, zone: tzinfo) -> None:
    if length is None:
        return
    expected = _span(interval.end, length, -1, zone, "window")
    if abs(expected.start - interval.start) > TOLERATED_DIFFERENCE:
        log.warning(
            "The run's data interval is %s long, but window=%s. The data interval is used",
            interval.end - interval.start,
            length,
        )


def _explain_no_window(times: RunTimes) -> str:
    problem = "no data interval" if times.data_interval_end is None else "an empty data interval (start equals end)"
    partition = times.partition_date
    by_window = "the day before the run" if partition is None else f"the day from partition date {partition}"
    return (
        f"This {(times.run_kind + ' run').replace('_', '-').strip()} has {problem}, so it does not define a time "
        'window. On Airflow 3, schedule="@daily" gives runs an empty interval, and a manual or asset-triggered run may '
        "have none. Choose one:\n"
        '1. Use a timetable with data intervals: schedule=CronDataIntervalTimetable("@daily", timezone="UTC"), '
        "from airflow.timetables.interval\n"
        f"2. Set window=timedelta(days=1) on this task: {by_window}\n"
        '3. Set start="2020-08-17T00:00:00Z" and end="2020-08-18T00:00:00Z" on this task (templates work)'
    )


def check_partition_format(partition_format: object) -> None:
    start_of_year = datetime(2001, 1, 1, tzinfo=UTC)
    if not isinstance(partition_format, str) or not _is_start(start_of_year, partition_format):
        raise InvalidArgumentError(
            f"partition_format={partition_format!r} is not a format of dates; expected for example '%Y-%m-%d'",
            argument="partition_format",
        )


def partition_key(window: Window, partition_format: str, zone: tzinfo) -> str:
    """Return the key of a window's start, unless other windows could have the same key."""
    edges = (window.start - timedelta(milliseconds=1), window.end)
    start = window.start.astimezone(zone)
    key = start.strftime(partition_format)
    other_keys = [moment.astimezone(zone).strftime(partition_format) for moment in edges]
    if not _is_start(start, partition_format) or key in other_keys:
        raise WindowError(
            f"The window {window} shares its partition key {key!r} with other windows: in {zone}, it does not start "
            f"with a partition of partition_format={partition_format!r}, or is shorter. For hours in a time zone with "
            "daylight saving time, add %z",
            argument="partition_format",
        )
    return key


def _is_start(moment: datetime, partition_format: str) -> bool:
    """Return whether a moment's key, parsed again, gives that moment."""
    with suppress(ValueError, re.error):  # unknown or repeated directives
        named = datetime.strptime(moment.strftime(partition_format), partition_format)
        if named.tzinfo is None:
            named = named.replace(tzinfo=moment.tzinfo)
        # Compared in UTC, because a day begins at 01:00 where clocks go forward at midnight.
        return named.astimezone(UTC) == moment.astimezone(UTC)
    return False


STEPS: dict[str, timedelta] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": pendulum.duration(months=1),
    "quarter": pendulum.duration(months=3),
    "year": pendulum.duration(years=1),
}


def plan_windows(start: object, end: object, *, every: object, timezone: object = None) -> list[Window]:
    """
    Cut ``[start, end)`` into consecutive windows of one step each; the last one may be shorter.

    Steps count from ``start``: years, months, weeks and days by the calendar, the rest by the clock. A day may have 23
    or 25 hours. A month from the 31st ends on the last day of a shorter month, and later months still end on the 31st.

    :param start: datetime, date, ISO 8601 string or epoch milliseconds; a naive value is UTC.
    :param end: like ``start``; if they are equal, there are no windows.
    :param every: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, a ``timedelta``, a pendulum duration
        or an ISO 8601 duration such as ``P1D``.
    :param timezone: the calendar's time zone, ``tzinfo`` or IANA name; by default that of ``start``, else UTC.
    :raises WindowError: if only one of start and end is given, or start is after end.
    :raises InvalidArgumentError: if a value cannot be parsed.
    """
    span, step = given_window(start, end), parse_step(every)
    if span is None or step is None:
        missing = "every" if span else "start"
        raise InvalidArgumentError(f"{missing} is missing", argument=missing)
    return list(iter_steps(span, step, calendar_zone(start, timezone)))


def calendar_zone(start: object, timezone: object) -> tzinfo:
    """Return the time zone whose calendar steps follow: ``timezone`` if given, else that of ``start``, else UTC."""
    moment = parse_moment_string(start.strip(), "start") if isinstance(start, str) else start
    return parse_timezone(timezone) or parse_timezone(getattr(moment, "tzinfo", None)) or UTC


def iter_steps(span: Window, step: timedelta, zone: tzinfo) -> Iterator[Window]:
    first = span.start_ms
    for number in count(1):
        if first >= span.end_ms:
            return
        last = _end_of_step(span, step, zone, number)
        if last > first:  # some local days do not exist, such as 30 December 2011 in Samoa
            yield Window(first, last, span.rule)
            first = last


def count_steps(span: Window, step: timedelta, zone: tzinfo) -> int:
    """Return the number of steps in a span without creating them."""
    numbers = range(1, 1 << 50)  # more than the milliseconds in 10 000 years
    found = bisect_left(numbers, span.end_ms, key=lambda number: _end_of_step(span, step, zone, number))
    return found + 1 if span.start_ms < span.end_ms else 0


def _end_of_step(span: Window, step: timedelta, zone: tzinfo, number: int) -> int:
    """Return the end of a step, counted from the start of the span so that months do not drift."""
    try:
        return min(to_ms(shift(span.start, step, zone, number)), span.end_ms)
    except (OverflowError, ValueError):  # after the year 9999
        return span.end_ms


def parse_step(value: object) -> timedelta | None:
    if isinstance(value, str) and value in STEPS:
        return STEPS[value]
    if isinstance(value, str) and not is_missing(value) and not value.startswith("P"):
        raise InvalidArgumentError(
            f"every={value!r} must be one of {', '.join(STEPS)}, or an ISO 8601 duration such as P1D",
            argument="every",
        )
    step = parse_duration(value, "every")
    if step is not None:
        years, months, days, clock = split_duration(step)
        if min(years, months, days) < 0 or clock < timedelta(0):
            raise InvalidArgumentError(f"every={value!r} mixes positive and negative parts", argument="every")
    return step


@dataclass
class RowCounts:
    """
    Counts of a window's pages and rows.

    :param rows: rows that are kept; the others are at the end.
    :param rows_of_other_devices: rows whose ``device_id`` is not the one that was asked for.
    """

    pages: int = 0
    rows: int = 0
    rows_before_start: int = 0
    rows_after_end: int = 0
    rows_at_end: int = 0
    rows_of_other_devices: int = 0

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def warn_if_not_as_asked(self, window: Window) -> None:
        if 2 * self.rows_of_other_devices > self.rows:
            log.warning(
                "Most rows have another device_id than the one that was asked for: rows_of_other_devices=%d of %d. If "
                "the API ignores the device, all devices have the same rows",
                *(self.rows_of_other_devices, self.rows),
            )
        outside = self.rows_before_start + self.rows_after_end
        if 2 * outside > self.rows:
            log.warning(
                "Most rows are stamped outside the window [%s, %s): %d of %d (rows_before_start=%d, rows_after_end=%d)."
                " If the API ignores the window, other windows have the same rows",
                *(window.start, window.end, outside, self.rows, self.rows_before_start, self.rows_after_end),
            )


class HalfOpenPages:
    """
    The pages of a device in ``[start, end)``, from an API that is asked for ``[start, end]``. Iterate once.

    Rows stamped exactly ``end`` are dropped, because the next window has them, unless start equals end. All other rows
    are kept and counted, even those stamped outside the window or not at all, because no other window is known to
    return them.
    """

    def __init__(self, device_id: str, window: Window, pages: Iterable[Page]) -> None:
        self.counts = RowCounts()
        self._device_id = device_id
        self._pages = pages
        self._start = window.start
        self._end = window.end
        # Timestamps count by whole milliseconds, as in the request, so "at end" lasts one millisecond.
        self._after_end = window.end + timedelta(milliseconds=1)
        self._drops_end = window.start_ms < window.end_ms

    def __iter__(self) -> Iterator[Page]:
        for page in self._pages:
            kept = self._keep_rows(page)
            self.counts.pages += 1
            self.counts.rows += len(kept.rows)
            self._count_other_devices(kept)
            yield kept

    def _count_other_devices(self, page: Page) -> None:
        device_ids = page.column("device_id") or []
        if device_ids.count(self._device_id) < len(device_ids):
            # An id may be a number, and a row may lack it.
            others = [found for found in device_ids if found is not None and str(found) != self._device_id]
            self.counts.rows_of_other_devices += len(others)

    def _keep_rows(self, page: Page) -> Page:
        timestamps = page.column("timestamp") or ()
        if are_all_between(timestamps, self._start, self._end):
            return page
        moments = list(map(parse_timestamp_or_none, timestamps))
        stamped = [moment for moment in moments if moment is not None]
        self.counts.rows_before_start += sum(moment < self._start for moment in stamped)
        self.counts.rows_after_end += sum(moment >= self._after_end for moment in stamped)
        if not self._drops_end:
            return page
        at_end = tuple(i for i, moment in enumerate(moments) if moment and self._end <= moment < self._after_end)
        if not at_end:
            return page
        self.counts.rows_at_end += len(at_end)
        dropped = set(at_end)
        return replace(page, rows=[row for i, row in enumerate(page.rows) if i not in dropped], dropped=at_end)
