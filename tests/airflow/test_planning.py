"""The windows of a plan have each row of the span once, and a plan never exceeds its limit."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_provider_unleash.core.moments import format_ms, parse_moment
from airflow_provider_unleash.core.planning import MINUTE_MS
from airflow_provider_unleash.exceptions import InvalidArgumentError, NotFoundError, WindowError
from airflow_provider_unleash.operators import (
    UnleashAccountToObjectStorageOperator,
    UnleashPlanWindowsOperator,
    UnleashToObjectStorageOperator,
)
from airflow_provider_unleash.simulator import Fault
from tests.support.dag_runs import run_dag
from tests.support.expected_rows import contents_in
from tests.support.not_retried import not_retried
from tests.support.sample_day import CROWD, DAY, DAY_END, DAY_MS, DAY_START, HOUR_MS, SILENT, STREET, make_context

Plan = list[dict[str, str]]


def plan(context: dict[str, Any] | None = None, **arguments: Any) -> Plan:
    """Return the windows of a street camera's day."""
    operator = UnleashPlanWindowsOperator(task_id="plan", **{"device_ids": [STREET], **arguments})
    planned: Plan = json.loads(json.dumps(operator.execute(context or make_context())))  # as XCom does
    return planned


def bounds(planned: Plan, device_id: str = STREET) -> list[tuple[int, int]]:
    """Return the windows of a device in epoch milliseconds, and check that they follow each other."""
    windows = [
        (parse_moment(one["start"], "start"), parse_moment(one["end"], "end"))
        for one in planned
        if one["device_id"] == device_id
    ]
    assert all(before[1] == after[0] for before, after in pairwise(windows))
    return windows


def lengths(planned: Plan) -> list[float]:
    return [(end - start) / HOUR_MS for start, end in bounds(planned)]


def extract(lake: Path, windows: Plan) -> list[int]:
    """Extract each window as one object, and return the rows of all objects."""
    for window in windows:
        UnleashToObjectStorageOperator(task_id="extract", dst=str(lake), **window).execute(make_context(None))
    objects = contents_in(lake).values()
    assert len(objects) == len(windows)
    return sorted(json.loads(line)["row"] for content in objects for line in content.splitlines())


# In the documented example, timestamps are 27 seconds earlier than the time that the API selects rows by.
@pytest.mark.parametrize("lag", [0, 27_000])
def test_the_windows_of_a_plan_have_the_same_rows_as_the_span(serve, tmp_path, lag):
    first = DAY_START - max(0, lag - 500)
    stamps = range(first, first + DAY_MS, 7 * MINUTE_MS)
    rows = [{"row": number, "timestamp": format_ms(stamp)} for number, stamp in enumerate(stamps)]
    serve(rows={STREET: rows}, page_size=3, selection_lag_ms=lag)
    parts = plan(max_pages=5)
    assert len(parts) > 8
    span = [{"device_id": STREET, "start": format_ms(DAY_START), "end": format_ms(DAY_END)}]
    assert extract(tmp_path / "parts", parts) == extract(tmp_path / "span", span) == list(range(len(rows)))


def test_an_item_has_the_arguments_of_a_fetch_operator_in_the_timezone_of_the_plan():
    start = datetime(2026, 3, 28, tzinfo=ZoneInfo("Europe/Berlin"))
    found = plan(start=start, end=start + timedelta(days=3), every="day", timezone="Europe/Berlin")
    assert found == [
        {"device_id": STREET, "start": "2026-03-28T00:00:00+01:00", "end": "2026-03-29T00:00:00+01:00"},
        {"device_id": STREET, "start": "2026-03-29T00:00:00+01:00", "end": "2026-03-30T00:00:00+02:00"},
        {"device_id": STREET, "start": "2026-03-30T00:00:00+02:00", "end": "2026-03-31T00:00:00+02:00"},
    ]
    for item in found:
        UnleashToObjectStorageOperator(task_id="extract", dst="file:///lake", **item)


def test_days_are_those_of_the_dags_timezone_unless_another_is_given():
    zone = ZoneInfo("Europe/Berlin")
    interval = (datetime(2026, 10, 24, tzinfo=zone), datetime(2026, 10, 27, tzinfo=zone))
    assert lengths(plan(make_context(interval, dag_timezone=zone), every="day")) == [24, 25, 24]
    assert lengths(plan(make_context(interval), every="day")) == [24, 24, 24, 1]
    assert lengths(plan(make_context(interval, dag_timezone=zone), every="day", timezone="UTC")) == [24, 24, 24, 1]


