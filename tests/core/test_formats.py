"""Files in every format hold the rows of their pages, and their names hold device and window."""

from __future__ import annotations

import gzip
import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core import formats
from airflow_provider_unleash.core.formats import Format
from airflow_provider_unleash.core.names import object_name
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.core.windows import Window
from airflow_provider_unleash.exceptions import InvalidArgumentError
from tests.support.pages import (
    FORMATS,
    HEADER,
    KNOWN,
    Place,
    duck,
    in_file,
    page_of,
    plain_bytes,
    read_file,
    read_records,
    record,
    sample,
    tree,
    write,
)

MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
DAY_MS = 86_400_000
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
every_format = pytest.mark.parametrize(("file_format", "compression"), FORMATS)
json_format = pytest.mark.parametrize("file_format", ["jsonl", "json"])
zipped_or_not = pytest.mark.parametrize("compression", [None, "gzip"])


SPECIAL = [
    record(class_name='say "hi", you', source_file_name="a,b;c\td"),
    record(class_name="two\nlines\r\nand\rmore", model_id="'quoted'"),
    record(class_name="Ünïcödé \u2013 人 🚲", device_id=" spaces "),
    record(class_name="=1+1", count=0.1, frame_number=2**53 + 1),
    record(count=1e300, frame_number=-(2**63), session_id="0007"),
    record(count=-0.5, frame_number=0, timestamp="2020-02-29T23:59:59.999Z"),
    record(**dict.fromkeys(KNOWN)),
]


@every_format
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_rows_are_read_back_unchanged(file_format, compression, endpoint, folder):
    path = folder / "a" / "object"
    pages = [sample("compact"), sample("metrics"), page_of(*SPECIAL)]
    if endpoint == "tableau":
        pages = [page_of(*(dict(reversed(row.items())) for row in page.records())) for page in pages]
    size = write(path, pages, file_format, compression)
    assert size == Path(path.path).stat().st_size
    found = read_file(path, file_format, compression)
    assert found == [in_file(row, file_format) for page in pages for row in page.records()]
    keys = {"csv": HEADER, "parquet": HEADER}.get(file_format, list(pages[0].keys))
    assert {tuple(row) for row in found} == {tuple(keys)}


@json_format
@zipped_or_not
def test_json_keeps_rows_unchanged_with_their_order_of_keys(file_format, compression, folder):
    first = [{}, {"a": None}, {"a": 1.0, "b": [1, {"c": None}]}, {"": "", 'é "\\\n': True}]
    second = [{"count": "many", "extra": {"x": 1}}, {"timestamp": "soon", "frame_number": 2**63, "small": -0.0}]
    write(folder / "o", [page_of(*first), page_of(*second, number=2)], file_format, compression)
    assert json.dumps(read_file(folder / "o", file_format, compression)) == json.dumps([*first, *second])


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = SCALARS | st.text(max_size=3) | st.lists(SCALARS, max_size=2)


@PROPERTY
@given(st.lists(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=3), max_size=3))
def test_json_keeps_any_rows_with_any_keys(pages):
    memory = fsspec.filesystem("memory")
    for file_format in ("jsonl", "json"):
        write(Place("/test_formats", "memory", memory), [page_of(*page) for page in pages], file_format)
        data = memory.cat("/test_formats")
        memory.rm("/test_formats")
        assert read_records(data, file_format) == [row for page in pages for row in page]
        assert file_format == "jsonl" or data.endswith(b"]\n")


def test_csv_follows_rfc_4180(folder):
    write(folder / "o", [page_of(record(class_name='a "b"', model_id="x,y", session_id=None, count=2.0))], "csv")
    assert plain_bytes(folder / "o") == (
        b'"class_name","count","device_id","frame_number","model_id","session_id","source_file_name","timestamp",'
        b'"extra"\r\n'
        b'"a ""b""",2.0,W1,7,"x,y",,a.mp4,2020-08-17T02:08:49.000Z,\r\n'
    )


