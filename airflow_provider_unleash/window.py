"""Which ``[start, end)`` a DAG run means, and which rows and sessions lie in it. Plain values, no Airflow."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import cached_property
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
from pendulum.helpers import add_duration

from airflow_provider_unleash import protocol
from airflow_provider_unleash.exceptions import InvalidArgumentError, WindowError
from airflow_provider_unleash.protocol import Page, format_ms, from_epoch_ms

log = logging.getLogger(__name__)

_UTC = timezone.utc
TOLERATED_DIFFERENCE = timedelta(hours=1)

_RULES = {
    "start_end": "the task's start and end",
    "data_interval": "the run's data interval",
    "partition_date": "the run's partition date and window",
    "window": "window, up to the moment of the run",
}


@dataclass(frozen=True)
class Window:
    """
    ``[start, end)`` in whole epoch milliseconds.

    :param start_ms: first millisecond in it.
    :param end_ms: first millisecond after it; equal to ``start_ms`` only where the user asked for that.
    :param rule: name of the rule that gave it: start_end, data_interval, partition_date or window.
    """

    start_ms: int
    end_ms: int
    rule: str = "start_end"

    @property
    def start(self) -> datetime:
        """The start as an aware UTC datetime."""
        return from_epoch_ms(self.start_ms)

    @property
    def end(self) -> datetime:
        """The end as an aware UTC datetime."""
        return from_epoch_ms(self.end_ms)

    def __str__(self) -> str:
        return f"[{format_ms(self.start_ms)}, {format_ms(self.end_ms)}) from {_RULES[self.rule]}"


# ---- the rules ---------------------------------------------------------------------------------


def resolve_window(
    *,
    start: object = None,
    end: object = None,
    window: object = None,
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
    partition_date: datetime | None = None,
    logical_date: datetime | None = None,
    run_after: datetime | None = None,
    undated_partition: str | None = None,
    dag_timezone: tzinfo = timezone.utc,
    run_kind: str = "",
) -> Window:
    """
    Return the window of a run by the first rule that applies.

    1. ``start`` and ``end`` are given.
    2. The data interval is longer than zero.
    3. ``window`` is given and the run has a partition date: ``[partition_date, partition_date + window)``.
    4. ``window`` is given: ``[moment - window, moment)``, moment being the data interval's end, else the logical
       date, else ``run_after``.

    Rules 3 and 4 count in the DAG's timezone, whole days as calendar days.

    :param start: datetime, date, ISO 8601 text or epoch milliseconds; ``""`` and ``"None"`` are not given.
    :param end: likewise.
    :param window: ``timedelta``, pendulum duration or ISO 8601 duration.
    :param undated_partition: key of a run's partition whose date is not known; such a run has no rule 3 or 4, because
        the partition may lie anywhere.
    :param run_kind: what the error calls the run, e.g. ``manual``.
    :raises WindowError: no rule applies, or start is after end.
    :raises InvalidArgumentError: a value cannot be read.
    """
    given, length = given_window(start, end), parse_duration(window)
    if given is not None:
        return given
    interval = _data_interval(data_interval_start, data_interval_end)
    if interval is not None:
        _warn_of_difference(interval, length, dag_timezone)
        return interval
    if undated_partition:
        raise WindowError(
            f"The run is for the partition {undated_partition!r}, and this Airflow tells no date of it (3.3 does): "
            "give start and end, e.g. made of {{ dag_run.partition_key }}",
            argument="start",
        )
    if length is not None and partition_date is not None:
        return _span(partition_date, length, 1, dag_timezone, "partition_date")
    moment = data_interval_end or logical_date or run_after
    if length is not None and moment is not None:
        return _span(moment, length, -1, dag_timezone, "window")
    raise WindowError(_no_window(run_kind, data_interval_end, partition_date), argument="window")


def given_window(start: object, end: object) -> Window | None:
    """
    Return the window that a task's ``start`` and ``end`` mean, None where neither is given.

    :raises WindowError: only one is given, or start is after end.
    :raises InvalidArgumentError: one cannot be read.
    """
    start_ms, end_ms = parse_moment(start, "start"), parse_moment(end, "end")
    if start_ms is None and end_ms is None:
        return None
    if start_ms is None or end_ms is None:
        missing = "start" if start_ms is None else "end"
        raise WindowError(f"Only one of start and end is given: {missing} is missing", argument=missing)
    if start_ms > end_ms:
        raise WindowError(f"start {format_ms(start_ms)} is after end {format_ms(end_ms)}", argument="start")
    return Window(start_ms, end_ms, "start_end")


def _data_interval(start: datetime | None, end: datetime | None) -> Window | None:
    if start is None or end is None:
        return None
    interval = Window(_ms(start), _ms(end), "data_interval")
    return interval if interval.start_ms < interval.end_ms else None


def _span(moment: datetime, length: timedelta, direction: int, zone: tzinfo, rule: str) -> Window:
    try:
        first, last = sorted((_ms(moment), _ms(shift(moment, length * direction, zone))))
    except (OverflowError, ValueError):
        raise WindowError(
            f"window={length} from {moment} leads beyond the years 1 to 9999", argument="window"
        ) from None
    return Window(first, last, rule)


def _warn_of_difference(interval: Window, length: timedelta | None, zone: tzinfo) -> None:
    if length is None:
        return
    meant = _span(interval.end, length, -1, zone, "window")
    if abs(meant.start - interval.start) > TOLERATED_DIFFERENCE:
        log.warning(
            "The data interval of the run is %s long, window is %s: the data interval wins",
            interval.end - interval.start,
            length,
        )


def _no_window(run_kind: str, data_interval_end: datetime | None, partition_date: datetime | None) -> str:
    problem = "no data interval" if data_interval_end is None else "an empty data interval (start equals end)"
    by_window = (
        "the day up to the run" if partition_date is None else f"the day from its partition date {partition_date}"
    )
    return (
        f"This {(run_kind + ' run').replace('_', '-').strip()} has {problem}, so it means no window of time. "
        'Airflow 3 turns schedule="@daily" into a timetable with an empty interval; a manual or asset-triggered run '
        "may have none at all. Three ways out:\n"
        '1. a timetable with data intervals: schedule=CronDataIntervalTimetable("@daily", timezone="UTC"), '
        "from airflow.timetables.interval\n"
        f"2. on this task: window=timedelta(days=1), {by_window}\n"
        '3. on this task: start="2020-08-17T00:00:00Z", end="2020-08-18T00:00:00Z" (templates work)'
    )


def shift(moment: datetime, length: timedelta, zone: tzinfo) -> datetime:
    """
    Return the moment moved by a length: years, months and days by the zone's calendar, the rest by the clock.

    ``timedelta(days=1)`` before noon of the day on which clocks change is noon of the day before, 23 or 25 hours ago.
    """
    return _move(_aware(moment), *_split(length), zone)


def _move(moment: datetime, years: int, months: int, days: int, clock: timedelta, zone: tzinfo) -> datetime:
    if years or months or days:
        wall = add_duration(moment.astimezone(zone).replace(tzinfo=None), years=years, months=months, days=days)
        # Of a time that comes twice or never, the later reading: that is when Airflow's cron timetables run.
        moment = max(wall.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc) for fold in (0, 1))
    # In UTC, because arithmetic of aware datetimes is that of the wall.
    return moment.astimezone(timezone.utc) + clock


def _split(length: timedelta) -> tuple[int, int, int, timedelta]:
    """Return years, months and days, which the calendar counts, and the rest, which the clock does; of one sign."""
    if isinstance(length, pendulum.Duration):
        days = length.weeks * 7 + length.remaining_days
        # A plain timedelta of pendulum takes a year for 365 days and a month for 30.
        clock = length.as_timedelta() - timedelta(length.years * 365 + length.months * 30 + days)
        return length.years, length.months, days, clock
    days, clock = length.days, timedelta(seconds=length.seconds, microseconds=length.microseconds)
    if days < 0 and clock:  # Python writes «an hour ago» as a day ago and 23 hours on
        days, clock = days + 1, clock - timedelta(1)
    return 0, 0, days, clock


def parse_moment(value: object, argument: str) -> int | None:
    """
    Return a moment in epoch milliseconds, floored; None where it is not given.

    :raises InvalidArgumentError: it cannot be read, or looks like seconds.
    """
    if isinstance(value, str):
        value = _parse_text(value.strip(), argument)
    if value is None:
        return None
    if isinstance(value, datetime):
        value = _aware(value)
    elif isinstance(value, date):
        value = datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    return protocol.to_epoch_ms(value, argument)  # type: ignore[arg-type]  # it says what is wrong with other types


def _parse_text(text: str, argument: str) -> datetime | date | int | None:
    if text in ("", "None"):
        return None
    if re.fullmatch(r"\d{13}", text):
        return int(text)
    if re.fullmatch(r"-?\d+", text) and len(text) != len("20200817"):
        raise InvalidArgumentError(
            f"{argument}={text!r} is no epoch in milliseconds, which has 13 digits{'; seconds?' * (len(text) == 10)}",
            argument=argument,
        )
    # A whole date first: pendulum reads «12:00» as noon of today, and «2020» as a year.
    if re.match(r"\d{4}-\d{2}-\d{2}|\d{8}", text):
        moment = _parse_iso(text)
        if isinstance(moment, date):  # a DateTime is one, too
            return moment
    raise InvalidArgumentError(f"{argument}={text!r} is no ISO 8601 date or time", argument=argument)


def parse_duration(value: object, argument: str = "window") -> timedelta | None:
    """
    Return a length of time; None where it is not given.

    :param value: ``timedelta``, pendulum duration, or ISO 8601 text as ``P1D``; ``""`` and ``"None"`` are not given.
    :param argument: what the error calls it.
    :raises InvalidArgumentError: it is not longer than zero, or something else.
    """
    if value is None or value in ("", "None"):
        return None
    if isinstance(value, str) and value.startswith("P"):
        parsed = _parse_iso(value)
        value = value if parsed is None else parsed  # PT0S is false
    if not isinstance(value, timedelta):
        raise InvalidArgumentError(
            f"{argument}={value!r} is no length of time; expected e.g. timedelta(days=1)", argument=argument
        )
    if value < timedelta(milliseconds=1):
        raise InvalidArgumentError(
            f"{argument}={value!r} must be longer than zero, a millisecond at least", argument=argument
        )
    return value


def _parse_iso(text: str) -> object:
    # pendulum lets a TypeError or an OverflowError out for some texts, too.
    with suppress(ValueError, TypeError, OverflowError):
        return pendulum.parse(text, exact=True)
    return None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _ms(moment: datetime) -> int:
    return protocol.to_epoch_ms(_aware(moment), "moment")


# ---- a span in steps ---------------------------------------------------------------------------

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
    Return the windows that cover ``[start, end)``, one after the other, each a step long, the last one what is left.

    Steps are counted from ``start``: years, months, weeks and days by the calendar, the rest by the clock. A day may
    have 23 or 25 hours, and a month from the 31st ends on the last day where there is no 31st, without moving those
    after it.

    :param start: datetime, date, ISO 8601 text or epoch milliseconds; naive is UTC.
    :param end: likewise; equal to ``start``, there are no windows.
    :param every: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, a ``timedelta``, a pendulum duration
        or ISO 8601 text as ``P1D``.
    :param timezone: whose calendar it is, ``tzinfo`` or IANA name; that of ``start`` where it has one, else UTC.
    :raises WindowError: only one of start and end is given, or start is after end.
    :raises InvalidArgumentError: a value cannot be read.
    """
    span, step = given_window(start, end), parse_step(every)
    if span is None or step is None:
        missing = "every" if span else "start"
        raise InvalidArgumentError(f"{missing} is missing", argument=missing)
    moment = _parse_text(start.strip(), "start") if isinstance(start, str) else start
    zone = parse_timezone(timezone) or parse_timezone(getattr(moment, "tzinfo", None)) or _UTC
    return list(iter_steps(span, step, zone))


