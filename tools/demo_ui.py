"""
Run Airflow's web interface on loopback with the examples, a connection and a simulated API, until Ctrl-C.

``make demo-ui`` runs this. ``--check`` stops as soon as all components are healthy and all examples are loaded.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from functools import partial
from urllib.error import URLError

from tools.stage import ROOT, Stage, StageError, ask, open_stage, run

SECONDS_TO_START = 180
PARTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


def show(port: int, check: bool) -> None:
    """Start everything, print the addresses, and wait for Ctrl-C."""
    with open_stage("demo-ui") as stage:
        print("Starting a simulator, and Airflow with a scheduler, a triggerer and its web interface ...", flush=True)
        stage.listen_on(port)
        stage.start_simulator()
        stage.environ["AIRFLOW__CORE__PARALLELISM"] = "4"
        stage.run_airflow("db", "migrate")
        # Not "airflow standalone", because its log servers listen on all interfaces. -s turns them off.
        stage.start_api_server()
        stage.start_airflow("scheduler", "-s")
        stage.start_airflow("dag-processor")
        stage.start_airflow("triggerer", "-s")
        wait_until_ready(stage, {path.stem for path in (ROOT / "example_dags").glob("example_*.py")})
        _greet(stage)
        if not check:
            wait_for_the_end(stage)
        print("Stopping ...", flush=True)


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


def _greet(stage: Stage) -> None:
    print(
        f"""
  Airflow      {stage.url}   (no password; reachable only from this machine)
  simulator    {stage.api}   (connection unleash_default)
  files        {stage.lake}
  log          {stage.log}

Turn on example_unleash_daily: yesterday's rows of every device become Parquet files. Press Ctrl-C to stop.
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
