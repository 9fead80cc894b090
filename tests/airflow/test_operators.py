"""Operators return or write exactly the rows of a run's window, or fail with a helpful error and leave nothing."""

from __future__ import annotations

import functools
import gzip
import inspect
import json
import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pendulum
import pyarrow.parquet as pq
import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, BaseOperator, ObjectStoragePath

from airflow_provider_unleash import exceptions as errors
from airflow_provider_unleash import operators as module
from airflow_provider_unleash.core.extract import MAX_XCOM_DEPTH
from airflow_provider_unleash.operators import (
    UnleashAccountToObjectStorageOperator,
    UnleashGetAnalyticsOperator,
    UnleashListDevicesOperator,
    UnleashListSessionsOperator,
    UnleashToObjectStorageOperator,
)
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.simulator import KEYS, Fault, Simulator
from tests.support.dag_runs import has_runs_without_dates, run_dag
from tests.support.expected_rows import contents_in, files_in
from tests.support.not_retried import not_retried
from tests.support.pages import in_file, read_records
from tests.support.sample_day import CROWD, DAY, DAY_END, DAY_START, HOUR_MS, NEXT_DAY, SILENT, STREET, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

TIMES = "20260112T000000Z_20260113T000000Z"
FORMATS = [
    *(("jsonl", None), ("jsonl", "gzip"), ("json", None), ("json", "gzip")),
    *(("csv", None), ("csv", "gzip"), ("parquet", None)),
]
DEVICE_FETCHERS = (UnleashGetAnalyticsOperator, UnleashToObjectStorageOperator)
FETCHERS = (*DEVICE_FETCHERS, UnleashAccountToObjectStorageOperator)
TOKEN = "?token="

prints_errors_once = pytest.mark.skipif(
    airflow_version.startswith(("2.", "3.0.")),
    reason="Airflow 2 prints errors of dag.test() twice, 3.0 wraps them with the variables of all frames",
)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Return a folder that does not exist yet."""
    return tmp_path / "lake"


def make(operator: type[BaseOperator], lake: Path | str = "/lake", **arguments: Any) -> BaseOperator:
    """Return an operator; a fetch operator gets a street camera and this folder by default."""
    if operator in DEVICE_FETCHERS:
        arguments = {"device_id": STREET, **arguments}
    if operator in (UnleashToObjectStorageOperator, UnleashAccountToObjectStorageOperator):
        arguments = {"dst": str(lake), **arguments}
    return operator(task_id="test", **arguments)


def fetch(context: dict[str, Any] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    """Return the rows of a street camera's day."""
    return make(UnleashGetAnalyticsOperator, **arguments).execute(context or make_context())


