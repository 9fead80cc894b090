"""File formats: pages become one Parquet, CSV, JSON Lines or JSON object."""

from __future__ import annotations

import csv
import gzip
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain, islice, starmap
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from airflow_provider_unleash.core.arguments import check_choice
from airflow_provider_unleash.core.columns import (
    ArrowConverter,
    check_extra_installed,
    columns_of,
    csv_values,
    iter_columns,
    table_columns_of,
)
from airflow_provider_unleash.core.names import DELTA
from airflow_provider_unleash.core.phrases import name_first
from airflow_provider_unleash.core.protocol import EXCERPT_CHARS, Page, mask_tokens_in_text
from airflow_provider_unleash.core.stores import StoragePath, publish
from airflow_provider_unleash.exceptions import InvalidArgumentError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

FileFormat = Literal["jsonl", "json", "csv", "parquet", "delta"]
FILE_FORMATS: tuple[FileFormat, ...] = ("jsonl", "json", "csv", "parquet")
Compression = Literal["gzip"]

ROW_GROUP_ROWS = 100_000
ROW_GROUP_BYTES = 64 * 1024 * 1024

_MAX_HEADER_CHARS = 1 << 20

_JSON = msgspec.json.Encoder()


@dataclass(frozen=True)
class Format:
    """
    A checked combination of file format, compression and column types.

    :param column_types: additional columns of Parquet and CSV.
    """

    known: ClassVar[tuple[str, ...]] = FILE_FORMATS

    file_format: FileFormat = "jsonl"
    compression: Compression | None = None
    column_types: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.file_format not in self.known:
            if self.file_format == DELTA:
                raise InvalidArgumentError(
                    "file_format='delta' needs UnleashAccountToObjectStorageOperator: a table gets one commit per "
                    "window, not one per device",
                    argument="file_format",
                )
            check_choice("file_format", self.file_format, self.known)
        if self.compression not in (None, "gzip"):
            raise InvalidArgumentError(
                f"compression={self.compression!r} must be 'gzip' or None", argument="compression"
            )
        if self.compression and self.file_format in ("parquet", DELTA):
            raise InvalidArgumentError(
                "Parquet files are compressed internally (zstd): remove compression", argument="compression"
            )
        (table_columns_of if self.file_format == DELTA else columns_of)(self.column_types)

    @property
    def extension(self) -> str:
        """The extension of objects, such as ``jsonl.gz``."""
        return self.file_format + (".gz" if self.compression else "")

    @cached_property
    def columns(self) -> dict[str, str]:
        return columns_of(self.column_types)

    @contextmanager
    def open(self, path: StoragePath, reported_keys: set[str] | None = None) -> Iterator[PageWriter]:
        """
        Yield a writer. When the block ends, the object is published whole; if it raises, nothing changes.

        Writers that share ``reported_keys`` warn once of each key without a column.
        """
        if self.file_format == "parquet":
            check_extra_installed("parquet", "file_format='parquet'", "file_format")
        with publish(path) as stream:
            with self._compress(stream) as target:
                writer = _WRITERS[self.file_format](target, self.columns, reported_keys)
                with finishing(writer):
                    yield writer
            writer.size = stream.tell()

    def _compress(self, stream: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
        if self.compression is None:
            return nullcontext(stream)
        # No name and time in the header, so that the same rows always give the same bytes.
        return gzip.GzipFile(  # type: ignore[return-value]  # typeshed does not see that it is an IO[bytes]
            filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0
        )

    def has_rows(self, path: StoragePath) -> bool:
        """Return whether an object with rows exists; one that cannot be read counts as having rows."""
        path.fs.invalidate_cache(path.path)
        try:
            with path.fs.open(path.path, "rb") as stream:
                return self._stream_has_rows(stream)
        except FileNotFoundError:
            return False

    def _stream_has_rows(self, stream: IO[bytes]) -> bool:
        try:
            if self.file_format == "parquet":
                import pyarrow.parquet as pq

                return bool(pq.ParquetFile(stream).metadata.num_rows)
            content = gzip.GzipFile(fileobj=stream) if self.compression else nullcontext(stream)
            with content as plain, io.TextIOWrapper(plain, "utf-8", newline="") as text:
                if self.file_format == "csv":
                    head = text.read(_MAX_HEADER_CHARS)  # a header is shorter, so a longer text has rows
                    is_long = len(head) == _MAX_HEADER_CHARS
                    return is_long or len(list(islice(csv.reader(io.StringIO(head, newline="")), 2))) > 1
                chunks = iter(partial(text.read, 4096), "")
                characters = (char for char in chain.from_iterable(chunks) if not char.isspace())
                return "".join(islice(characters, 2)) not in ("", "[]")
        except Exception as error:
            # An object that may have rows must not be replaced by an empty one.
            log.warning("Cannot read the existing object, so it counts as having rows: %s", error)
            return True


class AccountFormat(Format):
    """The format of the objects of a whole account, or a Delta table."""

    known = (*FILE_FORMATS, DELTA)


class PageWriter(ABC):
    """
    Writes pages to a binary stream.

    :ivar size: bytes of the complete object, once it is published.
    :ivar device_id: the device whose pages are written next; only Delta tables store it.
    """

    size = 0
    device_id = ""

    def __init__(self, stream: IO[bytes], columns: Mapping[str, str], reported_keys: set[str] | None = None) -> None:
        self._stream = stream
        self._columns = columns
        self._reported_keys = set() if reported_keys is None else reported_keys

    @abstractmethod
    def write_page(self, page: Page) -> None: ...

    def finish(self) -> None:  # noqa: B027  # nothing, in most formats
        """Write what completes the object."""

    def abort(self) -> None:  # noqa: B027  # most formats hold nothing
        """Release resources; the stream is discarded."""

    def _warn_of_new_keys(self, page: Page) -> None:
        new = {key for key in page.keys if key not in self._columns} - self._reported_keys
        if new:
            self._reported_keys |= new
            shown = name_first([mask_tokens_in_text(repr(key))[:EXCERPT_CHARS] for key in sorted(new)], 10)
            log.warning("Page %d has keys without a column: %s. They are stored in extra", page.number, shown)


class JsonLinesWriter(PageWriter):
    """One object per line."""

    def write_page(self, page: Page) -> None:
        self._stream.write(_JSON.encode_lines(_encodable(page)))


class JsonWriter(PageWriter):
    """One array of objects, one per line, as Tableau and Salesforce read it."""

    _opening = b"[\n"

    def write_page(self, page: Page) -> None:
        if page.rows:
            # JSON escapes line breaks inside strings, so each one here ends a row.
            lines = _JSON.encode_lines(_encodable(page)).rstrip(b"\n")
            self._stream.write(self._opening + lines.replace(b"\n", b",\n"))
            self._opening = b",\n"

    def finish(self) -> None:
        self._stream.write(b"[]\n" if self._opening == b"[\n" else b"\n]\n")


def _encodable(page: Page) -> list[Any]:
    """Return the records as structs, which are created and encoded three times as fast as dicts."""
    try:
        row_type = _row_type(page.keys)
    except ValueError:  # a key that msgspec does not allow as a field
        return page.records()
    return list(starmap(row_type, page.rows))


@lru_cache(maxsize=16)
def _row_type(keys: tuple[str, ...]) -> type[msgspec.Struct]:
    # Fields are renamed because a key may not be a Python identifier. UNSET values are left out when encoded.
    names = [f"field_{index}" for index in range(len(keys))]
    fields = [(name, Any) for name in names]
    return msgspec.defstruct("Row", fields, rename=dict(zip(names, keys, strict=True)), gc=False)


class CsvWriter(PageWriter):
    """
    A header and one row per line, per RFC 4180. Null and the empty string are both empty fields.

    The header is quoted: DuckDB detects quotes in the first 20 480 rows, and the first quoted value may come later.
    """

    def __init__(self, stream: IO[bytes], columns: Mapping[str, str], reported_keys: set[str] | None = None) -> None:
        super().__init__(stream, columns, reported_keys)
        self._write_rows([list(columns)], csv.QUOTE_ALL)

    def write_page(self, page: Page) -> None:
        self._warn_of_new_keys(page)
        self._write_rows(zip(*(csv_values(page, *column) for column in iter_columns(page, self._columns)), strict=True))

    def _write_rows(self, rows: Any, quoting: Literal[0, 1] = csv.QUOTE_MINIMAL) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, quoting=quoting).writerows(rows)
        self._stream.write(text.getvalue().encode())


