"""The key is never in a log, error, result, trigger event or file."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowSkipException, AirflowTaskTimeout

from airflow_provider_unleash import triggers
from airflow_provider_unleash.exceptions import UnleashError
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import (
    UnleashGetAnalyticsOperator,
    UnleashListDevicesOperator,
    UnleashListSessionsOperator,
    UnleashPlanWindowsOperator,
    UnleashToObjectStorageOperator,
)
from airflow_provider_unleash.sensors import UnleashNewSessionsSensor
from airflow_provider_unleash.triggers import UnleashNewSessionsEventTrigger, UnleashNewSessionsTrigger
from tests.support.answering import responding, trickling
from tests.support.sample_day import DAY, NEXT_DAY, SILENT, STREET, make_context
from tests.support.secret_search import FAULTS, KEYS, files_under, leaks

pytestmark = pytest.mark.usefixtures("quick_retries")
one_airflow = pytest.mark.one_airflow


def texts_of_error(error: BaseException | None) -> Iterator[tuple[str, str]]:
    """Yield an error's traceback, and the attributes of all errors of its chain."""
    if error is not None:
        yield "traceback", "".join(traceback.format_exception(error))
        # As the console of Airflow 3.0 and many error trackers show it.
        variables = traceback.TracebackException.from_exception(error, capture_locals=True)
        yield "variables", "".join(variables.format())
    while error is not None:
        yield type(error).__name__, f"{error} {error!r} {error.args!r}"
        if isinstance(error, UnleashError):
            yield f"fields of {type(error).__name__}", repr(vars(error))
        error = error.__cause__ or error.__context__


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture(autouse=True)
def _give_up_after_one_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trigger that can end do so after its first failed poll."""
    monkeypatch.setattr(triggers, "MAX_FAILED_POLLS", 1)


def events_of(trigger: UnleashNewSessionsTrigger | UnleashNewSessionsEventTrigger) -> list[object]:
    """Return a trigger's serialized form and its events, of a watcher those of its first poll."""
    found: list[object] = [trigger.serialize()]

    async def listen() -> None:
        if isinstance(trigger, UnleashNewSessionsTrigger):
            found.extend([event.payload async for event in trigger.run()])
            return
        polls = trigger.open_shared_stream(trigger.serialize()[1])

        async def first_poll() -> AsyncIterator[object]:
            yield await anext(polls)

        async with aclosing(polls):
            found.extend([event.payload async for event in trigger.filter_shared_stream(first_poll())])

    asyncio.run(asyncio.wait_for(listen(), 60))
    return found


ACTIONS: dict[str, Callable[[Path], object]] = {
    "devices": lambda lake: UnleashListDevicesOperator(task_id="t").execute(make_context()),
    "sessions": lambda lake: UnleashListSessionsOperator(task_id="t", since=DAY).execute(make_context()),
    "plan": lambda lake: UnleashPlanWindowsOperator(task_id="t", device_ids=[STREET], max_pages=9).execute(
        make_context()
    ),
    "rows": lambda lake: UnleashGetAnalyticsOperator(task_id="t", device_id=STREET).execute(make_context()),
    "unknown device": lambda lake: UnleashGetAnalyticsOperator(task_id="t", device_id="W0").execute(make_context()),
    "no rows": lambda lake: UnleashToObjectStorageOperator(
        task_id="t", device_id=SILENT, dst=str(lake), on_empty="fail"
    ).execute(make_context()),
    "storage": lambda lake: UnleashToObjectStorageOperator(
        task_id="t", device_id=STREET, dst=str(lake), file_format="parquet"
    ).execute(make_context()),
    "sensor": lambda lake: UnleashNewSessionsSensor(task_id="t").execute(make_context()),
    "version": lambda lake: UnleashHook().get_version(),
    "records": lambda lake: UnleashHook().get_records(STREET, DAY, NEXT_DAY, endpoint="tableau"),
    "pages": lambda lake: list(UnleashHook().iter_pages(STREET, DAY, NEXT_DAY)),
    "trigger": lambda lake: events_of(UnleashNewSessionsTrigger(poke_interval=0.1)),
    "watcher": lambda lake: events_of(UnleashNewSessionsEventTrigger(poke_interval=0.1)),
    "test_connection": lambda lake: UnleashHook().test_connection(),
}