def store(lake: Path | str, context: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Write a street camera's day and return the summary."""
    return make(UnleashToObjectStorageOperator, lake, **arguments).execute(context or make_context())


def day_of(sim: Simulator, device_id: str = STREET) -> list[dict[str, Any]]:
    """Return the rows of the day, without those stamped at its end."""
    return sim.rows(device_id, DAY_START, DAY_END - 1)


def requested_window(sim: Simulator) -> tuple[int, int]:
    """Return the window of the first request."""
    _, start, end, _ = sim.requests[0].path.rsplit("/", 3)
    return int(start), int(end)


def requested_pages(sim: Simulator) -> list[int]:
    return [int(request.path.rpartition("/")[2]) for request in sim.requests if request.path.count("/") > 4]


def row(stamp: str | None = "2026-01-12T12:00:00.000Z", **fields: Any) -> dict[str, Any]:
    values = ("person", 1, STREET, 1, "starter-ai", "1768176000000", "a.mp4", stamp)
    return {**dict(zip(KEYS, values, strict=True)), **fields}


def unpack(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def assert_has_rows(path: Path, records: list[dict[str, Any]]) -> None:
    """Assert that a file of any format has these rows in this order."""
    file_format = path.name.removesuffix(".gz").rpartition(".")[2]
    assert read_records(unpack(path), file_format) == [in_file(record, file_format) for record in records]


# ---- lists ---------------------------------------------------------------------------------------


def test_devices_are_those_of_the_connections_account_in_its_order(serve, connect):
    sim = serve(devices=("W2", "W1", "W3"))
    assert make(UnleashListDevicesOperator).execute(make_context(None)) == sim.devices == ["W2", "W1", "W3"]
    with Simulator(devices=("W4",)) as other:
        connect(conn_id="unleash_other", host=other.base_url, password=other.api_key)
        list_devices = make(UnleashListDevicesOperator, unleash_conn_id="unleash_other")
        assert list_devices.execute(make_context(None)) == ["W4"]


@pytest.fixture
def sessions(serve) -> list[str]:
    """Serve an account with a day of sessions, and return them."""
    found = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000).sessions()
    assert len(found) > 12
    return found


def list_sessions(**bounds: Any) -> list[str]:
    return make(UnleashListSessionsOperator, **bounds).execute(make_context(None))


@pytest.mark.parametrize("nothing", ["", "None", None])
def test_without_bounds_all_sessions_are_listed(sessions, nothing):
    assert list_sessions(since=nothing, until=nothing) == sessions


@pytest.mark.parametrize("write", [str, int, lambda ms: pendulum.from_timestamp(ms / 1000)])
def test_a_session_at_since_is_listed_and_one_at_until_is_not(sessions, write):
    since, until = write(int(sessions[2])), write(int(sessions[5]))
    assert list_sessions(since=since, until=until) == sessions[2:5]
    assert list_sessions(since=since) == sessions[2:]
    assert list_sessions(until=until) == sessions[:5]


def test_sessions_keep_the_order_of_the_api(answer):
    answer(b'["1768180000000", "1768179000000", "1768181000000"]')
    assert list_sessions(since=1768179000000) == ["1768180000000", "1768179000000", "1768181000000"]


def test_a_session_id_that_is_not_a_number_is_skipped_with_a_warning_if_there_is_a_bound(answer, caplog):
    answer(b'["1768180000000", "s-4711"]')
    assert list_sessions() == ["1768180000000", "s-4711"]
    assert list_sessions(until=NEXT_DAY) == ["1768180000000"]
    assert "'s-4711'" in caplog.text


def test_a_device_or_session_that_the_api_lists_twice_is_returned_once(answer):
    answer(b'["W2", "W1", "W2"]')
    assert make(UnleashListDevicesOperator).execute(make_context()) == ["W2", "W1"]
    answer(b'["1768180000000", "1768179000000", "1768180000000"]')
    assert list_sessions() == ["1768180000000", "1768179000000"]


# ---- rows to XCom ----------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize("device_id", [STREET, CROWD, SILENT])
def test_rows_in_xcom_are_exactly_those_of_the_interval_in_the_apis_order(serve, endpoint, device_id):
    sim = serve()
    expected = day_of(sim, device_id)
    assert (len(expected) > 200) == (device_id != SILENT)
    assert fetch(device_id=device_id, endpoint=endpoint) == expected
    assert ("/tableau/" in sim.requests[0].path) == (endpoint == "tableau")


def test_rows_of_exactly_the_limit_are_returned_and_one_byte_more_is_an_error(serve):
    sim = serve()
    limit = len(json.dumps(day_of(sim)))
    assert fetch(max_xcom_bytes=limit) == day_of(sim)
    with not_retried(errors.ResultTooLargeError, match="max_xcom_bytes"):
        fetch(max_xcom_bytes=limit - 1)


# ---- rows to storage -------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_each_format_has_exactly_the_rows_of_the_interval_and_a_small_documented_summary(
    serve, lake, file_format, compression, endpoint
):
    sim = serve()
    rows = len(day_of(sim))
    pages = -(-rows // 20)
    summary = store(f"file://{lake}", file_format=file_format, compression=compression, endpoint=endpoint)
    [(name, content)] = contents_in(lake).items()
    extension = file_format + (".gz" if compression else "")
    assert name == f"device={STREET}/start_date=2026-01-12/{TIMES}.{extension}"
    assert_has_rows(lake / name, day_of(sim))
    assert 0 < summary["seconds"] < 60
    expected = {
        "device_id": STREET,
        "start": "2026-01-12T00:00:00.000Z",
        "end": "2026-01-13T00:00:00.000Z",
        "window_rule": "data_interval",
        "endpoint": endpoint,
        "file_format": file_format,
        "pages": pages,
        "rows": rows,
        "rows_before_start": 0,
        "rows_after_end": 0,
        "rows_at_end": 0,
        "rows_of_other_devices": 0,
        "seconds": summary["seconds"],
        "requests": pages + 2,  # the first and the last page are read again at the end
        "retries": 0,
        "throttled_seconds": 0,
        "resumed_pages": 0,
        "overlapping_windows": 0,
        "files": [
            {"path": f"file://{lake}/{name}", "url": f"file://{lake}/{name}", "rows": rows, "bytes": len(content)}
        ],
    }
    assert summary == expected
    assert len(json.dumps(summary)) < 1024


@pytest.mark.parametrize("fault", [Fault("500", times=3), Fault("429", times=3, retry_after=0)])
def test_the_summary_and_the_log_count_requests_and_retries(serve, lake, fault, caplog, capfd):
    sim = serve(faults=[fault])
    summary = store(lake)
    assert summary["retries"] == 3
    assert summary["requests"] == len(sim.requests) == summary["pages"] + 2 + 3
    log = caplog.text + capfd.readouterr().out  # Airflow 3 prints the log of a task
    size = summary["files"][0]["bytes"]
    assert f"Wrote {summary['rows']} rows to {lake}" in log
    assert f". Pages: {summary['pages']}, bytes: {size}, seconds: " in log
    assert f"requests: {summary['requests']}, retries: 3, throttled seconds: " in log


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://{}/"])
@pytest.mark.parametrize("kind", [str, ObjectStoragePath])
def test_the_folder_can_be_a_local_path_or_a_file_url(serve, lake, form, kind):
    serve()
    dst = form.format(lake)
    summary = store(lake, dst=kind(dst))
    assert summary["file_format"] == "jsonl"
    [file] = summary["files"]
    [(name, content)] = contents_in(lake).items()
    assert file["url"] == f"file://{lake}/{name}"
    assert ObjectStoragePath(file["path"]).read_bytes() == content


def test_a_rerun_replaces_its_own_object_and_nothing_else(serve, lake):
    def content_and_times() -> dict[Path, tuple[int, bytes]]:
        return {lake / name: ((lake / name).stat().st_mtime_ns, content) for name, content in contents_in(lake).items()}

    serve()
    for days, hours in ((0, 24), (1, 24), (0, 12)):
        start = DAY + timedelta(days=days)
        for device_id in (STREET, CROWD):
            store(lake, make_context((start, start + timedelta(hours=hours))), device_id=device_id)
    before = content_and_times()
    assert len(before) == 6
    serve(rows={STREET: [row()]})
    store(lake)
    after = content_and_times()
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {lake / f"device={STREET}/start_date=2026-01-12/{TIMES}.jsonl"}
    assert_has_rows(changed.pop(), [row()])


# ---- the window of a run -----------------------------------------------------------------------------


def test_bounds_are_floored_to_milliseconds_in_request_summary_and_name(serve, lake):
    sim = serve()
    summary = store(lake, start=DAY + timedelta(microseconds=1999), end=NEXT_DAY + timedelta(microseconds=999))
    assert requested_window(sim) == (DAY_START + 1, DAY_END)
    assert (summary["start"], summary["end"]) == ("2026-01-12T00:00:00.001Z", "2026-01-13T00:00:00.000Z")
    [name] = files_in(lake)
    assert name.endswith("/20260112T000000.001Z_20260113T000000Z.jsonl")


@pytest.mark.parametrize(
    ("context", "rule"),
    [
        (make_context(partition_date=DAY - timedelta(days=9)), "data_interval"),
        (make_context(None, partition_date=DAY), "partition_date"),
        (make_context((NEXT_DAY, NEXT_DAY), partition_date=DAY), "partition_date"),
        (make_context((DAY, DAY), logical_date=NEXT_DAY, run_after=DAY), "window"),
        (make_context(None, logical_date=NEXT_DAY, run_after=DAY), "window"),
        (make_context(None, run_after=NEXT_DAY), "window"),
    ],
)
@pytest.mark.parametrize(
    ("window", "nothing"),
    [(timedelta(days=1), None), (pendulum.duration(days=1), ""), ("P1D", "None"), ("PT24H", None)],
)
def test_without_start_and_end_the_run_gives_the_window(serve, lake, context, rule, window, nothing):
    sim = serve()
    summary = store(lake, context, start=nothing, end=nothing, window=window)
    assert requested_window(sim) == (DAY_START, DAY_END)
    assert summary["window_rule"] == rule


@pytest.mark.parametrize(("window", "hours"), [(timedelta(days=1), 23), ("PT6H", 6)])
def test_whole_days_are_calendar_days_of_the_dags_timezone(serve, lake, window, hours):
    sim = serve()
    # On 29 March 2026, clocks went from 2 to 3 in the morning.
    vienna = pendulum.timezone("Europe/Vienna")
    moment = datetime(2026, 3, 30, tzinfo=vienna)
    store(lake, make_context(None, run_after=moment, dag_timezone=vienna), window=window)
    start, end = requested_window(sim)
    assert end == moment.timestamp() * 1000
    assert (end - start) // HOUR_MS == hours


def test_a_run_for_a_partition_of_unknown_date_has_no_window(serve, lake):
    sim = serve()
    context = make_context(None, run_after=NEXT_DAY)
    context["dag_run"].partition_key = "2025-12-24"
    with not_retried(errors.WindowError, match="2025-12-24"):
        store(lake, context, window=timedelta(days=1))
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
def test_a_run_without_a_window_fails_before_any_request_with_three_ways_to_give_one(serve, lake, operator, context):
    sim = serve()
    with not_retried(errors.WindowError) as caught:
        make(operator, lake).execute(context)
    for words in ("@daily", "CronDataIntervalTimetable", "window=", "start="):
        assert words in str(caught.value)
    assert sim.requests == []
    assert not lake.exists()


def test_rows_stamped_at_the_end_are_dropped_and_counted(serve, lake):
    stamps = ["2026-01-12T23:59:59.999Z", "2026-01-13T00:00:00.000Z", "2026-01-13T01:00:00.000+01:00"]
    serve(rows={STREET: [row(stamp) for stamp in stamps]})
    summary = store(lake)
    assert (summary["rows"], summary["rows_at_end"], summary["files"][0]["rows"]) == (1, 2, 1)
    [name] = files_in(lake)
    assert_has_rows(lake / name, [row(stamps[0])])
    assert fetch() == [row(stamps[0])]


def test_a_device_with_rows_only_at_the_end_is_not_looked_up(serve, lake):
    sim = serve(rows={STREET: [row("2026-01-13T00:00:00.000Z")]})
    summary = store(lake)
    assert (summary["rows"], summary["rows_at_end"]) == (0, 1)
    assert len(sim.requests) == 1


# ---- no rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_empty", "error"), [("skip", AirflowSkipException), ("fail", errors.EmptyResultError)])
def test_on_empty_can_skip_or_fail_the_task_and_then_nothing_changes(serve, lake, on_empty, error):
    sim = serve()
    assert fetch(on_empty=on_empty) == day_of(sim)
    assert store(lake, on_empty=on_empty)["rows"] == len(day_of(sim))
    before = contents_in(lake)
    with pytest.raises(error, match=SILENT):
        fetch(device_id=SILENT, on_empty=on_empty)
    with pytest.raises(error, match=SILENT):
        store(lake, device_id=SILENT, on_empty=on_empty)
    serve(rows={STREET: []})
    with pytest.raises(error, match=STREET):
        store(lake, on_empty=on_empty, replace_with_empty=True)
    assert contents_in(lake) == before


# ---- faults ------------------------------------------------------------------------------------------

# The error of each lasting fault, and whether Airflow retries the task.
FAULTS = {
    Fault("403", times=None, page=3): (errors.AuthenticationError, False),
    Fault("404", times=None, page=3): (errors.NotFoundError, False),
    Fault("400", times=None, page=3): (errors.BadRequestError, False),
    Fault("redirect", times=None, page=3): (errors.BadRequestError, False),
    Fault("wrong_shape", times=None, page=3): (errors.UnexpectedResponseError, False),
    Fault("500", times=None, page=3): (errors.ServerError, True),
    Fault("408", times=None, page=3): (errors.ServerError, True),
    Fault("429", times=None, page=3): (errors.RateLimitError, True),
    Fault("429", times=None, page=3, retry_after=3600): (errors.RateLimitError, True),
    Fault("html", times=None, page=3): (errors.TransportError, True),
    Fault("half_body", times=None, page=3): (errors.TransportError, True),
    Fault("reset", times=None, page=3): (errors.TransportError, True),
    Fault("slow", times=None, page=3, seconds=1): (errors.TransportError, True),
}


@pytest.mark.one_airflow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind} {fault.retry_after or ''}".strip())
@pytest.mark.parametrize(("file_format", "compression"), [("jsonl", "gzip"), ("parquet", None)])
def test_a_lasting_fault_is_a_typed_error_and_changes_no_file(serve, connect, lake, fault, file_format, compression):
    arguments = {"file_format": file_format, "compression": compression}
    sim = serve()
    store(lake, **arguments)
    before, paths = contents_in(lake), sorted(lake.rglob("*"))
    sim.add_fault(fault)
    timeout = 0.2 if fault.kind == "slow" else 30
    connect(host=sim.base_url, password=sim.api_key, extra={"max_attempts": 2, "timeout": timeout})
    error, is_retried = FAULTS[fault]
    for run in (lambda: store(lake, **arguments), lambda: store(lake.with_name("new"), **arguments), fetch):
        with pytest.raises(error) if is_retried else not_retried(error):
            run()
    assert contents_in(lake) == before
    assert sorted(lake.rglob("*")) == paths
    assert not lake.with_name("new").exists()


