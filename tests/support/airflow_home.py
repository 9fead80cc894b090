"""A temporary Airflow home for this process, so that no test reads or changes a user's own Airflow."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

_homes: list[tempfile.TemporaryDirectory[str]] = []


def choose_home(*kept: str) -> None:
    """
    Point this process at a new Airflow home. Airflow reads its settings when it is imported, so call this first.

    :param kept: prefixes of the variables to keep; all other ``AIRFLOW_`` variables are removed
    """
    assert "airflow" not in sys.modules, "Airflow was imported before its home was chosen"
    _homes.append(tempfile.TemporaryDirectory(prefix="airflow-home-", ignore_cleanup_errors=True))
    home = Path(_homes[-1].name)
    (home / "dags").mkdir()
    given = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("AIRFLOW_")}
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # By default, Airflow ignores changes of a DAG file within 30 seconds, such as a new retry_delay.
        "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    }
    os.environ |= {name: value for name, value in given.items() if name.startswith(kept)}


def remove_home() -> None:
    """Remove the homes that this process chose."""
    while _homes:
        _homes.pop().cleanup()


def dags_folder() -> Path:
    """Return the folder from which Airflow 3 runs DAG files; it runs no others."""
    return Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])


def init_database() -> Path:
    """Create Airflow's database, make slow parts of tests fast, and return Airflow's home."""
    from airflow.utils.db import initdb

    initdb()
    with suppress(ImportError):
        dev = import_module("structlog.dev")
        # Airflow 3.0 prints the variables of each frame, which takes 1 to 20 seconds. Others print none.
        dev.RichTracebackFormatter.__call__ = lambda self, file, error: dev.plain_traceback(file, error)
    with suppress(ImportError):
        from airflow.sdk.execution_time import supervisor

        # Airflow 3.3 does the same. Before, dag.test() built an execution API for each task, which takes seconds.
        if not hasattr(supervisor.in_process_api_server, "cache_info"):
            supervisor.in_process_api_server = cache(supervisor.in_process_api_server)
    return Path(os.environ["AIRFLOW_HOME"])