def iter_steps(span: Window, step: timedelta, zone: tzinfo) -> Iterator[Window]:
    """Yield the windows of a span, as :func:`plan_windows` has them."""
    first = span.start_ms
    for number in count(1):
        if first >= span.end_ms:
            return
        last = _nth_bound(span, step, zone, number)
        if last > first:  # Samoa had no 30 December 2011
            yield Window(first, last, span.rule)
            first = last


def count_steps(span: Window, step: timedelta, zone: tzinfo) -> int:
    """Return how many windows a span has, without making them."""
    # More than the milliseconds of ten thousand years.
    numbers = range(1, 1 << 50)
    found = bisect_left(numbers, span.end_ms, key=lambda number: _nth_bound(span, step, zone, number))
    return found + 1 if span.start_ms < span.end_ms else 0


def _nth_bound(span: Window, step: timedelta, zone: tzinfo, number: int) -> int:
    """Return where the window of that number ends; from the span's start, so that months do not drift."""
    years, months, days, clock = _split(step)
    try:
        # Each by itself: 24 steps of an hour are no calendar day.
        bound = _move(span.start, years * number, months * number, days * number, clock * number, zone)
    except (OverflowError, ValueError):  # beyond the year 9999
        return span.end_ms
    return min(_ms(bound), span.end_ms)


