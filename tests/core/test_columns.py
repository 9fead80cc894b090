"""Parquet and CSV files have the same columns of the same types, and a value that does not fit is an error."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_unleash.core.columns import columns_of
from airflow_provider_unleash.core.formats import Format
from airflow_provider_unleash.core.protocol import MAX_KEYS, Page, Response, parse_page
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError
from tests.support.pages import DECLARED, HEADER, KNOWN, duck, page_of, read_file, record, sample, tree, write

MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
typed_format = pytest.mark.parametrize("file_format", ["parquet", "csv"])


SCHEMA = [
    *(("class_name", pa.string()), ("count", pa.float64()), ("device_id", pa.string()), ("frame_number", pa.int64())),
    *(("model_id", pa.string()), ("session_id", pa.string()), ("source_file_name", pa.string())),
    *(("timestamp", pa.timestamp("ms", tz="UTC")), ("extra", pa.string())),
]
DECLARED_SCHEMA = [
    *(("confidence", pa.float64()), ("zone", pa.string()), ("visits", pa.int64()), ("seen", pa.bool_())),
    ("until", pa.timestamp("ms", tz="UTC")),
]
PAGES: dict[str, list[Page]] = {
    "no pages": [],
    "an empty page": [Page(1, 0, (), [])],
    "an empty page with keys": [Page(1, 1, tuple(KNOWN), [])],
    "the sample": [sample("compact")],
    "integer counts only": [sample("metrics")],
    "keys in another order": [page_of(dict(reversed(record().items())))],
    "one key": [page_of({"count": 1})],
    "unknown keys only": [page_of({"new": 1})],
    "nulls only": [page_of(dict.fromkeys(KNOWN))],
    "a new key on the second page": [sample("compact"), page_of(record(new=1), number=2)],
}


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES.keys())
@pytest.mark.parametrize(("declared", "more"), [(None, []), (DECLARED, DECLARED_SCHEMA)], ids=["known", "declared"])
def test_every_file_has_the_same_columns_of_the_same_types(pages, declared, more, folder):
    write(folder / "o.parquet", pages, "parquet", column_types=declared)
    write(folder / "o.csv", pages, "csv", column_types=declared)
    rows = sum(len(page.rows) for page in pages)
    parquet = pq.ParquetFile((folder / "o.parquet").path)
    assert parquet.schema_arrow.remove_metadata() == pa.schema([*SCHEMA, *more])
    assert parquet.metadata.num_rows == rows
    lines = list(csv.reader(io.StringIO(Path((folder / "o.csv").path).read_text(), newline="")))
    assert lines[0] == list(columns_of(declared)) == [name for name, _ in [*SCHEMA, *more]]
    assert [len(line) for line in lines] == [len(lines[0])] * (1 + rows)


@pytest.mark.parametrize(("first", "then"), [([1, 2], [0.5, 0.5]), ([3.0], [1])])
def test_duckdb_reads_numbers_of_a_csv_tree_whichever_file_comes_first(first, then, folder):
    for name, counts in (("a", first), ("b", then)):
        page = page_of(*[{"count": count, "frame_number": count // 1} for count in counts])
        write(folder / f"{name}.csv", [page], "csv")
    [sums] = duck(f"SELECT sum(count), sum(frame_number) FROM '{folder.path}/*.csv'")
    assert sums == (sum(first + then), sum(count // 1 for count in first + then))


@typed_format
def test_a_missing_key_is_null(file_format, folder):
    write(folder / "o", [page_of({"count": 1}, {"class_name": "car"})], file_format)
    null, one = ("", "1.0") if file_format == "csv" else (None, 1.0)
    assert read_file(folder / "o", file_format) == [
        {**dict.fromkeys(HEADER, null), "count": one},
        {**dict.fromkeys(HEADER, null), "class_name": "car"},
    ]


@typed_format
def test_keys_without_a_column_are_json_in_extra(file_format, folder):
    pages = [
        sample("compact"),
        page_of(record(confidence=0.5, zone={"b": [1], "a": None}), record(), record(zone=None), number=2),
        page_of(record(extra="mine", device="W9", start_date="2020-08-17"), number=3),
    ]
    write(folder / "o", pages, file_format)
    found = [row["extra"] or None for row in read_file(folder / "o", file_format)]
    assert [extra and json.loads(extra) for extra in found] == [
        *(None, None, {"confidence": 0.5, "zone": {"b": [1], "a": None}}, None, {"zone": None}),
        {"extra": "mine", "device": "W9", "start_date": "2020-08-17"},
    ]


def test_extra_does_not_depend_on_the_order_of_keys(folder):
    for name, page in {"one": page_of(record(b=1, a=2)), "two": page_of({"a": 2, "b": 1, **record()})}.items():
        write(folder / name, [page], "csv")
    files = tree(folder)
    assert files["one"] == files["two"]


@typed_format
def test_a_new_key_is_logged_once_unless_it_has_a_column(file_format, folder, caplog):
    pages = [page_of(record(), number=1), *(page_of(record(confidence=1), number=number) for number in (2, 3))]
    write(folder / "o", [*pages, page_of(record(zone="a", confidence=1), number=4)], file_format)
    assert caplog.messages == [
        "Page 2 has keys without a column: 'confidence'. They are stored in extra",
        "Page 4 has keys without a column: 'zone'. They are stored in extra",
    ]
    caplog.clear()
    write(folder / "o", pages, file_format, column_types=DECLARED)
    assert caplog.messages == []


@typed_format
def test_declared_columns_take_their_values(file_format, folder):
    values = {"confidence": 0.5, "zone": "a", "visits": 3, "seen": True, "until": "2020-08-17T02:08:49.500+02:00"}
    write(folder / "o", [page_of(record(**values), record(seen=False), record())], file_format, column_types=DECLARED)
    rows = read_file(folder / "o", file_format)
    assert {row["extra"] or None for row in rows} == {None}
    if file_format == "csv":
        expected = [["0.5", "a", "3", "true", "2020-08-17T00:08:49.500Z"], ["", "", "", "false", ""], [""] * 5]
    else:
        until = datetime(2020, 8, 17, 0, 8, 49, 500000, timezone.utc)
        expected = [[0.5, "a", 3, True, until], [None, None, None, False, None], [None] * 5]  # type: ignore[list-item]
    assert [[row[name] for name in DECLARED] for row in rows] == expected


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        *(({"confidence": "float64", name: "string"}, "is already a column or a folder key") for name in HEADER),
        *(({name: "string"}, "already") for name in ("device", "start_date", "Count", "Device")),
        *(
            ({"confidence": kind}, "must be one of string, int64, float64, bool, timestamp")
            for kind in ("str", "int32", "timestamp[ms]", "", None, float, "STRING", ["string"])
        ),
        *(({1: "string"}, "must be one of"), ("a: string", "must be a dict")),
    ],
    ids=str,
)
def test_column_types_that_cannot_be_used_are_an_error(declared, problem):
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        Format("csv", None, declared)
    assert caught.value.argument == "column_types"


STAMP = "2020-08-17T02:08:"
MISFITS: list[tuple[str, Any]] = [
    *(("count", value) for value in ("3", "", True, False, [1], {"a": 1}, 2**53 + 1, -(2**53) - 1, 10**400)),
    *(("frame_number", value) for value in (1.5, "1", True, 2**63, -(2**63) - 1, 1e300, 9.3e18, [1], {"a": 1})),
    *(("class_name", value) for value in (1, 1.5, True, ["a"], {"a": "b"})),
    *(("session_id", 1597622730877), ("source_file_name", ["a.mp4"]), ("device_id", 5), ("model_id", False)),
    *(("timestamp", value) for value in ("x", "", "2020-08-17", "2020-02-30T00:00:00Z", 1597622730877, True, [], {})),
    *(("timestamp", f"{STAMP}{rest}Z") for rest in ("49.000001", "49.0005", "60", "49.0000004")),
    *(("timestamp", stamp) for stamp in ("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00")),
    *(("timestamp", stamp) for stamp in ("9999-12-31T23:59:59-0100", "0000-01-01T00:00:00Z", "2020-08-17T02:08+0200")),
    *(("timestamp", stamp) for stamp in ("2020-08-17T02Z", "2020-08-17T02:08Z", "2020-08-17T02:08:49+02")),
    *(("confidence", "0.5"), ("confidence", True), ("zone", 1), ("visits", 1.5), ("visits", "1"), ("visits", True)),
    *(("seen", 1), ("seen", 0.0), ("seen", "true"), ("until", "x"), ("until", "2020-08-17T02:08:49.000001Z")),
]


@typed_format
@pytest.mark.parametrize(("field", "value"), MISFITS)
def test_a_value_that_does_not_fit_is_an_error_that_names_it_and_leaves_no_file(file_format, field, value, folder):
    good = record(confidence=1, zone="a", visits=1, seen=True, until="2020-08-17T02:08:49.000Z")
    bad = page_of(good, dict.fromkeys(good), {**good, field: value}, {**good, field: value}, number=3, dropped=(0, 3))
    with pytest.raises(UnexpectedResponseError) as caught:
        write(folder / "new" / "o", [page_of(good), bad], file_format, column_types=DECLARED)
    error, message = caught.value, str(caught.value)
    # Rows 0 and 3 of the response were dropped, so the third remaining row is row 4.
    assert (error.page, error.row, error.field, error.value) == (3, 4, field, value)
    assert message.startswith(f"Page 3, row 4: {field} is {value!r}"[:100])
    assert 'file_format="jsonl" or "json" keeps values as they are' in message
    assert len(message) < 500
    assert tree(folder) == {}


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
def test_a_value_that_just_fits_is_read_back_unchanged(file_format, field, value, folder):
    write(folder / "o", [page_of(record(**{field: value}), record())], file_format, column_types=DECLARED)
    found = read_file(folder / "o", file_format)[0][field]
    expected = float(value) if field in ("count", "confidence") else value
    if file_format == "csv":
        assert found == (str(value).lower() if isinstance(value, bool) else str(expected))
    else:
        assert found == expected
        assert type(found) is type(expected)


@typed_format
@pytest.mark.parametrize(("value", "other"), [(2**54, 1), (-(2**60), 1.5), (2**63, None), (2**70, 1)])
def test_a_large_integer_that_a_float_holds_exactly_is_a_count(file_format, value, other, folder):
    write(folder / "o", [page_of(record(count=other), record(count=value))], file_format)
    assert int(float(read_file(folder / "o", file_format)[1]["count"])) == value


@typed_format
@pytest.mark.parametrize("field", ["count", "frame_number"])
def test_true_beside_a_float_is_not_a_number(file_format, field, folder):
    with pytest.raises(UnexpectedResponseError, match=f"row 1: {field} is True"):
        write(folder / "o", [page_of({field: 2.0}, {field: True})], file_format)


@typed_format
@pytest.mark.parametrize("neighbor", ["2020-08-17T00:00:00.000Z", "2020-08-17T00:00:00", None])
@pytest.mark.parametrize(
    ("timestamp", "epoch_ms"),
    [
        *((f"{STAMP}{rest}", MIDNIGHT + 7729000) for rest in ("49.000Z", "49Z", "49", "49.000000000Z")),
        *(("2020-08-17 02:08:49.1Z", MIDNIGHT + 7729100), ("2020-08-17T04:08:49+02:00", MIDNIGHT + 7729000)),
        *(("1969-12-31T23:59:59.999Z", -1), ("2020-02-29T00:00:00Z", 1582934400000)),
    ],
)
def test_timestamps_of_any_spelling_are_written_in_utc(file_format, timestamp, epoch_ms, neighbor, folder):
    write(folder / "o", [page_of(record(timestamp=neighbor), record(timestamp=timestamp))], file_format)
    if file_format == "csv":
        moment = datetime.fromtimestamp(epoch_ms / 1000, timezone.utc)
        written = [row["timestamp"] for row in read_file(folder / "o", "csv")]
        first = "" if neighbor is None else "2020-08-17T00:00:00.000Z"
        assert written == [first, f"{moment:%Y-%m-%dT%H:%M:%S}.{epoch_ms % 1000:03}Z"]
    else:
        column = pq.read_table((folder / "o").path).column("timestamp").cast(pa.int64()).to_pylist()
        assert column == [None if neighbor is None else MIDNIGHT, epoch_ms]


@typed_format
@pytest.mark.parametrize("name", ["W1?token=sneaky-firefox-288", ["W1?token=sneaky-firefox-288"]])
def test_the_error_about_a_value_shows_no_stream_token(file_format, name, folder):
    field = "frame_number" if isinstance(name, str) else "source_file_name"
    with pytest.raises(UnexpectedResponseError, match=r"W1\?token=\*\*\*") as caught:
        write(folder / "o", [page_of(record(**{field: name}))], file_format)
    assert "sneaky" not in str(caught.value)


def test_a_page_with_more_keys_than_any_api_has_is_unexpected():
    """msgspec's sorting encoder overflows the C stack at such pages."""
    keys = [f"k{index}" for index in range(60_000, 0, -1)]
    bodies = {
        "compact": {"keys": keys, "total_num_pages": 1, "data": [[0] * len(keys)]},
        "tableau": {"total_num_pages": 1, "data": [dict.fromkeys(keys, 0)]},
    }
    for endpoint, body in bodies.items():
        with pytest.raises(UnexpectedResponseError, match="60000 keys"):
            parse_page(Response("https://x/1", 200, {}, json.dumps(body).encode()), 1, endpoint)  # type: ignore[arg-type]


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("nested", [False, True])
def test_many_keys_are_written_in_time_and_in_a_short_warning(file_format, nested, folder, caplog, request):
    """The smallest key is last, for which msgspec's sorting encoder takes quadratic time."""
    request.addfinalizer(partial(csv.field_size_limit, csv.field_size_limit(1 << 24)))
    keys = {f"key{index:06}": index for index in range(60_000 if nested else MAX_KEYS, 0, -1)}
    page = page_of({"zone": keys} if nested else keys)
    began = time.process_time()
    write(folder / "o", [page], file_format)
    assert page.digest
    assert time.process_time() - began < 10
    [row] = read_file(folder / "o", file_format)
    extra = row if file_format.startswith("json") else json.loads(row["extra"])
    assert (extra["zone"] if nested else extra) == keys
    assert len(caplog.text) < 1000
