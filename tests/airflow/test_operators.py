"""The operators land exactly the rows of a run's window, or fail with an error that says why and leave nothing."""

from __future__ import annotations

import csv
import gzip
import inspect
import json
import logging
import re
import socket
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pendulum
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSkipException,
    BaseOperator,
    ObjectStoragePath,
)

from airflow_provider_unleash import exceptions as errors
from airflow_provider_unleash import operators as module
from airflow_provider_unleash.operators import (
    UnleashGetAnalyticsOperator,
    UnleashListDevicesOperator,
    UnleashListSessionsOperator,
    UnleashToObjectStorageOperator,
)
from airflow_provider_unleash.simulator import KEYS, Fault, Simulator
from tests.support.dag_runs import has_runs_without_dates, run_dag
from tests.support.sample_day import (
    CROWD,
    DAY,
    DAY_END,
    DAY_MS,
    DAY_START,
    HOUR_MS,
    NEXT_DAY,
    SILENT,
    STREET,
    make_context,
)

pytestmark = pytest.mark.usefixtures("quick_retries")

HOUR = timedelta(hours=1)
TIMES = "20260112T000000Z_20260113T000000Z"
FORMATS = [
    *(("jsonl", None), ("jsonl", "gzip"), ("json", None), ("json", "gzip")),
    *(("csv", None), ("csv", "gzip"), ("parquet", None)),
]
FETCHERS = (UnleashGetAnalyticsOperator, UnleashToObjectStorageOperator)
TOKEN = "?token="


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Give a folder that does not exist yet."""
    return tmp_path / "lake"


def make(operator: type[BaseOperator], **arguments: Any) -> BaseOperator:
    return operator(task_id="test", **arguments)


def fetch(context: dict[str, Any] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    """Return the rows of a street camera's day."""
    operator = make(UnleashGetAnalyticsOperator, **{"device_id": STREET, **arguments})
    return operator.execute(make_context() if context is None else context)


def store(lake: Path | str, context: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Write a street camera's day and return the summary."""
    operator = make(UnleashToObjectStorageOperator, **{"device_id": STREET, "dst": str(lake), **arguments})
    return operator.execute(make_context() if context is None else context)


def day_of(sim: Simulator, device_id: str = STREET) -> list[dict[str, Any]]:
    """Return the rows of the day, those stamped at its end not included."""
    return sim.rows(device_id, DAY_START, DAY_END - 1)


def files_in(lake: Path) -> dict[str, bytes]:
    return {str(path.relative_to(lake)): path.read_bytes() for path in sorted(lake.rglob("*")) if path.is_file()}


def everything_in(lake: Path) -> list[Path]:
    return sorted(lake.rglob("*"))


def fail(caught: pytest.ExceptionInfo[BaseException]) -> BaseException:
    """Return the cause of a task that Airflow will not try again."""
    assert isinstance(caught.value, AirflowFailException)
    assert caught.value.__cause__ is not None
    assert str(caught.value.__cause__) in str(caught.value)
    assert type(caught.value.__cause__).__name__ in str(caught.value)
    return caught.value.__cause__


def row(stamp: str | None = "2026-01-12T12:00:00.000Z", **fields: Any) -> dict[str, Any]:
    values = ("person", 1, STREET, 1, "starter-ai", "1768176000000", "a.mp4", stamp)
    return {**dict(zip(KEYS, values, strict=True)), **fields}


# ---- readers that are not ours -------------------------------------------------------------------


def query(sql: str, *values: Any) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        result = connection.execute(sql, values)
        names = [column[0] for column in result.description]
        return [dict(zip(names, found, strict=True)) for found in result.fetchall()]


def read_typed(path: Path) -> list[dict[str, Any]]:
    """Read Parquet or CSV with DuckDB; stamps as epoch milliseconds."""
    # Without the keys of the folders: what is in the file alone.
    options = "hive_partitioning = false"
    source = f"read_parquet(?, {options})" if path.suffix == ".parquet" else f"read_csv(?, {options}, header = true)"
    return query(f"SELECT * REPLACE (epoch_ms(timestamp) AS timestamp) FROM {source}", str(path))


def typed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def stamp(record: dict[str, Any]) -> int:
        return round(datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00")).timestamp() * 1000)

    return [{**record, "timestamp": stamp(record), "extra": None} for record in records]


def read_json(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in content.splitlines()]
    return json.loads(content)


def assert_holds(path: Path, records: list[dict[str, Any]]) -> None:
    """Assert that a file of any format holds the rows, in their order."""
    if ".json" in path.name:
        assert read_json(path) == records
    elif path.suffix == ".parquet":
        assert read_typed(path) == typed(records)
    else:
        # As text: a reader would guess the types of a column that is null in all rows.
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        found = list(csv.DictReader(text.splitlines()))
        shown = [{**record, "count": float(record["count"])} for record in records]
        assert found == [{**{key: str(record[key]) for key in KEYS}, "extra": ""} for record in shown]


# ---- lists ---------------------------------------------------------------------------------------


def test_the_devices_are_the_accounts_in_its_order(serve):
    sim = serve(devices=("W2", "W1", "W3"))
    assert make(UnleashListDevicesOperator).execute(make_context()) == sim.devices == ["W2", "W1", "W3"]


def test_a_list_needs_no_interval(serve):
    serve()
    assert make(UnleashListDevicesOperator).execute(make_context(None))
    assert make(UnleashListSessionsOperator).execute(make_context(None))


def test_another_connection_is_another_account(serve, connect):
    serve(devices=("W1",))
    with Simulator(devices=("W2",)) as other:
        connect(conn_id="unleash_other", host=other.base_url, password=other.api_key)
        operator = make(UnleashListDevicesOperator, unleash_conn_id="unleash_other")
        assert operator.execute(make_context()) == ["W2"]


def test_without_bounds_the_sessions_are_all_of_the_account(serve):
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000)
    found = make(UnleashListSessionsOperator).execute(make_context())
    assert found == sim.sessions()
    assert len(found) > 12


@pytest.mark.parametrize("spell", [str, int, lambda ms: pendulum.from_timestamp(ms / 1000)])
def test_a_session_at_since_is_listed_and_one_at_until_is_not(serve, spell):
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000)
    sessions = sim.sessions()
    since, until = spell(int(sessions[2])), spell(int(sessions[5]))
    list_sessions = make(UnleashListSessionsOperator, since=since, until=until)
    assert list_sessions.execute(make_context()) == sessions[2:5]


@pytest.mark.parametrize(("bounds", "wanted"), [({"since": 3}, slice(3, None)), ({"until": 3}, slice(3))])
def test_one_bound_alone_filters_by_that_one_only(serve, bounds, wanted):
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000)
    sessions = sim.sessions()
    bounds = {name: sessions[index] for name, index in bounds.items()}
    assert make(UnleashListSessionsOperator, **bounds).execute(make_context()) == sessions[wanted]


@pytest.mark.parametrize("nothing", ["", "None", None])
def test_a_bound_that_renders_to_nothing_does_not_filter(serve, nothing):
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000)
    assert make(UnleashListSessionsOperator, since=nothing, until=nothing).execute(make_context()) == sim.sessions()


def test_sessions_keep_the_order_of_the_api(answer):
    answer(b'["1768180000000", "1768179000000", "1768181000000"]')
    found = make(UnleashListSessionsOperator, since=1768179000000).execute(make_context())
    assert found == ["1768180000000", "1768179000000", "1768181000000"]


def test_ids_that_are_no_starts_are_an_error_only_where_a_bound_needs_them(answer):
    answer(b'["1768180000000", "s-4711"]')
    assert make(UnleashListSessionsOperator).execute(make_context()) == ["1768180000000", "s-4711"]
    with pytest.raises(AirflowFailException, match="s-4711") as caught:
        make(UnleashListSessionsOperator, until=NEXT_DAY).execute(make_context())
    assert isinstance(fail(caught), errors.UnexpectedResponseError)


# ---- rows to XCom ----------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize("device_id", [STREET, CROWD])
def test_the_rows_are_exactly_those_of_the_interval_in_the_order_of_the_api(serve, endpoint, device_id):
    sim = serve()
    expected = day_of(sim, device_id)
    assert len(expected) > 200
    assert fetch(device_id=device_id, endpoint=endpoint) == expected
    prefix = "/v1/analytics/tableau/" if endpoint == "tableau" else "/v1/analytics/W"
    assert all(request.path.startswith(prefix) for request in sim.requests)


