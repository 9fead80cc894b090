"""What operators and sensors share: the times of a run, which arguments are final, and when a task is retried."""

from __future__ import annotations

from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator
from airflow.timetables.interval import CronDataIntervalTimetable, DeltaDataIntervalTimetable

from airflow_provider_unleash import tasks
from airflow_provider_unleash.core.windows import RunTimes
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    EmptyResultError,
    InvalidArgumentError,
    RateLimitError,
    ServerError,
    UnleashError,
    WindowError,
)
from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.simulator import Fault
from tests.support.dag_runs import DAILY, run_dag
from tests.support.not_retried import not_retried
from tests.support.sample_day import DAY, NEXT_DAY, STREET, UTC, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

HAS_POLICIES = tasks.RetryPolicy is not None
only_with_policies = pytest.mark.skipif(not HAS_POLICIES, reason="this Airflow has no retry policies")


def test_times_that_a_run_does_not_have_are_none():
    assert tasks.run_times({}) == RunTimes(None, None, None, None, None, None, UTC, "")


def test_times_come_from_the_context_the_dag_and_the_dag_run():
    zone = ZoneInfo("Europe/Berlin")
    context = make_context(run_type="asset_triggered", run_after=NEXT_DAY, dag_timezone=zone, logical_date=DAY)
    assert tasks.run_times(context) == RunTimes(
        data_interval_start=DAY,
        data_interval_end=NEXT_DAY,
        logical_date=DAY,
        run_after=NEXT_DAY,
        timezone=zone,
        run_kind="asset_triggered",
    )


