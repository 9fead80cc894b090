"""Objects in every format: whole or not at all, with a schema that holds, read back by others than who wrote them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_unleash.core import formats
from airflow_provider_unleash.core.columns import columns_of
from airflow_provider_unleash.core.formats import check_file_format, has_rows, object_name, open_object
from airflow_provider_unleash.core.protocol import Page, Response, parse_page
from airflow_provider_unleash.core.stores import url_of
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError
from tests.support.paths import SAMPLES

MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
DAY_MS = 86_400_000
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)

KNOWN = [
    *("class_name", "count", "device_id", "frame_number"),
    *("model_id", "session_id", "source_file_name", "timestamp"),
]
HEADER = [*KNOWN, "extra"]
TEXT_FORMATS = [("jsonl", None), ("jsonl", "gzip"), ("json", None), ("json", "gzip"), ("csv", None), ("csv", "gzip")]
FORMATS: list[Any] = [*TEXT_FORMATS, ("parquet", None)]
every_format = pytest.mark.parametrize(("file_format", "compression"), FORMATS)
typed_format = pytest.mark.parametrize("file_format", ["parquet", "csv"])
json_format = pytest.mark.parametrize("file_format", ["jsonl", "json"])


# ---- pages, and what others read -----------------------------------------------------------------


def sample(name: str, endpoint: Any = "compact") -> Page:
    return parse_page(Response("https://x/1", 200, {}, (SAMPLES / f"analytics_{name}.json").read_bytes()), 1, endpoint)


def page_of(*records: dict[str, Any], number: int = 1, **more: Any) -> Page:
    """Build a page as the tableau endpoint would: rows may lack keys."""
    keys = tuple(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(key, msgspec.UNSET) for key in keys] for record in records]
    return Page(number, 9, keys, rows, any(len(record) < len(keys) for record in records), **more)


def record(**values: Any) -> dict[str, Any]:
    plain = dict(
        zip(KNOWN, ["person", 1, "W1", 7, "ai", "1597622730877", "a.mp4", "2020-08-17T02:08:49.000Z"], strict=True)
    )
    return {**plain, **values}


def file_of(path: Any) -> Path:
    return Path(path.path)


def plain_bytes(data: bytes, compression: str | None) -> bytes:
    return gzip.decompress(data) if compression else data


def read_records(data: bytes, file_format: str, compression: str | None = None) -> list[dict[str, Any]]:
    """Read an object with readers that know nothing of this package."""
    data = plain_bytes(data, compression)
    if file_format == "parquet":
        return list(pq.read_table(io.BytesIO(data)).to_pylist())
    text = data.decode()
    if file_format == "csv":
        return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
    if file_format == "json":
        return list(json.loads(text))
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def duck(sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        return list(connection.sql(sql).fetchall())


def write(path: Any, pages: Iterable[Page], file_format: Any, compression: Any = None, **more: Any) -> int:
    with open_object(path, file_format, compression=compression, **more) as writer:
        for page in pages:
            writer.write_page(page)
    return writer.size


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    return UPath(f"file://{tmp_path}")


def tree(folder: Any) -> dict[str, bytes | None]:
    """Return everything below a folder, with content; None for a folder."""
    root = file_of(folder)
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


SPECIAL = [
    record(class_name='say "hi", you', source_file_name="a,b;c\td"),
    record(class_name="two\nlines\r\nand\rmore", model_id="'quoted'"),
    record(class_name="Ünïcödé \u2013 人 🚲", device_id=" spaces "),
    record(class_name="=1+1", count=0.1, frame_number=2**53 + 1),
    record(count=1e300, frame_number=-(2**63), session_id="0007"),
    record(count=-0.5, frame_number=0, timestamp="2020-02-29T23:59:59.999Z"),
    record(**dict.fromkeys(KNOWN)),
]


def as_csv(value: Any, key: str = "") -> str:
    if value is None:
        return ""
    return str(float(value)) if key == "count" else str(value)


def as_parquet(key: str, value: Any) -> Any:
    if value is None:
        return None
    if key == "timestamp":
        return datetime.fromisoformat(value.replace("Z", "+00:00")).astimezone(timezone.utc)
    return float(value) if key == "count" else value


# ---- equal rows in every format ------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_what_is_written_is_read_back_equal(file_format: str, compression: Any, endpoint: str, folder: Any) -> None:
    path = folder / "a" / "object"
    pages = [sample("compact"), sample("metrics"), page_of(*SPECIAL)]
    records = [record for page in pages for record in page.records()]
    if endpoint == "tableau":
        pages = [page_of(*(dict(reversed(record.items())) for record in page.records())) for page in pages]
    size = write(path, pages, file_format, compression)
    data = file_of(path).read_bytes()
    assert size == len(data)
    found = read_records(data, file_format, compression)
    if file_format == "csv":
        assert found == [{**{key: as_csv(row[key], key) for key in KNOWN}, "extra": ""} for row in records]
    elif file_format == "parquet":
        assert found == [{**{key: as_parquet(key, row[key]) for key in KNOWN}, "extra": None} for row in records]
    else:
        assert found == records
        assert [list(row) for row in found] == [list(page.keys) for page in pages for _ in page.rows]


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "parquet"])
def test_duckdb_counts_the_same_whatever_the_format(file_format: str, folder: Any) -> None:
    path = folder / f"object.{file_format}"
    write(path, [sample("compact"), sample("metrics")], file_format)
    reader = {"jsonl": "read_json", "json": "read_json", "csv": "read_csv", "parquet": "read_parquet"}[file_format]
    [found] = duck(
        "SELECT count(*), sum(count), max(frame_number), count(DISTINCT class_name), "
        f"epoch_ms(max(timestamp::TIMESTAMPTZ)) FROM {reader}('{path.path}')"
    )
    assert found == (6, 18, 110252, 5, MIDNIGHT + (6 * 3600 + 16 * 60 + 52) * 1000)


@json_format
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_json_keeps_rows_as_they_came(file_format: str, compression: Any, folder: Any) -> None:
    records = [
        *({}, {"a": None}, {"b": [1, {"c": None}], "a": 1.0}, {'é "\\\n': True}, {"count": "many", "extra": {"x": 1}}),
        *({"": ""}, {"timestamp": "soon", "frame_number": 2**63, "count": 1.5}, {"big": 2**63 - 1, "small": -0.0}),
    ]
    write(folder / "o", [page_of(*records[:3]), page_of(*records[3:], number=2)], file_format, compression)
    found = read_records(file_of(folder / "o").read_bytes(), file_format, compression)
    assert found == records
    assert json.dumps(found) == json.dumps(
        [
            {key: row[key] for key in page.keys if key in row}
            for page in (page_of(*records[:3]), page_of(*records[3:]))
            for row in page.records()
        ]
    )


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = SCALARS | st.text(max_size=3) | st.lists(SCALARS, max_size=2)


@PROPERTY
@given(st.lists(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=3), max_size=3))
def test_json_keeps_any_rows_with_any_keys(pages: list[list[dict[str, Any]]]) -> None:
    records = [row for page in pages for row in page]
    for file_format in ("jsonl", "json"):
        stream = io.BytesIO()
        writer = formats._WRITERS[file_format](stream, columns_of(None))  # type: ignore[index]
        for page in pages:
            writer.write_page(page_of(*page))
        writer.finish()
        assert read_records(stream.getvalue(), file_format) == records


@pytest.mark.parametrize("pages", [[], [0], [0, 0], [1], [3], [0, 2], [2, 0], [1, 0, 2, 0], [2, 1, 3]])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_json_is_one_array_however_the_rows_lie_on_pages(pages: list[int], compression: Any, folder: Any) -> None:
    write(folder / "o", [page_of(*[{"a": 1}] * count, number=9) for count in pages], "json", compression)
    data = plain_bytes(file_of(folder / "o").read_bytes(), compression)
    assert json.loads(data) == [{"a": 1}] * sum(pages)
    assert data.endswith(b"]\n")


def test_csv_is_as_rfc_4180_has_it(folder: Any) -> None:
    write(folder / "o", [page_of(record(class_name='a "b"', model_id="x,y", session_id=None, count=2.0))], "csv")
    assert file_of(folder / "o").read_bytes() == (
        b"class_name,count,device_id,frame_number,model_id,session_id,source_file_name,timestamp,extra\r\n"
        b'"a ""b""",2.0,W1,7,"x,y",,a.mp4,2020-08-17T02:08:49.000Z,\r\n'
    )