def test_rows_that_lack_a_key_lack_it_in_xcom_too(serve):
    short = {"timestamp": "2026-01-12T12:00:00.000Z", "class_name": "person"}
    serve(rows={STREET: [row(), short]})
    assert fetch(endpoint="tableau") == [row(), short]


@pytest.mark.parametrize("options", [{"nulls": True}, {"reorder_keys": True}, {"new_key": "confidence"}])
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_nulls_new_keys_and_keys_in_another_order_pass(serve, options, endpoint):
    sim = serve(**options)
    assert fetch(endpoint=endpoint) == day_of(sim)


def test_rows_larger_than_the_limit_stop_the_fetching_and_name_the_operator_for_them(serve):
    sim = serve(page_size=5, extra={"mask_stream_tokens": False, "page_concurrency": 2})
    pages = -(-len(day_of(sim)) // 5)
    with pytest.raises(AirflowFailException, match="UnleashToObjectStorageOperator") as caught:
        fetch(max_xcom_bytes=5000)
    error = fail(caught)
    assert isinstance(error, errors.ResultTooLargeError)
    assert error.limit == 5000
    assert len(sim.requests) < pages / 4


def test_rows_of_exactly_the_limit_pass_and_one_byte_more_does_not(serve):
    sim = serve()
    limit = len(json.dumps(day_of(sim)))
    assert fetch(max_xcom_bytes=limit) == day_of(sim)
    with pytest.raises(AirflowFailException, match="max_xcom_bytes"):
        fetch(max_xcom_bytes=limit - 1)


def test_no_rows_are_an_empty_list(serve):
    serve()
    assert fetch(device_id=SILENT) == []


# ---- rows to storage -------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_each_format_holds_exactly_the_rows_of_the_interval(serve, lake, file_format, compression, endpoint):
    sim = serve()
    summary = store(lake, file_format=file_format, compression=compression, endpoint=endpoint)
    extension = file_format + (".gz" if compression else "")
    [(name, content)] = files_in(lake).items()
    assert name == f"device={STREET}/start_date=2026-01-12/{TIMES}.{extension}"
    assert_holds(lake / name, day_of(sim))
    assert summary["files"][0]["bytes"] == len(content)
    assert summary["rows"] == len(day_of(sim))


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_the_summary_has_the_documented_keys_and_values_and_is_small(serve, lake, file_format, compression):
    sim = serve()
    rows = len(day_of(sim))
    pages = -(-rows // 20)
    summary = store(f"file://{lake}", file_format=file_format, compression=compression, endpoint="tableau")
    [(name, content)] = files_in(lake).items()
    assert 0 < summary["seconds"] < 10
    assert summary == {
        "device_id": STREET,
        "start": "2026-01-12T00:00:00.000Z",
        "end": "2026-01-13T00:00:00.000Z",
        "window_rule": "data_interval",
        "endpoint": "tableau",
        "file_format": file_format,
        "pages": pages,
        "rows": rows,
        "rows_before_start": 0,
        "rows_after_end": 0,
        "rows_at_end": 0,
        "seconds": summary["seconds"],
        "requests": pages + 2,  # the first and the last page are read again at the end
        "retries": 0,
        "throttled_seconds": 0,
        "resumed_pages": 0,
        "files": [
            {"path": f"file://{lake}/{name}", "url": f"file://{lake}/{name}", "rows": rows, "bytes": len(content)}
        ],
    }
    assert list(summary) == [
        *("device_id", "start", "end", "window_rule", "endpoint", "file_format", "pages", "rows"),
        *("rows_before_start", "rows_after_end", "rows_at_end"),
        *("seconds", "requests", "retries", "throttled_seconds", "resumed_pages", "files"),
    ]
    assert len(json.dumps(summary)) < 1024


@pytest.mark.parametrize("fault", [Fault("500", times=3), Fault("429", times=3, retry_after=0)])
def test_the_summary_counts_what_the_extraction_took(serve, lake, fault):
    sim = serve(faults=[fault])
    summary = store(lake)
    assert summary["retries"] == 3
    assert summary["requests"] == len(sim.requests) == summary["pages"] + 2 + 3


def test_seconds_for_which_the_api_asked_to_wait_are_in_the_summary(serve, lake):
    serve(faults=[Fault("429", page=2, retry_after=0.3)])
    summary = store(lake)
    assert 0.2 < summary["throttled_seconds"] < 0.6
    assert summary["seconds"] >= summary["throttled_seconds"]


def test_the_default_format_is_json_lines(serve, lake):
    serve()
    assert store(lake)["file_format"] == "jsonl"


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [
        ("2026-01-12T00:00:00Z", "2026-01-12T01:00:00Z", "start_date=2026-01-12/20260112T000000Z_20260112T010000Z"),
        (DAY_START + 1, DAY_START + 20, "start_date=2026-01-12/20260112T000000.001Z_20260112T000000.020Z"),
        (DAY_START + 500, DAY_END, "start_date=2026-01-12/20260112T000000.500Z_20260113T000000Z"),
        ("2026-01-12T00:30:00+01:00", DAY, "start_date=2026-01-11/20260111T233000Z_20260112T000000Z"),
        (DAY, DAY, "start_date=2026-01-12/20260112T000000Z_20260112T000000Z"),
        ("2026-01-12T00:00:00.0019Z", NEXT_DAY, "start_date=2026-01-12/20260112T000000.001Z_20260113T000000Z"),
    ],
)
def test_the_path_is_made_of_the_windows_bounds_in_utc(serve, lake, start, end, name):
    serve()
    store(lake, start=start, end=end)
    assert list(files_in(lake)) == [f"device={STREET}/{name}.jsonl"]


def test_a_device_id_is_percent_encoded_in_path_and_request(serve, lake):
    sim = serve(devices=("Kamera 1: Süd=?",))
    store(lake, device_id="Kamera 1: Süd=?")
    assert list(files_in(lake)) == [
        f"device=Kamera%201%3A%20S%C3%BCd%3D%3F/start_date=2026-01-12/{TIMES}.jsonl",
    ]
    assert sim.requests[0].path == f"/v1/analytics/Kamera%201%3A%20S%C3%BCd%3D%3F/{DAY_START}/{DAY_END}/1"


@pytest.mark.parametrize("spell", ["{}", "file://{}", "{}/", "file://{}/"])
def test_the_folder_can_be_a_path_or_a_file_url(serve, lake, spell):
    serve()
    [file] = store(spell.format(lake))["files"]
    [(name, content)] = files_in(lake).items()
    assert file["url"] == f"file://{lake}/{name}"
    assert ObjectStoragePath(file["path"]).read_bytes() == content


def test_the_folder_can_be_an_object_storage_path(serve, lake):
    serve()
    operator = make(UnleashToObjectStorageOperator, device_id=STREET, dst=ObjectStoragePath(f"file://{lake}"))
    operator.execute(make_context())
    assert len(files_in(lake)) == 1


def test_a_tree_of_parquet_is_read_with_device_and_date_as_columns(serve, lake):
    sim = serve()
    for device_id in (STREET, CROWD):
        for day in (DAY, NEXT_DAY):
            context = make_context((day, day + timedelta(days=1)))
            store(lake, context, device_id=device_id, file_format="parquet")
    found = query(
        "SELECT device, CAST(start_date AS VARCHAR) AS day, count(*) AS n, sum(count) AS total "
        "FROM read_parquet(?, hive_partitioning = true) GROUP BY ALL ORDER BY ALL",
        f"{lake}/**/*.parquet",
    )
    expected = []
    for device_id in sorted((STREET, CROWD)):
        for number, day in enumerate(("2026-01-12", "2026-01-13")):
            rows = sim.rows(device_id, DAY_START + number * DAY_MS, DAY_END + number * DAY_MS - 1)
            total = sum(record["count"] for record in rows)
            expected.append({"device": device_id, "day": day, "n": len(rows), "total": total})
    assert found == expected


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_the_same_window_twice_is_the_same_object_byte_for_byte(serve, lake, file_format, compression):
    serve()
    store(lake, file_format=file_format, compression=compression)
    before = files_in(lake)
    store(lake, file_format=file_format, compression=compression)
    assert files_in(lake) == before


def test_a_rerun_replaces_its_own_object_and_nothing_else(serve, lake):
    serve()
    windows = [(DAY, NEXT_DAY), (NEXT_DAY, NEXT_DAY + timedelta(days=1)), (DAY, DAY + HOUR * 12)]
    for interval in windows:
        for device_id in (STREET, CROWD):
            for file_format in ("jsonl", "csv"):
                store(lake, make_context(interval), device_id=device_id, file_format=file_format)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in everything_in(lake) if path.is_file()}
    assert len(before) == 12
    serve(rows={STREET: [row()]})
    store(lake)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in everything_in(lake) if path.is_file()}
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {lake / f"device={STREET}/start_date=2026-01-12/{TIMES}.jsonl"}
    assert_holds(changed.pop(), [row()])


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_a_new_key_lands_in_extra_and_changes_no_column(serve, lake, endpoint, caplog):
    sim = serve(new_key="confidence", new_key_page=3)
    store(lake, file_format="parquet", endpoint=endpoint)
    [name] = files_in(lake)
    assert pq.read_schema(lake / name).names == [*KEYS, "extra"]
    found = query("SELECT CAST(extra->>'confidence' AS DOUBLE) AS confidence FROM read_parquet(?)", str(lake / name))
    assert [each["confidence"] for each in found] == [record.get("confidence") for record in day_of(sim)]
    assert found[0]["confidence"] is None
    assert found[-1]["confidence"] is not None
    assert len([entry for entry in caplog.records if "confidence" in entry.getMessage()]) == 1


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
def test_a_declared_key_has_a_column_of_its_own_at_the_end(serve, lake, file_format):
    sim = serve(new_key="confidence", new_key_page=3)
    store(lake, file_format=file_format, column_types={"confidence": "float64"})
    [name] = files_in(lake)
    found = read_typed(lake / name)
    assert list(found[0]) == [*KEYS, "extra", "confidence"]
    assert [each["confidence"] for each in found] == [record.get("confidence") for record in day_of(sim)]
    assert {each["extra"] for each in found} == {None}


