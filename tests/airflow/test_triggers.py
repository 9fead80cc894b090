"""Triggers select the same sessions as the sensor, share their polls, and give up only when they should."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_unleash import sensors, triggers
from airflow_provider_unleash.core.sessions import SessionList
from airflow_provider_unleash.exceptions import InvalidArgumentError, RateLimitError, ServerError, UnleashError
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.triggers import PollResult, UnleashNewSessionsEventTrigger, UnleashNewSessionsTrigger
from tests.support.answering import answering, trickling
from tests.support.dag_runs import has_asset_state_store, run_dag
from tests.support.python_processes import run_code, run_module
from tests.support.sample_day import DAY_END, DAY_START, HOUR_MS, make_context
from tests.support.waiting import wait_until

INTERVAL = 0.1
one_airflow = pytest.mark.one_airflow


class Clock:
    """A simulator's clock that tests set, in epoch milliseconds."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> float:
        return self.now_ms / 1000


@pytest.fixture
def clock() -> Clock:
    return Clock(DAY_START + 12 * HOUR_MS)


@pytest.fixture
def sim(serve: Callable[..., Simulator], clock: Clock) -> Simulator:
    """Serve an account with about one session per hour since the day before; it is noon."""
    return serve(sessions_from=DAY_START - 24 * HOUR_MS, session_period=3600.0, clock=clock)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MAX_POLL_BACKOFF", 0.2)


async def collect(
    stream: AsyncIterator[Any], most: int = 1, seconds: float = 60.0, found: list[Any] | None = None
) -> list[Any]:
    """Return the payloads of the first events; of fewer if the time is up, or if the task is cancelled."""
    found = [] if found is None else found
    with suppress(asyncio.TimeoutError, asyncio.CancelledError):
        async with aclosing(stream):  # type: ignore[type-var]

            async def read() -> None:
                async for event in stream:
                    found.append(event.payload)
                    if len(found) == most:
                        return

            await asyncio.wait_for(read(), seconds)
    return found


def fire(trigger: UnleashNewSessionsTrigger, seconds: float = 60.0) -> dict[str, Any] | None:
    """Return the trigger's event, or None if there is none within that time."""
    found = asyncio.run(collect(trigger.run(), 2, seconds))
    assert len(found) <= 1
    return found[0] if found else None


def polls(sim: Simulator) -> int:
    return sum(request.path.endswith("/sessions") for request in sim.requests)


async def wait_for_polls(sim: Simulator, number: int) -> None:
    """Wait until this many more polls have been sent."""
    until = polls(sim) + number
    while polls(sim) < until:
        await asyncio.sleep(0.01)


def fire_during(sim: Simulator, number: int, *waiting: Any) -> list[list[Any]]:
    """Return the events of triggers that wait at the same time, until this many polls have been sent."""
    until = polls(sim) + number
    return fire_until(lambda: polls(sim) >= until, *waiting)


def fire_until(is_over: Callable[[], bool], *waiting: Any) -> list[list[Any]]:
    """Return the events of triggers that wait at the same time, until a condition is true."""

    async def wait() -> list[list[Any]]:
        tasks = [asyncio.create_task(collect(trigger.run(), 99)) for trigger in waiting]
        while not is_over() and not all(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        assert is_over()
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks)

    return asyncio.run(wait())


def defer(context: dict[str, Any] | None = None, **arguments: Any) -> TaskDeferred:
    sensor = UnleashNewSessionsSensor(task_id="wait", deferrable=True, poke_interval=INTERVAL, **arguments)
    with pytest.raises(TaskDeferred) as caught:
        sensor.execute(make_context() if context is None else context)
    return caught.value


# ---- the sensor, deferred ------------------------------------------------------------------------

HISTORIES: dict[str, dict[str, Any]] = {
    "the data interval": {"min_sessions": 14},
    "since": {"since": DAY_START + 10 * HOUR_MS, "min_sessions": 5},
    "since and until": {"since": DAY_START + 13 * HOUR_MS, "until": DAY_START + 15 * HOUR_MS},
    "until only": {"until": DAY_START + 30 * HOUR_MS, "min_sessions": 16},
    "strings": {"since": "2026-01-12T13:00:00Z", "until": "2026-01-13T00:00:00Z"},
    "known sessions": {"known_sessions": ["1"], "min_sessions": 40},
    "nothing known": {"known_sessions": [], "min_sessions": 38},
    "no interval": {"context": make_context(None)},
}