@every_format
def test_the_same_rows_give_the_same_bytes(file_format, compression, folder):
    pages = [sample("compact"), page_of(record(new={"b": 1, "a": 2}))]
    for name in ("one", "two"):
        write(folder / name, pages, file_format, compression)
    files = tree(folder)
    assert files["one"] == files["two"]
    if compression:
        assert files["one"][:8] == b"\x1f\x8b\x08" + bytes(5), "no file name and no time in the header"  # type: ignore[index]


@zipped_or_not
@pytest.mark.parametrize(
    ("file_format", "content"),
    [("jsonl", b""), ("json", b"[]\n"), ("csv", ",".join(f'"{name}"' for name in HEADER).encode() + b"\r\n")],
)
@pytest.mark.parametrize("pages", [[], [Page(1, 0, (), [])], [Page(1, 1, tuple(KNOWN), [])]])
def test_a_file_without_rows_is_valid(file_format, content, compression, pages, folder):
    write(folder / "o", pages, file_format, compression)
    assert plain_bytes(folder / "o", compression) == content


def test_parquet_has_compressed_row_groups_of_limited_size_in_page_order(folder, monkeypatch):
    monkeypatch.setattr(formats, "ROW_GROUP_ROWS", 10)
    pages = [page_of(*(record(frame_number=7 * number + index) for index in range(7))) for number in range(5)]
    write(folder / "o", pages, "parquet")
    found = pq.ParquetFile((folder / "o").path)
    groups = [found.metadata.row_group(index) for index in range(found.num_row_groups)]
    assert [group.num_rows for group in groups] == [14, 14, 7]
    assert found.read().column("frame_number").to_pylist() == list(range(35))
    assert {groups[0].column(index).compression for index in range(groups[0].num_columns)} == {"ZSTD"}


# DuckDB looks at 20 480 rows.
MANY = 21_000
DEFAULT_READERS: dict[str, Callable[[str], Any]] = {
    "duckdb": lambda path: duck(f"SELECT class_name, count, session_id, extra FROM '{path}'"),
    "pandas": lambda path: pandas_rows(pd.read_csv(path)),
    "polars": lambda path: pl.read_csv(path).select("class_name", "count", "session_id", "extra").rows(),
}


def pandas_rows(frame: Any) -> list[tuple[Any, ...]]:
    frame = frame[["class_name", "count", "session_id", "extra"]].astype(object)
    return list(frame.where(frame.notna(), None).itertuples(index=False, name=None))


@cache
def early_page(**values: Any) -> Page:
    return page_of(*(record(**values) for _ in range(MANY)))


def write_late(path: Any, file_format: str, last: dict[str, Any], **first: Any) -> None:
    write(path, [early_page(**first), page_of(last)], file_format)


@pytest.mark.parametrize(
    "text", ['say "hi"', '"', "a,b", "two\nlines", "two\r\nlines", "it's", "a\\", "#1,2", "x" * 10**5]
)
def test_readers_with_defaults_read_a_csv_with_quotes_that_come_late(text, folder):
    path = folder / "o.csv"
    write_late(path, "csv", record(class_name=text, count=1.5, new=[text]))
    expected = json.dumps({"new": [text]}, ensure_ascii=False, separators=(",", ":"))
    for reader, read in DEFAULT_READERS.items():
        rows = read(path.path)
        assert (len(rows), rows[-1]) == (MANY + 1, (text, 1.5, 1597622730877, expected)), reader


# docs/formats.md shows these queries.
READ_JSON = """
FROM read_json('s3://lake/unleash/**/*.jsonl', columns = {
    class_name: 'VARCHAR', count: 'DOUBLE', device_id: 'VARCHAR', frame_number: 'BIGINT', model_id: 'VARCHAR',
    session_id: 'VARCHAR', source_file_name: 'VARCHAR', timestamp: 'TIMESTAMPTZ'
})
"""
READ_CSV = """
FROM read_csv('s3://lake/unleash/**/*.csv', columns = {
    class_name: 'VARCHAR', count: 'DOUBLE', device_id: 'VARCHAR', frame_number: 'BIGINT', model_id: 'VARCHAR',
    session_id: 'VARCHAR', source_file_name: 'VARCHAR', timestamp: 'TIMESTAMPTZ', extra: 'VARCHAR'
}, auto_detect = false, header = true, quote = '"', escape = '"', parallel = false)
"""


