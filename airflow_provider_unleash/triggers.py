"""Triggers that wait for new sessions in the triggerer, with one poll for all that wait on the same connection."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
from collections.abc import AsyncIterator, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_unleash.core.moments import now_ms, to_epoch_ms
from airflow_provider_unleash.core.sessions import SessionList
from airflow_provider_unleash.cursor import list_pending
from airflow_provider_unleash.exceptions import InvalidArgumentError, PermanentError, TransientError, TransportError
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, missing_connection, open_client
from airflow_provider_unleash.metrics import report_poll, report_traffic

if TYPE_CHECKING:
    from airflow_provider_unleash.client import UnleashClient

try:
    from airflow.triggers.base import BaseEventTrigger
except ImportError:  # Airflow 2.11, which does not have watchers either
    BaseEventTrigger = BaseTrigger  # type: ignore[misc, assignment]

log = logging.getLogger(__name__)

# A deferred task fails after this many failed polls in a row.
MAX_FAILED_POLLS = 10
# The longest backoff after a failed poll, seconds.
MAX_POLL_BACKOFF = 600.0
# The longest Retry-After that polls obey, seconds: a wrong header must not stop all polls for good.
MAX_RETRY_AFTER = 3600.0
# Seconds for a poll, whatever the connection allows for a response.
POLL_TIMEOUT = 330.0
# An event carries up to this many sessions; its consumer gets the others from the API and its cursor.
MAX_EVENT_SESSIONS = 500
# The shortest interval between polls, seconds, whatever poke_interval says.
_MIN_INTERVAL = 0.1
# The most jitter, seconds. Without jitter, a thousand triggers that resume at once would block the event loop.
_MAX_JITTER = 1.0


@dataclass(frozen=True)
class PollResult:
    """
    The sessions that the API lists, or the error after ``failures`` failed polls in a row.

    ``asked_at`` is on the event loop's clock, ``pause`` is the seconds until the next poll.
    """

    asked_at: float
    sessions: SessionList
    error: Exception | None = None
    failures: int = 0
    pause: float = 0.0

    def log_error(self) -> None:
        log.warning(
            "Poll failed (%d in a row): %s: %s; next poll in %.1f s",
            *(self.failures, type(self.error).__name__, self.error, self.pause),
        )


class _SharedPoll:
    """
    Lists the sessions once per interval for all that wait; makes no requests if nothing waits.

    After failed polls the pause grows, or is as long as the API asks for.
    """

    def __init__(self, conn_id: str, interval: float) -> None:
        self._conn_id = conn_id
        self._interval = interval
        self._latest = PollResult(-math.inf, SessionList([]))
        self._due = -math.inf
        self._waiting = 0
        self._in_flight: asyncio.Task[None] | None = None
        self._done = asyncio.Event()

    async def after(self, moment: float) -> PollResult:
        """Return the latest poll if it began after this time of the event loop's clock, else wait for the next one."""
        self._waiting += 1
        try:
            while self._latest.asked_at <= moment:
                pause = self._due - asyncio.get_running_loop().time()
                if pause > 0:
                    await asyncio.sleep(pause + (_jitter(self._interval) if self._waiting > 1 else 0.0))
                else:
                    if self._in_flight is None:
                        self._done.clear()
                        self._in_flight = asyncio.create_task(self._poll())
                    await self._done.wait()
            return self._latest
        finally:
            self._waiting -= 1
            if not self._waiting and self._in_flight is not None:
                self._in_flight.cancel()
                self._in_flight = None

    async def _poll(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        sessions = SessionList([])
        error: Exception | None = RuntimeError("The poll was cancelled")
        clients: list[UnleashClient] = []
        is_over = threading.Event()
        try:
            # Not asyncio.to_thread: masking a connection's secrets talks to the supervisor, which Airflow 3.0 and 3.1
            # do on the triggerer's event loop. Only asgiref's threads can call back into that loop.
            list_sessions = sync_to_async(_list_sessions, thread_sensitive=False, executor=_executor)
            async with asyncio.timeout(POLL_TIMEOUT):
                sessions = await list_sessions(await get_async_connection(self._conn_id), clients, is_over)
            error = None
        except AirflowNotFoundException as caught:
            error = missing_connection(caught, self._conn_id)
        except TimeoutError:
            error = TransportError(f"The poll took longer than {POLL_TIMEOUT:.0f} s", reason="timeout")
        except Exception as caught:  # of any kind: each waiting trigger decides what to do with it
            error = caught
        finally:
            is_over.set()
            for client in clients:  # its thread may still be reading
                client.cancel()
            # Wake the waiting triggers even if this poll was cancelled, unless no trigger is left.
            if self._in_flight is asyncio.current_task():
                failures = 0 if error is None else self._latest.failures + 1
                pause = self._interval if error is None else self._backoff(error, failures)
                self._latest = PollResult(asked_at, sessions, error, failures, pause)
                self._due = asked_at + pause
                self._in_flight = None
                self._done.set()

    def _backoff(self, error: Exception, failures: int) -> float:
        retry_after = error.retry_after if isinstance(error, TransientError) else None
        backoff = min(MAX_POLL_BACKOFF, self._interval * 2.0 ** min(failures - 1, 30))
        return max(self._interval, backoff, min(MAX_RETRY_AFTER, retry_after or 0.0))


# Threads of their own: slow responses must not hold up the event loop's threads, which also look up host names.
_executor = ThreadPoolExecutor(32, "unleash-poll")


def _list_sessions(connection: Any, clients: list[UnleashClient], is_over: threading.Event) -> SessionList:
    report_poll(in_triggerer=True)
    # One attempt: between attempts a thread would only sleep, and the event loop can wait without one.
    with open_client(connection, max_attempts=1, on_close=partial(report_traffic, in_triggerer=True)) as client:
        clients.append(client)
        if is_over.is_set():  # the poll ended before there was a client to cancel
            client.cancel()
        return SessionList(client.list_sessions())


_polls: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, float], _SharedPoll]] = (
    WeakKeyDictionary()
)