@one_airflow
@pytest.mark.parametrize("hours", [1, 4, 9])
@pytest.mark.parametrize("history", HISTORIES)
def test_poke_and_trigger_return_the_same_sessions(sim, clock, history, hours):
    arguments = dict(HISTORIES[history])
    context = arguments.pop("context", make_context())
    sensor = UnleashNewSessionsSensor(task_id="wait", poke_interval=INTERVAL, deferrable=True, **arguments)
    trigger = None
    try:
        found_at_once = sensor.execute(context)
    except TaskDeferred as deferred:
        trigger = deferred.trigger
    clock.now_ms += hours * HOUR_MS
    poked = UnleashNewSessionsSensor(task_id="poke", **arguments).poke(context)
    if trigger is None:
        assert found_at_once
        return
    event = fire(trigger, 60.0 if poked.is_done else 4 * INTERVAL)
    assert (event is not None) == poked.is_done
    if event is not None:
        assert event == {"status": "success", "sessions": poked.xcom_value}
        assert sensor.execute_complete(context, event) == poked.xcom_value


def test_min_age_selects_the_same_sessions_in_the_triggerer(serve, monkeypatch):
    now = int(time.time() * 1000)
    for module in (sensors, triggers):
        monkeypatch.setattr(module, "now_ms", lambda: now)
    sim = serve(sessions_from=now - 2 * 3_600_000, session_period=600.0)
    since, age = now - 3_600_000, timedelta(minutes=30)
    context = make_context(None)
    found = UnleashNewSessionsSensor(task_id="poke", since=since, min_age=age).poke(context).xcom_value
    assert 0 < len(found) < len([session for session in sim.sessions() if int(session) >= since])
    deferred = defer(context, since=since, min_age=age, min_sessions=len(found) + 1)
    assert deferred.trigger.min_age == 1800.0
    assert fire(UnleashNewSessionsTrigger(since=since, min_age=1800.0, poke_interval=INTERVAL))["sessions"] == found


def test_the_trigger_gets_the_arguments_of_the_sensor(sim):
    deferred = defer(since=DAY_START, until=DAY_END, min_sessions=99, timeout=321.0, min_age=timedelta(seconds=1.5))
    assert deferred.timeout == timedelta(seconds=321)
    assert deferred.method_name == "execute_complete"
    path, arguments = deferred.trigger.serialize()
    assert path == "airflow_provider_unleash.triggers.UnleashNewSessionsTrigger"
    assert arguments == {
        "unleash_conn_id": "unleash_default",
        "since": DAY_START,
        "until": DAY_END,
        "known_sessions": None,
        "min_sessions": 99,
        "min_age": 1.5,
        "poke_interval": INTERVAL,
    }


@pytest.mark.parametrize(
    "trigger",
    [
        UnleashNewSessionsTrigger(since=5, known_sessions=["a"], min_age=0.5),
        UnleashNewSessionsEventTrigger(since=DAY_START, min_age=0.5, reminder=7.0),
    ],
)
def test_a_trigger_survives_serialization_unchanged(trigger):
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == trigger.serialize()


@pytest.mark.one_airflow
def test_airflows_setting_is_the_default_of_deferrable(monkeypatch):
    assert not UnleashNewSessionsSensor(task_id="wait").deferrable
    code = "from airflow_provider_unleash.sensors import *; print(UnleashNewSessionsSensor(task_id='a').deferrable)"
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "true")
    assert run_code(code).splitlines()[-1] == "True"


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_permanent_error_in_the_triggerer_fails_the_task_without_a_retry(sim, connect, soft_fail):
    sensor = UnleashNewSessionsSensor(task_id="wait", deferrable=True, soft_fail=soft_fail, min_sessions=99)
    connect(host=sim.base_url, password="wrong")
    event = fire(UnleashNewSessionsTrigger(poke_interval=INTERVAL))
    assert event["status"] == "error"
    assert event["error"] == "AuthenticationError"
    with pytest.raises(AirflowFailException, match=r"AuthenticationError: .*Create a new one"):
        sensor.resume_execution("execute_complete", {"event": event}, make_context())


