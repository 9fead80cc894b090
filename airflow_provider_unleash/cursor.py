"""The sessions that a consumer of session events has handled, kept in Airflow 3.3's asset state store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_unleash.core.moments import to_epoch_ms
from airflow_provider_unleash.core.sessions import SessionList, parse_session_start
from airflow_provider_unleash.exceptions import InvalidArgumentError

# Keys in an asset's state store: the DAG ids of its consumers, and a cursor for each of them.
CONSUMERS_KEY = "unleash_consumers"
_CURSOR_KEY_PREFIX = "unleash_cursor."
# A cursor has up to this many handled ids, and as many in its window: 51 kB of JSON. The store takes 65,535 bytes.
MAX_HANDLED_SESSIONS = 1500


@dataclass
class Cursor:
    """
    The state of one consumer; does no I/O.

    :param floor: sessions that start before this count as handled, epoch milliseconds.
    :param handled: ids of handled sessions that start at or after the floor.
    :param window: the unfinished window that :meth:`SessionCursor.begin_window` returned, if any.
    :param until: end of the last finished window, epoch milliseconds, if any.
    """

    floor: int = 0
    handled: list[str] = field(default_factory=list)
    window: dict[str, Any] | None = None
    until: int | None = None

    def pending(self, sessions: Iterable[str]) -> list[str]:
        handled = set(self.handled)
        return [session for session in SessionList(sessions).select(since_ms=self.floor) if session not in handled]

    def mark_handled(self, sessions: Iterable[str], listed: Collection[str]) -> None:
        """
        Mark sessions as handled, and forget those that the API no longer lists.

        An empty list forgets nothing: it may be the API's mistake. Only the ids of the latest sessions are kept; the
        floor rises above the others, but never above a pending session. A session that stays pending therefore makes
        the cursor grow.
        """
        handled = {*self.handled, *sessions}
        if listed:
            handled &= set(listed)
        self.handled = SessionList(handled).select(since_ms=self.floor)
        surplus = len(self.handled) - MAX_HANDLED_SESSIONS
        if surplus > 0:
            oldest_kept = [self.handled[surplus], *self.pending(listed)[:1]]
            self.floor = min(map(parse_session_start, oldest_kept))
            self.handled = SessionList(self.handled).select(since_ms=self.floor)


class SessionCursor:
    """
    The sessions that this DAG has not handled yet; for tasks that run on session events.

    Each DAG that consumes an asset's events has its own cursor, so DAGs do not take sessions from each other. The
    cursor is in the asset's state store and survives restarts, paused DAGs and lost events: it compares what the API
    lists with what this DAG has marked as handled, whatever an event says.

    Create it in a task with ``SessionCursor(context, asset)``. The asset must be among the task's ``inlets``, which
    give access to its store. Only one task of a DAG at a time may change the cursor: set ``max_active_runs=1``.

    :param context: the task's context.
    :param asset: the watched asset.
    :param since: sessions that start earlier are never pending, epoch milliseconds; ignored once there is a cursor.
    :raises InvalidArgumentError: without an asset state store: Airflow is older than 3.3, or the asset is not an inlet.
    """

    def __init__(self, context: Mapping[str, Any], asset: Any, *, since: int | None = None) -> None:
        try:
            self._store = context["asset_state_store"][asset]
        except KeyError:
            raise InvalidArgumentError(
                "SessionCursor needs an asset state store: Airflow 3.3 and the asset among the task's inlets. On an "
                "older Airflow, use UnleashNewSessionsSensor, which waits for sessions of the run's data interval",
                argument="asset",
            ) from None
        self._dag_id = context["dag"].dag_id
        stored = self._store.get(_CURSOR_KEY_PREFIX + self._dag_id)
        self._cursor = Cursor(floor=to_epoch_ms(since, "since") if since else 0) if stored is None else Cursor(**stored)
        if stored is None:
            self._save()

    def _save(self) -> None:
        self._store.set(_CURSOR_KEY_PREFIX + self._dag_id, asdict(self._cursor))
        # Tells the trigger which cursors to read. If two DAGs write it at once, the next save adds the lost one again.
        consumers = self._store.get(CONSUMERS_KEY) or []
        if self._dag_id not in consumers:
            self._store.set(CONSUMERS_KEY, sorted([*consumers, self._dag_id]))

    def pending(self, sessions: Iterable[str]) -> list[str]:
        """
        Return the sessions that are not handled yet, oldest first.

        :param sessions: the sessions that the API lists now.
        """
        return self._cursor.pending(sessions)

    def mark_handled(self, sessions: Iterable[str], listed: Collection[str]) -> None:
        """
        Mark sessions as handled; call it after the work has succeeded.

        :param sessions: the handled sessions.
        :param listed: the sessions that the API lists now; the cursor forgets all others.
        """
        self._cursor.mark_handled(sessions, listed)
        self._save()

    def begin_window(self, sessions: Collection[str], end_ms: int) -> dict[str, Any] | None:
        """
        Return the window to extract now, ``{"start", "end", "sessions", "late"}``; None if no session is pending.

        Windows follow each other without gap or overlap: the first one starts with the oldest pending session, each
        later one at the end of the last finished window. An unfinished window is returned again unchanged, so that a
        retry writes the same objects. A window ends before ``end_ms`` if it would have too many sessions.

        :param sessions: the sessions that the API lists now.
        :param end_ms: end of the window, epoch milliseconds; sessions that start later stay pending.
        :return: the bounds in epoch milliseconds, and session ids. ``late`` are the ``sessions`` that start before the
            window, because the API listed them only after an earlier window had covered their start. Rows of theirs
            that had not arrived by then are in no window; if you need them, extract again from the session's start.
        """
        cursor = self._cursor
        if cursor.window is None:
            pending = [session for session in cursor.pending(sessions) if parse_session_start(session) < end_ms]
            if not pending or (cursor.until is not None and cursor.until >= end_ms):
                return None
            start_ms = parse_session_start(pending[0]) if cursor.until is None else cursor.until
            if len(pending) > MAX_HANDLED_SESSIONS:
                end_ms = max(parse_session_start(pending[MAX_HANDLED_SESSIONS]), start_ms + 1)
                pending = pending[:MAX_HANDLED_SESSIONS]
            late = [session for session in pending if parse_session_start(session) < start_ms]
            cursor.window = {"start": start_ms, "end": end_ms, "sessions": pending, "late": late}
            self._save()
        return dict(cursor.window)

    def finish_window(self, window: Mapping[str, Any], listed: Collection[str]) -> None:
        """
        Mark the sessions of the unfinished window as handled; the next window starts at its end.

        :param window: the extracted window; only its ``start`` and ``end`` are read. If another window has begun since,
            because an old task was cleared and runs again, nothing changes.
        :param listed: the sessions that the API lists now; the cursor forgets all others.
        """
        begun = self._cursor.window
        if begun is not None and (begun["start"], begun["end"]) == (window["start"], window["end"]):
            self._cursor.window = None
            self._cursor.until = begun["end"]
            self.mark_handled(begun["sessions"], listed)

    def forget(self) -> None:
        """Delete this DAG's cursor and window: the DAG starts over, and reminders no longer wait for it."""
        self._store.delete(_CURSOR_KEY_PREFIX + self._dag_id)
        consumers = self._store.get(CONSUMERS_KEY) or []
        self._store.set(CONSUMERS_KEY, [consumer for consumer in consumers if consumer != self._dag_id])


async def list_pending(store: Any, sessions: SessionList) -> SessionList:
    """Return the sessions that at least one consumer of an asset has not handled yet; all if it has no consumers."""
    consumers = [] if store is None else await store.aget(CONSUMERS_KEY) or []
    stored = [await store.aget(_CURSOR_KEY_PREFIX + consumer) for consumer in consumers]
    if not stored:
        return sessions
    return SessionList(session for cursor in stored for session in Cursor(**(cursor or {})).pending(sessions.ids))
