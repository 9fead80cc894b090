"""The pages of one window: read ahead, in order, and all of one snapshot."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core.pages import PageReader, ReadAhead, Snapshot, restart_on_change
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.exceptions import NotFoundError, SnapshotChangedError, UnexpectedResponseError
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.simulator.data import format_timestamp

KEYS = ("source_file_name", "timestamp", "count")

pytestmark = pytest.mark.usefixtures("quick_retries", "no_threads_left")


def page(number: int, total: int = 6, rows: list[tuple[Any, ...]] | None = None) -> Page:
    """Return a page with two rows of its own, or with the given rows."""
    if rows is None:
        rows = [("W1?token=a", f"2020-08-17T12:00:{number:02}.{row}00Z", number) for row in range(2)]
    return Page(number, total, KEYS, rows)


def parse(number: int, page: Any) -> Page:
    """Return what the tests' ``fetch`` returns in the place of a response."""
    return page


class Api:
    """
    An API that logs which pages are fetched.

    :param answer: returns a page by its number and by how often it was fetched before.
    """

    def __init__(self, answer: Callable[[int, int], Page] = lambda number, before: page(number)) -> None:
        self.answer = answer
        self.fetched: list[int] = []
        self.cancelled = threading.Event()

    def fetch(self, number: int) -> Page:
        before = self.fetched.count(number)
        self.fetched.append(number)
        return self.answer(number, before)

    def open(self, concurrency: int = 1) -> PageReader:
        ahead = ReadAhead(concurrency)

        def close() -> None:
            self.cancelled.set()
            ahead.close()

        return PageReader(self.fetch, parse, close, ahead)

    def read(self, concurrency: int = 1, start: int = 1) -> list[int]:
        with self.open(concurrency) as reader:
            return [page.number for page in reader.iter_from(start)]


# ---- order and concurrency -----------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1])
def test_a_window_of_one_page_is_fetched_once(total: int) -> None:
    api = Api(lambda number, before: page(number, total))
    assert api.read() == [1]
    assert api.fetched == [1]


@pytest.mark.parametrize(
    ("total", "start", "fetched"),
    [
        (2, 1, [1, 2, 1, 2]),
        (6, 1, [1, 6, 2, 3, 4, 5, 1, 6]),
        (6, 4, [1, 6, 4, 5, 1, 6]),
        (6, 6, [1, 6, 1, 6]),
        (6, 7, [1, 6, 1, 6]),
    ],
)
def test_both_ends_are_fetched_before_and_after_the_pages_between(total: int, start: int, fetched: list[int]) -> None:
    api = Api(lambda number, before: page(number, total))
    assert api.read(start=start) == list(range(start, total + 1))
    assert api.fetched == fetched


@pytest.mark.parametrize("concurrency", [2, 3, 8, 50])
def test_pages_come_in_order_whichever_arrives_first_and_both_ends_are_fetched_last(concurrency: int) -> None:
    def answer(number: int, before: int) -> Page:
        time.sleep(0.02 * (number % 3))
        return page(number, 12)

    api = Api(answer)
    assert api.read(concurrency) == list(range(1, 13))
    assert api.fetched[:2] == [1, 12]
    assert sorted(api.fetched[2:-2]) == list(range(2, 12))
    assert sorted(api.fetched[-2:]) == [1, 12]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_slow_consumer_limits_the_pages_read_ahead(concurrency: int) -> None:
    api = Api(lambda number, before: page(number, 40))
    with api.open(concurrency) as reader:
        pages = reader.iter_from(1)
        for _ in range(5):
            consumed = next(pages).number
            time.sleep(0.02)
            assert max(number for number in api.fetched if number != 40) <= consumed + 2 * concurrency


def test_the_snapshot_is_the_total_and_the_digests_of_both_ends() -> None:
    with Api().open() as reader:
        assert (reader.first, reader.last) == (page(1), page(6))
        assert reader.snapshot == Snapshot(6, page(1).digest, page(6).digest)


