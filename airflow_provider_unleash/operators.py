"""Operators: extract the rows of a run's window, list devices and sessions, plan windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException, conf

from airflow_provider_unleash.core.account import land_account
from airflow_provider_unleash.core.extract import fetch_records, land
from airflow_provider_unleash.core.moments import parse_timezone
from airflow_provider_unleash.core.planning import DeviceWindow, plan_steps, split_by_size
from airflow_provider_unleash.core.protocol import Endpoint, check_device_id
from airflow_provider_unleash.core.sessions import select_sessions, session_bounds
from airflow_provider_unleash.core.staging import CHECKPOINT_PAGES, check_checkpoint_pages
from airflow_provider_unleash.core.windows import Window, parse_step, resolve_window
from airflow_provider_unleash.exceptions import InvalidArgumentError, WindowError
from airflow_provider_unleash.fetching import FetchOperator, StorageOperator, UnleashOperator, place_in_summary
from airflow_provider_unleash.lineage import Extraction
from airflow_provider_unleash.tasks import (
    WINDOW_CHECKS,
    XCOM_RESERVED_KEYS,
    check_arguments,
    check_device_ids,
    check_literal_bounds,
    check_map_length,
    check_positive,
    check_start_before_end,
    is_final,
    is_literal,
    is_mapped,
    no_retry,
    run_times,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_unleash.client import UnleashClient


class UnleashAccountToObjectStorageOperator(StorageOperator):
    """
    Write the rows of all devices of the account in the run's window to object storage, and return a small summary.

    The objects are ``<dst>/device=<id>/start_date=<YYYY-MM-DD>/<start>_<end>.<ext>``, one per device with rows; with
    ``split_by_device=False``, one for all devices, ``<dst>/start_date=<YYYY-MM-DD>/<start>_<end>.<ext>``, with rows
    ordered by device. Names depend on device, window and format alone, so a rerun or a backfill replaces its own
    objects and nothing else. At the end, a manifest below ``<dst>/_manifest`` records each device. The connection's
    ``page_concurrency`` is the number of requests in flight for the whole task. The window is ``start`` and ``end`` if
    given, else the run's data interval, else ``window``.

    If a device fails, the others go on, and the task fails at the end. A retry extracts only the devices that have not
    landed. An error that concerns all devices, such as a wrong key, ends the task at once.

    The summary has ``start, end, window_rule, endpoint, file_format, devices, devices_with_rows, pages, rows,
    rows_before_start, rows_after_end, rows_at_end, bytes, objects, overlapping_windows, manifest: {path, url}`` and the
    statistics ``seconds, requests, retries, throttled_seconds, resumed_devices`` (devices that an earlier try had
    landed). Each asset in ``outlets``, such as from :func:`~airflow_provider_unleash.assets.asset_of`, gets one event
    with the totals and the manifest.

    :param dst: folder URL with the Airflow connection in it, such as ``s3://aws_default@lake/unleash`` (templated).
    :param device_ids: devices to extract: a list, or the output of a task; None means all devices that the account has
        when the task runs (templated).
    :param file_format: ``jsonl``, ``json`` (one array), ``csv`` or ``parquet`` (needs pyarrow) (templated).
    :param compression: ``gzip`` or None; Parquet is compressed internally (templated).
    :param column_types: additional columns of Parquet and CSV, such as ``{"confidence": "float64"}``; the types are
        string, int64, float64, bool and timestamp (templated).
    :param split_by_device: True for one object per device, False for one object for all devices.
    :param replace_with_empty: let a response without rows replace an object that has rows. With one object for all
        devices: also let it lose the rows of devices that this task does not extract.
    :param resume_within: how long after a failed try a retry may leave out what has landed: ``timedelta`` or ISO 8601
        duration such as ``P1D``; None extracts everything again (templated).
    :param start: start of the window: datetime, ISO 8601 string or epoch milliseconds (templated).
    :param end: end of the window, exclusive (templated).
    :param window: length of the window for runs without a data interval (templated).
    :param endpoint: ``compact`` or ``tableau``; both give the same rows (templated).
    :param on_empty: if no device has rows, ``succeed`` records that in the manifest, ``skip`` also skips the task,
        ``fail`` fails it (templated).
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    :raises PartialExtractionError: if some devices failed, at least one of them in a way that a retry may cure.
    :raises PermanentPartialExtractionError: if some devices failed, and no retry can help any of them.
    :raises EmptyReplacementError: if one object for all devices would lose rows.
    :raises EmptyResultError: if no device has rows and ``on_empty="fail"``.
    :raises InvalidArgumentError: if ``dst`` has objects of another layout or format, or if mapped tasks with
        ``device_ids`` would write to one object.
    :raises WindowError: if the run has no window.
    """

    template_fields: Sequence[str] = (*StorageOperator.template_fields, "device_ids")

    def __init__(
        self,
        *,
        device_ids: Sequence[str] | XComArg | None = None,
        split_by_device: bool = True,
        **kwargs: Any,
    ) -> None:
        self.device_ids: Any = device_ids  # the output of a task becomes a list when this task runs
        self.split_by_device = split_by_device
        super().__init__(**kwargs)

    def _name_if_mapped(self) -> str:
        if not self.device_ids:
            return ""
        count = "{{ task.device_ids | length }} device{{ 's' if task.device_ids | length > 1 }}"
        return count + " from {{ task.device_ids | first }}"

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        super()._check_arguments(is_known)
        if self.device_ids is not None and is_known(self.device_ids):
            check_device_ids(self.device_ids)

    def _execute(self, context: Context) -> Any:
        if self.device_ids is not None and not self.split_by_device and is_mapped(context):
            raise InvalidArgumentError(
                "Mapped tasks with device_ids would replace each other's object of all devices: use "
                "split_by_device=True, or one task without device_ids",
                argument="split_by_device",
            )
        return super()._execute(context)

    def _fetch(self, client: UnleashClient, window: Window, context: Context) -> dict[str, Any]:
        began = time.monotonic()
        self._extraction = Extraction(client.base_url, self.device_ids or (), window)
        landed = land_account(
            client, self.device_ids, window, split_by_device=self.split_by_device, **self._land_arguments(context)
        )
        self._extraction.device_ids = landed.device_ids
        devices = len(landed.device_ids)
        what = f"Wrote {landed.counts.rows} rows of {devices} devices to {landed.objects} objects in {self.dst}"
        statistics = self._report(what, landed.counts, landed.size, client, began)
        summary = self._summarize(
            window,
            landed.counts,
            landed.size,
            landed.manifest,
            context,
            devices=devices,
            devices_with_rows=landed.devices_with_rows,
            objects=landed.objects,
        )
        if landed.is_skipped:
            raise AirflowSkipException("No device has rows in the window")
        return {
            **summary,
            "bytes": landed.size,
            "overlapping_windows": len(landed.overlapping),
            "manifest": place_in_summary(landed.manifest),
            **statistics,
            "resumed_devices": landed.resumed_devices,
        }


class UnleashToObjectStorageOperator(StorageOperator):
    """
    Write the rows of a device in the run's window as one object, and return a small summary.

    The object is ``<dst>/device=<id>/start_date=<YYYY-MM-DD>/<start>_<end>.<ext>``. Its name depends on device, window
    and format alone: a rerun or a backfill replaces its own object and nothing else. It is published whole or not at
    all. The window is ``start`` and ``end`` if given, else the run's data interval, else ``window``.

    The summary has ``device_id, start, end, window_rule, endpoint, file_format, pages, rows, rows_before_start,
    rows_after_end, rows_at_end, overlapping_windows, files: [{path, url, rows, bytes}]`` and the statistics ``seconds,
    requests, retries, throttled_seconds, resumed_pages`` (pages that an earlier try had read). The events of assets in
    ``outlets``, such as from :func:`~airflow_provider_unleash.assets.asset_of`, have ``device_id, start, end, rows,
    pages, bytes, files, manifest`` in their extra; each mapped task emits its own event.

    :param device_id: a device of the account (templated).
    :param dst: folder URL with the Airflow connection in it, such as ``s3://aws_default@lake/unleash`` (templated).
    :param file_format: ``jsonl``, ``json`` (one array), ``csv`` or ``parquet`` (needs pyarrow) (templated).
    :param compression: ``gzip`` or None; Parquet is compressed internally (templated).
    :param column_types: additional columns of Parquet and CSV, such as ``{"confidence": "float64"}``; the types are
        string, int64, float64, bool and timestamp (templated).
    :param replace_with_empty: let a response without rows replace an object that has rows.
    :param checkpoint_pages: longer extractions stage their pages under ``<dst>/_staging``, this many per file, until
        the object is published; a retry requests only the rest. None stages nothing.
    :param resume_within: maximum age of staged pages: ``timedelta`` or ISO 8601 duration such as ``P1D``; None
        ignores them (templated).
    :param start: start of the window: datetime, ISO 8601 string or epoch milliseconds (templated).
    :param end: end of the window, exclusive (templated).
    :param window: length of the window for runs without a data interval (templated).
    :param endpoint: ``compact`` or ``tableau``; both give the same rows (templated).
    :param on_empty: without rows, ``succeed`` writes an empty object, ``skip`` skips the task and writes nothing,
        ``fail`` fails it (templated).
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    :raises EmptyReplacementError: if no rows would replace an object that has rows.
    :raises UnexpectedResponseError: if a value does not fit its column (Parquet, CSV).
    :raises EmptyResultError: if there are no rows and ``on_empty="fail"``.
    :raises NotFoundError: if the account does not have the device.
    :raises WindowError: if the run has no window.
    """

    template_fields: Sequence[str] = (*StorageOperator.template_fields, "device_id")

    def __init__(self, *, device_id: str, checkpoint_pages: int | None = CHECKPOINT_PAGES, **kwargs: Any) -> None:
        self.device_id = device_id
        self.checkpoint_pages = checkpoint_pages
        super().__init__(**kwargs)

    def _name_if_mapped(self) -> str:
        return "{{ task.device_id }}"

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        check_arguments(self, {"device_id": check_device_id}, is_known)
        super()._check_arguments(is_known)
        check_checkpoint_pages(self.checkpoint_pages)

    def _fetch(self, client: UnleashClient, window: Window, context: Context) -> dict[str, Any]:
        began = time.monotonic()
        self._extraction = Extraction(client.base_url, [self.device_id], window)
        arguments = self._land_arguments(context)
        landed = land(client, self.device_id, window, checkpoint_pages=self.checkpoint_pages, **arguments)
        if landed.is_skipped:
            raise AirflowSkipException(f"Device {self.device_id} has no rows in the window")
        what = f"Wrote {landed.counts.rows} rows to {landed.path}"
        statistics = self._report(what, landed.counts, landed.size, client, began)
        file = {**place_in_summary(landed.path), "rows": landed.counts.rows, "bytes": landed.size}
        summary = self._summarize(
            window, landed.counts, landed.size, landed.manifest, context, device_id=self.device_id, files=[file]
        )
        return {
            **summary,
            **statistics,
            "resumed_pages": landed.resumed_pages,
            "overlapping_windows": len(landed.overlapping),
        }


class UnleashGetAnalyticsOperator(FetchOperator):
    """
    Return the rows of a device in the run's window through XCom, ``list[dict]``; for small windows.

    The window is ``start`` and ``end`` if given, else the run's data interval, else ``window``.

    :param device_id: a device of the account (templated).
    :param start: start of the window: datetime, ISO 8601 string or epoch milliseconds (templated).
    :param end: end of the window, exclusive (templated).
    :param window: length of the window for runs without a data interval (templated).
    :param endpoint: ``compact`` or ``tableau``; both give the same rows (templated).
    :param on_empty: without rows, ``succeed`` returns ``[]``, ``skip`` skips the task, ``fail`` fails it (templated).
    :param max_xcom_bytes: the most that the rows may take as JSON, in bytes.
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    :raises ResultTooLargeError: if the rows take more than ``max_xcom_bytes``.
    :raises UnexpectedResponseError: if XCom would change a row, because of its keys.
    :raises EmptyResultError: if there are no rows and ``on_empty="fail"``.
    :raises NotFoundError: if the account does not have the device.
    :raises WindowError: if the run has no window.
    """

    template_fields: Sequence[str] = (*FetchOperator.template_fields, "device_id")

    def __init__(self, *, device_id: str, max_xcom_bytes: int = 1_048_576, **kwargs: Any) -> None:
        self.device_id = device_id
        self.max_xcom_bytes = max_xcom_bytes
        super().__init__(**kwargs)

    def _name_if_mapped(self) -> str:
        return "{{ task.device_id }}"

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        check_arguments(self, {"device_id": check_device_id}, is_known)
        super()._check_arguments(is_known)

    def _fetch(self, client: UnleashClient, window: Window, context: Context) -> list[dict[str, Any]]:
        began = time.monotonic()
        self._extraction = Extraction(client.base_url, [self.device_id], window)
        records, counts, size = fetch_records(
            client,
            self.device_id,
            window,
            endpoint=self.endpoint,
            on_empty=self.on_empty,
            max_bytes=self.max_xcom_bytes,
            reserved_keys=XCOM_RESERVED_KEYS,
        )
        if not records and self.on_empty == "skip":
            raise AirflowSkipException(f"Device {self.device_id} has no rows in the window")
        self._report(f"Returned {counts.rows} rows to XCom", counts, size, client, began)
        return records


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
            check_positive("batch_size", batch_size)

    def _execute(self, context: Context) -> list[str] | list[list[str]]:
        with self._open_client() as client:
            devices = list(dict.fromkeys(client.list_devices()))
        self.log.info("Devices of the account: %d", len(devices))
        if self.batch_size is None:
            check_map_length(self, devices)
            return devices
        batches = [devices[first : first + self.batch_size] for first in range(0, len(devices), self.batch_size)]
        check_map_length(self, batches)
        return batches


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
        since_ms, until_ms = session_bounds(self.since, self.until)
        with self._open_client() as client:
            sessions = list(dict.fromkeys(client.list_sessions()))
        selected = set(select_sessions(sessions, since_ms=since_ms, until_ms=until_ms))
        self.log.info("Sessions of the account: %d, selected: %d", len(sessions), len(selected))
        found = [session for session in sessions if session in selected]
        check_map_length(self, found)
        return found


class UnleashPlanWindowsOperator(UnleashOperator):
    """
    Return devices × a span as a bounded list of windows, for ``.expand_kwargs(plan.output)`` of a fetch operator.

    The span is ``start`` and ``end`` if given, else the run's data interval, else ``window``. Each item is
    ``{"device_id": ..., "start": ..., "end": ...}``, device by device, with ISO 8601 strings in ``timezone``. The
    windows of a device cover the span without gaps or overlaps.

    With calendar steps (``every``), the same span always gives the same windows. By size (``max_pages``), the windows
    depend on the data that the API has when the task runs, so a later plan may cut elsewhere and give other objects.

    :param device_ids: devices of the account: a list, or for example ``devices.output`` (templated).
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
        *("device_ids", "every", "start", "end", "window", "timezone", "endpoint"),
    )

    def __init__(
        self,
        *,
        device_ids: Sequence[str] | XComArg,
        every: timedelta | str | None = None,
        start: datetime | str | int | None = None,
        end: datetime | str | int | None = None,
        window: timedelta | str | None = None,
        timezone: tzinfo | str | None = None,
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
            "max_pages": lambda value: check_positive("max_pages", value),
            "max_windows": lambda value: check_positive("max_windows", value),
        }
        check_arguments(self, checks, is_known)
        check_start_before_end(self, is_known)
        if is_known(self.every) and parse_step(self.every) is None and self.max_pages is None:
            raise InvalidArgumentError('every (such as every="day") or max_pages is required', argument="every")

    def _execute(self, context: Context) -> list[dict[str, str]]:
        self._check_arguments(is_final)
        times = run_times(context)
        zone = times["timezone"] = parse_timezone(self.timezone) or times["timezone"]
        span = resolve_window(start=self.start, end=self.end, window=self.window, **times)
        if span.start_ms == span.end_ms:
            raise WindowError(f"start and end are both {span.start}: the span is empty", argument="start")
        device_ids = list(dict.fromkeys(self.device_ids))
        max_windows = self.max_windows or conf.getint("core", "max_map_length", fallback=1024)
        planned = plan_steps(device_ids, span, parse_step(self.every), zone, max_windows=max_windows)
        if self.max_pages is not None:
            planned = self._split(planned, self.max_pages, max_windows)
        self.log.info("Planned %d windows of %d devices; the span is %s", len(planned), len(device_ids), span)
        check_map_length(self, planned)
        return [
            {
                "device_id": one.device_id,
                "start": one.window.start.astimezone(zone).isoformat(),
                "end": one.window.end.astimezone(zone).isoformat(),
            }
            for one in planned
        ]

    def _split(self, planned: list[DeviceWindow], max_pages: int, max_windows: int) -> list[DeviceWindow]:
        with self._open_client() as client:

            def count_pages(windows: Sequence[DeviceWindow]) -> Generator[int, None, None]:
                requested = [(one.device_id, one.window.start_ms, one.window.end_ms) for one in windows]
                return client.iter_page_counts(requested, endpoint=self.endpoint)

            return split_by_size(planned, count_pages, max_pages=max_pages, max_windows=max_windows)
