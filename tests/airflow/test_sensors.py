"""The sensor waits for exactly the sessions that are new to a run, in every mode, and keeps no state on itself."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSensorTimeout, PokeReturnValue, TaskDeferred

from airflow_provider_unleash import exceptions as errors
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.answering import trickling
from tests.support.dag_runs import can_reschedule, has_runs_without_dates, run_dag
from tests.support.not_retried import not_retried
from tests.support.sample_day import DAY, DAY_END, DAY_START, HOUR_MS, NEXT_DAY, make_context
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_retries")

RETRIES = "retries=2, retry_delay=timedelta(0)"


@pytest.fixture
def sim(serve) -> Simulator:
    """Serve an account with about one session per hour, from the day before to the day after."""
    return serve(
        sessions_from=DAY_START - 24 * HOUR_MS, session_period=3600.0, clock=lambda: DAY_END / 1000 + 24 * 3600
    )


def poke(context: dict[str, Any] | None = None, **arguments: Any) -> PokeReturnValue:
    return UnleashNewSessionsSensor(task_id="wait", **arguments).poke(context or make_context())


def new(context: dict[str, Any] | None = None, **arguments: Any) -> list[str]:
    return poke(context, **arguments).xcom_value


def between(sim: Simulator, start: int, end: int) -> list[str]:
    sessions = [session for session in sim.sessions() if start <= int(session) < end]
    assert 0 < len(sessions) < len(sim.sessions())
    return sessions


def test_a_sensor_that_is_killed_between_two_pokes_sends_no_more_requests(sim):
    sensor = UnleashNewSessionsSensor(task_id="wait")
    sensor.poke(make_context())
    sim.clear_requests()
    sensor.on_kill()
    with pytest.raises(errors.TransportError, match="cancelled"):
        sensor.poke(make_context())
    assert sim.requests == []


def test_new_sessions_are_by_default_those_of_the_runs_data_interval(sim):
    assert new() == between(sim, DAY_START, DAY_END)
    yesterday = make_context((DAY - timedelta(days=1), DAY))
    assert new(yesterday) == between(sim, DAY_START - 24 * HOUR_MS, DAY_START)


@pytest.mark.parametrize("interval", [None, (NEXT_DAY, NEXT_DAY)])
def test_without_a_data_interval_new_sessions_start_at_or_after_run_after(sim, interval):
    context = make_context(interval, run_after=DAY)
    assert new(context) == between(sim, DAY_START, 10**14)
    assert new(context, until=DAY_START + 6 * HOUR_MS) == between(sim, DAY_START, DAY_START + 6 * HOUR_MS)
    assert new(make_context(None)) == sim.sessions()


@pytest.mark.parametrize("nothing", [None, "", "None"])
def test_arguments_that_render_to_nothing_are_not_given(sim, nothing):
    assert new(since=nothing, until=nothing, known_sessions=nothing) == between(sim, DAY_START, DAY_END)


@pytest.mark.parametrize("collection", [list, tuple, set, frozenset, dict.fromkeys])
def test_if_known_sessions_are_given_all_others_are_new(sim, collection):
    sessions = sim.sessions()
    assert new(known_sessions=collection(sessions[:-2])) == sessions[-2:]
    assert new(known_sessions=collection(sessions)) == []
    assert new(known_sessions=collection([]), since=DAY, until=NEXT_DAY) == sessions


def test_known_sessions_that_render_to_a_string_fail_with_a_way_out(sim):
    sensor = UnleashNewSessionsSensor(task_id="wait", known_sessions="{{ ti.xcom_pull(task_ids='list') }}")
    sensor.known_sessions = str(sim.sessions())  # as rendering does
    with not_retried(errors.InvalidArgumentError, match="render_template_as_native_obj") as caught:
        sensor.execute(make_context())
    assert caught.value.argument == "known_sessions"
    assert sim.requests == []


def test_the_wait_ends_at_min_sessions_and_not_before(sim):
    count = len(between(sim, DAY_START, DAY_END))
    assert poke(min_sessions=count).is_done is True
    assert poke(min_sessions=count + 1).is_done is False
    assert poke(known_sessions=sim.sessions()).is_done is False
    assert poke(known_sessions=sim.sessions()[1:]).is_done is True


def test_each_poke_makes_one_request_and_keeps_no_state(sim):
    sensor = UnleashNewSessionsSensor(task_id="wait", known_sessions=sim.sessions()[:-1])

    def state() -> dict[str, Any]:
        return {name: value for name, value in vars(sensor).items() if "log" not in name}

    before = state()
    for _ in range(2):
        assert sensor.poke(make_context()).xcom_value == sim.sessions()[-1:]
    assert state() == before
    assert [request.path for request in sim.requests] == ["/v1/analytics/sessions"] * 2


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_timeout_ends_a_poke_that_gets_no_complete_response(connect, deferrable):
    """Airflow checks the timeout only between pokes."""
    with trickling() as (url, events):
        connect(host=url, password="any-key", extra={"timeout": 1})
        sensor = UnleashNewSessionsSensor(task_id="wait", timeout=1, poke_interval=0.1, deferrable=deferrable)
        began = time.monotonic()
        with pytest.raises(TaskDeferred if deferrable else AirflowSensorTimeout):
            sensor.execute(make_context())
        assert time.monotonic() - began < 30
        wait_until(lambda: "end" in events)
        assert events == ["request", "end"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(({"min_sessions": number}, "min_sessions") for number in (0, "2", None)),
        *(({"min_age": age}, "min_age") for age in (timedelta(seconds=-1), "P1D", 60)),
        ({"since": "yesterday"}, "since"),
        ({"until": "today"}, "until"),
        ({"since": 1_768_176_000}, "since"),
        ({"since": NEXT_DAY, "until": DAY}, "since"),
        ({"known_sessions": "1768179000000"}, "known_sessions"),
    ],
    ids=str,
)
def test_an_invalid_literal_is_a_value_error_when_the_dag_is_parsed(arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        UnleashNewSessionsSensor(task_id="wait", **arguments)
    assert caught.value.argument == named


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ({"since": "yesterday"}, errors.InvalidArgumentError),
        ({"until": "1768176000"}, errors.InvalidArgumentError),
        ({"since": NEXT_DAY, "until": DAY}, errors.WindowError),
        ({"since": DAY, "until": DAY}, errors.WindowError),
        ({"since": NEXT_DAY}, errors.WindowError),
    ],
    ids=str,
)
def test_rendered_bounds_between_which_no_session_can_start_fail_before_any_request(sim, bounds, error):
    sensor = UnleashNewSessionsSensor(task_id="wait", since="{{ ds }}", until="{{ ds }}")
    sensor.since, sensor.until = bounds.get("since"), bounds.get("until")  # as rendering does
    with not_retried(error):
        sensor.execute(make_context())
    assert sim.requests == []


@pytest.mark.parametrize(
    ("kind", "error"), [("500", errors.ServerError), ("429", errors.RateLimitError), ("html", errors.TransportError)]
)
def test_a_transient_error_is_left_to_airflows_retries(sim, kind, error):
    sim.add_fault(Fault(kind, times=None))
    with pytest.raises(error):
        UnleashNewSessionsSensor(task_id="wait").execute(make_context())


def serve_second_session_late(serve) -> Simulator:
    """Serve an account with one session, and with a second one from the third request on."""
    options = {"sessions_from": DAY_START, "session_period": 3600.0}
    second = int(Simulator(**options, clock=lambda: DAY_END / 1000).sessions()[1]) / 1000
    served = []
    sim = serve(**options, clock=lambda: second + (1 if served and len(served[0].requests) >= 2 else -1))
    served.append(sim)
    return sim


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_the_sensor_returns_the_sessions_once_there_are_enough(airflow_home, serve, mode):
    sim = serve_second_session_late(serve)
    run = run_dag(
        airflow_home,
        f"""
        wait = UnleashNewSessionsSensor(
            task_id="wait", mode={mode!r}, poke_interval=0.1, timeout=60, min_sessions=2
        )

        @task
        def count(sessions):
            return len(sessions)

        count(wait.output)
        """,
    )
    if mode == "reschedule" and run.state != "success" and not can_reschedule(airflow_home):
        pytest.skip("this Airflow cannot reschedule in dag.test()")
    assert run.state == "success"
    assert run.xcoms == {"wait": sim.sessions()[:2], "count": 2}
    assert len(sim.requests) == 3
    assert run.tries["wait"] == 1


def test_template_fields_are_rendered(airflow_home, serve, connect, sim):
    connect(conn_id="unleash_other", host=sim.base_url, password=sim.api_key)
    connect(host="http://127.0.0.1:1", password="not this one")
    run = run_dag(
        airflow_home,
        """
        sessions = UnleashListSessionsOperator(
            task_id="sessions", unleash_conn_id="unleash_other", until="{{ data_interval_end.subtract(hours=2) }}"
        )
        UnleashNewSessionsSensor(
            task_id="by_time", unleash_conn_id="{{ 'unleash_' ~ 'other' }}", timeout=60,
            since="{{ data_interval_start.add(hours=1) }}", until="{{ data_interval_start.add(hours=5) }}",
            known_sessions="{{ none }}",
        )
        UnleashNewSessionsSensor(
            task_id="by_id", unleash_conn_id="unleash_other", known_sessions=sessions.output, timeout=60
        )
        """,
    )
    assert run.state == "success"
    assert run.xcoms["by_time"] == between(sim, DAY_START + HOUR_MS, DAY_START + 5 * HOUR_MS)
    assert run.xcoms["by_id"] == between(sim, DAY_END - 2 * HOUR_MS, 10**14)


def test_a_run_without_a_data_interval_waits_for_sessions_since_run_after(airflow_home, serve):
    now = int(time.time() * 1000)
    sim = serve(sessions_from=now - 10 * HOUR_MS, session_period=60.0, clock=lambda: now / 1000 + 1200)
    moment = None if has_runs_without_dates(DAG("any", schedule=None)) else datetime.now(DAY.tzinfo)
    run = run_dag(airflow_home, 'UnleashNewSessionsSensor(task_id="wait", timeout=60)', moment, "schedule=None")
    found, later = run.xcoms["wait"], [session for session in sim.sessions() if int(session) > time.time() * 1000]
    assert run.state == "success"
    assert all(int(session) >= now for session in found)
    assert found[-len(later) :] == later != []


def test_a_permanent_error_fails_the_first_try_in_every_mode_and_is_never_skipped(airflow_home, sim, connect):
    connect(host=sim.base_url, password="ul_pat_expired")
    run = run_dag(
        airflow_home,
        f"""
        common = dict(poke_interval=0.1, timeout=30, {RETRIES})
        for mode in ("poke", "reschedule"):
            UnleashNewSessionsSensor(task_id=mode, mode=mode, **common)
        for name in ("soft_fail", "silent_fail"):
            UnleashNewSessionsSensor(task_id=name, **{{name: True}}, **common)
        """,
    )
    assert run.states == dict.fromkeys(("poke", "reschedule", "soft_fail", "silent_fail"), "failed")
    assert set(run.tries.values()) == {1}
    assert len(sim.requests) == 4


def test_a_timeout_fails_the_task_and_with_soft_fail_skips_it(airflow_home, sim):
    run = run_dag(
        airflow_home,
        """
        for soft_fail in (False, True):
            UnleashNewSessionsSensor(
                task_id=f"wait_{soft_fail}", soft_fail=soft_fail, min_sessions=1000, poke_interval=0.1, timeout=0.3
            )
        """,
    )
    assert run.states == {"wait_False": "failed", "wait_True": "skipped"}
    assert run.xcoms == {}
