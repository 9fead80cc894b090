"""Fixtures that run the DAGs of recipes in process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.airflow_home import dags_folder
from tests.support.dag_runs import DagRun, run_dag_file
from tests.support.paths import RECIPES


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that the examples write to."""
    monkeypatch.setenv("UNLEASH_LAKE", f"file://{tmp_path}/lake")
    return tmp_path / "lake"


@pytest.fixture
def tree_of(lake: Path) -> Callable[[str], Path]:
    """Return a function that returns the folder that an example writes to."""
    return lambda name: lake.with_name(f"{lake.name}_{name}")


@pytest.fixture
def run_recipe(airflow_home: Path, lake: Path) -> Iterator[Callable[..., DagRun]]:
    """Return a function that runs a recipe's DAG and checks the state of the run."""
    sql = dags_folder() / "sql"

    def run_recipe(name: str, state: str = "success", **arguments: object) -> DagRun:
        shutil.copytree(RECIPES / "sql", sql, dirs_exist_ok=True)
        path = dags_folder() / f"example_unleash_{name}.py"
        # dag.test() waits until a retry is due.
        path.write_text((RECIPES / path.name).read_text().replace("timedelta(minutes=5)", "timedelta(0)"))
        run = run_dag_file(airflow_home, path, **arguments)
        assert run.state == state
        return run

    yield run_recipe
    shutil.rmtree(sql, ignore_errors=True)
