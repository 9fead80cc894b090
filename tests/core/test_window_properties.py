"""Adjacent windows together give every row exactly once, wherever they are cut and whatever the clocks do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.protocol import Page, Response, parse_page
from airflow_provider_unleash.core.windows import (
    STEPS,
    HalfOpenPages,
    RowCounts,
    count_steps,
    parse_step,
    resolve_window,
)
from airflow_provider_unleash.simulator import Account, Options
from airflow_provider_unleash.window import Window, plan_windows

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The same examples in each run: a red run can be repeated.
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
ZONES = [
    ZoneInfo(name)
    for name in (
        *("UTC", "Europe/Berlin", "Australia/Sydney", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"),
        *("Australia/Lord_Howe", "Pacific/Apia", "America/St_Johns", "Africa/Casablanca", "Pacific/Chatham"),
    )
]


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


# ---- a server that selects by stamp --------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """
    A server that selects rows by their stamps, as a pure function; each row is [its number, its stamp].

    :param stamps: epoch microseconds.
    :param digits: of the fraction of a second that the server writes: 3, 6 or 9.
    :param inclusive_to: whether a row stamped exactly ``to`` is in the window.
    :param whole_ms: whether it compares whole milliseconds, or all that a stamp has.
    """

    stamps: Sequence[int]
    digits: int = 3
    inclusive_to: bool = True
    whole_ms: bool = False
    page_size: int = 3

    def text(self, stamp: int) -> str:
        moment = EPOCH + timedelta(microseconds=stamp)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{f'{moment.microsecond:06}000'[: self.digits]}Z"

    def stamp(self, stamp: int) -> int:
        """Return a stamp as the server keeps it: cut to the digits that it writes."""
        return stamp // 1000 * 1000 if self.digits == 3 or self.whole_ms else stamp

    def pages(self, from_ms: int, to_ms: int) -> Iterator[Page]:
        last = to_ms * 1000 - (not self.inclusive_to)
        rows = [
            [number, self.text(stamp)]
            for number, stamp in enumerate(self.stamps)
            if from_ms * 1000 <= self.stamp(stamp) <= last
        ]
        total = max(1, -(-len(rows) // self.page_size))
        for number in range(total):
            part = rows[number * self.page_size : (number + 1) * self.page_size]
            yield Page(number + 1, total, ("row", "timestamp"), part)


def read(server: Server, windows: Sequence[Window]) -> Counter[int]:
    """Return how often each row is got by reading all windows as the operators do."""
    found: Counter[int] = Counter()
    for window in windows:
        half_open = HalfOpenPages(window, server.pages(window.start_ms, window.end_ms))
        found.update(row[0] for page in half_open for row in page.rows)
        assert half_open.counts.rows_before_start == half_open.counts.rows_after_end == 0
    return found


moments = st.datetimes(datetime(1974, 1, 1), datetime(2060, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
steps = st.one_of(
    st.timedeltas(timedelta(milliseconds=1), timedelta(milliseconds=3)),
    st.timedeltas(timedelta(milliseconds=1), timedelta(hours=30)),
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=400)),
    st.just(timedelta(days=1)),
)


@st.composite
def cuts(draw: st.DrawFn) -> list[datetime]:
    """Return moments in order, at least a millisecond apart, as they fall or at a whole hour or day."""
    moment = draw(moments)
    grain = draw(st.sampled_from([timedelta(microseconds=1), timedelta(milliseconds=1), timedelta(days=1)]))
    found = [EPOCH + (moment - EPOCH) // grain * grain]
    for step in draw(st.lists(steps, min_size=1, max_size=5)):
        found.append(found[-1] + step)
    return found


@st.composite
def stamps_around(draw: st.DrawFn, bounds: Sequence[datetime]) -> list[int]:
    """Return epoch microseconds, most of them next to a bound, where errors live."""
    near = st.builds(
        lambda bound, distance: micros(bound) + distance,
        st.sampled_from(bounds),
        st.sampled_from([0, 1, -1, 499, 500, 999, -999, 1000, -1000, 1001, -1001, 5000, -5000]),
    )
    whole = near.map(lambda stamp: stamp // 1000 * 1000)
    within = st.integers(micros(bounds[0]), micros(bounds[-1]))
    return draw(st.lists(near | whole | within, min_size=1, max_size=12))


def spell(moment: datetime, how: int) -> Any:
    """Return a moment in one of the spellings that a bound may have, floored or not."""
    zone = ZONES[how % len(ZONES)]
    whole_ms = micros(moment) // 1000
    return [moment.astimezone(zone), pendulum.instance(moment).in_timezone(str(zone)), moment.isoformat(), whole_ms][
        how % 4
    ]


@PROPERTY
@given(st.data(), st.sampled_from([3, 6, 9]), st.booleans(), st.booleans())
def test_any_cut_of_a_span_gives_every_row_exactly_once(
    data: st.DataObject, digits: int, inclusive_to: bool, whole_ms: bool
) -> None:
    bounds = data.draw(cuts())
    hows = st.integers(0, 4 * len(ZONES) - 1)
    windows = [
        resolve_window(start=spell(first, data.draw(hows)), end=spell(last, data.draw(hows)))
        for first, last in pairwise(bounds)
    ]
    assert all(first.end_ms == last.start_ms for first, last in pairwise(windows))
    server = Server(data.draw(stamps_around(bounds)), digits, inclusive_to, whole_ms)
    low, high = windows[0].start_ms, windows[-1].end_ms
    inside = Counter(number for number, stamp in enumerate(server.stamps) if low <= stamp // 1000 < high)
    assert read(server, windows) == inside


@pytest.mark.parametrize("fraction", ["999999999", "9999995", "9999999994"])
def test_a_row_stamped_less_than_a_microsecond_before_a_cut_is_got_once(fraction: str) -> None:
    # Its server compares nanoseconds: the row is in the window before the cut, and only there.
    cut = 1_597_622_400_000
    row = [0, f"2020-08-16T23:59:59.{fraction}Z"]
    windows = {Window(cut - 1000, cut): [row], Window(cut, cut + 1000): []}
    kept = [HalfOpenPages(window, [Page(1, 1, ("row", "timestamp"), rows)]) for window, rows in windows.items()]
    assert [row[0] for half_open in kept for page in half_open for row in page.rows] == [0]


@PROPERTY
@given(st.data(), st.booleans())
def test_the_shipped_simulator_gives_every_row_exactly_once(data: st.DataObject, inclusive_to: bool) -> None:
    bounds = data.draw(cuts())
    stamps = [stamp // 1000 for stamp in data.draw(stamps_around(bounds))]
    records = [{"row": number, "timestamp": format_ms(stamp)} for number, stamp in enumerate(stamps)]
    account = Account(Options(page_size=4, inclusive_to=inclusive_to), {"W1": records}, lambda: 4e9)
    windows = [resolve_window(start=first, end=last) for first, last in pairwise(bounds)]
    endpoint = data.draw(st.sampled_from(["compact", "tableau"]))

    def pages(window: Window) -> Iterator[Page]:
        number, total = 0, 1
        while number < total:
            number += 1
            body = account.body(
                "W1", window.start_ms, window.end_ms, number, tableau=endpoint == "tableau", compressed=False
            )
            page = parse_page(Response("https://x/1", 200, {}, body), number, endpoint)  # type: ignore[arg-type]
            total = page.total_pages
            yield page

    found = Counter(
        record["row"]
        for window in windows
        for page in HalfOpenPages(window, pages(window))
        for record in page.records()
    )
    low, high = windows[0].start_ms, windows[-1].end_ms
    assert found == Counter(number for number, stamp in enumerate(stamps) if low <= stamp < high)


# ---- rows of any kind ----------------------------------------------------------------------------

ODD_STAMPS = [None, "", "x", "2020-08-17", "2016-12-31T23:59:60Z", 5, 1.5, True, [], ["2020-08-17T00:00:00Z"], {"a": 1}]


@PROPERTY
@given(st.data(), st.booleans())
def test_of_any_rows_only_those_stamped_end_are_dropped_and_all_are_counted(data: st.DataObject, empty: bool) -> None:
    bounds = data.draw(cuts())
    start_ms, end_ms = micros(bounds[0]) // 1000, micros(bounds[-1]) // 1000
    window = Window(start_ms, start_ms if empty else end_ms)
    server = Server([], digits=6)
    stamps = st.sampled_from(ODD_STAMPS) | stamps_around(bounds).map(lambda found: found[0])
    pages, expected, kept = [], RowCounts(), []
    for number in range(1, data.draw(st.integers(1, 3)) + 1):
        rows: list[list[Any]] = []
        for index, stamp in enumerate(data.draw(st.lists(stamps, max_size=8))):
            known = type(stamp) is int and stamp not in ODD_STAMPS
            moment_ms = stamp // 1000 if known else None
            rows.append([(number, index), server.text(stamp) if known else stamp])
            at_end = moment_ms == window.end_ms and not empty
            expected.rows_at_end += at_end
            expected.rows += not at_end
            expected.rows_before_start += moment_ms is not None and moment_ms < window.start_ms
            expected.rows_after_end += moment_ms is not None and moment_ms > window.end_ms
            if not at_end:
                kept.append(rows[-1])
        expected.pages += 1
        pages.append(Page(number, 3, ("row", "timestamp"), rows))
    before = json.dumps([page.rows for page in pages])

    half_open = HalfOpenPages(window, pages)
    found = list(half_open)
    assert [row for page in found for row in page.rows] == kept
    assert half_open.counts == expected
    for page in found:
        assert [page.row_index(index) for index in range(len(page.rows))] == [row[0][1] for row in page.rows]
    assert json.dumps([page.rows for page in pages]) == before


# ---- days and clocks -----------------------------------------------------------------------------

HOUR_MS = 3_600_000


def as_it_is(moment: datetime) -> datetime:
    return moment


def in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def midnight(day: date, zone: tzinfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone)


def days_around_changes(zone: tzinfo, years: range) -> Iterator[list[date]]:
    """Yield runs of days around each change of clocks, from three days before it to three days after."""
    day = date(years[0], 1, 5)
    while day.year in years:
        if midnight(day, zone).utcoffset() != midnight(day + timedelta(days=1), zone).utcoffset():
            yield [day + timedelta(days=distance) for distance in range(-3, 5)]
        day += timedelta(days=1)


@pytest.mark.parametrize("how", ["datetime", "pendulum"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Sydney", "America/New_York", "Australia/Lord_Howe"])
def test_a_day_each_midnight_leaves_no_hour_out_and_doubles_none_when_clocks_change(zone: str, how: str) -> None:
    local = ZoneInfo(zone)
    dag_timezone = pendulum.timezone(zone)
    lengths: Counter[timedelta] = Counter()
    for days in days_around_changes(local, range(2018, 2027)):
        runs = [midnight(day, local).astimezone(UTC) for day in days]
        given_as = runs if how == "datetime" else list(map(pendulum.instance, runs))
        backwards = [
            resolve_window(window=timedelta(days=1), run_after=run, dag_timezone=dag_timezone) for run in given_as
        ]
        forwards = [
            resolve_window(window=timedelta(days=1), partition_date=run, dag_timezone=dag_timezone) for run in given_as
        ]
        assert [window.end for window in backwards] == runs
        assert [window.start for window in backwards[1:]] == runs[:-1]
        assert [window.start for window in forwards] == runs
        assert [window.end for window in forwards[:-1]] == runs[1:]
        assert {window.rule for window in backwards + forwards} == {"window", "partition_date"}
        lengths.update(window.end - window.start for window in backwards)
    # That clocks did change is part of the proof.
    shift = timedelta(minutes=30) if zone.endswith("Lord_Howe") else timedelta(hours=1)
    assert lengths[timedelta(days=1) - shift] == lengths[timedelta(days=1) + shift] == 9


@pytest.mark.parametrize("inclusive_to", [True, False])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Sydney"])
def test_daily_runs_get_each_half_hour_once_when_clocks_change(zone: str, inclusive_to: bool) -> None:
    local = ZoneInfo(zone)
    for days in days_around_changes(local, range(2019, 2022)):
        runs = [midnight(day, local) for day in days]
        stamps = range(micros(runs[0]), micros(runs[-1]), timedelta(minutes=30) // timedelta(microseconds=1))
        windows = [
            resolve_window(window=timedelta(days=1), logical_date=run, dag_timezone=pendulum.timezone(zone))
            for run in runs[1:]
        ]
        server = Server(stamps, inclusive_to=inclusive_to, page_size=20)
        assert read(server, windows) == Counter(range(len(stamps)))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Sydney"])
@pytest.mark.parametrize(
    ("length", "unit"),
    [
        (pendulum.duration(months=1), "months"),
        (pendulum.duration(weeks=1), "weeks"),
        (pendulum.duration(years=1), "years"),
    ],
)
def test_months_weeks_and_years_follow_each_other_without_a_gap(zone: str, length: timedelta, unit: str) -> None:
    local = pendulum.timezone(zone)
    runs = [pendulum.datetime(2019, 1, 1, tz=local).add(**{unit: number}) for number in range(30)]
    windows = [resolve_window(window=length, run_after=run, dag_timezone=local) for run in runs]
    assert [window.start for window in windows[1:]] == runs[:-1]
    assert [window.end for window in windows] == runs


@PROPERTY
@given(st.sampled_from(ZONES), moments, st.sampled_from([1, 5, 15, 60, 90, 360, 720]), st.integers(1, 30))
def test_hours_follow_each_other_without_a_gap_in_any_zone(
    zone: ZoneInfo, moment: datetime, minutes: int, count: int
) -> None:
    length = timedelta(minutes=minutes)
    runs = [moment + number * length for number in range(count)]
    windows = [resolve_window(window=length, run_after=run, dag_timezone=zone) for run in runs]
    assert all(first.end_ms == last.start_ms for first, last in pairwise(windows))
    assert {window.end_ms - window.start_ms for window in windows} == {minutes * 60_000}


@PROPERTY
@given(
    st.sampled_from(ZONES),
    moments,
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=800)),
    st.sampled_from(["partition_date", "run_after", "logical_date", "data_interval_end"]),
)
def test_a_window_is_never_empty_and_begins_or_ends_at_the_moment_of_its_run(
    zone: ZoneInfo, moment: datetime, length: timedelta, name: str
) -> None:
    window = resolve_window(window=length, dag_timezone=zone, **{name: moment})  # type: ignore[arg-type]
    assert window.start_ms < window.end_ms
    at = window.start_ms if name == "partition_date" else window.end_ms
    assert at == micros(moment) // 1000


@pytest.mark.parametrize("spell_run", [as_it_is, in_utc, pendulum.instance], ids=["zoneinfo", "utc", "pendulum"])
@pytest.mark.parametrize("dag_zone", [ZoneInfo, pendulum.timezone], ids=["zoneinfo", "pendulum"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Sydney"])
def test_a_daily_run_in_the_hour_that_comes_twice_leaves_no_hour_out_and_doubles_none(
    zone: str, dag_zone: Callable[[str], tzinfo], spell_run: Callable[[datetime], datetime]
) -> None:
    # Airflow's cron timetables run such a day at the later of its two half past two.
    month = 10 if zone == "Europe/Berlin" else 4
    runs = [datetime(2020, month, day, 2, 30, fold=1, tzinfo=ZoneInfo(zone)) for day in range(1, 30)]
    one_day = {"window": timedelta(days=1), "dag_timezone": dag_zone(zone)}
    backwards = [resolve_window(run_after=spell_run(run), **one_day) for run in runs]  # type: ignore[arg-type]
    forwards = [resolve_window(partition_date=spell_run(run), **one_day) for run in runs]  # type: ignore[arg-type]
    for windows in (backwards, forwards):
        assert all(first.end_ms == last.start_ms for first, last in pairwise(windows))
        assert {window.end_ms - window.start_ms for window in windows} == {24 * HOUR_MS, 25 * HOUR_MS}


@PROPERTY
@given(st.sampled_from(ZONES), moments, st.timedeltas(timedelta(milliseconds=1), timedelta(days=40)), st.booleans())
def test_a_window_does_not_depend_on_how_its_moment_and_zone_are_spelled(
    zone: ZoneInfo, moment: datetime, length: timedelta, forwards: bool
) -> None:
    name = "partition_date" if forwards else "run_after"
    found = {
        resolve_window(window=length, dag_timezone=dag_timezone, **{name: spelled})  # type: ignore[arg-type]
        for dag_timezone in (zone, pendulum.timezone(str(zone)))
        for spelled in (moment, moment.astimezone(zone), pendulum.instance(moment), pendulum.instance(moment, tz=zone))
    }
    assert len(found) == 1


# ---- a span in steps -----------------------------------------------------------------------------

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
    """Return start, end, step and zone of a few hundred windows at the most."""
    start, zone, every = draw(moments), draw(st.sampled_from(ZONES)), draw(every_step)
    if draw(st.booleans()):
        start = start.astimezone(zone).replace(hour=draw(st.integers(0, 3)), minute=30)
    step = parse_step(every)
    assert step is not None
    length = step.as_timedelta() if isinstance(step, pendulum.Duration) else step
    return start, start.astimezone(UTC) + length * draw(st.floats(0.001, 150)), every, zone


@PROPERTY
@given(plans())
def test_windows_in_steps_cover_the_span_without_a_gap_or_an_overlap(plan: tuple[Any, ...]) -> None:
    start, end, every, zone = plan
    windows = plan_windows(start, end, every=every, timezone=zone)
    assert [window.start_ms for window in windows] == [
        *([micros(start) // 1000] if windows else []),
        *(window.end_ms for window in windows[:-1]),
    ]
    assert all(window.start_ms < window.end_ms for window in windows)
    assert windows[-1:] == [] or windows[-1].end_ms == micros(end) // 1000
    assert bool(windows) is (micros(start) // 1000 < micros(end) // 1000)
    span = Window(micros(start) // 1000, micros(end) // 1000)
    assert 0 <= count_steps(span, parse_step(every), zone) - len(windows) <= str(zone).count("Apia")  # type: ignore[arg-type]


@PROPERTY
@given(plans(), st.data())
def test_windows_in_steps_give_every_row_exactly_once(plan: tuple[Any, ...], data: st.DataObject) -> None:
    start, end, every, zone = plan
    windows = plan_windows(start, end, every=every, timezone=zone)
    server = Server(data.draw(stamps_around([start, *(window.end for window in windows[:20]), end])))
    inside = (
        number
        for number, stamp in enumerate(server.stamps)
        if micros(start) // 1000 <= stamp // 1000 < micros(end) // 1000
    )
    assert read(server, windows) == Counter(inside)


@PROPERTY
@given(plans())
def test_steps_do_not_depend_on_how_the_start_and_the_zone_are_spelled(plan: tuple[Any, ...]) -> None:
    start, end, every, zone = plan
    spelled = [start, pendulum.instance(start), start.isoformat(), start.astimezone(ZONES[1])]
    named = [zone, str(zone), pendulum.timezone(str(zone))]
    found = [plan_windows(start, end, every=every, timezone=zone) for start in spelled for zone in named]
    assert all(windows == found[0] for windows in found)


@PROPERTY
@given(st.sampled_from(ZONES), moments, st.integers(1, 59), st.integers(1, 400))
def test_steps_shorter_than_a_day_are_of_one_length_whatever_the_clocks_do(
    zone: ZoneInfo, moment: datetime, minutes: int, number: int
) -> None:
    step = timedelta(minutes=minutes)
    windows = plan_windows(moment, moment + number * step, every=step, timezone=zone)
    assert {window.end_ms - window.start_ms for window in windows} == {minutes * 60_000}
    assert len(windows) == number


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Sydney", "America/New_York", "Australia/Lord_Howe"])
def test_a_day_each_from_midnight_is_a_day_of_the_calendar_when_clocks_change(zone: str) -> None:
    local = ZoneInfo(zone)
    lengths: Counter[float] = Counter()
    for days in days_around_changes(local, range(2018, 2027)):
        midnights = [midnight(day, local) for day in days]
        windows = plan_windows(midnights[0], midnights[-1], every="day")
        assert [window.start for window in windows] == [moment.astimezone(UTC) for moment in midnights[:-1]]
        lengths.update((window.end_ms - window.start_ms) / HOUR_MS for window in windows)
    shift = 0.5 if zone.endswith("Lord_Howe") else 1
    assert lengths[24 - shift] == lengths[24 + shift] == 9


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Sydney"])
@pytest.mark.parametrize("every", ["week", "month", "quarter", "year"])
@pytest.mark.parametrize("day", [1, 28, 31])
def test_longer_steps_are_those_of_the_calendar_and_do_not_drift(zone: str, every: str, day: int) -> None:
    start = pendulum.datetime(2019, 1, day, tz=pendulum.timezone(zone))
    unit = {"week": {"weeks": 1}, "month": {"months": 1}, "quarter": {"months": 3}, "year": {"years": 1}}[every]
    [(name, length)] = unit.items()
    bounds = [start.add(**{name: length * number}) for number in range(31)]
    windows = plan_windows(start, bounds[-1], every=every)
    assert [window.start for window in windows] == bounds[:-1]
