"""What a consumer of session events has handled, kept in Airflow 3.3's asset state store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_unleash.core.sessions import SessionList, parse_session_start, select_sessions
from airflow_provider_unleash.exceptions import InvalidArgumentError

# Rows of an asset's state store: the ids of the consumers' DAGs, and a cursor for each.
CONSUMERS_KEY = "unleash_consumers"
_CURSOR_KEY = "unleash_cursor."
# Of handled sessions, and again of those in a window: 51 kB as JSON, below the store's limit of 65 535 bytes.
MOST_SESSIONS = 1500


@dataclass
class Cursor:
    """
    What one consumer has handled; no I/O.

    :param floor: a session that starts before this counts as handled, epoch milliseconds.
    :param handled: ids of handled sessions that start at or after the floor.
    :param window: the window under way: what :meth:`SessionCursor.begin_window` returned, or None.
    :param until: end of the last window that was finished, epoch milliseconds, or None.
    """

    floor: int = 0
    handled: list[str] = field(default_factory=list)
    window: dict[str, Any] | None = None
    until: int | None = None

    def pending(self, sessions: Iterable[str]) -> list[str]:
        """Return the sessions that are not handled yet, oldest first."""
        handled = set(self.handled)
        return [session for session in select_sessions(sessions, since_ms=self.floor or None) if session not in handled]

    def mark_handled(self, sessions: Iterable[str], listed: Collection[str]) -> None:
        """
        Count these as handled, too.

        Forgets those that the API does not list any more; an empty list is no reason to, which may be a mistake of its.
        Of the others, only the latest are kept by name: the floor rises over the rest, but never over a session that is
        not handled yet, so one that never is makes the cursor grow.
        """
        handled = {*self.handled, *sessions}
        if listed:
            handled &= set(listed)
        self.handled = select_sessions(handled, since_ms=self.floor or None)
        surplus = len(self.handled) - MOST_SESSIONS
        if surplus > 0:
            floor = parse_session_start(self.handled[surplus])
            pending = self.pending(listed)
            self.floor = min([floor, *map(parse_session_start, pending[:1])])
            self.handled = select_sessions(self.handled, since_ms=self.floor)


class SessionCursor:
    """
    The sessions that this DAG has not handled yet; for a task that runs on session events.

    One cursor for each DAG that consumes the events of an asset, so that DAGs don't take sessions from each other. It
    lives in the asset's state store and survives restarts, paused DAGs and lost events: what counts is what the API
    lists and what this DAG has marked as handled, not what an event says.

    A task gets it with ``SessionCursor(context, asset)``; the asset must be in its ``inlets``, which is what gives it
    the store. Only one task of a DAG at a time may change it: set ``max_active_runs=1``.

    :param context: the task's context.
    :param asset: the watched asset.
    :param since: epoch milliseconds; earlier sessions are never pending. Counts until the DAG has a cursor.
    :raises InvalidArgumentError: there is no asset state store: Airflow is older than 3.3, or the asset is no inlet.
    """

    def __init__(self, context: Mapping[str, Any], asset: Any, *, since: int | None = None) -> None:
        try:
            self._store = context["asset_state_store"][asset]
        except KeyError:
            raise InvalidArgumentError(
                "There is no asset state store: it takes Airflow 3.3 and the asset among the task's inlets. On an "
                "older Airflow, use UnleashNewSessionsSensor, which looks at the run's data interval",
                argument="asset",
            ) from None
        self._dag_id = context["dag"].dag_id
        stored = self._store.get(_CURSOR_KEY + self._dag_id)
        self._cursor = Cursor(floor=since or 0) if stored is None else Cursor(**stored)
        if stored is None:
            self._save()

    def _save(self) -> None:
        self._store.set(_CURSOR_KEY + self._dag_id, asdict(self._cursor))
        # By this the trigger knows whose cursors to look at. Two that write it at once: the loser comes back.
        consumers = self._store.get(CONSUMERS_KEY) or []
        if self._dag_id not in consumers:
            self._store.set(CONSUMERS_KEY, sorted([*consumers, self._dag_id]))

    def pending(self, sessions: Iterable[str]) -> list[str]:
        """
        Return the sessions that are not handled yet, oldest first.

        :param sessions: what the API lists now.
        :raises UnexpectedResponseError: an id does not read as a start in epoch milliseconds.
        """
        return self._cursor.pending(sessions)

    def mark_handled(self, sessions: Iterable[str], listed: Collection[str]) -> None:
        """
        Count these as handled from now on.

        :param sessions: what has been handled; call it when that has succeeded.
        :param listed: what the API lists; ids that it does not list any more are forgotten.
        """
        self._cursor.mark_handled(sessions, listed)
        self._save()

    def begin_window(self, sessions: Collection[str], end_ms: int) -> dict[str, Any] | None:
        """
        Return the window to extract now, ``{"start", "end", "sessions", "late"}``; None where no session is pending.

        Windows follow each other without gap or overlap: the first starts with the oldest pending session, each later
        one where the last that was finished ended. One that was begun and not finished is returned again as it was,
        so that a retry writes the same objects. It ends before ``end_ms`` where there are too many sessions for one.

        :param sessions: what the API lists now.
        :param end_ms: end of the window, epoch milliseconds; sessions that start later stay pending.
        :return: bounds in epoch milliseconds and ids; ``late`` are those of ``sessions`` that start before the window,
            because they were listed after it had been passed. Rows of theirs that had not arrived by then are in no
            window: who must have them extracts from their start again.
        """
        cursor = self._cursor
        if cursor.window is None:
            pending = [session for session in cursor.pending(sessions) if parse_session_start(session) < end_ms]
            if not pending or (cursor.until is not None and cursor.until >= end_ms):
                return None
            start_ms = parse_session_start(pending[0]) if cursor.until is None else cursor.until
            if len(pending) > MOST_SESSIONS:
                end_ms = max(parse_session_start(pending[MOST_SESSIONS]), start_ms + 1)
                pending = pending[:MOST_SESSIONS]
            late = [session for session in pending if parse_session_start(session) < start_ms]
            cursor.window = {"start": start_ms, "end": end_ms, "sessions": pending, "late": late}
            self._save()
        return dict(cursor.window)

    def finish_window(self, window: Mapping[str, Any], listed: Collection[str]) -> None:
        """
        Count the sessions of the window that was begun as handled; the next one starts where it ends.

        :param window: what was extracted, of which ``start`` and ``end`` matter: where another window is open by now,
            because an old task was cleared and runs again, nothing changes.
        :param listed: what the API lists; ids that it does not list any more are forgotten.
        """
        begun = self._cursor.window
        if begun is not None and (begun["start"], begun["end"]) == (window["start"], window["end"]):
            self._cursor.window = None
            self._cursor.until = begun["end"]
            self.mark_handled(begun["sessions"], listed)

    def forget(self) -> None:
        """Remove this DAG's cursor and window, so that it starts anew, and no reminder waits for it any more."""
        self._store.delete(_CURSOR_KEY + self._dag_id)
        consumers = self._store.get(CONSUMERS_KEY) or []
        self._store.set(CONSUMERS_KEY, [consumer for consumer in consumers if consumer != self._dag_id])


async def list_pending(store: Any, sessions: SessionList) -> SessionList:
    """
    Return the sessions that at least one consumer of an asset has not handled yet.

    :param store: the asset's state store, as a trigger has it; None where there is none.
    """
    consumers = [] if store is None else await store.aget(CONSUMERS_KEY) or []
    stored = [await store.aget(_CURSOR_KEY + consumer) for consumer in consumers]
    if not stored:
        return sessions
    return SessionList(session for cursor in stored for session in Cursor(**(cursor or {})).pending(sessions.ids))
