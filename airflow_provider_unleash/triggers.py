"""Triggers: wait for new sessions in the triggerer, where a thousand that wait cost the API what one costs."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow.providers.common.compat.connection import get_async_connection
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_unleash.core.moments import to_epoch_ms
from airflow_provider_unleash.core.sessions import SessionList
from airflow_provider_unleash.cursor import list_pending
from airflow_provider_unleash.exceptions import InvalidArgumentError, PermanentError, TransientError, UnleashError
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, open_client
from airflow_provider_unleash.metrics import report_poll, report_traffic

try:
    from airflow.triggers.base import BaseEventTrigger
except ImportError:  # Airflow 2.11, which has no watchers either
    BaseEventTrigger = BaseTrigger  # type: ignore[misc, assignment]

log = logging.getLogger(__name__)

# A deferred task gives up after so many failed polls in a row; the seconds between them grow up to the most.
FAILED_POLLS = 10
BACKOFF_MOST = 600.0
# The API may ask for longer, but a bad header must not stop everybody's polls for good.
LONGEST_PAUSE = 3600.0
# What an event carries at most; its receiver asks the API and its cursor for the rest.
MOST_SESSIONS = 500
# Seconds: no loop of these goes round faster, whatever interval it was given.
_LEAST_INTERVAL = 0.1
# Seconds: a thousand who wait for the same moment and go on in it would hold up the event loop.
_MOST_SPREAD = 1.0


# ---- one poll for many ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """
    What one poll brought: the sessions that the API lists, or why it brought none.

    :param asked_at: when, on the event loop's clock.
    :param failures: failed polls in a row.
    :param pause: seconds until the next poll at the earliest.
    """

    asked_at: float
    sessions: SessionList
    error: Exception | None = None
    failures: int = 0
    pause: float = 0.0

    def __str__(self) -> str:
        error = self.error
        return (
            f"Failed poll {self.failures} in a row: {type(error).__name__}: {error}; the next one in {self.pause:.1f} s"
        )


class _SharedPoll:
    """
    Asks for the sessions once an interval, whoever and how many wait for them.

    Nothing runs while nobody waits. Failed polls are further apart from each other, or as far as the API asks for.
    """

    def __init__(self, conn_id: str, interval: float) -> None:
        self._conn_id = conn_id
        self._interval = interval
        self._latest = Listing(-math.inf, SessionList([]))
        self._due = -math.inf
        self._waiting = 0
        self._flight: asyncio.Task[None] | None = None
        self._landed = asyncio.Event()

    async def after(self, moment: float) -> Listing:
        """Return what the API lists at some time after that moment of the loop's clock."""
        self._waiting += 1
        try:
            while self._latest.asked_at <= moment:
                pause = self._due - asyncio.get_running_loop().time()
                if pause > 0:
                    await asyncio.sleep(pause + (_spread(self._interval) if self._waiting > 1 else 0.0))
                else:
                    if self._flight is None:
                        self._landed.clear()
                        self._flight = asyncio.create_task(self._poll())
                    await self._landed.wait()
            return self._latest
        finally:
            self._waiting -= 1
            if not self._waiting and self._flight is not None:
                self._flight.cancel()
                self._flight = None

    async def _poll(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        sessions = SessionList([])
        error: Exception | None = RuntimeError("The poll was cancelled")
        try:
            connection = await get_async_connection(self._conn_id)
            # Not asyncio.to_thread: only asgiref's threads find back to the loop that Airflow 3.0 and 3.1 talk to
            # their supervisor on, which masking a connection's secrets does.
            sessions = await sync_to_async(_list_sessions, thread_sensitive=False)(connection)
            error = None
        except Exception as caught:  # whatever it is, it is for those who wait
            error = caught
        finally:
            # They go on after a cancellation, too; unless it was because nobody waits.
            if self._flight is asyncio.current_task():
                failures = 0 if error is None else self._latest.failures + 1
                pause = self._interval if error is None else self._backoff(error, failures)
                self._latest = Listing(asked_at, sessions, error, failures, pause)
                self._due = asked_at + pause
                self._flight = None
                self._landed.set()

    def _backoff(self, error: Exception, failures: int) -> float:
        asked_for = error.retry_after if isinstance(error, TransientError) else None
        grown = min(BACKOFF_MOST, self._interval * 2.0 ** min(failures - 1, 30))
        return max(self._interval, grown, min(LONGEST_PAUSE, asked_for or 0.0))


def _list_sessions(connection: Any) -> SessionList:
    report_poll(in_triggerer=True)
    # One attempt: between attempts a thread would only sleep, which an event loop does without one.
    with open_client(connection, max_attempts=1, on_close=partial(report_traffic, in_triggerer=True)) as client:
        return SessionList(client.list_sessions())


_polls: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, float], _SharedPoll]] = (
    WeakKeyDictionary()
)


