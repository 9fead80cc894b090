"""Sensor that waits for new sessions."""

from __future__ import annotations

import threading
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
from airflow_provider_unleash.core.arguments import check_whole_number
from airflow_provider_unleash.core.moments import now_ms
from airflow_provider_unleash.core.sessions import SessionList, session_bounds
from airflow_provider_unleash.exceptions import InvalidArgumentError, PermanentError, TransientError, TransportError
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, ConnectedTask
from airflow_provider_unleash.metrics import report_poll
from airflow_provider_unleash.tasks import check_literal_bounds, is_literal, no_retry, retry_arguments, run_times

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, RetryPolicy

# Airflow 3's and 2.11's error of a trigger that fired no event in time.
_TRIGGER_TIMEOUTS = ("Trigger timeout", "Trigger/execution timeout")


class UnleashNewSessionsSensor(ConnectedTask, BaseSensorOperator):
    """
    Wait for new sessions, and return their ids, ``list[str]``, oldest first.

    If ``known_sessions`` is given, all other sessions are new. Otherwise, sessions with ``since <= start < until`` are
    new. Both bounds default to the run's data interval if it is longer than zero, so that a backfill looks at its own
    day. Without a data interval, ``since`` defaults to the run's ``run_after``, and there is no ``until``. A session's
    start is its id, read as epoch milliseconds.

    :param since: earliest start: datetime, ISO 8601 string or epoch milliseconds (templated).
    :param until: end of the starts, exclusive (templated).
    :param known_sessions: ids that are not new; with an empty list, every session is new (templated).
    :param min_sessions: number of new sessions to wait for.
    :param min_age: a session counts only if it started at least this long ago. The API does not report when a session
        ends, and the data of a recent one is still arriving.
    :param deferrable: wait in the triggerer, without a worker slot, and share polls with all sensors that wait on the
        same connection; defaults to ``[operators] default_deferrable``. Overrides ``mode``.
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    :raises WindowError: if ``since`` is not before ``until``.
    """

    template_fields: Sequence[str] = ("unleash_conn_id", "since", "until", "known_sessions")

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
        with no_retry():
            self._check_arguments()

    def _check_arguments(self) -> None:
        check_whole_number("min_sessions", self.min_sessions)
        if not isinstance(self.min_age, timedelta):
            raise InvalidArgumentError(
                f"min_age={self.min_age!r} must be a timedelta, such as timedelta(minutes=10)", argument="min_age"
            )
        if self.min_age < timedelta(0):
            raise InvalidArgumentError(f"min_age={self.min_age} must not be negative", argument="min_age")
        check_literal_bounds(self.since, self.until)
        if is_literal(self.known_sessions):
            self._read_known_sessions()

    def execute(self, context: Context) -> Any:
        with self._never_skipping_permanent_errors():
            if not self.deferrable:
                return super().execute(context)
            result = self.poke(context)  # there may already be enough sessions
            if not result.is_done:
                self._defer(context)
            return result.xcom_value

    def _defer(self, context: Context) -> None:
        # Imported here, so that parsing a DAG does not load asgiref and Airflow's triggers.
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

        :raises AirflowFailException: if the trigger met a permanent error.
        :raises TransientError: if the trigger gave up after repeated errors.
        """
        if event["status"] == "success":
            sessions: list[str] = event["sessions"]
            self._log_sessions(sessions)
            return sessions
        message = f"{event['error']}: {event['message']}"
        if issubclass(getattr(exceptions, event["error"], TransientError), PermanentError):
            raise AirflowFailException(message)
        raise TransientError(message, retry_after=event.get("retry_after"))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        # Left to Airflow, a timeout fails the task despite soft_fail in some versions, and is retried in others.
        if next_method == "__fail__" and (next_kwargs or {}).get("error") in _TRIGGER_TIMEOUTS:
            message = f"Not enough new sessions within {self.timeout:.0f} s (min_sessions={self.min_sessions})"
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        with self._never_skipping_permanent_errors():
            return super().resume_execution(next_method, next_kwargs, context)

    @contextmanager
    def _never_skipping_permanent_errors(self) -> Iterator[None]:
        """Fail the task on a permanent error even with ``soft_fail``, which is for a day without sessions."""
        try:
            yield
        except AirflowSkipException as skip:
            if self.soft_fail and isinstance(skip.__cause__, AirflowFailException):
                raise skip.__cause__ from skip.__cause__.__cause__
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        with no_retry():
            known, since_ms, until_ms = self._read_bounds(context)
            report_poll()
            listed = self._list_sessions()
            if listed is None:
                return PokeReturnValue(is_done=False)
            sessions = SessionList(listed).select(
                since_ms=since_ms,
                until_ms=until_ms,
                known_sessions=known,
                min_age_ms=self.min_age // timedelta(milliseconds=1),
                now_ms=now_ms(),
            )
        self._log_sessions(sessions)
        return PokeReturnValue(is_done=len(sessions) >= self.min_sessions, xcom_value=sessions)

    def _list_sessions(self) -> list[str] | None:
        """Return all sessions; None if the sensor's timeout comes first, which Airflow checks between pokes only."""
        is_over = threading.Event()
        with self._open_client() as client:

            def end() -> None:
                is_over.set()
                client.cancel()

            timer = threading.Timer(min(self.timeout, threading.TIMEOUT_MAX), end)
            timer.daemon = True
            timer.start()
            try:
                return client.list_sessions()
            except TransportError:
                if is_over.is_set():
                    return None
                raise
            finally:
                timer.cancel()

    def _log_sessions(self, sessions: list[str]) -> None:
        self.log.info("New sessions: %d (min_sessions=%d)", len(sessions), self.min_sessions)

    def _read_bounds(self, context: Context) -> tuple[Collection[str] | None, int | None, int | None]:
        known = self._read_known_sessions()
        if known is not None:
            return known, None, None
        return (None, *session_bounds(run_times(context), self.since, self.until))

    def _read_known_sessions(self) -> Collection[str] | None:
        known = self.known_sessions
        if known in ("", "None"):
            return None
        if isinstance(known, str):
            raise InvalidArgumentError(
                f"known_sessions={known!r} is a string, not a list of ids. A template returns a list only with "
                "render_template_as_native_obj=True; the output of a task is always a list",
                argument="known_sessions",
            )
        return known
