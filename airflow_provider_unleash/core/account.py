"""Many devices in one go: an account's rows in a window become objects, and a manifest of what landed."""

from __future__ import annotations

import logging
import pickle
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Protocol
from weakref import finalize

from airflow_provider_unleash.core.delta import StorageOptions, WindowTable
from airflow_provider_unleash.core.extract import (
    Extracted,
    Job,
    OnEmpty,
    check_device,
    land_object,
    land_without_staging_if_full,
    open_window,
    report_empty,
)
from airflow_provider_unleash.core.formats import AccountFormat, Compression, FileFormat, PageWriter
from airflow_provider_unleash.core.journal import Journal, Record
from airflow_provider_unleash.core.manifest import Entry, Layout, format_now, open_tree, publish_manifest
from airflow_provider_unleash.core.names import DELTA, DELTA_LOG, manifest_name, object_name, window_name
from airflow_provider_unleash.core.pages import PageReader, restart_on_change
from airflow_provider_unleash.core.phrases import name_first
from airflow_provider_unleash.core.protocol import Endpoint, Page
from airflow_provider_unleash.core.runner import DeviceRunner, Failures
from airflow_provider_unleash.core.staging import CHECKPOINT_PAGES, Staging
from airflow_provider_unleash.core.stores import StoragePath
from airflow_provider_unleash.core.windows import RowCounts, Window
from airflow_provider_unleash.exceptions import EmptyReplacementError, UnexpectedResponseError

if TYPE_CHECKING:
    from airflow_provider_unleash.core.client import RequestBudget, UnleashClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LandedAccount(Extracted):
    """
    The objects of an account in a window.

    :param device_ids: the devices, in order.
    :param resumed_devices: devices that failed tries of the task had landed.
    :param overlapping: names of windows in the same tree that overlap this one.
    """

    device_ids: Sequence[str]
    devices_with_rows: int
    objects: int
    resumed_devices: int
    manifest: StoragePath
    overlapping: tuple[str, ...]


