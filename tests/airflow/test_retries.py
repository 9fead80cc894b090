"""A task is tried again when the API said so, and not where repeating cannot help."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_unleash import tasks
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    EmptyResultError,
    RateLimitError,
    ServerError,
    UnleashError,
    WindowError,
)
from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.dag_runs import DAILY, run_dag

pytestmark = pytest.mark.usefixtures("quick_retries")

has_policies = tasks.RetryPolicy is not None
only_with_policies = pytest.mark.skipif(not has_policies, reason="this Airflow has no retry policies")


@only_with_policies
@pytest.mark.parametrize(
    ("error", "action", "seconds"),
    [
        (RateLimitError("", status=429, retry_after=90.0), "retry", 90.0),
        (ServerError("", status=503, retry_after=61.5), "retry", 61.5),
        (RateLimitError("", status=429, retry_after=0.0), "retry", 0.0),
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
def test_the_error_decides(error: Exception, action: str, seconds: float | None) -> None:
    decision = tasks.RetryAfterPolicy().evaluate(error, 1, 3)
    assert decision.action.value == action
    assert decision.retry_delay == (None if seconds is None else timedelta(seconds=seconds))


def test_each_task_has_a_policy_where_airflow_has_them() -> None:
    for task in (
        UnleashListDevicesOperator(task_id="a"),
        UnleashToObjectStorageOperator(task_id="b", device_id="c", dst="/d"),
        UnleashNewSessionsSensor(task_id="e"),
    ):
        policy = getattr(task, "retry_policy", None)
        assert (policy is not None) is has_policies
        if has_policies:
            assert isinstance(policy, tasks.RetryAfterPolicy)
            assert isinstance(type(policy).deserialize(policy.serialize()), tasks.RetryAfterPolicy)


@only_with_policies
def test_one_that_is_given_wins_and_so_does_one_among_default_args() -> None:
    from airflow.providers.common.compat.sdk import DAG, ExceptionRetryPolicy

    own = ExceptionRetryPolicy(rules=[])
    assert UnleashListDevicesOperator(task_id="a", retry_policy=own).retry_policy is own
    with DAG(dag_id="policies", default_args={"retry_policy": own}):
        assert UnleashListDevicesOperator(task_id="a").retry_policy is own
        assert UnleashToObjectStorageOperator(task_id="b", device_id="c", dst="/d").retry_policy is own
        assert UnleashNewSessionsSensor(task_id="e").retry_policy is own


@pytest.mark.parametrize("mapped", [False, True])
def test_a_long_retry_after_frees_the_slot_and_is_the_delay_of_the_retry(
    airflow_home: Any, serve: Callable[..., Simulator], monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    monkeypatch.setattr("airflow_provider_unleash.core.requester.MAX_PAUSE", 0.5)
    sim = serve()
    sim.add_fault(Fault("429", times=1, retry_after=2))
    # Without a policy of its own, the task would wait for the ten minutes, or here not at all.
    delay = "timedelta(minutes=10)" if has_policies else "timedelta(0)"
    arguments = f"task_id='rows', retries=1, retry_delay={delay}"
    task = (
        f"UnleashGetAnalyticsOperator.partial({arguments}).expand(device_id=['Wb8fabc31378ce07'])"
        if mapped
        else f"UnleashGetAnalyticsOperator({arguments}, device_id='Wb8fabc31378ce07')"
    )
    began = time.monotonic()
    run = run_dag(airflow_home, task, arguments=DAILY)
    assert run.state == "success"
    assert list(run.tries.values()) == [2]
    refused, answered = (request.time for request in sim.requests[:2])
    if has_policies:
        assert 2.0 <= answered - refused < 60
    assert time.monotonic() - began < 60