# ---- staged pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume_within", ["PT1H", timedelta(hours=1)])
def test_staged_pages_are_used_until_they_are_older_than_resume_within(serve, lake, resume_within, monkeypatch):
    sim = serve(extra={"max_attempts": 1})
    for hours, resumed in ((0.9, 6), (1.1, 0)):
        sim.add_fault(Fault("500", page=8))
        with monkeypatch.context() as patch:
            earlier = time.time() - hours * 3600
            patch.setattr("airflow_provider_unleash.core.staging.time.time", lambda earlier=earlier: earlier)
            with pytest.raises(errors.ServerError):
                store(lake, checkpoint_pages=3)
        summary = store(lake, checkpoint_pages=3, resume_within=resume_within)
        assert summary["resumed_pages"] == resumed


# ---- arguments ---------------------------------------------------------------------------------------

# Invalid arguments, and the one that the error names.
INVALID = [
    ({"device_id": ""}, "device_id"),
    ({"device_id": "a/b"}, "device_id"),
    ({"start": "yesterday", "end": NEXT_DAY}, "start"),
    ({"start": DAY, "end": "2026-13-01"}, "end"),
    ({"start": 1_768_176_000, "end": NEXT_DAY}, "start"),
    ({"start": DAY}, "end"),
    ({"start": DAY, "end": ""}, "end"),
    ({"end": DAY}, "start"),
    ({"start": NEXT_DAY, "end": DAY}, "start"),
    ({"window": "one day"}, "window"),
    ({"window": timedelta(0)}, "window"),
    ({"window": 24}, "window"),
    ({"endpoint": "odata"}, "endpoint"),
    ({"on_empty": "ignore"}, "on_empty"),
]
INVALID_FOR_ACCOUNT = [
    ({"device_ids": "W1"}, "device_ids"),
    ({"device_ids": {"W1": "W2"}}, "device_ids"),
    ({"device_ids": [STREET, "a/b"]}, "device_id"),
]
INVALID_FOR_STORAGE = [
    ({"resume_within": timedelta(0)}, "resume_within"),
    ({"resume_within": "a day"}, "resume_within"),
    ({"file_format": "xml"}, "file_format"),
    ({"compression": "zip"}, "compression"),
    ({"file_format": "parquet", "compression": "gzip"}, "compression"),
    ({"column_types": {"count": "int64"}}, "column_types"),
    ({"column_types": {"confidence": "decimal"}}, "column_types"),
    ({"dst": ""}, "dst"),
]
# Arguments that are not templates, and the operators that have them.
NOT_TEMPLATED = [
    *((UnleashToObjectStorageOperator, "checkpoint_pages", value) for value in (0, -1, True, 1.5, "200")),
    *((UnleashToObjectStorageOperator, "replace_with_empty", value) for value in ("false", 0, None)),
    (UnleashAccountToObjectStorageOperator, "split_by_device", "false"),
    *((UnleashGetAnalyticsOperator, "max_xcom_bytes", value) for value in (0, None, "1MB")),
]