def test_parquet_has_the_documented_types_with_and_without_rows(serve, lake):
    serve()
    store(lake, file_format="parquet")
    store(lake, file_format="parquet", device_id=SILENT)
    schemas = [pq.read_schema(lake / name) for name in files_in(lake)]
    expected = {key: pa.string() for key in KEYS} | {
        "count": pa.float64(),
        "frame_number": pa.int64(),
        "timestamp": pa.timestamp("ms", tz="UTC"),
        "extra": pa.string(),
    }
    assert [dict(zip(schema.names, schema.types, strict=True)) for schema in schemas] == [expected] * 2
    assert [schema.names for schema in schemas] == [[*KEYS, "extra"]] * 2


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("field", "value"), [("count", "many"), ("frame_number", 1.5), ("timestamp", "noon"), ("class_name", 7)]
)
def test_a_value_that_does_not_fit_its_column_is_named_with_page_row_and_field(serve, lake, file_format, field, value):
    serve(rows={STREET: [row(frame_number=number) for number in range(25)] + [row(**{field: value})]})
    with pytest.raises(AirflowFailException) as caught:
        store(lake, file_format=file_format)
    error = fail(caught)
    assert isinstance(error, errors.UnexpectedResponseError)
    assert (error.page, error.row, error.field, error.value) == (2, 5, field, value)
    assert repr(value) in str(error)
    assert "jsonl" in str(error)
    assert everything_in(lake) == []
    store(lake, file_format="jsonl")
    assert len(files_in(lake)) == 1


# ---- the window of a run -----------------------------------------------------------------------------


def asked(sim: Simulator) -> tuple[int, int]:
    """Return the window that the first page was asked for."""
    _, start, end, _ = sim.requests[0].path.rsplit("/", 3)
    return int(start), int(end)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (DAY, NEXT_DAY),
        ("2026-01-12", "2026-01-13"),
        ("2026-01-12T00:00:00", "2026-01-13 00:00:00"),
        ("2026-01-12T01:00:00+01:00", "2026-01-12T19:00:00-05:00"),
        (str(DAY_START), str(DAY_END)),
        (DAY_START, DAY_END),
        (datetime(2026, 1, 12), pendulum.datetime(2026, 1, 13)),
        ("20260112T000000Z", "20260113T000000Z"),
    ],
)
def test_start_and_end_win_over_all_else_of_the_run(serve, lake, start, end):
    sim = serve()
    context = make_context((DAY - timedelta(days=5), DAY - timedelta(days=4)), partition_date=NEXT_DAY)
    summary = store(lake, context, start=start, end=end, window=timedelta(days=1))
    assert asked(sim) == (DAY_START, DAY_END)
    assert summary["window_rule"] == "start_end"


def test_bounds_finer_than_a_millisecond_are_floored_everywhere(serve, lake):
    sim = serve()
    start = DAY + timedelta(microseconds=1999)
    summary = store(lake, start=start, end=NEXT_DAY + timedelta(microseconds=999))
    assert asked(sim) == (DAY_START + 1, DAY_END)
    assert summary["start"] == "2026-01-12T00:00:00.001Z"
    assert summary["end"] == "2026-01-13T00:00:00.000Z"


@pytest.mark.parametrize("nothing", [None, "", "None"])
def test_the_data_interval_is_next_also_where_start_and_end_render_to_nothing(serve, lake, nothing):
    sim = serve()
    context = make_context(partition_date=DAY - timedelta(days=9))
    summary = store(lake, context, start=nothing, end=nothing, window=nothing)
    assert asked(sim) == (DAY_START, DAY_END)
    assert summary["window_rule"] == "data_interval"


@pytest.mark.parametrize(("window", "warnings"), [(timedelta(days=7), 1), (timedelta(hours=23), 0), (None, 0)])
def test_a_window_far_from_the_interval_is_warned_of_with_both_named(serve, lake, caplog, window, warnings):
    serve()
    assert store(lake, window=window)["window_rule"] == "data_interval"
    said = [entry.getMessage() for entry in caplog.records if "data interval wins" in entry.getMessage()]
    assert len(said) == warnings
    assert all("1 day" in text and "7 days" in text for text in said)


@pytest.mark.parametrize("interval", [None, (NEXT_DAY, NEXT_DAY)])
def test_a_partition_date_with_a_window_begins_the_window(serve, lake, interval):
    sim = serve()
    summary = store(lake, make_context(interval, partition_date=DAY), window=timedelta(days=1))
    assert asked(sim) == (DAY_START, DAY_END)
    assert summary["window_rule"] == "partition_date"


@pytest.mark.parametrize(
    "context",
    [
        make_context((NEXT_DAY, NEXT_DAY), logical_date=DAY, run_after=DAY),
        make_context(None, logical_date=NEXT_DAY, run_after=DAY),
        make_context(None, run_after=NEXT_DAY),
    ],
    ids=["empty interval", "logical date", "run_after"],
)
@pytest.mark.parametrize("window", [timedelta(days=1), pendulum.duration(days=1), "P1D", "PT24H"])
def test_a_window_reaches_back_from_the_moment_of_the_run(serve, lake, context, window):
    sim = serve()
    assert store(lake, context, window=window)["window_rule"] == "window"
    assert asked(sim) == (DAY_START, DAY_END)


@pytest.mark.parametrize(("window", "hours"), [(timedelta(days=1), 23), (timedelta(hours=24), 23), ("PT6H", 6)])
def test_whole_days_are_calendar_days_of_the_dags_timezone(serve, lake, window, hours):
    sim = serve()
    # On 29 March 2026 clocks went from 2 to 3 in the morning.
    vienna = pendulum.timezone("Europe/Vienna")
    moment = datetime(2026, 3, 30, tzinfo=vienna)
    store(lake, make_context(None, run_after=moment, dag_timezone=vienna), window=window)
    start, end = asked(sim)
    assert end == moment.timestamp() * 1000
    assert (end - start) // HOUR_MS == hours


def test_a_partition_of_which_airflow_tells_no_date_is_not_taken_for_the_day_of_the_run(serve, lake):
    sim = serve()
    context = make_context(None, run_after=NEXT_DAY)
    context["dag_run"].partition_key = "2025-12-24"
    with pytest.raises(AirflowFailException) as caught:
        store(lake, context, window=timedelta(days=1))
    assert isinstance(caught.value.__cause__, errors.WindowError)
    assert "2025-12-24" in str(caught.value)
    assert sim.requests == []