@pytest.fixture
def output(caplog, capfd) -> Callable[[], dict[str, str]]:
    """Return a function that returns everything logged and printed."""
    for name in ("airflow_provider_unleash", "airflow.task", "airflow.hooks", "requests", "urllib3"):
        caplog.set_level(logging.DEBUG, name)

    def output() -> dict[str, str]:
        printed = capfd.readouterr()
        records = "\n".join(f"{record.getMessage()} {record.__dict__!r}" for record in caplog.records)
        # At this level, Airflow 3.0 logs the task's message to its supervisor about what to mask.
        out = "\n".join(line for line in printed.out.splitlines() if "msg=MaskSecret(" not in line)
        return {"log": caplog.text, "records": records, "stdout": out, "stderr": printed.err}

    return output


def outcome(action: Callable[[Path], object], lake: Path) -> tuple[object, BaseException | None]:
    try:
        return action(lake), None
    except (UnleashError, AirflowException, AirflowSkipException, AirflowTaskTimeout) as error:
        return None, error


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("fault", "key"),
    [
        *(pytest.param(fault, KEYS[0], marks=one_airflow) for fault in FAULTS),
        *(("nothing", KEYS[1]), ("echo 401", KEYS[1])),
    ],
)
def test_no_output_contains_the_key_whatever_the_api_returns(serve, output, lake, action, fault, key):
    serve(
        key=key,
        faults=FAULTS[fault],
        sessions_from=1_768_176_000_000,
        rows_per_day=60,
        extra={"timeout": 0.1 if fault == "timeout" else 30, "max_attempts": 2, "mask_stream_tokens": None},
    )
    result, error = outcome(ACTIONS[action], lake)
    assert error is None or fault != "nothing" or action in ("unknown device", "no rows")
    texts = {**output(), "result": repr(result), **dict(texts_of_error(error)), **files_under(lake)}
    assert leaks(key, texts) == []


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({"host": "http://eu.example.com"}, {}),
        ({"host": "http://127.0.0.1:1"}, {}),
        ({"host": "nowhere.invalid"}, {}),
        ({"host": "https://user:{key}@eu.example.com"}, {}),
        ({"host": "https://{key}@eu.example.com"}, {}),
        ({"host": "https://eu.example.com:{key}"}, {}),
        ({"host": "{key}://eu.example.com"}, {}),
        ({"host": "{key}"}, {}),
        ({"host": "https://eu.example.com/?key={key}"}, {}),
        ({}, {"verify": "/no/such/file"}),
        ({}, {"auth": "basic"}),
        ({}, {"timeout": "soon"}),
        ({"host": "https://127.0.0.1:1"}, {}),
        ({"password": "{key} and more"}, {}),
        ({"password": "{key}é"}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", KEYS)
def test_no_output_contains_the_key_of_an_invalid_connection(connect, output, lake, key, fields, extra):
    fields = {name: value.replace("{key}", key) for name, value in fields.items()}
    connect(**{"password": key, **fields}, extra={"max_attempts": 1, "timeout": 3, **extra})
    for action in ("devices", "storage", "test_connection", "trigger"):
        result, error = outcome(ACTIONS[action], lake)
        assert error is not None or result[0] is False or action == "trigger"
        texts = {**output(), "result": repr(result), **dict(texts_of_error(error))}
        assert leaks(key, texts) == []


@pytest.mark.parametrize("password", ["an-old-key", None], ids=["with password", "without"])
@pytest.mark.parametrize(
    "fields",
    [
        {"host": "{key}"},
        {"host": "https://{key}"},
        {"host": "https://api.unleashlive.com/{key}"},
        {"login": "{key}"},
        {"schema": "{key}"},
        {"extra": {"api_key": "{key}"}},
        {"extra": {"verify": "{key}"}},
        {"extra": {"auth": "Bearer {key}"}},
        {"extra": {"{key}": 1}},
    ],
    ids=str,
)
def test_a_token_outside_the_password_is_refused_unseen_and_without_a_lookup(
    connect, output, lake, monkeypatch, fields, password
):
    key = KEYS[1]
    lookups = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: lookups.append(args) or 1 / 0)
    connect(password=password, **json.loads(json.dumps(fields).replace("{key}", key)))
    for action in ("devices", "storage", "sensor", "test_connection", "trigger"):
        result, error = outcome(ACTIONS[action], lake)
        told = f"{result} {error}"
        assert "belongs in the password" in told
        assert leaks(key, {**output(), "result": told, **dict(texts_of_error(error))}) == []
    assert lookups == []