def test_the_span_follows_the_window_rules_of_the_fetch_operators():
    one_hour = [(DAY_START, DAY_START + HOUR_MS)]
    assert bounds(plan(every="day")) == [(DAY_START, DAY_END)]
    assert bounds(plan(every="day", start="2026-01-12", end="2026-01-12T01:00Z")) == one_hour
    context = make_context(None, run_after=DAY + timedelta(hours=1))
    assert bounds(plan(context, every="day", window=timedelta(hours=1))) == one_hour
    with not_retried(WindowError, match="does not define a time window"):
        plan(make_context(None), every="day")
    with not_retried(WindowError, match="the span is empty"):
        plan(start=DAY, end=DAY, every="day")


def test_a_device_that_is_named_twice_is_planned_once():
    found = plan(device_ids=("W1", "W2", "W1"), every="day")
    assert [one["device_id"] for one in found] == ["W1", "W2"]


def test_max_windows_is_by_default_airflows_limit_of_mapped_tasks(monkeypatch):
    assert len(plan(every="PT2M")) == 720
    with not_retried(InvalidArgumentError, match="max_windows=1024"):
        plan(every="PT1M")
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2000")
    assert len(plan(every="PT1M")) == 1440
    with not_retried(InvalidArgumentError, match="max_windows=10:"):
        plan(every="PT1M", max_windows=10)


def test_a_plan_by_steps_makes_no_requests(serve):
    sim = serve()
    assert len(plan(every="hour")) == 24
    assert sim.requests == []


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_a_plan_by_size_requests_only_first_pages(serve, endpoint, caplog):
    sim = serve()
    with caplog.at_level(logging.INFO, "airflow_provider_unleash"):
        found = plan(device_ids=[STREET, SILENT, CROWD], every="PT12H", max_pages=3, endpoint=endpoint)
    assert all(request.path.endswith("/1") for request in sim.requests)
    assert {"/tableau/" in request.path for request in sim.requests} == {endpoint == "tableau"}
    for device_id in (STREET, SILENT, CROWD):
        windows = bounds(found, device_id)
        assert (windows[0][0], windows[-1][1]) == (DAY_START, DAY_END)
        assert all(len(sim.rows(device_id, *window)) <= 60 for window in windows)
        assert len(windows) >= 3 if device_id != SILENT else len(windows) == 2
    assert f"pages of {len(sim.requests)} windows: 6 planned, {len(found)} remain" in caplog.text


def test_a_plan_by_size_survives_transient_errors_and_fails_for_an_unknown_device(serve, quick_retries):
    sim = serve(unknown_device="404")
    expected = plan(max_pages=3)
    sim.add_fault(Fault("503", times=2))
    assert plan(max_pages=3) == expected
    with not_retried(NotFoundError):
        plan(device_ids=[STREET, "Wnone"], max_pages=3)


# Invalid arguments, and the one that the error names.
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"device_ids": "W1"}, "device_ids"),
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
NOT_TEMPLATED: list[tuple[dict[str, Any], str]] = [
    ({"max_pages": 0}, "max_pages"),
    ({"max_pages": "20"}, "max_pages"),
    ({"max_windows": 0}, "max_windows"),
    ({"max_windows": True}, "max_windows"),
]


