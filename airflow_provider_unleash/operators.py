"""Operators: the lists, windows planned for a backfill, and the rows of a run's window to XCom or object storage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator

from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    EmptyResultError,
    InvalidArgumentError,
    NotFoundError,
    ResultTooLargeError,
    WindowError,
)
from airflow_provider_unleash.hooks import (
    DEFAULT_CONN_ID,
    UnleashHook,
    check_visible_bounds,
    failing_for_good,
    failing_for_good_when_mapped,
    is_visible,
    moments_of,
)
from airflow_provider_unleash.retries import retry_arguments

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, RetryPolicy, XComArg
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_unleash.client import UnleashClient
    from airflow_provider_unleash.lineage import Extraction
    from airflow_provider_unleash.planning import DeviceWindow
    from airflow_provider_unleash.protocol import Endpoint, Page
    from airflow_provider_unleash.staging import FolderPath, Staging
    from airflow_provider_unleash.window import HalfOpen, RowCounts, Window
    from airflow_provider_unleash.writers import Compression, FileFormat

PROGRESS_SECONDS = 10.0
OnEmpty = Literal["succeed", "skip", "fail"]


class _UnleashOperator(BaseOperator):
    """
    What all operators share: the connection, and that an error which repeating cannot help fails the task at once.

    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    """

    template_fields: Sequence[str] = ("unleash_conn_id",)
    ui_color = "#d8e8f6"

    # By its name, so that default_args reach it.
    def __init__(
        self, *, unleash_conn_id: str = DEFAULT_CONN_ID, retry_policy: RetryPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**retry_arguments(retry_policy), **kwargs)
        self.unleash_conn_id = unleash_conn_id

    @property
    def hook(self) -> UnleashHook:
        return UnleashHook(self.unleash_conn_id)

    def execute(self, context: Context) -> Any:
        with failing_for_good():
            return self._execute(context)

    def _execute(self, context: Context) -> Any:
        raise NotImplementedError


class UnleashListDevicesOperator(_UnleashOperator):
    """
    Return the ids of all devices of the account, ``list[str]``, ready for ``.expand(device_id=devices.output)``.

    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    """

    def _execute(self, context: Context) -> list[str]:
        devices = self.hook.list_devices()
        self.log.info("The account has %d devices", len(devices))
        return devices


class UnleashListSessionsOperator(_UnleashOperator):
    """
    Return the ids of the account's sessions, ``list[str]``, in the order of the API; filtered only by what is given.

    :param since: only sessions that start at or after this: datetime, ISO 8601 text or epoch milliseconds (templated).
    :param until: only sessions that start before this (templated).
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    :raises UnexpectedResponseError: a bound is given, and an id does not read as a start in epoch milliseconds.
    """

    template_fields: Sequence[str] = (*_UnleashOperator.template_fields, "since", "until")

    def __init__(
        self, *, since: datetime | str | int | None = None, until: datetime | str | int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.until = until
        check_visible_bounds(since, until)

    def _execute(self, context: Context) -> list[str]:
        from airflow_provider_unleash.window import select_sessions, session_bounds

        since_ms, until_ms = session_bounds(self.since, self.until)
        sessions = self.hook.list_sessions()
        selected = set(select_sessions(sessions, since_ms=since_ms, until_ms=until_ms))
        self.log.info("The account has %d sessions, %d of them between the bounds", len(sessions), len(selected))
        return [session for session in sessions if session in selected]


class UnleashPlanWindowsOperator(_UnleashOperator):
    """
    Return devices × a span as a bounded list of windows, ready for ``.expand_kwargs(plan.output)`` of a fetch operator.

    The span is ``start`` and ``end`` where they are given, else the run's data interval, else ``window``. Each item is
    ``{"device_id": …, "start": …, "end": …}``, device by device, start and end as ISO 8601 text in ``timezone``. The
    windows of a device cover the span without a gap and without an overlap.

    By calendar steps (``every``) the same span gives the same windows each time. By size (``max_pages``) they depend
    on what the API has when the task runs: planned again later, they may be cut elsewhere, and so be other objects.

    :param device_ids: the account's devices, or some: a list, or e.g. ``devices.output`` (templated).
    :param every: a step: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, ``timedelta``, pendulum
        duration or ISO 8601 text as ``P1D``; counted from the start of the span, whole days by the calendar of
        ``timezone``; None makes the span one window, to be cut by size (templated).
    :param start: start of the span: datetime, ISO 8601 text or epoch milliseconds; naive is UTC (templated).
    :param end: end of the span, not part of it (templated).
    :param window: length of the span of a run that has no data interval (templated).
    :param timezone: whose calendar it is, e.g. ``Europe/Berlin``; the DAG's where None (templated).
    :param max_pages: cut a window of more pages in halves until none has more, or is shorter than two minutes: one
        request a window, and two more each cut; None cuts none.
    :param max_windows: the most windows that the task returns; ``[core] max_map_length`` where None, above which
        Airflow does not map.
    :param endpoint: ``compact`` or ``tableau``, to count pages (templated).
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    :raises InvalidArgumentError: they would be more than ``max_windows``; says which step would fit.
    :raises NotFoundError: the account does not have a device, and the API says so when it is asked for pages.
    :raises WindowError: the run means no span.
    """

    template_fields: Sequence[str] = (
        *_UnleashOperator.template_fields,
        "device_ids",
        "every",
        "start",
        "end",
        "window",
        "timezone",
        "endpoint",
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
        self.device_ids: Any = device_ids  # the output of a task is its value when the task runs
        self.every = every
        self.start = start
        self.end = end
        self.window = window
        self.timezone = timezone
        self.max_pages = max_pages
        self.max_windows = max_windows
        self.endpoint = endpoint
        with failing_for_good_when_mapped():
            self._check_arguments(is_visible)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        from airflow_provider_unleash.protocol import ENDPOINT_PATHS
        from airflow_provider_unleash.window import (
            given_window,
            parse_duration,
            parse_moment,
            parse_step,
            parse_timezone,
        )

        checks: dict[str, Callable[[Any], object]] = {
            "device_ids": _check_device_ids,
            "every": parse_step,
            "start": lambda value: parse_moment(value, "start"),
            "end": lambda value: parse_moment(value, "end"),
            "window": parse_duration,
            "timezone": parse_timezone,
            "max_pages": lambda value: _check_count("max_pages", value),
            "max_windows": lambda value: _check_count("max_windows", value),
            "endpoint": lambda value: _check_choice("endpoint", value, tuple(ENDPOINT_PATHS)),
        }
        _check_each(self, checks, is_known)
        if is_known(self.start) and is_known(self.end):
            given_window(self.start, self.end)
        if is_known(self.every) and parse_step(self.every) is None and self.max_pages is None:
            raise InvalidArgumentError(
                'Give every, e.g. every="day", or max_pages, or both: without, there is nothing to plan by',
                argument="every",
            )

    def _execute(self, context: Context) -> list[dict[str, str]]:
        from airflow.providers.common.compat.sdk import conf

        from airflow_provider_unleash.planning import plan_steps
        from airflow_provider_unleash.window import parse_step, parse_timezone, resolve_window

        self._check_arguments(lambda value: True)
        moments = moments_of(context)
        zone = moments["dag_timezone"] = parse_timezone(self.timezone) or moments["dag_timezone"]
        span = resolve_window(start=self.start, end=self.end, window=self.window, **moments)
        if span.start_ms == span.end_ms:
            raise WindowError(f"start and end are both {span.start}: there is nothing between them", argument="start")
        device_ids = list(dict.fromkeys(self.device_ids))
        max_windows = self.max_windows or conf.getint("core", "max_map_length", fallback=1024)
        step = parse_step(self.every)
        planned = plan_steps(device_ids, span, step, zone, max_windows=max_windows)
        if self.max_pages is not None:
            planned = self._split(planned, self.max_pages, max_windows)
        self.log.info("%d windows of %d devices; the span is %s", len(planned), len(device_ids), span)
        return [
            {
                "device_id": one.device_id,
                "start": one.window.start.astimezone(zone).isoformat(),
                "end": one.window.end.astimezone(zone).isoformat(),
            }
            for one in planned
        ]

    def _split(self, planned: list[DeviceWindow], max_pages: int, max_windows: int) -> list[DeviceWindow]:
        from airflow_provider_unleash.planning import split_by_size

        with self.hook.get_conn() as client:

            def count_pages(windows: Sequence[DeviceWindow]) -> Generator[int, None, None]:
                asked = [(one.device_id, one.window.start_ms, one.window.end_ms) for one in windows]
                return client.iter_page_counts(asked, endpoint=self.endpoint)

            return split_by_size(planned, count_pages, max_pages=max_pages, max_windows=max_windows)


def _check_device_ids(device_ids: Any) -> None:
    from airflow_provider_unleash.protocol import check_device_id

    # A text is iterable, too. Airflow's outputs of mapped tasks are sequences, and no lists.
    if isinstance(device_ids, (str, bytes, Mapping)) or not isinstance(device_ids, (Sequence, Set)):
        raise InvalidArgumentError(
            f"device_ids={device_ids!r} is no list of device ids; a template gives one only in a DAG with "
            "render_template_as_native_obj=True, the output of a task always: device_ids=devices.output",
            argument="device_ids",
        )
    for device_id in device_ids:
        check_device_id(device_id)


def _check_count(argument: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidArgumentError(f"{argument}={value!r} must be a whole number above zero", argument=argument)


class _FetchOperator(_UnleashOperator):
    """
    What both fetch operators share: the device, the window, and what no rows mean.

    :param device_id: one of the account's devices (templated).
    :param start: start of the window; with ``end`` it wins over the run's own (templated).
    :param end: end of the window, not part of it (templated).
    :param window: length of the window of a run that has no data interval (templated).
    :param endpoint: ``compact`` or ``tableau``; both give the same rows (templated).
    :param on_empty: ``succeed``, ``skip`` or ``fail`` when the window has no rows (templated).
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    """

    template_fields: Sequence[str] = (
        *_UnleashOperator.template_fields,
        "device_id",
        "start",
        "end",
        "window",
        "endpoint",
        "on_empty",
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
        with failing_for_good_when_mapped():
            self._check_arguments(is_visible)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        """Check the arguments whose value is known: at parse time the literal ones, before the first request all."""
        from airflow_provider_unleash.protocol import ENDPOINT_PATHS, check_device_id
        from airflow_provider_unleash.window import given_window, parse_duration, parse_moment

        checks: dict[str, Callable[[Any], object]] = {
            "device_id": check_device_id,
            "start": lambda value: parse_moment(value, "start"),
            "end": lambda value: parse_moment(value, "end"),
            "window": parse_duration,
            "endpoint": lambda value: _check_choice("endpoint", value, tuple(ENDPOINT_PATHS)),
            "on_empty": lambda value: _check_choice("on_empty", value, get_args(OnEmpty)),
        }
        _check_each(self, checks, is_known)
        if is_known(self.start) and is_known(self.end):
            given_window(self.start, self.end)

    def _execute(self, context: Context) -> Any:
        from airflow_provider_unleash.client import restart_on_change
        from airflow_provider_unleash.lineage import Extraction
        from airflow_provider_unleash.window import resolve_window

        self._extraction = None
        self._check_arguments(lambda value: True)
        window = resolve_window(start=self.start, end=self.end, window=self.window, **moments_of(context))
        self.log.info("The window is %s", window)
        with self.hook.get_conn() as client:
            began = time.monotonic()
            self._extraction = Extraction(client.base_url, self.device_id, window)
            return restart_on_change(lambda: self._fetch(client, window, began))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """Return what OpenLineage is told of this try, however it ended; asks nobody."""
        from airflow_provider_unleash.lineage import lineage_of

        return lineage_of(self._extraction)

    def _fetch(self, client: UnleashClient, window: Window, began: float) -> Any:
        raise NotImplementedError

    @contextmanager
    def _open_pages(
        self, client: UnleashClient, window: Window, staging: Staging | None = None
    ) -> Iterator[tuple[Iterator[Page], RowCounts]]:
        """Yield the window's pages and what is counted of them; end the requests under way however the block ends."""
        from airflow_provider_unleash.window import HalfOpen

        resume = staging.resume if staging else None
        asked = client.iter_pages(self.device_id, window.start, window.end, endpoint=self.endpoint, resume=resume)
        with ExitStack() as stack:
            pages = stack.enter_context(closing(asked))
            if staging:
                pages = stack.enter_context(closing(staging.keep(pages)))
            half_open = HalfOpen(window, pages)
            yield self._report_progress(half_open), half_open.counts

    def _report_progress(self, pages: HalfOpen) -> Iterator[Page]:
        """Yield the pages, and log how far it is, at most every ten seconds."""
        began = reported = time.monotonic()
        for page in pages:
            number, total = page.number, max(page.number, page.total_pages)  # of no rows, there may be 0 pages
            yield page
            del page  # as the client does
            now = time.monotonic()
            if now - reported >= PROGRESS_SECONDS:
                reported = now
                rows, seconds = pages.counts.rows, now - began
                self.log.info(
                    "%d of %d pages (%.0f %%), %d rows, %.0f rows/s, about %.0f s left",
                    *(number, total, 100 * number / total, rows, rows / seconds),
                    seconds * (total / number - 1),
                )

    def _report_effort(
        self, did: str, counts: RowCounts, size: int, receiver: object, effort: Mapping[str, float]
    ) -> None:
        from airflow_provider_unleash.metrics import report_extraction

        report_extraction(rows=counts.rows, size=size, seconds=effort["seconds"])
        self.log.info(
            "%s %d rows of %d pages, %d bytes, in %.1f s with %d requests, %d retries, %.1f s throttled, to %s",
            *(did, counts.rows, counts.pages, size, *effort.values(), receiver),
        )

    def _check_empty(self, client: UnleashClient, counts: RowCounts) -> bool:
        """Tell whether there are no rows and the task goes on nevertheless; raise where it does not."""
        if counts.rows:
            return False
        # The API may answer an unknown device like a silent one.
        if not counts.rows_at_end and self.device_id not in client.list_devices():
            raise NotFoundError(
                f"The account has no device {self.device_id!r}; UnleashListDevicesOperator lists those it has",
                device_id=self.device_id,
            )
        said = f"Device {self.device_id} has no rows in the window"
        if self.on_empty == "fail":
            raise EmptyResultError(f"{said}; data may be late, so this is retried")
        if self.on_empty == "skip":
            raise AirflowSkipException(said)
        self.log.info(said)
        return True