ODD_RESPONSES = {
    "negative chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-7\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n[]",
    "bad location": b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    "not http": b"hello\r\n\r\n",
    "key as status line": b"KEY\r\n\r\n",
    "key as reason": b"HTTP/1.1 500 KEY\r\nContent-Length: 0\r\n\r\n",
    "key as status": b"HTTP/1.1 KEY OK\r\n\r\n",
    "key as chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nKEY\r\n",
    "key as encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: KEY\r\nContent-Length: 2\r\n\r\n[]",
    "key as header": b"HTTP/1.1 200 OK\r\nKEY\r\nContent-Length: 2\r\n\r\n[]",
    "key as folded header": b"HTTP/1.1 200 OK\r\n KEY\r\nContent-Length: 2\r\n\r\n[]",
    "key as length": b"HTTP/1.1 200 OK\r\nContent-Length: KEY\r\n\r\n[]",
}


@one_airflow
@pytest.mark.parametrize("response", ODD_RESPONSES)
@pytest.mark.parametrize(("key", "header"), zip(KEYS, ("x-api-key", "authorization"), strict=True))
def test_no_output_contains_the_key_if_http_itself_is_broken(connect, output, lake, response, key, header):
    with responding(ODD_RESPONSES[response], header) as url:
        connect(host=url, password=key, extra={"max_attempts": 1})
        result, error = outcome(ACTIONS["devices"], lake)
        assert leaks(key, {**output(), "result": repr(result), **dict(texts_of_error(error))}) == []
        assert error is not None or response in ("key as encoding", "key as length")


@one_airflow
@pytest.mark.parametrize("action", ["devices", "storage", "sensor"])
@pytest.mark.parametrize("is_answering", [True, False])
def test_no_output_contains_the_key_if_a_timeout_of_the_task_ends_a_request(
    connect, output, lake, action, is_answering
):
    """Airflow raises the error of ``execution_timeout`` wherever the task is, such as in a library's send()."""
    key = KEYS[0]

    def expire(*signal: object) -> None:
        raise AirflowTaskTimeout("Timeout")

    before = signal.signal(signal.SIGALRM, expire)
    try:
        with trickling() as (url, _), socket.create_server(("127.0.0.1", 0)) as silent:
            connect(host=url if is_answering else f"http://127.0.0.1:{silent.getsockname()[1]}", password=key)
            signal.setitimer(signal.ITIMER_REAL, 0.7)
            result, error = outcome(ACTIONS[action], lake)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert isinstance(error, AirflowTaskTimeout)
    assert leaks(key, {**output(), "result": repr(result), **dict(texts_of_error(error))}) == []


@pytest.mark.parametrize("key", KEYS)
def test_no_output_contains_the_key_if_the_server_has_no_tls(serve, connect, output, lake, key):
    sim = serve(key=key)
    connect(host=f"https://127.0.0.1:{sim.port}", password=key, extra={"max_attempts": 1})
    result, error = outcome(ACTIONS["devices"], lake)
    assert leaks(key, {**output(), "result": repr(result), **dict(texts_of_error(error))}) == []
    assert error is not None


def test_the_search_finds_a_key_that_is_logged_printed_raised_or_written(output, lake):
    """So the tests above do not pass just because Airflow masks its output."""
    for key in KEYS:
        logging.getLogger("airflow_provider_unleash.core.requester").debug("sent %s", quote(key))
        sys.stdout.write(base64.b64encode(key.encode()).decode())
        lake.mkdir(exist_ok=True)
        (lake / "x").write_text(key)
        chain = ValueError(key)
        error = UnleashError("message", url=key)
        error.__cause__ = chain
        found = leaks(key, {**output(), **dict(texts_of_error(error)), **files_under(lake)})
        assert {text.partition(":")[0] for text in found} == {
            *("log", "records", "stdout", "traceback", "variables", "ValueError", "fields of UnleashError", f"{lake}/x")
        }