def land_account(
    client: UnleashClient,
    device_ids: Iterable[str] | None,
    window: Window,
    dst: StoragePath,
    *,
    file_format: FileFormat = "jsonl",
    compression: Compression | None = None,
    column_types: Mapping[str, str] | None = None,
    split_by_device: bool = True,
    endpoint: Endpoint = "compact",
    on_empty: OnEmpty = "succeed",
    replace_with_empty: bool = False,
    resume_within: timedelta | None = timedelta(days=1),
    dag_id: str | None = None,
    run_id: str | None = None,
    storage_options: StorageOptions | None = None,
) -> LandedAccount:
    """
    Write the rows of many devices in a window as objects below ``dst``, or to a Delta table, and a manifest of them.

    >>> from upath import UPath
    >>> from airflow_provider_unleash.client import UnleashClient
    >>> from airflow_provider_unleash.core.account import land_account
    >>> from airflow_provider_unleash.window import Window
    >>> with UnleashClient("ul_pat_...", page_concurrency=8) as client:
    ...     landed = land_account(client, None, Window(1768176000000, 1768262400000), UPath("/tmp/lake"))
    >>> len(landed.device_ids), landed.counts.rows, landed.manifest

    The client's ``page_concurrency`` is the number of requests in flight for all devices together. The other parameters
    are those of :class:`.UnleashAccountToObjectStorageOperator`; ``dag_id`` and ``run_id`` are kept in the manifest.
    ``storage_options`` returns the options of ``deltalake`` for the store of a Delta table, such as credentials;
    ``dst`` has its own.

    :raises PartialExtractionError: if some devices failed, at least one of them transiently.
    :raises PermanentPartialExtractionError: if some devices failed, all of them permanently.
    :raises EmptyResultError: if no device has rows and ``on_empty="fail"``.
    :raises EmptyReplacementError: if one object of all devices, or a Delta table, would lose the rows of some.
    :raises InvalidArgumentError: if the tree has objects of another layout or format; before any request.
    :raises UnleashError: an error that concerns all devices, such as a wrong key, at once.
    """
    object_format = AccountFormat(file_format, compression, column_types)
    is_table = file_format == DELTA
    is_split = split_by_device and not is_table
    tree = open_tree(dst, window, Layout(split_by_device or is_table, object_format.extension))
    table = WindowTable(dst, window, column_types, storage_options) if is_table else None
    listed = frozenset(client.list_devices()) if device_ids is None else None
    devices = sorted(set(device_ids or listed or ()))
    job = Job(
        window=window,
        dst=dst,
        tree=tree,
        device_ids=None if device_ids is None else devices,
        object_format=object_format,
        endpoint=endpoint,
        on_empty=on_empty,
        replace_with_empty=replace_with_empty,
        checkpoint_pages=CHECKPOINT_PAGES,
        resume_within=resume_within,
        dag_id=dag_id,
        run_id=run_id,
    )

    def land_once(job: Job) -> _Result:
        with (
            # Twice as many as requests, so that publishing one device's object overlaps with requesting others.
            ThreadPoolExecutor(2 * client.page_concurrency, "unleash-device") as workers,
            client.open_budget() as budget,
        ):
            shared = _SharedClient(client, budget, listed)
            runner = DeviceRunner(workers, 4 * client.page_concurrency)
            if is_split:
                return _land_objects(job, shared, runner, devices)
            target = _OneCommit(job, table) if table else _OneObject(job)
            return _land_together(job, shared, runner, devices, target)

    # land_object does without staging for each device by itself.
    result = land_once(job) if is_split else land_without_staging_if_full(job, land_once)
    counts = sum((record.counts for record in result.records.values()), RowCounts())
    counts.warn_if_not_as_asked(window)
    if not counts.rows:
        report_empty("The devices have", on_empty)
    entries = {device_id: record.entry for device_id, record in result.records.items()}
    manifest = publish_manifest(dst, job.device_ids, window, entries)
    result.clean_up()
    return LandedAccount(
        device_ids=devices,
        devices_with_rows=sum(record.counts.rows > 0 for record in result.records.values()),
        counts=counts,
        size=result.size,
        objects=result.objects,
        resumed_devices=result.resumed_devices,
        manifest=manifest,
        overlapping=tree.overlapping,
        is_skipped=on_empty == "skip" and not counts.rows,
    )


@dataclass(frozen=True)
class _Result:
    records: Mapping[str, Record]
    size: int
    objects: int
    resumed_devices: int
    clean_up: Callable[[], None]


class _SharedClient:
    """The client, with one budget of requests and one list of devices for all readers."""

    def __init__(self, client: UnleashClient, budget: RequestBudget, listed: Collection[str] | None) -> None:
        self.base_url = client.base_url
        self.mask_stream_tokens = client.mask_stream_tokens
        self._client = client
        self._budget = budget
        self._listed = listed
        self._lock = threading.Lock()

    def open_pages(
        self, device_id: str, start: datetime | int, end: datetime | int, *, endpoint: Endpoint
    ) -> PageReader:
        return self._client.open_pages(device_id, start, end, endpoint=endpoint, budget=self._budget)

    def cancel(self) -> None:
        self._budget.group.cancel()

    def list_devices(self) -> Collection[str]:
        with self._lock:
            if self._listed is None:
                self._listed = frozenset(self._client.list_devices(budget=self._budget))
            return self._listed


# ---- one object per device -----------------------------------------------------------------------