@pytest.mark.parametrize(("arguments", "named"), [*INVALID, *NOT_TEMPLATED], ids=str)
def test_an_invalid_literal_is_a_value_error_when_the_dag_is_parsed(arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        UnleashPlanWindowsOperator(task_id="plan", **{"device_ids": ["W1"], "every": "day", **arguments})
    assert caught.value.argument == named


@pytest.mark.parametrize(
    ("arguments", "named"),
    [*INVALID, pytest.param({"device_ids": iter(["W1"])}, "device_ids", id="an iterator, which can be read only once")],
    ids=str,
)
def test_a_template_that_renders_to_an_invalid_value_fails_before_any_request(serve, arguments, named):
    sim = serve()
    operator = UnleashPlanWindowsOperator(
        task_id="plan", **{"device_ids": ["W1"], "every": "day", **dict.fromkeys(arguments, "{{ ds }}")}
    )
    for name, value in arguments.items():  # as rendering does
        setattr(operator, name, value)
    with not_retried(InvalidArgumentError, match=named) as caught:
        operator.execute(make_context())
    assert caught.value.argument == named
    assert sim.requests == []


def test_a_run_extracts_and_labels_each_planned_window(airflow_home, serve, tmp_path):
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
def test_a_run_accepts_step_and_timezone_in_every_form(airflow_home, every, timezone):
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


def test_a_run_plans_the_devices_of_mapped_tasks(airflow_home):
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


# ---- gaps ----------------------------------------------------------------------------------------


def run_account(lake: Path, plan: Plan, **arguments: Any) -> None:
    for window in plan:
        task = UnleashAccountToObjectStorageOperator(task_id="extract", dst=str(lake), **arguments, **window)
        task.execute(make_context(None))


@pytest.mark.one_airflow
@pytest.mark.parametrize("split_by_device", [True, False])
def test_a_plan_of_an_account_without_gaps_is_empty(serve, tmp_path, split_by_device):
    sim = serve(devices=(STREET, CROWD, SILENT))
    gaps: dict[str, Any] = {"device_ids": None, "missing_in": str(tmp_path), "every": "hour"}
    planned = plan(**gaps)
    assert len(planned) == 24
    assert all(sorted(one["device_ids"]) == sorted(sim.devices) for one in planned)
    whole = [{key: one[key] for key in ("start", "end")} for one in planned]
    run_account(tmp_path, whole[:20], split_by_device=split_by_device)
    rest = plan(**gaps)
    assert [one["start"] for one in rest] == [one["start"] for one in planned[20:]]
    assert all(("device_ids" in one) is split_by_device for one in rest)
    run_account(tmp_path, rest, split_by_device=split_by_device)
    assert plan(**gaps) == []
    rows = sum(len(content.splitlines()) for content in contents_in(tmp_path).values())
    assert rows == sum(len(sim.rows(device, DAY_START, DAY_END - 1)) for device in sim.devices)


def test_a_plan_of_the_gaps_of_devices_names_each_device(serve, tmp_path):
    serve()
    day = {"start": DAY.isoformat(), "end": (DAY + timedelta(days=1)).isoformat()}
    gaps: dict[str, Any] = {"device_ids": [STREET, CROWD], "missing_in": str(tmp_path), "every": "day"}
    assert plan(**gaps) == [{"device_id": device, **day} for device in (STREET, CROWD)]
    UnleashToObjectStorageOperator(task_id="extract", device_id=CROWD, dst=str(tmp_path), **day).execute(make_context())
    assert plan(**gaps) == [{"device_id": STREET, **day}]


def test_a_manual_run_plans_whole_days_only(serve, tmp_path):
    serve()
    noon = make_context(None, run_after=DAY + timedelta(hours=12))
    planned = plan(noon, missing_in=str(tmp_path), every="day", window=timedelta(days=2))
    assert [one["start"] for one in planned] == [(DAY - timedelta(days=n)).isoformat() for n in (2, 1)]


def test_gaps_are_not_looked_for_in_a_tree_of_another_grid(serve, tmp_path):
    serve()
    UnleashToObjectStorageOperator(task_id="extract", device_id=STREET, dst=str(tmp_path)).execute(make_context())
    with pytest.raises(InvalidArgumentError, match="has windows of another grid, such as start_date=2026-01-12/"):
        plan(missing_in=str(tmp_path), every="hour")


def test_a_plan_for_the_account_has_each_window_once(serve):
    sim = serve()
    planned = plan(device_ids=None, every="hour")
    assert len(planned) == 24
    assert set(planned[0]) == {"start", "end"}
    assert sim.requests == []


@pytest.mark.parametrize(
    "arguments", [{"device_ids": None, "max_pages": 3}, {"missing_in": "/lake", "every": "day", "max_pages": 3}]
)
def test_windows_of_an_account_or_of_gaps_cannot_be_cut_by_size(arguments):
    with pytest.raises(InvalidArgumentError, match="max_pages cuts the windows of single devices"):
        plan(**arguments)


def test_more_gaps_than_allowed_are_an_error(serve, tmp_path):
    serve()
    with pytest.raises(InvalidArgumentError, match="24 windows are missing or unsettled, more than max_windows=23"):
        plan(missing_in=str(tmp_path), every="hour", max_windows=23)