PARQUET_READERS: dict[str, Callable[[str], Any]] = {
    "duckdb": lambda path: duck(f"SELECT class_name, count, session_id, extra FROM '{path}'"),
    "pandas": lambda path: pandas_rows(pd.read_parquet(path)),
    "polars": lambda path: pl.read_parquet(path).select("class_name", "count", "session_id", "extra").rows(),
}


@pytest.mark.parametrize("reader", PARQUET_READERS)
def test_readers_with_defaults_read_a_parquet_file_whose_odd_values_come_late(reader, folder):
    path = folder / "o.parquet"
    late = record(class_name='say "hi"', count=1.5, session_id="live-7", new=1)
    write_late(path, "parquet", late, class_name=None, count=None, session_id="0007")
    rows = PARQUET_READERS[reader](path.path)
    assert (rows[0], rows[-1]) == ((None, None, "0007", None), ('say "hi"', 1.5, "live-7", '{"new":1}'))


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv"])
def test_the_documented_duckdb_query_reads_late_values(file_format, folder):
    text = 'say "hi",\nyou'
    late = record(class_name=text, count=1.5, session_id="live-7", model_id="ai", timestamp="2020-08-17T02:08:49Z")
    early = {"session_id": "0007", "model_id": "2020-01-01"}
    write(folder / f"1.{file_format}", [page_of(record(**early))], file_format)
    write_late(folder / f"2.{file_format}", file_format, {**late, "new": 1}, **early)
    write_late(folder / f"3.{file_format}", file_format, late, class_name=None, count=None)
    query = READ_CSV if file_format == "csv" else READ_JSON
    query = re.sub(r"s3://lake/unleash/\*\*/\*\.\w+", f"{folder.path}/*.{file_format}", query)
    rows = duck(f"SELECT class_name, count, session_id, model_id, epoch_ms(timestamp) {query}")
    moment = MIDNIGHT + (2 * 3600 + 8 * 60 + 49) * 1000
    assert len(rows) == 2 * MANY + 3
    assert rows[0] == rows[1] == ("person", 1.0, "0007", "2020-01-01", moment)
    assert [row for row in rows if row[0] == text] == [(text, 1.5, "live-7", "ai", moment)] * 2


def test_the_documented_arguments_of_pandas_and_polars_read_late_values(folder):
    late = record(class_name="NA", count=1.5, session_id="live-7")
    for file_format in ("csv", "jsonl"):
        write_late(folder / f"o.{file_format}", file_format, late, session_id="0007", model_id=None)
    strings = ["class_name", "device_id", "model_id", "session_id", "source_file_name"]
    types = {**dict.fromkeys(strings, pl.String), "count": pl.Float64, "frame_number": pl.Int64}
    dtype: Any = dict.fromkeys([*strings, "extra"], "string")
    in_pandas = pd.read_csv(f"{folder.path}/o.csv", dtype=dtype, keep_default_na=False, na_values=[""])
    frames = [
        pl.read_csv(f"{folder.path}/o.csv", schema_overrides={**types, "extra": pl.String}),
        pl.read_ndjson(f"{folder.path}/o.jsonl", schema_overrides=types),
    ]
    columns = ["class_name", "count", "session_id"]
    expected = [("person", 1.0, "0007"), ("NA", 1.5, "live-7")]
    assert list(in_pandas[columns].iloc[[0, -1]].itertuples(index=False, name=None)) == expected
    for frame in frames:
        assert frame.select(columns)[[0, -1]].rows() == expected


def test_the_column_device_id_tells_devices_apart_that_readers_merge(folder):
    for device_id in ("0123", "123"):
        name = object_name(device_id, Window(MIDNIGHT, MIDNIGHT + DAY_MS), "parquet")
        write(folder / "lake" / name, [page_of(record(device_id=device_id))], "parquet")
    lake = f"{folder.path}/lake"
    for table in (pl.read_parquet(f"{lake}/**/*.parquet", hive_partitioning=True).to_arrow(), pq.read_table(lake)):
        assert sorted(table.column("device_id").to_pylist()) == ["0123", "123"]
        assert table.column("device").to_pylist() == [123, 123], "then docs/formats.md need not warn"


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        *(((name, None, None), "file_format") for name in ("xml", "JSONL", "", None)),
        *((("csv", compression, None), "compression") for compression in ("zip", "", True)),
        *((("parquet", "gzip", None), "compression"), (("csv", None, {"count": "int64"}), "column_types")),
    ],
)
def test_arguments_that_cannot_be_used_are_an_error_that_names_one_and_nothing_is_written(arguments, argument, folder):
    for use in (Format, lambda *arguments: write(folder / "new" / "o", [], *arguments)):
        with pytest.raises(InvalidArgumentError) as caught:
            use(*arguments)
        assert caught.value.argument == argument
    assert tree(folder) == {}