def _land_objects(job: Job, shared: _SharedClient, runner: DeviceRunner, devices: Sequence[str]) -> _Result:
    reported_keys: set[str] = set()

    def land_device(device_id: str) -> Record:
        landed = land_object(shared, device_id, job, is_part=True, reported_keys=reported_keys)
        return Record(landed.entry, landed.counts)

    name = f"{manifest_name(job.device_ids, job.window)} {job.object_format.extension}"
    settings = (*job.source(shared), dict(job.object_format.column_types or {}))
    journal = Journal(job.dst, name, settings, job.resume_within or timedelta(0))
    records = journal.load(job.tree.read_entries)
    resumed = len(records)
    if resumed:
        log.info("Resuming. Devices that an earlier try has landed: %d", resumed)
    remaining = [device_id for device_id in devices if device_id not in records]
    consequence = "What has landed stays, and a retry extracts only the rest"
    failures = Failures(len(devices), len(remaining), consequence)

    def keep(record: Record) -> None:
        # With "fail", a retry asks for empty windows again, because their data may be late.
        if record.counts.rows or job.on_empty != "fail":
            journal.add(record)

    try:
        for device_id, future in runner.iter_completed(land_device, remaining, when_idle=journal.save_if_due):
            try:
                records[device_id] = record = future.result()
            except Exception as error:
                failures.add(device_id, error)
            else:
                failures.add_success(record.counts.rows)
                keep(record)
    finally:
        shared.cancel()
        for future in runner.finish():  # objects that were being published when an error ended the extraction
            if not future.cancelled() and not future.exception():
                keep(future.result())
        journal.save()
    failures.check()
    sizes = [record.entry.bytes for record in records.values() if record.entry.path]
    return _Result(records, sum(sizes), len(sizes), resumed, journal.remove)


