"""
A DAG run in its own process with OpenLineage's listener; an environment variable sets the transport.

Reads the body of the DAG from standard input and writes the states of its tasks to the given file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.airflow_home import choose_home, init_database
from tests.support.dag_runs import run_dag


def main(out: str) -> None:
    choose_home("AIRFLOW_CONN_", "AIRFLOW__OPENLINEAGE__")
    run = run_dag(init_database(), sys.stdin.read())
    Path(out).write_text(json.dumps({str(task): state for task, state in run.states.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
