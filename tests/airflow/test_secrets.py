"""The key is in no log, error, XCom, rendered field or file, whatever goes right or wrong."""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowSkipException

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
from tests.support.sample_day import DAY, NEXT_DAY, SILENT, STREET, make_context
from tests.support.secret_search import FAULTS, KEYS, files_under, leaks

pytestmark = pytest.mark.usefixtures("quick_retries")


def texts_of_error(error: BaseException | None) -> Iterator[tuple[str, str]]:
    """Yield an error's traceback, and what the errors of its chain hold."""
    if error is not None:
        yield "traceback", "".join(traceback.format_exception(error))
    while error is not None:
        yield type(error).__name__, f"{error} {error!r} {error.args!r}"
        if isinstance(error, UnleashError):
            yield f"fields of {type(error).__name__}", repr(vars(error))
        error = error.__cause__ or error.__context__


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def events_of(trigger: object) -> list[object]:
    """Return a trigger's serialized form, and what it has to say in a few polls."""
    said: list[object] = [trigger.serialize()]

    async def listen() -> None:
        async for event in trigger.run():
            said.append(event.payload)

    async def listen_a_while() -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(listen(), 0.3)

    asyncio.run(listen_a_while())
    return said


DOERS: dict[str, Callable[[Path], object]] = {
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
def heard(caplog, capfd) -> Callable[[], dict[str, str]]:
    """Give a function that returns what was logged and printed."""
    for name in ("airflow_provider_unleash", "airflow.task", "airflow.hooks", "requests", "urllib3", "tenacity"):
        caplog.set_level(logging.DEBUG, name)

    def heard() -> dict[str, str]:
        printed = capfd.readouterr()
        records = "\n".join(f"{record.getMessage()} {record.__dict__!r}" for record in caplog.records)
        # At this level, Airflow 3.0 logs how a task tells its supervisor what to mask.
        out = "\n".join(line for line in printed.out.splitlines() if "msg=MaskSecret(" not in line)
        return {"log": caplog.text, "records": records, "stdout": out, "stderr": printed.err}

    return heard


def outcome(doer: Callable[[Path], object], lake: Path) -> tuple[object, BaseException | None]:
    try:
        return doer(lake), None
    except (UnleashError, AirflowException, AirflowSkipException) as error:
        return None, error


def assert_kept_secret(serve, heard, lake: Path, doer: str, fault: str, key: str) -> None:
    serve(
        key=key,
        faults=FAULTS[fault],
        sessions_from=1_768_176_000_000,
        rows_per_day=60,
        extra={"timeout": 0.1 if fault == "timeout" else 30, "max_attempts": 2, "mask_stream_tokens": None},
    )
    result, error = outcome(DOERS[doer], lake)
    assert error is None or fault != "nothing" or doer in ("unknown device", "no rows")
    texts = {**heard(), "result": repr(result), **dict(texts_of_error(error)), **files_under(lake)}
    assert leaks(key, texts) == []


@pytest.mark.parametrize("doer", DOERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_key_is_nowhere_after_a_task_whatever_the_api_answers(serve, heard, lake, doer, fault):
    assert_kept_secret(serve, heard, lake, doer, fault, KEYS[0])


@pytest.mark.parametrize("doer", DOERS)
@pytest.mark.parametrize("fault", ["nothing", "echo 401"])
def test_a_key_that_goes_as_bearer_is_nowhere_too(serve, heard, lake, doer, fault):
    assert_kept_secret(serve, heard, lake, doer, fault, KEYS[1])


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
        ({"password": "{key} and more"}, {}),
        ({"password": "{key}é"}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", KEYS)
def test_the_key_is_nowhere_after_a_connection_that_cannot_be_used(connect, heard, lake, key, fields, extra):
    fields = {name: value.replace("{key}", key) for name, value in fields.items()}
    connect(**{"password": key, **fields}, extra={"max_attempts": 1, "timeout": 3, **extra})
    for doer in ("devices", "storage", "test_connection", "trigger"):
        result, error = outcome(DOERS[doer], lake)
        assert error is not None or result[0] is False or doer == "trigger"
        texts = {**heard(), "result": repr(result), **dict(texts_of_error(error))}
        assert leaks(key, texts) == []


def traceback_with_locals(error: BaseException) -> str:
    """Return an error as the console of Airflow 3.0 shows it, and many a service that collects errors."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "nothing"])
@pytest.mark.parametrize("doer", ["devices", "storage", "sensor"])
def test_the_key_is_in_no_variable_of_a_failed_tasks_traceback(serve, lake, fault, doer):
    extra = {"timeout": 0.1 if fault == "timeout" else 30, "max_attempts": 2}
    serve(key=KEYS[0], faults=FAULTS[fault], sessions_from=1_768_176_000_000, extra=extra)
    _, error = outcome(DOERS[doer], lake)
    assert leaks(KEYS[0], {"traceback": traceback_with_locals(error)}) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "http://127.0.0.1:1"},
        {"host": "https://127.0.0.1:1"},
        {"host": "nowhere.invalid"},
        {"host": "http://eu.example.com"},
        {"extra": {"verify": "/no/such/file"}},
        {"extra": {"timeout": "soon"}},
        {"password": "{key} and more"},
    ],
    ids=str,
)
def test_the_key_is_in_no_variable_of_a_broken_connections_traceback(connect, lake, fields):
    password = fields.get("password", "{key}").replace("{key}", KEYS[0])
    connect(**{**fields, "password": password, "extra": {"max_attempts": 1, **fields.get("extra", {})}})
    _, error = outcome(DOERS["storage"], lake)
    assert leaks(KEYS[0], {"traceback": traceback_with_locals(error)}) == []


def test_the_search_finds_a_key_in_a_variable():
    def fail() -> None:
        key = KEYS[0]
        raise ValueError(len(key))

    with pytest.raises(ValueError, match="22") as caught:
        fail()
    assert leaks(KEYS[0], {"traceback": traceback_with_locals(caught.value)})


@pytest.mark.parametrize("key", KEYS)
def test_tls_against_http_shows_no_key(serve, connect, heard, lake, key):
    sim = serve(key=key)
    connect(host=f"https://127.0.0.1:{sim.port}", password=key, extra={"max_attempts": 1})
    result, error = outcome(DOERS["devices"], lake)
    assert leaks(key, {**heard(), "result": repr(result), **dict(texts_of_error(error))}) == []
    assert error is not None


def test_the_search_finds_a_key_that_is_logged_printed_raised_or_written(heard, lake):
    """Each text above is searched as it is; Airflow's own masking of what it prints does not help to pass."""
    for key in KEYS:
        logging.getLogger("airflow_provider_unleash.core.requester").debug("sent %s", quote(key))
        sys.stdout.write(base64.b64encode(key.encode()).decode())
        lake.mkdir(exist_ok=True)
        (lake / "x").write_text(key)
        chain = ValueError(key)
        error = UnleashError("said", url=key)
        error.__cause__ = chain
        found = leaks(key, {**heard(), **dict(texts_of_error(error)), **files_under(lake)})
        assert {text.partition(":")[0] for text in found} == {
            *("log", "records", "stdout", "traceback", "ValueError", "fields of UnleashError", f"{lake}/x"),
        }
