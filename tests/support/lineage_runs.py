"""
A DAG run in a process of its own, where OpenLineage's listener is on; its transport is given as environment variable.

The body of the DAG is read from standard input; the states of its tasks go to the file that is named.
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
