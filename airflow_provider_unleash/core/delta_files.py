"""The files of a Delta table: pages and their window as Parquet, with the statistics that the log has of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_unleash.core.formats import ParquetWriter
from airflow_provider_unleash.core.moments import format_ms, to_ms
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.core.windows import Window

if TYPE_CHECKING:
    import pyarrow as pa

# Longer strings are cut in statistics, as Delta Lake's own writers do.
_STATISTICS_CHARS = 32
# Other strings may contain stream tokens, which do not belong in the log.
_STRINGS_IN_STATISTICS = ("device", "class_name", "device_id", "model_id", "session_id")
_LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class DataFile:
    """A file of a table, not necessarily committed."""

    name: str
    size: int
    statistics: str


class WindowWriter(ParquetWriter):
    """Writes pages as a Parquet file of a table."""

    def __init__(self, stream: IO[bytes], window: Window, columns: Mapping[str, str], schema: pa.Schema) -> None:
        import pyarrow as pa

        self._metadata: list[Any] = []
        super().__init__(stream, columns, schema=schema, metadata_collector=self._metadata)
        self._pa = pa
        self._bounds = [pa.scalar(bound, pa.timestamp("us", "UTC")) for bound in (window.start, window.end)]
        self._schema = schema

    def _to_batch(self, page: Page) -> pa.RecordBatch:
        batch = super()._to_batch(page)
        constants = [
            self._pa.repeat(value, batch.num_rows) for value in (self._pa.scalar(self.device_id), *self._bounds)
        ]
        arrays = [*constants, *batch.columns]
        casted = [array.cast(field.type) for array, field in zip(arrays, self._schema, strict=True)]
        return self._pa.record_batch(casted, schema=self._schema)

    def statistics(self) -> str:
        return statistics_of(self._metadata[0])


def to_micros(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column in a table: Delta Lake stores timestamps in microseconds only."""
    import pyarrow as pa

    return pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else kind


def statistics_of(metadata: Any) -> str:
    """
    Return the statistics of all columns that have values, from those of a Parquet file.

    All, because ``DeltaTable.to_pyarrow_dataset`` skips files by mistake if a filtered column has none.
    """
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index, name in enumerate(metadata.schema.names):
        found = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
        nulls[name] = sum(one.null_count for one in found)
        if nulls[name] == metadata.num_rows:
            continue
        ranges = [(one.min, one.max) for one in found if one.has_min_max]
        has_all = all(one.has_min_max or not one.num_values for one in found)
        if has_all and (name in _STRINGS_IN_STATISTICS or not isinstance(ranges[0][0], str)):
            least[name] = _bound(min(low for low, _ in ranges))
            most[name] = _bound(max(high for _, high in ranges), is_upper=True)
        else:  # Parquet leaves out those of long strings
            least[name], most[name] = "", _LAST_CHARACTER
    return json.dumps({"numRecords": metadata.num_rows, "minValues": least, "maxValues": most, "nullCount": nulls})


def _bound(value: Any, *, is_upper: bool = False) -> Any:
    if isinstance(value, datetime):
        return format_ms(to_ms(value))
    if isinstance(value, str) and len(value) > _STATISTICS_CHARS:
        return value[:_STATISTICS_CHARS] + (_LAST_CHARACTER if is_upper else "")
    return value