@every_format
def test_the_same_rows_are_the_same_bytes(file_format: str, compression: Any, folder: Any) -> None:
    pages = [sample("compact"), page_of(record(new={"b": 1, "a": 2}))]
    for name in ("one", "two"):
        write(folder / name, pages, file_format, compression)
    data = file_of(folder / "one").read_bytes()
    assert data == file_of(folder / "two").read_bytes()
    if compression:
        assert data[:4] == b"\x1f\x8b\x08\x00", "no file name in the header"
        assert data[4:8] == bytes(4), "no time in the header"


# ---- a schema that holds -------------------------------------------------------------------------

PARQUET_SCHEMA = [
    *(("class_name", pa.string()), ("count", pa.float64()), ("device_id", pa.string()), ("frame_number", pa.int64())),
    *(("model_id", pa.string()), ("session_id", pa.string()), ("source_file_name", pa.string())),
    *(("timestamp", pa.timestamp("ms", tz="UTC")), ("extra", pa.string())),
]
DECLARED = {"confidence": "float64", "zone": "string", "visits": "int64", "seen": "bool", "until": "timestamp"}
DECLARED_SCHEMA = [
    *(("confidence", pa.float64()), ("zone", pa.string()), ("visits", pa.int64()), ("seen", pa.bool_())),
    ("until", pa.timestamp("ms", tz="UTC")),
]
PAGES: dict[str, list[Page]] = {
    "no pages": [],
    "an empty page": [Page(1, 0, (), [])],
    "an empty page with keys": [Page(1, 1, tuple(KNOWN), [])],
    "the sample": [sample("compact")],
    "whole counts only": [sample("metrics")],
    "keys in another order": [page_of(dict(reversed(record().items())))],
    "one key": [page_of({"count": 1})],
    "none of the keys": [page_of({"new": 1})],
    "nothing but nulls": [page_of(dict.fromkeys(KNOWN))],
    "a new key on the second page": [sample("compact"), page_of(record(new=1), number=2)],
}


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES.keys())
@pytest.mark.parametrize(("declared", "more"), [(None, []), ({}, []), (DECLARED, DECLARED_SCHEMA)])
def test_every_object_has_the_same_columns_of_the_same_types(
    pages: list[Page], declared: Any, more: list[Any], folder: Any
) -> None:
    write(folder / "o.parquet", pages, "parquet", column_types=declared)
    write(folder / "o.csv", pages, "csv", column_types=declared)
    rows = sum(len(page.rows) for page in pages)
    found = pq.ParquetFile(file_of(folder / "o.parquet"))
    assert found.schema_arrow.remove_metadata() == pa.schema([*PARQUET_SCHEMA, *more])
    assert found.metadata.num_rows == rows
    lines = list(csv.reader(io.StringIO(file_of(folder / "o.csv").read_text(), newline="")))
    assert lines[0] == [name for name, _ in [*PARQUET_SCHEMA, *more]]
    assert len(lines) == 1 + rows
    assert {len(line) for line in lines} == {len(lines[0])}


@pytest.mark.parametrize("pages", [[], [sample("compact")]], ids=["empty", "sample"])
def test_duckdb_sees_the_types_that_are_promised(pages: list[Page], folder: Any) -> None:
    write(folder / "o.parquet", pages, "parquet", column_types=DECLARED)
    described = duck(f"DESCRIBE SELECT * FROM read_parquet('{(folder / 'o.parquet').path}')")
    assert [(name, kind) for name, kind, *_ in described] == [
        *(("class_name", "VARCHAR"), ("count", "DOUBLE"), ("device_id", "VARCHAR"), ("frame_number", "BIGINT")),
        *(("model_id", "VARCHAR"), ("session_id", "VARCHAR"), ("source_file_name", "VARCHAR")),
        *(("timestamp", "TIMESTAMP WITH TIME ZONE"), ("extra", "VARCHAR"), ("confidence", "DOUBLE")),
        *(("zone", "VARCHAR"), ("visits", "BIGINT"), ("seen", "BOOLEAN"), ("until", "TIMESTAMP WITH TIME ZONE")),
    ]


