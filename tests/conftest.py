"""
The parts that tests share: a home for Airflow, a simulator with a connection to it, short waits.

Airflow reads its settings from the environment when it is imported, so that is set here; everything that costs time
is done by the fixtures of the tests that need it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from answering import answering

from airflow_provider_unleash.simulator import Simulator

if TYPE_CHECKING:
    from dag_runs import DagRun

assert "airflow" not in sys.modules, "Airflow was imported before its home was chosen"

_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-", ignore_cleanup_errors=True)
DAGS_FOLDER = Path(_HOME.name) / "dags"
DAGS_FOLDER.mkdir()
for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": _HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS_FOLDER),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
}


def pytest_unconfigure() -> None:
    _HOME.cleanup()


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Give Airflow's home, its database initialized."""
    from airflow.utils.db import initdb

    initdb()
    with suppress(ImportError):
        from airflow.sdk.execution_time import supervisor

        # As Airflow 3.3 does it; before, each task of dag.test() builds an execution API of its own, for seconds.
        if not hasattr(supervisor.in_process_api_server, "cache_info"):
            supervisor.in_process_api_server = cache(supervisor.in_process_api_server)
    return Path(_HOME.name)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the client wait next to nothing before it asks again."""
    monkeypatch.setattr("airflow_provider_unleash.client.BACKOFF_BASE", 0.01)
    monkeypatch.setattr("airflow_provider_unleash.client.BACKOFF_MOST", 0.01)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that makes ``unleash_default``, or another connection, from fields; a str is its URI."""

    def connect(uri: str | None = None, /, conn_id: str = "unleash_default", **fields: Any) -> None:
        value = uri if uri is not None else json.dumps({"conn_type": "unleash", **fields})
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)

    return connect


@pytest.fixture
def serve(connect: Callable[..., None]) -> Iterator[Callable[..., Simulator]]:
    """Give a function that starts a simulator, and makes ``unleash_default`` a connection to it with those extras."""
    with ExitStack() as stack:

        def serve(*, key: str | None = None, extra: dict[str, Any] | None = None, **options: Any) -> Simulator:
            keys = {} if key is None else {"api_keys": [key]}
            sim = stack.enter_context(Simulator(**{"rows_per_day": 240, "page_size": 20, **keys, **options}))
            # Set, so that rows with stream tokens warn only where a test is about that.
            connect(host=sim.base_url, password=sim.api_key, extra={"mask_stream_tokens": False, **(extra or {})})
            return sim

        yield serve


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder that the examples write to."""
    monkeypatch.setenv("UNLEASH_LAKE", f"file://{tmp_path}/lake")
    return tmp_path / "lake"


@pytest.fixture
def run_recipe(airflow_home: Path, lake: Path) -> Iterator[Callable[..., DagRun]]:
    """Give a function that runs a recipe's DAG; it has to end in that state."""
    from dag_runs import run_dag_file

    recipes, sql = Path(__file__).parent.parent / "example_dags" / "recipes", DAGS_FOLDER / "sql"

    def run_recipe(name: str, state: str = "success", **arguments: object) -> DagRun:
        shutil.copytree(recipes / "sql", sql, dirs_exist_ok=True)
        path = DAGS_FOLDER / f"example_unleash_{name}.py"
        # dag.test() waits until a try is due.
        path.write_text((recipes / path.name).read_text().replace("timedelta(minutes=5)", "timedelta(0)"))
        run = run_dag_file(airflow_home, path, **arguments)
        assert run.state == state
        return run

    yield run_recipe
    shutil.rmtree(sql, ignore_errors=True)


@pytest.fixture
def answer(connect: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Give a function that makes ``unleash_default`` a connection to something that answers the same to everything."""
    with ExitStack() as stack:

        def answer(body: bytes, content_type: str = "application/json") -> None:
            connect(host=stack.enter_context(answering(body, content_type=content_type)), password="any-key")

        yield answer
