"""Fixtures for tests of the core, which never import Airflow."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_provider_unleash.core.throttle import Throttle


@pytest.fixture(autouse=True)
def no_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``import airflow`` fail, even if other tests have imported it into this process."""
    monkeypatch.setitem(sys.modules, "airflow", None)


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Return a local folder as a path that has a file system."""
    return UPath(f"file://{tmp_path}")


@pytest.fixture
def join_threads() -> Callable[[], None]:
    """
    Return a function that checks that the threads of the package end, except those from before the test.

    A thread that has just finished its work may still be alive for a moment. One that waits for a slow response, which
    takes 30 seconds in these tests, is not done in time.
    """
    of_other_tests = threading.enumerate()

    def join_threads() -> None:
        for thread in threading.enumerate():
            # An executor does not wait for a thread whose start an exception interrupted.
            if thread not in of_other_tests and thread.name.startswith("unleash-") and thread.ident is not None:
                thread.join(15)
                assert not thread.is_alive(), thread.name

    return join_threads


@pytest.fixture
def no_threads_left(join_threads: Callable[[], None]) -> Iterator[None]:
    """Check that all threads end."""
    yield
    join_threads()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[float]]:
    """
    Return a function that returns the seconds from each refusal to the next request.

    The times are those of the throttle. A busy server logs the arrival of requests late.
    """
    sent: list[float] = []
    refused: list[float] = []
    acquire, refuse = Throttle._acquire, Throttle._refuse

    def acquire_and_record(throttle: Throttle, *args: Any) -> float:
        sent.append(acquire(throttle, *args))
        return sent[-1]

    def refuse_and_record(throttle: Throttle, *args: Any) -> None:
        refuse(throttle, *args)
        refused.append(throttle._refused_at)

    monkeypatch.setattr(Throttle, "_acquire", acquire_and_record)
    monkeypatch.setattr(Throttle, "_refuse", refuse_and_record)
    return lambda: [min(time for time in sent if time > refusal) - refusal for refusal in refused]
