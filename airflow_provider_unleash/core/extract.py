"""The use case: one window of one device becomes one object, or a list of records."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_unleash.core.formats import Compression, FileFormat, has_rows, object_name, open_object
from airflow_provider_unleash.core.pages import PageReader, restart_on_change
from airflow_provider_unleash.core.protocol import Endpoint, Page
from airflow_provider_unleash.core.staging import Staging, is_disk_full
from airflow_provider_unleash.core.stores import FolderPath
from airflow_provider_unleash.core.windows import HalfOpenPages, RowCounts, Window
from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    EmptyResultError,
    NotFoundError,
    ResultTooLargeError,
    UnexpectedResponseError,
)

if TYPE_CHECKING:
    from airflow_provider_unleash.core.client import UnleashClient

log = logging.getLogger(__name__)

OnEmpty = Literal["succeed", "skip", "fail"]
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Landed:
    """The result of an extraction to a store; ``size`` is in bytes, ``resumed_pages`` were read by an earlier try."""

    path: FolderPath
    counts: RowCounts
    size: int = 0
    resumed_pages: int = 0
    is_skipped: bool = False


class _SkippedError(Exception):
    """The window has no rows and no object is wanted."""


def land(
    client: UnleashClient,
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
    checkpoint_pages: int | None = 200,
    resume_within: timedelta | None = timedelta(days=1),
) -> Landed:
    """
    Write the rows of a device in a window as one object below ``dst``.

    >>> from upath import UPath
    >>> from airflow_provider_unleash.client import UnleashClient
    >>> from airflow_provider_unleash.core.extract import land
    >>> from airflow_provider_unleash.window import Window
    >>> with UnleashClient("ul_pat_...") as client:
    ...     landed = land(client, "Wb8fabc31378ce07", Window(1768176000000, 1768262400000), UPath("/tmp/lake"))
    >>> landed.counts.rows, landed.path

    The parameters are those of :class:`.UnleashToObjectStorageOperator`.

    :raises EmptyReplacementError: if no rows would replace an object that has rows.
    :raises EmptyResultError: if there are no rows and ``on_empty="fail"``.
    :raises NotFoundError: if the account does not have the device.
    :raises SnapshotChangedError: if pages changed while they were read, four times.
    :raises UnexpectedResponseError: if a value does not fit its column (Parquet, CSV).
    """
    name = object_name(device_id, window.start_ms, window.end_ms, file_format, compression)
    path = dst / name
    source = (client.base_url, endpoint, client.mask_stream_tokens is True)

    def attempt(checkpoint_pages: int | None) -> Landed:
        resume = resume_within or timedelta(0)
        with Staging(dst, name, source, checkpoint_pages=checkpoint_pages, resume_within=resume) as staging:
            with (
                open_window(client, device_id, window, endpoint, staging) as pages,
                open_object(path, file_format, compression=compression, column_types=column_types) as writer,
            ):
                for page in pages:
                    writer.write_page(page)
                if not pages.counts.rows:
                    check_empty(client, device_id, pages.counts, on_empty)
                    if on_empty == "skip":
                        raise _SkippedError
                    if not replace_with_empty and has_rows(path, file_format, compression):
                        raise EmptyReplacementError(
                            f"{path} has rows, but the API now returns none for its window. The object stays "
                            "unchanged; set replace_with_empty=True to replace it",
                            path=str(path),
                        )
            staging.remove()
            return Landed(path, pages.counts, writer.size, staging.resumed_pages)

    stages = checkpoint_pages if resume_within else None
    try:
        try:
            return restart_on_change(lambda: attempt(stages))
        except OSError as error:
            if stages is None or not is_disk_full(error):
                raise
            log.warning("No space left, so staged pages were removed. Reading the window again without: %s", error)
        return restart_on_change(lambda: attempt(None))
    except _SkippedError:
        return Landed(path, RowCounts(), is_skipped=True)


def fetch_records(
    client: UnleashClient,
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
                check_empty(client, device_id, pages.counts, on_empty)
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


def check_empty(client: UnleashClient, device_id: str, counts: RowCounts, on_empty: OnEmpty) -> None:
    """Check whether a window may be empty; ``counts`` are those of a window without rows."""
    # The API may return no rows for an unknown device. If it had rows at the end of the window, it knows the device.
    if not counts.rows_at_end and device_id not in client.list_devices():
        raise NotFoundError(
            f"The account has no device {device_id!r}; UnleashListDevicesOperator lists its devices",
            device_id=device_id,
        )
    message = f"Device {device_id} has no rows in the window"
    if on_empty == "fail":
        raise EmptyResultError(f"{message}. The data may be late, so Airflow retries the task")
    log.info(message)


@contextmanager
def open_window(
    client: UnleashClient, device_id: str, window: Window, endpoint: Endpoint, staging: Staging | None = None
) -> Iterator[HalfOpenPages]:
    """Yield the pages of a window; leaving the block cancels the requests in flight."""
    with client.open_pages(device_id, window.start, window.end, endpoint=endpoint) as reader:
        pages = HalfOpenPages(window, _log_progress(_iter_pages(reader, staging)))
        yield pages


def _iter_pages(reader: PageReader, staging: Staging | None) -> Iterator[Page]:
    if staging is None or not staging.stages(reader.first.total_pages):
        yield from reader.iter_from(1)
        return
    yield reader.first
    yield from staging.load(reader.snapshot)
    yield from staging.keep(reader.iter_from(staging.next_page))


def _log_progress(pages: Iterator[Page]) -> Iterator[Page]:
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
                "%d of %d pages (%.0f %%), %d rows, %.0f rows/s, about %.0f s left",
                *(number, total, 100 * number / total, rows, rows / seconds),
                seconds * (total / number - 1),
            )