@pytest.mark.parametrize(
    ("file_format", "compression", "content"),
    [
        *(("jsonl", None, b""), ("jsonl", "gzip", b""), ("json", None, b"[]\n"), ("json", "gzip", b"[]\n")),
        *((form, zipped, ",".join(HEADER).encode() + b"\r\n") for form, zipped in [("csv", None), ("csv", "gzip")]),
    ],
)
def test_an_empty_object_has_what_its_format_needs_and_no_rows(
    file_format: str, compression: Any, content: bytes, folder: Any
) -> None:
    write(folder / "o", [], file_format, compression)
    assert plain_bytes(file_of(folder / "o").read_bytes(), compression) == content


@typed_format
def test_a_missing_key_is_null(file_format: str, folder: Any) -> None:
    write(folder / "o", [page_of({"count": 1}, {"class_name": "car"})], file_format)
    null = "" if file_format == "csv" else None
    one: Any = "1.0" if file_format == "csv" else 1.0
    assert read_records(file_of(folder / "o").read_bytes(), file_format) == [
        {**dict.fromkeys(HEADER, null), "count": one},
        {**dict.fromkeys(HEADER, null), "class_name": "car"},
    ]


@typed_format
def test_what_has_no_column_lands_in_extra_as_json(file_format: str, folder: Any) -> None:
    pages = [
        sample("compact"),
        page_of(record(confidence=0.5, zone={"b": [1], "a": None}), record(), record(zone=None), number=2),
        page_of(record(extra="mine", device="W9", start_date="2020-08-17"), number=3),
    ]
    write(folder / "o", pages, file_format)
    found = [row["extra"] or None for row in read_records(file_of(folder / "o").read_bytes(), file_format)]
    assert [extra and json.loads(extra) for extra in found] == [
        *(None, None, {"confidence": 0.5, "zone": {"b": [1], "a": None}}, None, {"zone": None}),
        {"extra": "mine", "device": "W9", "start_date": "2020-08-17"},
    ]


def test_the_text_of_extra_does_not_depend_on_the_order_of_keys(folder: Any) -> None:
    for name, page in {"one": page_of(record(b=1, a=2)), "two": page_of({"a": 2, "b": 1, **record()})}.items():
        write(folder / name, [page], "csv")
    assert file_of(folder / "one").read_bytes() == file_of(folder / "two").read_bytes()


@typed_format
def test_a_new_key_is_logged_once_and_each_new_one_anew(
    file_format: str, folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    numbered = [page_of(record(), number=1), *(page_of(record(confidence=1), number=number) for number in (2, 3, 4))]
    write(folder / "o", [*numbered, page_of(record(zone=1, confidence=1), number=5)], file_format)
    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [
        ("WARNING", "Page 2 has keys without a column: ['confidence']; they go to «extra»"),
        ("WARNING", "Page 5 has keys without a column: ['zone']; they go to «extra»"),
    ]


@every_format
def test_where_all_keys_have_a_column_nothing_is_logged(
    file_format: str, compression: Any, folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write(
        folder / "o", [page_of(record(confidence=1))], file_format, compression, column_types={"confidence": "float64"}
    )
    assert caplog.records == []


@typed_format
def test_declared_columns_take_their_values(file_format: str, folder: Any) -> None:
    values = {"confidence": 0.5, "zone": "a", "visits": 3, "seen": True, "until": "2020-08-17T02:08:49.500+02:00"}
    write(folder / "o", [page_of(record(**values), record(seen=False), record())], file_format, column_types=DECLARED)
    rows = read_records(file_of(folder / "o").read_bytes(), file_format)
    found = [[row[name] for name in DECLARED] for row in rows]
    assert {row["extra"] or None for row in rows} == {None}
    if file_format == "csv":
        expected = [["0.5", "a", "3", "true", "2020-08-17T00:08:49.500Z"], ["", "", "", "false", ""], [""] * 5]
    else:
        until = datetime(2020, 8, 17, 0, 8, 49, 500000, timezone.utc)
        expected = [[0.5, "a", 3, True, until], [None, None, None, False, None], [None] * 5]  # type: ignore[list-item]
    assert found == expected


@pytest.mark.parametrize("name", [*KNOWN, "extra", "device", "start_date"])
@pytest.mark.parametrize("kind", ["string", "float64"])
def test_a_column_that_is_there_already_cannot_be_declared(name: str, kind: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name!r} is a column or a folder key already") as caught:
        columns_of({"confidence": "float64", name: kind})
    assert caught.value.argument == "column_types"


@pytest.mark.parametrize("name", ["Count", "Device"])
def test_a_column_that_differs_in_case_only_cannot_be_declared(name: str) -> None:
    # DuckDB, Spark, Athena and Trino take both for the same column.
    with pytest.raises(InvalidArgumentError):
        columns_of({name: "string"})


@pytest.mark.parametrize("kind", ["str", "int", "int32", "timestamp[ms]", "", None, float, "STRING"])
def test_a_column_of_an_unknown_type_is_refused_with_the_known_ones(kind: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="none of string, int64, float64, bool, timestamp") as caught:
        columns_of({"confidence": kind})
    assert caught.value.argument == "column_types"


def test_declared_columns_come_last_and_in_their_order() -> None:
    assert list(columns_of({"z": "string", "a": "bool"})) == [*HEADER, "z", "a"]
    assert list(columns_of(None)) == HEADER


# ---- values that do not fit ----------------------------------------------------------------------

MISFITS: list[tuple[str, Any]] = [
    *(("count", value) for value in ("3", "", True, False, [1], {"a": 1}, 2**53 + 1, -(2**53) - 1, 10**400)),
    *(("frame_number", value) for value in (1.5, "1", True, 2**63, -(2**63) - 1, 1e300, 9.3e18, [1], {"a": 1})),
    *(("class_name", value) for value in (1, 1.5, True, ["a"], {"a": "b"})),
    *(("session_id", 1597622730877), ("source_file_name", ["a.mp4"]), ("device_id", 5), ("model_id", False)),
    *(("timestamp", value) for value in ("x", "", "2020-08-17", "2020-02-30T00:00:00Z", 1597622730877, True, [], {})),
    *(("timestamp", f"2020-08-17T02:08:{stamp}Z") for stamp in ("49.000001", "49.0005", "60", "49.0000004")),
    *(("timestamp", stamp) for stamp in ("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00")),
    *(("timestamp", stamp) for stamp in ("9999-12-31T23:59:59-0100", "0000-01-01T00:00:00Z", "2020-08-17T02:08+0200")),
    *(("confidence", "0.5"), ("confidence", True), ("zone", 1), ("visits", 1.5), ("visits", "1"), ("visits", True)),
    *(("seen", 1), ("seen", 0.0), ("seen", "true"), ("until", "x"), ("until", "2020-08-17T02:08:49.000001Z")),
]


@typed_format
@pytest.mark.parametrize(("field", "value"), MISFITS)
def test_a_value_that_does_not_fit_is_an_error_that_names_it(
    file_format: str, field: str, value: Any, folder: Any
) -> None:
    good = record(confidence=1, zone="a", visits=1, seen=True, until="2020-08-17T02:08:49.000Z")
    bad = page_of(good, dict.fromkeys(good), {**good, field: value}, {**good, field: value}, number=3, dropped=(0, 3))
    before = tree(folder)
    with pytest.raises(UnexpectedResponseError) as caught:
        write(folder / "new" / "o", [page_of(good), bad], file_format, column_types=DECLARED)
    error, message = caught.value, str(caught.value)
    # Rows 0 and 3 of the answer were dropped before, so the third one left was the fifth.
    assert (error.page, error.row, error.field, error.value) == (3, 4, field, value)
    assert message.startswith(f"Page 3, row 4: {field} is {value!r}"[:100])
    assert 'file_format="jsonl" or "json" keeps values as they come' in message
    assert len(message) < 500
    assert tree(folder) == before


@typed_format
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("count", value) for value in (0, -1, 2**53, -(2**53), 0.1, -0.0, 1e-300, 1.7976931348623157e308)),
        *(("frame_number", value) for value in (0, 2**53 + 1, 2**63 - 1, -(2**63))),
        *(("class_name", value) for value in ("x", "\t", "a" * 100_000, "true", "1", "NULL")),
        *(("visits", 2**63 - 1), ("confidence", 1), ("seen", False)),
    ],
)
def test_a_value_that_just_fits_is_read_back_equal(file_format: str, field: str, value: Any, folder: Any) -> None:
    write(folder / "o", [page_of(record(**{field: value}), record())], file_format, column_types=DECLARED)
    found = read_records(file_of(folder / "o").read_bytes(), file_format)[0][field]
    if file_format == "csv":
        shown = float(value) if field in ("count", "confidence") else value
        assert found == (str(value).lower() if isinstance(value, bool) else str(shown))
    else:
        assert found == value
        assert type(found) is (float if field in ("count", "confidence") else type(value))


