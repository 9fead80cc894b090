"""Run a function for each device in threads, and collect progress and failures."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from airflow_provider_unleash.core.progress import Progress
from airflow_provider_unleash.core.throttle import is_long_pause
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    PartialExtractionError,
    PermanentPartialExtractionError,
    RateLimitError,
    ServerError,
    TransientError,
    TransportError,
    UnleashError,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

# An error names this many devices.
_NAMED_DEVICES = 20
# So many failures in a row, without a success between them, are those of the API or the store, not of single devices.
_MAX_FAILURES_IN_A_ROW = 50
_IDLE_SECONDS = 1.0


class DeviceRunner:
    """
    Runs a function for each device in threads.

    :param max_ahead: the most devices that are running, or done but not yet consumed.
    """

    def __init__(self, workers: ThreadPoolExecutor, max_ahead: int) -> None:
        self._workers = workers
        self._max_ahead = max_ahead
        self._finished: SimpleQueue[tuple[str, Future[Any]]] = SimpleQueue()

    def iter_completed(
        self, work: Callable[[str], T], device_ids: Iterable[str], when_idle: Callable[[], None]
    ) -> Iterator[tuple[str, Future[T]]]:
        """Yield each device with its result as soon as there is one; call ``when_idle`` each second without any."""
        rest = iter(device_ids)
        running = 0
        while True:
            for device_id in islice(rest, self._max_ahead - running):
                self._workers.submit(work, device_id).add_done_callback(partial(self._add_finished, device_id))
                running += 1
            if not running:
                return
            try:
                completed = self._finished.get(timeout=_IDLE_SECONDS)
            except Empty:
                when_idle()
            else:
                yield completed
                running -= 1

    def _add_finished(self, device_id: str, future: Future[Any]) -> None:
        self._finished.put((device_id, future))

    def finish(self) -> Iterator[Future[Any]]:
        """Start no more devices, wait for those running, and yield the results not yet consumed."""
        self._workers.shutdown(cancel_futures=True)
        while not self._finished.empty():
            yield self._finished.get()[1]

    def iter_in_order(self, work: Callable[[str], T], device_ids: Iterable[str]) -> Iterator[tuple[str, Future[T]]]:
        rest = iter(device_ids)
        ahead: deque[tuple[str, Future[T]]] = deque()
        while True:
            for device_id in islice(rest, self._max_ahead - len(ahead)):
                ahead.append((device_id, self._workers.submit(work, device_id)))
            if not ahead:
                return
            yield ahead.popleft()


class Failures:
    """
    The errors of single devices; an error that concerns all devices is raised at once.

    :param devices: the number of all devices.
    :param remaining: the number of those that earlier tries have not landed.
    :param consequence: what an error says about the other devices.
    """

    def __init__(self, devices: int, remaining: int, consequence: str) -> None:
        self.errors: dict[str, Exception] = {}
        self._devices = devices
        self._progress = Progress("", "devices", remaining)
        self._consequence = consequence
        self._in_a_row = 0

    def add_success(self, rows: int) -> None:
        self._in_a_row = 0
        self._progress.add(rows)

    def add(self, device_id: str, error: Exception) -> None:
        if _concerns_all(error):
            raise error
        # Without traceback and context: their frames hold the pages of the device.
        error.__cause__ = error.__context__ = None
        self.errors[device_id] = error.with_traceback(None)
        if len(self.errors) <= _NAMED_DEVICES:
            log.warning("Device %r failed: %s", device_id, _describe(error))
        self._in_a_row += isinstance(error, (ServerError, TransportError, InvalidArgumentError))
        if self._in_a_row >= _MAX_FAILURES_IN_A_ROW:
            note = f"{self._in_a_row} devices failed one after the other, so the other {self._untried} were not tried. "
            raise self._error(note)

    def check(self) -> None:
        if self.errors:
            raise self._error()

    @property
    def _untried(self) -> int:
        return self._progress.total - self._progress.done - len(self.errors)

    def _error(self, note: str = "") -> UnleashError:
        errors = sorted(self.errors.items())
        named = [f"\n{device_id}: {_describe(error)}" for device_id, error in errors[:_NAMED_DEVICES]]
        if len(errors) > _NAMED_DEVICES:
            named.append(f"\nand {len(errors) - _NAMED_DEVICES} more")
        message = f"{len(errors)} of {self._devices} devices failed. {note}{self._consequence}.{''.join(named)}"
        facts = {"errors": self.errors, "untried": self._untried}
        transient = [error for error in self.errors.values() if isinstance(error, TransientError)]
        if not transient:
            return PermanentPartialExtractionError(message, **facts)
        delays = [error.retry_after for error in transient if error.retry_after]
        return PartialExtractionError(message, retry_after=max(delays, default=None), **facts)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _concerns_all(error: Exception) -> bool:
    if isinstance(error, UnleashError):
        if isinstance(error, InvalidArgumentError):
            return error.argument != "device_id" and error.path is None
        if isinstance(error, TransientError) and is_long_pause(error):
            return True
        if isinstance(error, TransportError):
            return error.reason in ("connection", "tls", "cancelled")
        return isinstance(error, (AuthenticationError, RateLimitError))
    return True
