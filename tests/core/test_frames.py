"""Tables and data frames have the values, nulls and types of the Parquet file of the same pages."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_unleash.core.frames import to_frame, to_table
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.exceptions import UnexpectedResponseError
from tests.support.pages import DECLARED, KNOWN, page_of, record, sample, write

VALUES = {"confidence": 0.5, "zone": "a", "visits": 3, "seen": True, "until": "2020-08-17T02:08:49.500+02:00"}
ROWS = page_of(record(**VALUES, new=1), record(frame_number=2**53 + 1), dict.fromkeys(KNOWN))
PAGES: dict[str, tuple[list[Page], Any]] = {
    "no rows": ([], None),
    "no rows, declared columns": ([], DECLARED),
    "rows, nulls and new keys": ([sample("compact"), ROWS], None),
    "rows, nulls and declared columns": (
        [ROWS, page_of(dict(reversed(record().items()))), sample("metrics")],
        DECLARED,
    ),
    "nulls only": ([page_of(dict.fromkeys(KNOWN))], DECLARED),
}


@pytest.fixture(params=PAGES.values(), ids=PAGES.keys())
def table(request: pytest.FixtureRequest) -> pa.Table:
    pages, column_types = request.param
    return to_table(pages, column_types)


@pytest.mark.parametrize(("pages", "column_types"), PAGES.values(), ids=PAGES.keys())
def test_a_table_equals_the_parquet_file(pages, column_types, folder):
    write(folder / "o.parquet", pages, "parquet", column_types=column_types)
    file, table = pq.read_table((folder / "o.parquet").path), to_table(iter(pages), column_types)
    assert table.schema == file.schema.remove_metadata()
    assert table.equals(file)


def test_a_pandas_frame_loses_no_type_value_or_null(table):
    pytest.importorskip("pandas")
    frame: Any = to_frame(table, "pandas")
    names = {"string": "string", "int64": "Int64", "double": "Float64", "bool": "boolean"}
    expected = {field.name: names.get(str(field.type), "datetime64[ms, UTC]") for field in table.schema}
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == expected
    assert pa.Table.from_pandas(frame, preserve_index=False).cast(table.schema).equals(table)
    nulls = {name: column.null_count for name, column in zip(table.column_names, table.columns, strict=True)}
    assert frame.isna().sum().to_dict() == nulls


def test_a_polars_frame_loses_no_type_value_or_null(table):
    polars = pytest.importorskip("polars")
    frame: Any = to_frame(table, "polars")
    assert frame.schema["timestamp"] == polars.Datetime("ms", "UTC")
    assert frame.schema["frame_number"] == polars.Int64
    assert frame.to_arrow().cast(table.schema).equals(table)


def test_a_value_that_does_not_fit_is_an_error_that_names_it():
    with pytest.raises(UnexpectedResponseError, match=r"row 0: frame_number is 1\.5"):
        to_table([page_of({"frame_number": 1.5})])