# ---- all devices together ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """
    The pages of a device, complete and of one snapshot.

    :param staging: None if it has no files, because one for each device would take 20 MB for 10 000 devices.
    """

    pages: Iterable[Page]
    counts: RowCounts
    staging: Staging | None
    extracted_at: str


class _Target(Protocol):
    """What the rows of all devices become: published whole, or not at all."""

    name: str

    def open(self) -> AbstractContextManager[PageWriter]: ...
    def check(self, device_ids: Collection[str], with_rows: set[str]) -> bool:
        """Check that publishing loses no rows, and return whether there is something to publish."""

    def complete(self) -> Collection[str]:
        """Complete what was published, and return the devices that lost their rows by it."""


class _NothingToPublishError(Exception):
    """There are no rows, and no object to replace."""


def _land_together(
    job: Job, shared: _SharedClient, runner: DeviceRunner, devices: Sequence[str], target: _Target
) -> _Result:
    reads: dict[str, _Read] = {}
    consequence = "Nothing is published, because the rows of all devices are published together"
    failures = Failures(len(devices), len(devices), consequence)

    def read_device(device_id: str) -> _Read:
        return restart_on_change(lambda: _read_device(job, shared, device_id))

    size, objects = 0, 1
    try:
        with target.open() as writer:
            for device_id, future in runner.iter_in_order(read_device, devices):
                try:
                    read = future.result()
                    writer.device_id = device_id
                    for page in () if failures.errors else read.pages:
                        writer.write_page(page)
                except Exception as error:
                    failures.add(device_id, error)
                else:
                    failures.add_success(read.counts.rows)
                    reads[device_id] = replace(read, pages=())
            failures.check()
            with_rows = {device_id for device_id, read in reads.items() if read.counts.rows}
            is_needed = target.check(reads.keys(), with_rows)
            if not with_rows and job.on_empty == "fail":
                report_empty("The devices have", job.on_empty)
            if not is_needed:
                raise _NothingToPublishError
        size = writer.size
    except _NothingToPublishError:
        objects = 0
    lost = target.complete()
    records = {}
    for device_id, read in reads.items():
        path = target.name if read.counts.rows else None
        entry = job.new_entry(device_id, read.counts, size if path else 0, path, read.extracted_at)
        records[device_id] = Record(entry, read.counts)
    for device_id in lost:
        records[device_id] = Record(job.new_entry(device_id, RowCounts(), 0, None, format_now()), RowCounts())

    def remove_staged_pages() -> None:
        for read in reads.values():
            if read.staging is not None:
                read.staging.remove()

    return _Result(records, size, objects, 0, remove_staged_pages)


class _OneObject:
    """One object of all devices."""

    def __init__(self, job: Job) -> None:
        self.name = object_name(None, job.window, job.object_format.extension)
        self._path = job.dst / self.name
        self._job = job
        self._device_ids: Collection[str] = ()

    def open(self) -> AbstractContextManager[PageWriter]:
        return self._job.object_format.open(self._path)

    def check(self, device_ids: Collection[str], with_rows: set[str]) -> bool:
        job, path = self._job, self._path
        self._device_ids = device_ids
        replaces_rows = not with_rows and job.object_format.has_rows(path)
        if not job.replace_with_empty:
            # Read again, because another task may have published rows of other devices meanwhile.
            lost = sorted(_devices_with_rows(self._job.tree.read_entries()) - with_rows)
            if lost or replaces_rows:
                named = f"of {name_first(lost)}" if lost else "which the API now does not return"
                raise EmptyReplacementError(
                    f"{path} has rows {named}, and this extraction has none. The object stays unchanged; set "
                    "replace_with_empty=True to replace it, or use split_by_device=True if several tasks share a "
                    "window",
                    path=str(path),
                )
        return bool(with_rows) or replaces_rows

    def complete(self) -> Collection[str]:
        lost = _devices_with_rows(self._job.tree.read_entries()).difference(self._device_ids)
        if lost and not self._job.replace_with_empty:
            raise EmptyReplacementError(
                f"Another task wrote rows of {name_first(sorted(lost))} to {self._path} at the same time, so "
                "one object replaced the other. Use split_by_device=True if several tasks share a window",
                path=str(self._path),
            )
        return lost


class _OneCommit:
    """One commit to a Delta table; the rows of other devices stay."""

    name = DELTA_LOG

    def __init__(self, job: Job, table: WindowTable) -> None:
        self._job = job
        self._table = table

    def open(self) -> AbstractContextManager[PageWriter]:
        return self._table.open_file()

    def check(self, device_ids: Collection[str], with_rows: set[str]) -> bool:
        self._table.plan(device_ids, with_rows, replace_with_empty=self._job.replace_with_empty)
        return bool(with_rows)

    def complete(self) -> Collection[str]:
        self._table.commit()
        return ()


def _devices_with_rows(entries: Mapping[str, Entry]) -> set[str]:
    return {device_id for device_id, entry in entries.items() if entry.rows and entry.path}


def _read_device(job: Job, shared: _SharedClient, device_id: str) -> _Read:
    extracted_at = format_now()
    name = f"{window_name(job.window)}.{job.object_format.extension} {device_id}"
    with job.open_staging(shared, name) as staging:
        with open_window(shared, device_id, job.window, job.endpoint, staging) as pages:
            kept = _keep(iter(pages))
        if not pages.counts.rows:
            check_device(shared, device_id, pages.counts)
    return _Read(kept, pages.counts, staging if staging.has_files else None, extracted_at)


def _keep(pages: Iterator[Page]) -> Iterable[Page]:
    """Read all pages, and keep them until they are written: one in memory, more in a temporary file."""
    first = next(pages)
    second = next(pages, None)
    return [first] if second is None else _Spool(chain((first, second), pages))


class _Spool:
    """Pages in a temporary file. Iterate once."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._file = tempfile.TemporaryFile(prefix="unleash-")  # noqa: SIM115  # __iter__ closes it
        finalize(self, self._file.close)  # pages are not read if another device has failed
        try:
            for page in pages:
                self._write(page)
        except BaseException:
            self._file.close()
            raise

    def _write(self, page: Page) -> None:
        try:
            pickle.dump(replace(page), self._file)  # without cached columns
        except RecursionError:
            raise UnexpectedResponseError(
                f"Page {page.number} has a value that is nested too deeply", page=page.number
            ) from None

    def __iter__(self) -> Iterator[Page]:
        with self._file as file:
            size = file.tell()
            file.seek(0)
            while file.tell() < size:
                yield pickle.load(file)  # noqa: S301  # only this process can write to it
