"""Which sessions are new."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from airflow_provider_unleash.core.moments import MIN_EPOCH_MS, format_ms, parse_moment
from airflow_provider_unleash.core.protocol import EXCERPT_CHARS
from airflow_provider_unleash.core.windows import data_interval_window, to_ms
from airflow_provider_unleash.exceptions import UnexpectedResponseError, WindowError


# Every poll lists the same ids, and a thousand waiting tasks parse them a thousand times.
@lru_cache(maxsize=1 << 16)
def parse_session_start(session_id: str) -> int:
    """
    Return the start of a session in epoch milliseconds, which is what its id looks like.

    The API's documented example has ids of that form, but the API does not promise it.

    :raises UnexpectedResponseError: if the id does not look like epoch milliseconds.
    """
    if _is_number(session_id) and MIN_EPOCH_MS <= int(session_id) < 10**14:
        return int(session_id)
    raise UnexpectedResponseError(
        f"Session id {session_id[:EXCERPT_CHARS]!r} is not in epoch milliseconds, so the start of the session is "
        "unknown. Set known_sessions, which compares ids only",
        field="session_id",
        value=session_id,
    )


def _is_number(session_id: str) -> bool:
    return session_id.isascii() and session_id.isdigit() and len(session_id) <= 20  # int() rejects 4301 digits


def _by_start(session_id: str) -> tuple[bool, int, str]:
    is_number = _is_number(session_id)
    return (not is_number, int(session_id) if is_number else 0, session_id)


class SessionList:
    """
    The sessions that the API lists: each once, oldest first, parsed once for all who select from them.

    :param sessions: session ids, in any order.
    """

    def __init__(self, sessions: Iterable[str]) -> None:
        self.ids = sorted(dict.fromkeys(sessions), key=_by_start)

    @cached_property
    def _starts(self) -> list[int]:
        return [parse_session_start(session) for session in self.ids]

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
        ``min_age_ms``, it must also have started that long before ``now_ms``.

        :raises UnexpectedResponseError: if the start of a session matters and its id is not in epoch milliseconds.
        """
        if known_sessions is not None:
            known = frozenset(known_sessions)
            new = [session for session in self.ids if session not in known]
            return [one for one in new if not min_age_ms or parse_session_start(one) <= now_ms - min_age_ms]
        low, high = 0, len(self.ids)
        if since_ms is not None:
            low = bisect_left(self._starts, since_ms)
        if until_ms is not None:
            high = bisect_left(self._starts, until_ms)
        if min_age_ms:
            high = min(high, bisect_right(self._starts, now_ms - min_age_ms))
        return self.ids[low:high]


def select_sessions(sessions: Iterable[str], **conditions: Any) -> list[str]:
    """Return the new ones among these session ids; see :meth:`SessionList.select`."""
    return SessionList(sessions).select(**conditions)


def session_bounds(
    since: object = None,
    until: object = None,
    *,
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
    run_after: datetime | None = None,
    **other_times: object,
) -> tuple[int | None, int | None]:
    """
    Return the bounds of a run's new sessions in epoch milliseconds; None means no bound.

    Bounds that are not given come from the data interval if it is longer than zero; otherwise ``since`` is
    ``run_after`` and there is no ``until``.

    :param other_times: times of the run that do not matter here.
    :raises WindowError: if no session can start between the bounds.
    """
    since_ms, until_ms = parse_moment(since, "since"), parse_moment(until, "until")
    interval = data_interval_window(data_interval_start, data_interval_end)
    if interval is not None:
        since_ms = interval.start_ms if since_ms is None else since_ms
        until_ms = interval.end_ms if until_ms is None else until_ms
    elif since_ms is None and run_after is not None:
        since_ms = to_ms(run_after)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise WindowError(
            f"since {format_ms(since_ms)} must be before until {format_ms(until_ms)}; no session starts between them",
            argument="since",
        )
    return since_ms, until_ms