@pytest.mark.parametrize(
    ("operator", "arguments", "named"),
    [
        *((UnleashGetAnalyticsOperator, *case) for case in INVALID),
        *((UnleashToObjectStorageOperator, *case) for case in [*INVALID, *INVALID_FOR_STORAGE]),
        *((operator, {name: value}, name) for operator, name, value in NOT_TEMPLATED),
        *(
            (UnleashAccountToObjectStorageOperator, *case)
            for case in [*INVALID[2:], *INVALID_FOR_STORAGE, *INVALID_FOR_ACCOUNT]
        ),
        (UnleashListDevicesOperator, {"batch_size": 0}, "batch_size"),
        (UnleashListSessionsOperator, {"since": "yesterday"}, "since"),
        (UnleashListSessionsOperator, {"until": 1_768_176_000}, "until"),
    ],
    ids=str,
)
def test_an_invalid_literal_is_a_value_error_when_the_dag_is_parsed(operator, arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        make(operator, **arguments)
    assert caught.value.argument == named


@pytest.mark.parametrize(
    ("operator", "arguments", "named"),
    [
        *((UnleashToObjectStorageOperator, *case) for case in [*INVALID, *INVALID_FOR_STORAGE]),
        *((UnleashAccountToObjectStorageOperator, *case) for case in INVALID_FOR_ACCOUNT),
    ],
    ids=str,
)
def test_a_template_that_renders_to_an_invalid_value_fails_before_any_request(serve, lake, operator, arguments, named):
    sim = serve()
    task = make(operator, lake, **dict.fromkeys(arguments, "{{ ds }}"))
    for name, value in arguments.items():  # as rendering does
        setattr(task, name, value)
    with not_retried(errors.InvalidArgumentError, match=named) as caught:
        task.execute(make_context())
    assert caught.value.argument == named
    assert sim.requests == []
    assert not lake.exists()


OPERATORS = [
    *(value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__),
    UnleashNewSessionsSensor,
]


def parameters_of(operator: type[BaseOperator]) -> dict[str, str]:
    """Return the documented parameters with their descriptions."""
    return dict(re.findall(r":param (\w+):(.*?)(?=\n\s*:|\Z)", inspect.getdoc(operator), re.DOTALL))


@pytest.mark.parametrize("operator", OPERATORS)
def test_exactly_the_templated_parameters_are_documented_as_templated(operator):
    templated = {name for name, text in parameters_of(operator).items() if "(templated)" in " ".join(text.split())}
    assert templated == set(operator.template_fields)


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_parameter_has_a_name_that_airflow_uses(operator):
    [base] = [base for base in operator.__mro__ if base.__name__ in ("BaseOperator", "BaseSensorOperator")][:1]
    airflows = set(inspect.signature(base.__init__).parameters) - {"self", "kwargs"}
    # retry_policy is Airflow's own; it is named again so that default_args can set it.
    assert set(parameters_of(operator)) & airflows <= {"retry_policy"}


# ---- stream tokens -----------------------------------------------------------------------------------


def outputs_of(lake: Path) -> dict[str, str]:
    """Extract the street camera's day in every way, and return the outputs as text."""
    outputs = {"xcom": json.dumps(fetch()), "tableau": json.dumps(fetch(endpoint="tableau"))}
    for file_format, compression in FORMATS:
        arguments = {"file_format": file_format, "compression": compression}
        store(lake / f"{file_format} {compression}", **arguments)
        for split_by_device in (True, False):
            dst = lake / f"{file_format} {compression} account {split_by_device}"
            arguments |= {"device_ids": [STREET], "split_by_device": split_by_device}
            make(UnleashAccountToObjectStorageOperator, dst, **arguments).execute(make_context())
    for name in files_in(lake):
        path = lake / name
        outputs[name] = str(pq.read_table(path).to_pydict()) if path.suffix == ".parquet" else unpack(path).decode()
    assert len(outputs) == 2 + 3 * len(FORMATS)
    return outputs


@pytest.mark.one_airflow
@pytest.mark.parametrize("masked", [True, False])
def test_tokens_are_in_every_output_or_masked_in_every_output_without_a_warning(serve, lake, caplog, masked):
    sim = serve(extra={"mask_stream_tokens": masked})
    token = sim.rows(STREET, DAY_START, DAY_END)[0]["source_file_name"].partition(TOKEN)[2]
    for name, text in outputs_of(lake).items():
        assert f"{STREET}{TOKEN}{'***' if masked else token}" in text, name
        assert (token in text) is not masked, name
    assert "stream tokens" not in caplog.text


@pytest.mark.parametrize(("index", "level"), [(-1, "WARNING"), (0, "WARNING"), (1, "INFO")])
def test_of_mapped_tasks_only_the_first_warns_of_tokens(serve, caplog, index, level):
    caplog.set_level("INFO")
    serve(extra={"mask_stream_tokens": None})
    fetch({**make_context(), "ti": SimpleNamespace(map_index=index)})
    assert [record.levelname for record in caplog.records if "stream tokens" in record.getMessage()] == [level]


# ---- a dst that nothing serves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dst", "hint"),
    [("s33://c@lake/x", "s3://"), ("S33://lake", "s3://"), ("file2:///lake", "file://"), ("lake://c@b/x", "lakefs://")],
)
@pytest.mark.parametrize("rendered", [False, True])
def test_an_unknown_scheme_is_refused_with_a_suggestion_also_when_the_dag_is_parsed(serve, dst, hint, rendered):
    sim = serve()
    message = f"{dst.partition('/')[0].lower()}//; did you mean {hint}"
    if rendered:
        operator = make(UnleashToObjectStorageOperator, "{{ params.dst }}")
        operator.dst = dst  # as rendering does
        with not_retried(errors.InvalidArgumentError, match=message):
            operator.execute(make_context())
    else:
        with pytest.raises(errors.InvalidArgumentError, match=message):
            make(UnleashToObjectStorageOperator, dst)
    assert sim.requests == []