@pytest.mark.parametrize(
    ("dag_run", "expected"),
    [
        ({"partition_date": DAY, "partition_key": "2026-01-12"}, {"partition_date": DAY, "undated_partition": None}),
        ({"partition_key": "2026-01-12"}, {"partition_date": None, "undated_partition": "2026-01-12"}),
        ({"start_date": DAY}, {"run_after": DAY}),
        ({"start_date": DAY, "run_after": NEXT_DAY}, {"run_after": NEXT_DAY}),
        ({"run_type": SimpleNamespace(value="backfill")}, {"run_kind": "backfill"}),
    ],
    ids=["Airflow 3.3", "Airflow 3.2, without the date of a partition", "Airflow 2.11", "Airflow 3", "an enum"],
)
def test_times_are_found_in_every_airflow(dag_run, expected):
    times = tasks.run_times({"dag_run": SimpleNamespace(**dag_run)})
    assert {name: getattr(times, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("timetable", "zone"),
    [
        (SimpleNamespace(timezone="Asia/Tokyo"), "Asia/Tokyo"),
        (SimpleNamespace(_timezone=ZoneInfo("Asia/Tokyo")), "Asia/Tokyo"),
        (CronDataIntervalTimetable("@daily", timezone="Asia/Tokyo"), "Asia/Tokyo"),
        (DeltaDataIntervalTimetable(timedelta(days=1)), "Europe/Berlin"),
        (None, "Europe/Berlin"),
    ],
)
def test_days_are_those_of_the_timetable_else_of_the_dag(timetable, zone):
    dag = SimpleNamespace(timezone=ZoneInfo("Europe/Berlin"), timetable=timetable)
    assert str(tasks.run_times({"dag": dag}).timezone) == zone


@pytest.mark.parametrize(
    "value", [None, "", "W1", "{", 1, 0.5, True, DAY, date(2026, 1, 12), timedelta(1), [], ["W1"], {"a": "string"}]
)
def test_a_plain_value_is_final_when_the_dag_is_parsed(value):
    assert tasks.is_literal(value)


@pytest.mark.parametrize(
    "value",
    [
        *("{{ ds }}", "{% if ds %}a{% endif %}", ["W1", "{{ ds }}"], ("{{ ds }}",), {"{{ ds }}"}, {"a": "{{ ds }}"}),
        *(BaseOperator(task_id="a").output, [BaseOperator(task_id="b").output], lambda context: None),
    ],
)
def test_a_template_or_the_output_of_a_task_is_not_final(value):
    assert not tasks.is_literal(value)


def test_a_permanent_error_is_not_retried_and_any_other_keeps_its_type():
    with not_retried(AuthenticationError, match="expired"), tasks.no_retry():
        raise AuthenticationError("expired", status=401)
    for error in (ServerError("", status=503), EmptyResultError(""), KeyError("a")):
        with pytest.raises(type(error)) as caught, tasks.no_retry():
            raise error
        assert caught.value is error


@pytest.mark.parametrize("kind", [InvalidArgumentError, WindowError])
def test_an_invalid_argument_of_a_constructor_keeps_its_type_and_is_not_retried(kind):
    with pytest.raises(kind, match="too long") as caught, tasks.no_retry():
        raise kind("too long", argument="window")
    assert isinstance(caught.value, AirflowFailException)
    assert isinstance(caught.value, ValueError)
    assert type(caught.value).__name__ == kind.__name__
    assert caught.value.argument == "window"


@only_with_policies
@pytest.mark.parametrize(
    ("error", "action", "seconds"),
    [
        (RateLimitError("", status=429, retry_after=90.0), "retry", 90.0),
        (ServerError("", status=503, retry_after=61.5), "retry", 61.5),
        (RateLimitError("", status=429, retry_after=0.0), "default", None),
        (RateLimitError("", status=429, retry_after=1e300), "retry", 86_400.0),
        (RateLimitError("", status=429), "default", None),
        (EmptyResultError(""), "default", None),
        (AuthenticationError("", status=401), "fail", None),
        (WindowError("", argument="window"), "fail", None),
        (UnleashError(""), "default", None),
        (ValueError(""), "default", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_error_decides_whether_and_when_a_task_is_retried(error, action, seconds):
    decision = tasks.RetryAfterPolicy().evaluate(error, 1, 3)
    assert decision.action.value == action
    assert decision.retry_delay == (None if seconds is None else timedelta(seconds=seconds))


@only_with_policies
@pytest.mark.parametrize(
    ("settings", "try_number", "own"),
    [
        ({"retry_delay": 300}, 1, 300),
        ({"retry_delay": 300}, 4, 300),
        ({"retry_delay": 300, "retry_exponential_backoff": True}, 1, 300),
        ({"retry_delay": 300, "retry_exponential_backoff": True}, 4, 2400),
        ({"retry_delay": 300, "retry_exponential_backoff": True, "max_retry_delay": 600}, 4, 600),
        ({"retry_delay": 300, "retry_exponential_backoff": 3.0}, 2, 900),
        ({"retry_delay": 300, "retry_exponential_backoff": True}, 10**6, 86_400),
    ],
    ids=str,
)
def test_a_retry_comes_after_the_longer_delay_of_the_api_and_the_task(settings, try_number, own):
    """Otherwise a short Retry-After uses up all retries within a minute."""
    settings = {name: timedelta(seconds=value) if name.endswith("delay") else value for name, value in settings.items()}
    context = {"task": UnleashListDevicesOperator(task_id="a", **settings)}

    def evaluate(seconds: float) -> Any:
        return tasks.RetryAfterPolicy().evaluate(ServerError("", retry_after=seconds), try_number, 6, context)

    for seconds in (0.0, 1.0, own - 1.0):
        assert evaluate(seconds).action.value == "default"
    if own < 86_400:
        assert evaluate(own + 1.0).retry_delay == timedelta(seconds=own + 1)


def test_every_task_has_the_policy_if_airflow_has_policies():
    for task in (
        UnleashListDevicesOperator(task_id="a"),
        UnleashToObjectStorageOperator(task_id="b", device_id="c", dst="/d"),
        UnleashNewSessionsSensor(task_id="e"),
    ):
        policy = getattr(task, "retry_policy", None)
        assert (policy is not None) is HAS_POLICIES
        if HAS_POLICIES:
            assert isinstance(policy, tasks.RetryAfterPolicy)
            assert isinstance(type(policy).deserialize(policy.serialize()), tasks.RetryAfterPolicy)


@only_with_policies
def test_a_policy_of_the_author_takes_precedence_also_from_default_args():
    from airflow.providers.common.compat.sdk import DAG, ExceptionRetryPolicy

    own = ExceptionRetryPolicy(rules=[])
    assert UnleashListDevicesOperator(task_id="a", retry_policy=own).retry_policy is own
    with DAG(dag_id="policies", default_args={"retry_policy": own}):
        assert UnleashListDevicesOperator(task_id="a").retry_policy is own
        assert UnleashToObjectStorageOperator(task_id="b", device_id="c", dst="/d").retry_policy is own
        assert UnleashNewSessionsSensor(task_id="e").retry_policy is own


@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_long_retry_after_ends_the_try_and_delays_the_next_one(airflow_home, serve, monkeypatch, is_mapped):
    monkeypatch.setattr("airflow_provider_unleash.core.throttle.MAX_PAUSE", 0.5)
    sim = serve()
    sim.add_fault(Fault("429", times=1, retry_after=2))
    arguments = "task_id='rows', retries=1, retry_delay=timedelta(0)"
    task = (
        f"UnleashGetAnalyticsOperator.partial({arguments}).expand(device_id=[{STREET!r}])"
        if is_mapped
        else f"UnleashGetAnalyticsOperator({arguments}, device_id={STREET!r})"
    )
    run = run_dag(airflow_home, task, arguments=DAILY)
    assert run.state == "success"
    assert list(run.tries.values()) == [2]
    refused, answered = (request.time for request in sim.requests[:2])
    if HAS_POLICIES:
        assert answered - refused >= 2.0
