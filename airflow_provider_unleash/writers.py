"""Pages in, one complete object out: Parquet, CSV, JSON lines or JSON on any fsspec store."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timezone
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import chain, islice, starmap
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import msgspec

from airflow_provider_unleash import protocol
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError
from airflow_provider_unleash.protocol import Page
from airflow_provider_unleash.stores import StoragePath, publish

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

FileFormat = Literal["jsonl", "json", "csv", "parquet"]
FILE_FORMATS: tuple[FileFormat, ...] = ("jsonl", "json", "csv", "parquet")
Compression = Literal["gzip"]
ColumnType = Literal["string", "int64", "float64", "bool", "timestamp"]

# ``count`` is a float because metrics can have fractions, and readers take a tree's types from any one file.
COLUMNS: dict[str, ColumnType] = {
    "class_name": "string",
    "count": "float64",
    "device_id": "string",
    "frame_number": "int64",
    "model_id": "string",
    "session_id": "string",
    "source_file_name": "string",
    "timestamp": "timestamp",
}
EXTRA = "extra"
# Hive keys of the path: a column of the same name would hide or contradict them.
HIVE_KEYS = ("device", "start_date")
_BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "wasb")

ROW_GROUP_ROWS = 100_000
ROW_GROUP_BYTES = 64 * 1024 * 1024

_JSON = msgspec.json.Encoder()
_SORTED_JSON = msgspec.json.Encoder(order="sorted")


# ---- names -------------------------------------------------------------------------------------


def check_file_format(
    file_format: str, compression: str | None = None, column_types: Mapping[str, str] | None = None
) -> None:
    """
    Return if the three can be used together.

    :raises InvalidArgumentError: they cannot.
    """
    if file_format not in FILE_FORMATS:
        raise InvalidArgumentError(
            f"file_format={file_format!r} is none of {', '.join(FILE_FORMATS)}", argument="file_format"
        )
    if compression not in (None, "gzip"):
        raise InvalidArgumentError(f"compression={compression!r} is neither 'gzip' nor None", argument="compression")
    if compression and file_format == "parquet":
        raise InvalidArgumentError(
            "Parquet files are compressed inside (zstd): leave compression out", argument="compression"
        )
    columns_of(column_types)


def check_dst(dst: str) -> None:
    """
    Return if a folder's URL or absolute path says where it leads.

    :raises InvalidArgumentError: it does not, e.g. because of what a template rendered to.
    """
    scheme, _, place = dst.partition("://") if "://" in dst else ("file", "", dst)
    problem = None
    is_local = scheme.lower() in ("file", "local")
    # Of two slashes, ObjectStoragePath makes the current folder.
    if not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme) or (is_local and not re.match("/(?!/)", place)):
        problem = "is no URL and no absolute path"
    elif "://" in place:
        problem = "is two URLs"
    elif not dst.isprintable() or dst != dst.strip():
        problem = "has control or invisible characters, or white space around it"
    elif scheme.lower() in _BUCKETS and not place.partition("/")[0].rpartition("@")[2]:
        problem = "names no bucket"
    elif {".", ".."} & set(re.split(r"[/\\@]", unquote(place))):
        problem = "has a dot segment, which leads elsewhere"
    if problem:
        raise InvalidArgumentError(
            f"dst={dst!r} {problem}; expected e.g. s3://aws_default@lake/unleash", argument="dst"
        )


def columns_of(column_types: Mapping[str, str] | None) -> dict[str, ColumnType]:
    """
    Return the columns of Parquet and CSV in their order: the eight known ones, ``extra``, the declared ones.

    :raises InvalidArgumentError: a declared name is taken, or its type is unknown.
    """
    columns: dict[str, ColumnType] = {**COLUMNS, EXTRA: "string"}
    if not isinstance(column_types, (Mapping, type(None))):
        raise InvalidArgumentError(
            f"column_types={column_types!r} is no dict of names and types", argument="column_types"
        )
    for name, kind in (column_types or {}).items():
        if not isinstance(name, str) or not isinstance(kind, str) or kind not in _ACCEPTED:
            raise InvalidArgumentError(
                f"column_types: {name!r} is {kind!r}, none of {', '.join(_ACCEPTED)}", argument="column_types"
            )
        # Readers such as Spark and Athena tell no upper from lower case.
        if name.lower() in {taken.lower() for taken in columns} | set(HIVE_KEYS):
            raise InvalidArgumentError(
                f"column_types: {name!r} is a column or a folder key already; it adds columns, it never retypes one",
                argument="column_types",
            )
        columns[name] = kind  # type: ignore[assignment]  # checked above
    return columns


def object_name(
    device_id: str, start_ms: int, end_ms: int, file_format: FileFormat, compression: Compression | None = None
) -> str:
    """
    Return the name of a window's object below ``dst``, a function of its arguments alone.

    ``device=<id>/start_date=<YYYY-MM-DD>/<start>_<end>.<ext>`` with the id percent-encoded and all times in UTC.
    """
    extension = file_format + (".gz" if compression == "gzip" else "")
    folder = f"device={protocol.quote_device_id(device_id)}/start_date={_utc(start_ms):%Y-%m-%d}"
    return f"{folder}/{_basic_iso(start_ms)}_{_basic_iso(end_ms)}.{extension}"


def _utc(moment_ms: int) -> datetime:
    return datetime.fromtimestamp(moment_ms // 1000, timezone.utc)


def _basic_iso(moment_ms: int) -> str:
    fraction = f".{moment_ms % 1000:03}" if moment_ms % 1000 else ""
    return f"{_utc(moment_ms):%Y%m%dT%H%M%S}{fraction}Z"


# ---- columns -----------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int64(value: Any) -> bool:
    return _is_number(value) and value == int(value) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_float64(value: Any) -> bool:
    return isinstance(value, float) or (_is_number(value) and _fits_float(value))


def _fits_float(value: int) -> bool:
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


_FINER_THAN_MILLISECONDS = re.compile(r"\.\d{3}\d*[1-9]")
_PLAIN_LENGTHS = {None, len("2020-08-17T02:08:49Z"), len("2020-08-17T02:08:49.000Z")}


def _whole_ms(stamp: Any) -> int:
    """Return a stamp in epoch milliseconds; raise ValueError where that would lose something."""
    moment = protocol.parse_timestamp(stamp)
    if _FINER_THAN_MILLISECONDS.search(stamp):
        raise ValueError(f"{stamp} is finer than a millisecond")
    return protocol.to_epoch_ms(moment, "timestamp")


def _is_timestamp(value: Any) -> bool:
    try:
        return isinstance(value, str) and _whole_ms(value) is not None
    except ValueError:
        return False


_ACCEPTED: dict[str, Callable[[Any], bool]] = {
    "string": _is_text,
    "int64": _is_int64,
    "float64": _is_float64,
    "bool": lambda value: isinstance(value, bool),
    "timestamp": _is_timestamp,
}


_EXACT: dict[str, Callable[[Any], Any]] = {
    "string": str,
    "int64": int,
    "float64": float,
    "bool": bool,
    "timestamp": _whole_ms,
}


def _misfit(page: Page, name: str, kind: str, values: Sequence[Any]) -> UnexpectedResponseError:
    """Return the error that names the first value which does not fit its column."""
    accepts = _ACCEPTED[kind]
    index = next((i for i, value in enumerate(values) if value is not None and not accepts(value)), 0)
    value, row = values[index], page.row_index(index)
    shown = protocol.mask_tokens_in_text(repr(value))[: protocol.EXCERPT_CHARS]
    return UnexpectedResponseError(
        f"Page {page.number}, row {row}: {name} is {shown}, which does not fit its column of type {kind}. "
        'file_format="jsonl" or "json" keeps values as they come',
        page=page.number,
        row=row,
        field=name,
        value=value,
    )


def _check_values(page: Page, name: str, kind: ColumnType, values: Sequence[Any]) -> None:
    """Raise if a value does not fit; each distinct one is looked at once, and a bool is no number here."""
    types = set(map(type, values)) - {type(None)}
    try:
        fits = (bool in types) <= (kind == "bool") and all(map(_ACCEPTED[kind], set(values) - {None}))
    except TypeError:  # a list or an object, which no column takes
        fits = False
    if not fits or (kind == "bool" and types - {bool}):
        raise _misfit(page, name, kind, values)


def _extras(page: Page, columns: Mapping[str, ColumnType]) -> list[str | None]:
    """Return, for each row, the JSON text of its keys that have no column, or None."""
    unknown = [key for key in page.keys if key not in columns or key == EXTRA]
    if not unknown:
        return [None] * len(page.tuples)
    indices = [page.indices[key] for key in unknown]
    texts: list[str | None] = []
    for row in page.tuples:
        rest = {key: row[i] for key, i in zip(unknown, indices, strict=True) if row[i] is not msgspec.UNSET}
        texts.append(_SORTED_JSON.encode(rest).decode() if rest else None)
    return texts


def _values(page: Page, columns: Mapping[str, ColumnType]) -> dict[str, Sequence[Any]]:
    """Return the values of each column in its order; a key that the page lacks is null in all rows."""
    given = page.columns()
    nothing = (None,) * len(page.tuples)
    return {name: _extras(page, columns) if name == EXTRA else given.get(name, nothing) for name in columns}


# ---- formats -----------------------------------------------------------------------------------


class PageWriter(ABC):
    """
    Writes pages to a binary stream in one format.

    :ivar size: bytes of the complete object; known once it is published.
    """

    size = 0

    def __init__(self, stream: IO[bytes], columns: Mapping[str, ColumnType]) -> None:
        self._stream = stream
        self._columns = columns
        self._new_keys: set[str] = set()

    @abstractmethod
    def write_page(self, page: Page) -> None:
        """
        Append the rows of a page.

        :raises UnexpectedResponseError: a value does not fit its column (Parquet, CSV).
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what makes the object complete."""

    def abort(self) -> None:  # noqa: B027 – most formats hold nothing
        """Let go of what is held; the stream is thrown away."""

    def _report_new_keys(self, page: Page) -> None:
        new = {key for key in page.keys if key not in self._columns} - self._new_keys
        if new:
            self._new_keys |= new
            log.warning("Page %d has keys without a column: %s; they go to «extra»", page.number, sorted(new))


def _objects(page: Page) -> list[Any]:
    """Return what encodes as the page's records; structs, which are made and encoded three times as fast as dicts."""
    try:
        row_type = _row_type(page.keys)
    except ValueError:  # a name that msgspec takes for no field
        return page.records()
    return list(starmap(row_type, page.tuples))