@pytest.mark.parametrize("dst", ["s3://aws_defualt@lake/x", "gs://aws_defualt@b"])
def test_a_missing_connection_in_dst_is_named_before_any_request_and_not_retried(serve, airflow_home, dst):
    sim = serve()
    with not_retried(errors.InvalidArgumentError, match="aws_defualt") as caught:
        store(dst)
    assert caught.value.argument == "dst"
    assert sim.requests == []


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("s3a", "s3"), ("gs", "gcs"), ("abfs", "azure")])
def test_a_scheme_without_its_file_system_names_the_extra_that_installs_it(serve, connect, monkeypatch, scheme, extra):
    sim = serve()
    connect(conn_id="unserved", conn_type="generic")  # Airflow caches the file system of a connection
    fs = pytest.importorskip("airflow.sdk.io.fs")  # in Airflow 2 and 3.0, elsewhere
    monkeypatch.setattr(fs, "_register_filesystems", lambda: {"file": fs._file})
    with not_retried(errors.InvalidArgumentError, match=rf"airflow-provider-unleash\[{extra}\]"):
        store(f"{scheme}://unserved@lake/{scheme}")
    assert sim.requests == []


def test_a_missing_connection_to_the_api_is_named_and_not_retried(airflow_home):
    for operator in (UnleashListDevicesOperator, UnleashGetAnalyticsOperator):
        with not_retried(errors.InvalidArgumentError, match="unleash_defualt") as caught:
            make(operator, unleash_conn_id="unleash_defualt").execute(make_context())
        assert caught.value.argument == "unleash_conn_id"


