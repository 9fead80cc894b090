"""Delta tables: one commit replaces the rows of some devices in a window. The protocol is that of ``deltalake``."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from airflow_provider_unleash.core.columns import (
    COLUMN_TYPES,
    WINDOW_COLUMNS,
    check_extra_installed,
    columns_of,
    table_columns_of,
)
from airflow_provider_unleash.core.delta_files import DataFile, WindowWriter, statistics_of, to_micros
from airflow_provider_unleash.core.formats import PageWriter, RowGroups, finishing
from airflow_provider_unleash.core.names import window_name
from airflow_provider_unleash.core.phrases import name_first
from airflow_provider_unleash.core.stores import StoragePath, publish, store_of
from airflow_provider_unleash.core.throttle import backoff
from airflow_provider_unleash.core.windows import Window
from airflow_provider_unleash.exceptions import (
    EmptyReplacementError,
    InvalidArgumentError,
    TransientError,
    UnleashError,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, RemoveAction

log = logging.getLogger(__name__)

# The options of the library's store clients, such as credentials:
# https://docs.rs/object_store/latest/object_store/#configuration-system
StorageOptions = Callable[[], Mapping[str, str]]

PARTITION = "start_date"
MAX_COMMITS = 25
# Refuse tables with other features: their files alone do not show the table's rows.
_READER_FEATURES = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
# A shorter option is not a secret.
_SECRET_CHARS = 6
# One thread and few rows at a time: what is read is written at once.
_SCAN = {"batch_size": 32_768, "batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
_SCHEMES = {"file": "", "s3": "s3://", "gs": "gs://", "abfs": "az://"}


@dataclass(frozen=True)
class _Plan:
    """
    What a commit replaces.

    :param table: the version of the table that was read; None if there is none.
    :param removed: names of files whose rows are all replaced.
    :param rewritten: names of files that also have rows to keep.
    """

    table: DeltaTable | None
    device_ids: Collection[str]
    with_rows: Collection[str]
    replace_with_empty: bool
    removed: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)


class WindowTable:
    """
    The rows of a window in a Delta table, which may not exist yet.

    Each file has the columns ``device, window_start, window_end``, so that a row belongs to the device and window that
    were requested, whatever its own ``device_id`` and ``timestamp`` are, and after files of many windows are compacted.

    The data is written by this package and committed by the library. Its own ``write_deltalake(predicate=...)`` keeps
    all rows in memory until the commit.

    :param storage_options: returns the library's options for the store; called for each commit, because credentials
        may expire.
    :raises InvalidArgumentError: if the table is another one, or has a column of another type.
    """

    def __init__(
        self,
        dst: StoragePath,
        window: Window,
        column_types: Mapping[str, str] | None,
        storage_options: StorageOptions | None = None,
    ) -> None:
        check_extra_installed("delta", "file_format='delta'", "file_format")
        import pyarrow as pa

        self._dst = dst
        self._window = window
        self._columns = columns_of(column_types)
        self._schema = pa.schema(
            [(name, to_micros(COLUMN_TYPES[kind].arrow(pa))) for name, kind in table_columns_of(column_types).items()]
        )
        self._storage_options = storage_options or dict
        self._date = f"{window.start:%Y-%m-%d}"
        self._uri = table_uri(dst)
        self._options: dict[str, str] = {}
        self._file: DataFile | None = None
        self._plan = _Plan(None, (), (), False)
        with self._masked():
            self._open()

    # ---- the new rows ----------------------------------------------------------------------------

    @contextmanager
    def open_file(self) -> Iterator[PageWriter]:
        """Yield a writer; the file is published when the block ends, and stays unreferenced until :meth:`commit`."""
        self._file = None  # of an attempt that failed
        name = self._new_name()
        with publish(self._dst / name) as stream:
            writer = WindowWriter(stream, self._window, self._columns, self._schema)
            with finishing(writer):
                yield writer
            writer.size = stream.tell()
        self._file = DataFile(name, writer.size, writer.statistics())

    def _new_name(self) -> str:
        return f"{window_name(self._window)}.{uuid.uuid4().hex}.parquet"

    # ---- the commit ------------------------------------------------------------------------------

    def plan(self, device_ids: Collection[str], with_rows: Collection[str], *, replace_with_empty: bool) -> None:
        """
        Find the files that the commit replaces.

        :param device_ids: the devices whose rows are replaced.
        :param with_rows: those of them that have new rows.
        :raises EmptyReplacementError: if others of them have rows in the table, unless ``replace_with_empty``.
        """
        with self._masked():
            self._find_replaced(_Plan(self._open(), device_ids, with_rows, replace_with_empty))

    def _find_replaced(self, plan: _Plan) -> None:
        self._plan = plan
        lost: set[str] = set()
        for name, dataset in self._iter_datasets(plan.table) if plan.table else ():
            rows = self._count(dataset)
            replaced = {device_id for device_id in plan.device_ids if rows[device_id]}
            lost |= replaced.difference(plan.with_rows)
            if replaced:
                is_whole = sum(rows[device_id] for device_id in replaced) == dataset.count_rows()
                (plan.removed if is_whole else plan.rewritten).append(name)
        if lost and not plan.replace_with_empty:
            raise EmptyReplacementError(
                f"{self._dst} has rows of {name_first(sorted(lost))} in the window, and this extraction has "
                "none. The table stays unchanged; set replace_with_empty=True to remove them",
                path=str(self._dst),
            )

    def commit(self) -> None:
        """
        Replace the rows of the plan's devices in the window by those of the published file, if there is one.

        :raises TransientError: if other tasks committed first, again and again.
        :raises CommitFailedError: if the table cannot be written for another reason, such as an append-only one.
        """
        with self._masked():
            self._commit_or_retry()

    def _commit_or_retry(self) -> None:
        from deltalake.exceptions import CommitFailedError

        for attempt in range(1, MAX_COMMITS + 1):
            try:
                if self._file and self._prepare():
                    self._plan_again()
                self._commit(self._plan)
                return
            except CommitFailedError as error:
                failure = error
            time.sleep(backoff(attempt))
            planned = self._plan.table
            self._plan_again()
            table = self._plan.table
            if self._file and table and self._file.name in _names_of(table):
                return  # the commit landed, although it failed
            if planned and table and planned.version() == table.version():
                raise failure  # no other task has committed
            log.info("Another task has committed to %s, so this commit is tried again", self._dst)
        raise TransientError(
            f"Other tasks committed to {self._dst} first, {MAX_COMMITS} times in a row, so the table is unchanged"
        )

    def _plan_again(self) -> None:
        self._find_replaced(replace(self._plan, table=self._open(), removed=[], rewritten=[]))

    def _prepare(self) -> bool:
        from deltalake import Schema

        table = self._plan.table
        if table is None:
            self._create()
            return True
        existing = {field.name for field in table.schema().fields}
        missing = [field for field in Schema.from_arrow(self._schema).fields if field.name not in existing]
        if missing:
            table.alter.add_columns(missing)
        return bool(missing)

    def _commit(self, plan: _Plan) -> None:
        from deltalake import CommitProperties
        from deltalake.transaction import RemoveAction

        table = plan.table
        if table is None or not (self._file or plan.removed or plan.rewritten):
            return
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [self._added(self._file, now)] if self._file else []
        if plan.rewritten:
            actions.append(self._added(self._rewrite(table, plan), now))
        actions += [
            RemoveAction(path=name, data_change=True, deletion_timestamp=now) for name in plan.removed + plan.rewritten
        ]
        # No retries inside the library: it would add the file to a version in which another task has added rows of the
        # window, or in which a compaction has moved those to remove.
        table.create_write_transaction(
            actions,
            "append",
            table.schema(),
            partition_by=[PARTITION],
            commit_properties=CommitProperties(max_commit_retries=0),
        )

    def _added(self, file: DataFile, now: int) -> AddAction:
        from deltalake.transaction import AddAction

        return AddAction(file.name, file.size, {PARTITION: self._date}, now, True, file.statistics)

    def _masked(self) -> AbstractContextManager[None]:
        return masked_errors(lambda: self._options)

    # ---- the table -------------------------------------------------------------------------------

    def _open(self) -> DeltaTable | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        self._options = dict(self._storage_options())
        try:
            table = DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            return None
        self._check(table)
        return table

    def _create(self) -> None:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            DeltaTable.create(
                self._uri, self._full_schema(), mode="ignore", partition_by=[PARTITION], storage_options=self._options
            )
        except DeltaError:  # another task creates it at the same time
            if not DeltaTable.is_deltatable(self._uri, self._options):
                raise

    def _full_schema(self) -> pa.Schema:
        import pyarrow as pa

        return self._schema.insert(0, pa.field(PARTITION, pa.date32()))

    def _check(self, table: DeltaTable) -> None:
        from deltalake import Schema

        features = set(table.protocol().reader_features or ())
        if table.protocol().min_reader_version == 2 or features - _READER_FEATURES:
            raise InvalidArgumentError(
                f"dst={str(self._dst)!r} is a table with column mapping or other features that this package cannot "
                f"write: {', '.join(sorted(features - _READER_FEATURES)) or 'column mapping'}. Use another dst",
                argument="dst",
            )
        existing = {field.name: field.type for field in table.schema().fields}
        wanted = {field.name: field.type for field in Schema.from_arrow(self._full_schema()).fields}
        if table.metadata().partition_columns != [PARTITION] or not existing.keys() >= WINDOW_COLUMNS.keys():
            raise InvalidArgumentError(
                f"dst={str(self._dst)!r} is a Delta table that this package did not create. Use another dst",
                argument="dst",
            )
        similar = {name.lower(): name for name in existing}
        for name, kind in wanted.items():
            # Compare case-insensitively, as Delta Lake does.
            if similar.get(name.lower(), name) != name:
                raise InvalidArgumentError(
                    f"column_types: {self._dst} has the column {similar[name.lower()]!r}, so it cannot have {name!r}",
                    argument="column_types",
                )
            if existing.get(name, kind) != kind:
                raise InvalidArgumentError(
                    f"The column {name!r} of {self._dst} is {existing[name]}, and cannot become {kind}",
                    argument="column_types",
                )

    def _iter_datasets(self, table: DeltaTable) -> Iterator[tuple[str, ds.Dataset]]:
        """Yield files that may have rows of the window, with their names; one without statistics may have any."""
        import pyarrow as pa

        actions = pa.table(table.get_add_actions(flatten=True))
        paths, dates = (actions.column(name).to_pylist() for name in ("path", f"partition.{PARTITION}"))
        ranges = [
            actions.column(name).to_pylist() if name in actions.schema.names else repeat(None)
            for name in ("min.window_start", "max.window_start")
        ]
        start = self._window.start
        for name, date, first, last in zip(paths, dates, *ranges, strict=False):
            if str(date) == self._date and (first or start) <= start <= (last or start):
                yield name, self._open_dataset(table, [name])

    # ---- the rows in its files -------------------------------------------------------------------

    def _open_dataset(self, table: DeltaTable, names: Sequence[str]) -> ds.Dataset:
        import pyarrow as pa
        import pyarrow.dataset as ds

        schema = pa.schema(table.schema().to_arrow())
        schema = schema.remove(schema.get_field_index(PARTITION))
        paths = [(self._dst / name).path for name in names]
        self._dst.fs.invalidate_cache()  # a listing from before the file
        return ds.dataset(paths, schema=schema, format="parquet", filesystem=self._dst.fs)

    @property
    def _in_window(self) -> ds.Expression:
        import pyarrow as pa
        import pyarrow.dataset as ds

        start, end = (pa.scalar(moment, pa.timestamp("us", "UTC")) for moment in (self._window.start, self._window.end))
        return (ds.field("window_start") == start) & (ds.field("window_end") == end)

    def _count(self, dataset: ds.Dataset) -> Counter[str | None]:
        rows: Counter[str | None] = Counter()
        for batch in dataset.scanner(columns=["device"], filter=self._in_window, **_SCAN).to_batches():
            counts = batch.column("device").value_counts()
            rows.update(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))
        return rows

    def _rewrite(self, table: DeltaTable, plan: _Plan) -> DataFile:
        """Write the rows that stay of files that have some of them, and return the new file."""
        import pyarrow.compute as pc
        import pyarrow.dataset as ds

        dataset = self._open_dataset(table, plan.rewritten)
        is_replaced = self._in_window & ds.field("device").isin(list(plan.device_ids))
        stays = ~pc.coalesce(is_replaced, pc.scalar(False))
        name = self._new_name()
        metadata: list[Any] = []
        with publish(self._dst / name) as stream:
            groups = RowGroups(stream, dataset.schema, metadata_collector=metadata)
            with finishing(groups):
                for batch in dataset.scanner(filter=stays, **_SCAN).to_batches():
                    groups.write(batch)
            size = stream.tell()
        return DataFile(name, size, statistics_of(metadata[0]))


def _names_of(table: DeltaTable) -> set[str]:
    import pyarrow as pa

    return set(pa.table(table.get_add_actions()).column("path").to_pylist())


@contextmanager
def masked_errors(storage_options: StorageOptions) -> Iterator[None]:
    """Remove credentials, and colors, from errors of the library: a URL in them may have a signature."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except UnleashError:
        raise
    except Exception as error:
        message = re.sub(r"\x1b\[\d*m|(?<=sig=)[^&\s\"')]+", "", str(error))
        for name, secret in storage_options().items():
            if len(secret) >= _SECRET_CHARS and not name.endswith(("region", "url", "endpoint", "account_name")):
                message = message.replace(secret, "***")
        if message == str(error):
            raise
        masked: Exception = type(error)(message) if isinstance(error, DeltaError) else OSError(message)
        if isinstance(error, OSError) and isinstance(masked, OSError):
            masked.errno = error.errno  # such as that of a full disk
    else:
        return
    raise masked


def table_uri(dst: StoragePath) -> str:
    scheme = _SCHEMES.get(store_of(dst.protocol).name)
    if scheme is None:
        raise InvalidArgumentError(
            f"dst={str(dst)!r}: a Delta table can be in a folder, S3, Google Cloud Storage or Azure", argument="dst"
        )
    # The library would read # and ? as parts of a URL, and write the log to another folder than the data.
    if re.search(r"[%\\#?]|//" if scheme else r"[%\\]", dst.path):
        raise InvalidArgumentError(
            f"dst={str(dst)!r}: the folder of a Delta table cannot have %, \\, #, ? or // in its name", argument="dst"
        )
    return f"{scheme}{dst.path}"