@lru_cache(maxsize=16)
def _row_type(keys: tuple[str, ...]) -> type[msgspec.Struct]:
    # Fields are renamed, because a key need not be a Python name; those that are UNSET are left out when encoded.
    names = [f"field_{index}" for index in range(len(keys))]
    fields = [(name, Any) for name in names]
    return msgspec.defstruct("Row", fields, rename=dict(zip(names, keys, strict=True)), gc=False)


class JsonLinesWriter(PageWriter):
    """One object a line."""

    def write_page(self, page: Page) -> None:
        self._stream.write(_JSON.encode_lines(_objects(page)))

    def finish(self) -> None:
        pass


class JsonWriter(PageWriter):
    """One array of objects, a line each: what Tableau and Salesforce read."""

    _opening = b"[\n"

    def write_page(self, page: Page) -> None:
        if page.tuples:
            # A line break in a text is written as \n, so each one here ends a row.
            lines = _JSON.encode_lines(_objects(page)).rstrip(b"\n")
            self._stream.write(self._opening + lines.replace(b"\n", b",\n"))
            self._opening = b",\n"

    def finish(self) -> None:
        self._stream.write(b"[]\n" if self._opening == b"[\n" else b"\n]\n")


# Readers guess a CSV column's type from its first rows or files, so each value shows the type it has.
_WRITTEN: dict[str, Callable[[Any], str]] = {
    "bool": lambda value: str(value).lower(),
    "int64": lambda value: str(_EXACT["int64"](value)),
    "float64": lambda value: repr(_EXACT["float64"](value)),
    "timestamp": lambda value: protocol.format_ms(_EXACT["timestamp"](value)),
}