# ---- DAG runs ----------------------------------------------------------------------------------------

RETRIES = "retries=2, retry_delay=timedelta(0)"


@pytest.mark.slow
def test_a_retry_of_a_run_continues_where_the_first_try_stopped(airflow_home, serve, lake):
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
    assert requested_pages(sim) == [1, pages, *range(2, 10), 1, pages, *range(6, pages), 1, pages]
    assert summary["resumed_pages"] == 4
    [name] = files_in(lake)
    assert_has_rows(lake / name, day_of(sim))


def test_mapped_tasks_are_named_after_their_device_and_start_unless_the_author_names_them(airflow_home, serve, lake):
    serve(devices=(STREET, SILENT, CROWD))
    run = run_dag(
        airflow_home,
        f"""
        devices = UnleashListDevicesOperator(task_id="devices")
        lake = UnleashToObjectStorageOperator.partial(task_id="lake", dst="file://{lake}", on_empty="fail")
        lake.expand(device_id=devices.output)
        UnleashGetAnalyticsOperator.partial(task_id="rows").expand(device_id=devices.output)
        plan = UnleashPlanWindowsOperator(task_id="plan", device_ids=[{STREET!r}], every="PT12H")
        UnleashGetAnalyticsOperator.partial(task_id="windows").expand_kwargs(plan.output)
        batches = UnleashListDevicesOperator(task_id="batches", batch_size=2)
        Account = UnleashAccountToObjectStorageOperator
        Account.partial(task_id="account", dst="file://{lake}").expand(device_ids=batches.output)
        own = UnleashGetAnalyticsOperator.partial(task_id="own", map_index_template="own")
        own.expand(device_id=devices.output)
        UnleashGetAnalyticsOperator(task_id="alone", device_id={STREET!r})
        """,
    )
    assert run.states["lake", 1] == "failed"
    devices = enumerate((STREET, SILENT, CROWD))
    assert run.labels == {
        **{(name, index): device_id for index, device_id in devices for name in ("lake", "rows")},
        **{("windows", index): f"{STREET} 2026-01-12T{hour}:00:00+00:00" for index, hour in enumerate(("00", "12"))},
        **{("account", 0): f"2 devices from {STREET}", ("account", 1): f"1 device from {CROWD}"},
        **{("own", index): "own" for index in range(3)},
    }


