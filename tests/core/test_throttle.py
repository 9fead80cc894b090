"""How many requests are in flight, and when all of them pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from airflow_provider_unleash.core import throttle as throttle_module
from airflow_provider_unleash.core.throttle import Throttle, backoff
from airflow_provider_unleash.exceptions import RateLimitError, ServerError, TransientError, TransportError

pytestmark = pytest.mark.usefixtures("quick_retries")


def new_throttle(limit: int, max_refusals: int = 5) -> Throttle:
    return Throttle(limit, max_refusals, on_pause=lambda seconds: None)


def never() -> bool:
    return False


def refuse(retry_after: float | None = None) -> Callable[[], None]:
    return fail(RateLimitError("429", retry_after=retry_after))


def fail(error: TransientError) -> Callable[[], None]:
    def send() -> None:
        raise error

    return send


def run_all(throttle: Throttle, *sends: Callable[[], object]) -> None:
    """Send all at once, and wait for them."""
    with ThreadPoolExecutor(len(sends)) as pool:
        for future in [pool.submit(throttle.run, send, never) for send in sends]:
            with suppress(TransientError):
                future.result()


def assert_max_in_flight(throttle: Throttle, requests: int, expected: int) -> None:
    """Check that so many of these requests are in flight at the same time at most, and once."""
    changed = threading.Condition()
    in_flight = most = 0

    def send() -> None:
        nonlocal in_flight, most
        with changed:
            in_flight += 1
            most = max(most, in_flight)
            changed.notify_all()
            changed.wait_for(lambda: most >= expected, 30)
        time.sleep(0.02)  # others have the time to exceed the limit
        with changed:
            in_flight -= 1

    run_all(throttle, *[send] * requests)
    assert most == expected


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_limit_requests_are_in_flight(limit):
    assert_max_in_flight(new_throttle(limit), 3 * limit, limit)


def test_a_refusal_halves_the_requests_in_flight_and_successes_raise_them_again():
    throttle = new_throttle(8)
    run_all(throttle, refuse())
    assert_max_in_flight(throttle, 8, 4)
    for _ in range(4):
        run_all(throttle, refuse())
    assert_max_in_flight(throttle, 2, 1)
    run_all(throttle, *[lambda: None] * (1 + 2 + 3 + 4 + 5 + 6 + 7))
    assert_max_in_flight(throttle, 16, 8)


@pytest.mark.parametrize("error", [RateLimitError("429", retry_after=0.3), ServerError("503", retry_after=0.3)])
def test_a_retry_after_pauses_all_requests_and_is_reported(error):
    pauses: list[float] = []
    throttle = Throttle(4, 5, pauses.append)
    began = time.monotonic()
    run_all(throttle, fail(error))
    run_all(throttle, *[lambda: None] * 4)
    assert time.monotonic() - began >= 0.3
    assert sum(pauses) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("error", [RateLimitError("429", retry_after=0), ServerError("503", retry_after=0.001)])
def test_a_retry_after_shorter_than_the_backoff_does_not_shorten_it(error, monkeypatch):
    monkeypatch.setattr(throttle_module, "backoff", lambda failures: 0.05 * failures)
    pauses: list[float] = []
    throttle = Throttle(4, 5, pauses.append)
    began = time.monotonic()
    run_all(throttle, fail(error))
    run_all(throttle, fail(error))
    run_all(throttle, lambda: None)
    assert time.monotonic() - began >= 0.15
    assert pauses == pytest.approx([0.05, 0.1], abs=0.01)


@pytest.mark.parametrize("error", [ServerError("500"), TransportError("reset"), RateLimitError("429", retry_after=61)])
def test_other_errors_and_a_retry_after_of_more_than_a_minute_do_not_pause(error):
    throttle = new_throttle(1)
    run_all(throttle, fail(error))
    began = time.monotonic()
    run_all(throttle, lambda: None)
    assert time.monotonic() - began < 10


def test_refusals_of_requests_in_flight_together_count_once_and_a_success_resets_them():
    throttle = new_throttle(8, max_refusals=2)
    together = threading.Barrier(8)

    def refuse_together() -> None:
        together.wait()
        raise RateLimitError("429")

    run_all(throttle, *[refuse_together] * 8)
    assert not throttle.is_exhausted
    run_all(throttle, lambda: None)
    run_all(throttle, refuse())
    assert not throttle.is_exhausted
    run_all(throttle, refuse())
    assert throttle.is_exhausted


def test_only_429_exhausts_the_throttle():
    throttle = new_throttle(1, max_refusals=1)
    run_all(throttle, fail(ServerError("503", retry_after=0)), fail(TransportError("reset")))
    assert not throttle.is_exhausted
    run_all(throttle, refuse())
    assert throttle.is_exhausted


def test_cancelling_ends_requests_that_wait_for_a_pause_or_a_slot():
    throttle, cancelled = new_throttle(1), threading.Event()
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        holds.set()
        release.wait()

    with ThreadPoolExecutor(2) as pool:
        holder = pool.submit(throttle.run, hold, never)
        assert holds.wait(30)
        waiter = pool.submit(throttle.run, lambda: None, cancelled.is_set)
        assert not waiter.done()
        cancelled.set()
        throttle.wake()
        with pytest.raises(TransportError, match="cancelled"):
            waiter.result(30)
        release.set()
        holder.result(30)
    run_all(throttle, refuse(retry_after=30))
    with pytest.raises(TransportError, match="cancelled"):
        throttle.run(lambda: None, cancelled.is_set)
    began = time.monotonic()
    throttle.sleep(30, cancelled.is_set)
    assert time.monotonic() - began < 10


def test_the_backoff_doubles_up_to_its_maximum_with_full_jitter(monkeypatch):
    monkeypatch.setattr(throttle_module, "MIN_BACKOFF", 0.5)
    monkeypatch.setattr(throttle_module, "MAX_BACKOFF", 30.0)
    for failures, limit in ((1, 0.5), (2, 1.0), (5, 8.0), (7, 30.0), (100, 30.0)):
        delays = [backoff(failures) for _ in range(500)]
        assert 0 <= min(delays) < 0.2 * limit
        assert 0.8 * limit < max(delays) <= limit
