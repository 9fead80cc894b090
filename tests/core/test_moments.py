"""Moments, durations and time zones: which spellings are accepted, and how days and hours are counted."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pendulum
import pytest

from airflow_provider_unleash.core.moments import (
    format_ms,
    parse_duration,
    parse_moment,
    parse_timestamp,
    parse_timestamp_or_none,
    parse_timezone,
    shift,
)
from airflow_provider_unleash.exceptions import InvalidArgumentError

UTC = timezone.utc
BERLIN, SYDNEY = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Sydney")
MIDNIGHT = 1_597_622_400_000
DAY = datetime(2020, 8, 17, tzinfo=UTC)
LAST_MS = "2020-08-16T23:59:59.999"


@pytest.mark.parametrize(
    ("given", "moment_ms"),
    [
        *((text, MIDNIGHT) for text in ("2020-08-17", "20200817", "2020-08-17T00:00", "2020-08-17T00:00:00")),
        *((text, MIDNIGHT) for text in ("2020-08-17T00:00:00Z", "2020-08-17T00:00:00.000Z", "20200817T000000Z")),
        *((text, MIDNIGHT) for text in ("2020-08-17 00:00:00+00:00", "2020-08-17T02:00:00+0200", "20200817T000000")),
        *((text, MIDNIGHT) for text in ("2020-08-17T02:00:00+02", "2020-08-16T19:30:00-04:30", " 2020-08-17 00:00\n")),
        *((text, MIDNIGHT) for text in ("1597622400000", 1597622400000, date(2020, 8, 17), pendulum.date(2020, 8, 17))),
        *((moment, MIDNIGHT) for moment in (DAY, datetime(2020, 8, 17), datetime(2020, 8, 17, 2, tzinfo=BERLIN))),
        *((moment, MIDNIGHT) for moment in (pendulum.naive(2020, 8, 17), pendulum.instance(DAY).in_tz("Asia/Tokyo"))),
        *((str(moment), MIDNIGHT) for moment in (pendulum.instance(DAY), DAY)),
        *((LAST_MS + rest, MIDNIGHT - 1) for rest in ("Z", "999Z", "999999Z")),
        *(("20200817T000000.001Z", MIDNIGHT + 1), (DAY + timedelta(microseconds=1999), MIDNIGHT + 1)),
        *(("2020-02-29", 1_582_934_400_000), (MIDNIGHT + 1, MIDNIGHT + 1)),
    ],
    ids=str,
)
def test_a_moment_has_many_spellings_is_utc_by_default_and_is_floored(given, moment_ms):
    assert parse_moment(given, "start") == moment_ms


@pytest.mark.parametrize("missing", [None, "", "None", "  ", " None\n"])
def test_what_a_template_renders_for_a_missing_value_is_missing(missing):
    assert parse_moment(missing, "start") is parse_duration(missing) is parse_timezone(missing) is None


@pytest.mark.parametrize(
    "given",
    [
        *("yesterday", "now", "none", "null", "2020", "2020-08", "2020-230", "12:00", "2020-02-30", "2019-02-29"),
        *("2020-13-01", "2020-08-17T25:00:00", "2020-08-17T00:00:60Z", "2020-08-17foo", "2020-08-17T", "99999999"),
        *("2020-08-17T00:00:00+25:00", "2020-08-17/2020-08-18", "2020-08-17/P1D", "P1D", "{{ ds }}", "1.5e12", "-1"),
        *("159762240000", "15976224000000", 1597622400000.0, True, b"2020-08-17", [], timedelta(1)),
    ],
    ids=str,
)
def test_the_error_about_an_invalid_moment_names_the_argument(given):
    with pytest.raises(InvalidArgumentError, match=r"^until=") as caught:
        parse_moment(given, "until")
    assert caught.value.argument == "until"


@pytest.mark.parametrize("given", [1597622400, "1597622400", 0, 10**11 - 1])
def test_seconds_are_rejected_with_advice(given):
    with pytest.raises(InvalidArgumentError, match=r"seconds.* multiply it by 1000"):
        parse_moment(given, "start")


@pytest.mark.parametrize(
    "given",
    [
        *("9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+14:00", 1597622400000000, 10**30),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    ],
    ids=str,
)
def test_a_moment_outside_the_years_1_to_9999_is_rejected(given):
    with pytest.raises(InvalidArgumentError):
        parse_moment(given, "start")


@pytest.mark.parametrize(
    ("moment_ms", "text"),
    [
        *((0, "1970-01-01T00:00:00.000Z"), (MIDNIGHT + 7, "2020-08-17T00:00:00.007Z")),
        *((-1, "1969-12-31T23:59:59.999Z"), (1582934400000, "2020-02-29T00:00:00.000Z")),
    ],
)
def test_moments_and_timestamps_have_the_same_format(moment_ms, text):
    assert format_ms(moment_ms) == text
    assert parse_timestamp(text).timestamp() * 1000 == moment_ms


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", "x", "17.08.2020", "2016-12-31T12:59:60Z", "9999-12-31T23:59:60Z", "202008"),
        *(1.5, -MIDNIGHT, True, [], {}),
    ],
)
def test_a_value_that_is_not_a_timestamp_is_none(value):
    assert parse_timestamp_or_none(value) is None


@pytest.mark.parametrize(
    "value",
    [
        *("2020-08-16T23:59:60Z", "2020-08-17T01:59:60+02:00", "2020-08-16T23:59:60", "2020-08-16T23:59:60.000Z"),
        *(MIDNIGHT, MIDNIGHT // 1000, MIDNIGHT * 1000, MIDNIGHT * 10**6, MIDNIGHT / 1000, float(MIDNIGHT)),
        *(str(MIDNIGHT), str(MIDNIGHT // 1000), f"{MIDNIGHT // 1000}.000"),
        *("2020-08-17", "20200817T000000Z", "2020-08-17T00:00Z", "2020-08-17T00:00:00,000+00", " 2020-08-17T02+02:00 "),
    ],
)
def test_leap_seconds_numbers_and_any_spelling_of_iso_8601_are_moments_too(value):
    assert parse_timestamp_or_none(value) == datetime(2020, 8, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("length", "start"),
    [
        *((timedelta(days=1), "2020-02-29"), (timedelta(days=366), "2019-03-01"), ("P1D", "2020-02-29")),
        *((timedelta(milliseconds=1), "2020-02-29T23:59:59.999Z"), ("PT0.5S", "2020-02-29T23:59:59.500Z")),
        *((pendulum.duration(months=1), "2020-02-01"), (pendulum.duration(years=1, months=2), "2019-01-01")),
        *((pendulum.duration(months=1, days=1), "2020-01-31"), (pendulum.duration(months=1, days=-1), "2020-02-02")),
        *((pendulum.duration(weeks=1, days=2, hours=3), "2020-02-20T21:00Z"), ("P1W", "2020-02-23")),
        *(("P1M", "2020-02-01"), ("P1DT12H", "2020-02-28T12:00Z"), ("PT36H", "2020-02-28T12:00Z")),
    ],
    ids=str,
)
def test_a_duration_is_subtracted_by_the_calendar(length, start):
    duration = parse_duration(length)
    assert duration is length or isinstance(length, str)
    assert duration is not None
    moment = shift(datetime(2020, 3, 1, tzinfo=UTC), duration, UTC, -1)
    assert parse_moment(moment, "start") == parse_moment(start, "start")


@pytest.mark.parametrize(
    ("moment", "length", "hours"),
    [
        (datetime(2020, 3, 29, 12, tzinfo=BERLIN), timedelta(hours=12), 12),
        (datetime(2020, 10, 25, 3, tzinfo=BERLIN), timedelta(hours=1), 1),
        (datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=0), timedelta(hours=1), 1),
        (datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), timedelta(hours=1), 1),
        (datetime(2020, 3, 29, 6, tzinfo=BERLIN), timedelta(days=1, hours=6), 29),
        (datetime(2020, 10, 26, tzinfo=BERLIN), timedelta(days=2), 49),
        (datetime(2020, 10, 26, tzinfo=BERLIN), timedelta(hours=48), 49),  # for Python the same as two days
        (datetime(2020, 4, 6, tzinfo=SYDNEY), timedelta(minutes=90), 1.5),
        (datetime(2020, 4, 6, tzinfo=SYDNEY), timedelta(weeks=1), 169),
    ],
    ids=str,
)
def test_days_follow_the_calendar_and_hours_the_clock(moment, length, hours):
    assert isinstance(moment.tzinfo, ZoneInfo)
    for given in (moment, moment.astimezone(UTC), pendulum.instance(moment)):
        for zone in (moment.tzinfo, pendulum.timezone(str(moment.tzinfo))):
            assert moment.timestamp() - shift(given, length, zone, -1).timestamp() == hours * 3600


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        *((length, "at least one millisecond") for length in (timedelta(0), timedelta(days=-1), "P0D", "PT0S")),
        *((length, "at least one millisecond") for length in (pendulum.duration(months=-1), timedelta(microseconds=1))),
        *((length, "not a duration") for length in (1, 86400, 0, True, "-P1D", "P", "P1H", "1 day, 0:00:00")),
        *(
            (length, "not a duration")
            for length in ("P12M4M", "PT1S1H", "P1.5D", "PT", "P1DT", f"P{'9' * 5000}D", "P9999999999D")
        ),
        *((length, "for example .*'P1D'") for length in ("1d", "24h", "one day")),
        *((length, "not a duration") for length in (DAY, "P1D/2020-08-17", "2020-08-17/P1D", [])),
    ],
    ids=str,
)
def test_an_invalid_duration_is_named(length, problem):
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        parse_duration(length)
    assert caught.value.argument == "window"


@pytest.mark.parametrize("name", ["Mars/Base", "../../etc/passwd", "Europe", 1])
def test_an_unknown_time_zone_is_rejected(name):
    with pytest.raises(InvalidArgumentError, match="not a time zone") as caught:
        parse_timezone(name)
    assert caught.value.argument == "timezone"


def test_a_pytz_zone_of_a_datetime_becomes_the_zone_with_all_offsets():
    pytz = pytest.importorskip("pytz")
    localized = pytz.timezone("Europe/Berlin").localize(datetime(2026, 3, 28))
    assert parse_timezone(localized.tzinfo) == parse_timezone("Europe/Berlin") == BERLIN
    assert parse_timezone(pytz.FixedOffset(90)) == pytz.FixedOffset(90)
