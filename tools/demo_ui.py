"""
Run Airflow's web interface on loopback with examples, a connection and a simulated API, until Ctrl-C.

``make demo-ui`` runs this. It offers the examples that need nothing else, and starts the daily one. ``--check`` stops
once that run has succeeded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote

from tools.stage import ROOT, Stage, StageError, ask, open_stage, run

SECONDS_TO_START = 180
# The recipes are not offered: most need an account elsewhere, or files of another DAG.
EXAMPLES = sorted((ROOT / "example_dags").glob("example_*.py"))
DAILY = "example_unleash_daily"
PARTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


def show(port: int, check: bool) -> None:
    with open_stage("demo-ui") as stage:
        print("Starting a simulator, and Airflow with a scheduler, a triggerer and its web interface ...", flush=True)
        stage.listen_on(port)
        stage.start_simulator()
        stage.environ["AIRFLOW__CORE__PARALLELISM"] = "4"
        stage.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(offer_examples(stage.folder / "dags"))
        stage.run_airflow("db", "migrate")
        # Not "airflow standalone", because its log servers listen on all interfaces. -s turns them off.
        stage.start_api_server()
        stage.start_airflow("scheduler", "-s")
        stage.start_airflow("dag-processor")
        stage.start_airflow("triggerer", "-s")
        wait_until_ready(stage, {path.stem for path in EXAMPLES})
        _greet(stage, start_daily(stage))
        if check:
            wait_for_success(stage)
        else:
            wait_for_the_end(stage)
        print("Stopping ...", flush=True)


def offer_examples(folder: Path) -> Path:
    """Fill a DAGs folder with links to the examples that run here. Edits of an example take effect."""
    folder.mkdir()
    for path in EXAMPLES:
        (folder / path.name).symlink_to(path)
    return folder


def start_daily(stage: Stage) -> str:
    """Unpause the daily DAG, and return the address of the run that the scheduler then creates for yesterday."""
    ask(f"{stage.url}/api/v2/dags/{DAILY}", json.dumps({"is_paused": False}), method="PATCH")
    run_id = wait_for(stage, f"SELECT run_id FROM dag_run WHERE dag_id = '{DAILY}'")
    return f"{stage.url}/dags/{DAILY}/runs/{quote(run_id, safe='')}"


def wait_for_success(stage: Stage) -> None:
    state = wait_for(stage, f"SELECT state FROM dag_run WHERE dag_id = '{DAILY}' AND state IN ('success', 'failed')")
    if state != "success":
        raise stage.failure(f"The run of {DAILY} has failed")


def wait_for(stage: Stage, sql: str) -> str:
    """Return the value that a query of Airflow's database finds."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not (rows := stage.query(sql)):
        stage.check_alive()
        if time.monotonic() > deadline:
            raise stage.failure(f"{DAILY} has no result after {SECONDS_TO_START} seconds")
        time.sleep(0.5)
    return rows[0][0]


def wait_until_ready(stage: Stage, dags: set[str]) -> None:
    """Return when all components are healthy and these DAGs are loaded."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not (_is_healthy(stage.url) and dags <= {dag for (dag,) in stage.query("SELECT dag_id FROM dag")}):
        stage.check_alive()
        if errors := stage.query("SELECT filename, stacktrace FROM import_error"):
            raise StageError("\n\n".join(f"{name} cannot be imported:\n{trace}" for name, trace in errors))
        if time.monotonic() > deadline:
            raise stage.failure(f"Airflow is not ready after {SECONDS_TO_START} seconds")
        time.sleep(0.5)


def _is_healthy(url: str) -> bool:
    with suppress(URLError, ConnectionError, TimeoutError):
        health = ask(f"{url}/api/v2/monitor/health", timeout=5)
        return all(health[part]["status"] == "healthy" for part in PARTS)
    return False


def _greet(stage: Stage, run_url: str) -> None:
    print(
        f"""
  first run    {run_url}
  Airflow      {stage.url}   (no password; reachable only from this machine)
  simulator    {stage.api}   (connection unleash_default)
  files        {stage.lake}
  log          {stage.log}

{DAILY} is running: yesterday's rows of every device become Parquet files. To see its tasks, open the first run.
Turn on other examples as you like; each writes to a folder of its own. Press Ctrl-C to stop.
""",
        flush=True,
    )


def wait_for_the_end(stage: Stage) -> None:
    """Return at Ctrl-C; raise an error if a process ends before."""
    with suppress(KeyboardInterrupt):
        while True:
            stage.check_alive()
            time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port of the web interface (default: a free one)")
    parser.add_argument("--check", action="store_true", help="stop when everything is healthy, with exit code 0")
    args = parser.parse_args()
    return run(partial(show, args.port, args.check))


if __name__ == "__main__":
    sys.exit(main())
