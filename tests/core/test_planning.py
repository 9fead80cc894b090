"""A span in parts holds the rows of the whole, each once, and a plan is never larger than it may be."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from datetime import timezone
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core.planning import MINUTE_MS, DeviceWindow, plan_steps, split_by_size
from airflow_provider_unleash.core.windows import STEPS
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.sample_day import (
    DAY,
    DAY_END,
    DAY_MS,
    DAY_START,
    HOUR_MS,
    NEXT_DAY,
)

UTC = timezone.utc
YEAR = Window(DAY_START, DAY_START + 365 * DAY_MS)
DAY_WINDOW = Window(DAY_START, DAY_END)
CAMERAS = [f"W{number}" for number in range(40)]
Plan = list[dict[str, str]]


# ---- by steps ------------------------------------------------------------------------------------


def test_each_device_has_each_window_device_by_device_in_the_order_of_time() -> None:
    windows = plan_windows(DAY, NEXT_DAY, every="hour")
    planned = plan_steps(["W2", "W1"], DAY_WINDOW, STEPS["hour"], UTC, max_windows=48)
    assert [(one.device_id, one.window) for one in planned] == [
        (device_id, window) for device_id in ("W2", "W1") for window in windows
    ]


@pytest.mark.parametrize(
    ("every", "devices", "most", "words"),
    [
        ("day", 1, 364, ["1 devices in 365 windows", "365 windows, more than max_windows=364", '"week" makes 53']),
        ("day", 40, 1024, ["14600 windows, more than max_windows=1024", '"month" makes 480']),
        ("PT0.001S", 40, 1024, ["40 devices in 31536000000 windows", '"month" makes 480']),
        ("week", 100, 1024, ["5300 windows", '"quarter" makes 400']),
        ("month", 1024, 1024, ["12288 windows", '"year" makes 1024']),
        ("month", 1025, 1024, ["12300 windows", "no step fits", "max_map_length"]),
        (None, 1025, 1024, ["1025 devices in 1 windows", "no step fits"]),
    ],
)
def test_more_windows_than_may_be_are_refused_with_the_step_that_would_fit(
    every: Any, devices: int, most: int, words: list[str]
) -> None:
    from airflow_provider_unleash.core.windows import parse_step

    device_ids = [f"W{number}" for number in range(devices)]
    with pytest.raises(InvalidArgumentError) as caught:
        plan_steps(device_ids, YEAR, parse_step(every), UTC, max_windows=most)
    assert caught.value.argument == "max_windows"
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("every", ["day", "week", "month", "quarter", "year"])
def test_exactly_as_many_windows_as_may_be_are_planned_and_one_less_is_refused(every: str) -> None:
    number = 40 * len(plan_windows(YEAR.start, YEAR.end, every=every))
    make = partial(plan_steps, CAMERAS, YEAR, STEPS[every], UTC)
    assert len(make(max_windows=number)) == number
    with pytest.raises(InvalidArgumentError, match=f"{number} windows"):
        make(max_windows=number - 1)


@pytest.mark.parametrize("most", [40, 80, 480, 1024, 2120, 14600])
def test_the_step_that_a_refusal_names_is_the_shortest_that_fits(most: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        plan_steps(CAMERAS, YEAR, STEPS["hour"], UTC, max_windows=most)
    [named] = [name for name in STEPS if f'every="{name}"' in str(caught.value)]
    fitting = [name for name in STEPS if 40 * len(plan_windows(YEAR.start, YEAR.end, every=name)) <= most]
    assert named == fitting[0]
    assert len(plan_steps(CAMERAS, YEAR, STEPS[named], UTC, max_windows=most)) <= most


# ---- by size -------------------------------------------------------------------------------------


class Even:
    """Counts pages of rows that come at an even rate; remembers what it was asked."""

    def __init__(self, pages_of_an_hour: float) -> None:
        self.rate, self.asked, self.open = pages_of_an_hour / HOUR_MS, 0, 0

    def __call__(self, planned: Sequence[DeviceWindow]) -> Generator[int, None, None]:
        self.open += 1
        try:
            for one in planned:
                self.asked += 1
                yield round((one.window.end_ms - one.window.start_ms) * self.rate)
        finally:
            self.open -= 1


def split(count_pages: Even, max_pages: int, max_windows: int = 1024) -> list[DeviceWindow]:
    whole = [DeviceWindow(device_id, DAY_WINDOW) for device_id in ("W2", "W1")]
    return split_by_size(whole, count_pages, max_pages=max_pages, max_windows=max_windows)


def test_a_window_that_fits_stays_whole_and_costs_one_request() -> None:
    even = Even(1)
    assert split(even, 24) == [DeviceWindow("W2", DAY_WINDOW), DeviceWindow("W1", DAY_WINDOW)]
    assert even.asked == 2


def test_a_window_that_is_too_large_is_halved_until_it_fits() -> None:
    even = Even(2)
    parts = split(even, 6)
    assert [one.device_id for one in parts] == ["W2"] * 8 + ["W1"] * 8
    starts = [(one.window.start_ms - DAY_START) / HOUR_MS for one in parts]
    assert starts == [*range(0, 24, 3)] * 2
    assert even.asked == 2 * (1 + 2 + 4 + 8)


def test_exactly_as_many_parts_as_may_be_are_planned_and_one_less_is_refused() -> None:
    assert len(split(Even(2), 6, 16)) == 16
    with pytest.raises(InvalidArgumentError, match="max_windows=15"):
        split(Even(2), 6, 15)


@pytest.mark.parametrize("most", [2, 3, 10, 100])
def test_more_parts_than_may_be_are_refused_after_a_bounded_number_of_requests(most: int) -> None:
    even = Even(1e6)
    with pytest.raises(InvalidArgumentError, match="larger max_pages") as caught:
        split(even, 1, most)
    assert caught.value.argument == "max_windows"
    assert even.asked < 2 * most
    assert even.open == 0


def test_a_window_shorter_than_two_minutes_is_not_cut_any_more_and_said_to_be_large(
    caplog: pytest.LogCaptureFixture,
) -> None:
    window = Window(DAY_START + 1, DAY_START + 7 * MINUTE_MS + 30_000)
    with caplog.at_level(logging.WARNING):
        parts = split_by_size([DeviceWindow("W1", window)], Even(1e6), max_pages=1, max_windows=100)
    assert parts[0].window.start_ms == window.start_ms
    assert parts[-1].window.end_ms == window.end_ms
    assert all(0 < one.window.end_ms - one.window.start_ms < 2 * MINUTE_MS for one in parts)
    assert all(one.window.start_ms % MINUTE_MS == 0 for one in parts[1:])
    assert len(caplog.records) == len(parts)
    assert "not cut any more" in caplog.text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(2 * MINUTE_MS, 40 * DAY_MS))
def test_halves_are_the_window_cut_at_a_whole_minute(offset: int, length: int) -> None:
    start = DAY_START + offset
    first, last = DeviceWindow("W1", Window(start, start + length)).halves()
    assert (first.window.start_ms, last.window.end_ms) == (start, start + length)
    assert start < first.window.end_ms == last.window.start_ms < start + length
    assert first.window.end_ms % MINUTE_MS == 0
    assert 0 <= last.window.end_ms - last.window.start_ms - (first.window.end_ms - start) <= 2 * MINUTE_MS
