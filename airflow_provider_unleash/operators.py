"""Operators: list devices and sessions, plan windows, and extract the rows of a run's window."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator, ObjectStoragePath, conf

from airflow_provider_unleash.assets import add_to_events
from airflow_provider_unleash.core.columns import COLUMNS, columns_of
from airflow_provider_unleash.core.extract import OnEmpty, fetch_records, land
from airflow_provider_unleash.core.formats import Compression, FileFormat, check_file_format
from airflow_provider_unleash.core.moments import format_ms, parse_duration, parse_timezone
from airflow_provider_unleash.core.planning import DeviceWindow, plan_steps, split_by_size
from airflow_provider_unleash.core.protocol import Endpoint, check_device_id
from airflow_provider_unleash.core.sessions import select_sessions, session_bounds
from airflow_provider_unleash.core.staging import check_checkpoint_pages
from airflow_provider_unleash.core.stores import url_of
from airflow_provider_unleash.core.windows import RowCounts, Window, parse_step, resolve_window
from airflow_provider_unleash.exceptions import InvalidArgumentError, WindowError
from airflow_provider_unleash.folders import check_folder, open_folder
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, ConnectedTask
from airflow_provider_unleash.lineage import Extraction, Written, lineage_of
from airflow_provider_unleash.metrics import report_extraction
from airflow_provider_unleash.tasks import (
    WINDOW_CHECKS,
    XCOM_RESERVED_KEYS,
    check_arguments,
    check_choice,
    check_device_ids,
    check_literal_bounds,
    check_map_length,
    check_positive,
    check_start_before_end,
    is_final,
    is_literal,
    no_retry,
    retry_arguments,
    run_times,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, RetryPolicy, XComArg
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_unleash.client import UnleashClient


class _UnleashOperator(ConnectedTask, BaseOperator):
    """Base of all operators: the connection, and no retries after a permanent error."""

    template_fields: Sequence[str] = ("unleash_conn_id",)
    ui_color = "#d8e8f6"

    # retry_policy is a named argument so that default_args can set it.
    def __init__(
        self, *, unleash_conn_id: str = DEFAULT_CONN_ID, retry_policy: RetryPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**retry_arguments(retry_policy), **kwargs)
        self.unleash_conn_id = unleash_conn_id

    def execute(self, context: Context) -> Any:
        with no_retry():
            return self._execute(context)

    def _execute(self, context: Context) -> Any:
        raise NotImplementedError


class UnleashListDevicesOperator(_UnleashOperator):
    """
    Return the ids of all devices of the account, ``list[str]``, for ``.expand(device_id=devices.output)``.

    Each id is returned once, in the API's order.

    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    """

    def _execute(self, context: Context) -> list[str]:
        with self._open_client() as client:
            devices = list(dict.fromkeys(client.list_devices()))
        self.log.info("Devices of the account: %d", len(devices))
        check_map_length(self, devices)
        return devices


class UnleashListSessionsOperator(_UnleashOperator):
    """
    Return the ids of the account's sessions, ``list[str]``, in the API's order.

    :param since: only sessions that start at or after this: datetime, ISO 8601 string or epoch milliseconds
        (templated).
    :param until: only sessions that start before this (templated).
    :param unleash_conn_id: connection of type "Unleash live" (templated).
    :param retry_policy: when to retry the task (Airflow 3.3); by default when the API's ``Retry-After`` allows.
    """

    template_fields: Sequence[str] = (*_UnleashOperator.template_fields, "since", "until")

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


class UnleashPlanWindowsOperator(_UnleashOperator):
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
    :param timezone: time zone of the calendar, such as ``Europe/Berlin``; by default the DAG's (templated).
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
        *_UnleashOperator.template_fields,
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
        zone = times["dag_timezone"] = parse_timezone(self.timezone) or times["dag_timezone"]
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


# ---- extraction ----------------------------------------------------------------------------------


class _FetchOperator(_UnleashOperator):
    """Base of the fetch operators: the device, the window, lineage, and what happens without rows."""

    template_fields: Sequence[str] = (
        *_UnleashOperator.template_fields,
        *("device_id", "start", "end", "window", "endpoint", "on_empty"),
    )

    _extraction: Extraction | None = None

    def __init__(
        self,
        *,
        device_id: str,
        start: datetime | str | int | None = None,
        end: datetime | str | int | None = None,
        window: timedelta | str | None = None,
        endpoint: Endpoint = "compact",
        on_empty: OnEmpty = "succeed",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.device_id = device_id
        self.start = start
        self.end = end
        self.window = window
        self.endpoint = endpoint
        self.on_empty = on_empty
        with no_retry():
            self._check_arguments(is_literal)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        checks: dict[str, Callable[[Any], object]] = {
            **WINDOW_CHECKS,
            "device_id": check_device_id,
            "on_empty": lambda value: check_choice("on_empty", value, get_args(OnEmpty)),
        }
        check_arguments(self, checks, is_known)
        check_start_before_end(self, is_known)

    def _execute(self, context: Context) -> Any:
        self._extraction = None
        self._check_arguments(is_final)
        window = resolve_window(start=self.start, end=self.end, window=self.window, **run_times(context))
        self.log.info("The window is %s", window)
        self._name_if_mapped(context)
        with self._open_client() as client:
            began = time.monotonic()
            self._extraction = Extraction(client.base_url, [self.device_id], window)
            return self._fetch(client, window, began)

    def _name_if_mapped(self, context: Context) -> None:
        """Let the grid show the device, and the start if it is given, instead of the index."""
        values: Any = context
        if getattr(values.get("ti"), "map_index", -1) >= 0 and not values.get("map_index_template"):
            values["map_index_template"] = "{{ task.device_id }}" + (" {{ task.start }}" if self.start else "")

    def _fetch(self, client: UnleashClient, window: Window, began: float) -> Any:
        raise NotImplementedError

    def _report(
        self, verb: str, counts: RowCounts, size: int, destination: object, client: UnleashClient, began: float
    ) -> dict[str, float]:
        """Log and report the statistics of an extraction, and return them."""
        traffic = client.traffic
        statistics = {
            "seconds": round(time.monotonic() - began, 3),
            "requests": traffic.requests,
            "retries": traffic.retries,
            "throttled_seconds": round(traffic.throttled_seconds, 3),
        }
        report_extraction(rows=counts.rows, size=size, seconds=statistics["seconds"])
        self.log.info(
            "%s %d rows to %s. Pages: %d, bytes: %d, seconds: %.1f, requests: %d, retries: %d, throttled seconds: %.1f",
            *(verb, counts.rows, destination, counts.pages, size, *statistics.values()),
        )
        return statistics

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """Return the lineage of this try, successful or not; makes no requests."""
        return lineage_of(self._extraction)


class UnleashGetAnalyticsOperator(_FetchOperator):
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

    def __init__(self, *, max_xcom_bytes: int = 1_048_576, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_xcom_bytes = max_xcom_bytes

    def _fetch(self, client: UnleashClient, window: Window, began: float) -> list[dict[str, Any]]:
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
        self._report("Returned", counts, size, "XCom", client, began)
        return records


class UnleashToObjectStorageOperator(_FetchOperator):
    """
    Write the rows of a device in the run's window as one object, and return a small summary.

    The object is ``<dst>/device=<id>/start_date=<YYYY-MM-DD>/<start>_<end>.<ext>``. Its name depends on device, window
    and format alone: a rerun or a backfill replaces its own object and nothing else. It is published whole or not at
    all. The window is ``start`` and ``end`` if given, else the run's data interval, else ``window``.

    The summary has ``device_id, start, end, window_rule, endpoint, file_format, pages, rows, rows_before_start,
    rows_after_end, rows_at_end, files: [{path, url, rows, bytes}]`` and the statistics ``seconds, requests, retries,
    throttled_seconds, resumed_pages`` (pages that an earlier try had read). The events of assets in ``outlets``, such
    as from :func:`~airflow_provider_unleash.assets.asset_of`, have ``device_id, start, end, rows, pages, bytes, files``
    in their extra; each mapped task emits its own event.

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

    template_fields: Sequence[str] = (
        *_FetchOperator.template_fields,
        *("dst", "file_format", "compression", "column_types", "resume_within"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"column_types": "json"}

    def __init__(
        self,
        *,
        dst: str | ObjectStoragePath,
        file_format: FileFormat = "jsonl",
        compression: Compression | None = None,
        column_types: Mapping[str, str] | None = None,
        replace_with_empty: bool = False,
        checkpoint_pages: int | None = 200,
        resume_within: timedelta | str | None = timedelta(days=1),
        **kwargs: Any,
    ) -> None:
        self.dst = dst
        self.file_format = file_format
        self.compression = compression
        self.column_types = column_types
        self.replace_with_empty = replace_with_empty
        self.checkpoint_pages = checkpoint_pages
        self.resume_within = resume_within
        super().__init__(**kwargs)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        super()._check_arguments(is_known)
        check_checkpoint_pages(self.checkpoint_pages)
        if is_known(self.resume_within):
            parse_duration(self.resume_within, "resume_within")
        if all(map(is_known, (self.file_format, self.compression, self.column_types))):
            check_file_format(self.file_format, self.compression, self.column_types)
        if is_known(self.dst):
            check_folder(str(self.dst))

    def _execute(self, context: Context) -> dict[str, Any]:
        summary: dict[str, Any] = super()._execute(context)
        add_to_events(context, self.outlets, summary)
        return summary

    def _fetch(self, client: UnleashClient, window: Window, began: float) -> dict[str, Any]:
        landed = land(
            client,
            self.device_id,
            window,
            open_folder(self.dst),
            file_format=self.file_format,
            compression=self.compression,
            column_types=self.column_types,
            endpoint=self.endpoint,
            on_empty=self.on_empty,
            replace_with_empty=self.replace_with_empty,
            checkpoint_pages=self.checkpoint_pages,
            resume_within=parse_duration(self.resume_within, "resume_within"),
        )
        if landed.is_skipped:
            raise AirflowSkipException(f"Device {self.device_id} has no rows in the window")
        counts, size = landed.counts, landed.size
        if self._extraction:
            columns = columns_of(self.column_types) if self.file_format in ("csv", "parquet") else COLUMNS
            account = getattr(landed.path.fs, "account_name", None)  # Azure's file system has it
            self._extraction.written = Written(str(self.dst), columns, counts.rows, size, account)
        statistics = self._report("Wrote", counts, size, landed.path, client, began)
        url = url_of(landed.path)
        path = str(landed.path) if "://" in str(landed.path) else url  # a local path is not a URL
        return {
            "device_id": self.device_id,
            "start": format_ms(window.start_ms),
            "end": format_ms(window.end_ms),
            "window_rule": window.rule,
            "endpoint": self.endpoint,
            "file_format": self.file_format,
            **asdict(counts),
            **statistics,
            "resumed_pages": landed.resumed_pages,
            "files": [{"path": path, "url": url, "rows": counts.rows, "bytes": size}],
        }