def parse_step(value: object, argument: str = "every") -> timedelta | None:
    """
    Return the length of a step; None where it is not given.

    :param value: one of ``STEPS``, or what :func:`parse_duration` reads.
    :raises InvalidArgumentError: it cannot be read.
    """
    step = STEPS[value] if isinstance(value, str) and value in STEPS else None
    if step is None and isinstance(value, str) and value not in ("", "None") and not value.startswith("P"):
        raise InvalidArgumentError(
            f"{argument}={value!r} is none of {', '.join(STEPS)}, and no ISO 8601 duration as P1D", argument=argument
        )
    step = step or parse_duration(value, argument)
    if step is not None and (min(_split(step)[:3]) < 0 or _split(step)[3] < timedelta(0)):
        raise InvalidArgumentError(f"{argument}={value!r} mixes positive and negative parts", argument=argument)
    return step


def parse_timezone(value: object, argument: str = "timezone") -> tzinfo | None:
    """
    Return a timezone; None where it is not given.

    :param value: ``tzinfo`` or IANA name as ``Europe/Berlin``; ``""`` and ``"None"`` are not given.
    :raises InvalidArgumentError: there is none of that name.
    """
    if value is None or value in ("", "None"):
        return None
    if isinstance(value, tzinfo):
        # That of a moment of pytz keeps the offset of that moment; its name knows the others.
        name = getattr(value, "zone", None)
        return ZoneInfo(name) if name else value
    # A name that is none is a KeyError, a ValueError, or an OSError where it is that of a folder.
    with suppress(KeyError, ValueError, OSError, TypeError):
        return ZoneInfo(value)  # type: ignore[arg-type]
    raise InvalidArgumentError(
        f"{argument}={value!r} is no timezone; expected a name as Europe/Berlin", argument=argument
    )


