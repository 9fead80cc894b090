"""Triggers: wait for new sessions in the triggerer, where a thousand that wait cost the API what one costs."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Hashable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow.providers.common.compat.connection import get_async_connection
from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent

from airflow_provider_unleash.cursor import list_pending
from airflow_provider_unleash.exceptions import PermanentError, TransientError, UnleashError
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, open_client
from airflow_provider_unleash.window import select_sessions

log = logging.getLogger(__name__)

# A deferred task gives up after so many failed polls in a row; the seconds between them grow up to the most.
FAILED_POLLS = 10
BACKOFF_MOST = 600.0
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
    """

    asked_at: float
    sessions: list[str]
    error: Exception | None = None

    @property
    def is_final(self) -> bool:
        """Whether asking again cannot help."""
        return isinstance(self.error, PermanentError)


class _SharedPoll:
    """
    Asks for the sessions once an interval, whoever and how many wait for them.

    Nothing runs while nobody waits. Failed polls are further apart from each other, or as far as the API asks for.
    """

    def __init__(self, conn_id: str, interval: float) -> None:
        self._conn_id = conn_id
        self._interval = interval
        self._latest = Listing(-math.inf, [])
        self._due = -math.inf
        self._failures = 0
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
        try:
            connection = await get_async_connection(self._conn_id)
            sessions = await asyncio.to_thread(_list_sessions, connection)
        except Exception as error:  # whatever it is, it is for those who wait
            self._failures += 1
            self._latest = Listing(asked_at, [], error)
            pause = max(self._interval, self._backoff(error))
            log.warning(
                "Connection %r, failed poll %d in a row: %s: %s; the next one in %.1f s",
                *(self._conn_id, self._failures, type(error).__name__, error, pause),
            )
        else:
            self._failures = 0
            self._latest = Listing(asked_at, sessions)
            pause = self._interval
        self._due = asked_at + pause
        self._flight = None
        self._landed.set()

    def _backoff(self, error: Exception) -> float:
        asked_for = error.retry_after if isinstance(error, TransientError) else None
        return max(asked_for or 0.0, min(BACKOFF_MOST, self._interval * 2.0 ** (self._failures - 1)))


def _list_sessions(connection: Any) -> list[str]:
    # One attempt: between attempts a thread would only sleep, which an event loop does without one.
    with open_client(connection, max_attempts=1) as client:
        return client.list_sessions()


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
        names = (
            *("unleash_conn_id", "since", "until", "known_sessions"),
            *("min_sessions", "min_age", "poke_interval"),
        )
        return _path_of(self), {name: getattr(self, name) for name in names}

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
                if listing.is_final or failures >= FAILED_POLLS:
                    yield _error_event(error)
                    return

    def _select(self, sessions: list[str]) -> list[str]:
        return select_sessions(
            sessions,
            since_ms=self.since,
            until_ms=self.until,
            known_sessions=self.known_sessions,
            min_age_ms=int(self.min_age * 1000),
            now_ms=_now_ms(),
        )


def _error_event(error: Exception) -> TriggerEvent:
    return TriggerEvent({"status": "error", "error": type(error).__name__, "message": str(error)})


def _path_of(trigger: BaseTrigger) -> str:
    return f"{type(trigger).__module__}.{type(trigger).__qualname__}"


# ---- an asset that is watched --------------------------------------------------------------------


class UnleashNewSessionsEventTrigger(BaseEventTrigger):
    """
    Emit an event for each change in the set of new sessions; for an ``AssetWatcher`` (Airflow 3.0 and newer).

    New are the sessions since ``since`` that at least one consumer has not handled yet, as the consumers'
    :class:`.SessionCursor` say (Airflow 3.3); before there is one, and below 3.3, all since ``since``. There is an
    event where they differ from those of the last one, and again each ``reminder`` seconds while there are any, because
    Airflow can lose an event. So the event is a nudge, delivered at least once: what to do is what the cursor says.

    The payload is ``{"sessions": [...], "truncated": false}``: ids oldest first, 500 at most; ``truncated`` says that
    there are more. An error is logged and the next poll waits longer, for ever: a watcher has nobody to fail for.

    :param unleash_conn_id: connection of type «Unleash live».
    :param since: earliest start of a new session, epoch milliseconds; without, all that the API lists are new.
    :param min_age: a session counts once its start lies this far back, seconds.
    :param poke_interval: seconds between polls, which all triggers of the same connection and interval share.
    :param reminder: seconds until new sessions that nobody has handled are told of again.
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

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes it again in the triggerer; the connection by its id only."""
        names = ("unleash_conn_id", "since", "min_age", "poke_interval", "reminder")
        return _path_of(self), {name: getattr(self, name) for name in names}

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
                continue
            try:
                new = await self._list_new(listing.sessions)
            except Exception as error:  # the stream goes on: raised here, it would be opened again every other second
                log.warning("No event from this poll: %s: %s", type(error).__name__, error)
                continue
            is_reminder = listing.asked_at - emitted_at >= self.reminder
            if new and (frozenset(new) != emitted or is_reminder):
                emitted_at = listing.asked_at
                yield TriggerEvent({"sessions": new[:MOST_SESSIONS], "truncated": len(new) > MOST_SESSIONS})
            emitted = frozenset(new)

    async def _list_new(self, sessions: list[str]) -> list[str]:
        try:
            pending = await list_pending(getattr(self, "asset_state_store", None), sessions)
        except ValueError:  # the trigger of several assets has a store for each, and cannot tell which they are
            pending = sessions
        return select_sessions(pending, since_ms=self.since, min_age_ms=int(self.min_age * 1000), now_ms=_now_ms())
