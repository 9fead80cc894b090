"""Operators: extract the rows of a run's window, list devices and sessions, plan windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_unleash.core.account import land_account
from airflow_provider_unleash.core.arguments import check_flag, check_whole_number
from airflow_provider_unleash.core.extract import fetch_records, land
from airflow_provider_unleash.core.formats import AccountFormat, FileFormat
from airflow_provider_unleash.core.names import DELTA
from airflow_provider_unleash.core.phrases import plural
from airflow_provider_unleash.core.protocol import check_device_id
from airflow_provider_unleash.core.staging import CHECKPOINT_PAGES
from airflow_provider_unleash.core.windows import partition_key
from airflow_provider_unleash.delta import storage_options_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.fetching import FetchOperator, StorageOperator, place_in_summary
from airflow_provider_unleash.lineage import Extraction
from airflow_provider_unleash.listing import (
    UnleashListDevicesOperator,
    UnleashListSessionsOperator,
    UnleashPlanWindowsOperator,
)
from airflow_provider_unleash.tasks import (
    XCOM_RESERVED_KEYS,
    check_arguments,
    check_device_ids,
    check_partition_support,
    is_mapped,
    run_times,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, XComArg

__all__ = [
    "UnleashAccountToObjectStorageOperator",
    "UnleashGetAnalyticsOperator",
    "UnleashListDevicesOperator",
    "UnleashListSessionsOperator",
    "UnleashPlanWindowsOperator",
    "UnleashToObjectStorageOperator",
]


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

    With ``file_format="delta"``, ``dst`` is a Delta table. One commit replaces the rows of the devices in the window;
    rows of other devices and windows stay. If a device fails, nothing is committed. ``split_by_device`` makes no
    difference.

    The summary has ``start, end, window_rule, endpoint, file_format, devices, devices_with_rows, pages, rows,
    rows_before_start, rows_after_end, rows_at_end, rows_of_other_devices, bytes, objects, overlapping_windows,
    manifest: {path, url}`` and the statistics ``seconds, requests, retries, throttled_seconds, resumed_devices``
    (devices that an earlier try had landed). Each asset in ``outlets``, such as from
    :func:`~airflow_provider_unleash.assets.asset_of`, gets one event with the totals and the manifest.

    :param dst: folder URL with the Airflow connection in it, such as ``s3://aws_default@lake/unleash`` (templated).
    :param device_ids: devices to extract: a list, or the output of a task; None means all devices that the account has
        when the task runs (templated).
    :param file_format: ``jsonl``, ``json`` (one array), ``csv``, ``parquet`` (needs pyarrow) or ``delta`` (a Delta
        table; needs deltalake and pyarrow) (templated).
    :param compression: ``gzip`` or None; Parquet and Delta tables are compressed internally (templated).
    :param column_types: additional columns of Parquet, CSV and Delta tables, such as ``{"confidence": "float64"}``; the
        types are string, int64, float64, bool and timestamp (templated).
    :param split_by_device: True for one object per device, False for one object for all devices.
    :param replace_with_empty: let a response without rows replace rows in the store. With one object for all
        devices: also let it lose the rows of devices that this task does not extract.
    :param partition_format: give the events of ``outlets`` a partition key (Airflow 3.3): the window's start in this
        format, such as ``%Y-%m-%d``, in the timetable's time zone, else the DAG's.
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
    :raises EmptyReplacementError: if one object for all devices, or a Delta table, would lose rows.
    :raises EmptyResultError: if no device has rows and ``on_empty="fail"``.
    :raises InvalidArgumentError: if ``dst`` has objects of another layout or format, or if mapped tasks with
        ``device_ids`` would write to one object.
    :raises WindowError: if the run has no window, or if other windows share its partition key.
    """

    template_fields: Sequence[str] = (*StorageOperator.template_fields, "device_ids")
    _format = AccountFormat

    # The base class has dst and file_format too; here, type checkers see them.
    def __init__(
        self,
        *,
        dst: str | ObjectStoragePath,
        device_ids: Sequence[str] | XComArg | None = None,
        file_format: FileFormat = "jsonl",
        split_by_device: bool = True,
        partition_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.partition_format = partition_format
        self.device_ids: Any = device_ids  # the output of a task becomes a list when this task runs
        self.split_by_device = split_by_device
        super().__init__(dst=dst, file_format=file_format, **kwargs)

    def _name_if_mapped(self) -> str:
        if not self.device_ids:
            return ""
        devices = "{{ task.device_ids | length }} device{{ 's' if task.device_ids | length > 1 }}"
        return devices + " from {{ task.device_ids | first }}"

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        super()._check_arguments(is_known)
        check_flag("split_by_device", self.split_by_device)
        check_arguments(self, {"device_ids": check_device_ids}, is_known)
        if self.partition_format is not None:
            check_partition_support(self.partition_format)
            if not self.outlets:
                raise InvalidArgumentError(
                    "partition_format needs an asset in outlets, whose events get the key", argument="partition_format"
                )

    def _check_mapped(self, context: Context) -> None:
        # Mapped tasks with different starts have different windows, and so different objects.
        shares_window = self.device_ids is not None and not self.start and is_mapped(context)
        if shares_window and self.partition_format is not None:
            raise InvalidArgumentError(
                "Each mapped task with device_ids would report the window as complete: leave out partition_format, and "
                "add the asset to the outlets of a task that runs after them",
                argument="partition_format",
            )
        if shares_window and not self.split_by_device and self.file_format != DELTA:
            raise InvalidArgumentError(
                "Mapped tasks with device_ids would replace each other's object of all devices: use "
                "split_by_device=True, or one task without device_ids",
                argument="split_by_device",
            )

    def _execute(self, context: Context) -> dict[str, Any]:
        self._check_mapped(context)
        window = self._resolve_window(context)
        key = self.partition_format and partition_key(window, self.partition_format, run_times(context).timezone)
        with self._open_client_of(context) as client:
            self.extraction = Extraction(client.base_url, self.device_ids or (), window)
            landed = land_account(
                client,
                self.device_ids,
                window,
                split_by_device=self.split_by_device,
                storage_options=partial(storage_options_of, str(self.dst)),
                **self._land_arguments(context),
            )
            self.extraction.device_ids = landed.device_ids
        if landed.is_skipped:
            raise AirflowSkipException("The devices have no rows in the window")
        facts = {
            "devices": len(landed.device_ids),
            "devices_with_rows": landed.devices_with_rows,
            "objects": landed.objects,
        }
        rows = plural(landed.counts.rows, "row")
        what = f"Wrote {rows} to {self.dst}. Devices: {facts['devices']}, objects: {landed.objects}"
        statistics = self._report(what, landed, client)
        return {
            **self._summarize(window, landed, context, partition_key=key, **facts),
            "bytes": landed.size,
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
    rows_after_end, rows_at_end, rows_of_other_devices, overlapping_windows, files: [{path, url, rows, bytes}]`` and
    the statistics ``seconds, requests, retries, throttled_seconds, resumed_pages`` (pages that an earlier try had
    read). The events of assets in ``outlets``, such as from :func:`~airflow_provider_unleash.assets.asset_of`, have
    ``device_id, start, end, rows, pages, bytes, files, manifest`` in their extra; each mapped task emits its own event.

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

    def __init__(
        self,
        *,
        device_id: str,
        dst: str | ObjectStoragePath,
        file_format: FileFormat = "jsonl",
        checkpoint_pages: int | None = CHECKPOINT_PAGES,
        **kwargs: Any,
    ) -> None:
        self.device_id = device_id
        self.checkpoint_pages = checkpoint_pages
        super().__init__(dst=dst, file_format=file_format, **kwargs)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        check_arguments(self, {"device_id": check_device_id}, is_known)
        super()._check_arguments(is_known)
        check_whole_number("checkpoint_pages", self.checkpoint_pages, or_none=True)

    def _execute(self, context: Context) -> dict[str, Any]:
        window = self._resolve_window(context)
        with self._open_client_of(context) as client:
            self.extraction = Extraction(client.base_url, [self.device_id], window)
            arguments = self._land_arguments(context)
            landed = land(client, self.device_id, window, checkpoint_pages=self.checkpoint_pages, **arguments)
        if landed.is_skipped:
            raise AirflowSkipException(f"Device {self.device_id} has no rows in the window")
        statistics = self._report(f"Wrote {plural(landed.counts.rows, 'row')} to {landed.path}", landed, client)
        file = {**place_in_summary(landed.path), "rows": landed.counts.rows, "bytes": landed.size}
        return {
            **self._summarize(window, landed, context, device_id=self.device_id, files=[file]),
            **statistics,
            "resumed_pages": landed.resumed_pages,
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

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        check_arguments(self, {"device_id": check_device_id}, is_known)
        super()._check_arguments(is_known)
        check_whole_number("max_xcom_bytes", self.max_xcom_bytes)

    def _execute(self, context: Context) -> list[dict[str, Any]]:
        window = self._resolve_window(context)
        with self._open_client_of(context) as client:
            self.extraction = Extraction(client.base_url, [self.device_id], window)
            fetched = fetch_records(
                client,
                self.device_id,
                window,
                endpoint=self.endpoint,
                on_empty=self.on_empty,
                max_bytes=self.max_xcom_bytes,
                reserved_keys=XCOM_RESERVED_KEYS,
            )
        if fetched.is_skipped:
            raise AirflowSkipException(f"Device {self.device_id} has no rows in the window")
        self._report(f"Returned {plural(fetched.counts.rows, 'row')} to XCom", fetched, client)
        return fetched.records