def _shared_poll(conn_id: str, interval: float) -> _SharedPoll:
    polls = _polls.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return polls.setdefault((conn_id, interval), _SharedPoll(conn_id, interval))


async def _listings(conn_id: str, poke_interval: float, *, sleep_first: bool) -> AsyncIterator[Listing]:
    """Yield what the API lists, once an interval for ever; errors are yielded, too."""
    interval = max(_LEAST_INTERVAL, poke_interval)
    poll = _shared_poll(conn_id, interval)
    moment = -math.inf
    if sleep_first:
        moment = asyncio.get_running_loop().time()
        await asyncio.sleep(interval + _spread(interval))
    while True:
        listing = await poll.after(moment)
        moment = listing.asked_at
        yield listing


def _spread(interval: float) -> float:
    return random.uniform(0.0, min(_MOST_SPREAD, interval / 10))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# ---- a task that waits ---------------------------------------------------------------------------


class UnleashNewSessionsTrigger(BaseTrigger):
    """
    Fire once there are new sessions; what :class:`.UnleashNewSessionsSensor` defers to.

    Its one event is ``{"status": "success", "sessions": [...]}``, ids oldest first, or ``{"status": "error",
    "error": "<class name>", "message": "..."}`` after an error that repeating cannot help, or ten failed polls in a
    row. The first poll comes after one interval: an event that arrives before the worker has let go of the task would
    fail it (apache/airflow's scheduler takes it for a task that ended without having run).

    :param unleash_conn_id: connection of type «Unleash live».
    :param since: earliest start of a new session, epoch milliseconds.
    :param until: end of the starts, not part of them, epoch milliseconds.
    :param known_sessions: ids that are not new; the bounds don't matter then.
    :param min_sessions: how many new ones to wait for.
    :param min_age: a session counts once its start lies this far back, seconds.
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
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        self.unleash_conn_id = unleash_conn_id
        self.since = since
        self.until = until
        self.known_sessions = known_sessions
        self.min_sessions = min_sessions
        self.min_age = min_age
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes it again in the triggerer; the connection by its id only."""
        bounds = ("since", "until", "known_sessions", "min_sessions", "min_age")
        return _serialize(self, "unleash_conn_id", *bounds, "poke_interval")

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the one event."""
        failures = 0
        async for listing in _listings(self.unleash_conn_id, self.poke_interval, sleep_first=True):
            error = listing.error
            if error is None:
                failures = 0
                try:
                    new = self._select(listing.sessions)
                except UnleashError as misfit:
                    yield _error_event(misfit)
                    return
                if len(new) >= self.min_sessions:
                    yield TriggerEvent({"status": "success", "sessions": new})
                    return
            else:
                failures += 1
                if isinstance(error, PermanentError) or failures >= FAILED_POLLS:
                    yield _error_event(error)
                    return
                log.warning("%s", listing)

    def _select(self, sessions: SessionList) -> list[str]:
        return sessions.select(
            since_ms=self.since,
            until_ms=self.until,
            known_sessions=self.known_sessions,
            min_age_ms=round(self.min_age * 1000),
            now_ms=_now_ms(),
        )


def _error_event(error: Exception) -> TriggerEvent:
    return TriggerEvent({"status": "error", "error": type(error).__name__, "message": str(error)})


def _path_of(trigger: BaseTrigger) -> str:
    return f"{type(trigger).__module__}.{type(trigger).__qualname__}"


def _serialize(trigger: BaseTrigger, *names: str) -> tuple[str, dict[str, Any]]:
    return _path_of(trigger), {name: getattr(trigger, name) for name in names}


# ---- an asset that is watched --------------------------------------------------------------------


class UnleashNewSessionsEventTrigger(BaseEventTrigger):
    """
    Emit an event for each change in the set of new sessions; for an ``AssetWatcher`` (Airflow 3.0 and newer).

    New are the sessions since ``since`` that at least one consumer has not handled yet, as the consumers'
    :class:`.SessionCursor` say (Airflow 3.3); before there is one, and below 3.3, all since ``since``. There is an
    event where they differ from those of the last one, and again each ``reminder`` seconds while there are any, because
    Airflow can lose an event. So the event is a nudge, delivered at least once: what to do is what the cursor says.

    The payload is ``{"sessions": [...], "truncated": false}``: ids oldest first, the latest 500 at most; ``truncated``
    says that there are more. An error is logged and the next poll waits longer, for ever: a watcher has nobody to fail
    for.

    :param unleash_conn_id: connection of type «Unleash live».
    :param since: earliest start of a new session, epoch milliseconds; without, all that the API lists are new.
    :param min_age: a session counts once its start lies this far back, seconds.
    :param poke_interval: seconds between polls, which all triggers of the same connection and interval share.
    :param reminder: seconds until new sessions that nobody has handled are told of again.
    :raises InvalidArgumentError: an argument cannot be used; when the DAG is parsed.
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
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        self.unleash_conn_id = unleash_conn_id
        self.since = since
        self.min_age = min_age
        self.poke_interval = poke_interval
        self.reminder = reminder
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.since:
            to_epoch_ms(self.since, "since")
        for name in ("min_age", "poke_interval", "reminder"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise InvalidArgumentError(f"{name}={value!r} must be a number of seconds", argument=name)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes it again in the triggerer; the connection by its id only."""
        return _serialize(self, "unleash_conn_id", "since", "min_age", "poke_interval", "reminder")

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield events for ever."""
        async for event in self._watch(_listings(self.unleash_conn_id, self.poke_interval, sleep_first=False)):
            yield event

    # Airflow 3.3 polls once for all watchers whose key is the same, and calls these instead of run().

    def shared_stream_key(self) -> Hashable:
        """Return what the watchers that share a poll have in common."""
        return (_path_of(self), self.unleash_conn_id, self.poke_interval)

    @classmethod
    async def open_shared_stream(cls, kwargs: Mapping[str, Any]) -> AsyncIterator[Listing]:
        """Yield what the API lists, for ever; a full list each time, so that who comes late misses nothing."""
        async for listing in _listings(kwargs["unleash_conn_id"], kwargs["poke_interval"], sleep_first=False):
            yield listing

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Listing]) -> AsyncIterator[TriggerEvent]:
        """Yield this watcher's events."""
        async for event in self._watch(shared_stream):
            yield event

    async def _watch(self, listings: AsyncIterator[Listing]) -> AsyncIterator[TriggerEvent]:
        emitted: frozenset[str] = frozenset()
        emitted_at = -math.inf
        async for listing in listings:
            if listing.error is not None:
                log.warning("%s", listing)
                continue
            try:
                new = await self._list_new(listing.sessions)
            except Exception as error:  # the stream goes on: raised here, it would be opened again every other second
                log.warning("No event from this poll: %s: %s", type(error).__name__, error)
                continue
            is_reminder = listing.asked_at - emitted_at >= self.reminder
            if new and (frozenset(new) != emitted or is_reminder):
                emitted_at = listing.asked_at
                yield TriggerEvent({"sessions": new[-MOST_SESSIONS:], "truncated": len(new) > MOST_SESSIONS})
            emitted = frozenset(new)

    async def _list_new(self, sessions: SessionList) -> list[str]:
        try:
            pending = await list_pending(getattr(self, "asset_state_store", None), sessions)
        except ValueError:  # the trigger of several assets has a store for each, and cannot tell which they are
            pending = sessions
        return pending.select(since_ms=self.since, min_age_ms=round(self.min_age * 1000), now_ms=_now_ms())