@pytest.mark.parametrize(("value", "other"), [(2**54, 1), (-(2**60), 1.5), (2**63, None), (2**70, 1)])
def test_a_whole_count_that_a_float_holds_exactly_is_written_or_blamed_itself(
    value: int, other: Any, folder: Any
) -> None:
    outcomes = []
    for file_format in ("parquet", "csv"):
        try:
            write(folder / "o", [page_of(record(count=other), record(count=value))], file_format)
        except UnexpectedResponseError as error:
            outcomes.append((error.row, error.value))
        else:
            outcomes.append((1, int(float(read_records(file_of(folder / "o").read_bytes(), file_format)[1]["count"]))))
    assert outcomes == [(1, value), (1, value)]


@typed_format
@pytest.mark.parametrize(
    ("stamp", "epoch_ms"),
    [
        ("2020-08-17T02:08:49.000Z", MIDNIGHT + 7729000),
        ("2020-08-17T02:08:49Z", MIDNIGHT + 7729000),
        ("2020-08-17T02:08:49", MIDNIGHT + 7729000),
        ("2020-08-17 02:08:49.1Z", MIDNIGHT + 7729100),
        ("2020-08-17T04:08:49+02:00", MIDNIGHT + 7729000),
        ("2020-08-17T02:08:49.123000Z", MIDNIGHT + 7729123),
        ("2020-08-17T02:08:49.123000000Z", MIDNIGHT + 7729123),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2020-02-29T00:00:00Z", 1582934400000),
    ],
)
@pytest.mark.parametrize("neighbour", ["2020-08-17T00:00:00.000Z", "2020-08-17T00:00:00", None])
def test_a_stamp_of_whole_milliseconds_keeps_its_moment(
    file_format: str, stamp: str, epoch_ms: int, neighbour: Any, folder: Any
) -> None:
    write(folder / "o", [page_of(record(timestamp=neighbour), record(timestamp=stamp))], file_format)
    if file_format == "csv":
        written = read_records(file_of(folder / "o").read_bytes(), "csv")[1]["timestamp"]
        assert written.endswith("Z")
        assert round(datetime.fromisoformat(written.removesuffix("Z") + "+00:00").timestamp() * 1000) == epoch_ms
    else:
        column = pq.read_table(file_of(folder / "o")).column("timestamp").cast(pa.int64()).to_pylist()
        assert column[1] == epoch_ms
        assert column[0] == (None if neighbour is None else MIDNIGHT)


@typed_format
@pytest.mark.parametrize("neighbour", ["2020-08-17T00:00:00.000Z", "2020-08-17T00:00:00"])
@pytest.mark.parametrize("stamp", ["2020-08-17T02Z", "2020-08-17T02:08Z", "2020-08-17T02:08:49+02"])
def test_what_the_window_takes_for_no_stamp_is_no_stamp_in_an_object_either(
    file_format: str, stamp: str, neighbour: str, folder: Any
) -> None:
    with pytest.raises(UnexpectedResponseError):
        write(folder / "o", [page_of(record(timestamp=neighbour), record(timestamp=stamp))], file_format)


@typed_format
@pytest.mark.parametrize("name", ["W1?token=sneaky-firefox-288", ["W1?token=sneaky-firefox-288"]])
def test_the_error_of_a_value_shows_no_stream_token(file_format: str, name: Any, folder: Any) -> None:
    field = "frame_number" if isinstance(name, str) else "source_file_name"
    with pytest.raises(UnexpectedResponseError) as caught:
        write(folder / "o", [page_of(record(**{field: name}))], file_format)
    assert "sneaky" not in str(caught.value)
    assert "W1?token=***" in str(caught.value)