class RowGroups:
    """Writes record batches as a Parquet file: zstd, row groups of about 100 000 rows or 64 MiB."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema, **options: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Frame numbers and timestamps rarely repeat: a dictionary of them takes time and saves no space.
        is_repeating = (pa.types.is_string, pa.types.is_float64)
        repeating = [field.name for field in schema if any(check(field.type) for check in is_repeating)]
        self._to_table = pa.Table.from_batches
        # Readers get the same types without Arrow's own schema, which takes a sixth of a file of 240 rows.
        self._parquet = pq.ParquetWriter(
            stream, schema, compression="zstd", use_dictionary=repeating, store_schema=False, **options
        )
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        self._parquet.write_table(self._to_table(self._batches))
        self._batches.clear()
        self._rows = self._bytes = 0

    def finish(self) -> None:
        if self._batches:
            self._write_row_group()
        self._parquet.close()

    def abort(self) -> None:
        self._batches.clear()
        with suppress(Exception):  # it writes a footer to the discarded stream
            self._parquet.close()


class ParquetWriter(PageWriter):
    """Typed columns."""

    def __init__(
        self,
        stream: IO[bytes],
        columns: Mapping[str, str],
        reported_keys: set[str] | None = None,
        schema: pa.Schema | None = None,
        **options: Any,
    ) -> None:
        super().__init__(stream, columns, reported_keys)
        self._converter = ArrowConverter(columns)
        self._groups = RowGroups(stream, self._converter.schema if schema is None else schema, **options)

    def write_page(self, page: Page) -> None:
        self._warn_of_new_keys(page)
        self._groups.write(self._to_batch(page))

    def _to_batch(self, page: Page) -> pa.RecordBatch:
        return self._converter.convert(page)

    def finish(self) -> None:
        self._groups.finish()

    def abort(self) -> None:
        self._groups.abort()


_WRITERS: dict[FileFormat, type[PageWriter]] = {
    "jsonl": JsonLinesWriter,
    "json": JsonWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


@contextmanager
def finishing(writer: PageWriter | RowGroups) -> Iterator[None]:
    """Finish the writer when the block ends, or abort it if the block raises."""
    try:
        yield
        writer.finish()
    except BaseException:
        writer.abort()
        raise