@prints_errors_once
def test_a_list_that_is_too_long_to_map_over_is_an_error_with_both_numbers_on_the_first_try(
    airflow_home, serve, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "3")
    serve(devices=tuple(f"W{number}" for number in range(4)), sessions_from=DAY_START, session_period=3600.0)
    run = run_dag(
        airflow_home,
        f"""
        @task
        def echo(one):
            return one

        for operator in (UnleashListDevicesOperator, UnleashListSessionsOperator):
            name = operator.__name__.removeprefix("UnleashList").removesuffix("Operator").lower()
            echo.override(task_id=f"of_{{name}}").expand(one=operator(task_id=name, {RETRIES}).output)
            operator(task_id=f"not_mapped_{{name}}")
        plan = UnleashPlanWindowsOperator(task_id="plan", device_ids=["W1"], every="hour", max_windows=99, {RETRIES})
        UnleashGetAnalyticsOperator.partial(task_id="rows").expand_kwargs(plan.output)
        """,
    )
    for name in ("devices", "sessions", "plan"):
        assert (run.states[name], run.tries[name]) == ("failed", 1)
    assert {run.states[f"not_mapped_{name}"] for name in ("devices", "sessions")} == {"success"}
    printed = caplog.text + "".join(capfd.readouterr())
    for number in (4, 24):
        assert f"over {number} items, because [core] max_map_length is 3" in printed


ODD_KEYS = [
    *("__data__", "__version__", "__cache__", "__source", "__dict__", "__attr", "__class__", "__uri__", "__extra__"),
    *("", " ", "a.b", "é", "return_value", "key", "None"),
]


def test_rows_come_out_of_xcom_as_they_went_in(airflow_home, serve):
    odd = [
        row(odd_value={key: [{key: "value"}, None, 1.5, True, 2**53 + 1]}, **{key: value})
        for key in ODD_KEYS
        for value in ({"__data__": [1]}, "text")
    ]
    deepest = functools.reduce(lambda value, _: {"a": value}, range(MAX_XCOM_DEPTH - 1), 2**64 - 1)
    odd.append(row(deepest=deepest, smallest=-(2**63)))
    serve(rows={STREET: odd})
    run = run_dag(
        airflow_home,
        f"""
        rows = UnleashGetAnalyticsOperator(task_id="rows", device_id={STREET!r})

        @task
        def dump(rows):
            import json
            return "rows: " + json.dumps(rows)

        dump(rows.output)
        """,
    )
    assert run.state == "success"
    rows = json.loads(run.xcoms["dump"].removeprefix("rows: "))
    # The compact endpoint returns null for a key that other rows of the page have.
    assert [{key: value for key, value in one.items() if value is not None} for one in rows] == odd