_WRITTEN_STAMP = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z")


def _are_written_stamps(values: Sequence[Any]) -> bool:
    """Tell whether all are stamps, and stand as they would be written anyhow; the quick look at the usual ones."""
    try:
        msgspec.convert(values, list[datetime])
        return all(map(_WRITTEN_STAMP.fullmatch, values))
    except (msgspec.ValidationError, TypeError):
        return False


class CsvWriter(PageWriter):
    """A header, then a row a line, as RFC 4180 has it; null is an empty field, and so is an empty text."""

    def __init__(self, stream: IO[bytes], columns: Mapping[str, ColumnType]) -> None:
        super().__init__(stream, columns)
        self._write_rows([list(columns)])

    def write_page(self, page: Page) -> None:
        self._report_new_keys(page)
        cells = [self._cells(page, name, values) for name, values in _values(page, self._columns).items()]
        self._write_rows(zip(*cells, strict=True))

    def _cells(self, page: Page, name: str, values: Sequence[Any]) -> Sequence[Any]:
        kind = self._columns[name]
        if kind == "timestamp" and _are_written_stamps(values):
            return values
        _check_values(page, name, kind, values)
        written = _WRITTEN.get(kind)
        return values if written is None else [None if value is None else written(value) for value in values]

    def _write_rows(self, rows: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._stream.write(text.getvalue().encode())

    def finish(self) -> None:
        pass


class RecordBatches:
    """
    Makes a record batch of each page, typed as its columns say; what Parquet files and tables have in common.

    :ivar schema: of all batches.
    """

    def __init__(self, columns: Mapping[str, ColumnType]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._arrow = pa
        self._compute = pc
        self._columns = columns
        self._types: dict[ColumnType, pa.DataType] = {
            "string": pa.string(),
            "int64": pa.int64(),
            "float64": pa.float64(),
            "bool": pa.bool_(),
            "timestamp": pa.timestamp("ms", tz="UTC"),
        }
        # Told to expect these, pyarrow takes nothing else for them. Of numbers it would cut 1.5 to 1, so it shall look.
        self._given = {"string": pa.string(), "timestamp": pa.string(), "bool": pa.bool_()}
        self.schema = pa.schema([(name, self._types[kind]) for name, kind in columns.items()])

    def convert(self, page: Page) -> pa.RecordBatch:
        """
        Return the rows of a page.

        :raises UnexpectedResponseError: a value does not fit its column.
        """
        arrays = [self._array(page, name, values) for name, values in _values(page, self._columns).items()]
        return self._arrow.record_batch(arrays, schema=self.schema)

    def join(self, batches: Sequence[pa.RecordBatch]) -> pa.Table:
        """Return the rows of batches as one table, of none, too."""
        return self._arrow.Table.from_batches(batches, self.schema)

    def read(self, pages: Iterable[Page]) -> pa.Table:
        """Return the rows of pages as one table; errors as :meth:`convert`."""
        return self.join([self.convert(page) for page in pages])

    def _array(self, page: Page, name: str, values: Sequence[Any]) -> pa.Array:
        kind = self._columns[name]
        try:
            found = self._arrow.array(values, self._given.get(kind))
            if self._is_plain(found, kind, values):
                return found if found.type == self._types[kind] else found.cast(self._types[kind])
        except (self._arrow.ArrowException, OverflowError, TypeError):
            pass  # what follows says which value it is, or takes what pyarrow is too strict about
        _check_values(page, name, kind, values)
        exact = [None if value is None else _EXACT[kind](value) for value in values]
        plain = self._arrow.int64() if kind == "timestamp" else self._types[kind]
        return self._arrow.array(exact, plain).cast(self._types[kind])

    def _is_plain(self, found: pa.Array, kind: ColumnType, values: Sequence[Any]) -> bool:
        """Tell whether the cast of what pyarrow understood is what the column should have."""
        if kind == "timestamp":
            return self._are_plain_stamps(found)
        if kind in self._given:
            return True
        types = self._arrow.types
        if types.is_floating(found.type):
            return kind == "float64" and bool not in set(map(type, values))  # after a float, True became 1.0
        return bool(types.is_integer(found.type) or types.is_null(found.type))

    def _are_plain_stamps(self, stamps: pa.Array) -> bool:
        """Tell whether all have the usual form, which pyarrow reads as it should; it reads many other texts, too."""
        compute = self._compute
        usual = compute.and_not(compute.ends_with(stamps, "Z"), compute.starts_with(stamps, "0000"))
        return set(compute.binary_length(stamps).unique().to_pylist()) <= _PLAIN_LENGTHS and usual.false_count == 0


class ParquetWriter(PageWriter):
    """Typed columns, zstd, row groups of about 100 000 rows or 64 MiB."""

    def __init__(self, stream: IO[bytes], columns: Mapping[str, ColumnType]) -> None:
        super().__init__(stream, columns)
        import pyarrow.parquet as pq

        self._record_batches = RecordBatches(columns)
        # Counters and stamps have hardly a value twice; a dictionary of them costs time and saves nothing.
        repeating = [name for name, kind in columns.items() if kind in ("string", "float64")]
        self._parquet = pq.ParquetWriter(
            stream, self._record_batches.schema, compression="zstd", use_dictionary=repeating
        )
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write_page(self, page: Page) -> None:
        self._report_new_keys(page)
        batch = self._record_batches.convert(page)
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        self._parquet.write_table(self._record_batches.join(self._batches))
        self._batches.clear()
        self._rows = self._bytes = 0

    def finish(self) -> None:
        if self._batches:
            self._write_row_group()
        self._parquet.close()

    def abort(self) -> None:
        self._batches.clear()
        with contextlib.suppress(Exception):  # it writes a footer to a stream that nobody will read
            self._parquet.close()


_WRITERS: dict[FileFormat, type[PageWriter]] = {
    "jsonl": JsonLinesWriter,
    "json": JsonWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


def check_installed(file_format: FileFormat) -> None:
    """
    Return if what the format needs is installed.

    :raises InvalidArgumentError: it is not; says how to install it.
    """
    if file_format == "parquet":
        check_extra("parquet", "file_format='parquet'", "file_format")


_EXTRAS = {"parquet": ("pyarrow",), "pandas": ("pandas", "pyarrow"), "polars": ("polars", "pyarrow")}


def check_extra(extra: str, what: str, argument: str) -> None:
    """
    Return if the libraries of an extra are installed.

    :param what: needs them, the error says.
    :param argument: which the error is about.
    :raises InvalidArgumentError: they are not; says how to install them.
    """
    missing = [name for name in _EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise InvalidArgumentError(
            f"{what} needs {' and '.join(missing)}: pip install 'airflow-provider-unleash[{extra}]'", argument=argument
        )


# ---- objects -----------------------------------------------------------------------------------


@contextmanager
def open_object(
    path: StoragePath,
    file_format: FileFormat,
    *,
    compression: Compression | None = None,
    column_types: Mapping[str, str] | None = None,
) -> Iterator[PageWriter]:
    """
    Yield a writer; when the block ends the object is there whole, when it raises everything is as it was.

    :param path: the object, e.g. an ``ObjectStoragePath``.
    :param file_format: jsonl, json, csv or parquet.
    :param compression: gzip or None; Parquet is compressed inside.
    :param column_types: further columns of Parquet and CSV.
    :raises InvalidArgumentError: the parameters cannot be used together, or pyarrow is missing.
    """
    check_file_format(file_format, compression, column_types)
    check_installed(file_format)
    with publish(path) as stream, _compress(stream, compression) as target:
        writer = _WRITERS[file_format](target, columns_of(column_types))
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        if target is not stream:
            target.close()
        writer.size = stream.tell()


def _compress(stream: IO[bytes], compression: Compression | None) -> AbstractContextManager[IO[bytes]]:
    if compression is None:
        return nullcontext(stream)
    # Without a name and a time in its header, the same rows are the same bytes.
    return gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0)  # type: ignore[return-value]


def has_rows(path: StoragePath, file_format: FileFormat, compression: Compression | None = None) -> bool:
    """Tell whether there is an object with rows at the path; one that cannot be read counts as having some."""
    path.fs.invalidate_cache(path.path)
    try:
        with path.fs.open(path.path, "rb") as stream:
            return _holds_rows(stream, file_format, compression)
    except FileNotFoundError:
        return False


def _holds_rows(stream: IO[bytes], file_format: FileFormat, compression: Compression | None) -> bool:
    try:
        if file_format == "parquet":
            import pyarrow.parquet as pq

            return bool(pq.ParquetFile(stream).metadata.num_rows)
        content = gzip.GzipFile(fileobj=stream) if compression else nullcontext(stream)
        with content as plain, io.TextIOWrapper(plain, "utf-8", newline="") as text:
            if file_format == "csv":
                return len(list(islice(csv.reader(text), 2))) > 1
            chunks = iter(partial(text.read, 4096), "")
            written = (char for char in chain.from_iterable(chunks) if not char.isspace())
            return "".join(islice(written, 2)) not in ("", "[]")
    except Exception as error:
        # Whatever it is, it is not known to be empty, and so must not be replaced by nothing.
        log.warning("The existing object cannot be read (%s); taken as having rows", error)
        return True