def test_a_transient_error_in_the_triggerer_is_left_to_airflows_retries():
    sensor = UnleashNewSessionsSensor(task_id="wait", deferrable=True)
    event = {"status": "error", "error": "ServerError", "message": "returned 503"}
    with pytest.raises(UnleashError, match="ServerError: returned 503") as caught:
        sensor.execute_complete(make_context(), event)
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("message", ["Trigger timeout", "Trigger/execution timeout"], ids=["3.0", "2.11"])
@pytest.mark.parametrize(("soft_fail", "expected"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_a_timeout_in_the_triggerer_is_a_timeout_of_the_sensor(soft_fail, expected, message):
    sensor = UnleashNewSessionsSensor(task_id="wait", deferrable=True, soft_fail=soft_fail)
    with pytest.raises(expected):
        sensor.resume_execution("__fail__", {"error": message}, make_context())


@pytest.mark.parametrize("mapped", [False, True])
def test_a_deferred_sensor_in_a_dag_run_returns_the_sessions(airflow_home, serve, mapped):
    now = int(time.time() * 1000)
    sim = serve(session_period=0.5, sessions_from=now)
    bounds = f"until={now + 10**9}, min_sessions={len(sim.sessions()) + 1}"
    deferred = f"task_id='wait', deferrable=True, poke_interval=0.1, {bounds}"
    task = (
        f"UnleashNewSessionsSensor.partial({deferred}).expand(since=[{now}, {now + 1}])"
        if mapped
        else f"UnleashNewSessionsSensor({deferred}, since={now})"
    )
    run = run_dag(airflow_home, task)
    assert run.state == "success"
    for found in (run.xcoms[name] for name in ([("wait", 0), ("wait", 1)] if mapped else ["wait"])):
        assert found == sim.sessions()[: len(found)]
        assert found


# ---- polls that fail -----------------------------------------------------------------------------


@one_airflow
def test_a_poll_that_fails_is_repeated(sim):
    sim.add_fault(Fault("503", times=2))
    sim.add_fault(Fault("html", times=1))
    sim.add_fault(Fault("reset", times=1))
    assert fire(UnleashNewSessionsTrigger(poke_interval=INTERVAL))["status"] == "success"
    assert polls(sim) == 5


@one_airflow
def test_a_deferred_task_gives_up_after_ten_failed_polls(sim):
    sim.add_fault(Fault("503", times=None))
    event = fire(UnleashNewSessionsTrigger(poke_interval=INTERVAL))
    assert (event["status"], event["error"]) == ("error", "ServerError")
    assert polls(sim) == triggers.MAX_FAILED_POLLS == 10


@one_airflow
def test_a_success_resets_the_count_of_failed_polls(sim, clock, monkeypatch):
    monkeypatch.setattr(triggers, "MAX_FAILED_POLLS", 3)
    for _ in range(2):
        sim.add_fault(Fault("503", times=2))
        sim.add_fault(Fault("slow", times=1, seconds=0.0))
    assert fire_during(sim, 7, UnleashNewSessionsTrigger(poke_interval=INTERVAL, since=clock.now_ms + 1)) == [[]]
    assert [request.status for request in sim.requests][:6] == [503, 503, 200, 503, 503, 200]


@one_airflow
def test_the_pause_grows_with_each_failed_poll(sim, monkeypatch):
    monkeypatch.setattr(triggers, "MAX_POLL_BACKOFF", 0.4)
    sim.add_fault(Fault("503", times=None))
    results: list[PollResult] = []

    async def poll() -> None:
        trigger = UnleashNewSessionsEventTrigger(poke_interval=0.1)
        async for result in trigger.open_shared_stream(trigger.serialize()[1]):
            results.append(result)
            if len(results) == 5:
                return

    asyncio.run(poll())
    assert [result.pause for result in results[:4]] == [0.1, 0.2, 0.4, 0.4]
    for before, after in pairwise(results):
        assert after.asked_at >= before.asked_at + before.pause


@one_airflow
def test_polls_obey_retry_after(sim):
    sim.add_fault(Fault("429", retry_after=1, times=1))
    assert fire(UnleashNewSessionsTrigger(poke_interval=INTERVAL))["status"] == "success"
    first, second = (request.time for request in sim.requests)
    assert second - first >= 0.5  # without the header, 0.1; a busy server logs the first arrival late


def test_a_missing_connection_is_an_error_event_after_one_poll(caplog):
    event = fire(UnleashNewSessionsTrigger(unleash_conn_id="nowhere", poke_interval=INTERVAL))
    assert (event["status"], event["error"]) == ("error", "InvalidArgumentError")
    assert "nowhere" in event["message"]
    assert "Poll failed" not in caplog.text


def test_a_long_wait_warns_once_of_a_session_id_that_is_not_a_number(connect, caplog):
    received: list[bytes] = []
    with answering(b'["s-4711"]', received) as url:
        connect(host=url, password="any-key")
        waiting = UnleashNewSessionsTrigger(since=DAY_START, poke_interval=INTERVAL)
        # The third poll begins when the trigger has handled the second.
        assert fire_until(lambda: len(received) >= 3, waiting) == [[]]
    assert caplog.text.count("'s-4711'") == 1


# ---- responses that never end --------------------------------------------------------------------


@pytest.fixture
def hang(connect: Callable[..., None]) -> Iterator[Callable[[str], list[str]]]:
    """Return a function that points a connection at a server that never completes a response."""
    with ExitStack() as stack:

        def hang(conn_id: str) -> list[str]:
            url, events = stack.enter_context(trickling())
            connect(conn_id=conn_id, host=url, password="any-key", extra={"timeout": 1})
            return events

        yield hang


@one_airflow
def test_a_poll_ends_with_its_socket_at_its_time_limit(hang, monkeypatch, caplog):
    """The limit of the connection does not matter; the next poll comes after the pause."""
    monkeypatch.setattr(triggers, "POLL_TIMEOUT", 1.0)
    monkeypatch.setattr(triggers, "MAX_FAILED_POLLS", 2)
    events = hang("hung")
    event = fire(UnleashNewSessionsTrigger(unleash_conn_id="hung", poke_interval=INTERVAL))
    assert event["error"] == "TransportError"
    assert "took longer than" in event["message"]
    wait_until(lambda: events.count("end") == events.count("request") > 0)


@one_airflow
def test_a_poll_beyond_its_time_limit_sends_no_request(sim, monkeypatch):
    """A busy triggerer may open its client so late."""
    monkeypatch.setattr(triggers, "POLL_TIMEOUT", 0.2)
    monkeypatch.setattr(triggers, "MAX_FAILED_POLLS", 1)
    may_open, is_closed = threading.Event(), threading.Event()
    open_client = triggers.open_client

    def open_late(*args: Any, **options: Any) -> Any:
        assert may_open.wait(60)
        return open_client(*args, **options)

    monkeypatch.setattr(triggers, "open_client", open_late)
    monkeypatch.setattr(triggers, "report_traffic", lambda *args, **options: is_closed.set())
    event = fire(UnleashNewSessionsTrigger(poke_interval=INTERVAL))
    may_open.set()
    assert "took longer than" in event["message"]
    assert is_closed.wait(60)
    assert sim.requests == []


@one_airflow
def test_hung_polls_block_neither_name_lookups_nor_polls_of_other_connections(sim, hang):
    """The event loop looks up names in its own executor, which has six threads on a machine with two CPUs."""
    names = [f"hung_{number}" for number in range(6)]
    servers = [hang(name) for name in names]

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(6))
        hung = [
            asyncio.create_task(collect(UnleashNewSessionsTrigger(unleash_conn_id=name, poke_interval=INTERVAL).run()))
            for name in names
        ]
        while not all(servers):
            await asyncio.sleep(0.01)
        await asyncio.wait_for(loop.getaddrinfo("localhost", 80), 30)
        [payload] = await collect(UnleashNewSessionsTrigger(poke_interval=INTERVAL).run(), seconds=30)
        assert payload["status"] == "success"
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)

    asyncio.run(wait())
    wait_until(lambda: all(events == ["request", "end"] for events in servers))  # their sockets are shut down


