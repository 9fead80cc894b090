"""
Extractions to a Delta table that are killed: ``python -m tests.support.delta_worker`` reads a JSON object per line.

Each starts a copy of the process, which has imported everything, and kills it ``delay`` seconds after it has started
or, with ``at_commit``, after its commit has begun. The answer is a line with "killed", or its exit code and the seconds
from then to its end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import deltalake  # noqa: F401  # imported before the copies are made
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import account, delta
from airflow_provider_unleash.window import Window


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(f"{run_and_kill(json.loads(line))}\n")
        sys.stdout.flush()


def run_and_kill(job: Mapping[str, Any]) -> str:
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            extract(job, begins)
            code = 0
        finally:
            os._exit(code)
    if job["at_commit"]:
        select.select([begun], [], [], 60)
    began = time.monotonic()
    while time.monotonic() < began + job["delay"]:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.001)
    else:
        os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, 0)
    os.close(begun)
    os.close(begins)
    if os.WIFSIGNALED(status):
        return "killed"
    return f"{os.waitstatus_to_exitcode(status)} {time.monotonic() - began}"


def extract(job: Mapping[str, Any], begins: int) -> None:
    commit = delta.WindowTable.commit

    def commit_and_tell(table: delta.WindowTable) -> None:
        os.write(begins, b".")
        commit(table)

    delta.WindowTable.commit = commit_and_tell  # type: ignore[method-assign]
    dst = UPath(job["dst"], **job["file_system"])
    with UnleashClient("simulator-key", job["url"], mask_stream_tokens=False) as client:
        account.land_account(
            client,
            None,
            Window(*job["window"]),
            dst,
            file_format="delta",
            storage_options=lambda: job["storage_options"],
        )


if __name__ == "__main__":
    main()
