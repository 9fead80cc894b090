"""The sensor waits for exactly the sessions that are new to a run, in every mode, and keeps nothing on itself."""

from __future__ import annotations

import inspect
import json
import re
import time
from datetime import datetime, timedelta
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, BaseSensorOperator, PokeReturnValue

from airflow_provider_unleash import exceptions as errors
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.dag_runs import can_reschedule, has_runs_without_dates, run_dag
from tests.support.sample_day import DAY, DAY_END, DAY_START, HOUR_MS, NEXT_DAY, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

RETRIES = "retries=2, retry_delay=timedelta(0)"


@pytest.fixture
def sim(serve) -> Simulator:
    """Give an account whose sessions begin about each hour, from the day before the day to the day after."""
    return serve(
        sessions_from=DAY_START - 24 * HOUR_MS, session_period=3600.0, clock=lambda: DAY_END / 1000 + 24 * 3600
    )


def poke(context: dict[str, Any] | None = None, **arguments: Any) -> PokeReturnValue:
    sensor = UnleashNewSessionsSensor(task_id="wait", **arguments)
    return sensor.poke(make_context() if context is None else context)


def fail(**arguments: Any) -> BaseException:
    """Return the cause of a task that Airflow will not try again."""
    with pytest.raises(AirflowFailException) as caught:
        UnleashNewSessionsSensor(task_id="wait", timeout=5, **arguments).execute(make_context())
    assert caught.value.__cause__ is not None
    assert f"{type(caught.value.__cause__).__name__}: {caught.value.__cause__}" in str(caught.value)
    return caught.value.__cause__


def new(context: dict[str, Any] | None = None, **arguments: Any) -> list[str]:
    return poke(context, **arguments).xcom_value


def between(sim: Simulator, start: int, end: int) -> list[str]:
    sessions = [session for session in sim.sessions() if start <= int(session) < end]
    assert 0 < len(sessions) < len(sim.sessions())
    return sessions


# ---- what is new -------------------------------------------------------------------------------


def test_by_default_new_are_the_sessions_of_the_data_interval(sim):
    assert new() == between(sim, DAY_START, DAY_END)


def test_a_backfill_looks_at_its_own_day(sim):
    yesterday = make_context((DAY - timedelta(days=1), DAY))
    assert new(yesterday) == between(sim, DAY_START - 24 * HOUR_MS, DAY_START)


@pytest.mark.parametrize(
    "context",
    [
        make_context(None, run_type="manual", run_after=DAY),
        make_context((NEXT_DAY, NEXT_DAY), run_after=DAY),
    ],
    ids=["no interval", "empty interval"],
)
def test_without_an_interval_new_are_the_sessions_since_run_after(sim, context):
    assert new(context) == between(sim, DAY_START, 10**14)


def test_a_run_that_knows_no_moment_at_all_does_not_fail_for_want_of_a_window(sim):
    assert new(make_context(None)) == sim.sessions()


@pytest.mark.parametrize("spell", [str, int, lambda ms: pendulum.from_timestamp(ms / 1000)])
def test_a_session_at_since_is_new_and_one_at_until_is_not(sim, spell):
    sessions = sim.sessions()
    since, until = spell(int(sessions[2])), spell(int(sessions[5]))
    assert new(since=since, until=until) == sessions[2:5]


def test_one_bound_that_is_given_leaves_the_other_to_the_interval(sim):
    sessions = between(sim, DAY_START, DAY_END)
    assert new(since=sessions[3]) == sessions[3:]
    assert new(until=sessions[3]) == sessions[:3]


def test_without_an_interval_until_alone_ends_what_run_after_begins(sim):
    context = make_context(None, run_after=DAY)
    assert new(context, until=DAY_START + 6 * HOUR_MS) == between(sim, DAY_START, DAY_START + 6 * HOUR_MS)


@pytest.mark.parametrize("nothing", [None, "", "None"])
def test_a_bound_or_list_that_renders_to_nothing_is_not_given(sim, nothing):
    assert new(since=nothing, until=nothing, known_sessions=nothing) == between(sim, DAY_START, DAY_END)


def test_known_sessions_alone_decide_where_they_are_given(sim):
    sessions = sim.sessions()
    assert new(known_sessions=sessions[4:]) == sessions[:4]
    assert new(known_sessions=sessions) == []
    assert new(known_sessions=["unheard of"], since=DAY, until=NEXT_DAY) == sessions


@pytest.mark.parametrize("nothing", [[], (), set()])
def test_an_empty_list_of_known_sessions_makes_every_session_new(sim, nothing):
    assert new(known_sessions=nothing) == sim.sessions()


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, dict.fromkeys])
def test_known_sessions_can_be_any_collection(sim, kind):
    assert new(known_sessions=kind(sim.sessions()[:-2])) == sim.sessions()[-2:]


