"""Moments and durations: how the package parses, converts and moves them. No I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pendulum
from pendulum.helpers import add_duration

from airflow_provider_unleash.exceptions import InvalidArgumentError

UTC = timezone.utc
# Any plausible moment in seconds is a smaller integer; in milliseconds, smaller means before March 1973.
MIN_EPOCH_MS = 10**11

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # years 1 to 9999, the range of datetime
_BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
_LEAP_SECOND = re.compile(r"^(.{17})60")


def to_epoch_ms(moment: datetime | int, argument: str) -> int:
    """Return a moment in epoch milliseconds, floored; ``argument`` is the parameter that errors name."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidArgumentError(f"{argument}={moment} has no time zone", argument=argument)
        return _in_calendar(datetime.__sub__(moment, EPOCH) // timedelta(milliseconds=1), moment, argument)
    if not isinstance(moment, int) or isinstance(moment, bool):
        raise InvalidArgumentError(
            f"{argument}={moment!r} must be an aware datetime or epoch milliseconds", argument=argument
        )
    if moment < MIN_EPOCH_MS:
        raise InvalidArgumentError(
            f"{argument}={moment} is too small for epoch milliseconds. If it is in seconds, multiply it by 1000",
            argument=argument,
        )
    return _in_calendar(moment, moment, argument)


def _in_calendar(moment_ms: int, given: object, argument: str) -> int:
    if _FIRST_MS <= moment_ms <= _LAST_MS:
        return moment_ms
    raise InvalidArgumentError(
        f"{argument}={given} is outside the years 1 to 9999. If it is in microseconds, divide it by 1000",
        argument=argument,
    )


def to_ms(moment: datetime) -> int:
    """Return a moment that is known to be valid in epoch milliseconds; a naive one is UTC."""
    return to_epoch_ms(assume_utc(moment), "moment")


def from_epoch_ms(moment_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=moment_ms)


def format_ms(moment_ms: int) -> str:
    """Return epoch milliseconds in the API's timestamp format, ``2020-08-17T02:08:49.000Z``."""
    return from_epoch_ms(moment_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_timestamp(text: str) -> datetime:
    """
    Parse the ``timestamp`` of a row, such as ``2020-08-17T02:08:49.000Z``; without an offset it is UTC.

    A leap second (``23:59:60``) is the next second, as it is in epoch milliseconds.
    """
    try:
        # msgspec rounds digits beyond microseconds, which could move the moment to the next millisecond.
        plain, leap_seconds = _LEAP_SECOND.subn(r"\g<1>59", _BEYOND_MICROSECONDS.sub(r"\1", text))
        moment = assume_utc(msgspec.convert(plain, datetime)) + timedelta(seconds=leap_seconds)
        if leap_seconds and moment.astimezone(UTC).strftime("%T") != "00:00:00":
            raise ValueError("seconds are 60 only at the end of a day in UTC")
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{text!r} is not an RFC 3339 timestamp") from None
    return moment


def parse_timestamp_or_none(value: Any) -> datetime | None:
    """
    Parse the ``timestamp`` of a row; return None if it is missing or not a timestamp.

    A number, or a string of digits, is a Unix epoch: in seconds, milli-, micro- or nanoseconds, whichever of them gives
    a moment from 1973 to 5138. Other spellings of ISO 8601, such as ``20200817T020849Z`` or ``2020-08-17``, are read
    too, although typed columns refuse them, so that every row is known to be in the window or not.
    """
    if type(value) is int and MIN_EPOCH_MS <= value < 10**14:
        return from_epoch_ms(value)  # what most numbers are; a Fraction takes ten times as long
    try:
        if isinstance(value, str) and not re.fullmatch(r"\d{9,20}(\.\d{1,9})?", value):
            return _parse_any_iso(value)
        number = Fraction(value)
    except (ValueError, TypeError, OverflowError):
        return None
    units = (number / 1000**power for power in range(4))
    seconds = next((seconds for seconds in units if 10**8 <= seconds < 10**11), None)
    # Round to microseconds: a float such as 1597622400.001 is a little less.
    return None if seconds is None else EPOCH + timedelta(microseconds=round(seconds * 10**6))


def _parse_any_iso(text: str) -> datetime:
    try:
        return parse_timestamp(text)
    except ValueError:
        return assume_utc(datetime.fromisoformat(text.strip()))


def are_all_between(timestamps: Sequence[Any], start: datetime, end: datetime) -> bool:
    """Return whether all are timestamps in ``[start, end)``, in one fast pass over usual ones."""
    try:
        moments = msgspec.convert(timestamps, list[datetime])
        # Rows usually come in order of time, and sorting a sorted list is faster than min() and max().
        in_order = sorted(moments)
        if not moments or (start < in_order[0] and in_order[-1] < end):
            return True
        # msgspec rounds digits beyond microseconds, so parse what may be at a bound again.
        near = [text for text, moment in zip(timestamps, moments, strict=True) if not start < moment < end]
        return all(start <= parse_timestamp(text) < end for text in near)
    except (msgspec.ValidationError, TypeError, ValueError):  # one is not a timestamp, or has no offset
        return False


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def is_missing(value: object) -> bool:
    """Return whether an argument is not given; templates render None and empty values as strings."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def parse_moment(value: object, argument: str, zone: tzinfo = UTC) -> int | None:
    """Return a moment in epoch milliseconds, floored, or None; naive is in ``zone``, and errors name ``argument``."""
    if is_missing(value):
        return None
    if isinstance(value, str):
        value = parse_moment_string(value.strip(), argument, zone)
    if isinstance(value, datetime):
        value = value if value.tzinfo else value.replace(tzinfo=zone)
    elif isinstance(value, date):
        value = datetime(value.year, value.month, value.day, tzinfo=zone)
    return to_epoch_ms(value, argument)  # type: ignore[arg-type]  # rejects other types


def parse_moment_string(text: str, argument: str, zone: tzinfo = UTC) -> datetime | date | int:
    """Parse an ISO 8601 date or time, or 13 digits of epoch milliseconds; a time without offset is in ``zone``."""
    if re.fullmatch(r"\d{13}", text):
        return int(text)
    if re.fullmatch(r"-?\d+", text) and len(text) != len("20200817"):
        hint = ". It looks like seconds: multiply it by 1000" if len(text) == 10 else ""
        raise InvalidArgumentError(
            f"{argument}={text!r} is not in epoch milliseconds, which have 13 digits{hint}", argument=argument
        )
    # pendulum reads "12:00" as noon today and "2020" as a year, so require a whole date.
    if re.match(r"\d{4}-\d{2}-\d{2}|\d{8}", text):
        with suppress(ValueError, TypeError, OverflowError):  # pendulum raises the last two for some strings
            moment = pendulum.parse(text, exact=True, tz=zone)
            if isinstance(moment, date):  # a datetime is a date too
                return moment
    raise InvalidArgumentError(f"{argument}={text!r} is not an ISO 8601 date or time", argument=argument)


def parse_duration(value: object, argument: str = "window") -> timedelta | None:
    if is_missing(value):
        return None
    if isinstance(value, str):
        parsed = _parse_iso_duration(value.strip())
        value = value if parsed is None else parsed
    if not isinstance(value, timedelta):
        raise InvalidArgumentError(
            f"{argument}={value!r} is not a duration; expected for example timedelta(days=1) or 'P1D'",
            argument=argument,
        )
    if value < timedelta(milliseconds=1):
        raise InvalidArgumentError(f"{argument}={value!r} must be at least one millisecond", argument=argument)
    return value


def parse_timezone(value: object) -> tzinfo | None:
    if is_missing(value):
        return None
    if isinstance(value, tzinfo):
        # A pytz zone taken from a datetime has the offset of that datetime only; its name has all offsets.
        name = getattr(value, "zone", None)
        return ZoneInfo(name) if name else value
    # Depending on the name, ZoneInfo raises KeyError, ValueError, or OSError (the name of a folder).
    with suppress(KeyError, ValueError, OSError, TypeError):
        return ZoneInfo(value)  # type: ignore[arg-type]
    raise InvalidArgumentError(
        f"timezone={value!r} is not a time zone; expected a name such as Europe/Berlin", argument="timezone"
    )


# Not pendulum's parser: it takes the parts in any order, and numbers modulo 2**32.
_ISO_DURATION = re.compile(
    r"P(?=.)(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?=.)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)


def _parse_iso_duration(text: str) -> pendulum.Duration | None:
    match = _ISO_DURATION.fullmatch(text)
    with suppress(OverflowError, ValueError):  # too long for a timedelta, or too many digits for int()
        if match is not None:
            numbers = match.groupdict("0").items()
            return pendulum.duration(**{unit: float(text) if "." in text else int(text) for unit, text in numbers})
    return None


def assume_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def shift(moment: datetime, duration: timedelta, zone: tzinfo, times: int = 1) -> datetime:
    """
    Move a moment by a duration, ``times`` times: years, months and days by the zone's calendar, the rest by the clock.

    One day before noon on the day when clocks change is noon of the day before, 23 or 25 hours earlier. Outside the
    years 1 to 9999, it raises an OverflowError or, for some values, a ValueError.
    """
    years, months, days, clock = split_duration(duration)
    moment = assume_utc(moment)
    if years or months or days:
        wall = moment.astimezone(zone).replace(tzinfo=None)
        wall = add_duration(wall, years=years * times, months=months * times, days=days * times)
        # If the wall time occurs twice or never, take the later reading, as Airflow's cron timetables do.
        moment = max(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    # Add the clock part in UTC, because adding to an aware datetime ignores changes of the offset.
    return moment.astimezone(UTC) + clock * times


def split_duration(duration: timedelta) -> tuple[int, int, int, timedelta]:
    """Return the years, months and days of a duration, which follow the calendar, and the rest."""
    if isinstance(duration, pendulum.Duration):
        days = duration.weeks * 7 + duration.remaining_days
        # As a timedelta, pendulum counts a year as 365 days and a month as 30.
        clock = duration.as_timedelta() - timedelta(duration.years * 365 + duration.months * 30 + days)
        return duration.years, duration.months, days, clock
    return 0, 0, duration.days, duration - timedelta(duration.days)