def test_neither_many_failures_nor_a_wrong_header_stop_the_polls_for_good():
    poll = triggers._SharedPoll("unleash_default", 60.0)
    for failures in (1, 5, 2000):
        assert 60.0 <= poll._backoff(ServerError("", status=503), failures) <= 600.0
        assert poll._backoff(RateLimitError("", status=429, retry_after=1e11), failures) == 3600.0


def test_triggers_keep_waiting_if_airflow_cancels_a_poll(sim, monkeypatch):
    first = iter([True])

    async def cancelled(conn_id: str) -> Any:
        if next(first, False):
            raise asyncio.CancelledError("Reader loop exited")
        return await get_async_connection(conn_id)

    monkeypatch.setattr(triggers, "get_async_connection", cancelled)
    assert fire(UnleashNewSessionsTrigger(poke_interval=INTERVAL))["status"] == "success"
    assert polls(sim) == 1


def test_a_poll_does_not_disturb_the_triggerers_messages_to_its_supervisor(sim):
    """Masking a connection's secrets sends a message; Airflow 3.0 and 3.1 send it on the triggerer's event loop."""
    runner = pytest.importorskip("airflow.jobs.triggerer_job_runner")
    if not hasattr(runner, "TriggerCommsDecoder"):
        pytest.skip("in this Airflow, the triggerer has no supervisor")
    printed = run_module("triggerer_comms", sim.base_url, sim.api_key)
    assert json.loads(printed.splitlines()[-1]) == {"sessions": sim.sessions(), "error": ""}


