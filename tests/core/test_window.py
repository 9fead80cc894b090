"""Which window a run means, rule by rule, and which rows and sessions lie in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pendulum
import pytest

from airflow_provider_unleash.core.moments import format_ms, parse_duration, parse_moment, parse_timezone, shift
from airflow_provider_unleash.core.protocol import Page, Response, parse_page
from airflow_provider_unleash.core.sessions import select_sessions, session_bounds
from airflow_provider_unleash.core.windows import HalfOpenPages, RowCounts, count_steps, parse_step, resolve_window
from airflow_provider_unleash.exceptions import (
    InvalidArgumentError,
    PermanentError,
    UnexpectedResponseError,
    WindowError,
)
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.paths import SAMPLES

UTC = timezone.utc
BERLIN, SYDNEY = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Sydney")
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z


def utc(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[misc,arg-type]


DAY = utc(2020, 8, 17)
NEXT_DAY = utc(2020, 8, 18)


def resolve(**moments: Any) -> Window:
    """Resolve with a plain value for everything that is not given."""
    return resolve_window(**moments)


def hours(window: Window) -> float:
    return (window.end_ms - window.start_ms) / HOUR_MS


# ---- which rule --------------------------------------------------------------------------------

# Everything that a run can have, each pointing to another month.
ALL: dict[str, Any] = {
    "start": "2020-01-10",
    "end": "2020-01-11",
    "data_interval_start": utc(2020, 2, 10),
    "data_interval_end": utc(2020, 2, 11),
    "window": timedelta(days=1),
    "partition_date": utc(2020, 3, 10),
    "logical_date": utc(2020, 4, 11),
    "run_after": utc(2020, 5, 11),
}
EMPTY_INTERVAL = {"data_interval_start": utc(2020, 2, 11), "data_interval_end": utc(2020, 2, 11)}


def all_but(*names: str, **others: Any) -> dict[str, Any]:
    return {**{name: value for name, value in ALL.items() if name not in names}, **others}


@pytest.mark.parametrize(
    ("moments", "rule", "start"),
    [
        (ALL, "start_end", utc(2020, 1, 10)),
        (all_but("start", "end"), "data_interval", utc(2020, 2, 10)),
        (all_but("start", "end", "window"), "data_interval", utc(2020, 2, 10)),
        (all_but("start", "end", **EMPTY_INTERVAL), "partition_date", utc(2020, 3, 10)),
        (all_but("start", "end", "data_interval_start", "data_interval_end"), "partition_date", utc(2020, 3, 10)),
        (all_but("start", "end", "partition_date", **EMPTY_INTERVAL), "window", utc(2020, 2, 10)),
        (all_but("start", "end", "partition_date", "data_interval_start"), "window", utc(2020, 2, 10)),
        (
            all_but("start", "end", "partition_date", "data_interval_start", "data_interval_end"),
            "window",
            utc(2020, 4, 10),
        ),
        ({"window": timedelta(days=1), "run_after": utc(2020, 5, 11)}, "window", utc(2020, 5, 10)),
    ],
)
def test_the_first_rule_that_applies_wins(moments: dict[str, Any], rule: str, start: datetime) -> None:
    assert resolve(**moments) == Window(int(start.timestamp() * 1000), int(start.timestamp() * 1000) + DAY_MS, rule)


@pytest.mark.parametrize("absent", [None, "", "None", "  ", " None\n"])
def test_what_a_template_renders_for_nothing_is_not_given(absent: Any) -> None:
    window = resolve(**all_but("start", "end", start=absent, end=absent))
    assert window.rule == "data_interval"


@pytest.mark.parametrize("absent", [None, "", "None"])
def test_a_window_that_a_template_renders_as_nothing_is_not_given(absent: Any) -> None:
    with pytest.raises(WindowError, match="no window of time"):
        resolve(window=absent, run_after=DAY, logical_date=DAY, partition_date=DAY)


@pytest.mark.parametrize(("given", "missing"), [("start", "end"), ("end", "start")])
@pytest.mark.parametrize("absent", [None, "", "None"])
def test_one_of_start_and_end_alone_is_an_error(given: str, missing: str, absent: Any) -> None:
    with pytest.raises(WindowError, match=f"{missing} is missing") as caught:
        resolve(**{**ALL, missing: absent})
    assert caught.value.argument == missing


@pytest.mark.parametrize(
    ("moments", "problem"),
    [
        (
            {"data_interval_start": DAY, "data_interval_end": DAY, "logical_date": DAY, "run_after": DAY},
            "an empty data",
        ),
        ({"data_interval_start": NEXT_DAY, "data_interval_end": DAY}, "an empty data"),
        ({"data_interval_start": DAY, "data_interval_end": DAY + timedelta(microseconds=999)}, "an empty data"),
        ({"logical_date": DAY, "run_after": DAY}, "no data interval"),
        ({"partition_date": DAY, "run_after": DAY}, "no data interval"),
        ({}, "no data interval"),
        ({"window": timedelta(days=1)}, "no data interval"),
    ],
)
def test_a_run_that_means_no_window_is_an_error_and_never_an_empty_or_unbounded_one(
    moments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(WindowError, match=f"has {problem}") as caught:
        resolve(**moments)
    assert isinstance(caught.value, (PermanentError, ValueError))
    assert caught.value.argument == "window"


def test_the_error_names_the_kind_of_run_and_three_ways_out_that_work() -> None:
    with pytest.raises(WindowError) as caught:
        resolve(logical_date=DAY, run_kind="asset_triggered")
    message = str(caught.value)
    assert message.startswith("This asset-triggered run has no data interval")
    assert 'schedule="@daily"' in message
    ways = re.findall(r"^([123])\. .*", message, re.MULTILINE)
    assert ways == ["1", "2", "3"]
    assert 'schedule=CronDataIntervalTimetable("@daily", timezone="UTC")' in message
    assert "window=timedelta(days=1)" in message
    pasted = dict(re.findall(r'(start|end)="([^"]+)"', message))
    assert hours(resolve(**pasted)) == 24


def test_without_a_kind_the_error_still_reads_well() -> None:
    with pytest.raises(WindowError, match=r"^This run has no data interval, so it does not define a time window\. "):
        resolve()


@pytest.mark.parametrize("rule", ["start_end", "data_interval", "partition_date", "window"])
def test_a_window_tells_its_bounds_and_its_rule_in_words(rule: str) -> None:
    text = str(Window(MIDNIGHT, MIDNIGHT + DAY_MS + 1, rule))
    assert text.startswith("[2020-08-17T00:00:00.000Z, 2020-08-18T00:00:00.001Z) from ")
    assert len({str(Window(0, 1, other)) for other in ("start_end", "data_interval", "partition_date", "window")}) == 4


def test_a_window_gives_its_bounds_as_aware_moments() -> None:
    window = Window(MIDNIGHT + 1, MIDNIGHT + DAY_MS)
    assert (window.start, window.end) == (utc(2020, 8, 17, 0, 0, 0, 1000), NEXT_DAY)
    assert window.start.utcoffset() == timedelta(0)


# ---- rule 1: start and end ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        ("2020-08-17", DAY),
        ("20200817", DAY),
        ("2020-08-17T00:00", DAY),
        ("2020-08-17T00:00:00", DAY),
        ("2020-08-17T00:00:00Z", DAY),
        ("2020-08-17T00:00:00.000Z", DAY),
        ("2020-08-17T00:00:00+00:00", DAY),
        ("2020-08-17 00:00:00+00:00", DAY),
        ("2020-08-17T02:00:00+02:00", DAY),
        ("2020-08-17T02:00:00+0200", DAY),
        ("2020-08-17T02:00:00+02", DAY),
        ("2020-08-16T19:30:00-04:30", DAY),
        ("20200817T000000Z", DAY),
        ("20200817T000000", DAY),
        (" 2020-08-17T00:00:00Z\n", DAY),
        ("1597622400000", DAY),
        (1597622400000, DAY),
        (DAY, DAY),
        (datetime(2020, 8, 17), DAY),
        (datetime(2020, 8, 17, 2, tzinfo=BERLIN), DAY),
        (pendulum.datetime(2020, 8, 17, 2, tz="Europe/Berlin"), DAY),
        (pendulum.naive(2020, 8, 17), DAY),
        (date(2020, 8, 17), DAY),
        (pendulum.date(2020, 8, 17), DAY),
        (str(pendulum.datetime(2020, 8, 17)), DAY),
        (pendulum.datetime(2020, 8, 17, 2, tz="Europe/Berlin").isoformat(), DAY),
        ("2020-02-29", utc(2020, 2, 29)),
        ("2020-12-31T23:59:59.999Z", utc(2020, 12, 31, 23, 59, 59, 999000)),
        ("2020-12-31T23:59:59.999999Z", utc(2020, 12, 31, 23, 59, 59, 999000)),
        ("2020-12-31T23:59:59.999999999Z", utc(2020, 12, 31, 23, 59, 59, 999000)),
        ("20200817T000000.001Z", utc(2020, 8, 17, 0, 0, 0, 1000)),
        (datetime(2020, 8, 17, 0, 0, 0, 1999), utc(2020, 8, 17, 0, 0, 0, 1000)),
        (1597622400001, utc(2020, 8, 17, 0, 0, 0, 1000)),
    ],
)
def test_start_and_end_are_read_in_many_spellings_and_floored(given: Any, moment: datetime) -> None:
    window = resolve(start=given, end=moment + timedelta(hours=1))
    assert window.start == moment
    assert resolve(start=moment - timedelta(hours=1), end=given).end == moment


@pytest.mark.parametrize(
    "given",
    [
        *("yesterday", "now", "none", "null", "2020", "2020-08", "2020-230", "12:00", "2020-02-30", "2019-02-29"),
        *("2020-13-01", "2020-08-17T25:00:00", "2020-08-17T00:00:60Z", "2020-08-17foo", "2020-08-17T", "99999999"),
        *("2020-08-17T00:00:00+25:00", "2020-08-17/2020-08-18", "2020-08-17/P1D", "P1D", "{{ ds }}", "1.5e12", "-1"),
        *("159762240000", "15976224000000", 1597622400000.0, True, b"2020-08-17", [], timedelta(1), object()),
    ],
)
def test_a_start_that_cannot_be_read_is_named(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^start=") as caught:
        resolve(start=given, end=NEXT_DAY)
    assert caught.value.argument == "start"


@pytest.mark.parametrize("given", [1597622400, "1597622400", 0, 10**11 - 1])
def test_seconds_are_asked_about_and_not_guessed(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"seconds\?"):
        resolve(start=1597622300000, end=given)


@pytest.mark.parametrize(
    "given",
    [
        *("9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+14:00", 1597622400000000, 10**30),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    ],
)
def test_a_moment_beyond_the_calendar_is_an_invalid_argument(given: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve(start=given, end=given)


@pytest.mark.parametrize("end", ["2020-08-17", DAY, 1597622400000, DAY + timedelta(microseconds=999)])
def test_start_equal_to_end_is_passed_on_as_it_is(end: Any) -> None:
    assert resolve(start=DAY, end=end) == Window(MIDNIGHT, MIDNIGHT, "start_end")


@pytest.mark.parametrize("end", ["2020-08-16", DAY - timedelta(microseconds=1), 1597622399999])
def test_start_after_end_is_an_error_that_names_both(end: Any) -> None:
    with pytest.raises(WindowError, match=r"start 2020-08-17T00:00:00\.000Z is after end 2020-08-16T"):
        resolve(start=DAY, end=end)


def test_given_bounds_win_over_the_run_whatever_the_run_has() -> None:
    for moments in ({}, EMPTY_INTERVAL, {"partition_date": DAY, "window": timedelta(days=1)}):
        assert resolve(start=DAY, end=NEXT_DAY, **moments).rule == "start_end"


# ---- rule 2: the data interval -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "start_ms", "end_ms"),
    [
        (DAY, NEXT_DAY, MIDNIGHT, MIDNIGHT + DAY_MS),
        (datetime(2020, 8, 17), datetime(2020, 8, 18), MIDNIGHT, MIDNIGHT + DAY_MS),
        (DAY, DAY + timedelta(milliseconds=1), MIDNIGHT, MIDNIGHT + 1),
        (DAY + timedelta(microseconds=999), DAY + timedelta(microseconds=2001), MIDNIGHT, MIDNIGHT + 2),
        (pendulum.datetime(2020, 8, 17, 2, tz="Europe/Berlin"), NEXT_DAY, MIDNIGHT, MIDNIGHT + DAY_MS),
    ],
)
def test_a_data_interval_is_taken_floored(start: datetime, end: datetime, start_ms: int, end_ms: int) -> None:
    window = resolve(data_interval_start=start, data_interval_end=end)
    assert window == Window(start_ms, end_ms, "data_interval")


@pytest.mark.parametrize(
    ("zone", "day", "length"),
    [
        *((BERLIN, date(2020, 3, 29), 23), (BERLIN, date(2020, 10, 25), 25)),
        *((SYDNEY, date(2020, 10, 4), 23), (SYDNEY, date(2020, 4, 5), 25)),
    ],
)
def test_a_window_of_one_day_agrees_with_a_day_on_which_clocks_change(
    zone: tzinfo, day: date, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=zone)
    window = resolve(
        data_interval_start=start,
        data_interval_end=start + timedelta(days=1),
        window=timedelta(days=1),
        dag_timezone=zone,
    )
    assert (hours(window), window.rule) == (length, "data_interval")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("length", "warned"),
    [
        *((timedelta(days=1), False), (timedelta(hours=23), False), (timedelta(hours=25), False), ("P1D", False)),
        *((timedelta(hours=22, minutes=59), True), (timedelta(hours=25, milliseconds=1), True), ("PT1H", True)),
        *((timedelta(days=7), True), (pendulum.duration(months=1), True), (None, False), ("", False)),
    ],
)
def test_a_window_that_differs_from_the_data_interval_by_more_than_an_hour_is_a_warning(
    length: Any, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    window = resolve(data_interval_start=DAY, data_interval_end=NEXT_DAY, window=length)
    assert window == Window(MIDNIGHT, MIDNIGHT + DAY_MS, "data_interval")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned


def test_the_warning_names_both_lengths(caplog: pytest.LogCaptureFixture) -> None:
    resolve(data_interval_start=DAY, data_interval_end=DAY + timedelta(hours=1), window=timedelta(hours=6))
    assert "1:00:00 long, window is 6:00:00: the data interval wins" in caplog.text


# ---- rules 3 and 4: window ---------------------------------------------------------------------


def as_it_is(value: Any) -> Any:
    return value


def in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def in_pendulum_utc(moment: datetime) -> datetime:
    return pendulum.instance(moment).in_timezone("UTC")


def pendulum_zone(zone: tzinfo) -> tzinfo:
    return pendulum.timezone("UTC" if zone is UTC else str(zone))


@pytest.mark.parametrize(
    ("zone", "day", "length"),
    [
        *((BERLIN, date(2020, 3, 28), 24), (BERLIN, date(2020, 3, 29), 23), (BERLIN, date(2020, 3, 30), 24)),
        *((BERLIN, date(2020, 10, 24), 24), (BERLIN, date(2020, 10, 25), 25), (BERLIN, date(2020, 10, 26), 24)),
        *((SYDNEY, date(2020, 4, 4), 24), (SYDNEY, date(2020, 4, 5), 25), (SYDNEY, date(2020, 4, 6), 24)),
        *((SYDNEY, date(2020, 10, 3), 24), (SYDNEY, date(2020, 10, 4), 23), (SYDNEY, date(2020, 10, 5), 24)),
        *((UTC, date(2020, 2, 29), 24), (UTC, date(2020, 12, 31), 24), (BERLIN, date(2020, 2, 29), 24)),
    ],
)
@pytest.mark.parametrize(
    ("give", "zone_of"),
    [
        *((as_it_is, as_it_is), (in_utc, as_it_is), (as_it_is, pendulum_zone), (in_utc, pendulum_zone)),
        *((pendulum.instance, pendulum_zone), (in_pendulum_utc, pendulum_zone)),
    ],
)
def test_a_day_is_the_calendars_day_where_the_dag_lives(
    zone: tzinfo, day: date, length: int, give: Callable[[datetime], datetime], zone_of: Callable[[tzinfo], tzinfo]
) -> None:
    tomorrow = day + timedelta(days=1)
    first = datetime(day.year, day.month, day.day, tzinfo=zone)
    last = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=zone)
    one_day = {"window": timedelta(days=1), "dag_timezone": zone_of(zone)}
    expected = (first, last, length)

    partition = resolve(partition_date=give(first), **one_day)
    assert (partition.start, partition.end, hours(partition)) == expected
    backwards = resolve(run_after=give(last), **one_day)
    assert (backwards.start, backwards.end, hours(backwards)) == expected


@pytest.mark.parametrize(
    ("zone", "moment", "length", "clock_hours"),
    [
        (BERLIN, datetime(2020, 3, 29, 12, tzinfo=BERLIN), timedelta(hours=12), 12),
        (BERLIN, datetime(2020, 10, 25, 12, tzinfo=BERLIN), timedelta(hours=12), 12),
        (BERLIN, datetime(2020, 10, 25, 3, tzinfo=BERLIN), timedelta(hours=1), 1),
        (BERLIN, datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=0), timedelta(hours=1), 1),
        (BERLIN, datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), timedelta(hours=1), 1),
        (BERLIN, datetime(2020, 3, 29, 6, tzinfo=BERLIN), timedelta(days=1, hours=6), 29),
        (BERLIN, datetime(2020, 10, 26, tzinfo=BERLIN), timedelta(days=2), 49),
        (BERLIN, datetime(2020, 10, 26, tzinfo=BERLIN), timedelta(hours=48), 49),  # Python knows no difference
        (SYDNEY, datetime(2020, 4, 6, tzinfo=SYDNEY), timedelta(minutes=90), 1.5),
        (SYDNEY, datetime(2020, 4, 6, tzinfo=SYDNEY), timedelta(weeks=1), 169),
    ],
)
def test_hours_are_hours_of_the_clock_and_days_of_the_calendar(
    zone: tzinfo, moment: datetime, length: timedelta, clock_hours: float
) -> None:
    window = resolve(run_after=moment, window=length, dag_timezone=zone)
    assert hours(window) == clock_hours
    assert window.end == moment.astimezone(UTC)


@pytest.mark.parametrize(
    ("length", "start", "end"),
    [
        (timedelta(days=1), utc(2020, 2, 29), utc(2020, 3, 1)),
        (timedelta(days=366), utc(2019, 3, 1), utc(2020, 3, 1)),
        (timedelta(milliseconds=1), utc(2020, 2, 29, 23, 59, 59, 999000), utc(2020, 3, 1)),
        (pendulum.duration(days=1), utc(2020, 2, 29), utc(2020, 3, 1)),
        (pendulum.duration(weeks=1, days=2, hours=3), utc(2020, 2, 20, 21), utc(2020, 3, 1)),
        (pendulum.duration(months=1), utc(2020, 2, 1), utc(2020, 3, 1)),
        (pendulum.duration(months=1, days=1), utc(2020, 1, 31), utc(2020, 3, 1)),
        (pendulum.duration(months=1, days=-1), utc(2020, 2, 2), utc(2020, 3, 1)),
        (pendulum.duration(years=1), utc(2019, 3, 1), utc(2020, 3, 1)),
        (pendulum.duration(years=1, months=2), utc(2019, 1, 1), utc(2020, 3, 1)),
        ("P1D", utc(2020, 2, 29), utc(2020, 3, 1)),
        ("P1W", utc(2020, 2, 23), utc(2020, 3, 1)),
        ("P1M", utc(2020, 2, 1), utc(2020, 3, 1)),
        ("P1DT12H", utc(2020, 2, 28, 12), utc(2020, 3, 1)),
        ("PT36H", utc(2020, 2, 28, 12), utc(2020, 3, 1)),
        ("PT0.5S", utc(2020, 2, 29, 23, 59, 59, 500000), utc(2020, 3, 1)),
    ],
)
def test_a_window_is_a_duration_of_any_spelling(length: Any, start: datetime, end: datetime) -> None:
    window = resolve(run_after=end, window=length)
    assert (window.start, window.end) == (start, end)


@pytest.mark.parametrize(
    ("length", "end"),
    [
        *((timedelta(days=1), utc(2020, 2, 29)), (pendulum.duration(months=1), utc(2020, 3, 28))),
        *((pendulum.duration(years=1), utc(2021, 2, 28)), ("P1M1D", utc(2020, 3, 29)), ("P1W", utc(2020, 3, 6))),
        *((pendulum.duration(months=1, days=-1), utc(2020, 3, 27)),),
    ],
)
def test_a_partition_is_counted_forwards(length: Any, end: datetime) -> None:
    window = resolve(partition_date=utc(2020, 2, 28), window=length)
    assert (window.start, window.end, window.rule) == (utc(2020, 2, 28), end, "partition_date")


@pytest.mark.parametrize(
    "zone", [UTC, BERLIN, timezone(timedelta(hours=5, minutes=30)), pendulum.timezone("Asia/Tokyo")]
)
@pytest.mark.parametrize("moment", [NEXT_DAY, pendulum.datetime(2020, 8, 18)], ids=["datetime", "pendulum"])
def test_any_kind_of_timezone_can_be_a_dags(moment: datetime, zone: tzinfo) -> None:
    window = resolve(run_after=moment, window=timedelta(days=1), dag_timezone=zone)
    assert (window.start, window.end) == (DAY, NEXT_DAY)


def test_naive_moments_of_a_run_are_utc() -> None:
    window = resolve(run_after=datetime(2020, 8, 18), window=timedelta(days=1), dag_timezone=BERLIN)
    assert (window.start, window.end) == (DAY, NEXT_DAY)


def test_microseconds_of_a_runs_moment_are_floored_at_both_ends() -> None:
    window = resolve(run_after=NEXT_DAY + timedelta(microseconds=1999), window=timedelta(days=1))
    assert (window.start_ms, window.end_ms) == (MIDNIGHT + 1, MIDNIGHT + DAY_MS + 1)


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        *((timedelta(0), "longer than zero"), (timedelta(days=-1), "longer than zero"), ("P0D", "longer than zero")),
        *(("PT0S", "longer than zero"), (pendulum.duration(months=-1), "longer than zero")),
        *(
            (1, "no length of time"),
            (86400, "no length of time"),
            (0, "no length of time"),
            (True, "no length of time"),
        ),
        *(("1d", "no length of time"), ("-P1D", "no length of time"), ("P", "no length of time")),
        *(("P1H", "no length of time"), ("1 day, 0:00:00", "no length of time"), (DAY, "no length of time")),
        *(("P1D/2020-08-17", "no length of time"), ("2020-08-17/P1D", "no length of time"), ([], "no length of time")),
    ],
)
def test_a_window_that_is_no_length_is_an_error_even_where_another_rule_wins(length: Any, problem: str) -> None:
    for moments in ({"run_after": DAY}, {"start": DAY, "end": NEXT_DAY}):
        with pytest.raises(InvalidArgumentError, match=problem) as caught:
            resolve(window=length, **moments)
        assert caught.value.argument == "window"


@pytest.mark.parametrize("length", [timedelta(microseconds=1), timedelta(microseconds=999)])
def test_a_window_shorter_than_a_millisecond_is_refused_because_it_may_be_empty(length: timedelta) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve(run_after=DAY + timedelta(microseconds=999), window=length)


@pytest.mark.parametrize("length", [timedelta.max, timedelta(days=5_000_000), "P99999999999D"])
def test_a_window_longer_than_the_calendar_is_an_invalid_argument(length: Any) -> None:
    for moments in ({"run_after": DAY}, {"data_interval_start": DAY, "data_interval_end": NEXT_DAY}):
        with pytest.raises(InvalidArgumentError):
            resolve(window=length, **moments)


@pytest.mark.parametrize("zone", [BERLIN, pendulum.timezone("Europe/Berlin")], ids=["zoneinfo", "pendulum"])
def test_shift_goes_there_and_back_over_a_change_of_clocks(zone: tzinfo) -> None:
    midnight = datetime(2020, 10, 25, tzinfo=BERLIN)
    there = shift(midnight, timedelta(days=1), zone)
    assert there - midnight.astimezone(UTC) == timedelta(hours=25)
    assert shift(there.astimezone(UTC), -timedelta(days=1), zone) == midnight


# ---- moments and durations on their own ----------------------------------------------------------


def test_the_error_of_a_moment_names_its_argument() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^until='soon' is no ISO 8601"):
        parse_moment("soon", "until")
    assert parse_moment(None, "until") is None


@pytest.mark.parametrize("length", [timedelta(hours=1), pendulum.duration(months=1), timedelta(milliseconds=1)])
def test_a_duration_stays_what_it_is(length: timedelta) -> None:
    assert parse_duration(length) is length


@pytest.mark.parametrize(
    ("moment_ms", "text"),
    [
        *((0, "1970-01-01T00:00:00.000Z"), (MIDNIGHT + 7, "2020-08-17T00:00:00.007Z")),
        *((-1, "1969-12-31T23:59:59.999Z"), (1582934400000, "2020-02-29T00:00:00.000Z")),
    ],
)
def test_a_moment_is_written_as_the_api_writes_its_stamps(moment_ms: int, text: str) -> None:
    assert format_ms(moment_ms) == text


# ---- rows of a window --------------------------------------------------------------------------


def page(*stamps: Any, number: int = 1) -> Page:
    return Page(number, 1, ("row", "timestamp"), [[index, stamp] for index, stamp in enumerate(stamps)])


def keep(window: Window, *pages: Page) -> tuple[list[Page], RowCounts]:
    half_open = HalfOpenPages(window, pages)
    return list(half_open), half_open.counts


def kept_rows(pages: list[Page]) -> list[Any]:
    return [row[0] for page in pages for row in page.rows]


ONE_HOUR = Window(MIDNIGHT, MIDNIGHT + HOUR_MS)


@pytest.mark.parametrize(
    ("stamp", "counted", "kept"),
    [
        ("2020-08-17T00:00:00.000Z", None, True),
        ("2020-08-17T00:30:00Z", None, True),
        ("2020-08-17T00:59:59.999Z", None, True),
        ("2020-08-17T00:59:59.999999Z", None, True),
        ("2020-08-17T02:30:00+02:00", None, True),
        ("2020-08-17T01:00:00.000Z", "rows_at_end", False),
        ("2020-08-17T01:00:00Z", "rows_at_end", False),
        ("2020-08-17T01:00:00", "rows_at_end", False),
        ("2020-08-17T03:00:00.000+02:00", "rows_at_end", False),
        ("2020-08-17T01:00:00.000001Z", "rows_at_end", False),
        ("2020-08-17T01:00:00.000999Z", "rows_at_end", False),
        ("2020-08-17T01:00:00.001Z", "rows_after_end", True),
        ("2021-08-17T01:00:00.000Z", "rows_after_end", True),
        ("2020-08-16T23:59:59.999Z", "rows_before_start", True),
        ("2020-08-16T23:59:59.999999Z", "rows_before_start", True),
        ("1969-12-31T23:59:59Z", "rows_before_start", True),
        *((stamp, None, True) for stamp in (None, "", "x", "2020-08-17", "2016-12-31T23:59:60Z", 1597626000000)),
        *((stamp, None, True) for stamp in (1597626000000.0, True, False, [], ["2020-08-17T01:00:00Z"], {"a": 1})),
    ],
)
def test_only_a_row_stamped_exactly_end_is_dropped(stamp: Any, counted: str | None, kept: bool) -> None:
    # Beside an ordinary row, and beside one whose stamp cannot be looked up.
    for neighbour in ("2020-08-17T00:10:00Z", ["odd"]):
        [found], counts = keep(ONE_HOUR, page(neighbour, stamp))
        assert [row[0] for row in found.rows] == [0, 1][: 1 + kept]
        expected = RowCounts(pages=1, rows=1 + kept)
        if counted:
            setattr(expected, counted, 1)
        assert counts == expected


def test_what_is_kept_keeps_its_order_its_page_and_its_index_in_the_answer() -> None:
    end, inside, before = "2020-08-17T01:00:00Z", "2020-08-17T00:30:00Z", "2020-08-16T00:00:00Z"
    pages, counts = keep(
        ONE_HOUR, page(end, inside, end, before, None, end), page(inside, number=2), page(end, number=3)
    )
    assert [[row[0] for row in found.rows] for found in pages] == [[1, 3, 4], [0], []]
    assert [found.number for found in pages] == [1, 2, 3]
    assert [pages[0].row_index(index) for index in range(3)] == [1, 3, 4]
    assert pages[0].dropped == (0, 2, 5)
    assert counts == RowCounts(pages=3, rows=4, rows_before_start=1, rows_after_end=0, rows_at_end=4)


def test_a_page_from_which_nothing_is_dropped_is_the_same_page() -> None:
    given = page("2020-08-17T00:30:00Z", None)
    [found], _ = keep(ONE_HOUR, given)
    assert found is given


@pytest.mark.parametrize(
    "given",
    [
        *(Page(1, 0, (), []), Page(1, 1, ("timestamp",), []), Page(1, 1, ("a",), [[1], [2]])),
        Page(1, 1, ("a", "timestamp"), [[1, msgspec.UNSET], [msgspec.UNSET, msgspec.UNSET]], ragged=True),
    ],
)
def test_pages_without_stamps_stay_as_they_are(given: Page) -> None:
    [found], counts = keep(ONE_HOUR, given)
    assert found is given
    assert counts == RowCounts(pages=1, rows=len(given.rows))


def test_where_start_equals_end_nothing_is_dropped() -> None:
    at = "2020-08-17T00:00:00Z"
    pages, counts = keep(Window(MIDNIGHT, MIDNIGHT), page(at, "2020-08-16T23:59:33Z", "2020-08-17T00:00:01Z", None))
    assert kept_rows(pages) == [0, 1, 2, 3]
    assert counts == RowCounts(pages=1, rows=4, rows_before_start=1, rows_after_end=1, rows_at_end=0)


@pytest.mark.parametrize(("name", "endpoint"), [("compact", "compact"), ("tableau", "tableau")])
@pytest.mark.parametrize("length", [0, HOUR_MS])
def test_the_rows_of_the_documented_example_survive_though_stamped_before_their_window(
    name: str, endpoint: Any, length: int
) -> None:
    body = (SAMPLES / f"analytics_{name}.json").read_bytes()
    window = resolve(start=1597630156000, end=1597630156000 + length)
    [found], counts = keep(window, parse_page(Response("https://x/1", 200, {}, body), 1, endpoint))
    assert len(found.rows) == 2
    assert counts == RowCounts(pages=1, rows=2, rows_before_start=2)


def test_counts_grow_while_pages_are_read_and_pages_are_pulled_one_by_one() -> None:
    pulled = []

    def pages() -> Any:
        for number in (1, 2, 3):
            pulled.append(number)
            yield page("2020-08-17T00:30:00Z", "2020-08-17T01:00:00Z", number=number)

    half_open = HalfOpenPages(ONE_HOUR, pages())
    assert (pulled, half_open.counts.pages) == ([], 0)
    iterator = iter(half_open)
    next(iterator)
    assert (pulled, asdict(half_open.counts)["rows"], half_open.counts.rows_at_end) == ([1], 1, 1)
    assert len(list(iterator)) == 2
    assert (pulled, half_open.counts.rows) == ([1, 2, 3], 3)


@pytest.mark.parametrize("stamp", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_stamp_beyond_the_calendar_is_kept_like_one_that_cannot_be_read(stamp: str) -> None:
    [found], _ = keep(ONE_HOUR, page(stamp))
    assert kept_rows([found]) == [0]


# ---- sessions of a window ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "bounds"),
    [
        ({}, (None, None)),
        ({"run_after": DAY}, (MIDNIGHT, None)),
        ({"run_after": DAY, "until": NEXT_DAY}, (MIDNIGHT, MIDNIGHT + DAY_MS)),
        ({"run_after": NEXT_DAY, "since": DAY}, (MIDNIGHT, None)),
        ({"since": "2020-08-17", "until": "2020-08-18"}, (MIDNIGHT, MIDNIGHT + DAY_MS)),
        ({"since": "", "until": "None", "run_after": DAY}, (MIDNIGHT, None)),
        (
            {"data_interval_start": DAY, "data_interval_end": NEXT_DAY, "run_after": utc(2020, 8, 19)},
            (MIDNIGHT, MIDNIGHT + DAY_MS),
        ),
        ({"data_interval_start": DAY, "data_interval_end": DAY, "run_after": NEXT_DAY}, (MIDNIGHT + DAY_MS, None)),
        (
            {"data_interval_start": DAY, "data_interval_end": NEXT_DAY, "since": "2020-08-01"},
            (MIDNIGHT - 16 * DAY_MS, MIDNIGHT + DAY_MS),
        ),
        (
            {"data_interval_start": DAY, "data_interval_end": NEXT_DAY, "until": "2020-08-17T06:00:00Z"},
            (MIDNIGHT, MIDNIGHT + 6 * HOUR_MS),
        ),
        ({"run_after": DAY, "partition_date": NEXT_DAY, "logical_date": None, "run_kind": "manual"}, (MIDNIGHT, None)),
    ],
)
def test_a_run_looks_for_sessions_in_its_own_interval_else_from_now_on(
    moments: dict[str, Any], bounds: tuple[int | None, int | None]
) -> None:
    assert session_bounds(**moments) == bounds


@pytest.mark.parametrize(
    "moments",
    [
        {"since": NEXT_DAY, "until": DAY},
        {"since": DAY, "until": DAY},
        {"since": DAY, "until": DAY + timedelta(microseconds=999)},
        {"until": DAY, "run_after": NEXT_DAY},
        {"data_interval_start": DAY, "data_interval_end": NEXT_DAY, "since": NEXT_DAY},
    ],
)
def test_bounds_between_which_no_session_can_start_are_an_error(moments: dict[str, Any]) -> None:
    with pytest.raises(WindowError, match="No session can start at or after"):
        session_bounds(**moments)


@pytest.mark.parametrize("name", ["since", "until"])
def test_a_bound_in_seconds_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"seconds\?") as caught:
        session_bounds(**{name: 1597622400})
    assert caught.value.argument == name


def ids(*minutes: float) -> list[str]:
    """Return the ids of sessions that begin so many minutes after midnight."""
    return [str(MIDNIGHT + int(minute * 60_000)) for minute in minutes]


@pytest.mark.parametrize(
    ("since", "until", "minutes"),
    [
        *((None, None, [0, 1, 2, 3]), (1, None, [1, 2, 3]), (None, 2, [0, 1]), (1, 3, [1, 2]), (2, 2.5, [2])),
        *((5, None, []), (0.0001, 1, []), (None, 0, []), (3, 4, [3])),
    ],
)
def test_new_sessions_start_at_or_after_since_and_before_until(
    since: float | None, until: float | None, minutes: list[int]
) -> None:
    bounds = [None if bound is None else MIDNIGHT + int(bound * 60_000) for bound in (since, until)]
    found = select_sessions(ids(2, 0, 3, 1), since_ms=bounds[0], until_ms=bounds[1])
    assert found == ids(*minutes)


@pytest.mark.parametrize(
    ("known", "minutes"), [([], [0, 1, 2]), (ids(1), [0, 2]), (set(ids(0, 1, 2)), []), (tuple(ids(7)), [0, 1, 2])]
)
def test_known_sessions_are_compared_by_id_and_bounds_do_not_matter_then(known: Any, minutes: list[int]) -> None:
    bounds = {"since_ms": MIDNIGHT + DAY_MS, "until_ms": MIDNIGHT + 2 * DAY_MS}
    assert select_sessions(ids(2, 1, 0), known_sessions=known, **bounds) == ids(*minutes)


def test_a_session_that_is_listed_twice_is_returned_once() -> None:
    assert select_sessions(ids(1, 0, 1, 0)) == ids(0, 1)
    assert select_sessions(ids(1, 1), known_sessions=[]) == ids(1)


@pytest.mark.parametrize("known", [None, []])
@pytest.mark.parametrize(
    ("age_ms", "minutes"), [(0, [0, 1, 2]), (1, [0, 1]), (60_000, [0, 1]), (60_001, [0]), (120_001, [])]
)
def test_a_session_counts_once_its_start_lies_far_enough_back(known: Any, age_ms: int, minutes: list[int]) -> None:
    now_ms = MIDNIGHT + 2 * 60_000
    assert select_sessions(ids(0, 1, 2), known_sessions=known, min_age_ms=age_ms, now_ms=now_ms) == ids(*minutes)


def test_sessions_come_oldest_first_whatever_the_length_of_their_ids() -> None:
    assert select_sessions(["1595418530512", "999999999999", "1000000000000"]) == [
        *("999999999999", "1000000000000", "1595418530512"),
    ]


def test_ids_that_read_as_no_start_are_no_problem_where_the_start_does_not_matter() -> None:
    sessions = ["session-b", *ids(1), "session-a"]
    assert select_sessions(sessions) == [*ids(1), "session-a", "session-b"]
    assert select_sessions(sessions, known_sessions=["session-a"]) == [*ids(1), "session-b"]
    assert select_sessions([*sessions, "x"], known_sessions=sessions, min_age_ms=0) == ["x"]


@pytest.mark.parametrize(
    "matters",
    [{"since_ms": MIDNIGHT}, {"until_ms": MIDNIGHT}, {"known_sessions": [], "min_age_ms": 1, "now_ms": MIDNIGHT}],
)
def test_an_id_that_reads_as_no_start_is_an_error_where_the_start_matters(matters: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedResponseError, match="'session-a' does not read as a start") as caught:
        select_sessions([*ids(1), "session-a"], **matters)
    assert caught.value.value == "session-a"


def test_an_unreadable_id_that_is_known_is_no_problem() -> None:
    assert select_sessions(["x", *ids(1)], known_sessions=["x"], min_age_ms=1, now_ms=MIDNIGHT + DAY_MS) == ids(1)


def test_of_no_sessions_none_are_new() -> None:
    assert select_sessions([], since_ms=MIDNIGHT, until_ms=MIDNIGHT + 1) == []
    assert select_sessions([], known_sessions=[], min_age_ms=5, now_ms=MIDNIGHT) == []


def test_a_partition_without_a_date_is_never_taken_for_the_time_of_its_run() -> None:
    with pytest.raises(WindowError, match="partition 'a-day'"):
        resolve(window=timedelta(days=1), run_after=NEXT_DAY, undated_partition="a-day")
    given = resolve(start=DAY, end=NEXT_DAY, undated_partition="a-day")
    assert (given.start, given.end) == (DAY, NEXT_DAY)


# ---- a span in steps -----------------------------------------------------------------------------


def bounds(windows: list[Window]) -> list[str]:
    return [format_ms(window.start_ms)[:16] for window in windows] + [format_ms(windows[-1].end_ms)[:16]]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("day", ["2020-08-16T00:00", "2020-08-17T00:00", "2020-08-17T18:00"]),
        (timedelta(days=1), ["2020-08-16T00:00", "2020-08-17T00:00", "2020-08-17T18:00"]),
        ("P1D", ["2020-08-16T00:00", "2020-08-17T00:00", "2020-08-17T18:00"]),
        ("PT21H", ["2020-08-16T00:00", "2020-08-16T21:00", "2020-08-17T18:00"]),
        ("week", ["2020-08-16T00:00", "2020-08-17T18:00"]),
    ],
    ids=str,
)
def test_a_span_is_cut_each_step_from_its_start_and_the_rest_is_a_window_too(every: Any, expected: list[str]) -> None:
    assert bounds(plan_windows("2020-08-16", "2020-08-17T18:00Z", every=every)) == expected


def test_a_month_from_the_31st_ends_on_the_last_day_of_shorter_months_only() -> None:
    windows = plan_windows("2026-01-31", "2026-06-01", every="month")
    assert [text[5:10] for text in bounds(windows)] == ["01-31", "02-28", "03-31", "04-30", "05-31", "06-01"]


def test_an_empty_span_has_no_windows() -> None:
    assert plan_windows(DAY, DAY, every="day") == []
    assert count_steps(Window(MIDNIGHT, MIDNIGHT), timedelta(days=1), UTC) == 0


@pytest.mark.parametrize(
    ("start", "zone", "lengths"),
    [
        (datetime(2026, 3, 28, tzinfo=BERLIN), None, [24, 23, 24]),
        (datetime(2026, 10, 24, tzinfo=BERLIN), None, [24, 25, 24]),
        (datetime(2026, 3, 28, tzinfo=BERLIN), "UTC", [24, 24, 24]),
        ("2026-03-27T23:00:00Z", "Europe/Berlin", [24, 23, 24]),
        ("2026-03-28", "Europe/Berlin", [24, 23, 24]),  # naive is UTC: one in the morning
        ("2026-03-28", None, [24, 24, 24]),
        ("2026-03-28T00:00:00+01:00", None, [24, 24, 24]),  # an offset has no clocks that change
        (datetime(2026, 4, 4, tzinfo=ZoneInfo("Australia/Lord_Howe")), None, [24, 24.5, 24]),
        (datetime(2026, 10, 3, tzinfo=ZoneInfo("Australia/Lord_Howe")), None, [24, 23.5, 24]),
        (datetime(2026, 3, 28, 2, 30, tzinfo=BERLIN), None, [24, 23, 24]),  # half past two comes never on the 29th
        (datetime(2011, 12, 28, tzinfo=ZoneInfo("Pacific/Apia")), None, [24, 24, 24]),  # the 30th was left out
    ],
    ids=str,
)
def test_days_are_those_of_the_calendar_that_is_meant(start: Any, zone: str | None, lengths: list[float]) -> None:
    end = parse_moment(start, "start") + 5 * DAY_MS  # type: ignore[operator]
    assert list(map(hours, plan_windows(start, end, every="day", timezone=zone)))[:3] == lengths


def test_a_timezone_of_pytz_knows_its_other_offsets_too() -> None:
    pytz = pytest.importorskip("pytz")
    start = pytz.timezone("Europe/Berlin").localize(datetime(2026, 3, 28))
    assert list(map(hours, plan_windows(start, start + timedelta(days=2), every="day"))) == [24, 23, 1]
    assert parse_timezone(pytz.FixedOffset(90)) == pytz.FixedOffset(90)


@pytest.mark.parametrize(
    ("every", "lengths"),
    [
        (timedelta(hours=24), [24, 23]),  # Python has one spelling of a day
        (timedelta(hours=12), [12, 12, 12, 11]),
        ("PT8H", [8, 8, 8, 8, 8, 7]),
    ],
    ids=str,
)
def test_whole_days_go_by_the_calendar_and_the_rest_by_the_clock(every: Any, lengths: list[float]) -> None:
    windows = plan_windows(datetime(2026, 3, 28, tzinfo=BERLIN), datetime(2026, 3, 30, tzinfo=BERLIN), every=every)
    assert list(map(hours, windows)) == lengths


@pytest.mark.parametrize("every", ["PT0.001S", "hour", "day", "month", "year", timedelta(days=999_999_999)], ids=str)
def test_steps_are_counted_without_being_made(every: Any) -> None:
    span = Window(MIDNIGHT, MIDNIGHT + 40 * DAY_MS)
    expected = {"PT0.001S": 40 * DAY_MS, "hour": 960, "day": 40, "month": 2}
    assert count_steps(span, parse_step(every), UTC) == expected.get(str(every), 1)  # type: ignore[arg-type]


def test_a_step_that_leads_beyond_the_calendar_ends_with_the_span() -> None:
    [window] = plan_windows("9999-01-01", "9999-12-31", every="year")
    assert window.end == utc(9999, 12, 31)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"every": "fortnight"}, "every"),
        ({"every": "Day"}, "every"),
        ({"every": None}, "every"),
        ({"every": ""}, "every"),
        ({"every": 5}, "every"),
        ({"every": ["day"]}, "every"),
        ({"every": "P0D"}, "every"),
        ({"every": timedelta(days=-1)}, "every"),
        ({"every": pendulum.duration(months=1, days=-29)}, "every"),
        ({"timezone": "Mars/Base"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"timezone": "Europe"}, "timezone"),
        ({"timezone": 1}, "timezone"),
        ({"start": None, "end": None}, "start"),
        ({"start": None}, "start"),
        ({"start": "2020-08-19"}, "start"),
        ({"end": 1_597_622_400}, "end"),
    ],
    ids=str,
)
def test_what_makes_no_plan_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named) as caught:
        plan_windows(**{"start": DAY, "end": NEXT_DAY, "every": "day", **arguments})
    assert caught.value.argument == named
