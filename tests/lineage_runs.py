"""
A DAG run in a process of its own, where OpenLineage's listener is on; its transport is given as environment variable.

The body of the DAG is read from standard input; the states of its tasks go to the file that is named.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path

given = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_")}
import conftest  # noqa: E402  # takes all of them away
import dag_runs  # noqa: E402

os.environ |= {name: value for name, value in given.items() if name not in ("AIRFLOW_HOME",)}


def main(out: str) -> None:
    inspect.unwrap(conftest.airflow_home)()
    run = dag_runs.run_dag(Path(os.environ["AIRFLOW_HOME"]), sys.stdin.read())
    Path(out).write_text(json.dumps({str(task): state for task, state in run.states.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
