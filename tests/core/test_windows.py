"""Which window a run extracts, rule by rule; how a span is cut; and which rows a window keeps."""

from __future__ import annotations

import logging
import re
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pendulum
import pytest

from airflow_provider_unleash.core.moments import format_ms, parse_moment
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.core.windows import (
    HalfOpenPages,
    RowCounts,
    check_partition_format,
    count_steps,
    partition_key,
)
from airflow_provider_unleash.exceptions import InvalidArgumentError, PermanentError, WindowError
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.pages import sample
from tests.support.run_times import resolve

UTC = timezone.utc
BERLIN, SYDNEY = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Sydney")
# Lord Howe changes its clocks by half an hour, Apia has skipped a day, and a day of Santiago may begin at 01:00.
LORD_HOWE, APIA, SANTIAGO = ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Pacific/Apia"), ZoneInfo("America/Santiago")
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
ONE_DAY = timedelta(days=1)


def utc(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[misc,arg-type]


DAY = utc(2020, 8, 17)
NEXT_DAY = utc(2020, 8, 18)


def hours(window: Window) -> float:
    return (window.end_ms - window.start_ms) / HOUR_MS


# All times that a run can have, each in another month.
ALL: dict[str, Any] = {
    "start": "2020-01-10",
    "end": "2020-01-11",
    "data_interval_start": utc(2020, 2, 10),
    "data_interval_end": utc(2020, 2, 11),
    "window": ONE_DAY,
    "partition_date": utc(2020, 3, 10),
    "logical_date": utc(2020, 4, 11),
    "run_after": utc(2020, 5, 11),
}
EMPTY_INTERVAL = {"data_interval_start": utc(2020, 2, 11), "data_interval_end": utc(2020, 2, 11)}


def all_but(*names: str, **others: Any) -> dict[str, Any]:
    return {**{name: value for name, value in ALL.items() if name not in names}, **others}


@pytest.mark.parametrize(
    ("times", "rule", "start"),
    [
        (ALL, "start_end", utc(2020, 1, 10)),
        (all_but("start", "end"), "data_interval", utc(2020, 2, 10)),
        (all_but("start", "end", "window"), "data_interval", utc(2020, 2, 10)),
        *((all_but(start=missing, end=missing), "data_interval", utc(2020, 2, 10)) for missing in ("", "None", " ")),
        (all_but("start", "end", **EMPTY_INTERVAL), "partition_date", utc(2020, 3, 10)),
        (all_but("start", "end", "data_interval_start", "data_interval_end"), "partition_date", utc(2020, 3, 10)),
        (all_but("start", "end", "partition_date", **EMPTY_INTERVAL), "window", utc(2020, 4, 10)),
        (all_but("start", "end", "partition_date", "data_interval_start"), "window", utc(2020, 4, 10)),
        ({"window": ONE_DAY, **EMPTY_INTERVAL, "run_after": DAY}, "window", utc(2020, 2, 10)),
        ({"window": ONE_DAY, "logical_date": utc(2020, 4, 11), "run_after": DAY}, "window", utc(2020, 4, 10)),
        ({"window": ONE_DAY, "run_after": utc(2020, 5, 11)}, "window", utc(2020, 5, 10)),
    ],
)
def test_the_first_rule_that_applies_wins(times: dict[str, Any], rule: str, start: datetime) -> None:
    start_ms = int(start.timestamp() * 1000)
    window = resolve(**times)
    assert window == Window(start_ms, start_ms + DAY_MS, rule)
    words = {"start_end": "start and end", "data_interval": "data interval", "partition_date": "partition date"}
    assert str(window).startswith(f"[{start:%Y-%m-%d}T00:00:00.000Z, ")
    assert words.get(rule, "counted back from the run") in str(window)


@pytest.mark.parametrize(("given", "missing"), [("start", "end"), ("end", "start")])
def test_start_without_end_is_an_error_and_so_is_the_reverse(given: str, missing: str) -> None:
    with pytest.raises(WindowError, match=f"{missing} is missing") as caught:
        resolve(**{**ALL, missing: ""})
    assert caught.value.argument == missing


@pytest.mark.parametrize(
    ("times", "problem"),
    [
        ({"data_interval_start": DAY, "data_interval_end": DAY, "logical_date": DAY, "run_after": DAY}, "an empty"),
        ({"data_interval_start": NEXT_DAY, "data_interval_end": DAY}, "an empty"),
        ({"data_interval_start": DAY, "data_interval_end": DAY + timedelta(microseconds=999)}, "an empty"),
        ({"logical_date": DAY, "run_after": DAY}, "no"),
        ({"partition_date": DAY, "run_after": DAY, "window": "None"}, "no"),
        ({"window": ONE_DAY}, "no"),
        ({}, "no"),
    ],
)
def test_a_run_without_a_window_is_an_error_never_an_empty_or_endless_window(
    times: dict[str, Any], problem: str
) -> None:
    with pytest.raises(WindowError, match=f"^This run has {problem} data interval") as caught:
        resolve(**times)
    assert isinstance(caught.value, (PermanentError, ValueError))
    assert caught.value.argument == "window"


def test_the_error_names_the_kind_of_run_and_three_solutions_that_work() -> None:
    with pytest.raises(WindowError) as caught:
        resolve(logical_date=DAY, run_kind="asset_triggered")
    message = str(caught.value)
    assert message.startswith("This asset-triggered run has no data interval")
    assert re.findall(r"^([123])\. .*", message, re.MULTILINE) == ["1", "2", "3"]
    assert 'schedule=CronDataIntervalTimetable("@daily", timezone="UTC")' in message
    assert "window=timedelta(days=1)" in message
    assert hours(resolve(**dict(re.findall(r'(start|end)="([^"]+)"', message)))) == 24


def test_a_partition_without_a_date_is_never_taken_for_the_time_of_its_run() -> None:
    with pytest.raises(WindowError, match="partition 'a-day'"):
        resolve(window=ONE_DAY, run_after=NEXT_DAY, undated_partition="a-day")
    assert resolve(start=DAY, end=NEXT_DAY, undated_partition="a-day").start == DAY


@pytest.mark.parametrize("end", ["2020-08-17", DAY, 1597622400000, DAY + timedelta(microseconds=999)])
def test_start_may_equal_end(end: Any) -> None:
    assert resolve(start=DAY, end=end) == Window(MIDNIGHT, MIDNIGHT, "start_end")


@pytest.mark.parametrize("end", ["2020-08-16", DAY - timedelta(microseconds=1), 1597622399999])
def test_start_after_end_is_an_error_that_shows_both(end: Any) -> None:
    with pytest.raises(WindowError, match=r"start 2020-08-17T00:00:00\.000Z is after end 2020-08-16T"):
        resolve(start=DAY, end=end)


@pytest.mark.parametrize(
    ("start", "end", "start_ms", "end_ms"),
    [
        (datetime(2020, 8, 17), datetime(2020, 8, 18), MIDNIGHT, MIDNIGHT + DAY_MS),
        (DAY, DAY + timedelta(milliseconds=1), MIDNIGHT, MIDNIGHT + 1),
        (DAY + timedelta(microseconds=999), DAY + timedelta(microseconds=2001), MIDNIGHT, MIDNIGHT + 2),
        (pendulum.datetime(2020, 8, 17, 2, tz="Europe/Berlin"), NEXT_DAY, MIDNIGHT, MIDNIGHT + DAY_MS),
    ],
)
def test_a_data_interval_is_floored_to_milliseconds(start: datetime, end: datetime, start_ms: int, end_ms: int) -> None:
    window = resolve(data_interval_start=start, data_interval_end=end)
    assert window == Window(start_ms, end_ms, "data_interval")
    assert window.start.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("length", "differs"),
    [
        *((ONE_DAY, False), (timedelta(hours=23), False), (timedelta(hours=25), False), ("P1D", False)),
        *((timedelta(hours=22, minutes=59), True), (timedelta(hours=25, milliseconds=1), True), ("PT1H", True)),
        *((timedelta(days=7), True), (pendulum.duration(months=1), True), (None, False), ("", False)),
    ],
)
def test_a_window_more_than_an_hour_off_the_data_interval_is_logged_and_not_used(
    length: Any, differs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    window = resolve(data_interval_start=DAY, data_interval_end=NEXT_DAY, window=length)
    assert window == Window(MIDNIGHT, MIDNIGHT + DAY_MS, "data_interval")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * differs
    assert caplog.text.count("1 day, 0:00:00 long, but window=") == differs


def test_a_window_is_compared_with_the_data_interval_in_the_dags_time_zone(caplog: pytest.LogCaptureFixture) -> None:
    february = {"data_interval_start": datetime(2020, 2, 1, tzinfo=BERLIN)}
    resolve(**february, data_interval_end=datetime(2020, 3, 1, tzinfo=BERLIN), window="P1M", timezone=BERLIN)
    assert caplog.messages == []


@pytest.mark.parametrize("length", ["1d", 5, timedelta(0)])
def test_an_invalid_window_is_an_error_even_if_another_rule_wins(length: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^window="):
        resolve(window=length, start=DAY, end=NEXT_DAY)


@pytest.mark.parametrize("length", [timedelta.max, timedelta(days=5_000_000), "P99999999999D"])
def test_a_window_longer_than_the_calendar_is_an_error(length: Any) -> None:
    for times in ({"run_after": DAY}, {"data_interval_start": DAY, "data_interval_end": NEXT_DAY}):
        with pytest.raises(InvalidArgumentError):
            resolve(window=length, **times)


@pytest.mark.parametrize(
    ("length", "end"),
    [
        *((ONE_DAY, utc(2020, 2, 29)), (pendulum.duration(months=1), utc(2020, 3, 28)), ("P1W", utc(2020, 3, 6))),
        *((pendulum.duration(years=1), utc(2021, 2, 28)), ("P1M1D", utc(2020, 3, 29))),
        (pendulum.duration(months=1, days=-1), utc(2020, 3, 27)),
    ],
)
def test_the_window_of_a_partition_starts_at_its_date(length: Any, end: datetime) -> None:
    window = resolve(partition_date=utc(2020, 2, 28), window=length)
    assert (window.start, window.end, window.rule) == (utc(2020, 2, 28), end, "partition_date")


def test_naive_times_of_a_run_are_utc_and_microseconds_are_floored() -> None:
    window = resolve(run_after=datetime(2020, 8, 18, 0, 0, 0, 1999), window=ONE_DAY, timezone=BERLIN)
    assert (window.start_ms, window.end_ms) == (MIDNIGHT + 1, MIDNIGHT + DAY_MS + 1)


ONE_HOUR = Window(MIDNIGHT, MIDNIGHT + HOUR_MS)
END, INSIDE, BEFORE = "2020-08-17T01:00:00Z", "2020-08-17T00:30:00Z", "2020-08-16T00:00:00Z"


def page(*timestamps: Any, number: int = 1) -> Page:
    return Page(number, 1, ("row", "timestamp"), list(enumerate(timestamps)))


def keep(window: Window, *pages: Page, device_id: str = "W1") -> tuple[list[Page], RowCounts]:
    half_open = HalfOpenPages(device_id, window, pages)
    return list(half_open), half_open.counts


@pytest.mark.parametrize(
    ("timestamp", "counted", "kept"),
    [
        *((f"2020-08-17T{time}", None, True) for time in ("00:00:00.000Z", "00:59:59.999999Z", "02:30:00+02:00")),
        *((f"2020-08-17T{time}", "rows_at_end", False) for time in ("01:00:00.000Z", "01:00:00Z", "01:00:00")),
        *((f"2020-08-17T{time}", "rows_at_end", False) for time in ("03:00:00.000+02:00", "01:00:00.000999Z")),
        *((f"{time}Z", "rows_after_end", True) for time in ("2020-08-17T01:00:00.001", "2021-08-17T01:00:00.000")),
        *((f"{time}Z", "rows_before_start", True) for time in ("2020-08-16T23:59:59.999999", "1969-12-31T23:59:59")),
        *((value, None, True) for value in (None, "", "x", "2020-08-17", 12.5, True, [], [END], {"a": 1})),
        *((value, "rows_at_end", False) for value in (1597626000000, "1597626000000", 1597626000, 1597626000.0)),
        *(
            (1597625999999, None, True),
            (1597626000001, "rows_after_end", True),
            ("1597622399", "rows_before_start", True),
        ),
        *(("2016-12-31T23:59:60Z", "rows_before_start", True), ("2020-08-17T00:59:60Z", None, True)),
    ],
)
def test_only_rows_stamped_exactly_end_are_dropped(timestamp: Any, counted: str | None, kept: bool) -> None:
    for neighbor in ("2020-08-17T00:10:00Z", ["unhashable"]):
        [found], counts = keep(ONE_HOUR, page(neighbor, timestamp))
        assert [row[0] for row in found.rows] == [0, 1][: 1 + kept]
        expected = RowCounts(pages=1, rows=1 + kept)
        if counted:
            setattr(expected, counted, 1)
        assert counts == expected


@pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_timestamp_outside_the_calendar_is_kept(timestamp: str) -> None:
    [found], _ = keep(ONE_HOUR, page(timestamp))
    assert [row[0] for row in found.rows] == [0]


def test_kept_rows_keep_their_order_page_and_index_in_the_response() -> None:
    pages, counts = keep(
        ONE_HOUR, page(END, INSIDE, END, BEFORE, None, END), page(INSIDE, number=2), page(END, number=3)
    )
    assert [[row[0] for row in found.rows] for found in pages] == [[1, 3, 4], [0], []]
    assert [found.number for found in pages] == [1, 2, 3]
    assert [pages[0].row_index(index) for index in range(3)] == [1, 3, 4]
    assert counts == RowCounts(pages=3, rows=4, rows_before_start=1, rows_after_end=0, rows_at_end=4)


@pytest.mark.parametrize(
    "given",
    [
        *(page(INSIDE, None), Page(1, 0, (), []), Page(1, 1, ("timestamp",), []), Page(1, 1, ("a",), [(1,), (2,)])),
        Page(1, 1, ("a", "timestamp"), [(1, msgspec.UNSET), (msgspec.UNSET, msgspec.UNSET)], ragged=True),
    ],
)
def test_a_page_without_rows_at_end_is_returned_unchanged(given: Page) -> None:
    [found], counts = keep(ONE_HOUR, given)
    assert found is given
    assert counts == RowCounts(pages=1, rows=len(given.rows))


@pytest.mark.parametrize(("outside", "warned"), [(0, False), (3, False), (4, True), (5, True)])
def test_an_api_that_ignores_the_window_is_warned_of(
    outside: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _, counts = keep(ONE_HOUR, page(*[BEFORE] * outside, *[INSIDE] * 2), page(INSIDE, number=2))
    counts.warn_if_not_as_asked(ONE_HOUR)
    assert ("Most rows are stamped outside the window" in caplog.text) is warned
    assert (f"rows_before_start={outside}, rows_after_end=0" in caplog.text) is warned


@pytest.mark.parametrize(
    ("device_ids", "others"),
    [(["W1", None], 0), (["W2", "W1"], 1), (["W2", "W1", 3], 2), ([{"id": "W1"}, "w1"], 2)],
)
def test_an_api_that_ignores_the_device_is_warned_of(
    device_ids: list[Any], others: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, counts = keep(ONE_HOUR, Page(1, 1, ("device_id",), [(device_id,) for device_id in device_ids]))
    assert counts == RowCounts(pages=1, rows=len(device_ids), rows_of_other_devices=others)
    counts.warn_if_not_as_asked(ONE_HOUR)
    assert ("Most rows have another device_id" in caplog.text) is (2 * others > len(device_ids))


def test_the_rows_of_a_device_whose_id_is_a_number_are_its_own() -> None:
    half_open = HalfOpenPages("17", ONE_HOUR, [Page(1, 1, ("device_id",), [(17,), ("17",)])])
    assert len(list(half_open)) == 1
    assert half_open.counts.rows_of_other_devices == 0


def test_if_start_equals_end_no_rows_are_dropped() -> None:
    pages, counts = keep(Window(MIDNIGHT, MIDNIGHT), page("2020-08-17T00:00:00Z", BEFORE, INSIDE, None))
    assert len(pages[0].rows) == 4
    assert counts == RowCounts(pages=1, rows=4, rows_before_start=1, rows_after_end=1, rows_at_end=0)


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize("length", [0, HOUR_MS])
def test_rows_stamped_before_their_window_as_in_the_documented_example_are_kept(endpoint: Any, length: int) -> None:
    window = resolve(start=1597630156000, end=1597630156000 + length)
    [found], counts = keep(window, sample(endpoint, endpoint), device_id="Wabcdb35be35bb72")
    assert len(found.rows) == 2
    assert counts == RowCounts(pages=1, rows=2, rows_before_start=2)


def test_pages_are_read_one_at_a_time_and_counted_as_they_are_read() -> None:
    read = []

    def pages() -> Any:
        for number in (1, 2, 3):
            read.append(number)
            yield page(INSIDE, END, number=number)

    half_open = HalfOpenPages("W1", ONE_HOUR, pages())
    assert (read, half_open.counts.pages) == ([], 0)
    iterator = iter(half_open)
    next(iterator)
    assert (read, half_open.counts) == ([1], RowCounts(pages=1, rows=1, rows_at_end=1))
    assert len(list(iterator)) == 2
    assert half_open.counts.rows == 3


def bounds(windows: list[Window]) -> list[str]:
    return [format_ms(window.start_ms)[:16] for window in windows] + [format_ms(windows[-1].end_ms)[:16]]


@pytest.mark.parametrize(
    ("every", "cuts"),
    [
        *((every, ["2020-08-17T00:00"]) for every in ("day", ONE_DAY, "P1D")),
        *(("PT21H", ["2020-08-16T21:00"]), ("week", [])),
    ],
    ids=str,
)
def test_steps_count_from_the_start_and_the_last_window_may_be_shorter(every: Any, cuts: list[str]) -> None:
    windows = plan_windows("2020-08-16", "2020-08-17T18:00Z", every=every)
    assert bounds(windows) == ["2020-08-16T00:00", *cuts, "2020-08-17T18:00"]


def test_an_empty_span_has_no_windows() -> None:
    assert plan_windows(DAY, DAY, every="day") == []
    assert count_steps(Window(MIDNIGHT, MIDNIGHT), ONE_DAY, UTC) == 0


@pytest.mark.parametrize(
    ("start", "zone", "lengths"),
    [
        (datetime(2026, 3, 28, tzinfo=BERLIN), None, [24, 23, 24]),
        (datetime(2026, 10, 24, tzinfo=BERLIN), None, [24, 25, 24]),
        (datetime(2026, 3, 28, tzinfo=BERLIN), "UTC", [24, 24, 24]),
        ("2026-03-27T23:00:00Z", "Europe/Berlin", [24, 23, 24]),
        ("2026-03-28", "Europe/Berlin", [24, 23, 24]),  # naive is UTC: 1 a.m. in Berlin
        ("2026-03-28", None, [24, 24, 24]),
        ("2026-03-28T00:00:00+01:00", None, [24, 24, 24]),  # an offset is not a zone with clock changes
        (datetime(2026, 4, 4, tzinfo=LORD_HOWE), None, [24, 24.5, 24]),
        (datetime(2026, 10, 3, tzinfo=LORD_HOWE), None, [24, 23.5, 24]),
        (datetime(2026, 3, 28, 2, 30, tzinfo=BERLIN), None, [24, 23, 24]),  # 2:30 does not exist on the 29th
        (datetime(2011, 12, 28, tzinfo=APIA), None, [24, 24, 24]),  # the 30th does not exist
    ],
    ids=str,
)
def test_days_follow_the_time_zone_of_the_start_or_the_given_one(
    start: Any, zone: str | None, lengths: list[float]
) -> None:
    end = parse_moment(start, "start") + 5 * DAY_MS  # type: ignore[operator]
    assert list(map(hours, plan_windows(start, end, every="day", timezone=zone)))[:3] == lengths


def test_a_step_that_leads_outside_the_calendar_ends_with_the_span() -> None:
    [window] = plan_windows("9999-01-01", "9999-12-31", every="year")
    assert window.end == utc(9999, 12, 31)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(({"every": every}, "every") for every in ("fortnight", "Day", None, "", 5, ["day"], "P0D", -ONE_DAY)),
        ({"every": pendulum.duration(months=1, days=-29)}, "every"),
        ({"timezone": "Mars/Base"}, "timezone"),
        *((arguments, "start") for arguments in ({"start": None, "end": None}, {"start": None})),
        *(({"start": "2020-08-19"}, "start"), ({"end": 1_597_622_400}, "end")),
    ],
    ids=str,
)
def test_the_error_about_an_impossible_plan_names_the_argument(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named) as caught:
        plan_windows(**{"start": DAY, "end": NEXT_DAY, "every": "day", **arguments})
    assert caught.value.argument == named


# ---- partition keys ---------------------------------------------------------------------------------


def window_in(zone: Any, start: str, end: str) -> Window:
    first, last = (datetime.fromisoformat(text).replace(tzinfo=zone) for text in (start, end))
    return Window(int(first.timestamp() * 1000), int(last.timestamp() * 1000))


@pytest.mark.parametrize(
    ("zone", "start", "end", "partition_format", "key"),
    [
        (UTC, "2026-01-12", "2026-01-13", "%Y-%m-%d", "2026-01-12"),
        (UTC, "2026-01-12", "2026-01-13", "%Y%m%d", "20260112"),
        (UTC, "2026-01-12T07:00", "2026-01-12T08:00", "%Y-%m-%dT%H", "2026-01-12T07"),
        (UTC, "2026-01-01", "2026-02-01", "%Y-%m", "2026-01"),
        (UTC, "2026-01-01", "2027-01-01", "%Y", "2026"),
        (UTC, "2026-01-12", "2026-01-13", "%Y-%m-%dT%H:%M:%S", "2026-01-12T00:00:00"),
        (UTC, "2026-01-12", "2026-01-19", "%Y-%m-%d", "2026-01-12"),
        (BERLIN, "2026-01-12", "2026-01-13", "%Y-%m-%d", "2026-01-12"),
        (BERLIN, "2026-03-29", "2026-03-30", "%Y-%m-%d", "2026-03-29"),
        (BERLIN, "2026-10-25", "2026-10-26", "%Y-%m-%d", "2026-10-25"),
        (SYDNEY, "2026-01-12", "2026-01-13", "%Y-%m-%d", "2026-01-12"),
        (SANTIAGO, "2026-09-06", "2026-09-07", "%Y-%m-%d", "2026-09-06"),
    ],
)
def test_the_partition_key_is_the_start_of_the_window_in_the_time_zone(zone, start, end, partition_format, key):
    check_partition_format(partition_format)
    assert partition_key(window_in(zone, start, end), partition_format, zone) == key


@pytest.mark.parametrize(
    ("zone", "start", "end", "partition_format"),
    [
        (UTC, "2026-01-12T07:00", "2026-01-12T08:00", "%Y-%m-%d"),
        (UTC, "2026-01-12T00:00", "2026-01-12T01:00", "%Y-%m-%d"),
        (UTC, "2026-01-12T23:00", "2026-01-13T00:00", "%Y-%m-%d"),
        (UTC, "2026-01-12T12:00", "2026-01-13T12:00", "%Y-%m-%d"),
        (UTC, "2026-01-12", "2026-01-12", "%Y-%m-%d"),
        (UTC, "2026-01-12", "2026-02-12", "%Y-%m"),
        (UTC, "2026-02-05", "2026-02-06", "%Y-%d"),
        (BERLIN, "2026-01-12T01:00", "2026-01-13T01:00", "%Y-%m-%d"),
    ],
)
def test_a_window_that_shares_its_partition_key_with_others_is_an_error(zone, start, end, partition_format):
    check_partition_format(partition_format)
    with pytest.raises(WindowError, match="shares its partition key") as caught:
        partition_key(window_in(zone, start, end), partition_format, zone)
    assert caught.value.argument == "partition_format"


def test_an_hour_that_occurs_twice_needs_the_offset_in_its_partition_key():
    start = parse_moment("2026-10-25T02:00:00+02:00", "start")
    hours = [Window(start + hour * HOUR_MS, start + (hour + 1) * HOUR_MS) for hour in range(2)]
    keys = [partition_key(hour, "%Y-%m-%dT%H%z", BERLIN) for hour in hours]
    assert keys == ["2026-10-25T02+0200", "2026-10-25T02+0100"]
    for hour in hours:
        with pytest.raises(WindowError, match="add %z"):
            partition_key(hour, "%Y-%m-%dT%H", BERLIN)


@pytest.mark.parametrize(
    "partition_format",
    ["", " ", "day", "%d", "%m-%d", "%H:%M", "%Q", "%", "%Y-%Y", "{{ ds }}", None, 1, timedelta(days=1)],
)
def test_a_partition_format_that_does_not_name_a_date_is_an_error(partition_format):
    with pytest.raises(InvalidArgumentError, match="partition_format=") as caught:
        check_partition_format(partition_format)
    assert caught.value.argument == "partition_format"