def test_a_text_of_known_sessions_fails_for_good_with_a_way_out(sim):
    sensor = UnleashNewSessionsSensor(task_id="wait", known_sessions="{{ ti.xcom_pull(task_ids='list') }}")
    sensor.known_sessions = str(sim.sessions())  # as rendering does
    with pytest.raises(AirflowFailException, match="render_template_as_native_obj") as caught:
        sensor.execute(make_context())
    assert isinstance(caught.value.__cause__, errors.InvalidArgumentError)
    assert caught.value.__cause__.argument == "known_sessions"
    assert sim.requests == []


def test_new_sessions_come_oldest_first_and_each_once(answer):
    answer(b'["1768180000000", "1768179000000", "1768180000000", "1768181000000"]')
    assert new() == ["1768179000000", "1768180000000", "1768181000000"]
    assert new(known_sessions=["1768181000000"]) == ["1768179000000", "1768180000000"]


def test_an_id_that_is_no_start_fails_for_good_unless_known_sessions_are_given(answer):
    answer(b'["1768180000000", "s-4711"]')
    error = fail()
    assert isinstance(error, errors.UnexpectedResponseError)
    assert "s-4711" in str(error)
    assert set(new(known_sessions=[])) == {"1768180000000", "s-4711"}


def test_the_wait_is_over_at_min_sessions_and_not_before(sim):
    count = len(between(sim, DAY_START, DAY_END))
    assert poke(min_sessions=count).is_done is True
    assert poke(min_sessions=count + 1).is_done is False
    assert poke(known_sessions=sim.sessions()).is_done is False
    assert poke(known_sessions=sim.sessions()[1:]).is_done is True


def test_a_session_counts_once_its_start_lies_min_age_back(answer):
    ages = (7200, 3660, 3540, 60)
    starts = [str(int((time.time() - age) * 1000)) for age in ages]
    answer(json.dumps(starts).encode())
    run = make_context(None, run_after=datetime.fromtimestamp(0, tz=DAY.tzinfo))
    assert new(run, min_age=timedelta(hours=1)) == starts[:2]
    assert new(run, min_age=timedelta(minutes=1)) == starts
    assert new(run) == starts
    assert new(known_sessions=starts[:1], min_age=timedelta(hours=1)) == starts[1:2]
    assert poke(run, min_age=timedelta(hours=1), min_sessions=3).is_done is False


def test_nothing_is_kept_between_pokes(sim):
    sensor = UnleashNewSessionsSensor(task_id="wait", known_sessions=sim.sessions()[:-1])

    def state() -> dict[str, Any]:
        return {name: value for name, value in vars(sensor).items() if "log" not in name}

    before = state()
    first = sensor.poke(make_context())
    assert sensor.poke(make_context()).xcom_value == first.xcom_value == sim.sessions()[-1:]
    assert state() == before


def test_each_poke_asks_for_the_sessions_once(sim):
    poke()
    assert [request.path for request in sim.requests] == ["/v1/analytics/sessions"]


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"min_sessions": 0}, "min_sessions"),
        ({"min_sessions": -1}, "min_sessions"),
        ({"min_age": timedelta(seconds=-1)}, "min_age"),
        ({"since": "yesterday"}, "since"),
        ({"until": "today"}, "until"),
        ({"since": 1_768_176_000}, "since"),
        ({"since": NEXT_DAY, "until": DAY}, "since"),
        ({"known_sessions": "1768179000000"}, "known_sessions"),
    ],
    ids=str,
)
def test_a_literal_that_cannot_be_used_is_a_value_error_when_the_dag_is_parsed(arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        UnleashNewSessionsSensor(task_id="wait", **arguments)
    assert caught.value.argument == named


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"since": "yesterday"}, errors.InvalidArgumentError),
        ({"until": "1768176000"}, errors.InvalidArgumentError),
        ({"since": NEXT_DAY, "until": DAY}, errors.WindowError),
        ({"since": DAY, "until": DAY}, errors.WindowError),
        ({"since": NEXT_DAY}, errors.WindowError),
    ],
    ids=str,
)
def test_bounds_that_no_session_can_lie_between_fail_for_good_before_any_request(sim, arguments, kind):
    sensor = UnleashNewSessionsSensor(task_id="wait", since="{{ ds }}", until="{{ ds }}")
    sensor.since, sensor.until = arguments.get("since"), arguments.get("until")  # as rendering does
    with pytest.raises(AirflowFailException) as caught:
        sensor.execute(make_context())
    assert type(caught.value.__cause__) is kind
    assert sim.requests == []


def test_a_parameter_is_documented_as_templated_exactly_where_it_is():
    documented = re.findall(r":param (\w+):(.*?)(?=\n\s*:|\Z)", inspect.getdoc(UnleashNewSessionsSensor), re.DOTALL)
    templated = {name for name, text in documented if "(templated)" in text}
    assert templated == set(UnleashNewSessionsSensor.template_fields)