def test_parquet_has_row_groups_of_bounded_size_in_the_order_of_the_pages(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "ROW_GROUP_ROWS", 10)
    pages = [page_of(*(record(frame_number=7 * number + index) for index in range(7))) for number in range(5)]
    write(folder / "o", pages, "parquet")
    found = pq.ParquetFile(file_of(folder / "o"))
    assert [found.metadata.row_group(index).num_rows for index in range(found.num_row_groups)] == [14, 14, 7]
    assert found.read().column("frame_number").to_pylist() == list(range(35))
    group = found.metadata.row_group(0)
    assert {group.column(index).compression for index in range(group.num_columns)} == {"ZSTD"}


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (
            ("W1", MIDNIGHT, MIDNIGHT + DAY_MS, "parquet"),
            "device=W1/start_date=2020-08-17/20200817T000000Z_20200818T000000Z.parquet",
        ),
        (
            ("W1", MIDNIGHT, MIDNIGHT + DAY_MS, "csv", "gzip"),
            "device=W1/start_date=2020-08-17/20200817T000000Z_20200818T000000Z.csv.gz",
        ),
        (
            ("W1", MIDNIGHT - 1, MIDNIGHT + 5, "jsonl", None),
            "device=W1/start_date=2020-08-16/20200816T235959.999Z_20200817T000000.005Z.jsonl",
        ),
        (
            ("a b/%2F".replace("/", ""), MIDNIGHT + 120, MIDNIGHT + 1000, "json", "gzip"),
            "device=a%20b%252F/start_date=2020-08-17/20200817T000000.120Z_20200817T000001Z.json.gz",
        ),
        (
            ("k=ü?#", 1582934400000, 1609459199999, "jsonl"),
            "device=k%3D%C3%BC%3F%23/start_date=2020-02-29/20200229T000000Z_20201231T235959.999Z.jsonl",
        ),
        (("W1", MIDNIGHT, MIDNIGHT, "csv"), "device=W1/start_date=2020-08-17/20200817T000000Z_20200817T000000Z.csv"),
        (("...", 0, 1, "csv"), "device=.../start_date=1970-01-01/19700101T000000Z_19700101T000000.001Z.csv"),
    ],
)
def test_the_name_of_an_object_is_a_function_of_its_arguments(arguments: Any, name: str) -> None:
    assert object_name(*arguments) == name


@pytest.mark.parametrize("device_id", ["", ".", "..", "a/b", "../../etc", "a\\b", "a\nb", "/"])
def test_no_name_is_made_of_a_device_id_that_could_leave_the_tree(device_id: str) -> None:
    with pytest.raises(InvalidArgumentError):
        object_name(device_id, MIDNIGHT, MIDNIGHT + DAY_MS, "jsonl")


@PROPERTY
@given(st.text(min_size=1, max_size=12), st.integers(10**11, 2 * 10**12), st.integers(0, 10**9))
def test_a_name_stays_in_its_tree_and_tells_its_arguments(device_id: str, start_ms: int, length: int) -> None:
    try:
        name = object_name(device_id, start_ms, start_ms + length, "csv")
    except InvalidArgumentError:
        return
    device, day, file = PurePosixPath(name).parts
    assert unquote(device.removeprefix("device=")) == device_id

    def epoch_ms(text: str) -> int:
        form = "%Y%m%dT%H%M%S.%fZ" if "." in text else "%Y%m%dT%H%M%SZ"
        return round(datetime.strptime(text, form).replace(tzinfo=timezone.utc).timestamp() * 1000)

    first, last = file.removesuffix(".csv").split("_")
    assert (epoch_ms(first), epoch_ms(last)) == (start_ms, start_ms + length)
    assert day.removeprefix("start_date=").replace("-", "") == first[:8]


@pytest.mark.parametrize("device_id", ["W1", "..%2F..%2Fetc", "a b", "ü?#&=%", "~root", "$HOME", "*"])
def test_an_object_lies_below_its_folder_whatever_the_device_is_called(device_id: str, folder: Any) -> None:
    path = folder / "lake" / object_name(device_id, MIDNIGHT, MIDNIGHT + DAY_MS, "jsonl")
    write(path, [page_of({"a": 1})], "jsonl")
    [found] = [file for file in file_of(folder).rglob("*") if file.is_file()]
    assert found.resolve().is_relative_to(file_of(folder).resolve() / "lake")
    assert unquote(found.parent.parent.name) == f"device={device_id}"


def test_duckdb_reads_a_tree_with_its_folder_keys_as_it_lies(folder: Any) -> None:
    for device_id, day in (("W1", 0), ("W1", 1), ("kamera 7", 1)):
        start_ms = MIDNIGHT + day * DAY_MS
        name = object_name(device_id, start_ms, start_ms + DAY_MS, "parquet")
        write(folder / "lake" / name, [sample("compact")] if day else [], "parquet")
    found = duck(
        "SELECT device, start_date::VARCHAR, count(*), sum(count) "
        f"FROM read_parquet('{folder.path}/lake/**/*.parquet', hive_partitioning = true) GROUP BY ALL ORDER BY ALL"
    )
    assert found == [("W1", "2020-08-18", 2, 4.0), ("kamera 7", "2020-08-18", 2, 4.0)]


@dataclass(frozen=True)
class Place:
    """The little that is needed of a path."""

    path: str
    protocol: str
    fs: Any = None


@pytest.mark.parametrize(
    ("place", "url"),
    [
        *((Place("/data/x", "file"), "file:///data/x"), (Place("/data/x", ""), "file:///data/x")),
        *((Place("/data/x", "local"), "file:///data/x"), (Place("lake/x", "s3"), "s3://lake/x")),
        *((Place("lake/x", "abfs"), "az://lake/x"), (Place("lake/x", "abfss"), "az://lake/x")),
        *((Place("lake/x", "gs"), "gs://lake/x"), (Place("lake/device=a%20b/x", "s3"), "s3://lake/device=a%20b/x")),
    ],
)
def test_a_url_names_the_object_without_a_connection(place: Any, url: str) -> None:
    assert url_of(place) == url


# ---- arguments -----------------------------------------------------------------------------------


