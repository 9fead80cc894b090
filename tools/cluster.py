"""
Airflow with CeleryExecutor on loopback: PostgreSQL, Redis, an S3 store, a simulated API, and separate workers.

``make cluster`` runs it until Ctrl-C; ``--check`` exits as soon as all components are healthy. ``make test-cluster``
and ``make bench-cluster`` use the same cluster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from airflow_provider_unleash.simulator import DEFAULT_KEYS, PROFILES
from tools.bounds import temporary_folder
from tools.demo_ui import wait_for_the_end, wait_until_ready
from tools.s3_lake import S3Lake, connection_to
from tools.seaweedfs import SeaweedFS
from tools.services import PostgreSQL, Redis
from tools.stage import ROOT, Stage, ask, kill_processes_in, run, stopping

# One mapped task per device and day, or per batch of devices and day.
DAG_ID, BATCHES_DAG_ID = "cluster_backfill", "cluster_batches"
POOL = "unleash_api"
# The pool has four slots and the workers could run six tasks at once, so the pool limits the requests.
POOL_SLOTS, PAGE_CONCURRENCY = 4, 2
WORKERS, WORKER_CONCURRENCY = ("one", "two"), 3
# Seconds until the tasks of a lost worker count as lost. The defaults are minutes, and a day.
HEARTBEAT_TIMEOUT, VISIBILITY_TIMEOUT, QUEUED_TIMEOUT = 30, 90, 60

_SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "tests" / "cluster" / "dags"),
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": str(QUEUED_TIMEOUT),
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": str(VISIBILITY_TIMEOUT),
    # Tasks must not use up tries because the machine is busy.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "180",
    # The DAG file does not change, and parsing it repeatedly would load the two cores.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def device_ids(number: int) -> tuple[str, ...]:
    """Return that many device ids: first the simulator's, one of which is silent, then street cameras."""
    return (*PROFILES, *(f"W{index:015x}" for index in range(number)))[:number]


class Cluster(Stage):
    """
    The components of Airflow with CeleryExecutor.

    :param folder: for everything except the services, which have their own folders.
    :param services: the stack that the services are entered into.
    """

    def __init__(self, folder: Path, services: ExitStack) -> None:
        home = folder / "home"
        home.mkdir()
        super().__init__(folder, home)
        self._services = services
        database = services.enter_context(PostgreSQL())
        self.database_url = database.url
        broker = services.enter_context(Redis())
        store = services.enter_context(SeaweedFS())
        # The folders of everything that it starts, including components that leave theirs behind.
        self.folders = [folder, database.folder, broker.folder, store.folder]
        self.lake = S3Lake(store)  # type: ignore[assignment]
        self.requests_log = folder / "requests.jsonl"
        self.workers: dict[str, subprocess.Popen[str]] = {}
        self.listen_on()
        self.environ |= _SETTINGS | {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url.replace("://", "+psycopg2://"),
            "AIRFLOW__CELERY__BROKER_URL": broker.url,
            "AIRFLOW_CONN_LAKE": json.dumps(connection_to(store.url)),
            "UNLEASH_LAKE": "s3://lake@lake/tree",
        }

    def start_simulator(self, *options: str, **extra: Any) -> None:
        super().start_simulator("--log", str(self.requests_log), *options)
        connection = {
            "conn_type": "unleash",
            "host": self.api,
            "password": DEFAULT_KEYS[0],
            # Set explicitly, so that rows with stream tokens cause no warning.
            "extra": {"page_concurrency": PAGE_CONCURRENCY, "mask_stream_tokens": False, **extra},
        }
        self.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps(connection)

    def start_parts(self, slots: int = POOL_SLOTS) -> None:
        """Start everything except the workers, and return when it is healthy."""
        self.run_airflow("db", "migrate")
        self.run_airflow("pools", "set", POOL, str(slots), "one slot per running extraction")
        self.start_api_server()
        self.start_airflow("dag-processor")
        # -s: otherwise they serve logs on all interfaces.
        self.start_airflow("scheduler", "-s")
        self.start_airflow("triggerer", "-s")
        wait_until_ready(self, {DAG_ID, BATCHES_DAG_ID})

    def start_celery_worker(self, name: str, concurrency: int = WORKER_CONCURRENCY) -> None:
        """Start a worker with that name. It needs several seconds before it accepts tasks."""
        self.workers[name] = self.start_airflow(
            *("celery", "worker", "--celery-hostname", f"{name}@127.0.0.1", "--concurrency", str(concurrency)),
            # The same as -s for the others.
            *("--pid", str(self.home / f"{name}.pid"), "--skip-serve-logs"),
            *("--without-mingle", "--without-gossip"),
        )

    def kill_celery_worker(self, name: str) -> None:
        """Kill a worker together with its running tasks."""
        self.kill(self.workers.pop(name))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.database_url) as database:
            rows: list[tuple[Any, ...]] = database.execute(sql).fetchall()
        return rows

    def trigger(self, run_id: str, dag_id: str = DAG_ID, **conf: Any) -> None:
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        ask(f"{self.url}/api/v2/dags/{dag_id}/dagRuns", json.dumps(body))

    def run_state(self, run_id: str) -> str:
        [(state,)] = self.query(f"SELECT state FROM dag_run WHERE run_id = '{run_id}'")
        return str(state)

    def stop(self, seconds: float = 15) -> None:
        super().stop(seconds)
        kill_processes_in(self.folder)
        self._services.close()


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """Yield a cluster with only its services running, and stop all of it when the block ends, however it ends."""
    with temporary_folder() as folder, ExitStack() as services:
        cluster = Cluster(folder, services)
        with stopping(cluster):
            yield cluster


def show(check: bool) -> None:
    with open_cluster() as cluster:
        print("Starting PostgreSQL, Redis, SeaweedFS, a simulator, and Airflow with two Celery workers ...", flush=True)
        cluster.start_simulator("--devices", ",".join(device_ids(40)))
        for name in WORKERS:
            cluster.start_celery_worker(name)
        cluster.start_parts()
        print(_GREETING.format(cluster=cluster, pool=POOL, slots=POOL_SLOTS, dag=DAG_ID, log=cluster.log), flush=True)
        if not check:
            wait_for_the_end(cluster)
        print("Stopping ...", flush=True)


_GREETING = """
  Airflow      {cluster.url}   (no password; reachable from this machine only)
  simulator    {cluster.api}   (connection unleash_default, 40 devices)
  lake         s3://lake/tree at {cluster.lake.client.meta.endpoint_url}   (connection lake)
  pool         {pool}, {slots} slots
  workers      one, two
  log          {log}

Trigger {dag}: a week of 40 devices, 280 mapped tasks. Ctrl-C stops everything and deletes its files.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with code 0 as soon as all components are healthy")
    return run(partial(show, parser.parse_args().check))


if __name__ == "__main__":
    sys.exit(main())
