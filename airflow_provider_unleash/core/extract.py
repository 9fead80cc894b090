"""The use case: one window of one device becomes one object, or a list of records."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import count
from typing import Any, Literal, Protocol, TypeVar

from airflow_provider_unleash.core.formats import Compression, FileFormat, Format
from airflow_provider_unleash.core.manifest import Entry, Layout, Tree, format_now, open_tree, publish_manifest
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.names import manifest_name, object_name
from airflow_provider_unleash.core.pages import PageReader, restart_on_change
from airflow_provider_unleash.core.progress import Progress
from airflow_provider_unleash.core.protocol import Endpoint, Page
from airflow_provider_unleash.core.staging import CHECKPOINT_PAGES, Staging, remove_all_staged
from airflow_provider_unleash.core.stores import StoragePath, store_of
from airflow_provider_unleash.core.windows import HalfOpenPages, RowCounts, Window
from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    EmptyResultError,
    NotFoundError,
    ResultTooLargeError,
    UnexpectedResponseError,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

OnEmpty = Literal["succeed", "skip", "fail"]
# A task sends its result to the supervisor as msgpack. There, pydantic allows 255 levels, some of which Airflow adds.
MAX_XCOM_DEPTH = 100
_XCOM_INTEGERS = range(-(2**63), 2**64)


class PageClient(Protocol):
    """What an extraction needs of a client."""

    @property
    def base_url(self) -> str: ...
    @property
    def mask_stream_tokens(self) -> bool | None: ...
    def open_pages(
        self, device_id: str, start: datetime | int, end: datetime | int, *, endpoint: Endpoint
    ) -> PageReader: ...
    def list_devices(self) -> Collection[str]: ...


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """
    The result of an extraction.

    :param size: bytes of what was written.
    :param is_skipped: whether nothing was written, because there are no rows.
    """

    counts: RowCounts
    size: int = 0
    is_skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class ExtractedRecords(Extracted):
    """The rows of a device in a window as records; ``size`` is that of their JSON."""

    records: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Landed(Extracted):
    """
    The object of a device in a window.

    :param entry: its line of the manifest.
    :param manifest: the manifest of the window; it has no line about it if an older object with rows stays.
    :param overlapping: names of windows in the same tree that overlap this one.
    :param resumed_pages: pages that an earlier try had read.
    """

    path: StoragePath
    entry: Entry
    manifest: StoragePath
    overlapping: tuple[str, ...]
    resumed_pages: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    What to extract, and how to write it, whatever the device.

    :param device_ids: the devices in the manifest's name; None for the whole account.
    """

    window: Window
    dst: StoragePath
    tree: Tree
    device_ids: Collection[str] | None
    object_format: Format
    endpoint: Endpoint
    on_empty: OnEmpty
    replace_with_empty: bool
    checkpoint_pages: int | None
    resume_within: timedelta | None
    dag_id: str | None
    run_id: str | None

    @cached_property
    def manifest(self) -> StoragePath:
        return self.dst / manifest_name(self.device_ids, self.window)

    def source(self, client: PageClient) -> tuple[object, ...]:
        """Return what the pages of a device in a window depend on."""
        return client.base_url, self.endpoint, client.mask_stream_tokens is True

    def open_staging(self, client: PageClient, name: str) -> Staging:
        return Staging(
            self.dst,
            name,
            self.source(client),
            checkpoint_pages=self.checkpoint_pages if self.resume_within else None,
            resume_within=self.resume_within or timedelta(0),
        )

    def new_entry(self, device_id: str, counts: RowCounts, size: int, path: str | None, extracted_at: str) -> Entry:
        return Entry(
            device_id=device_id,
            start=format_ms(self.window.start_ms),
            end=format_ms(self.window.end_ms),
            rows=counts.rows,
            pages=counts.pages,
            bytes=size,
            path=path,
            extracted_at=extracted_at,
            dag_id=self.dag_id,
            run_id=self.run_id,
        )


class _SkippedError(Exception):
    """The window has no rows and no object is wanted."""

    def __init__(self, counts: RowCounts) -> None:
        super().__init__()
        self.counts = counts


