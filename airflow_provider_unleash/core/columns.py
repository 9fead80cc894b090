"""The typed columns of Parquet and CSV: their types, and how a page becomes columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_unleash.core.moments import format_ms, parse_timestamp, to_ms
from airflow_provider_unleash.core.protocol import EXCERPT_CHARS, Page, mask_tokens_in_text, sorted_json
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ColumnType:
    """
    One type of column. To add a type, add an entry to ``COLUMN_TYPES``.

    :param accepts: whether a value other than None fits, so that converting it loses nothing.
    :param convert: the value as the column stores it.
    :param to_csv: the converted value as CSV text, or None if the value is text already. Readers guess types from the
        first values, so 3 is ``3.0`` in a column of floats.
    :param arrow: the Arrow type, from the module ``pyarrow``.
    :param pandas: the nullable pandas type, from the module ``pandas``; None lets pandas choose.
    """

    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any]
    to_csv: Callable[[Any], str] | None
    arrow: Callable[[Any], Any]
    pandas: Callable[[Any], Any] | None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int64(value: Any) -> bool:
    return _is_number(value) and value == int(value) and -(2**63) <= value < 2**63


def _is_float64(value: Any) -> bool:
    try:
        return _is_number(value) and (isinstance(value, float) or int(float(value)) == value)
    except OverflowError:
        return False


_FINER_THAN_MILLISECONDS = re.compile(r"\.\d{3}\d*[1-9]")


def _whole_ms(timestamp: Any) -> int:
    moment = parse_timestamp(timestamp)
    if _FINER_THAN_MILLISECONDS.search(timestamp):
        raise ValueError(f"{timestamp} is finer than a millisecond")
    return to_ms(moment)


def _is_timestamp(value: Any) -> bool:
    try:
        return isinstance(value, str) and _whole_ms(value) is not None
    except ValueError:
        return False


COLUMN_TYPES: dict[str, ColumnType] = {
    "string": ColumnType(
        lambda value: isinstance(value, str), str, None, lambda pa: pa.string(), lambda pd: pd.StringDtype("pyarrow")
    ),
    "int64": ColumnType(_is_int64, int, str, lambda pa: pa.int64(), lambda pd: pd.Int64Dtype()),
    "float64": ColumnType(_is_float64, float, repr, lambda pa: pa.float64(), lambda pd: pd.Float64Dtype()),
    "bool": ColumnType(
        lambda value: isinstance(value, bool),
        bool,
        lambda value: str(value).lower(),
        lambda pa: pa.bool_(),
        lambda pd: pd.BooleanDtype(),
    ),
    "timestamp": ColumnType(_is_timestamp, _whole_ms, format_ms, lambda pa: pa.timestamp("ms", tz="UTC"), None),
}

# The columns of every file, by type name. "count" is a float because metrics can have fractions, and readers take the
# types of a tree from any one file.
COLUMNS: dict[str, str] = {
    "class_name": "string",
    "count": "float64",
    "device_id": "string",
    "frame_number": "int64",
    "model_id": "string",
    "session_id": "string",
    "source_file_name": "string",
    "timestamp": "timestamp",
}
# JSON text of all keys without a column.
EXTRA = "extra"
# Hive keys in the path: a column of the same name would hide or contradict them.
HIVE_KEYS = ("device", "start_date")


# A table also has these, besides its partition column start_date: the device that was requested, and its window.
WINDOW_COLUMNS: dict[str, str] = {"device": "string", "window_start": "timestamp", "window_end": "timestamp"}


def columns_of(column_types: Mapping[str, str] | None) -> dict[str, str]:
    """Return the columns of Parquet and CSV in order: the eight known ones, ``extra``, the declared ones."""
    columns = {**COLUMNS, EXTRA: "string"}
    if not isinstance(column_types, (Mapping, type(None))):
        raise InvalidArgumentError(
            f"column_types={column_types!r} must be a dict of names and types", argument="column_types"
        )
    for name, kind in (column_types or {}).items():
        if not isinstance(name, str) or not isinstance(kind, str) or kind not in COLUMN_TYPES:
            raise InvalidArgumentError(
                f"column_types: {name!r} is {kind!r}, but must be one of {', '.join(COLUMN_TYPES)}",
                argument="column_types",
            )
        # Compare case-insensitively, as Spark and Athena do.
        if name.lower() in {taken.lower() for taken in columns} | set(HIVE_KEYS):
            raise InvalidArgumentError(
                f"column_types: {name!r} is already a column or a folder key; column_types adds columns and cannot "
                "change the type of one",
                argument="column_types",
            )
        columns[name] = kind
    return columns


def table_columns_of(column_types: Mapping[str, str] | None) -> dict[str, str]:
    columns = columns_of(column_types)
    for name in columns:
        if name.lower() in WINDOW_COLUMNS:
            raise InvalidArgumentError(
                f"column_types: a Delta table already has the column {name!r}", argument="column_types"
            )
    return {**WINDOW_COLUMNS, **columns}


def iter_columns(page: Page, columns: Mapping[str, str]) -> Iterable[tuple[str, str, Sequence[Any]]]:
    missing = (None,) * len(page.rows)
    for name, kind in columns.items():
        values = _extra_values(page, columns) if name == EXTRA else page.column(name)
        yield name, kind, missing if values is None else values


def _extra_values(page: Page, columns: Mapping[str, str]) -> list[str | None]:
    """Return, for each row, the JSON text of its keys without a column, or None if it has none."""
    unknown = [key for key in page.keys if key not in columns or key == EXTRA]
    if not unknown:
        return [None] * len(page.rows)
    indices = [page.indices[key] for key in unknown]
    texts: list[str | None] = []
    for row in page.rows:
        rest = {key: row[i] for key, i in zip(unknown, indices, strict=True) if row[i] is not msgspec.UNSET}
        texts.append(sorted_json(rest) if rest else None)
    return texts


def check_values(page: Page, name: str, kind: str, values: Sequence[Any]) -> None:
    if _all_fit(kind, values):
        return
    accepts = COLUMN_TYPES[kind].accepts
    index = next((i for i, value in enumerate(values) if value is not None and not accepts(value)), 0)
    value, row = values[index], page.row_index(index)
    raise UnexpectedResponseError(
        f"Page {page.number}, row {row}: {name} is {mask_tokens_in_text(repr(value))[:EXCERPT_CHARS]}, which does not "
        f'fit its column of type {kind}. file_format="jsonl" or "json" keeps values as they are',
        page=page.number,
        row=row,
        field=name,
        value=value,
    )


def _all_fit(kind: str, values: Sequence[Any]) -> bool:
    types = set(map(type, values)) - {type(None)}
    # True == 1, so a set of distinct values does not show both.
    if (bool in types and kind != "bool") or (kind == "bool" and types - {bool}):
        return False
    try:
        return all(map(COLUMN_TYPES[kind].accepts, set(values) - {None}))
    except TypeError:  # a list or an object, which no column takes
        return False


_CSV_TIMESTAMP = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z")


def csv_values(page: Page, name: str, kind: str, values: Sequence[Any]) -> Sequence[Any]:
    if kind == "timestamp" and _are_csv_timestamps(values):
        return values
    check_values(page, name, kind, values)
    convert, to_csv = COLUMN_TYPES[kind].convert, COLUMN_TYPES[kind].to_csv
    if to_csv is None:
        return values
    return [None if value is None else to_csv(convert(value)) for value in values]


def _are_csv_timestamps(values: Sequence[Any]) -> bool:
    """Return whether all values already are in CSV format; makes usual pages five times as fast as parsing them."""
    try:
        msgspec.convert(values, list[datetime])
        return all(map(_CSV_TIMESTAMP.fullmatch, values))
    except (msgspec.ValidationError, TypeError):
        return False


class ArrowConverter:
    """Converts pages to Arrow record batches."""

    # Lengths of timestamps that pyarrow parses exactly as parse_timestamp does.
    _USUAL_LENGTHS = frozenset({len("2020-08-17T02:08:49Z"), len("2020-08-17T02:08:49.000Z")})

    def __init__(self, columns: Mapping[str, str]) -> None:
        import pyarrow as pa

        self._pa = pa
        self._columns = columns
        self._types = {kind: COLUMN_TYPES[kind].arrow(pa) for kind in columns.values()}
        # With these types, pyarrow rejects other values. It would truncate 1.5 to an int64, so numbers are inferred.
        self._strict_types = {"string": pa.string(), "timestamp": pa.string(), "bool": pa.bool_()}
        self.schema = pa.schema([(name, self._types[kind]) for name, kind in columns.items()])

    def convert(self, page: Page) -> pa.RecordBatch:
        arrays = [self._to_array(page, *column) for column in iter_columns(page, self._columns)]
        return self._pa.record_batch(arrays, schema=self.schema)

    def _to_array(self, page: Page, name: str, kind: str, values: Sequence[Any]) -> pa.Array:
        arrow_type = self._types[kind]
        try:
            array = self._pa.array(values, self._strict_types.get(kind))
            if self._can_cast(array, kind, values):
                return array if array.type == arrow_type else array.cast(arrow_type)
        except (self._pa.ArrowException, OverflowError, TypeError):
            pass  # check_values names the value, or accepts what pyarrow is too strict about
        check_values(page, name, kind, values)
        convert = COLUMN_TYPES[kind].convert
        stored = self._pa.int64() if kind == "timestamp" else arrow_type
        return self._pa.array([None if value is None else convert(value) for value in values], stored).cast(arrow_type)

    def _can_cast(self, array: pa.Array, kind: str, values: Sequence[Any]) -> bool:
        """Return whether casting what pyarrow inferred gives the same values as converting them one by one."""
        if kind == "timestamp":
            texts = [text for text in values if text is not None]
            is_usual = set(map(len, texts)) <= self._USUAL_LENGTHS and set(map(itemgetter(-1), texts)) <= {"Z"}
            return is_usual and min(texts, default="1") >= "0001"  # Arrow has a year 0
        if kind in self._strict_types:
            return True
        if self._pa.types.is_floating(array.type):
            return kind == "float64" and bool not in set(map(type, values))  # after a float, pyarrow reads True as 1.0
        return bool(self._pa.types.is_integer(array.type) or self._pa.types.is_null(array.type))


_EXTRA_LIBRARIES = {
    "parquet": ("pyarrow",),
    "delta": ("deltalake", "pyarrow"),
    "pandas": ("pandas", "pyarrow"),
    "polars": ("polars", "pyarrow"),
}


def check_extra_installed(extra: str, feature: str, argument: str) -> None:
    missing = [name for name in _EXTRA_LIBRARIES[extra] if find_spec(name) is None]
    if missing:
        raise InvalidArgumentError(
            f"{feature} needs {' and '.join(missing)}: pip install 'airflow-provider-unleash[{extra}]'",
            argument=argument,
        )