async def _iter_polls(conn_id: str, poke_interval: float, *, sleep_first: bool) -> AsyncIterator[PollResult]:
    """Yield a poll's result once per interval, forever, errors included."""
    interval = max(_MIN_INTERVAL, poke_interval)
    loop = asyncio.get_running_loop()
    polls = _polls.setdefault(loop, WeakValueDictionary())
    poll = polls.setdefault((conn_id, interval), _SharedPoll(conn_id, interval))
    moment = -math.inf
    if sleep_first:
        moment = loop.time()
        await asyncio.sleep(interval + _jitter(interval))
    while True:
        result = await poll.after(moment)
        moment = result.asked_at
        yield result


def _jitter(interval: float) -> float:
    return random.uniform(0.0, min(_MAX_JITTER, interval / 10))


def _serialize(trigger: BaseTrigger, *names: str) -> tuple[str, dict[str, Any]]:
    path = f"{type(trigger).__module__}.{type(trigger).__qualname__}"
    return path, {name: getattr(trigger, name) for name in names}


class UnleashNewSessionsTrigger(BaseTrigger):
    """
    Fire once there are new sessions; :class:`.UnleashNewSessionsSensor` defers to it.

    The event is ``{"status": "success", "sessions": [...]}``, ids oldest first. After a permanent error or ten failed
    polls in a row, it is ``{"status": "error", "error": "<class name>", "message": "...", "retry_after": ...}``.

    The first poll comes after one interval. If the event came before the worker had released the task, the scheduler
    would fail it as a task that ended without running.

    :param unleash_conn_id: connection of type "Unleash live".
    :param since: earliest start of a new session, epoch milliseconds.
    :param until: end of the starts, exclusive, epoch milliseconds.
    :param known_sessions: ids that are not new; if given, ``since`` and ``until`` are ignored.
    :param min_sessions: number of new sessions to wait for.
    :param min_age: a session counts only if it started at least this long ago, seconds.
    :param poke_interval: seconds between polls, which all triggers of the same connection and interval share.
    """

    def __init__(
        self,
        *,
        unleash_conn_id: str = DEFAULT_CONN_ID,
        since: int | None = None,
        until: int | None = None,
        known_sessions: list[str] | None = None,
        min_sessions: int = 1,
        min_age: float = 0.0,
        poke_interval: float = 60.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Airflow
        self.unleash_conn_id = unleash_conn_id
        self.since = since
        self.until = until
        self.known_sessions = known_sessions
        self.min_sessions = min_sessions
        self.min_age = min_age
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        bounds = ("since", "until", "known_sessions", "min_sessions", "min_age")
        return _serialize(self, "unleash_conn_id", *bounds, "poke_interval")

    async def run(self) -> AsyncIterator[TriggerEvent]:
        failures = 0  # since this trigger started, unlike those of a shared poll
        async for result in _iter_polls(self.unleash_conn_id, self.poke_interval, sleep_first=True):
            error = result.error
            if error is None:
                failures = 0
                sessions = self._select(result.sessions)
                if len(sessions) >= self.min_sessions:
                    yield TriggerEvent({"status": "success", "sessions": sessions})
                    return
            else:
                failures += 1
                if isinstance(error, PermanentError) or failures >= MAX_FAILED_POLLS:
                    yield _error_event(error)
                    return
                result.log_error()

    def _select(self, sessions: SessionList) -> list[str]:
        return sessions.select(
            since_ms=self.since,
            until_ms=self.until,
            known_sessions=self.known_sessions,
            min_age_ms=round(self.min_age * 1000),
            now_ms=now_ms(),
        )


def _error_event(error: Exception) -> TriggerEvent:
    event = {"status": "error", "error": type(error).__name__, "message": str(error)}
    return TriggerEvent({**event, "retry_after": getattr(error, "retry_after", None)})


class UnleashNewSessionsEventTrigger(BaseEventTrigger):
    """
    Fire an event each time the set of new sessions changes; for an ``AssetWatcher`` (Airflow 3.0 and newer).

    New are the sessions since ``since`` that at least one consumer's :class:`.SessionCursor` has not handled yet
    (Airflow 3.3). Without a cursor, and below 3.3, all sessions since ``since`` are new. An event fires when they
    differ from those of the last poll, and again every ``reminder`` seconds while there are any, because Airflow can
    lose an event. Events are delivered at least once. Treat an event as a signal only: the cursor says what to do.

    The payload is ``{"sessions": [...], "truncated": false}``: ids oldest first, only the latest 500. ``truncated`` is
    true if there are more. Errors are logged and the next poll waits longer; a watcher never ends, because it has no
    task to fail.

    :param unleash_conn_id: connection of type "Unleash live".
    :param since: earliest start of a new session, epoch milliseconds; if not given, all listed sessions are new.
    :param min_age: a session counts only if it started at least this long ago, seconds.
    :param poke_interval: seconds between polls, which all triggers of the same connection and interval share.
    :param reminder: seconds until the event fires again for sessions that are not handled yet.
    :raises InvalidArgumentError: if an argument cannot be used; when the DAG is parsed.
    """

    def __init__(
        self,
        *,
        unleash_conn_id: str = DEFAULT_CONN_ID,
        since: int | None = None,
        min_age: float = 0.0,
        poke_interval: float = 60.0,
        reminder: float = 3600.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Airflow
        self.unleash_conn_id = unleash_conn_id
        self.since = since
        self.min_age = min_age
        self.poke_interval = poke_interval
        self.reminder = reminder
        if since:
            to_epoch_ms(since, "since")
        for name, value in {"min_age": min_age, "poke_interval": poke_interval, "reminder": reminder}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise InvalidArgumentError(f"{name}={value!r} must be a finite number of seconds >= 0", argument=name)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return _serialize(self, "unleash_conn_id", "since", "min_age", "poke_interval", "reminder")

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for event in self._watch(_iter_polls(self.unleash_conn_id, self.poke_interval, sleep_first=False)):
            yield event

    # From 3.3 on, Airflow polls once for all watchers with the same key, and calls these methods instead of run().

    def shared_stream_key(self) -> Hashable:
        return (self.serialize()[0], self.unleash_conn_id, self.poke_interval)

    @classmethod
    async def open_shared_stream(cls, kwargs: Mapping[str, Any]) -> AsyncIterator[PollResult]:
        """Yield poll results forever; each lists all sessions, so that a watcher that joins late misses none."""
        async for result in _iter_polls(kwargs["unleash_conn_id"], kwargs["poke_interval"], sleep_first=False):
            yield result

    async def filter_shared_stream(self, shared_stream: AsyncIterator[PollResult]) -> AsyncIterator[TriggerEvent]:
        async for event in self._watch(shared_stream):
            yield event

    async def _watch(self, results: AsyncIterator[PollResult]) -> AsyncIterator[TriggerEvent]:
        previous: list[str] = []
        emitted_at = -math.inf
        async for result in results:
            if result.error is not None:
                result.log_error()
                continue
            try:
                sessions = await self._list_new(result.sessions)
            except Exception as error:  # of any kind: if raised, Airflow would reopen the stream every two seconds
                log.warning("No event from this poll: %s: %s", type(error).__name__, error)
                continue
            if sessions and (sessions != previous or result.asked_at - emitted_at >= self.reminder):
                emitted_at = result.asked_at
                is_truncated = len(sessions) > MAX_EVENT_SESSIONS
                yield TriggerEvent({"sessions": sessions[-MAX_EVENT_SESSIONS:], "truncated": is_truncated})
            previous = sessions

    async def _list_new(self, sessions: SessionList) -> list[str]:
        try:
            pending = await list_pending(getattr(self, "asset_state_store", None), sessions)
        except ValueError:  # a trigger of several assets has several stores, and cannot tell them apart
            pending = sessions
        return pending.select(since_ms=self.since, min_age_ms=round(self.min_age * 1000), now_ms=now_ms())