# ---- rows of a window --------------------------------------------------------------------------


@dataclass
class RowCounts:
    """What was read for a window, and where its rows were stamped."""

    pages: int = 0
    rows: int = 0
    rows_before_start: int = 0
    rows_after_end: int = 0
    rows_at_end: int = 0


class HalfOpen:
    """
    The pages of ``[start, end)``, made of those of an API that is asked for ``[start, end]``; iterable once.

    Drops the rows stamped exactly ``end``: the next window has them. Keeps all others, those stamped outside the
    window and those without a stamp too, because no other window is known to return them, and counts them.

    :param window: what was asked; where start equals end, nothing is dropped.
    :param pages: what the API answered.
    :ivar counts: of what has been read so far.
    """

    def __init__(self, window: Window, pages: Iterable[Page]) -> None:
        self.counts = RowCounts()
        self._pages = pages
        self._start = window.start
        self._end = window.end
        # A stamp counts by its whole millisecond, as the API does: the first moment after the one that is «end».
        self._after_end = window.end + timedelta(milliseconds=1)
        self._drops = window.start_ms < window.end_ms

    def __iter__(self) -> Iterator[Page]:
        return map(self._count_page, self._pages)

    def _count_page(self, page: Page) -> Page:
        kept = self._keep_page(page)
        self.counts.pages += 1
        self.counts.rows += len(kept.tuples)
        return kept

    def _keep_page(self, page: Page) -> Page:
        stamps = page.column("timestamp") or ()
        if protocol.are_stamped_between(stamps, self._start, self._end):
            return page
        moments = list(map(protocol.read_timestamp, stamps))
        stamped = [moment for moment in moments if moment is not None]
        self.counts.rows_before_start += sum(moment < self._start for moment in stamped)
        self.counts.rows_after_end += sum(moment >= self._after_end for moment in stamped)
        if not self._drops:
            return page
        dropped = tuple(i for i, moment in enumerate(moments) if moment and self._end <= moment < self._after_end)
        if not dropped:
            return page
        self.counts.rows_at_end += len(dropped)
        left_out = set(dropped)
        rows = [row for index, row in enumerate(page.tuples) if index not in left_out]
        return replace(page, tuples=rows, dropped=dropped)


