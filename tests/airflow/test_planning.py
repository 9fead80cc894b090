"""A span in parts holds the rows of the whole, each once, and a plan is never larger than it may be."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core.moments import format_ms, parse_moment
from airflow_provider_unleash.core.planning import MINUTE_MS
from airflow_provider_unleash.exceptions import InvalidArgumentError, NotFoundError, WindowError
from airflow_provider_unleash.operators import UnleashPlanWindowsOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.window import Window
from tests.support.dag_runs import run_dag
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

UTC = timezone.utc
YEAR = Window(DAY_START, DAY_START + 365 * DAY_MS)
DAY_WINDOW = Window(DAY_START, DAY_END)
CAMERAS = [f"W{number}" for number in range(40)]
Plan = list[dict[str, str]]


def plan(context: dict[str, Any] | None = None, **arguments: Any) -> Plan:
    """Return the windows of a street camera's day."""
    arguments = {"device_ids": [STREET], **arguments}
    operator = UnleashPlanWindowsOperator(task_id="plan", **arguments)
    found: Plan = operator.execute(make_context() if context is None else context)
    return json.loads(json.dumps(found))  # as XCom does


def bounds(planned: Plan, device_id: str = STREET) -> list[tuple[int, int]]:
    """Return the windows of a device in epoch milliseconds, which are one after the other."""
    windows = [
        (parse_moment(one["start"], "start"), parse_moment(one["end"], "end"))
        for one in planned
        if one["device_id"] == device_id
    ]
    assert all(before[1] == after[0] for before, after in pairwise(windows))
    return windows


def lengths(planned: Plan) -> list[float]:
    return [(end - start) / HOUR_MS for start, end in bounds(planned)]


# ---- rows of the parts -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serve_rows() -> Iterator[Callable[..., Simulator]]:
    """Give a function that starts a simulator in the place of the last one, as ``unleash_default``."""
    with pytest.MonkeyPatch.context() as patch:
        running: list[Simulator] = []

        def serve_rows(**options: Any) -> Simulator:
            while running:
                running.pop().__exit__()
            running.append(Simulator(**options).__enter__())
            connection = {
                "conn_type": "unleash",
                "host": running[0].base_url,
                "password": running[0].api_key,
                "extra": {"mask_stream_tokens": False},
            }
            patch.setenv("AIRFLOW_CONN_UNLEASH_DEFAULT", json.dumps(connection))
            return running[0]

        yield serve_rows
        while running:
            running.pop().__exit__()


def rows_of(windows: Plan) -> tuple[Counter[int], int]:
    """Write the windows as the storage operator does, and return how often each row is in the objects, and those."""
    with TemporaryDirectory() as lake:
        for window in windows:
            operator = UnleashToObjectStorageOperator(task_id="extract", dst=lake, **window)
            operator.execute(make_context(None))
        files = [path for path in Path(lake).rglob("*") if path.is_file()]
        rows = Counter(json.loads(line)["row"] for path in files for line in path.read_text().splitlines())
    return rows, len(files)


def whole(start: int, end: int) -> Plan:
    return [{"device_id": STREET, "start": format_ms(start), "end": format_ms(end)}]