@every_format
def test_every_format_can_be_used(file_format: str, compression: Any) -> None:
    check_file_format(file_format, compression, {"confidence": "float64"})


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        *((("xml",), "file_format"), (("JSONL",), "file_format"), (("",), "file_format"), ((None,), "file_format")),
        *((("csv", "zip"), "compression"), (("csv", ""), "compression"), (("json", True), "compression")),
        *((("parquet", "gzip"), "compression"), (("csv", None, {"count": "int64"}), "column_types")),
    ],
)
def test_arguments_that_cannot_be_used_together_are_named_and_nothing_is_made(
    arguments: Any, argument: str, folder: Any
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_file_format(*arguments)
    assert caught.value.argument == argument
    file_format, compression, column_types = (*arguments, None, None)[:3]
    with pytest.raises(InvalidArgumentError):
        write(folder / "new" / "o", [], file_format, compression, column_types=column_types)
    assert tree(folder) == {}


def test_without_pyarrow_parquet_says_how_to_install_it_and_the_others_work(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'airflow-provider-unleash\[parquet\]'") as caught:
        write(folder / "new" / "o", [], "parquet")
    assert caught.value.argument == "file_format"
    assert tree(folder) == {}
    for file_format in ("jsonl", "json", "csv"):
        write(folder / "o", [sample("compact")], file_format)
    check_file_format("parquet")


# ---- whole or not at all: files ------------------------------------------------------------------


class StopError(Exception):
    pass


MIDWAY: dict[str, Callable[[Any], None]] = {}


def midway(function: Callable[[Any], None]) -> Callable[[Any], None]:
    MIDWAY[function.__name__.replace("_", " ")] = function
    return function


@midway
def before_the_first_page(writer: Any) -> None:
    raise StopError


@midway
def after_a_page(writer: Any) -> None:
    writer.write_page(page_of(record()))
    raise StopError


@midway
def after_many_pages(writer: Any) -> None:
    for number in range(20):
        writer.write_page(page_of(*[record(class_name=os.urandom(1000).hex())] * 5, number=number))
    raise StopError


@midway
def interrupted(writer: Any) -> None:
    writer.write_page(page_of(record()))
    raise KeyboardInterrupt


@midway
def at_exit(writer: Any) -> None:
    writer.write_page(page_of(record()))
    raise SystemExit(1)


STOPS = (StopError, KeyboardInterrupt, SystemExit)


def write_until(fail: Callable[[Any], None], path: Any, file_format: Any, compression: Any) -> None:
    with open_object(path, file_format, compression=compression) as writer:
        fail(writer)


failing = pytest.mark.parametrize("fail", MIDWAY.values(), ids=MIDWAY.keys())


@every_format
@failing
def test_a_failed_write_keeps_the_previous_object(file_format: str, compression: Any, fail: Any, folder: Any) -> None:
    path = folder / "device=W1" / "o"
    write(path, [sample("compact")], file_format, compression)
    before = tree(folder)
    with pytest.raises(STOPS):
        write_until(fail, path, file_format, compression)
    assert tree(folder) == before


@every_format
@failing
def test_a_failed_write_leaves_neither_a_file_nor_a_folder(
    file_format: str, compression: Any, fail: Any, folder: Any
) -> None:
    (file_of(folder) / "mine").mkdir()
    path = folder / "lake" / "device=W1" / "start_date=2020-08-17" / "o"
    with pytest.raises(STOPS):
        write_until(fail, path, file_format, compression)
    assert tree(folder) == {"mine": None}


def test_a_failed_write_leaves_folders_that_others_have_used_meanwhile(folder: Any) -> None:
    path = folder / "device=W1" / "start_date=2020-08-17" / "o"

    def write_both() -> None:
        with open_object(path, "jsonl"):
            write(folder / "device=W1" / "other", [], "jsonl")
            raise StopError

    with pytest.raises(StopError):
        write_both()
    assert tree(folder) == {"device=W1": None, "device=W1/other": b""}


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Make writing fail as on a full disk: the system refuses what goes beyond the size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@every_format
@pytest.mark.parametrize("size", [0, 10, 4096])
def test_a_full_disk_keeps_the_previous_object(file_format: str, compression: Any, size: int, folder: Any) -> None:
    path = folder / "device=W1" / "o"
    write(path, [sample("compact")], file_format, compression)
    before = tree(folder)
    pages = [page_of(*(record(class_name=os.urandom(200).hex()) for _ in range(100))) for _ in range(3)]
    with files_no_larger_than(size), pytest.raises(OSError, match="too large"):
        write(path, pages, file_format, compression)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300])
def test_a_name_that_is_too_long_leaves_no_folder(name: str, folder: Any) -> None:
    with pytest.raises(OSError, match="too long"):
        write(folder / "new" / name, [], "jsonl")
    assert tree(folder) == {}


@every_format
def test_a_file_where_a_folder_should_be_is_an_error_and_stays(file_format: str, compression: Any, folder: Any) -> None:
    (file_of(folder) / "device=W1").write_text("mine")
    with pytest.raises(OSError, match="device=W1"):
        write(folder / "device=W1" / "start_date=2020-08-17" / "o", [], file_format, compression)
    assert tree(folder) == {"device=W1": b"mine"}


def test_a_folder_where_the_object_should_be_is_an_error_and_stays(folder: Any) -> None:
    (file_of(folder) / "o").mkdir()
    with pytest.raises(OSError, match="o"):
        write(folder / "o", [], "jsonl")
    assert tree(folder) == {"o": None}


@every_format
def test_until_the_end_readers_see_the_previous_object_and_nothing_else(
    file_format: str, compression: Any, folder: Any
) -> None:
    path = folder / "o"
    write(path, [sample("compact")], file_format, compression)
    before = file_of(path).read_bytes()
    with open_object(path, file_format, compression=compression) as writer:  # type: ignore[arg-type]
        for _ in range(3):
            writer.write_page(sample("metrics"))
            visible = {name: data for name, data in tree(folder).items() if not name.startswith(".")}
            assert visible == {"o": before}
        assert writer.size == 0
    assert tree(folder).keys() == {"o"}
    assert len(read_records(file_of(path).read_bytes(), file_format, compression)) == 12
    assert writer.size == file_of(path).stat().st_size


@every_format
def test_an_object_is_replaced_by_a_shorter_one_as_a_whole(file_format: str, compression: Any, folder: Any) -> None:
    path = folder / "o"
    write(path, [sample("metrics")] * 50, file_format, compression)
    size = write(path, [sample("compact")], file_format, compression)
    assert file_of(path).stat().st_size == size
    assert len(read_records(file_of(path).read_bytes(), file_format, compression)) == 2
    assert tree(folder).keys() == {"o"}


