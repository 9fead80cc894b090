"""
Fixtures for all tests: a simulator with a connection to it, and short waits.

Every test process gets a temporary Airflow home before Airflow can be imported. That is a matter of environment
variables only; the tests that need Airflow's database ask for the fixture ``airflow_home``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash.core.log_once import log_once
from airflow_provider_unleash.simulator import Simulator
from tests.support import airflow_home as home
from tests.support.answering import answering

home.choose_home()
# Explain failed asserts of the shared cases.
pytest.register_assert_rewrite("tests.support.store_cases")


# Seconds. Only the tests in these folders start a live Airflow, a cluster, Spark or emulators of stores.
SECONDS_BY_FOLDER = {"live": 30 * 60, "cluster": 40 * 60, "recipes": 10 * 60, "stores": 10 * 60}
SECONDS_IF_SLOW = 15 * 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time than the default limit in ``pyproject.toml``."""
    for item in items:
        seconds = SECONDS_BY_FOLDER.get(item.path.parent.name)
        if seconds is None and item.get_closest_marker("slow"):
            seconds = SECONDS_IF_SLOW
        if seconds is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds))


def pytest_unconfigure() -> None:
    home.remove_home()


@pytest.fixture(autouse=True)
def repeat_warnings() -> None:
    """Let each test see the warnings that a process logs only once."""
    log_once.cache_clear()


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Return Airflow's home, with an initialized database."""
    return home.init_database()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client retry almost without waiting."""
    monkeypatch.setattr("airflow_provider_unleash.core.throttle.MIN_BACKOFF", 0.01)
    monkeypatch.setattr("airflow_provider_unleash.core.throttle.MAX_BACKOFF", 0.01)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that creates ``unleash_default``, or another connection, from fields or from a URI."""

    def connect(uri: str | None = None, /, conn_id: str = "unleash_default", **fields: Any) -> None:
        value = uri if uri is not None else json.dumps({"conn_type": "unleash", **fields})
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)

    return connect


@pytest.fixture
def serve(connect: Callable[..., None]) -> Iterator[Callable[..., Simulator]]:
    """Return a function that starts a simulator and points ``unleash_default`` at it, with the given extras."""
    with ExitStack() as stack:

        def serve(*, key: str | None = None, extra: dict[str, Any] | None = None, **options: Any) -> Simulator:
            keys = {} if key is None else {"api_keys": [key]}
            sim = stack.enter_context(Simulator(**{"rows_per_day": 240, "page_size": 20, **keys, **options}))
            # Set, so that only the tests about stream tokens see the warning about them.
            connect(host=sim.base_url, password=sim.api_key, extra={"mask_stream_tokens": False, **(extra or {})})
            return sim

        yield serve


@pytest.fixture
def answer(connect: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Return a function that points ``unleash_default`` at a server with the same response to every request."""
    with ExitStack() as stack:

        def answer(body: bytes, content_type: str = "application/json") -> None:
            connect(host=stack.enter_context(answering(body, content_type=content_type)), password="any-key")

        yield answer