# ---- sessions of a window ----------------------------------------------------------------------


def session_bounds(
    since: object = None,
    until: object = None,
    *,
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
    run_after: datetime | None = None,
    **other_moments: object,
) -> tuple[int | None, int | None]:
    """
    Return between which starts a run looks for sessions, in epoch milliseconds; None is no bound.

    What is not given is the data interval's where that is longer than zero; else ``since`` is ``run_after``.

    :param other_moments: moments of the run that do not matter here.
    :raises WindowError: nothing can lie between the bounds.
    """
    since_ms, until_ms = parse_moment(since, "since"), parse_moment(until, "until")
    interval = _data_interval(data_interval_start, data_interval_end)
    if interval is not None:
        since_ms = interval.start_ms if since_ms is None else since_ms
        until_ms = interval.end_ms if until_ms is None else until_ms
    elif since_ms is None and run_after is not None:
        since_ms = _ms(run_after)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise WindowError(
            f"No session can start at or after {format_ms(since_ms)} and before {format_ms(until_ms)}: "
            "give since and until that leave room",
            argument="since",
        )
    return since_ms, until_ms


class SessionList:
    """
    The sessions that the API lists, each once, oldest first; sorted and read once, for whoever selects from them.

    :param sessions: ids, in any order.
    """

    def __init__(self, sessions: Iterable[str]) -> None:
        self.ids = sorted(dict.fromkeys(sessions), key=_by_start)

    @cached_property
    def _starts(self) -> list[int]:
        return [protocol.parse_session_start(session) for session in self.ids]

    def select(
        self,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        known_sessions: Collection[str] | None = None,
        min_age_ms: int = 0,
        now_ms: int = 0,
    ) -> list[str]:
        """
        Return the ids that count as new, oldest first.

        New are those not in ``known_sessions`` where that is given, else those with ``since <= start < until``. With
        ``min_age_ms`` a session counts once its start lies that far before ``now_ms``.

        :raises UnexpectedResponseError: an id whose start matters does not read as epoch milliseconds.
        """
        if known_sessions is not None:
            known = frozenset(known_sessions)
            new = [session for session in self.ids if session not in known]
            if not min_age_ms:
                return new
            return [session for session in new if protocol.parse_session_start(session) <= now_ms - min_age_ms]
        low, high = 0, len(self.ids)
        if since_ms is not None:
            low = bisect_left(self._starts, since_ms)
        if until_ms is not None:
            high = bisect_left(self._starts, until_ms)
        if min_age_ms:
            high = min(high, bisect_right(self._starts, now_ms - min_age_ms))
        return self.ids[low:high]


def select_sessions(sessions: Iterable[str], **bounds: Any) -> list[str]:
    """Return what :meth:`SessionList.select` does."""
    return SessionList(sessions).select(**bounds)


def _by_start(session: str) -> tuple[bool, int, str]:
    readable = session.isascii() and session.isdigit() and len(session) <= 20  # Python reads 4300 digits, no more
    return (not readable, int(session) if readable else 0, session)
