"""Which sessions are new."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from functools import lru_cache

from airflow_provider_unleash.core.log_once import log_once
from airflow_provider_unleash.core.moments import MIN_EPOCH_MS, format_ms, parse_moment, to_ms
from airflow_provider_unleash.core.phrases import name_first
from airflow_provider_unleash.core.protocol import EXCERPT_CHARS
from airflow_provider_unleash.core.windows import RunTimes
from airflow_provider_unleash.exceptions import UnexpectedResponseError, WindowError

log = logging.getLogger(__name__)


# Every poll lists the same ids, and a thousand waiting tasks parse them a thousand times.
@lru_cache(maxsize=1 << 16)
def _start_or_none(session_id: str) -> int | None:
    is_number = session_id.isascii() and session_id.isdigit() and len(session_id) <= 20  # int() rejects 4301 digits
    return int(session_id) if is_number and MIN_EPOCH_MS <= int(session_id) < 10**14 else None


def parse_session_start(session_id: str) -> int:
    """
    Return the start of a session: its id, read as epoch milliseconds.

    The API's documented example has ids of that form, but the API does not promise it.
    """
    start = _start_or_none(session_id)
    if start is None:
        raise UnexpectedResponseError(
            f"Session id {session_id[:EXCERPT_CHARS]!r} is not in epoch milliseconds, so its start is unknown",
            field="session_id",
            value=session_id,
        )
    return start


class SessionList:
    """The sessions that the API lists, each once; ``ids`` has the oldest first, then those whose start is unknown."""

    def __init__(self, sessions: Iterable[str]) -> None:
        starts = {session: _start_or_none(session) for session in sessions}
        dated = sorted((start, session) for session, start in starts.items() if start is not None)
        self._starts = [start for start, _ in dated]
        self._undated = sorted(session for session, start in starts.items() if start is None)
        self.ids = [session for _, session in dated] + self._undated

    def select(
        self,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        known_sessions: Collection[str] | None = None,
        min_age_ms: int = 0,
        now_ms: int = 0,
    ) -> list[str]:
        """
        Return the ids of the new sessions, oldest first.

        A session is new if it is not in ``known_sessions``; without these, if ``since <= start < until``. With
        ``min_age_ms``, it must also have started that long before ``now_ms``. If its start matters and is unknown, a
        session is skipped with a warning.
        """
        if known_sessions is not None:
            since_ms = until_ms = None
        low, high = 0, len(self.ids)
        if since_ms is not None or until_ms is not None or min_age_ms:
            self._warn_of_undated()
            high = len(self._starts)
        if since_ms is not None:
            low = bisect_left(self._starts, since_ms)
        if until_ms is not None:
            high = bisect_left(self._starts, until_ms)
        if min_age_ms:
            high = min(high, bisect_right(self._starts, now_ms - min_age_ms))
        known = frozenset(known_sessions or ())
        return [session for session in self.ids[low:high] if session not in known]

    def _warn_of_undated(self) -> None:
        if self._undated:
            ids = name_first([repr(session[:EXCERPT_CHARS]) for session in self._undated], 5)
            log_once(
                log,
                f"Skipping sessions whose id is not in epoch milliseconds, so that their start is unknown: {ids}. "
                "Set known_sessions to compare ids only",
            )


def session_bounds(times: RunTimes, since: object = None, until: object = None) -> tuple[int | None, int | None]:
    """
    Return the bounds of a run's new sessions in epoch milliseconds; None means no bound.

    Bounds that are not given come from the data interval if it is longer than zero; otherwise ``since`` is
    ``run_after`` and there is no ``until``.
    """
    since_ms, until_ms = parse_moment(since, "since"), parse_moment(until, "until")
    interval = times.data_interval()
    if interval is not None:
        since_ms = interval.start_ms if since_ms is None else since_ms
        until_ms = interval.end_ms if until_ms is None else until_ms
    elif since_ms is None and times.run_after is not None:
        since_ms = to_ms(times.run_after)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise WindowError(
            f"since {format_ms(since_ms)} must be before until {format_ms(until_ms)}; no session starts between them",
            argument="since",
        )
    return since_ms, until_ms