def _effort_of(client: UnleashClient, began: float) -> dict[str, float]:
    """Return ``seconds, requests, retries, throttled_seconds``."""
    traffic = client.traffic
    return {
        "seconds": round(time.monotonic() - began, 3),
        "requests": traffic.requests,
        "retries": traffic.retries,
        "throttled_seconds": round(traffic.throttled_seconds, 3),
    }


def _check_each(task: Any, checks: Mapping[str, Callable[[Any], object]], is_known: Callable[[Any], bool]) -> None:
    for name, check in checks.items():
        if is_known(getattr(task, name)):
            check(getattr(task, name))


def _check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidArgumentError(f"{argument}={value!r} is none of {', '.join(choices)}", argument=argument)


class UnleashGetAnalyticsOperator(_FetchOperator):
    """
    Return the rows of a device in the run's window, ``list[dict]``, through XCom; for small windows.

    The window is ``start`` and ``end`` where they are given, else the run's data interval, else ``window``.

    :param device_id: one of the account's devices (templated).
    :param start: start of the window: datetime, ISO 8601 text or epoch milliseconds (templated).
    :param end: end of the window, not part of it (templated).
    :param window: length of the window of a run that has no data interval (templated).
    :param endpoint: ``compact`` or ``tableau``; both give the same rows (templated).
    :param on_empty: when there are no rows: ``succeed`` returns ``[]``, ``skip`` skips, ``fail`` fails (templated).
    :param max_xcom_bytes: the most that the rows may take as JSON, bytes.
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    :raises ResultTooLargeError: the rows are larger than ``max_xcom_bytes``.
    :raises EmptyResultError: no rows, and ``on_empty="fail"``.
    :raises NotFoundError: the account does not have the device.
    :raises WindowError: the run means no window.
    """

    def __init__(self, *, max_xcom_bytes: int = 1_048_576, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_xcom_bytes = max_xcom_bytes

    def _fetch(self, client: UnleashClient, window: Window, began: float) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        size = 0
        with self._open_pages(client, window) as (pages, counts):
            for page in pages:
                new = page.records()
                size += len(json.dumps(new))
                if size > self.max_xcom_bytes:
                    raise ResultTooLargeError(
                        f"The rows of {self.device_id} are more than max_xcom_bytes={self.max_xcom_bytes} already "
                        f"at page {page.number} of {page.total_pages}: use UnleashToObjectStorageOperator, which "
                        "writes them to object storage, or a shorter window",
                        limit=self.max_xcom_bytes,
                    )
                records += new
            self._check_empty(client, counts)
        self._report_effort("Returned", counts, size, "XCom", _effort_of(client, began))
        return records


class UnleashToObjectStorageOperator(_FetchOperator):
    """
    Write the rows of a device in the run's window as one object, and return a small summary.

    The object is ``<dst>/device=<id>/start_date=<YYYY-MM-DD>/<start>_<end>.<ext>``. Its name is a function of device,
    window and format alone: a re-run or a backfill replaces its own object and nothing else. It appears whole or not
    at all. The summary has ``device_id, start, end, window_rule, endpoint, file_format, pages, rows,
    rows_before_start, rows_after_end, rows_at_end, files: [{path, url, rows, bytes}]``, and what it took: ``seconds,
    requests, retries, throttled_seconds``, and of ``pages`` the ``resumed_pages`` that an earlier try had read.
    The events of assets in ``outlets``, e.g. of :func:`~airflow_provider_unleash.assets.asset_of`, have ``device_id,
    start, end, rows, pages, bytes, files`` in their extra; of several mapped tasks, each has one of its own.

    :param device_id: one of the account's devices (templated).
    :param dst: folder URL with the Airflow connection in it, e.g. ``s3://aws_default@lake/unleash`` (templated).
    :param file_format: ``jsonl``, ``json`` (one array), ``csv`` or ``parquet`` (needs pyarrow) (templated).
    :param compression: ``gzip`` or None; Parquet is compressed inside (templated).
    :param column_types: further columns of Parquet and CSV, e.g. ``{"confidence": "float64"}``; types are string,
        int64, float64, bool, timestamp (templated).
    :param replace_with_empty: let an answer without rows replace an object that has rows.
    :param checkpoint_pages: of an extraction of more pages than this, each run of so many is put aside under
        ``<dst>/_staging`` until the object is there, and a retry asks the API only for the rest; None does not.
    :param resume_within: how long pages that were put aside are used: ``timedelta`` or ISO 8601 text as ``P1D``;
        None does not use any (templated).
    :param start: start of the window: datetime, ISO 8601 text or epoch milliseconds (templated).
    :param end: end of the window, not part of it (templated).
    :param window: length of the window of a run that has no data interval (templated).
    :param endpoint: ``compact`` or ``tableau``; both give the same rows (templated).
    :param on_empty: when there are no rows: ``succeed`` writes an empty object, ``skip`` skips the task and writes
        nothing, ``fail`` fails (templated).
    :param unleash_conn_id: connection of type «Unleash live» (templated).
    :param retry_policy: when to try the task again (Airflow 3.3); by default as late as the API asked for.
    :raises EmptyReplacementError: no rows would replace an object that has rows.
    :raises UnexpectedResponseError: a value does not fit its column (Parquet, CSV).
    :raises EmptyResultError: no rows, and ``on_empty="fail"``.
    :raises NotFoundError: the account does not have the device.
    :raises WindowError: the run means no window.
    """

    template_fields: Sequence[str] = (
        *_FetchOperator.template_fields,
        "dst",
        "file_format",
        "compression",
        "column_types",
        "resume_within",
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
        from airflow_provider_unleash.staging import check_checkpoint_pages
        from airflow_provider_unleash.window import parse_duration
        from airflow_provider_unleash.writers import check_dst, check_file_format

        super()._check_arguments(is_known)
        check_checkpoint_pages(self.checkpoint_pages)
        if is_known(self.resume_within):
            parse_duration(self.resume_within, "resume_within")
        if all(map(is_known, (self.file_format, self.compression, self.column_types))):
            check_file_format(self.file_format, self.compression, self.column_types)
        if is_known(self.dst):
            check_dst(str(self.dst))

    def _fetch(self, client: UnleashClient, window: Window, began: float) -> dict[str, Any]:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        from airflow_provider_unleash.stores import url_of
        from airflow_provider_unleash.writers import object_name

        name = object_name(self.device_id, window.start_ms, window.end_ms, self.file_format, self.compression)
        dst = ObjectStoragePath(self.dst)
        path = dst / name
        with self._stage(client, window, dst, name) as staging:
            counts, size = self._write(client, window, path, staging)
        self._keep_lineage(path, counts, size)
        url = url_of(path)
        with_connection = str(path) if "://" in str(path) else url  # a plain folder has neither
        written = {"path": with_connection, "url": url, "rows": counts.rows, "bytes": size}
        effort = _effort_of(client, began)
        self._report_effort("Wrote", counts, size, path, effort)
        effort["resumed_pages"] = staging.resumed_pages
        return self._summarize(window, counts, effort, written)

    def _execute(self, context: Context) -> dict[str, Any]:
        summary: dict[str, Any] = super()._execute(context)
        if self.outlets:
            from airflow_provider_unleash.assets import add_to_events

            add_to_events(context, self.outlets, summary)
        return summary

    def _keep_lineage(self, path: ObjectStoragePath, counts: RowCounts, size: int) -> None:
        from airflow_provider_unleash.lineage import Written
        from airflow_provider_unleash.writers import COLUMNS, columns_of

        if self._extraction:
            columns = columns_of(self.column_types) if self.file_format in ("csv", "parquet") else COLUMNS
            account = getattr(path.fs, "account_name", None)  # Azure's have one
            self._extraction.written = Written(str(self.dst), columns, counts.rows, size, account)

    def _stage(self, client: UnleashClient, window: Window, dst: FolderPath, name: str) -> Staging:
        from airflow_provider_unleash.staging import Staging
        from airflow_provider_unleash.window import parse_duration

        resume_within = parse_duration(self.resume_within, "resume_within")
        checkpoint_pages = self.checkpoint_pages if resume_within else None
        masks = client.mask_stream_tokens is True
        source = [client.base_url, self.device_id, window.start_ms, window.end_ms, self.endpoint, masks]
        return Staging(
            dst, name, source, checkpoint_pages=checkpoint_pages, resume_within=resume_within or timedelta(0)
        )

    def _write(
        self, client: UnleashClient, window: Window, path: ObjectStoragePath, staging: Staging
    ) -> tuple[RowCounts, int]:
        """Write the object and return what was counted of its rows, and its bytes."""
        from airflow_provider_unleash.writers import has_rows, open_object

        with (
            open_object(path, self.file_format, compression=self.compression, column_types=self.column_types) as writer,
            self._open_pages(client, window, staging) as (pages, counts),
        ):
            for page in pages:
                writer.write_page(page)
                del page  # as the client does
            empty = self._check_empty(client, counts)
            if empty and not self.replace_with_empty and has_rows(path, self.file_format, self.compression):
                raise EmptyReplacementError(
                    f"{path} has rows and the API now answers none for its window: it stays as it was. "
                    "replace_with_empty=True replaces it",
                    path=str(path),
                )
        return counts, writer.size

    def _summarize(
        self, window: Window, counts: RowCounts, effort: dict[str, float], written: dict[str, Any]
    ) -> dict[str, Any]:
        from airflow_provider_unleash.protocol import format_ms

        return {
            "device_id": self.device_id,
            "start": format_ms(window.start_ms),
            "end": format_ms(window.end_ms),
            "window_rule": window.rule,
            "endpoint": self.endpoint,
            "file_format": self.file_format,
            **asdict(counts),
            **effort,
            "files": [written],
        }