@st.composite
def stamps(draw: st.DrawFn) -> list[int]:
    """Return stamps of two days, most of them where a window may be cut, many in one minute."""
    noon = DAY_START + 12 * HOUR_MS
    cuts = st.sampled_from([DAY_START, noon, noon + 6 * HOUR_MS, noon + 90 * MINUTE_MS, DAY_END])
    near = st.builds(lambda cut, distance: cut + distance, cuts, st.sampled_from([0, 0, 1, -1, 60_000, -60_000]))
    anywhere = st.integers(DAY_START - 1000, DAY_END + 1000)
    crowd = draw(st.lists(st.integers(noon, noon + MINUTE_MS), max_size=12))
    return sorted([*draw(st.lists(near | anywhere, min_size=1, max_size=30)), *crowd])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    found=stamps(),
    every=st.sampled_from([None, "hour", "P1D", "PT7H"]),
    max_pages=st.integers(1, 4),
    page_size=st.integers(1, 4),
    inclusive_to=st.booleans(),
    span=st.tuples(st.integers(0, 5 * HOUR_MS), st.integers(19 * HOUR_MS, 24 * HOUR_MS)),
)
def test_a_window_that_is_split_leaves_the_same_rows_as_one_that_is_not(
    serve_rows: Callable[..., Simulator],
    found: list[int],
    every: str | None,
    max_pages: int,
    page_size: int,
    inclusive_to: bool,
    span: tuple[int, int],
) -> None:
    records = [{"row": number, "timestamp": format_ms(stamp)} for number, stamp in enumerate(found)]
    sim = serve_rows(rows={STREET: records}, page_size=page_size, inclusive_to=inclusive_to)
    start, end = (DAY_START + moment for moment in span)
    parts = plan(every=every, max_pages=max_pages, start=start, end=end)
    for one_start, one_end in bounds(parts):
        pages = -(-len(sim.rows(STREET, one_start, one_end)) // page_size)
        assert pages <= max_pages or one_end - one_start < 2 * MINUTE_MS
    rows, files = rows_of(parts)
    assert (rows, 1) == rows_of(whole(start, end))
    assert rows == Counter(number for number, stamp in enumerate(found) if start <= stamp < end)
    assert files == len(parts)


def test_rows_that_the_api_selects_by_something_else_than_their_stamp_are_got_once_too(
    serve_rows: Callable[..., Simulator],
) -> None:
    # Stamped 27 seconds before what they are selected by, as in the documented example.
    found = range(DAY_START - 26_500, DAY_END, 7 * MINUTE_MS)
    records = [{"row": number, "timestamp": format_ms(stamp)} for number, stamp in enumerate(found)]
    serve_rows(rows={STREET: records}, page_size=3, selection_lag_ms=27_000)
    parts = plan(max_pages=5)
    assert len(parts) > 8
    assert rows_of(parts) == (rows_of(whole(DAY_START, DAY_END))[0], len(parts))


def test_a_row_that_the_api_repeats_for_each_window_is_in_each_part(serve_rows: Callable[..., Simulator]) -> None:
    # Nobody knows of a window that has it, so that none may leave it out: it is there as often as there are windows.
    stamped = [{"row": number, "timestamp": format_ms(DAY_START + number * HOUR_MS)} for number in range(24)]
    serve_rows(rows={STREET: [{"row": 99, "timestamp": None}, *stamped]}, page_size=3)
    parts = plan(max_pages=3)
    assert len(parts) == 4
    assert rows_of(parts)[0] == Counter([*range(24), 99, 99, 99, 99])


# ---- the operator ----------------------------------------------------------------------------------


def test_an_item_is_what_the_storage_operator_takes_in_the_timezone_of_the_plan() -> None:
    start = datetime(2026, 3, 28, tzinfo=ZoneInfo("Europe/Berlin"))
    found = plan(start=start, end=start + timedelta(days=3), every="day", timezone="Europe/Berlin")
    assert found == [
        {"device_id": STREET, "start": "2026-03-28T00:00:00+01:00", "end": "2026-03-29T00:00:00+01:00"},
        {"device_id": STREET, "start": "2026-03-29T00:00:00+01:00", "end": "2026-03-30T00:00:00+02:00"},
        {"device_id": STREET, "start": "2026-03-30T00:00:00+02:00", "end": "2026-03-31T00:00:00+02:00"},
    ]
    for one in found:
        UnleashToObjectStorageOperator(task_id="extract", dst="file:///lake", **one)


def test_days_are_those_of_the_dags_timezone_where_none_is_given() -> None:
    zone = ZoneInfo("Europe/Berlin")
    interval = (datetime(2026, 10, 24, tzinfo=zone), datetime(2026, 10, 27, tzinfo=zone))
    assert lengths(plan(make_context(interval, dag_timezone=zone), every="day")) == [24, 25, 24]
    assert lengths(plan(make_context(interval), every="day")) == [24, 24, 24, 1]
    assert lengths(plan(make_context(interval, dag_timezone=zone), every="day", timezone="UTC")) == [24, 24, 24, 1]


def test_the_span_is_that_of_the_run_by_the_rules_of_the_fetch_operators() -> None:
    one_hour = [(DAY_START, DAY_START + HOUR_MS)]
    assert bounds(plan(every="day")) == [(DAY_START, DAY_END)]
    assert bounds(plan(every="day", start="2026-01-12", end="2026-01-12T01:00Z")) == one_hour
    context = make_context(None, run_after=DAY + timedelta(hours=1))
    assert bounds(plan(context, every="day", window=timedelta(hours=1))) == one_hour
    with pytest.raises(AirflowFailException, match="no window of time"):
        plan(make_context(None), every="day")


def test_a_device_that_is_named_twice_is_planned_once() -> None:
    found = plan(device_ids=("W1", "W2", "W1"), every="day")
    assert [one["device_id"] for one in found] == ["W1", "W2"]


def test_no_devices_make_no_windows_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert plan(device_ids=[], every="PT0.001S") == []
    assert "no devices" in caplog.text


def test_without_max_windows_the_limit_is_airflows(monkeypatch: pytest.MonkeyPatch) -> None:
    day = {"start": DAY, "end": NEXT_DAY}
    assert len(plan(**day, every="PT2M")) == 720
    with pytest.raises(AirflowFailException, match="max_windows=1024"):
        plan(**day, every="PT1M")
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2000")
    assert len(plan(**day, every="PT1M")) == 1440
    with pytest.raises(AirflowFailException, match="max_windows=10:") as caught:
        plan(**day, every="PT1M", max_windows=10)
    assert isinstance(caught.value.__cause__, InvalidArgumentError)


def test_a_plan_by_steps_asks_the_api_nothing(serve: Callable[..., Simulator]) -> None:
    sim = serve()
    assert len(plan(every="hour")) == 24
    assert sim.requests == []


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_a_plan_by_size_asks_first_pages_only(serve: Callable[..., Simulator], endpoint: str, caplog: Any) -> None:
    sim = serve()
    with caplog.at_level(logging.INFO):
        found = plan(device_ids=[STREET, SILENT, CROWD], every="PT12H", max_pages=3, endpoint=endpoint)
    assert all(request.path.endswith("/1") for request in sim.requests)
    assert {"/tableau/" in request.path for request in sim.requests} == {endpoint == "tableau"}
    for device_id, least in ((STREET, 3), (SILENT, 2), (CROWD, 3)):
        windows = bounds(found, device_id)
        assert (windows[0][0], windows[-1][1]) == (DAY_START, DAY_END)
        assert all(len(sim.rows(device_id, *window)) <= 60 for window in windows)
        assert len(windows) >= least
    assert len(bounds(found, SILENT)) == 2
    assert f"pages of {len(sim.requests)} windows; 6 were planned, {len(found)} are left" in caplog.text


def test_a_passing_fault_does_not_end_a_plan(serve: Callable[..., Simulator], quick_retries: None) -> None:
    sim = serve()
    expected = plan(max_pages=3)
    sim.add_fault(Fault("503", times=2))
    assert plan(max_pages=3) == expected


def test_a_device_that_the_api_does_not_know_fails_a_plan_by_size_for_good(serve: Callable[..., Simulator]) -> None:
    serve(unknown_device="404")
    with pytest.raises(AirflowFailException) as caught:
        plan(device_ids=[STREET, "Wnone"], max_pages=3)
    assert isinstance(caught.value.__cause__, NotFoundError)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"device_ids": "W1"}, "device_ids"),
    ({"device_ids": None}, "device_ids"),
    ({"device_ids": {"W1": 1}}, "device_ids"),
    ({"device_ids": ["W1", "a/b"]}, "device_id"),
    ({"device_ids": ["W1", 2]}, "device_id"),
    ({"every": "fortnight"}, "every"),
    ({"every": None}, "every"),
    ({"every": "None"}, "every"),
    ({"timezone": "Mars/Base"}, "timezone"),
    ({"start": "2026-01-12"}, "end"),
    ({"window": "one day"}, "window"),
    ({"endpoint": "odata"}, "endpoint"),
]
BAD_LITERALS: list[tuple[dict[str, Any], str]] = [
    ({"max_pages": 0}, "max_pages"),
    ({"max_pages": "20"}, "max_pages"),
    ({"max_windows": 0}, "max_windows"),
    ({"max_windows": True}, "max_windows"),
]


