"""The use case: one window of one device becomes one object, or a list of records."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from airflow_provider_unleash.core.formats import (
    Compression,
    FileFormat,
    check_file_format,
    extension_of,
    has_rows,
    open_object,
)
from airflow_provider_unleash.core.manifest import Layout, format_now, new_entry, open_tree, publish_manifest
from airflow_provider_unleash.core.names import manifest_name, object_name
from airflow_provider_unleash.core.pages import PageReader, restart_on_change
from airflow_provider_unleash.core.protocol import Endpoint, Page
from airflow_provider_unleash.core.staging import CHECKPOINT_PAGES, Staging, is_disk_full
from airflow_provider_unleash.core.stores import FolderPath
from airflow_provider_unleash.core.windows import HalfOpenPages, RowCounts, Window
from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    EmptyResultError,
    NotFoundError,
    ResultTooLargeError,
    UnexpectedResponseError,
)

log = logging.getLogger(__name__)

OnEmpty = Literal["succeed", "skip", "fail"]
PROGRESS_SECONDS = 10.0


class PageSource(Protocol):
    """What an extraction needs of a client."""

    @property
    def base_url(self) -> str: ...
    @property
    def mask_stream_tokens(self) -> bool | None: ...
    def open_pages(
        self, device_id: str, start: datetime | int, end: datetime | int, *, endpoint: Endpoint
    ) -> PageReader: ...
    def list_devices(self) -> Collection[str]: ...


@dataclass(frozen=True)
class LandedObject:
    """
    The object of a device in a window.

    :param size: its bytes.
    :param resumed_pages: pages that an earlier try had read.
    :param is_skipped: whether it was not written, because there are no rows.
    """

    path: FolderPath
    counts: RowCounts
    size: int = 0
    resumed_pages: int = 0
    is_skipped: bool = False


@dataclass(frozen=True)
class Landed(LandedObject):
    """
    The result of an extraction to a store.

    :param manifest: the manifest of the window; it has no line about it if an older object with rows stays.
    :param overlapping: names of windows in the same tree that share time with this one.
    """

    _: KW_ONLY
    manifest: FolderPath
    overlapping: tuple[str, ...]


class _SkippedError(Exception):
    """The window has no rows and no object is wanted."""

    def __init__(self, counts: RowCounts) -> None:
        super().__init__()
        self.counts = counts


def land(
    client: PageSource,
    device_id: str,
    window: Window,
    dst: FolderPath,
    *,
    file_format: FileFormat = "jsonl",
    compression: Compression | None = None,
    column_types: Mapping[str, str] | None = None,
    endpoint: Endpoint = "compact",
    on_empty: OnEmpty = "succeed",
    replace_with_empty: bool = False,
    checkpoint_pages: int | None = CHECKPOINT_PAGES,
    resume_within: timedelta | None = timedelta(days=1),
    dag_id: str | None = None,
    run_id: str | None = None,
) -> Landed:
    """
    Write the rows of a device in a window as one object below ``dst``, and record it in a manifest.

    >>> from upath import UPath
    >>> from airflow_provider_unleash.client import UnleashClient
    >>> from airflow_provider_unleash.core.extract import land
    >>> from airflow_provider_unleash.window import Window
    >>> with UnleashClient("ul_pat_...") as client:
    ...     landed = land(client, "Wb8fabc31378ce07", Window(1768176000000, 1768262400000), UPath("/tmp/lake"))
    >>> landed.counts.rows, landed.path

    The parameters are those of :class:`.UnleashToObjectStorageOperator`. ``dag_id`` and ``run_id`` are kept in the
    manifest.

    :raises EmptyReplacementError: if no rows would replace an object that has rows.
    :raises EmptyResultError: if there are no rows and ``on_empty="fail"``.
    :raises InvalidArgumentError: if the tree has objects of another layout or format; before any request.
    :raises NotFoundError: if the account does not have the device.
    :raises SnapshotChangedError: if pages changed while they were read, four times.
    :raises UnexpectedResponseError: if a value does not fit its column (Parquet, CSV).
    """
    check_file_format(file_format, compression, column_types)
    extension = extension_of(file_format, compression)
    tree = open_tree(dst, window, Layout(True, extension), same_day=True)
    extracted_at = format_now()
    landed = land_object(
        client,
        device_id,
        window,
        dst,
        file_format=file_format,
        compression=compression,
        column_types=column_types,
        endpoint=endpoint,
        on_empty=on_empty,
        replace_with_empty=replace_with_empty,
        checkpoint_pages=checkpoint_pages,
        resume_within=resume_within,
    )
    landed.counts.warn_if_window_ignored(window)
    # If an older object has rows, it stays, and so does its line in the manifest.
    if not (landed.is_skipped and has_rows(landed.path, file_format, compression)):
        path = None if landed.is_skipped else object_name(device_id, window, extension)
        entry = new_entry(
            *(device_id, window, landed.counts, landed.size, path, extracted_at), dag_id=dag_id, run_id=run_id
        )
        publish_manifest(dst, [device_id], window, {device_id: entry})
    manifest = dst / manifest_name([device_id], window)
    return Landed(**vars(landed), manifest=manifest, overlapping=tree.overlapping)


def land_object(
    client: PageSource,
    device_id: str,
    window: Window,
    dst: FolderPath,
    *,
    file_format: FileFormat,
    compression: Compression | None,
    column_types: Mapping[str, str] | None,
    endpoint: Endpoint,
    replace_with_empty: bool,
    resume_within: timedelta | None,
    on_empty: OnEmpty = "succeed",
    checkpoint_pages: int | None = CHECKPOINT_PAGES,
    reported_keys: set[str] | None = None,
) -> LandedObject:
    """
    Write the rows of a device in a window as one object; see :func:`land`.

    ``reported_keys`` makes this one of many devices of an account: without rows, it writes an object only to replace
    one, and it leaves warnings to the caller.
    """
    name = object_name(device_id, window, extension_of(file_format, compression))
    path = dst / name
    is_part = reported_keys is not None

    def attempt(checkpoint_pages: int | None) -> LandedObject:
        with open_staging(client, dst, name, endpoint, checkpoint_pages, resume_within) as staging:
            with (
                open_window(client, device_id, window, endpoint, staging) as pages,
                open_object(
                    path,
                    file_format,
                    compression=compression,
                    column_types=column_types,
                    reported_keys=reported_keys,
                ) as writer,
            ):
                for page in pages:
                    writer.write_page(page)
                if not pages.counts.rows:
                    check_device(client, device_id, pages.counts)
                    if not is_part:
                        check_empty(f"Device {device_id} has", on_empty)
                    if on_empty == "skip":
                        raise _SkippedError(pages.counts)
                    replaces_rows = has_rows(path, file_format, compression)
                    if replaces_rows and not replace_with_empty:
                        raise EmptyReplacementError(
                            f"{path} has rows, but the API now returns none for its window. The object stays "
                            "unchanged; set replace_with_empty=True to replace it",
                            path=str(path),
                        )
                    if is_part and not replaces_rows:
                        raise _SkippedError(pages.counts)
            staging.remove()
            return LandedObject(path, pages.counts, writer.size, staging.resumed_pages)

    stages = checkpoint_pages if resume_within else None
    try:
        try:
            return restart_on_change(lambda: attempt(stages))
        except OSError as error:
            if stages is None or not is_disk_full(error):
                raise
            log.warning("No space left, so staged pages were removed. Reading the window again without: %s", error)
        return restart_on_change(lambda: attempt(None))
    except _SkippedError as skipped:
        return LandedObject(path, skipped.counts, is_skipped=True)


def open_staging(
    client: PageSource,
    dst: FolderPath,
    object_name: str,
    endpoint: Endpoint,
    checkpoint_pages: int | None,
    resume_within: timedelta | None,
) -> Staging:
    source = (client.base_url, endpoint, client.mask_stream_tokens is True)
    resume = resume_within or timedelta(0)
    return Staging(dst, object_name, source, checkpoint_pages=checkpoint_pages, resume_within=resume)


def fetch_records(
    client: PageSource,
    device_id: str,
    window: Window,
    *,
    endpoint: Endpoint = "compact",
    on_empty: OnEmpty = "succeed",
    max_bytes: int,
    reserved_keys: Set[str] = frozenset(),
) -> tuple[list[dict[str, Any]], RowCounts, int]:
    """
    Return the rows of a device in a window as records, with their counts and their bytes as JSON.

    ``reserved_keys`` are keys that the receiver would not take as data; a row with one, on any level, is an error.
    """

    def attempt() -> tuple[list[dict[str, Any]], RowCounts, int]:
        records: list[dict[str, Any]] = []
        size = 0
        with open_window(client, device_id, window, endpoint) as pages:
            for page in pages:
                new = page.records()
                _check_keys(page, new, reserved_keys)
                size += len(json.dumps(new))
                if size > max_bytes:
                    raise ResultTooLargeError(
                        f"The rows of {device_id} exceed max_xcom_bytes={max_bytes} at page {page.number} of "
                        f"{page.total_pages}. Use UnleashToObjectStorageOperator, which writes them to object storage, "
                        "or a shorter window",
                        limit=max_bytes,
                    )
                records += new
            if not pages.counts.rows:
                check_device(client, device_id, pages.counts)
                check_empty(f"Device {device_id} has", on_empty)
        pages.counts.warn_if_window_ignored(window)
        return records, pages.counts, size

    return restart_on_change(attempt)


def _check_keys(page: Page, records: list[dict[str, Any]], reserved_keys: Set[str]) -> None:
    for index, record in enumerate(records):
        for found in reserved_keys & set(_iter_keys(record)):
            raise UnexpectedResponseError(
                f"Page {page.number}, row {page.row_index(index)} has the key {found!r}, which XCom would change. Use "
                "UnleashToObjectStorageOperator",
                page=page.number,
                row=page.row_index(index),
                field=found,
            )


def _iter_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                yield from _iter_keys(item)


def check_device(client: PageSource, device_id: str, counts: RowCounts) -> None:
    """Check that the account has the device; ``counts`` are those of a window without rows."""
    # The API may return no rows for an unknown device. If it had rows at the end of the window, it knows the device.
    if not counts.rows_at_end and device_id not in client.list_devices():
        raise NotFoundError(
            f"The account has no device {device_id!r}; UnleashListDevicesOperator lists its devices",
            device_id=device_id,
        )


def check_empty(who_has: str, on_empty: OnEmpty) -> None:
    """Check that a window may be without rows, and log that it is; ``who_has`` is for example "Device W1 has"."""
    message = f"{who_has} no rows in the window"
    if on_empty == "fail":
        raise EmptyResultError(f"{message}. The data may be late, so Airflow retries the task")
    log.info(message)


@contextmanager
def open_window(
    client: PageSource, device_id: str, window: Window, endpoint: Endpoint, staging: Staging | None = None
) -> Iterator[HalfOpenPages]:
    """Yield the pages of a window; leaving the block cancels the requests in flight."""
    with client.open_pages(device_id, window.start, window.end, endpoint=endpoint) as reader:
        yield HalfOpenPages(window, _log_progress(device_id, _iter_pages(reader, staging)))


def _iter_pages(reader: PageReader, staging: Staging | None) -> Iterator[Page]:
    if staging is None or not staging.stages(reader.first.total_pages):
        yield from reader.iter_from(1)
        return
    yield reader.first
    yield from staging.load(reader.snapshot)
    yield from staging.keep(reader.iter_from(staging.next_page))


def _log_progress(device_id: str, pages: Iterator[Page]) -> Iterator[Page]:
    """Yield the pages and log the progress every ten seconds."""
    began = logged = time.monotonic()
    rows = 0
    for page in pages:
        yield page
        rows += len(page.rows)
        now = time.monotonic()
        if now - logged >= PROGRESS_SECONDS:
            logged = now
            number, total, seconds = page.number, max(page.number, page.total_pages), now - began
            log.info(
                "%s: %d of %d pages (%.0f %%), %d rows, %.0f rows/s, about %.0f s left",
                *(device_id, number, total, 100 * number / total, rows, rows / seconds),
                seconds * (total / number - 1),
            )