def test_every_parameter_is_documented_and_no_name_is_airflows():
    documented = re.findall(r":param (\w+):", inspect.getdoc(UnleashNewSessionsSensor))
    parameters = inspect.signature(UnleashNewSessionsSensor.__init__).parameters.values()
    assert documented == [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert not set(documented) & set(inspect.signature(BaseSensorOperator.__init__).parameters)


# ---- errors ------------------------------------------------------------------------------------


def test_a_wrong_key_fails_for_good_after_one_request(sim, connect):
    connect(host=sim.base_url, password="wrong")
    error = fail()
    assert isinstance(error, errors.AuthenticationError)
    assert "expires" in str(error)
    assert len(sim.requests) == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [("500", errors.ServerError), ("429", errors.RateLimitError), ("html", errors.TransportError)],
)
def test_a_passing_fault_is_left_to_airflows_retries(sim, kind, error):
    sim.add_fault(Fault(kind, times=None))
    with pytest.raises(error):
        UnleashNewSessionsSensor(task_id="wait").execute(make_context())


# ---- real runs ---------------------------------------------------------------------------------


def third_time_lucky(serve) -> Simulator:
    """Serve an account that has one session, and another one from the third request on."""
    options = {"sessions_from": DAY_START, "session_period": 3600.0}
    second = int(Simulator(**options, clock=lambda: DAY_END / 1000).sessions()[1]) / 1000
    served = []
    sim = serve(**options, clock=lambda: second + (1 if served and len(served[0].requests) >= 2 else -1))
    served.append(sim)
    return sim


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_the_wait_ends_when_enough_sessions_have_begun_and_returns_them(airflow_home, serve, mode):
    sim = third_time_lucky(serve)
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


def test_templates_reach_the_sensor(airflow_home, serve, connect, sim):
    connect(conn_id="unleash_other", host=sim.base_url, password=sim.api_key)
    connect(host="http://127.0.0.1:1", password="not this one")
    run = run_dag(
        airflow_home,
        """
        sessions = UnleashListSessionsOperator(
            task_id="sessions", unleash_conn_id="unleash_other", until="{{ data_interval_end.subtract(hours=2) }}"
        )
        UnleashNewSessionsSensor(
            task_id="by_time", unleash_conn_id="{{ 'unleash_' ~ 'other' }}", timeout=5,
            since="{{ data_interval_start.add(hours=1) }}", until="{{ data_interval_start.add(hours=5) }}",
            known_sessions="{{ none }}",
        )
        UnleashNewSessionsSensor(
            task_id="by_id", unleash_conn_id="unleash_other", known_sessions=sessions.output, timeout=5
        )
        """,
    )
    assert run.state == "success"
    assert run.xcoms["by_time"] == between(sim, DAY_START + HOUR_MS, DAY_START + 5 * HOUR_MS)
    assert run.xcoms["by_id"] == between(sim, DAY_END - 2 * HOUR_MS, 10**14)


def test_a_run_without_a_window_looks_from_run_after_on(airflow_home, serve):
    now = int(time.time() * 1000)
    sim = serve(sessions_from=now - 10 * HOUR_MS, session_period=60.0, clock=lambda: now / 1000 + 1200)
    moment = None if has_runs_without_dates(DAG("any", schedule=None)) else datetime.now(DAY.tzinfo)
    run = run_dag(airflow_home, 'UnleashNewSessionsSensor(task_id="wait", timeout=5)', moment, "schedule=None")
    found, surely = run.xcoms["wait"], [session for session in sim.sessions() if int(session) > time.time() * 1000]
    assert run.state == "success"
    assert all(int(session) >= now for session in found)
    assert found[-len(surely) :] == surely != []


def test_what_repeating_cannot_help_fails_on_the_first_try_in_every_mode(airflow_home, sim, connect):
    connect(host=sim.base_url, password="wrong")
    run = run_dag(
        airflow_home,
        f"""
        for mode in ("poke", "reschedule"):
            UnleashNewSessionsSensor(task_id=mode, mode=mode, timeout=5, {RETRIES})
        """,
    )
    assert run.states == {"poke": "failed", "reschedule": "failed"}
    assert run.tries == {"poke": 1, "reschedule": 1}
    assert len(sim.requests) == 2


def test_an_expired_key_is_no_day_without_sessions_so_nothing_skips_it_or_waits_on(airflow_home, sim, connect):
    connect(host=sim.base_url, password="ul_pat_expired")
    run = run_dag(
        airflow_home,
        f"""
        for name in ("soft_fail", "silent_fail"):
            UnleashNewSessionsSensor(task_id=name, poke_interval=0.1, timeout=0.5, **{{name: True}}, {RETRIES})
        """,
    )
    assert run.states == {"soft_fail": "failed", "silent_fail": "failed"}
    assert run.tries == {"soft_fail": 1, "silent_fail": 1}
    assert len(sim.requests) == 2


def test_a_passing_fault_is_retried_by_airflow(airflow_home, serve):
    sim = serve(
        sessions_from=DAY_START,
        session_period=3600.0,
        clock=lambda: DAY_END / 1000,
        extra={"max_attempts": 1},
        faults=[Fault("500")],
    )
    run = run_dag(airflow_home, f'UnleashNewSessionsSensor(task_id="wait", timeout=5, {RETRIES})')
    assert (run.state, run.tries["wait"]) == ("success", 2)
    assert len(sim.requests) == 2


def test_a_wait_in_vain_fails_and_with_soft_fail_skips(airflow_home, sim):
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
