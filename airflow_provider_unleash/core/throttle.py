"""How many requests may be in flight, and when all of them pause."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from airflow_provider_unleash.exceptions import RateLimitError, TransientError, TransportError

T = TypeVar("T")

# Seconds. The delay before a retry doubles from the first to the second.
MIN_BACKOFF = 0.5
MAX_BACKOFF = 30.0
# Seconds. If the server asks for a longer pause, the task fails and frees its worker slot; Airflow retries it later.
MAX_PAUSE = 60.0


def backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures in a row, with full jitter."""
    # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    return random.uniform(0.0, min(MAX_BACKOFF, MIN_BACKOFF * 2 ** max(0, failures - 1)))


class Throttle:
    """
    Limits the requests in flight to what the API accepts.

    A refusal (429, or ``Retry-After`` with another status) pauses all requests, for the longer of ``Retry-After`` and
    the backoff, and halves the limit; each round of successes raises it by one again. Refusals count for all requests
    together and any success resets the count, so that many threads do not use up the retries of one page.
    """

    def __init__(self, limit: int, max_refusals: int, on_pause: Callable[[float], object]) -> None:
        self._max_limit = self._limit = limit
        self._max_refusals = max_refusals
        self._on_pause = on_pause
        self._in_flight = self._successes = self._pauses = self._refusals = 0
        self._resume_at = self._refused_at = 0.0
        lock = threading.RLock()  # reentrant, because wake() may run in a signal handler
        self._slot_free = threading.Condition(lock)
        self._cancelled = threading.Condition(lock)

    def run(self, send: Callable[[], T], is_cancelled: Callable[[], bool]) -> T:
        sent_at = self._acquire(is_cancelled)
        try:
            result = send()
        except TransientError as error:
            if is_refusal(error):
                self._refuse(error, sent_at)
            raise
        else:
            self._succeed()
            return result
        finally:
            with self._slot_free:
                self._in_flight -= 1
                self._slot_free.notify()

    def _acquire(self, is_cancelled: Callable[[], bool]) -> float:
        with self._slot_free:
            while True:
                if is_cancelled():
                    raise TransportError("The request was cancelled", reason="cancelled")
                pause = self._resume_at - time.monotonic()
                if pause <= 0 and self._in_flight < self._limit:
                    self._in_flight += 1
                    self._slot_free.notify()  # there may be more than one
                    return time.monotonic()
                self._slot_free.wait(pause if pause > 0 else None)

    def _refuse(self, error: TransientError, sent_at: float) -> None:
        with self._slot_free:
            now = time.monotonic()
            # Requests that were in flight at the first refusal are part of the same refusal.
            if sent_at >= self._refused_at:
                self._refused_at = now
                self._pauses += 1
                self._refusals += isinstance(error, RateLimitError)
                self._limit = max(1, self._limit // 2)
                self._successes = 0
            paused_until = max(self._resume_at, now)
            self._resume_at = max(paused_until, now + self._pause(error))
            self._on_pause(self._resume_at - paused_until)

    def _pause(self, error: TransientError) -> float:
        return 0.0 if is_long_pause(error) else max(error.retry_after or 0.0, backoff(self._pauses))

    def _succeed(self) -> None:
        with self._slot_free:
            self._pauses = self._refusals = 0
            self._successes += 1
            if self._successes >= self._limit < self._max_limit:
                self._limit += 1
                self._successes = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the API refused so often in a row that the task should fail and Airflow retry it later."""
        return self._refusals >= self._max_refusals

    def sleep(self, seconds: float, is_cancelled: Callable[[], bool]) -> None:
        with self._cancelled:
            self._cancelled.wait_for(is_cancelled, seconds)

    def wake(self) -> None:
        """Let waiting requests check whether they are cancelled."""
        with self._slot_free:
            self._slot_free.notify_all()
            self._cancelled.notify_all()


def is_long_pause(error: TransientError) -> bool:
    """Return whether the server asks for a longer pause than the task should wait for."""
    return (error.retry_after or 0.0) > MAX_PAUSE


def is_refusal(error: TransientError) -> bool:
    """Return whether the API asks all requests to slow down, rather than failing this one."""
    return isinstance(error, RateLimitError) or error.retry_after is not None