# ---- shared polls ---------------------------------------------------------------------------------


def test_the_first_poll_comes_after_one_interval(sim):
    began = time.time()
    assert fire(UnleashNewSessionsTrigger(poke_interval=0.3))["status"] == "success"
    assert sim.requests[0].time - began >= 0.29


def fire_all(waiting: Sequence[UnleashNewSessionsTrigger]) -> list[list[Any]]:
    """Return the first events of triggers that wait at the same time."""

    async def wait() -> list[list[Any]]:
        return await asyncio.gather(*(collect(trigger.run()) for trigger in waiting))

    return asyncio.run(wait())


@one_airflow
def test_triggers_with_the_same_connection_and_interval_share_their_polls(sim, clock):
    waiting = [UnleashNewSessionsTrigger(since=clock.now_ms + 1, poke_interval=0.2) for _ in range(300)]
    assert fire_during(sim, 3, *waiting) == [[]] * 300
    assert 3 <= polls(sim) <= 4


def test_triggers_that_share_a_poll_select_by_their_own_arguments(sim):
    sessions = sim.sessions()
    waiting = [UnleashNewSessionsTrigger(since=int(session), poke_interval=INTERVAL) for session in sessions]
    waiting.append(UnleashNewSessionsTrigger(known_sessions=sessions[1:], poke_interval=INTERVAL))
    expected = [*(sessions[index:] for index in range(len(sessions))), sessions[:1]]
    assert [payload["sessions"] for [payload] in fire_all(waiting)] == expected
    assert polls(sim) == 1


@one_airflow
def test_another_interval_or_connection_has_its_own_polls(sim, connect):
    connect(conn_id="other", host=sim.base_url, password=sim.api_key)
    fire_all(
        [
            UnleashNewSessionsTrigger(poke_interval=INTERVAL),
            UnleashNewSessionsTrigger(poke_interval=2 * INTERVAL),
            UnleashNewSessionsTrigger(poke_interval=INTERVAL, unleash_conn_id="other"),
        ]
    )
    assert polls(sim) == 3


@one_airflow
def test_a_cancelled_trigger_does_not_cancel_the_poll_of_another(sim):
    sim.add_fault(Fault("slow", seconds=0.5, times=1))

    async def wait() -> list[Any]:
        first, second = (
            asyncio.create_task(collect(UnleashNewSessionsTrigger(poke_interval=INTERVAL).run())) for _ in range(2)
        )
        await asyncio.sleep(0.3)
        first.cancel()
        return await second

    [payload] = asyncio.run(wait())
    assert payload["status"] == "success"
    assert polls(sim) == 1