@pytest.mark.parametrize("operator", FETCHERS)
@pytest.mark.parametrize(
    "context",
    [
        make_context(None, run_type="manual", run_after=NEXT_DAY),
        make_context(None, run_type="asset_triggered", run_after=NEXT_DAY),
        make_context((NEXT_DAY, NEXT_DAY), logical_date=NEXT_DAY),
        make_context((NEXT_DAY, DAY)),
        make_context(None, partition_date=DAY),
    ],
    ids=["manual", "asset", "empty interval", "backward interval", "partition date"],
)
def test_a_run_without_a_window_fails_at_once_with_the_three_ways_out(serve, lake, operator, context):
    sim = serve()
    more = {} if operator is UnleashGetAnalyticsOperator else {"dst": str(lake)}
    with pytest.raises(AirflowFailException) as caught:
        make(operator, device_id=STREET, **more).execute(context)
    error = fail(caught)
    assert isinstance(error, errors.WindowError)
    for words in ("@daily", "CronDataIntervalTimetable", "window=", "start="):
        assert words in str(error)
    assert sim.requests == []
    assert not lake.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": DAY}, "end is missing"),
        ({"end": DAY}, "start is missing"),
        ({"start": DAY, "end": ""}, "end is missing"),
        ({"start": NEXT_DAY, "end": DAY}, "is after end"),
        ({"start": 1_768_176_000, "end": 1_768_262_400}, "seconds\\?"),
        ({"start": "1768176000", "end": "1768262400"}, "seconds\\?"),
        ({"start": "yesterday", "end": "today"}, "ISO 8601"),
    ],
)
def test_bounds_that_make_no_window_fail_before_any_request(serve, lake, arguments, words):
    sim = serve()
    with pytest.raises((AirflowFailException, ValueError), match=words) as caught:
        store(lake, **arguments)
    error = caught.value if isinstance(caught.value, ValueError) else fail(caught)
    assert isinstance(error, errors.InvalidArgumentError)
    assert sim.requests == []
    assert not lake.exists()


def test_a_start_equal_to_its_end_is_asked_for_and_drops_nothing(serve, lake):
    sim = serve(rows={STREET: [row("2026-01-12T00:00:00.000Z")]})
    summary = store(lake, start=DAY, end=DAY)
    assert asked(sim) == (DAY_START, DAY_START)
    assert (summary["rows"], summary["rows_at_end"]) == (1, 0)


def test_rows_stamped_exactly_at_the_end_are_dropped_and_counted(serve, lake):
    stamps = ["2026-01-12T23:59:59.999Z", "2026-01-13T00:00:00.000Z", "2026-01-13T01:00:00.000+01:00"]
    serve(rows={STREET: [row(stamp) for stamp in stamps]})
    summary = store(lake)
    assert (summary["rows"], summary["rows_at_end"], summary["files"][0]["rows"]) == (1, 2, 1)
    assert_holds(lake / next(iter(files_in(lake))), [row(stamps[0])])
    assert fetch() == [row(stamps[0])]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_rows_stamped_outside_the_window_are_kept_and_counted(serve, lake, file_format):
    # The API's own example has rows stamped 27 s before the window.
    sim = serve(selection_lag_ms=27_000)
    expected = sim.rows(STREET, DAY_START, DAY_END)
    summary = store(lake, file_format=file_format)
    before = [record for record in expected if record["timestamp"] < "2026-01-12"]
    assert summary["rows_before_start"] == len(before)
    assert summary["rows"] == len(expected)
    assert_holds(lake / next(iter(files_in(lake))), expected)


@pytest.mark.parametrize(
    ("lag", "kept", "counts"),
    [
        (0, ["inside", "last", "none"], (0, 0, 1)),
        (1, ["early", "inside", "last", "none"], (1, 0, 0)),
        (-1, ["last", "late", "none"], (0, 1, 1)),
    ],
)
def test_every_row_but_those_at_the_end_is_kept_whatever_the_api_selects_by(serve, lake, lag, kept, counts):
    stamps = {
        "early": "2026-01-11T23:59:59.999Z",
        "inside": "2026-01-12T00:00:00.000Z",
        "last": "2026-01-12T23:59:59.999Z",
        "end": "2026-01-13T00:00:00.000Z",
        "late": "2026-01-13T00:00:00.001Z",
        "none": None,
    }
    rows = {name: row(stamp, class_name=name) for name, stamp in stamps.items()}
    serve(rows={STREET: list(rows.values())}, selection_lag_ms=lag)
    summary = store(lake)
    assert [record["class_name"] for record in read_json(lake / next(iter(files_in(lake))))] == kept
    assert (summary["rows_before_start"], summary["rows_after_end"], summary["rows_at_end"]) == counts
    assert summary["rows"] == len(kept)


def test_neighbouring_windows_hold_every_row_exactly_once(serve, lake):
    stamps = [f"2026-01-12T{hour:02}:{rest}Z" for hour in range(24) for rest in ("00:00.000", "30:00.000", "59:59.999")]
    rows = [row(stamp, frame_number=number) for number, stamp in enumerate(stamps)]
    serve(rows={STREET: rows})
    for hour in range(24):
        interval = (DAY + hour * HOUR, DAY + (hour + 1) * HOUR)
        assert store(lake, make_context(interval))["rows"] == 3
    found = [record for name in files_in(lake) for record in read_json(lake / name)]
    assert sorted(found, key=lambda record: record["frame_number"]) == rows


def test_a_page_of_nothing_but_rows_at_the_end_is_no_reason_to_doubt_the_device(serve, lake):
    sim = serve(rows={STREET: [row("2026-01-13T00:00:00.000Z")]})
    summary = store(lake)
    assert (summary["rows"], summary["rows_at_end"]) == (0, 1)
    assert len(sim.requests) == 1


# ---- no rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty_total", [0, 1])
@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_a_silent_device_lands_as_an_empty_object_of_its_format(serve, lake, file_format, compression, empty_total):
    serve(empty_total=empty_total)
    summary = store(lake, device_id=SILENT, file_format=file_format, compression=compression)
    [(name, content)] = files_in(lake).items()
    assert (summary["rows"], summary["files"][0]["rows"], summary["files"][0]["bytes"]) == (0, 0, len(content))
    if file_format == "parquet":
        assert query("SELECT * FROM read_parquet(?)", str(lake / name)) == []
    elif file_format == "csv":
        text = (gzip.decompress(content) if compression else content).decode()
        assert text == ",".join([*KEYS, "extra"]) + "\r\n"
    else:
        assert read_json(lake / name) == []


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_skip_skips_the_task_and_writes_nothing(serve, lake, file_format, compression):
    serve()
    with pytest.raises(AirflowSkipException, match=SILENT):
        store(lake, device_id=SILENT, on_empty="skip", file_format=file_format, compression=compression)
    assert everything_in(lake) == []


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_fail_is_an_error_that_airflow_retries_and_writes_nothing(serve, lake, file_format, compression):
    serve()
    with pytest.raises(errors.EmptyResultError, match=SILENT):
        store(lake, device_id=SILENT, on_empty="fail", file_format=file_format, compression=compression)
    assert everything_in(lake) == []


def test_no_rows_for_xcom_skip_or_fail_as_asked(serve):
    serve()
    with pytest.raises(AirflowSkipException):
        fetch(device_id=SILENT, on_empty="skip")
    with pytest.raises(errors.EmptyResultError):
        fetch(device_id=SILENT, on_empty="fail")


@pytest.mark.parametrize("on_empty", ["skip", "fail"])
def test_a_device_with_rows_is_neither_skipped_nor_failed(serve, lake, on_empty):
    sim = serve()
    assert fetch(on_empty=on_empty) == day_of(sim)
    assert store(lake, on_empty=on_empty)["rows"] == len(day_of(sim))


@pytest.mark.parametrize("unknown_device", ["404", "empty"])
@pytest.mark.parametrize("on_empty", ["succeed", "skip", "fail"])
def test_an_unknown_device_is_never_taken_for_a_silent_one(serve, lake, unknown_device, on_empty):
    serve(unknown_device=unknown_device)
    with pytest.raises(AirflowFailException, match="W0000000000000000") as caught:
        store(lake, device_id="W0000000000000000", on_empty=on_empty)
    assert isinstance(fail(caught), errors.NotFoundError)
    assert everything_in(lake) == []
    with pytest.raises(AirflowFailException) as caught:
        fetch(device_id="W0000000000000000", on_empty=on_empty)
    assert isinstance(fail(caught), errors.NotFoundError)


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_no_rows_never_replace_rows_unless_told_to(serve, lake, file_format, compression):
    serve()
    arguments = {"file_format": file_format, "compression": compression}
    store(f"file://{lake}", **arguments)
    before = files_in(lake)
    serve(rows={STREET: []})
    with pytest.raises(AirflowFailException, match="replace_with_empty") as caught:
        store(f"file://{lake}", **arguments)
    error = fail(caught)
    assert isinstance(error, errors.EmptyReplacementError)
    assert error.path == f"file://{lake}/{next(iter(before))}"
    assert files_in(lake) == before
    assert store(lake, **arguments, replace_with_empty=True)["rows"] == 0
    assert list(files_in(lake)) == list(before)
    assert len(files_in(lake)[next(iter(before))]) < len(before[next(iter(before))])


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_no_rows_replace_no_rows_and_rows_replace_no_rows(serve, lake, file_format, compression):
    serve(rows={STREET: []})
    arguments = {"file_format": file_format, "compression": compression}
    store(lake, **arguments)
    store(lake, **arguments)
    serve(rows={STREET: [row()]})
    store(lake, **arguments)
    assert_holds(lake / next(iter(files_in(lake))), [row()])