@pytest.mark.parametrize("key", sorted(module.XCOM_RESERVED_KEYS))
def test_a_key_that_xcom_would_change_fails_the_task_before_the_push(serve, key):
    serve(rows={STREET: [row(zones=[{"deep": [{key: "tuple", "x": 1}]}])]})
    with not_retried(errors.UnexpectedResponseError, match=f"Page 1, row 0 has the key '{key}'"):
        fetch()


@prints_errors_once
def test_a_permanent_error_is_logged_once(airflow_home, serve, connect, caplog, capfd):
    sim = serve()
    connect(host=sim.base_url, password="wrong")
    run = run_dag(airflow_home, 'UnleashListDevicesOperator(task_id="devices", retries=2)')
    assert (run.states, run.tries) == ({"devices": "failed"}, {"devices": 1})
    printed = caplog.text + "".join(capfd.readouterr())
    assert printed.count("Create a new one") == 1, printed


TEMPLATED = {
    "unleash_conn_id": "unleash_other",
    "device_id": STREET,
    "start": "2026-01-12T00:00:00+00:00",
    "end": "2026-01-12T06:00:00+00:00",
    "window": "PT6H",
    "endpoint": "tableau",
    "on_empty": "skip",
    "dst": "",  # the test's own folder
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
    header, first, *_ = unpack(lake / name).decode().splitlines()
    assert header == ",".join(f'"{name}"' for name in [*KEYS, "extra", "confidence"])
    assert float(first.rpartition(",")[2]) > 0
    assert sim.requests[0].path == f"/v1/analytics/tableau/{STREET}/{DAY_START}/{DAY_START + 6 * HOUR_MS}/1"


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
    assert requested_window(sim) == (DAY_END - 6 * HOUR_MS, DAY_END)


def test_permanent_errors_fail_the_first_try_and_transient_errors_are_retried(airflow_home, serve, connect, lake):
    sim = serve(key="right-key", extra={"max_attempts": 1})
    strict = Simulator(unknown_device="404", api_keys=["right-key"])
    redirecting = Simulator(faults=[Fault("redirect", times=None)])
    with strict, redirecting:
        connect(conn_id="wrong_key", host=sim.base_url, password="wrong-key")
        connect(conn_id="strict", host=strict.base_url, password="right-key")
        connect(conn_id="redirecting", host=redirecting.base_url, password=redirecting.api_key)
        connect(conn_id="plain_http", host="http://eu.example.com", password="right-key")
        connect(conn_id="dead_host", host="http://127.0.0.1:1", password="k", extra={"max_attempts": 1})
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
    assert not lake.exists()
    assert run.xcoms == {}


def test_one_bad_device_among_mapped_ones_fails_alone_on_its_first_try(airflow_home, serve, lake):
    serve(devices=(STREET, CROWD, "a/b"))
    run = run_dag(
        airflow_home,
        f"""
        devices = UnleashListDevicesOperator(task_id="devices")
        mapped = dict(dst={str(lake)!r}, {RETRIES})
        UnleashToObjectStorageOperator.partial(task_id="listed", **mapped).expand(device_id=devices.output)
        UnleashToObjectStorageOperator.partial(task_id="literal", **mapped).expand(device_id=["W000", "../devices"])
        """,
    )
    assert [run.states["listed", index] for index in range(3)] == ["success", "success", "failed"]
    assert [run.states["literal", index] for index in range(2)] == ["failed", "failed"]
    assert set(run.tries.values()) == {1}
    assert [name.partition("/")[0] for name in files_in(lake)] == [f"device={CROWD}", f"device={STREET}"]


def test_a_run_without_a_window_fails_on_its_first_try(airflow_home, serve, lake):
    sim = serve()
    task = f'UnleashToObjectStorageOperator(task_id="extract", device_id={STREET!r}, dst={str(lake)!r}, {RETRIES})'
    run = run_dag(airflow_home, task, arguments="schedule=None")
    assert (run.states["extract"], run.tries["extract"]) == ("failed", 1)
    if has_runs_without_dates(DAG("any", schedule=None)):
        run = run_dag(airflow_home, task, None)
        assert (run.states["extract"], run.tries["extract"]) == ("failed", 1)
    assert sim.requests == []
    assert not lake.exists()


@pytest.mark.parametrize("start", [None, DAY])
def test_mapped_tasks_that_would_share_one_object_are_refused(serve, lake, start):
    sim = serve()
    end = start and NEXT_DAY
    task = UnleashAccountToObjectStorageOperator(
        task_id="extract", dst=str(lake), device_ids=[STREET], split_by_device=False, start=start, end=end
    )
    context = {**make_context(), "ti": SimpleNamespace(map_index=0)}
    if start is None:
        with not_retried(errors.InvalidArgumentError, "would replace each other's object"):
            task.execute(context)
        assert sim.requests == []
    else:
        assert task.execute(context)["objects"] == 1