KILLED = """
import sys, time
from upath import UPath
from airflow_provider_unleash.protocol import Page
from airflow_provider_unleash.writers import open_object
with open_object(UPath(sys.argv[1]), "jsonl") as writer:
    for number in range(1, 100):
        writer.write_page(Page(number, 99, ("a",), [["x" * 1000]] * 100))
    print("midway", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_previous_object_and_the_next_one_cleans_up(folder: Any) -> None:
    path = folder / "device=W1" / "o.jsonl"
    write(path, [sample("compact")], "jsonl")
    before = file_of(path).read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "midway\n"
            # A failure of another writer, or its success, takes nothing away from one that is alive.
            with suppress(StopError), open_object(path, "jsonl"):
                raise StopError
            assert len(tree(folder)) == 3
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    orphans = tree(folder).keys() - {"device=W1", "device=W1/o.jsonl"}
    assert len(orphans) == 1
    assert file_of(path).read_bytes() == before

    write(folder / "device=W1" / "other.jsonl", [], "jsonl")
    assert orphans < tree(folder).keys(), "another object's write is not its business"
    write(path, [sample("metrics")], "jsonl")
    assert tree(folder).keys() == {"device=W1", "device=W1/o.jsonl", "device=W1/other.jsonl"}
    assert len(read_records(file_of(path).read_bytes(), "jsonl")) == 4


def test_files_that_only_look_like_an_orphan_are_left_alone(folder: Any) -> None:
    for name in (".o.jsonl.swp", ".other.jsonl.0123.tmp", "o.jsonl.tmp", ".o.jsonl.tmp"):
        (file_of(folder) / name).write_text("mine")
    before = tree(folder)
    write(folder / "o.jsonl", [], "jsonl")
    assert {**before, "o.jsonl": b""} == tree(folder)


@every_format
def test_two_writers_of_one_object_both_succeed_and_the_last_one_stays(
    file_format: str, compression: Any, folder: Any
) -> None:
    path = folder / "new" / "o"
    with ExitStack() as first:
        one = first.enter_context(open_object(path, file_format, compression=compression))  # type: ignore[arg-type]
        one.write_page(sample("compact"))
        with open_object(path, file_format, compression=compression) as two:  # type: ignore[arg-type]
            two.write_page(sample("metrics"))
        assert len(read_records(file_of(path).read_bytes(), file_format, compression)) == 4
        one.write_page(sample("compact"))
    assert len(read_records(file_of(path).read_bytes(), file_format, compression)) == 4
    assert tree(folder).keys() == {"new", "new/o"}
    assert (one.size, file_of(path).stat().st_size) == (one.size, one.size)


def test_a_writer_that_fails_takes_nothing_from_another_in_the_same_new_folder(folder: Any) -> None:
    path = folder / "new" / "o"
    with open_object(path, "jsonl") as survivor:
        with suppress(StopError), open_object(path, "jsonl"):
            raise StopError
        survivor.write_page(page_of({"a": 1}))
    assert tree(folder) == {"new": None, "new/o": b'{"a":1}\n'}


def write_at_once(paths: list[Any], fails: Callable[[int], bool]) -> list[BaseException]:
    """Let six threads write each object at once, some failing, and return the errors that are not their own."""
    start = threading.Barrier(6)
    errors: list[BaseException] = []

    def write_all(name: str) -> None:
        for turn, path in enumerate(paths):
            start.wait()
            try:
                with open_object(path, "jsonl") as writer:
                    writer.write_page(page_of(*[{"writer": name}] * 50))
                    if fails(turn):
                        raise StopError
            except StopError:
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=write_all, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_many_writers_at_once_leave_one_whole_object(folder: Any) -> None:
    path = folder / "new" / "deep" / "o"
    assert write_at_once([path] * 10, lambda turn: turn % 3 == 0) == []
    assert tree(folder).keys() == {"new", "new/deep", "new/deep/o"}
    rows = read_records(file_of(path).read_bytes(), "jsonl")
    assert (len(rows), len({row["writer"] for row in rows})) == (50, 1)


def test_writers_that_fail_at_once_and_remove_their_folders_do_not_disturb_each_other(folder: Any) -> None:
    assert write_at_once([folder / str(turn) / "deep" / "o" for turn in range(150)], lambda turn: True) == []
    assert not [path for path in file_of(folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "local://{}"])
def test_a_local_object_is_a_file_however_its_path_is_spelled(spelling: str, tmp_path: Path) -> None:
    path = UPath(spelling.format(tmp_path)) / "new" / "o.jsonl"
    write(path, [page_of({"a": 1})], "jsonl")
    assert (tmp_path / "new" / "o.jsonl").read_bytes() == b'{"a":1}\n'
    assert has_rows(path, "jsonl")
    assert url_of(path) == f"file://{tmp_path}/new/o.jsonl"


# ---- whole or not at all: object stores ----------------------------------------------------------


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """An object store as S3 is one: what is uploaded in parts shows only when it is committed."""

    protocol = "s3"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.uploads: list[Upload] = []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            self.uploads.append(Upload(self, path, mode, options["block_size"], options["autocommit"]))
            return self.uploads[-1]
        if path not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[path])


class Upload(AbstractBufferedFile):  # type: ignore[misc]
    state = "open"

    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        assert self.closed, "s3fs uploads the rest when it is closed"
        self.fs.objects[self.path] = b"".join(self.parts)
        self.state = "committed"

    def discard(self) -> None:
        self.state = "discarded"


@every_format
def test_an_object_of_a_store_is_published_once_it_is_whole(file_format: str, compression: Any) -> None:
    bucket = Bucket()
    path = Place("lake/o", "s3", bucket)
    with open_object(path, file_format, compression=compression) as writer:  # type: ignore[arg-type]
        writer.write_page(sample("compact"))
        assert bucket.objects == {}
    assert [upload.state for upload in bucket.uploads] == ["committed"]
    assert writer.size == len(bucket.objects["lake/o"])
    assert len(read_records(bucket.objects["lake/o"], file_format, compression)) == 2
    assert has_rows(path, file_format, compression)  # type: ignore[arg-type]


@every_format
@failing
def test_a_failed_write_to_a_store_keeps_the_previous_object(file_format: str, compression: Any, fail: Any) -> None:
    bucket = Bucket()
    path: Any = Place("lake/o", "s3", bucket)
    for objects in ({}, {"lake/o": b"previous"}):
        bucket.objects = dict(objects)
        with pytest.raises(STOPS):
            write_until(fail, path, file_format, compression)
        assert bucket.objects == objects
    assert {upload.state for upload in bucket.uploads} == {"discarded"}


def test_a_large_object_goes_to_a_store_in_parts_of_bounded_size() -> None:
    bucket = Bucket()
    path: Any = Place("lake/o", "s3", bucket)
    write(path, [page_of({"a": "x" * 6_000_000}, number=number) for number in range(4)], "jsonl")
    [upload] = bucket.uploads
    assert len(upload.parts) >= 2
    assert max(map(len, upload.parts)) < 16 * 2**20
    assert len(bucket.objects["lake/o"]) == 4 * len('{"a":""}\n') + 24_000_000


@failing
def test_a_store_that_publishes_whatever_is_closed_never_sees_half_an_object(fail: Any) -> None:
    path: Any = UPath("memory://test-writers/o")
    try:
        path.fs.pipe(path.path, b"previous")
        with pytest.raises(STOPS):
            write_until(fail, path, "jsonl", None)
        assert path.fs.cat(path.path) == b"previous"
    finally:
        path.fs.store.clear()


@pytest.mark.parametrize(("first", "then"), [([1, 2], [0.5, 0.5]), ([3.0], [1])])
def test_numbers_of_a_csv_tree_are_read_as_what_they_are_whichever_file_comes_first(
    first: list[float], then: list[float], tmp_path: Path
) -> None:
    for name, counts in (("a", first), ("b", then)):
        path = UPath(f"file://{tmp_path}/{name}.csv")
        write(path, [page_of(*[{"count": count, "frame_number": count // 1} for count in counts])], "csv")
    query = f"SELECT sum(count), sum(frame_number) FROM '{tmp_path}/*.csv'"
    assert duckdb.sql(query).fetchall() == [(sum(first + then), sum(count // 1 for count in first + then))]


def test_stamps_of_a_csv_are_in_utc(tmp_path: Path) -> None:
    path = UPath(f"file://{tmp_path}/o.csv")
    stamps = ["2020-08-17T02:08:49.000Z", "2020-08-17T12:08:49+10:00", "2020-08-17T02:08:49", None]
    write(path, [page_of(*[{"timestamp": stamp} for stamp in stamps])], "csv")
    with (tmp_path / "o.csv").open(newline="") as file:
        read = [row["timestamp"] for row in csv.DictReader(file)]
    assert read == ["2020-08-17T02:08:49.000Z"] * 3 + [""]


@pytest.mark.parametrize("declared", [{1: "string"}, {"a": ["string"]}, "a: string", {"a": None}])
def test_column_types_of_another_form_are_refused(declared: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="column_types"):
        check_file_format("csv", None, declared)


@every_format
def test_an_object_in_memory_is_read_back_equal(file_format: str, compression: Any) -> None:
    path = UPath(f"memory://test-writers/{file_format}-{compression}")
    try:
        size = write(path, [sample("compact")], file_format, compression)
        data = path.fs.cat(path.path)
        assert (len(data), len(read_records(data, file_format, compression))) == (size, 2)
        assert has_rows(path, file_format, compression)  # type: ignore[arg-type]
    finally:
        path.fs.store.clear()


def test_a_failed_write_to_memory_leaves_no_object() -> None:
    path = UPath("memory://test-writers/o")
    try:
        with pytest.raises(StopError), open_object(path, "jsonl") as writer:
            after_a_page(writer)
        assert not path.exists()
    finally:
        path.fs.store.clear()


# ---- has_rows ------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize(
    ("pages", "rows"),
    [
        *(([], False), ([Page(1, 0, (), [])], False), ([Page(1, 1, tuple(KNOWN), [])], False)),
        *(([sample("compact")], True), ([page_of(dict.fromkeys(KNOWN))], True), ([page_of({"new": 1})], True)),
        *(([Page(1, 1, (), []), sample("metrics")], True), ([page_of(record(new="x" * 200_000))], True)),
    ],
)
def test_an_object_has_rows_if_rows_were_written(
    file_format: Any, compression: Any, pages: list[Page], rows: bool, folder: Any
) -> None:
    write(folder / "o", pages, file_format, compression)
    assert has_rows(folder / "o", file_format, compression) is rows


@every_format
def test_an_object_that_is_not_there_has_no_rows(file_format: Any, compression: Any, folder: Any) -> None:
    assert not has_rows(folder / "o", file_format, compression)
    assert not has_rows(folder / "no" / "folder" / "o", file_format, compression)
    assert not has_rows(UPath("memory://test-writers/missing"), file_format, compression)


@pytest.mark.parametrize(
    ("file_format", "compression", "content"),
    [
        ("parquet", None, b""),
        ("parquet", None, b"PAR1 and then the disk was full"),
        ("jsonl", "gzip", b"\x1f\x8b\x08\x00half"),
        ("jsonl", "gzip", b"plain text"),
        ("json", None, b"\xff\xfe["),
        ("json", None, b"["),
        ("json", None, b"[{"),
        ("jsonl", None, b"{"),
        ("csv", "gzip", gzip.compress(b"a,b\r\n1,2\r\n", mtime=0)[:-9]),
        ("csv", None, b"a,b\r\n\xff,2\r\n"),
    ],
)
def test_an_object_that_cannot_be_read_counts_as_having_rows(
    file_format: Any, compression: Any, content: bytes, folder: Any
) -> None:
    file_of(folder / "o").write_bytes(content)
    assert has_rows(folder / "o", file_format, compression)


@pytest.mark.parametrize(
    ("file_format", "compression", "content", "rows"),
    [
        *(("jsonl", None, b"", False), ("jsonl", None, b"\n", False), ("jsonl", None, b"{}\n", True)),
        *(("json", None, b"[]", False), ("json", None, b"[{}]", True), ("json", None, b"", False)),
        *(("json", None, b"[ ]\n", False), ("json", None, b"[\r\n]", False)),
        *(("json", None, b" " * 100 + b"[{}]", True), ("jsonl", None, b"\n" * 100 + b"{}", True)),
        *(("csv", None, b"", False), ("csv", None, b"a,b", False), ("csv", None, b"a,b\n", False)),
        *(("csv", None, b'"a\nb",c\r\n', False), ("csv", None, b'"a\nb",c\r\n1,2', True)),
        *(
            ("csv", "gzip", gzip.compress(b"a,b\r\n", mtime=0), False),
            ("jsonl", "gzip", gzip.compress(b"", mtime=0), False),
        ),
    ],
)
def test_objects_of_other_writers_are_judged_by_what_they_hold(
    file_format: Any, compression: Any, content: bytes, rows: bool, folder: Any
) -> None:
    file_of(folder / "o").write_bytes(content)
    assert has_rows(folder / "o", file_format, compression) is rows


def test_parquet_of_other_writers_is_judged_by_its_rows(folder: Any) -> None:
    for rows in (0, 3):
        pq.write_table(pa.table({"a": list(range(rows))}), file_of(folder / "o"))
        assert has_rows(folder / "o", "parquet") is bool(rows)