def test_without_pyarrow_parquet_is_an_error_that_says_how_to_install_it_and_other_formats_work(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'airflow-provider-unleash\[parquet\]'") as caught:
        write(folder / "new" / "o", [], "parquet")
    assert caught.value.argument == "file_format"
    assert tree(folder) == {}
    for file_format in ("jsonl", "json", "csv"):
        write(folder / "o", [sample("compact")], file_format)
    Format("parquet")  # a DAG is parsed where pyarrow may be missing


@every_format
@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        *(([], False), ([Page(1, 0, (), [])], False), ([Page(1, 1, tuple(KNOWN), [])], False)),
        *(([sample("compact")], True), ([page_of(dict.fromkeys(KNOWN))], True), ([page_of({"new": 1})], True)),
        *(([Page(1, 1, (), []), sample("metrics")], True), ([page_of(record(new="x" * 200_000))], True)),
    ],
)
def test_an_object_has_rows_if_rows_were_written(file_format, compression, pages, expected, folder):
    assert not Format(file_format, compression).has_rows(folder / "missing" / "o")
    write(folder / "o", pages, file_format, compression)
    assert Format(file_format, compression).has_rows(folder / "o") is expected


@pytest.mark.parametrize(
    ("file_format", "compression", "content"),
    [
        *(("parquet", None, content) for content in (b"", b"PAR1 and then the disk was full")),
        *(("jsonl", "gzip", content) for content in (b"\x1f\x8b\x08\x00half", b"plain text")),
        *(("json", None, content) for content in (b"\xff\xfe[", b"[", b"[{")),
        *(("jsonl", None, b"{"), ("csv", None, b"a,b\r\n\xff,2\r\n")),
        ("csv", "gzip", gzip.compress(b"a,b\r\n1,2\r\n", mtime=0)[:-9]),
    ],
)
def test_an_object_that_cannot_be_read_counts_as_having_rows(file_format, compression, content, folder):
    Path((folder / "o").path).write_bytes(content)
    assert Format(file_format, compression).has_rows(folder / "o")


@pytest.mark.parametrize(
    ("file_format", "content", "expected"),
    [
        *(("jsonl", content, False) for content in (b"", b"\n")),
        *(("jsonl", content, True) for content in (b"{}\n", b"\n" * 100 + b"{}")),
        *(("json", content, False) for content in (b"[]", b"", b"[ ]\n", b"[\r\n]")),
        *(("json", content, True) for content in (b"[{}]", b" " * 100 + b"[{}]")),
        *(("csv", content, False) for content in (b"", b"a,b", b"a,b\n", b'"a\nb",c\r\n')),
        ("csv", b'"a\nb",c\r\n1,2', True),
    ],
)
@zipped_or_not
def test_objects_of_other_programs_have_rows_if_they_contain_some(file_format, compression, content, expected, folder):
    Path((folder / "o").path).write_bytes(gzip.compress(content) if compression else content)
    assert Format(file_format, compression).has_rows(folder / "o") is expected


def test_whether_a_huge_csv_line_has_rows_is_found_in_little_memory(folder):
    content = gzip.compress(b"a" * (64 << 20), compresslevel=1)
    Path((folder / "o").path).write_bytes(content)
    tracemalloc.start()
    try:
        assert Format("csv", "gzip").has_rows(folder / "o")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [0, 3])
def test_parquet_of_other_programs_has_rows_if_it_contains_some(rows, folder):
    pq.write_table(pa.table({"a": list(range(rows))}), (folder / "o").path)
    assert Format("parquet").has_rows(folder / "o") is bool(rows)