@pytest.mark.parametrize("number", [1, 6])
def test_an_error_of_the_first_or_last_page_is_raised_before_others_are_fetched(number: int) -> None:
    def answer(fetched: int, before: int) -> Page:
        if fetched == number:
            raise NotFoundError("no such page")
        return page(fetched)

    api = Api(answer)
    with pytest.raises(NotFoundError):
        api.read(4)
    assert set(api.fetched) <= {1, 6}


@pytest.mark.parametrize("number", [3, 5])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_error_of_a_page_is_raised_and_cancels_the_others(number: int, concurrency: int) -> None:
    def answer(fetched: int, before: int) -> Page:
        if fetched == number:
            raise NotFoundError("no such page")
        return page(fetched)

    api = Api(answer)
    with pytest.raises(NotFoundError):
        api.read(concurrency)
    assert api.cancelled.is_set()


# ---- changes and repetitions ---------------------------------------------------------------------

NEW_ROW = ("W1?token=a", "2020-08-17T12:00:09Z", 9)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("number", "before", "total", "rows"),
    [
        *((number, 0, total, None) for number in (2, 5, 6) for total in (5, 7)),
        *((number, 1, 7, None) for number in (1, 6)),
        *((number, 1, 6, [NEW_ROW]) for number in (1, 6)),
        *((number, 1, 6, []) for number in (1, 6)),
        *((number, 1, 6, [*page(number).rows, NEW_ROW]) for number in (1, 6)),
    ],
)
def test_another_total_or_another_row_at_either_end_is_a_changed_snapshot(
    number: int, before: int, total: int, rows: Any, concurrency: int
) -> None:
    changed = {(number, before): page(number, total, rows)}
    api = Api(lambda *fetch: changed.get(fetch) or page(fetch[0]))
    with pytest.raises(SnapshotChangedError, match=f"page {number}"):
        api.read(concurrency)


def test_new_tokens_another_row_order_or_another_spelling_of_timestamps_are_not_a_change() -> None:
    def answer(number: int, before: int) -> Page:
        rows = [(f"W1?token={before}", stamp, count) for _, stamp, count in page(number).rows]
        if before:
            rows = [(name, stamp.replace("Z", "+00:00"), count) for name, stamp, count in reversed(rows)]
        return page(number, 6, rows)

    assert Api(answer).read() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("is_spelled_anew", [False, True])
@pytest.mark.parametrize(
    ("original", "repeated", "total"),
    [(1, 2, 6), (1, 6, 6), (1, 2, 2), (1, 4, 6), (6, 2, 6), (6, 3, 6), (2, 3, 6), (4, 5, 6), (2, 5, 6)],
)
def test_a_page_that_repeats_another_one_is_unexpected(
    original: int, repeated: int, total: int, is_spelled_anew: bool
) -> None:
    def answer(number: int, before: int) -> Page:
        rows = page(original if number == repeated else number).rows
        if is_spelled_anew:
            rows = [(f"W1?token={number}", *rest) for _, *rest in rows][:: 1 if number % 2 else -1]
        return page(number, total, rows)

    api = Api(answer)
    with pytest.raises(UnexpectedResponseError, match=f"Pages {original} and {repeated} have the same rows") as caught:
        api.read()
    assert caught.value.page == repeated


def test_a_page_that_repeats_another_one_with_its_times_spelled_anew_is_unexpected() -> None:
    def answer(number: int, before: int) -> Page:
        zone = "Z" if number % 2 else "+00:00"
        return Page(number, 6, ("frame_number", "timestamp"), [(1, f"2020-08-17T12:00:00{zone}"), (2, None)])

    with pytest.raises(UnexpectedResponseError, match="Pages 1 and 6 have the same rows"):
        Api(answer).read()