@pytest.mark.parametrize("on_empty", ["skip", "fail"])
def test_an_empty_answer_that_skips_or_fails_leaves_the_object_as_it_was(serve, lake, on_empty):
    serve()
    store(lake)
    before = files_in(lake)
    serve(rows={STREET: []})
    with pytest.raises((AirflowSkipException, errors.EmptyResultError)):
        store(lake, on_empty=on_empty, replace_with_empty=True)
    assert files_in(lake) == before


# ---- what goes wrong ---------------------------------------------------------------------------------


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


FAULTS = {
    # fault: (error, whether Airflow retries)
    Fault("401", times=None): (errors.AuthenticationError, False),
    Fault("403", times=None, page=3): (errors.AuthenticationError, False),
    Fault("404", times=None, page=3): (errors.NotFoundError, False),
    Fault("400", times=None, page=3): (errors.BadRequestError, False),
    Fault("redirect", times=None, page=3): (errors.BadRequestError, False),
    Fault("wrong_shape", times=None, page=3): (errors.UnexpectedResponseError, False),
    Fault("500", times=None, page=3): (errors.ServerError, True),
    Fault("503", times=None, page=3): (errors.ServerError, True),
    Fault("408", times=None, page=3): (errors.ServerError, True),
    Fault("429", times=None, page=3): (errors.RateLimitError, True),
    Fault("429", times=None, page=3, retry_after=3600): (errors.RateLimitError, True),
    Fault("html", times=None, page=3): (errors.TransportError, True),
    Fault("garbage", times=None, page=3): (errors.TransportError, True),
    Fault("half_body", times=None, page=3): (errors.TransportError, True),
    Fault("reset", times=None, page=3): (errors.TransportError, True),
    Fault("slow", times=None, page=3, seconds=1): (errors.TransportError, True),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind} {fault.retry_after or ''}".strip())
@pytest.mark.parametrize("operator", FETCHERS)
def test_a_lasting_fault_is_its_typed_error_and_leaves_nothing_behind(serve, lake, operator, fault):
    timeout = 0.2 if fault.kind == "slow" else 30
    serve(faults=[fault], extra={"mask_stream_tokens": False, "max_attempts": 2, "timeout": timeout})
    expected, retried = FAULTS[fault]
    more = {} if operator is UnleashGetAnalyticsOperator else {"dst": str(lake), "file_format": "parquet"}
    with pytest.raises((AirflowFailException, errors.UnleashError)) as caught:
        make(operator, device_id=STREET, **more).execute(make_context())
    assert type(caught.value if retried else fail(caught)) is expected
    assert everything_in(lake) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind} {fault.retry_after or ''}".strip())
@pytest.mark.parametrize(("file_format", "compression"), [("jsonl", "gzip"), ("parquet", None)])
def test_a_failed_rewrite_keeps_the_previous_object_as_it_was(serve, connect, lake, fault, file_format, compression):
    arguments = {"file_format": file_format, "compression": compression}
    sim = serve()
    store(lake, **arguments)
    before, paths = files_in(lake), everything_in(lake)
    sim.add_fault(fault)
    timeout = 0.2 if fault.kind == "slow" else 30
    connect(host=sim.base_url, password=sim.api_key, extra={"max_attempts": 2, "timeout": timeout})
    with pytest.raises((AirflowFailException, errors.UnleashError)):
        store(lake, **arguments)
    assert files_in(lake) == before
    assert everything_in(lake) == paths


@pytest.mark.parametrize(
    "fault",
    [
        Fault("500", times=2),
        Fault("503", times=1, retry_after=0),
        Fault("429", times=2, retry_after=0),
        Fault("429", times=1, retry_after="date:0"),
        Fault("reset", times=2),
        Fault("half_body", times=2),
        Fault("html", times=2),
        Fault("garbage", times=2),
        Fault("500", times=4, probability=0.5),
    ],
    ids=lambda fault: f"{fault.kind} {fault.retry_after or ''} {fault.probability}",
)
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_a_passing_fault_changes_no_row(serve, lake, fault, endpoint):
    sim = serve(faults=[fault])
    store(lake, file_format="parquet", endpoint=endpoint)
    assert_holds(lake / next(iter(files_in(lake))), day_of(sim))
    assert any(request.fault for request in sim.requests)


def test_a_wrong_key_is_asked_with_once(serve, connect):
    sim = serve()
    connect(host=sim.base_url, password="ul_pat_expired")
    for operator in (UnleashListDevicesOperator, UnleashListSessionsOperator):
        sim.clear_requests()
        with pytest.raises(AirflowFailException, match="expires") as caught:
            make(operator).execute(make_context())
        assert isinstance(fail(caught), errors.AuthenticationError)
        assert len(sim.requests) == 1


def test_a_dead_host_is_left_to_airflows_retries(connect, lake):
    connect(host=f"http://127.0.0.1:{free_port()}", password="key", extra={"max_attempts": 2})
    with pytest.raises(errors.TransportError, match="Check host, port, proxy and firewall") as caught:
        store(lake)
    assert caught.value.reason == "connection"
    assert everything_in(lake) == []


def test_an_http_url_that_is_not_loopback_fails_for_good_before_any_request(connect, lake):
    connect(host="http://eu.example.com", password="key")
    with pytest.raises(AirflowFailException, match="unencrypted") as caught:
        store(lake)
    assert isinstance(fail(caught), errors.InvalidArgumentError)
    assert everything_in(lake) == []


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_redirect_is_not_followed_and_the_key_reaches_no_other_origin(serve, lake, elsewhere):
    with Simulator(api_keys=["other-key"]) as other:
        location = f"{other.base_url}/v1/analytics/devices" if elsewhere else ""
        sim = serve(faults=[Fault("redirect", times=None, location=location)])
        for operator in (make(UnleashListDevicesOperator), make(UnleashGetAnalyticsOperator, device_id=STREET)):
            sim.clear_requests()
            with pytest.raises(AirflowFailException) as caught:
                operator.execute(make_context())
            error = fail(caught)
            assert isinstance(error, errors.BadRequestError)
            assert error.location in str(error)
            assert error.location.startswith(other.base_url if elsewhere else "http://localhost:")
            assert len(sim.requests) == 1
        assert other.requests == []


