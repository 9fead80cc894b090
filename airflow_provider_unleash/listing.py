"""Operators that list devices and sessions, and plan windows; import them from ``operators``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_unleash.core.arguments import check_whole_number
from airflow_provider_unleash.core.coverage import read_coverage
from airflow_provider_unleash.core.moments import parse_duration, parse_timezone
from airflow_provider_unleash.core.phrases import plural
from airflow_provider_unleash.core.planning import (
    AccountWindow,
    DeviceWindow,
    check_max_windows,
    cut_to_grid,
    plan_account_gaps,
    plan_device_gaps,
    plan_steps,
    split_by_size,
)
from airflow_provider_unleash.core.protocol import Endpoint
from airflow_provider_unleash.core.sessions import SessionList, session_bounds
from airflow_provider_unleash.core.windows import RunTimes, Window, parse_step, resolve_window
from airflow_provider_unleash.exceptions import InvalidArgumentError, WindowError
from airflow_provider_unleash.fetching import UnleashOperator
from airflow_provider_unleash.folders import check_folder, open_folder
from airflow_provider_unleash.tasks import (
    WINDOW_CHECKS,
    check_arguments,
    check_device_ids,
    check_literal_bounds,
    check_map_length,
    check_start_before_end,
    is_final,
    is_literal,
    no_retry,
    run_times,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, XComArg


class UnleashListDevicesOperator(UnleashOperator):
    """
    Return the ids of all devices of the account, each once and in the API's order.

    Without ``batch_size``, ``list[str]`` for ``.expand(device_id=devices.output)``. With it, ``list[list[str]]`` for
    ``.expand(device_ids=devices.output)`` of :class:`UnleashAccountToObjectStorageOperator`, so that several workers
    share an account.

    :param batch_size: the most devices in a batch.
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    """

    def __init__(self, *, batch_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch_size = batch_size
        with no_retry():
            check_whole_number("batch_size", batch_size, or_none=True)

    def _execute(self, context: Context) -> list[str] | list[list[str]]:
        with self._open_client() as client:
            devices = list(dict.fromkeys(client.list_devices()))
        self.log.info("Devices of the account: %d", len(devices))
        found: list[str] | list[list[str]] = devices
        if self.batch_size is not None:
            found = [devices[first : first + self.batch_size] for first in range(0, len(devices), self.batch_size)]
        check_map_length(self, found)
        return found


class UnleashListSessionsOperator(UnleashOperator):
    """
    Return the ids of the account's sessions, ``list[str]``, in the API's order.

    :param since: only sessions that start at or after this: datetime, ISO 8601 string or epoch milliseconds
        (templated).
    :param until: only sessions that start before this (templated).
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    """

    template_fields: Sequence[str] = (*UnleashOperator.template_fields, "since", "until")

    def __init__(
        self, *, since: datetime | str | int | None = None, until: datetime | str | int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.until = until
        with no_retry():
            check_literal_bounds(since, until)

    def _execute(self, context: Context) -> list[str]:
        since_ms, until_ms = session_bounds(RunTimes(), self.since, self.until)
        with self._open_client() as client:
            sessions = list(dict.fromkeys(client.list_sessions()))
        selected = set(SessionList(sessions).select(since_ms=since_ms, until_ms=until_ms))
        self.log.info("Sessions of the account: %d, selected: %d", len(sessions), len(selected))
        found = [session for session in sessions if session in selected]
        check_map_length(self, found)
        return found


class UnleashPlanWindowsOperator(UnleashOperator):
    """
    Return a span as a bounded list of windows, for ``.expand_kwargs(plan.output)`` of a fetch operator.

    The span is ``start`` and ``end`` if given, else the run's data interval, else ``window``. With ``device_ids``, each
    item is ``{"device_id": ..., "start": ..., "end": ...}``, device by device, with ISO 8601 strings in ``timezone``.
    The windows of a device cover the span without gaps or overlaps. Without ``device_ids``, each item is ``{"start":
    ..., "end": ...}`` for :class:`UnleashAccountToObjectStorageOperator`.

    With ``missing_in``, only windows that have not landed there, or that were extracted earlier than ``settle`` after
    their end, are planned; a second plan after they have landed is empty. Without ``device_ids``, an item then is
    ``{"device_ids": [...], "start": ..., "end": ...}`` with the devices to extract; there are no ``device_ids`` if the
    tree has one object for all devices. The span is cut to whole hours, days, weeks, months,
    quarters or years; weeks begin on Monday.

    With calendar steps (``every``), the same span always gives the same windows. By size (``max_pages``), the windows
    depend on the data that the API has when the task runs, so a later plan may cut elsewhere and give other objects.

    :param device_ids: devices of the account: a list, or for example ``devices.output``; None plans for the account
        operator (templated).
    :param missing_in: the ``dst`` of the extraction: plan only what is missing there, according to its manifests
        (templated).
    :param settle: how long after the end of a window rows may arrive: ``timedelta`` or ISO 8601 duration such as
        ``P2D``. A window that was extracted earlier is planned again (templated).
    :param every: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, ``timedelta``, pendulum duration or ISO
        8601 duration such as ``P1D``. Steps count from the start of the span, whole days by the calendar of
        ``timezone``. None makes the span one window, to be cut by size (templated).
    :param start: start of the span: datetime, ISO 8601 string or epoch milliseconds; naive is UTC (templated).
    :param end: end of the span, exclusive (templated).
    :param window: length of the span for runs without a data interval (templated).
    :param timezone: time zone of the calendar, such as ``Europe/Berlin``; by default the timetable's, else the DAG's
        (templated).
    :param max_pages: cut windows with more pages in halves, down to two minutes. Costs one request per window and two
        per cut. None does not cut.
    :param max_windows: upper limit of the number of windows; by default ``[core] max_map_length``, above which Airflow
        does not map.
    :param endpoint: ``compact`` or ``tableau``, to count pages (templated).
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    :raises InvalidArgumentError: if there are more than ``max_windows``; says which step would fit.
    :raises NotFoundError: if the API returns 404 for a device while its pages are counted.
    :raises WindowError: if the run has no span.
    """

    template_fields: Sequence[str] = (
        *UnleashOperator.template_fields,
        *("device_ids", "every", "start", "end", "window", "timezone", "endpoint", "missing_in", "settle"),
    )

    def __init__(
        self,
        *,
        device_ids: Sequence[str] | XComArg | None = None,
        every: timedelta | str | None = None,
        start: datetime | str | int | None = None,
        end: datetime | str | int | None = None,
        window: timedelta | str | None = None,
        timezone: tzinfo | str | None = None,
        missing_in: str | ObjectStoragePath | None = None,
        settle: timedelta | str | None = None,
        max_pages: int | None = None,
        max_windows: int | None = None,
        endpoint: Endpoint = "compact",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.device_ids: Any = device_ids  # the output of a task becomes a list when this task runs
        self.every = every
        self.start = start
        self.end = end
        self.window = window
        self.timezone = timezone
        self.missing_in = missing_in
        self.settle = settle
        self.max_pages = max_pages
        self.max_windows = max_windows
        self.endpoint = endpoint
        with no_retry():
            self._check_arguments(is_literal)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        checks: dict[str, Callable[[Any], object]] = {
            **WINDOW_CHECKS,
            "device_ids": check_device_ids,
            "every": parse_step,
            "timezone": parse_timezone,
            "missing_in": lambda value: None if value is None else check_folder(str(value)),
            "settle": lambda value: parse_duration(value, "settle"),
            "max_pages": lambda value: check_whole_number("max_pages", value, or_none=True),
            "max_windows": lambda value: check_whole_number("max_windows", value, or_none=True),
        }
        check_arguments(self, checks, is_known)
        check_start_before_end(self, is_known)
        if is_known(self.every) and parse_step(self.every) is None and self.max_pages is None:
            raise InvalidArgumentError('every (such as every="day") or max_pages is required', argument="every")
        if self.max_pages is not None and (self.missing_in is not None or self.device_ids is None):
            raise InvalidArgumentError(
                "max_pages cuts the windows of single devices: it needs device_ids, and does not work with missing_in",
                argument="max_pages",
            )

    def _execute(self, context: Context) -> list[dict[str, Any]]:
        self._check_arguments(is_final)
        times = run_times(context)
        zone = parse_timezone(self.timezone) or times.timezone
        step = parse_step(self.every)
        span = resolve_window(replace(times, timezone=zone), start=self.start, end=self.end, window=self.window)
        if self.missing_in is not None and step is not None:
            span = cut_to_grid(span, step, zone)
        if span.start_ms == span.end_ms:
            raise WindowError(f"start and end are both {span.start}: the span is empty", argument="start")
        max_windows = self.max_windows or conf.getint("core", "max_map_length", fallback=1024)
        planned: Sequence[DeviceWindow] | Sequence[AccountWindow]
        if self.missing_in is not None:
            planned = self._plan_gaps(self.missing_in, span, step, zone)
            check_max_windows(planned, max_windows)
        elif self.device_ids is None:
            planned = [(None, window) for window in plan_steps(span, step, zone, max_windows=max_windows)]
        else:
            devices = list(dict.fromkeys(self.device_ids))
            windows = plan_steps(span, step, zone, max_windows=max_windows, devices=len(devices))
            planned = [(device_id, window) for device_id in devices for window in windows]
            if self.max_pages is not None:
                planned = self._split(planned, self.max_pages, max_windows)
        self.log.info("Planned %s; the span is %s", plural(len(planned), "window"), span)
        check_map_length(self, planned)
        ids = "device_ids" if self.device_ids is None else "device_id"
        return [
            {
                **({} if found is None else {ids: found}),
                "start": window.start.astimezone(zone).isoformat(),
                "end": window.end.astimezone(zone).isoformat(),
            }
            for found, window in planned
        ]

    def _plan_gaps(
        self, dst: str | ObjectStoragePath, span: Window, step: timedelta | None, zone: tzinfo
    ) -> Sequence[DeviceWindow] | Sequence[AccountWindow]:
        device_ids = self.device_ids
        if device_ids is None:
            with self._open_client() as client:
                device_ids = client.list_devices()
        coverage = read_coverage(
            open_folder(dst),
            device_ids=device_ids,
            start=span.start_ms,
            end=span.end_ms,
            every=step,
            timezone=zone,
            settle=parse_duration(self.settle, "settle") or timedelta(0),
        )
        if coverage.other_windows and coverage.counts()["missing"] == len(coverage):
            raise InvalidArgumentError(
                f"{dst} has windows of another grid, such as {coverage.other_windows[0]}, and none of this one. "
                "Extracting these windows would duplicate their rows: set every and timezone to those of the tree",
                argument="every",
            )
        return plan_account_gaps(coverage) if self.device_ids is None else plan_device_gaps(coverage)

    def _split(self, planned: list[DeviceWindow], max_pages: int, max_windows: int) -> list[DeviceWindow]:
        with self._open_client() as client:

            def count_pages(windows: Sequence[DeviceWindow]) -> Generator[int, None, None]:
                requested = [(device_id, window.start_ms, window.end_ms) for device_id, window in windows]
                return client.iter_page_counts(requested, endpoint=self.endpoint)

            return split_by_size(planned, count_pages, max_pages=max_pages, max_windows=max_windows)
