"""Adjacent windows together return every row exactly once, wherever a span is cut and whenever clocks change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.core.windows import STEPS, HalfOpenPages, count_steps, parse_step
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.run_times import resolve

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_MS = 3_600_000
# The same examples in each run, so that a failure can be repeated.
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
ZONES = [
    ZoneInfo(name)
    for name in (
        *("UTC", "Europe/Berlin", "Australia/Sydney", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"),
        *("Australia/Lord_Howe", "Pacific/Apia", "America/St_Johns", "Africa/Casablanca", "Pacific/Chatham"),
    )
]
every_clock = pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "Australia/Sydney", "America/New_York", "Australia/Lord_Howe"]
)


def to_us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Server:
    """
    A server that selects rows by their timestamps, as a pure function; a row is (its number, its timestamp).

    :param stamps: epoch microseconds.
    :param digits: digits of a fraction of a second that the server writes: 3, 6 or 9.
    :param inclusive_to: whether a row stamped exactly ``to`` is in the window.
    :param whole_ms: whether it compares whole milliseconds.
    """

    stamps: Sequence[int]
    digits: int = 3
    inclusive_to: bool = True
    whole_ms: bool = False
    page_size: int = 3

    def text(self, stamp: int) -> str:
        moment = EPOCH + timedelta(microseconds=stamp)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{f'{moment.microsecond:06}000'[: self.digits]}Z"

    def pages(self, from_ms: int, to_ms: int) -> Iterator[Page]:
        last = to_ms * 1000 - (not self.inclusive_to)
        unit = 1000 if self.digits == 3 or self.whole_ms else 1
        rows = [
            (number, self.text(stamp))
            for number, stamp in enumerate(self.stamps)
            if from_ms * 1000 <= stamp // unit * unit <= last
        ]
        total = max(1, -(-len(rows) // self.page_size))
        for number in range(total):
            part = rows[number * self.page_size : (number + 1) * self.page_size]
            yield Page(number + 1, total, ("row", "timestamp"), part)


moments = st.datetimes(datetime(1974, 1, 1), datetime(2060, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
steps = st.one_of(
    st.timedeltas(timedelta(milliseconds=1), timedelta(milliseconds=3)),
    st.timedeltas(timedelta(milliseconds=1), timedelta(hours=30)),
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=400)),
    st.just(timedelta(days=1)),
)


@st.composite
def cuts(draw: st.DrawFn) -> list[datetime]:
    """Return moments in order, at least a millisecond apart, at any time or at whole milliseconds or days."""
    moment = draw(moments)
    grain = draw(st.sampled_from([timedelta(microseconds=1), timedelta(milliseconds=1), timedelta(days=1)]))
    found = [EPOCH + (moment - EPOCH) // grain * grain]
    for step in draw(st.lists(steps, min_size=1, max_size=5)):
        found.append(found[-1] + step)
    return found


@st.composite
def stamps_around(draw: st.DrawFn, bounds: Sequence[datetime]) -> list[int]:
    """Return epoch microseconds, most of them near a bound."""
    near = st.builds(
        lambda bound, distance: to_us(bound) + distance,
        st.sampled_from(bounds),
        st.sampled_from([0, 1, -1, 499, 500, 999, -999, 1000, -1000, 1001, -1001, 5000, -5000]),
    )
    whole = near.map(lambda stamp: stamp // 1000 * 1000)
    between = st.integers(to_us(bounds[0]), to_us(bounds[-1]))
    return draw(st.lists(near | whole | between, min_size=1, max_size=12))


def spell(moment: datetime, how: int) -> Any:
    """Return a moment in one of the spellings of a bound, floored or not."""
    zone = ZONES[how % len(ZONES)]
    in_pendulum = pendulum.instance(moment).in_timezone(str(zone))
    return [moment.astimezone(zone), in_pendulum, moment.isoformat(), to_us(moment) // 1000][how % 4]


@PROPERTY
@given(st.data(), st.sampled_from([3, 6, 9]), st.booleans(), st.booleans())
def test_windows_return_each_row_once_wherever_the_span_is_cut(data, digits, inclusive_to, whole_ms):
    bounds = data.draw(cuts())
    hows = st.integers(0, 4 * len(ZONES) - 1)
    windows = [
        resolve(start=spell(first, data.draw(hows)), end=spell(last, data.draw(hows)))
        for first, last in pairwise(bounds)
    ]
    assert all(first.end_ms == last.start_ms for first, last in pairwise(windows))
    server = Server(data.draw(stamps_around(bounds)), digits, inclusive_to, whole_ms)
    found: Counter[int] = Counter()
    for window in windows:
        half_open = HalfOpenPages("W1", window, server.pages(window.start_ms, window.end_ms))
        found.update(row[0] for page in half_open for row in page.rows)
        assert half_open.counts.rows_before_start == half_open.counts.rows_after_end == 0
    low, high = windows[0].start_ms, windows[-1].end_ms
    assert found == Counter(number for number, stamp in enumerate(server.stamps) if low <= stamp // 1000 < high)


def midnight(day: date, zone: tzinfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone)


def days_around_changes(zone: tzinfo, years: range) -> Iterator[list[date]]:
    """Yield for each clock change the days from three days before it to four days after."""
    day = date(years[0], 1, 5)
    while day.year in years:
        if midnight(day, zone).utcoffset() != midnight(day + timedelta(days=1), zone).utcoffset():
            yield [day + timedelta(days=distance) for distance in range(-3, 5)]
        day += timedelta(days=1)


@every_clock
def test_windows_from_midnight_to_midnight_have_no_gap_or_overlap_when_clocks_change(zone):
    local, dag_timezone = ZoneInfo(zone), pendulum.timezone(zone)
    lengths: Counter[float] = Counter()
    for days in days_around_changes(local, range(2018, 2027)):
        runs = [midnight(day, local).astimezone(UTC) for day in days]
        one_day: Any = {"window": timedelta(days=1), "timezone": dag_timezone}
        backward = [resolve(run_after=run, **one_day) for run in runs]
        forward = [resolve(partition_date=pendulum.instance(run), **one_day) for run in runs]
        planned = plan_windows(midnight(days[0], local), midnight(days[-1], local), every="day")
        for windows in (backward[1:], forward[:-1], planned):
            assert [window.start for window in windows] == runs[:-1]
            assert [window.end for window in windows] == runs[1:]
        lengths.update((window.end_ms - window.start_ms) / HOUR_MS for window in planned)
    change = 0.5 if zone.endswith("Lord_Howe") else 1
    assert lengths[24 - change] == lengths[24 + change] == 9, "the clocks did change"


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Sydney"])
def test_daily_runs_at_a_time_that_comes_twice_have_no_gap_or_overlap(zone):
    # On such a day, Airflow's cron timetables run at the later 2:30.
    month = 10 if zone == "Europe/Berlin" else 4
    runs = [datetime(2020, month, day, 2, 30, fold=1, tzinfo=ZoneInfo(zone)) for day in range(1, 30)]
    for dag_timezone in (ZoneInfo(zone), pendulum.timezone(zone)):
        for spelled in (runs, [run.astimezone(UTC) for run in runs], list(map(pendulum.instance, runs))):
            one_day: Any = {"window": timedelta(days=1), "timezone": dag_timezone}
            for name in ("run_after", "partition_date"):
                windows = [resolve(**{name: run}, **one_day) for run in spelled]
                assert all(first.end_ms == last.start_ms for first, last in pairwise(windows))
                assert {window.end_ms - window.start_ms for window in windows} == {24 * HOUR_MS, 25 * HOUR_MS}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Sydney"])
@pytest.mark.parametrize(
    ("every", "unit", "length"), [("week", "weeks", 1), ("month", "months", 1), ("quarter", "months", 3)]
)
@pytest.mark.parametrize("day", [1, 28, 31])
def test_windows_of_months_and_weeks_follow_the_calendar_and_do_not_drift(zone, every, unit, length, day):
    local = pendulum.timezone(zone)
    start = pendulum.datetime(2019, 1, day, tz=local)
    bounds = [start.add(**{unit: length * number}) for number in range(31)]
    assert [window.start for window in plan_windows(start, bounds[-1], every=every)] == bounds[:-1]
    if day == 1:
        step: Any = {"window": STEPS[every], "timezone": local}
        windows = [resolve(run_after=bound, **step) for bound in bounds]
        assert [window.start for window in windows[1:]] == bounds[:-1]
        assert [window.end for window in windows] == bounds


@PROPERTY
@given(st.sampled_from(ZONES), moments, st.integers(1, 720), st.integers(1, 100))
def test_windows_shorter_than_a_day_have_one_length_when_clocks_change(zone, moment, minutes, number):
    length = timedelta(minutes=minutes)
    planned = plan_windows(moment, moment + number * length, every=length, timezone=zone)
    runs = [moment + index * length for index in range(1, number + 1)]
    resolved = [resolve(window=length, run_after=run, timezone=zone) for run in runs]
    assert [(one.start_ms, one.end_ms) for one in planned] == [(one.start_ms, one.end_ms) for one in resolved]
    assert {window.end_ms - window.start_ms for window in planned} == {minutes * 60_000}


@PROPERTY
@given(
    st.sampled_from(ZONES),
    moments,
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=800)),
    st.sampled_from(["partition_date", "run_after", "logical_date", "data_interval_end"]),
)
def test_a_window_is_never_empty_and_does_not_depend_on_how_moment_and_zone_are_spelled(zone, moment, length, name):
    spellings = (moment, moment.astimezone(zone), pendulum.instance(moment), pendulum.instance(moment, tz=zone))
    [window] = {
        resolve(window=length, timezone=dag_timezone, **{name: spelled})
        for dag_timezone in (zone, pendulum.timezone(str(zone)))
        for spelled in spellings
    }
    assert window.start_ms < window.end_ms
    assert to_us(moment) // 1000 == (window.start_ms if name == "partition_date" else window.end_ms)


every_step = st.one_of(
    st.sampled_from(sorted(STEPS)),
    st.sampled_from(["P1D", "PT6H", "P2W", "P1M", "P1M1DT1H", "PT0.001S"]),
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=400)),
    st.builds(lambda days: timedelta(days=days), st.integers(1, 40)),
    st.builds(
        lambda months, days, hours: pendulum.duration(months=months, days=days, hours=hours, milliseconds=1),
        *(st.integers(0, 14), st.integers(0, 40), st.integers(0, 30)),
    ),
)


@st.composite
def plans(draw: st.DrawFn) -> tuple[datetime, datetime, Any, ZoneInfo]:
    """Return start, end, step and zone of at most some hundred windows."""
    start, zone, every = draw(moments), draw(st.sampled_from(ZONES)), draw(every_step)
    if draw(st.booleans()):
        start = start.astimezone(zone).replace(hour=draw(st.integers(0, 3)), minute=30)
    step = parse_step(every)
    assert step is not None
    length = step.as_timedelta() if isinstance(step, pendulum.Duration) else step
    return start, start.astimezone(UTC) + length * draw(st.floats(0.001, 150)), every, zone


@PROPERTY
@given(plans())
def test_steps_cover_the_span_without_gap_or_overlap_however_it_is_spelled(plan):
    start, end, every, zone = plan
    windows = plan_windows(start, end, every=every, timezone=zone)
    start_ms, end_ms = to_us(start) // 1000, to_us(end) // 1000
    bounds = [start_ms, *(window.end_ms for window in windows)]
    assert [window.start_ms for window in windows] == bounds[:-1]
    assert bounds[-1] == end_ms
    assert all(first < last for first, last in pairwise(bounds))
    step = parse_step(every)
    assert step is not None
    # In Samoa, a step that is a skipped day has no window.
    assert 0 <= count_steps(Window(start_ms, end_ms), step, zone) - len(windows) <= (str(zone) == "Pacific/Apia")
    for spelled in (pendulum.instance(start), start.isoformat(), start.astimezone(ZONES[1])):
        for named in (zone, str(zone), pendulum.timezone(str(zone))):
            assert plan_windows(spelled, end, every=every, timezone=named) == windows
