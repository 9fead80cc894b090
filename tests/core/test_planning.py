"""A plan covers devices and span, and is never larger than allowed."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_unleash.core.coverage import Coverage, read_coverage
from airflow_provider_unleash.core.manifest import Entry, publish_manifest
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.names import object_name
from airflow_provider_unleash.core.planning import (
    MINUTE_MS,
    DeviceWindow,
    cut_to_grid,
    halve,
    plan_account_gaps,
    plan_device_gaps,
    plan_steps,
    split_by_size,
)
from airflow_provider_unleash.core.windows import STEPS, parse_step
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.sample_day import DAY, DAY_END, DAY_MS, DAY_START, HOUR_MS, NEXT_DAY

UTC = timezone.utc
YEAR = Window(DAY_START, DAY_START + 365 * DAY_MS)
DAY_WINDOW = Window(DAY_START, DAY_END)


def test_windows_are_in_order_of_time():
    windows = plan_windows(DAY, NEXT_DAY, every="hour")
    assert plan_steps(DAY_WINDOW, STEPS["hour"], UTC, max_windows=48, devices=2) == windows


@pytest.mark.parametrize(
    ("every", "devices", "limit", "words"),
    [
        ("day", 1, 364, ["365 windows, but max_windows=364", '"week", which makes 53']),
        ("day", 40, 1024, ["= 14,600 tasks, but max_windows=1024", '"month", which makes 480']),
        ("PT0.001S", 40, 1024, ["40 devices × 31,536,000,000 windows", '"month", which makes 480']),
        ("week", 100, 1024, ["= 5,300 tasks", '"quarter", which makes 400']),
        ("month", 1024, 1024, ["= 12,288 tasks", '"year", which makes 1024']),
        ("month", 1025, 1024, ["= 12,300 tasks", "no step fits", "max_map_length"]),
        (None, 1025, 1024, ["1,025 devices × 1 window = 1,025 tasks", "no step fits"]),
    ],
)
def test_too_many_windows_are_an_error_that_names_a_step_that_fits(every, devices, limit, words):
    with pytest.raises(InvalidArgumentError) as caught:
        plan_steps(YEAR, parse_step(every), UTC, max_windows=limit, devices=devices)
    assert caught.value.argument == "max_windows"
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("every", ["day", "week", "month", "quarter", "year"])
def test_max_windows_is_the_largest_allowed_number(every):
    windows = plan_windows(YEAR.start, YEAR.end, every=every)
    number = 40 * len(windows)
    plan = partial(plan_steps, YEAR, STEPS[every], UTC, devices=40)
    assert plan(max_windows=number) == windows
    with pytest.raises(InvalidArgumentError, match=f"= {number:,} tasks, but max_windows={number - 1}"):
        plan(max_windows=number - 1)


@pytest.mark.parametrize("limit", [40, 80, 480, 1024, 2120, 14600])
def test_the_suggested_step_is_the_shortest_that_fits(limit):
    with pytest.raises(InvalidArgumentError) as caught:
        plan_steps(YEAR, STEPS["hour"], UTC, max_windows=limit, devices=40)
    [suggested] = [name for name in STEPS if f'every="{name}"' in str(caught.value)]
    assert suggested == next(
        name for name in STEPS if 40 * len(plan_windows(YEAR.start, YEAR.end, every=name)) <= limit
    )


def test_without_devices_there_are_no_windows_but_a_warning(caplog):
    assert plan_steps(YEAR, None, UTC, max_windows=1, devices=0) == []
    assert caplog.messages == ["There are no devices, so there are no windows"]


class EvenRate:
    """Counts the pages of rows that come at an even rate, and the requests for them."""

    def __init__(self, pages_per_hour: float) -> None:
        self.rate, self.requests, self.open = pages_per_hour / HOUR_MS, 0, 0

    def __call__(self, planned: Sequence[DeviceWindow]) -> Generator[int, None, None]:
        self.open += 1
        try:
            for _, window in planned:
                self.requests += 1
                yield round((window.end_ms - window.start_ms) * self.rate)
        finally:
            self.open -= 1


def split(count_pages: EvenRate, max_pages: int, max_windows: int = 1024) -> list[DeviceWindow]:
    whole = [("W2", DAY_WINDOW), ("W1", DAY_WINDOW)]
    return split_by_size(whole, count_pages, max_pages=max_pages, max_windows=max_windows)


def test_a_window_that_fits_stays_whole_and_costs_one_request():
    rate = EvenRate(1)
    assert split(rate, 24) == [("W2", DAY_WINDOW), ("W1", DAY_WINDOW)]
    assert rate.requests == 2


def test_a_window_that_is_too_large_is_halved_until_its_parts_fit():
    rate = EvenRate(2)
    parts = split(rate, 6)
    assert [device_id for device_id, _ in parts] == ["W2"] * 8 + ["W1"] * 8
    assert [(window.start_ms - DAY_START) / HOUR_MS for _, window in parts] == [*range(0, 24, 3)] * 2
    assert rate.requests == 2 * (1 + 2 + 4 + 8)
    assert split(EvenRate(2), 6, max_windows=16) == parts
    with pytest.raises(InvalidArgumentError, match="max_windows=15"):
        split(EvenRate(2), 6, max_windows=15)


@pytest.mark.parametrize("limit", [2, 3, 10, 100])
def test_too_many_parts_are_an_error_after_a_bounded_number_of_requests(limit):
    rate = EvenRate(1e6)
    with pytest.raises(InvalidArgumentError, match="raise max_pages") as caught:
        split(rate, 1, limit)
    assert caught.value.argument == "max_windows"
    assert rate.requests < 2 * limit
    assert rate.open == 0


def test_a_window_shorter_than_two_minutes_is_not_cut_but_logged(caplog):
    window = Window(DAY_START + 1, DAY_START + 7 * MINUTE_MS + 30_000)
    with caplog.at_level(logging.WARNING):
        split = split_by_size([("W1", window)], EvenRate(1e6), max_pages=1, max_windows=100)
    parts = [part for _, part in split]
    assert (parts[0].start_ms, parts[-1].end_ms) == (window.start_ms, window.end_ms)
    assert all(0 < part.end_ms - part.start_ms < 2 * MINUTE_MS for part in parts)
    assert ["any shorter" in message for message in caplog.messages] == [True] * len(parts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(2 * MINUTE_MS, 40 * DAY_MS))
def test_halves_are_equal_parts_of_the_window_cut_at_a_whole_minute(offset, length):
    start = DAY_START + offset
    first, last = halve(Window(start, start + length))
    assert (first.start_ms, last.end_ms) == (start, start + length)
    assert start < first.end_ms == last.start_ms < start + length
    assert first.end_ms % MINUTE_MS == 0
    assert 0 <= (last.end_ms - last.start_ms) - (first.end_ms - first.start_ms) <= 2 * MINUTE_MS


# ---- gaps ----------------------------------------------------------------------------------------

FOUR_DAYS = [Window(DAY_START + n * DAY_MS, DAY_START + (n + 1) * DAY_MS) for n in range(4)]


def write_manifest(
    dst: Any, window: Window, devices: Sequence[str], *, days_later: float = 10, rows: int = 5, is_split: bool = True
) -> None:
    extracted_at = format_ms(int(window.end_ms + days_later * DAY_MS))
    bounds = (format_ms(window.start_ms), format_ms(window.end_ms))
    entries = {
        device: Entry(
            device, *bounds, rows, 1, 9, object_name(device if is_split else None, window, "jsonl"), extracted_at
        )
        for device in devices
    }
    publish_manifest(dst, devices, window, entries)


def coverage_of(dst: Any, settle: timedelta = timedelta(0)) -> Coverage:
    end = FOUR_DAYS[-1].end_ms
    return read_coverage(dst, device_ids=["W1", "W2"], start=DAY_START, end=end, every="day", settle=settle)


def test_gaps_are_the_windows_that_are_missing_or_unsettled(tmp_path):
    dst = UPath(tmp_path)
    write_manifest(dst, FOUR_DAYS[0], ["W1", "W2"])
    write_manifest(dst, FOUR_DAYS[1], ["W1"])
    write_manifest(dst, FOUR_DAYS[2], ["W1", "W2"], days_later=1)
    coverage = coverage_of(dst, settle=timedelta(days=2))
    assert plan_account_gaps(coverage) == [
        (["W2"], FOUR_DAYS[1]),
        (["W1", "W2"], FOUR_DAYS[2]),
        (["W1", "W2"], FOUR_DAYS[3]),
    ]
    assert [(device_id, FOUR_DAYS.index(window)) for device_id, window in plan_device_gaps(coverage)] == [
        *(("W1", 2), ("W1", 3)),
        *(("W2", 1), ("W2", 2), ("W2", 3)),
    ]


def test_an_empty_window_is_no_gap_and_a_second_plan_is_empty(tmp_path):
    dst = UPath(tmp_path)
    for window in FOUR_DAYS:
        write_manifest(dst, window, ["W1", "W2"], rows=0)
    assert plan_account_gaps(coverage_of(dst)) == plan_device_gaps(coverage_of(dst)) == []


def test_a_gap_in_one_object_of_all_devices_is_the_whole_window(tmp_path):
    dst = UPath(tmp_path)
    for window in FOUR_DAYS[:3]:
        write_manifest(dst, window, ["W1", "W2"] if window != FOUR_DAYS[1] else ["W1"], is_split=False)
    assert plan_account_gaps(coverage_of(dst)) == [(None, FOUR_DAYS[1]), (None, FOUR_DAYS[3])]


@pytest.mark.parametrize(
    ("every", "start", "end"),
    [
        ("hour", "2026-03-29T12:00+02:00", "2026-05-15T14:00+02:00"),
        ("day", "2026-03-29T00:00+01:00", "2026-05-15T00:00+02:00"),
        ("week", "2026-03-23T00:00+01:00", "2026-05-11T00:00+02:00"),
        ("month", "2026-03-01T00:00+01:00", "2026-05-01T00:00+02:00"),
        ("quarter", "2026-01-01T00:00+01:00", "2026-04-01T00:00+02:00"),
        ("year", "2026-01-01T00:00+01:00", "2026-01-01T00:00+01:00"),
        ("PT90M", "2026-03-29T12:34+02:00", "2026-05-15T14:05+02:00"),
    ],
)
def test_a_span_of_gaps_has_whole_windows_of_the_calendar(every, start, end):
    given = [datetime.fromisoformat(text) for text in ("2026-03-29T12:34+02:00", "2026-05-15T14:05+02:00")]
    span = Window(*(int(moment.timestamp() * 1000) for moment in given))
    step = parse_step(every)
    assert step is not None
    cut = cut_to_grid(span, step, ZoneInfo("Europe/Berlin"))
    assert (cut.start, cut.end) == (datetime.fromisoformat(start), datetime.fromisoformat(end))