def test_a_refusal_with_a_long_wait_frees_the_worker_and_carries_the_wait(serve):
    sim = serve(faults=[Fault("429", times=None, retry_after=3600)])
    with pytest.raises(errors.RateLimitError) as caught:
        fetch()
    assert caught.value.retry_after == 3600
    assert len(sim.requests) == 1


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_pages_that_grow_for_a_while_are_read_again_from_the_first(serve, lake, endpoint, caplog):
    sim = serve(growing=200)
    summary = store(lake, endpoint=endpoint)
    assert_holds(lake / next(iter(files_in(lake))), day_of(sim))
    assert summary["rows"] == len(day_of(sim))
    assert summary["pages"] == -(-len(day_of(sim)) // 20)
    assert "starting the window again" in caplog.text
    sim = serve(growing=200)
    assert fetch(endpoint=endpoint) == day_of(sim)


@pytest.mark.parametrize("operator", FETCHERS)
def test_pages_that_never_stop_growing_are_a_changed_snapshot_after_four_readings(serve, lake, operator):
    sim = serve(growing=1, extra={"mask_stream_tokens": False, "page_concurrency": 1})
    more = {} if operator is UnleashGetAnalyticsOperator else {"dst": str(lake)}
    with pytest.raises(errors.SnapshotChangedError):
        make(operator, device_id=STREET, **more).execute(make_context())
    assert everything_in(lake) == []
    first_pages = [request for request in sim.requests if request.path.endswith("/1")]
    assert 4 <= len(first_pages) <= 8  # each reading, and some again at its end


# ---- going on where the last try ended --------------------------------------------------------------


def asked_pages(sim: Simulator) -> list[int]:
    return [int(request.path.rpartition("/")[2]) for request in sim.requests if request.path.count("/") > 4]


def staged(lake: Path) -> list[str]:
    return [path.name for path in sorted((lake / "_staging").rglob("*.pages"))]


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_a_retry_writes_the_same_object_and_asks_for_the_rest_only(serve, lake, endpoint, file_format, compression):
    sim = serve(extra={"max_attempts": 1, "page_concurrency": 1})
    arguments = {"endpoint": endpoint, "file_format": file_format, "compression": compression}
    whole = store(lake / "whole", **arguments)
    pages = whole["pages"]
    sim.add_fault(Fault("500", page=8))
    with pytest.raises(errors.ServerError):
        store(lake, checkpoint_pages=3, **arguments)
    assert staged(lake) == ["00000.pages", "00001.pages"]
    sim.clear_requests()
    summary = store(lake, checkpoint_pages=3, **arguments)
    assert asked_pages(sim) == [1, pages, *range(7, pages), 1, pages]
    assert summary["resumed_pages"] == 5
    assert {**summary, **whole} | {"files": 0} == {**whole, "files": 0}
    (name, content), (again, content_again) = files_in(lake).items()
    assert again == f"whole/{name}"
    assert content_again == content
    assert not (lake / "_staging").exists()


def test_readers_of_the_tree_see_nothing_of_what_is_put_aside(serve, lake):
    sim = serve(extra={"max_attempts": 1})
    store(lake, device_id=CROWD, file_format="parquet")
    sim.add_fault(Fault("500", page=8))
    with pytest.raises(errors.ServerError):
        store(lake, checkpoint_pages=3, file_format="parquet")
    assert staged(lake)
    devices = duckdb.sql(f"SELECT DISTINCT device FROM '{lake}/**/*.parquet'").fetchall()
    assert devices == [(CROWD,)]
    assert pq.ParquetDataset(lake).read(["device"]).column("device").unique().to_pylist() == [CROWD]


def test_pages_that_changed_are_not_put_aside_for_the_next_reading(serve, lake):
    sim = serve(growing=100, extra={"page_concurrency": 1})
    summary = store(lake, checkpoint_pages=2)
    assert summary["rows"] == len(day_of(sim))
    assert summary["resumed_pages"] == 0
    assert not (lake / "_staging").exists()


@pytest.mark.parametrize("off", [{"checkpoint_pages": None}, {"resume_within": None}])
def test_nothing_is_put_aside_where_that_is_switched_off(serve, lake, off):
    sim = serve(extra={"max_attempts": 1})
    sim.add_fault(Fault("500", page=8))
    with pytest.raises(errors.ServerError):
        store(lake, **{"checkpoint_pages": 3, **off})
    assert everything_in(lake) == []


@pytest.mark.parametrize("resume_within", ["PT1H", timedelta(hours=1)])
def test_how_long_pages_are_used_can_be_said_as_a_text_too(serve, lake, resume_within, monkeypatch):
    sim = serve(extra={"max_attempts": 1})
    for hours, resumed in ((0.9, 5), (1.1, 0)):
        sim.add_fault(Fault("500", page=8))
        with monkeypatch.context() as patch:
            earlier = time.time() - hours * 3600
            patch.setattr("airflow_provider_unleash.core.staging.time.time", lambda earlier=earlier: earlier)
            with pytest.raises(errors.ServerError):
                store(lake, checkpoint_pages=3)
        summary = store(lake, checkpoint_pages=3, resume_within=resume_within)
        assert summary["resumed_pages"] == resumed


# ---- arguments ---------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"device_id": ""}, "device_id"),
    ({"device_id": "a/b"}, "device_id"),
    ({"device_id": ".."}, "device_id"),
    ({"device_id": "a\nb"}, "device_id"),
    ({"start": "yesterday", "end": NEXT_DAY}, "start"),
    ({"start": DAY, "end": "2026-13-01"}, "end"),
    ({"start": 1_768_176_000, "end": NEXT_DAY}, "start"),
    ({"window": "one day"}, "window"),
    ({"window": timedelta(0)}, "window"),
    ({"window": timedelta(days=-1)}, "window"),
    ({"window": 24}, "window"),
    ({"endpoint": "odata"}, "endpoint"),
    ({"on_empty": "ignore"}, "on_empty"),
]
BAD_LITERALS = [({"checkpoint_pages": 0}, "checkpoint_pages"), ({"checkpoint_pages": "200"}, "checkpoint_pages")]
BAD_STORAGE_ARGUMENTS = [
    ({"resume_within": timedelta(0)}, "resume_within"),
    ({"resume_within": "a day"}, "resume_within"),
    ({"file_format": "xml"}, "file_format"),
    ({"compression": "zip"}, "compression"),
    ({"file_format": "parquet", "compression": "gzip"}, "compression"),
    ({"column_types": {"count": "int64"}}, "column_types"),
    ({"column_types": {"extra": "string"}}, "column_types"),
    ({"column_types": {"device": "string"}}, "column_types"),
    ({"column_types": {"confidence": "decimal"}}, "column_types"),
    ({"dst": ""}, "dst"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD_ARGUMENTS, ids=str)
@pytest.mark.parametrize("operator", FETCHERS)
def test_a_literal_that_cannot_be_used_is_a_value_error_when_the_dag_is_parsed(operator, arguments, named):
    more = {} if operator is UnleashGetAnalyticsOperator else {"dst": "file:///lake"}
    with pytest.raises(ValueError, match=named) as caught:
        make(operator, **{"device_id": STREET, **more, **arguments})
    assert caught.value.argument == named


@pytest.mark.parametrize(("arguments", "named"), [*BAD_LITERALS, *BAD_STORAGE_ARGUMENTS], ids=str)
def test_a_literal_about_storage_that_cannot_be_used_is_a_value_error_too(arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        make(UnleashToObjectStorageOperator, **{"device_id": STREET, "dst": "file:///lake", **arguments})
    assert caught.value.argument == named


@pytest.mark.parametrize(
    "arguments",
    [{"start": DAY}, {"end": DAY}, {"start": NEXT_DAY, "end": DAY}, {"start": "2026-01-12", "end": ""}],
    ids=str,
)
@pytest.mark.parametrize("operator", FETCHERS)
def test_literal_bounds_that_make_no_window_are_seen_when_the_dag_is_parsed(operator, arguments):
    more = {} if operator is UnleashGetAnalyticsOperator else {"dst": "file:///lake"}
    with pytest.raises(ValueError, match="start"):
        make(operator, device_id=STREET, **more, **arguments)


@pytest.mark.parametrize("argument", ["since", "until"])
@pytest.mark.parametrize("value", ["yesterday", 1_768_176_000])
def test_literal_bounds_of_sessions_are_checked_when_the_dag_is_parsed(argument, value):
    with pytest.raises(ValueError, match=argument):
        make(UnleashListSessionsOperator, **{argument: value})


@pytest.mark.parametrize(("arguments", "named"), [*BAD_ARGUMENTS, *BAD_STORAGE_ARGUMENTS], ids=str)
def test_a_template_that_renders_to_such_a_value_fails_for_good_before_any_request(serve, lake, arguments, named):
    sim = serve()
    good = {"device_id": STREET, "dst": str(lake)}
    operator = make(UnleashToObjectStorageOperator, **good, **dict.fromkeys(arguments.keys() - good, "{{ ds }}"))
    for name, value in arguments.items():  # as rendering does
        setattr(operator, name, value)
    with pytest.raises(AirflowFailException, match=named) as caught:
        operator.execute(make_context())
    error = fail(caught)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.argument == named
    assert sim.requests == []
    assert everything_in(lake) == []


@pytest.mark.parametrize("operator", FETCHERS)
def test_constructing_an_operator_asks_nobody(serve, operator, lake):
    sim = serve()
    more = {} if operator is UnleashGetAnalyticsOperator else {"dst": str(lake)}
    made = make(operator, device_id=STREET, **more)
    for name in made.template_fields:
        getattr(made, name)
    assert sim.requests == []
    assert not lake.exists()


OPERATORS = [
    value
    for value in vars(module).values()
    if inspect.isclass(value) and issubclass(value, BaseOperator) and value.__name__.startswith("Unleash")
]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_parameter_is_documented_as_templated_exactly_where_it_is(operator):
    documented = re.findall(r":param (\w+):(.*?)(?=\n\s*:|\Z)", inspect.getdoc(operator), re.DOTALL)
    assert {name for name, text in documented if "(templated)" in text} == set(operator.template_fields)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_parameter_is_documented_and_has_an_attribute_of_its_name(operator):
    documented = re.findall(r":param (\w+):", inspect.getdoc(operator))
    parameters = {
        name
        for base in operator.__mro__[: operator.__mro__.index(BaseOperator)]
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert set(documented) == parameters
    assert len(documented) == len(parameters)
    arguments = {"device_id": STREET, "dst": "file:///lake", "device_ids": [STREET], "every": "day"}
    made = make(operator, **{name: value for name, value in arguments.items() if name in parameters})
    # Before 3.3 Airflow has no such thing, and ours is not set.
    assert all(hasattr(made, name) for name in parameters - {"retry_policy"})


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_parameter_takes_a_name_that_airflow_uses(operator):
    taken = set(inspect.signature(BaseOperator.__init__).parameters) - {"self", "kwargs"}
    own = set(re.findall(r":param (\w+):", inspect.getdoc(operator)))
    # The policy is Airflow's own argument, named again for the sake of default_args.
    assert own & taken <= {"retry_policy"}


# ---- stream tokens -----------------------------------------------------------------------------------


def texts_of(lake: Path, sim: Simulator) -> dict[str, str]:
    """Fetch the street camera's day in every way and return what came as text."""
    texts = {"xcom": json.dumps(fetch()), "tableau": json.dumps(fetch(endpoint="tableau"))}
    for file_format, compression in FORMATS:
        store(lake, file_format=file_format, compression=compression)
    for name, content in files_in(lake).items():
        if name.endswith(".gz"):
            texts[name] = gzip.decompress(content).decode()
        elif name.endswith(".parquet"):
            texts[name] = json.dumps(pq.read_table(lake / name).column("source_file_name").to_pylist())
        else:
            texts[name] = content.decode()
    assert len(texts) == 2 + len(FORMATS)
    return texts


@pytest.mark.parametrize("masked", [True, "true"])
def test_masked_tokens_are_in_no_output_and_no_warning_is_given(serve, lake, caplog, masked):
    sim = serve(extra={"mask_stream_tokens": masked})
    [token] = {record["source_file_name"].partition(TOKEN)[2] for record in day_of(sim)}
    for name, text in texts_of(lake, sim).items():
        assert token not in text, name
        assert f"{STREET}?token=***" in text, name
    assert "stream tokens" not in caplog.text


@pytest.mark.parametrize("kept", [False, "false"])
def test_kept_tokens_are_in_every_output_without_a_warning(serve, lake, caplog, kept):
    sim = serve(extra={"mask_stream_tokens": kept})
    [source] = {record["source_file_name"] for record in day_of(sim)}
    for name, text in texts_of(lake, sim).items():
        assert source in text, name
    assert "stream tokens" not in caplog.text


@pytest.mark.parametrize("unset", [{"mask_stream_tokens": None}, {"mask_stream_tokens": ""}])
@pytest.mark.parametrize("options", [{}, {"growing": 200}])
def test_unset_keeps_tokens_and_warns_once_a_run_of_what_they_open_and_how_to_choose(serve, caplog, unset, options):
    sim = serve(extra=unset, **options)
    assert fetch() == day_of(sim)
    warnings = [entry for entry in caplog.records if "mask_stream_tokens" in entry.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].levelno == logging.WARNING
    assert "live stream" in warnings[0].getMessage()
    assert not {record["source_file_name"].partition(TOKEN)[2] for record in day_of(sim)} & {warnings[0].getMessage()}


def test_unset_does_not_warn_where_no_tokens_are(serve, caplog):
    serve(extra={"mask_stream_tokens": None})
    fetch(device_id="W41f0c6e7a9d2b38")  # a camera of recordings
    assert "mask_stream_tokens" not in caplog.text


# ---- real runs ---------------------------------------------------------------------------------------

RETRIES = "retries=2, retry_delay=timedelta(0)"


@pytest.mark.slow
def test_a_second_try_of_a_run_goes_on_where_the_first_ended(airflow_home, serve, lake):
    sim = serve(extra={"max_attempts": 1, "page_concurrency": 1}, faults=[Fault("500", page=9)])
    run = run_dag(
        airflow_home,
        f"""
        UnleashToObjectStorageOperator(
            task_id="extract", device_id="{STREET}", dst="file://{lake}", checkpoint_pages=4, {RETRIES}
        )
        """,
    )
    assert (run.states, run.tries) == ({"extract": "success"}, {"extract": 2})
    summary = run.xcoms["extract"]
    pages = summary["pages"]
    assert asked_pages(sim) == [1, pages, *range(2, 10), 1, pages, *range(9, pages), 1, pages]
    assert summary["resumed_pages"] == 7
    assert_holds(next(lake.rglob("*.jsonl")), day_of(sim))


def test_devices_from_one_task_are_mapped_to_an_object_each(airflow_home, serve, lake):
    sim = serve()
    run = run_dag(
        airflow_home,
        f"""
        devices = UnleashListDevicesOperator(task_id="devices")
        extract = UnleashToObjectStorageOperator.partial(
            task_id="extract", dst="file://{lake}", file_format="parquet", on_empty="skip"
        ).expand(device_id=devices.output)

        @task(trigger_rule="none_failed")
        def add_up(summaries):
            return sum(summary["rows"] for summary in summaries)

        add_up(extract.output)
        """,
    )
    assert run.state == "success"
    assert run.xcoms["devices"] == sim.devices
    assert run.xcoms["add_up"] == sum(len(day_of(sim, device_id)) for device_id in sim.devices)
    for index, device_id in enumerate(sim.devices):
        if device_id == SILENT:
            assert run.states["extract", index] == "skipped"
            continue
        [file] = run.xcoms["extract", index]["files"]
        assert run.states["extract", index] == "success"
        assert run.xcoms["extract", index]["device_id"] == device_id
        assert file["path"] == f"file://{lake}/device={device_id}/start_date=2026-01-12/{TIMES}.parquet"
        assert_holds(Path(file["path"].removeprefix("file://")), day_of(sim, device_id))
    assert len(files_in(lake)) == len(sim.devices) - 1


def test_rows_and_sessions_reach_the_next_task_through_xcom(airflow_home, serve):
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000 + 7200)
    run = run_dag(
        airflow_home,
        f"""
        rows = UnleashGetAnalyticsOperator(task_id="rows", device_id={STREET!r})
        sessions = UnleashListSessionsOperator(
            task_id="sessions", since="{{{{ data_interval_start }}}}", until="{{{{ data_interval_end }}}}"
        )

        @task
        def count(records, ids):
            return [len(records), sum(record["count"] for record in records), len(ids)]

        count(rows.output, sessions.output)
        """,
    )
    sessions = [session for session in sim.sessions() if DAY_START <= int(session) < DAY_END]
    assert run.state == "success"
    assert run.xcoms["rows"] == day_of(sim)
    assert run.xcoms["sessions"] == sessions
    assert run.xcoms["count"] == [len(day_of(sim)), sum(record["count"] for record in day_of(sim)), len(sessions)]
    assert len(sessions) < len(sim.sessions())


TEMPLATED = {
    "unleash_conn_id": "unleash_other",
    "device_id": STREET,
    "start": "2026-01-12T00:00:00+00:00",
    "end": "2026-01-12T06:00:00+00:00",
    "window": "PT6H",
    "endpoint": "tableau",
    "on_empty": "skip",
    "dst": "",  # a test's own folder
    "file_format": "csv",
    "compression": "gzip",
    "column_types": {"confidence": "float64"},
    "resume_within": "PT1H",
}


def test_every_template_field_is_rendered_before_it_is_used(airflow_home, serve, connect, lake):
    assert set(UnleashToObjectStorageOperator.template_fields) == set(TEMPLATED)
    sim = serve(new_key="confidence", new_key_page=1)
    connect(conn_id="unleash_other", host=sim.base_url, password=sim.api_key)
    connect(host="http://127.0.0.1:1", password="not this one")
    params = {**TEMPLATED, "dst": str(lake)}
    templates = {name: f"{{{{ params.{name} }}}}" for name in params if name != "column_types"}
    templates["column_types"] = {"confidence": "{{ params.column_types.confidence }}"}
    run = run_dag(
        airflow_home,
        f'UnleashToObjectStorageOperator(task_id="extract", **{templates!r})',
        arguments=f"schedule=None, params={params!r}",
    )
    assert run.state == "success"
    assert run.xcoms["extract"]["endpoint"] == "tableau"
    [name] = files_in(lake)
    assert name == f"device={STREET}/start_date=2026-01-12/20260112T000000Z_20260112T060000Z.csv.gz"
    header, first, *_ = gzip.decompress((lake / name).read_bytes()).decode().splitlines()
    assert header == ",".join([*KEYS, "extra", "confidence"])
    assert float(first.rpartition(",")[2]) > 0
    assert sim.requests[0].path == f"/v1/analytics/tableau/{STREET}/{DAY_START}/{DAY_START + 6 * HOUR_MS}/1"


def test_a_template_in_column_types_is_no_literal_when_the_dag_is_parsed():
    operator = make(
        UnleashToObjectStorageOperator,
        device_id=STREET,
        dst="file:///lake",
        column_types={"confidence": "{{ params.type }}"},
    )
    assert operator.column_types == {"confidence": "{{ params.type }}"}


def test_a_rendered_window_and_an_object_storage_path_work_in_a_run(airflow_home, serve, lake):
    sim = serve()
    run = run_dag(
        airflow_home,
        f"""
        from airflow.providers.common.compat.sdk import ObjectStoragePath
        UnleashToObjectStorageOperator(
            task_id="extract", device_id={STREET!r}, window="{{{{ params.length }}}}", on_empty="succeed",
            dst=ObjectStoragePath("file://{lake}"),
        )
        """,
        arguments='schedule=None, params={"length": "PT6H"}',
    )
    assert run.state == "success"
    assert run.xcoms["extract"]["window_rule"] == "window"
    assert asked(sim) == (DAY_END - 6 * HOUR_MS, DAY_END)


def test_a_passing_failure_is_retried_by_airflow(airflow_home, serve, lake):
    sim = serve(extra={"mask_stream_tokens": False, "max_attempts": 1}, faults=[Fault("503", page=2)])
    run = run_dag(
        airflow_home,
        f'UnleashToObjectStorageOperator(task_id="extract", device_id={STREET!r}, dst={str(lake)!r}, {RETRIES})',
    )
    assert (run.state, run.tries["extract"]) == ("success", 2)
    assert_holds(lake / next(iter(files_in(lake))), day_of(sim))


def test_what_repeating_cannot_help_fails_on_the_first_try_and_the_rest_is_retried(airflow_home, serve, connect, lake):
    sim = serve(key="right-key", extra={"mask_stream_tokens": False, "max_attempts": 1})
    strict = Simulator(unknown_device="404", api_keys=["right-key"])
    redirecting = Simulator(faults=[Fault("redirect", times=None)])
    with strict, redirecting:
        connect(conn_id="wrong_key", host=sim.base_url, password="wrong-key")
        connect(conn_id="strict", host=strict.base_url, password="right-key")
        connect(conn_id="redirecting", host=redirecting.base_url, password=redirecting.api_key)
        connect(conn_id="plain_http", host="http://eu.example.com", password="right-key")
        connect(conn_id="dead_host", host=f"http://127.0.0.1:{free_port()}", password="k", extra={"max_attempts": 1})
        run = run_dag(
            airflow_home,
            f"""
            common = dict(dst={str(lake)!r}, {RETRIES})
            Store = UnleashToObjectStorageOperator
            Store(task_id="wrong_key", device_id={STREET!r}, unleash_conn_id="wrong_key", **common)
            Store(task_id="unknown_404", device_id="W000", unleash_conn_id="strict", **common)
            Store(task_id="unknown_empty", device_id="W000", **common)
            Store(task_id="redirect", device_id={STREET!r}, unleash_conn_id="redirecting", **common)
            Store(task_id="http", device_id={STREET!r}, unleash_conn_id="plain_http", **common)
            Store(task_id="template", device_id="{{{{ '../devices' }}}}", **common)
            start, end = "{{{{ data_interval_start }}}}", "{{{{ data_interval_end }}}}"
            Store(task_id="bounds", device_id={STREET!r}, start=end, end=start, **common)
            UnleashGetAnalyticsOperator(task_id="too_large", device_id={STREET!r}, max_xcom_bytes=10, {RETRIES})
            UnleashListDevicesOperator(task_id="list", unleash_conn_id="wrong_key", {RETRIES})
            Store(task_id="dead_host", device_id={STREET!r}, unleash_conn_id="dead_host", **common)
            Store(task_id="late", device_id={SILENT!r}, on_empty="fail", **common)
            """,
        )
        assert len(redirecting.requests) == 1
        assert len(strict.requests) == 1
    assert set(run.states.values()) == {"failed"}
    assert run.tries == {**dict.fromkeys(run.tries, 1), "dead_host": 3, "late": 3}
    assert len([request for request in sim.requests if request.status == 403]) == 2
    assert everything_in(lake) == []
    assert run.xcoms == {}


def test_one_bad_device_among_mapped_ones_fails_alone_and_on_its_first_try(airflow_home, serve, lake):
    sim = serve()
    run = run_dag(
        airflow_home,
        f"""
        UnleashToObjectStorageOperator.partial(task_id="extract", dst={str(lake)!r}, {RETRIES}).expand(
            device_id=[{STREET!r}, "W000", "../devices", {CROWD!r}]
        )
        """,
    )
    assert [run.states["extract", index] for index in range(4)] == ["success", "failed", "failed", "success"]
    assert [run.tries["extract", index] for index in range(4)] == [1, 1, 1, 1]
    assert len(files_in(lake)) == 2
    assert not any("devices" in name for name in files_in(lake))
    assert len(sim.requests) > 2


def test_mapped_devices_from_a_task_are_checked_like_literal_ones(airflow_home, serve, lake):
    serve(devices=(STREET, "a/b"))
    run = run_dag(
        airflow_home,
        f"""
        devices = UnleashListDevicesOperator(task_id="devices")
        UnleashToObjectStorageOperator.partial(
            task_id="extract", dst={str(lake)!r}, {RETRIES}
        ).expand(device_id=devices.output)
        """,
    )
    assert [run.states["extract", index] for index in range(2)] == ["success", "failed"]
    assert [run.tries["extract", index] for index in range(2)] == [1, 1]
    assert len(files_in(lake)) == 1


def test_all_arguments_of_the_window_can_be_mapped(airflow_home, serve, lake):
    sim = serve()
    run = run_dag(
        airflow_home,
        f"""
        hours = ["2026-01-12T06:00:00Z", "2026-01-12T07:00:00Z", "2026-01-12T08:00:00Z"]
        UnleashToObjectStorageOperator.partial(
            task_id="extract", device_id={STREET!r}, dst={str(lake)!r}
        ).expand_kwargs([dict(start=start, end=end) for start, end in zip(hours, hours[1:])])
        """,
    )
    assert run.state == "success"
    assert [run.xcoms["extract", index]["rows"] for index in range(2)] == [
        len(sim.rows(STREET, DAY_START + hour * HOUR_MS, DAY_START + (hour + 1) * HOUR_MS - 1)) for hour in (6, 7)
    ]


def test_a_run_that_means_no_window_fails_on_its_first_try(airflow_home, serve, lake):
    sim = serve()
    task = f'UnleashToObjectStorageOperator(task_id="extract", device_id={STREET!r}, dst={str(lake)!r}, {RETRIES})'
    run = run_dag(airflow_home, task, arguments="schedule=None")
    assert (run.states["extract"], run.tries["extract"]) == ("failed", 1)
    if has_runs_without_dates(DAG("any", schedule=None)):
        run = run_dag(airflow_home, task, None)
        assert (run.states["extract"], run.tries["extract"]) == ("failed", 1)
    assert sim.requests == []
    assert everything_in(lake) == []


def test_a_run_without_a_logical_date_takes_its_window_up_to_run_after(airflow_home, serve, lake):
    if not has_runs_without_dates(DAG("any", schedule=None)):
        pytest.skip("this Airflow gives every run a logical date")
    sim = serve()
    run = run_dag(
        airflow_home,
        f"""
        UnleashToObjectStorageOperator(
            task_id="extract", device_id={STREET!r}, dst={str(lake)!r}, window=timedelta(hours=1)
        )
        """,
        None,
    )
    start, end = asked(sim)
    assert run.state == "success"
    assert end - start == HOUR_MS
    assert abs(end / 1000 - datetime.now().timestamp()) < 60


def test_two_dags_that_land_the_same_window_leave_one_object(airflow_home, serve, lake):
    serve()
    task = f'UnleashToObjectStorageOperator(task_id="extract", device_id={STREET!r}, dst={str(lake)!r})'
    summaries = [run_dag(airflow_home, task).xcoms["extract"] for _ in range(2)]
    assert summaries[0]["files"] == summaries[1]["files"]
    assert len(files_in(lake)) == 1