@pytest.mark.parametrize(("arguments", "named"), [*BAD_ARGUMENTS, *BAD_LITERALS], ids=str)
def test_a_literal_that_makes_no_plan_is_a_value_error_when_the_dag_is_parsed(
    arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        UnleashPlanWindowsOperator(task_id="plan", **{"device_ids": ["W1"], "every": "day", **arguments})
    assert caught.value.argument == named


@pytest.mark.parametrize(("arguments", "named"), BAD_ARGUMENTS, ids=str)
def test_a_template_that_renders_to_such_a_value_fails_for_good(
    serve: Callable[..., Simulator], arguments: dict[str, Any], named: str
) -> None:
    sim = serve()
    operator = UnleashPlanWindowsOperator(
        task_id="plan", **{"device_ids": ["W1"], "every": "day", **dict.fromkeys(arguments, "{{ ds }}")}
    )
    for name, value in arguments.items():  # as rendering does
        setattr(operator, name, value)
    with pytest.raises(AirflowFailException, match=named) as caught:
        operator.execute(make_context())
    assert caught.value.__cause__.argument == named
    assert sim.requests == []


def test_device_ids_that_can_be_read_only_once_are_refused_and_not_taken_for_none() -> None:
    operator = UnleashPlanWindowsOperator(task_id="plan", every="day", device_ids=(device for device in ["W1"]))
    with pytest.raises(AirflowFailException, match="device_ids"):
        operator.execute(make_context())


def test_a_span_of_nothing_is_an_error_and_no_silent_skip() -> None:
    with pytest.raises(AirflowFailException, match="nothing between them") as caught:
        plan(start=DAY, end=DAY, every="day")
    assert isinstance(caught.value.__cause__, WindowError)


# ---- real runs -------------------------------------------------------------------------------------


def test_a_run_plans_and_extracts_each_window_of_each_device_under_its_name(
    airflow_home: Path, serve: Callable[..., Simulator], tmp_path: Path
) -> None:
    sim = serve(devices=(STREET, CROWD))
    run = run_dag(
        airflow_home,
        f"""
        devices = UnleashListDevicesOperator(task_id="devices")
        plan = UnleashPlanWindowsOperator(
            task_id="plan",
            device_ids=devices.output,
            start="{{{{ data_interval_start.subtract(days=1) }}}}",
            end="{{{{ data_interval_end }}}}",
            every="{{{{ 'day' }}}}",
            timezone="{{{{ 'Europe/Berlin' }}}}",
        )
        UnleashToObjectStorageOperator.partial(
            task_id="extract",
            dst="file://{tmp_path}/lake",
            map_index_template="{{{{ task.device_id }}}} {{{{ task.start[:10] }}}}",
        ).expand_kwargs(plan.output)
        """,
    )
    assert run.state == "success"
    assert [(one["device_id"], one["start"]) for one in run.xcoms["plan"]] == [
        (device_id, f"2026-01-{day}T01:00:00+01:00") for device_id in (STREET, CROWD) for day in (11, 12)
    ]
    assert run.labels == {
        ("extract", index): f"{one['device_id']} {one['start'][:10]}" for index, one in enumerate(run.xcoms["plan"])
    }
    assert [run.xcoms["extract", index]["rows"] for index in range(4)] == [
        len(sim.rows(device_id, DAY_START + day * DAY_MS, DAY_START + (day + 1) * DAY_MS - 1))
        for device_id in (STREET, CROWD)
        for day in (-1, 0)
    ]


@pytest.mark.parametrize(
    ("every", "timezone"),
    [
        ("timedelta(days=31)", "ZoneInfo('Europe/Berlin')"),
        ("pendulum.duration(months=1)", "pendulum.timezone('Europe/Berlin')"),
        ("'P1M'", "'Europe/Berlin'"),
    ],
)
def test_a_run_takes_step_and_timezone_in_every_spelling(airflow_home: Path, every: str, timezone: str) -> None:
    run = run_dag(
        airflow_home,
        f"""
        import pendulum
        from zoneinfo import ZoneInfo

        UnleashPlanWindowsOperator(
            task_id="plan",
            device_ids=["W1"],
            every={every},
            start="2026-02-28T23:00:00Z",
            end=datetime(2026, 4, 30, 22, tzinfo=ZoneInfo("UTC")),
            timezone={timezone},
        )
        """,
    )
    assert [one["end"] for one in run.xcoms["plan"]] == ["2026-04-01T00:00:00+02:00", "2026-05-01T00:00:00+02:00"]


def test_a_run_plans_the_devices_of_mapped_tasks(airflow_home: Path) -> None:
    run = run_dag(
        airflow_home,
        """
        @task
        def name(number):
            return f"W{number}"

        UnleashPlanWindowsOperator(task_id="plan", device_ids=name.expand(number=[1, 2]), every="PT12H")
        """,
    )
    assert [one["device_id"] for one in run.xcoms["plan"]] == ["W1", "W1", "W2", "W2"]


def test_a_run_that_would_plan_too_much_fails_on_its_first_try_and_extracts_nothing(
    airflow_home: Path, serve: Callable[..., Simulator], tmp_path: Path
) -> None:
    serve()
    run = run_dag(
        airflow_home,
        f"""
        devices = UnleashListDevicesOperator(task_id="devices")
        plan = UnleashPlanWindowsOperator(
            task_id="plan", device_ids=devices.output, every="PT1M", retries=2, retry_delay=timedelta(0)
        )
        UnleashToObjectStorageOperator.partial(
            task_id="extract", dst="file://{tmp_path}/lake"
        ).expand_kwargs(plan.output)
        """,
    )
    assert run.states["plan"] == "failed"
    assert run.tries["plan"] == 1
    assert not (tmp_path / "lake").exists()