@pytest.mark.parametrize("stamp", ["2020-08-17T12:00:00Z", None, {"seconds": 1}])
def test_pages_of_the_same_time_with_other_rows_are_not_repeated(stamp: Any) -> None:
    api = Api(lambda number, before: page(number, rows=[(f"W{number}", stamp, 1)]))
    assert api.read() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_an_empty_page_before_the_last_one_is_unexpected(number: int) -> None:
    api = Api(lambda fetched, before: page(fetched, rows=[] if fetched == number else None))
    with pytest.raises(UnexpectedResponseError, match=f"Page {number} of 6 has no rows") as caught:
        api.read()
    assert caught.value.page == number


# ---- a row that arrives while pages are read -----------------------------------------------------

NOON = 1_597_665_600_000
EARLIER = [{"timestamp": format_timestamp(NOON + index), "count": index} for index in range(9)]
NEW = {"timestamp": format_timestamp(NOON + 900), "count": 99}


def with_new_row(index: int) -> list[dict[str, Any]]:
    """Return ten rows, which are five pages of two like the nine of ``EARLIER``."""
    return [*EARLIER[:index], NEW, *EARLIER[index:]]


@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize("index", range(10))
def test_pages_from_before_and_after_a_row_is_added_or_removed_are_never_mixed(index: int, is_removed: bool) -> None:
    before, after = (with_new_row(index), EARLIER)[:: 1 if is_removed else -1]
    for changes_at in range(1, 9):
        fetches = count(1)

        def fetch(number: int) -> Page:
            records = after if next(fetches) >= changes_at else before  # noqa: B023  # called within the iteration
            rows = [tuple(record.values()) for record in records[2 * number - 2 : 2 * number]]
            return Page(number, 5, tuple(NEW), rows)

        try:
            with PageReader(fetch, parse, threading.Event().set, ReadAhead(1)) as reader:
                read = [record for page in reader.iter_from(1) for record in page.records()]
        except SnapshotChangedError:
            assert changes_at in range(2, 8)
        else:
            assert read == (before if changes_at == 8 else after)
            assert changes_at in (1, 2, 8)


@pytest.mark.parametrize("kind", ["slow", "reset", "500", "garbage"])
@pytest.mark.parametrize("late_page", [1, 3, 5])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_row_that_arrives_while_a_page_is_late_is_not_lost_and_no_row_comes_twice(
    kind: str, late_page: int, concurrency: int
) -> None:
    later = with_new_row(3)
    responses, arrives_at, changes = count(1), 0, 0

    def clock() -> float:  # the simulator asks for the time once for each page that it serves
        return (NOON + (900 if next(responses) >= arrives_at else 500)) / 1000

    with (
        Simulator(rows={"W1": later}, page_size=2, clock=clock, sessions_from=NOON) as sim,
        UnleashClient(sim.api_key, sim.base_url, page_concurrency=concurrency) as client,
    ):
        for arrives_at in range(1, 9):  # noqa: B007  # the clock uses it
            sim.clear_faults()
            sim.add_fault(Fault(kind, page=late_page, seconds=0.05))
            responses = count(1)
            try:
                assert list(client.iter_records("W1", NOON, NOON + 1000)) in (EARLIER, later)
            except SnapshotChangedError:
                changes += 1
    assert changes


def test_a_window_is_read_again_until_its_pages_stay_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with Simulator(page_size=100, growing=1000) as sim, UnleashClient(sim.api_key, sim.base_url) as client:
        window = (sim.devices[0], 1_768_176_000_000, 1_768_262_400_000)
        assert client.get_records(*window) == sim.rows(*window)
    assert "Reading the window again" in caplog.text


@pytest.mark.parametrize(("error", "calls"), [(SnapshotChangedError, 4), (UnexpectedResponseError, 1)])
def test_only_a_changed_snapshot_is_read_again_up_to_three_times(error: type[Exception], calls: int) -> None:
    called = []

    def read() -> None:
        called.append(1)
        raise error("other rows")

    with pytest.raises(error):
        restart_on_change(read)
    assert len(called) == calls