def land(
    client: PageClient,
    device_id: str,
    window: Window,
    dst: StoragePath,
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
    object_format = Format(file_format, compression, column_types)
    job = Job(
        window=window,
        dst=dst,
        tree=open_tree(dst, window, Layout(True, object_format.extension), same_day=True),
        device_ids=[device_id],
        object_format=object_format,
        endpoint=endpoint,
        on_empty=on_empty,
        replace_with_empty=replace_with_empty,
        checkpoint_pages=checkpoint_pages,
        resume_within=resume_within,
        dag_id=dag_id,
        run_id=run_id,
    )
    landed = land_object(client, device_id, job)
    landed.counts.warn_if_not_as_asked(window)
    # If an older object has rows, it stays, and so does its line in the manifest.
    if not (landed.is_skipped and object_format.has_rows(landed.path)):
        publish_manifest(dst, [device_id], window, {device_id: landed.entry})
    return landed


def land_object(
    client: PageClient, device_id: str, job: Job, *, is_part: bool = False, reported_keys: set[str] | None = None
) -> Landed:
    """
    Write the rows of a device in a window as one object; see :func:`land`.

    :param is_part: this is one of many devices of an account: without rows, it writes an object only to replace one,
        and it leaves warnings to the caller.
    :param reported_keys: keys without a column that need no warning; new ones are added.
    """
    name = object_name(device_id, job.window, job.object_format.extension)
    path = job.dst / name
    extracted_at = format_now()

    def land_once(job: Job) -> Landed:
        with job.open_staging(client, name) as staging:
            with (
                open_window(client, device_id, job.window, job.endpoint, staging) as pages,
                job.object_format.open(path, reported_keys) as writer,
            ):
                for page in pages:
                    writer.write_page(page)
                if not pages.counts.rows:
                    check_device(client, device_id, pages.counts)
                    if not is_part:
                        report_empty(f"Device {device_id} has", job.on_empty)
                    if not _wants_empty_object(job, path, is_part):
                        raise _SkippedError(pages.counts)
            staging.remove()
            return result(pages.counts, size=writer.size, resumed_pages=staging.resumed_pages)

    def result(counts: RowCounts, *, size: int = 0, resumed_pages: int = 0, is_skipped: bool = False) -> Landed:
        return Landed(
            path=path,
            counts=counts,
            size=size,
            resumed_pages=resumed_pages,
            is_skipped=is_skipped,
            entry=job.new_entry(device_id, counts, size, None if is_skipped else name, extracted_at),
            manifest=job.manifest,
            overlapping=job.tree.overlapping,
        )

    try:
        return land_without_staging_if_full(job, lambda job: restart_on_change(lambda: land_once(job)))
    except _SkippedError as skipped:
        return result(skipped.counts, is_skipped=True)


def _wants_empty_object(job: Job, path: StoragePath, is_part: bool) -> bool:
    """Return whether an object without rows is written, and check that it may replace the one at ``path``."""
    if job.on_empty == "skip" and not is_part:
        return False
    replaces_rows = job.object_format.has_rows(path)
    # With "fail", an account without rows must not replace any.
    if replaces_rows and not (job.replace_with_empty and job.on_empty != "fail"):
        raise EmptyReplacementError(
            f"{path} has rows, but the API now returns none for its window. The object stays unchanged; set "
            "replace_with_empty=True to replace it",
            path=str(path),
        )
    return replaces_rows or not is_part


def land_without_staging_if_full(job: Job, attempt: Callable[[Job], T]) -> T:
    """Attempt a job; if staged pages fill the disk, remove them and attempt it again without staging."""
    try:
        return attempt(job)
    except OSError as error:
        # With an object store, it is the worker's disk that is full, and no page is staged there.
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and store_of(job.dst.protocol).extra is None
        if not (is_full and (remove_all_staged(job.dst) or (job.resume_within and job.checkpoint_pages))):
            raise
        log.warning("%s. All staged pages were removed, and the window is read again without staging", error)
    return attempt(replace(job, resume_within=None))


def fetch_records(
    client: PageClient,
    device_id: str,
    window: Window,
    *,
    endpoint: Endpoint = "compact",
    on_empty: OnEmpty = "succeed",
    max_bytes: int,
    reserved_keys: Set[str] = frozenset(),
) -> ExtractedRecords:
    """
    Return the rows of a device in a window as records.

    A row that XCom cannot carry is an error. So is one with a key of ``reserved_keys``, on any level, which XCom would
    not take as data.
    """

    def attempt() -> ExtractedRecords:
        records: list[dict[str, Any]] = []
        size = 0
        with open_window(client, device_id, window, endpoint) as pages:
            for page in pages:
                new = page.records()
                _check_for_xcom(page, new, reserved_keys)
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
                report_empty(f"Device {device_id} has", on_empty)
        pages.counts.warn_if_not_as_asked(window)
        is_skipped = on_empty == "skip" and not records
        return ExtractedRecords(records=records, counts=pages.counts, size=size, is_skipped=is_skipped)

    return restart_on_change(attempt)


def _check_for_xcom(page: Page, records: list[dict[str, Any]], reserved_keys: Set[str]) -> None:
    for index, record in enumerate(records):
        if problem := _find_problem(record, reserved_keys):
            raise UnexpectedResponseError(
                f"Page {page.number}, row {page.row_index(index)} has the key {problem[0]!r}{problem[1]}. Use "
                "UnleashToObjectStorageOperator",
                page=page.number,
                row=page.row_index(index),
                field=problem[0],
            )


def _find_problem(record: dict[str, Any], reserved_keys: Set[str]) -> tuple[str, str] | None:
    """Return a key that XCom cannot carry, or whose value it cannot, and why."""
    level = list(record.items())
    for depth in count(1):  # level by level, because a function that calls itself may exceed Python's recursion limit
        for key, value in level:
            if key in reserved_keys:
                return key, ", which XCom would change"
            if type(value) is int and value not in _XCOM_INTEGERS:
                return key, " with an integer of more than 64 bits, which XCom cannot carry"
        level = [child for key, value in level for child in _children(key, value)]
        if not level:
            break
        if depth == MAX_XCOM_DEPTH:
            return level[0][0], f" more than {depth} levels deep, which XCom cannot carry"
    return None


def _children(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return value.items()
    return [(key, item) for item in value] if isinstance(value, list) else ()


def check_device(client: PageClient, device_id: str, counts: RowCounts) -> None:
    """Check that the account has the device; ``counts`` are those of a window without rows."""
    # The API may return no rows for an unknown device. If it had rows at the end of the window, it knows the device.
    if not counts.rows_at_end and device_id not in client.list_devices():
        raise NotFoundError(
            f"The account has no device {device_id!r}; UnleashListDevicesOperator lists its devices",
            device_id=device_id,
        )


def report_empty(who_has: str, on_empty: OnEmpty) -> None:
    """Log that a window has no rows, or fail if it must have some; ``who_has`` is for example "Device W1 has"."""
    message = f"{who_has} no rows in the window"
    if on_empty == "fail":
        raise EmptyResultError(f"{message}. The data may be late, so Airflow retries the task")
    log.info(message)


@contextmanager
def open_window(
    client: PageClient, device_id: str, window: Window, endpoint: Endpoint, staging: Staging | None = None
) -> Iterator[HalfOpenPages]:
    """Yield the pages of a window; leaving the block cancels the requests in flight."""
    with client.open_pages(device_id, window.start, window.end, endpoint=endpoint) as reader:
        yield HalfOpenPages(device_id, window, _log_progress(device_id, _iter_pages(reader, staging)))


def _iter_pages(reader: PageReader, staging: Staging | None) -> Iterator[Page]:
    if staging is None or not staging.stages(reader.first.total_pages):
        yield from reader.iter_from(1)
        return
    yield reader.first
    yield from staging.load(reader.snapshot)
    yield from staging.keep(reader.iter_from(staging.next_page))


def _log_progress(device_id: str, pages: Iterator[Page]) -> Iterator[Page]:
    progress = Progress(f"{device_id}: ", "pages", 1)
    for page in pages:
        yield page
        progress.total = max(page.number, page.total_pages)
        progress.add(len(page.rows))
