"""A sensor that waits for new sessions."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.hooks import (
    DEFAULT_CONN_ID,
    UnleashHook,
    check_visible_bounds,
    failing_for_good,
    failing_for_good_when_mapped,
    is_visible,
    moments_of,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class UnleashNewSessionsSensor(BaseSensorOperator):
    """
    Wait until there are new sessions, and return their ids, ``list[str]``, oldest first.

    New are the sessions that are not in ``known_sessions`` where that is given; else those with
    ``since <= start < until``. Both bounds default to the run's data interval where that is longer than zero, so that
    a backfill looks at its own day; else ``since`` is the run's ``run_after`` and there is no ``until``. A session's
    start is its id, read as epoch milliseconds.

    :param since: earliest start: datetime, ISO 8601 text or epoch milliseconds (templated).
    :param until: end of the starts, not part of them (templated).
    :param known_sessions: ids that are not new; an empty list makes every session new (templated).
    :param min_sessions: how many new ones to wait for.
    :param min_age: a session counts once its start lies this far back: the API tells no end of a session, and the data
        of a fresh one is just arriving.
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :raises UnexpectedResponseError: an id does not read as a start.
    :raises WindowError: ``since`` is not before ``until``.
    """

    template_fields: Sequence[str] = ("unleash_conn_id", "since", "until", "known_sessions")
    ui_color = "#d8e8f6"

    def __init__(
        self,
        *,
        since: datetime | str | int | None = None,
        until: datetime | str | int | None = None,
        known_sessions: Collection[str] | None = None,
        min_sessions: int = 1,
        min_age: timedelta = timedelta(0),
        unleash_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.until = until
        self.known_sessions = known_sessions
        self.min_sessions = min_sessions
        self.min_age = min_age
        self.unleash_conn_id = unleash_conn_id
        with failing_for_good_when_mapped():
            self._check_arguments()

    def _check_arguments(self) -> None:
        if self.min_sessions < 1:
            raise InvalidArgumentError(f"min_sessions={self.min_sessions} must be at least 1", argument="min_sessions")
        if self.min_age < timedelta(0):
            raise InvalidArgumentError(f"min_age={self.min_age} must not be negative", argument="min_age")
        check_visible_bounds(self.since, self.until)
        if is_visible(self.known_sessions):
            self._read_known_sessions()

    def execute(self, context: Context) -> Any:
        try:
            return super().execute(context)
        except AirflowSkipException as skipped:
            # soft_fail is for a day without sessions; a wrong key is none.
            if self.soft_fail and isinstance(skipped.__cause__, AirflowFailException):
                raise skipped.__cause__ from skipped.__cause__.__cause__
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        with failing_for_good():
            new = self._list_new_sessions(context)
        self.log.info("%d new sessions; waiting for %d", len(new), self.min_sessions)
        return PokeReturnValue(is_done=len(new) >= self.min_sessions, xcom_value=new)

    def _list_new_sessions(self, context: Context) -> list[str]:
        from airflow_provider_unleash.window import select_sessions, session_bounds

        known = self._read_known_sessions()
        since_ms, until_ms = None, None
        if known is None:
            since_ms, until_ms = session_bounds(self.since, self.until, **moments_of(context))
        return select_sessions(
            UnleashHook(self.unleash_conn_id).list_sessions(),
            since_ms=since_ms,
            until_ms=until_ms,
            known_sessions=known,
            min_age_ms=self.min_age // timedelta(milliseconds=1),
            now_ms=time.time_ns() // 1_000_000,
        )

    def _read_known_sessions(self) -> Collection[str] | None:
        known = self.known_sessions
        if known in ("", "None"):
            return None
        if isinstance(known, str):
            raise InvalidArgumentError(
                f"known_sessions={known!r} is a text, not a list of ids; a template gives a list with "
                "render_template_as_native_obj=True, the output of a task always does",
                argument="known_sessions",
            )
        return known