@one_airflow
def test_there_are_no_polls_while_no_trigger_waits(sim, clock):
    async def wait() -> None:
        task = asyncio.create_task(
            collect(UnleashNewSessionsTrigger(since=clock.now_ms + 1, poke_interval=INTERVAL).run())
        )
        await wait_for_polls(sim, 1)
        task.cancel()
        await task
        before = polls(sim)
        await asyncio.sleep(6 * INTERVAL)
        assert polls(sim) == before > 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(wait())


def test_a_changed_connection_is_used_from_the_next_poll_on(sim, clock, connect):
    connect(host=sim.base_url, password="ul_pat_simulator")

    async def wait() -> Any:
        task = asyncio.create_task(
            collect(UnleashNewSessionsTrigger(since=clock.now_ms + 1, poke_interval=INTERVAL).run())
        )
        await wait_for_polls(sim, 2)
        connect(host=sim.base_url, password="wrong")
        return await task

    [payload] = asyncio.run(wait())
    assert payload["error"] == "AuthenticationError"
    *before, last = [request.status for request in sim.requests]
    assert set(before) == {200}
    assert last == 403


# ---- a watched asset -----------------------------------------------------------------------------


def watch(trigger: UnleashNewSessionsEventTrigger, most: int, seconds: float = 60.0) -> list[Any]:
    return asyncio.run(collect(trigger.run(), most, seconds))


def test_new_sessions_fire_one_event_and_no_other_while_they_stay_the_same(sim, clock):
    since = DAY_START + 9 * HOUR_MS
    expected = [session for session in sim.sessions() if int(session) >= since]
    trigger = UnleashNewSessionsEventTrigger(since=since, poke_interval=INTERVAL)
    idle = UnleashNewSessionsEventTrigger(since=clock.now_ms + 1, poke_interval=INTERVAL, reminder=0.0)
    assert fire_during(sim, 8, trigger, idle) == [[{"sessions": expected, "truncated": False}], []]


@one_airflow
def test_each_change_fires_one_event(sim, clock):
    since = clock.now_ms + 1

    async def wait() -> list[Any]:
        trigger = UnleashNewSessionsEventTrigger(since=since, poke_interval=INTERVAL)
        task = asyncio.create_task(collect(trigger.run(), 9))
        for _ in range(3):
            await wait_for_polls(sim, 3)
            clock.now_ms += 2 * HOUR_MS
        await wait_for_polls(sim, 3)
        task.cancel()
        return await task

    sets = [set(payload["sessions"]) for payload in asyncio.run(wait())]
    assert len(sets) == 3
    assert sets[0] < sets[1] < sets[2] == {session for session in sim.sessions() if int(session) >= since}


@one_airflow
def test_sessions_that_stay_unhandled_fire_reminders():
    trigger = UnleashNewSessionsEventTrigger(since=DAY_START, reminder=300.0)
    sessions = [str(DAY_START)]
    minute, fired = 0, []

    async def poll_each_minute() -> AsyncIterator[PollResult]:
        nonlocal minute
        for minute in range(12):
            yield PollResult(60.0 * minute, SessionList(sessions))

    async def collect_minutes() -> None:
        async for event in trigger.filter_shared_stream(poll_each_minute()):
            assert event.payload == {"sessions": sessions, "truncated": False}
            fired.append(minute)

    asyncio.run(collect_minutes())
    assert fired == [0, 5, 10]


def test_a_payload_has_only_the_latest_sessions_and_says_if_there_are_more(sim, monkeypatch):
    monkeypatch.setattr(triggers, "MAX_EVENT_SESSIONS", 3)
    trigger = UnleashNewSessionsEventTrigger(since=DAY_START, poke_interval=INTERVAL)
    assert watch(trigger, 1) == [{"sessions": sim.sessions()[-3:], "truncated": True}]


