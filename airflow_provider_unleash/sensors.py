"""A sensor that waits for new sessions."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_unleash import exceptions
from airflow_provider_unleash.exceptions import InvalidArgumentError, PermanentError, UnleashError
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, UnleashHook
from airflow_provider_unleash.tasks import (
    check_literal_bounds,
    is_literal,
    no_retry,
    no_retry_in_constructor,
    retry_arguments,
    run_times,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, RetryPolicy

# How Airflow 3 and 2.11 say that a trigger had no event in time.
_TIMEOUTS = ("Trigger timeout", "Trigger/execution timeout")


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
    :param deferrable: wait in the triggerer, without a worker slot, sharing polls with all that wait on the same
        connection; as ``[operators] default_deferrable`` has it where not given. It wins over ``mode``.
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
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
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        unleash_conn_id: str = DEFAULT_CONN_ID,
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**retry_arguments(retry_policy), **kwargs)
        self.deferrable = deferrable
        self.since = since
        self.until = until
        self.known_sessions = known_sessions
        self.min_sessions = min_sessions
        self.min_age = min_age
        self.unleash_conn_id = unleash_conn_id
        with no_retry_in_constructor():
            self._check_arguments()

    def _check_arguments(self) -> None:
        if self.min_sessions < 1:
            raise InvalidArgumentError(f"min_sessions={self.min_sessions} must be at least 1", argument="min_sessions")
        if self.min_age < timedelta(0):
            raise InvalidArgumentError(f"min_age={self.min_age} must not be negative", argument="min_age")
        check_literal_bounds(self.since, self.until)
        if is_literal(self.known_sessions):
            self._read_known_sessions()

    def execute(self, context: Context) -> Any:
        with self._failing_permanently():
            return self._execute_deferred(context) if self.deferrable else super().execute(context)

    def _execute_deferred(self, context: Context) -> list[str]:
        """Look once, as there may be nothing to wait for; then leave the rest to the trigger."""
        look = self.poke(context)
        if not look.is_done:
            self._defer(context)
        return look.xcom_value or []

    def _defer(self, context: Context) -> None:
        from airflow_provider_unleash.triggers import UnleashNewSessionsTrigger

        known, since_ms, until_ms = self._read_bounds(context)
        self.defer(
            trigger=UnleashNewSessionsTrigger(
                unleash_conn_id=self.unleash_conn_id,
                since=since_ms,
                until=until_ms,
                known_sessions=None if known is None else list(known),
                min_sessions=self.min_sessions,
                min_age=self.min_age.total_seconds(),
                poke_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> list[str]:
        """
        Return the sessions of the trigger's event.

        :raises AirflowFailException: the trigger met an error that repeating cannot help.
        :raises UnleashError: it met another one too often.
        """
        if event["status"] == "success":
            found: list[str] = event["sessions"]
            self.log.info("%d new sessions", len(found))
            return found
        said = f"{event['error']}: {event['message']}"
        kind = getattr(exceptions, event["error"], UnleashError)
        raise AirflowFailException(said) if issubclass(kind, PermanentError) else UnleashError(said)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        # Some Airflows fail here where they skip in another mode, others retry where they fail for good.
        if next_method == "__fail__" and (next_kwargs or {}).get("error") in _TIMEOUTS:
            said = f"No new sessions in {self.timeout:.0f} s"
            raise AirflowSkipException(said) if self.soft_fail else AirflowSensorTimeout(said)
        with self._failing_permanently():
            return super().resume_execution(next_method, next_kwargs, context)

    @contextmanager
    def _failing_permanently(self) -> Iterator[None]:
        """Let a permanent error fail the task, ``soft_fail`` or not: that is for a day without sessions."""
        try:
            yield
        except AirflowSkipException as skipped:
            if self.soft_fail and isinstance(skipped.__cause__, AirflowFailException):
                raise skipped.__cause__ from skipped.__cause__.__cause__
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        with no_retry():
            new = self._list_new_sessions(context)
        self.log.info("%d new sessions; waiting for %d", len(new), self.min_sessions)
        return PokeReturnValue(is_done=len(new) >= self.min_sessions, xcom_value=new)

    def _list_new_sessions(self, context: Context) -> list[str]:
        from airflow_provider_unleash.core.sessions import select_sessions
        from airflow_provider_unleash.metrics import report_poll

        known, since_ms, until_ms = self._read_bounds(context)
        report_poll()
        return select_sessions(
            UnleashHook(self.unleash_conn_id).list_sessions(),
            since_ms=since_ms,
            until_ms=until_ms,
            known_sessions=known,
            min_age_ms=self.min_age // timedelta(milliseconds=1),
            now_ms=time.time_ns() // 1_000_000,
        )

    def _read_bounds(self, context: Context) -> tuple[Collection[str] | None, int | None, int | None]:
        """Return the known sessions, or between which starts new ones lie."""
        from airflow_provider_unleash.core.sessions import session_bounds

        known = self._read_known_sessions()
        if known is not None:
            return known, None, None
        return (None, *session_bounds(self.since, self.until, **run_times(context)))

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
