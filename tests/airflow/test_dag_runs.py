"""DAG runs in tests use the DAG file as it is now, however quickly it changed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow_home import dags_folder
from tests.support.dag_runs import DagRun, has_asset_state_store, run_dag_file

DAG_FILE = """
from datetime import datetime, timedelta
from airflow.providers.common.compat.sdk import DAG, task

with DAG("changed", start_date=datetime(2026, 1, 1), schedule=None) as dag:

    @task(retry_delay=timedelta(seconds={seconds}))
    def get_seconds():
        return {seconds}

    get_seconds()
"""


def run_with(home: Path, seconds: int) -> DagRun:
    path = dags_folder() / "changed.py"
    path.write_text(DAG_FILE.format(seconds=seconds))
    os.utime(path, (1_768_176_000, 1_768_176_000))
    return run_dag_file(home, path)


def test_a_file_that_changes_within_a_second_is_compiled_again(airflow_home, monkeypatch):
    """Python reuses bytecode for a file of the same size and the same second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert run_with(airflow_home, 300).xcoms == {"get_seconds": 300}
    assert run_with(airflow_home, 100).xcoms == {"get_seconds": 100}


@pytest.mark.skipif(not has_asset_state_store(), reason="before Airflow 3.3, dag.test() serializes a DAG once")
def test_a_dag_that_changes_within_30_seconds_is_serialized_again(airflow_home):
    """By default, Airflow keeps a serialized DAG for ``min_serialized_dag_update_interval`` seconds."""
    serialized: list[Any] = []
    for seconds in (200, 400):
        run = run_with(airflow_home, seconds)
        [(data,)] = run.query("SELECT data FROM serialized_dag WHERE dag_id = ? ORDER BY last_updated DESC LIMIT 1")
        serialized.append(data)
    assert '"retry_delay": 200' in serialized[0]
    assert '"retry_delay": 400' in serialized[1]