@one_airflow
@pytest.mark.parametrize("kind", ["401", "503", "garbage", "wrong_shape", "redirect"])
def test_an_error_does_not_end_the_events_and_slows_the_polls_down(sim, kind, caplog):
    sim.add_fault(Fault(kind, times=4))
    trigger = UnleashNewSessionsEventTrigger(since=DAY_START, poke_interval=INTERVAL)
    began = time.monotonic()
    assert len(watch(trigger, 1)) == 1
    assert time.monotonic() - began >= INTERVAL + 3 * triggers.MAX_POLL_BACKOFF
    assert polls(sim) == 5
    assert "Poll failed (4 in a row)" in caplog.text


def test_watchers_with_the_same_connection_and_interval_share_a_stream():
    one = UnleashNewSessionsEventTrigger(since=DAY_START)
    assert one.shared_stream_key() == UnleashNewSessionsEventTrigger(since=DAY_END, reminder=5.0).shared_stream_key()
    assert one.shared_stream_key() != UnleashNewSessionsEventTrigger(poke_interval=5.0).shared_stream_key()
    assert one.shared_stream_key() != UnleashNewSessionsEventTrigger(unleash_conn_id="other").shared_stream_key()
    assert hash(one.shared_stream_key()) is not None


def test_a_shared_stream_fires_the_same_events(sim):
    trigger = UnleashNewSessionsEventTrigger(since=DAY_START, poke_interval=INTERVAL)
    expected = watch(trigger, 1)
    stream = UnleashNewSessionsEventTrigger.open_shared_stream(trigger.serialize()[1])
    assert asyncio.run(collect(trigger.filter_shared_stream(stream), 1)) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        *({"since": 1_700_000_000}, {"since": "2026-01-01"}, {"poke_interval": timedelta(seconds=5)}),
        *({"poke_interval": float("nan")}, {"min_age": -1.0}, {"reminder": float("inf")}, {"reminder": True}),
    ],
    ids=str,
)
def test_an_invalid_argument_is_an_error_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        UnleashNewSessionsEventTrigger(**arguments)


class Store:
    """An asset's state store as a trigger sees it."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.rows = rows

    async def aget(self, key: str) -> Any:
        return self.rows.get(key)


def test_sessions_that_every_consumer_has_handled_are_not_new(sim):
    sessions = sim.sessions()
    trigger = UnleashNewSessionsEventTrigger(poke_interval=INTERVAL)
    trigger.asset_state_store = Store(
        {
            "unleash_consumers": ["a", "b"],
            "unleash_cursor.a": {"floor": int(sessions[10]), "handled": sessions[12:]},
            "unleash_cursor.b": {"floor": 0, "handled": sessions[:11]},
        }
    )
    assert watch(trigger, 1)[0]["sessions"] == sessions[10:]


def test_reminders_end_when_all_sessions_are_handled(sim):
    trigger = UnleashNewSessionsEventTrigger(poke_interval=INTERVAL, reminder=2 * INTERVAL)
    store = Store({})
    trigger.asset_state_store = store
    events: list[Any] = []

    async def wait() -> None:
        task = asyncio.create_task(collect(trigger.run(), 99, found=events))
        while len(events) < 2:
            await asyncio.sleep(0.01)
        store.rows |= {"unleash_consumers": ["a"], "unleash_cursor.a": {"floor": 0, "handled": sim.sessions()}}
        await wait_for_polls(sim, 2)
        before = len(events)
        await wait_for_polls(sim, 8)
        assert len(events) == before
        task.cancel()

    asyncio.run(wait())


def test_a_trigger_of_several_assets_works_without_their_stores(sim):
    context = pytest.importorskip("airflow.sdk.execution_time.context")
    if not has_asset_state_store():
        pytest.skip("this Airflow has no asset state store")
    sdk = importlib.import_module("airflow.sdk")
    trigger = UnleashNewSessionsEventTrigger(poke_interval=INTERVAL)
    trigger.asset_state_store = context.AssetStateStoreAccessors([sdk.Asset("a"), sdk.Asset("b")])
    assert watch(trigger, 1)[0]["sessions"] == sim.sessions()


def test_a_broken_store_does_not_end_the_events(sim, caplog):
    trigger = UnleashNewSessionsEventTrigger(poke_interval=INTERVAL)
    trigger.asset_state_store = SimpleNamespace()
    assert fire_during(sim, 2, trigger) == [[]]
    assert "No event from this poll: AttributeError" in caplog.text
