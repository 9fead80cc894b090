"""Run one try of an extraction in a process that may be killed at any time."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

# Preloaded by the server that forks the tries.
import airflow.providers.amazon.aws.fs.s3  # noqa: F401
import pyarrow.parquet  # noqa: F401
import s3fs  # noqa: F401

from airflow_provider_unleash.core import account, journal, throttle
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashToObjectStorageOperator

CHECKPOINT_PAGES = 6
JOURNAL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """
    The input of a try.

    :param folder: folder with the file ``log`` for output, and the folder ``tmp``
    :param connections: connection fields by connection id
    :param window: data interval of the run
    :param arguments: arguments of the operator
    """

    folder: str
    connections: Mapping[str, Mapping[str, Any]]
    window: tuple[datetime, datetime]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """The result of a try that was not killed: the summary or the error, and the threads that still run."""

    summary: dict[str, Any] | None
    error: str
    message: str
    threads: tuple[str, ...]


def run_try(job: Job, supervisor: Connection) -> None:
    tempfile.tempdir = f"{job.folder}/tmp"
    log = os.open(f"{job.folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    throttle.MIN_BACKOFF = throttle.MAX_BACKOFF = 0.01
    account.CHECKPOINT_PAGES = CHECKPOINT_PAGES  # type: ignore[attr-defined]
    journal.SAVE_SECONDS = JOURNAL_SECONDS
    for conn_id, connection in job.connections.items():
        os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)
    kind = UnleashToObjectStorageOperator if "device_id" in job.arguments else UnleashAccountToObjectStorageOperator
    operator = kind(task_id="extract", **job.arguments)
    start, end = job.window
    context: Any = {"dag_run": SimpleNamespace(run_type="scheduled")}
    context |= {"data_interval_start": start, "data_interval_end": end}
    summary, error, message = None, "", ""
    try:
        summary = operator.execute(context)
    except Exception as raised:
        cause = raised.__cause__ or raised
        error, message = type(cause).__name__, str(cause)
    threads = tuple(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    supervisor.send(Report(summary, error, message, threads))
    supervisor.close()
