"""A simulated API and an isolated Airflow in a temporary folder, for demos, benchmarks and live tests."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from airflow_provider_unleash.simulator import DEFAULT_KEYS
from tools.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class StageError(Exception):
    """Something failed to start or stopped; the message is for the user."""


class Stage:
    """
    The processes and files of one demo or test.

    :param folder: new folder for results and logs, kept afterwards
    :param home: Airflow's home, removed afterwards
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.home = home
        self.lake = folder / "lake" / "unleash"
        self.log = folder / "airflow.log"
        self.api = self.url = ""
        self.environ = _clean_environ() | {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # By default, Airflow ignores changes of a DAG file within 30 seconds.
            "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "UNLEASH_LAKE": f"file://{self.lake}",
            "AIRFLOW_CONN_DUCKDB_DEFAULT": json.dumps({"conn_type": "duckdb", "host": f"{folder}/unleash.duckdb"}),
        }
        self._processes: list[subprocess.Popen[str]] = []

    def start_simulator(self, *options: str) -> None:
        """Start a simulator on a free port, and point Airflow's connection at it."""
        process = self._start("airflow_provider_unleash.simulator", "--port", "0", *options, stdout=subprocess.PIPE)
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if not words:
            raise self.failure("The simulator did not start")
        self.api = words[-1]
        connection = {"conn_type": "unleash", "host": self.api, "password": DEFAULT_KEYS[0]}
        self.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps(connection)

    def listen_on(self, port: int = 0) -> None:
        """Set the address on loopback that Airflow's API server will listen on."""
        self.url = f"http://127.0.0.1:{port or free_ports(1)[0]}"
        self.environ |= {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(),
        }

    def start_api_server(self) -> None:
        """Start Airflow's API server; all other components connect to it."""
        self.start_airflow("api-server", "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2])

    def start_airflow(self, *command: str) -> subprocess.Popen[str]:
        """Start an Airflow component that runs until the stage is stopped."""
        return self._start("airflow", *command)

    def run_airflow(self, *command: str) -> None:
        process = self._start("airflow", *command)
        process.wait()
        self._processes.remove(process)
        if process.returncode != 0:
            raise self.failure(f"airflow {' '.join(command)} ended with exit code {process.returncode}")

    def query(self, sql: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            return database.execute(sql).fetchall()

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        runs = f"FROM dag_run WHERE dag_id = '{dag_id}' AND run_id = '{run_id}'"
        while not self.query(f"SELECT state {runs} AND state IN ('success', 'failed')"):
            self.check_alive()
            if time.monotonic() > deadline:
                raise self.failure(f"{dag_id} has no result after {seconds:.0f} seconds")
            time.sleep(0.5)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill an Airflow component and all its descendants, like the loss of a machine."""
        parts = [psutil.Process(process.pid)]
        # Suspend parents before children. Otherwise a parent reports the death of its children, or restarts them.
        for part in parts:
            with suppress(psutil.NoSuchProcess):
                part.suspend()
                parts += part.children()
        for part in parts:
            with suppress(psutil.NoSuchProcess):
                part.kill()
        process.wait()
        self._processes.remove(process)

    def check_alive(self) -> None:
        """Raise an error if a process has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise self.failure(f"Process {process.args!r} ended with exit code {process.returncode}")

    def failure(self, message: str) -> StageError:
        """Return an error that includes the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return StageError("\n".join([*lines[-40:], "", message, f"Above is the end of {self.log}"]))

    def start_worker(self, module: str, *args: str) -> subprocess.Popen[str]:
        """Start a module that reads jobs from standard input and writes results to standard output."""
        return self._start(module, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop_worker(self, process: subprocess.Popen[str]) -> None:
        """Wait for a worker to end; its input is closed."""
        process.communicate()
        self._processes.remove(process)

    def _start(
        self, module: str, *args: str, stdin: int = subprocess.DEVNULL, stdout: int | None = None
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *args]
        with self.log.open("a") as log:
            # In a new session, so that Ctrl-C reaches only this process, which then stops the others in order.
            process = subprocess.Popen(
                command,
                cwd=self.home,
                env=self.environ,
                stdin=stdin,
                stdout=stdout or log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def stop(self, seconds: float = 15) -> None:
        """Stop all processes and their process groups."""
        for process in self._processes:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()


def ask(url: str, body: str | None = None, *, method: str | None = None, timeout: float = 60) -> Any:
    """Return the JSON response of a server on loopback; proxies are ignored."""
    headers = {"Content-Type": "application/json"}
    request = Request(url, None if body is None else body.encode(), headers, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=timeout) as answer:
        return json.load(answer)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is in this folder."""
    return [process for process in psutil.process_iter() if _cwd(process).is_relative_to(folder)]


def kill_processes_in(folder: Path) -> None:
    """Kill the processes in this folder. Tasks have process groups of their own, but all run in Airflow's home."""
    while left := processes_in(folder):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _cwd(process: psutil.Process) -> Path:
    with suppress(psutil.Error, OSError):
        return Path(process.cwd())
    return Path("/")


@contextmanager
def stopping(stage: Stage) -> Iterator[None]:
    try:
        yield
    finally:
        # Ignore a second Ctrl-C, which would leave processes behind.
        with _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            stage.stop()


@contextmanager
def open_stage(name: str) -> Iterator[Stage]:
    """Yield an empty stage, and stop it at the end of the block, also on an error."""
    folder = BUILD / name
    BUILD.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="unleash-") as home:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"make {name} is already running in this folder") from None
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        stage = Stage(folder, Path(home))
        with stopping(stage):
            yield stage


def run(command: Callable[[], None]) -> int:
    """Run a command, and return its exit code: 0, or 1 after printing an error."""
    try:
        with _signals(_exit, signal.SIGTERM, signal.SIGHUP):
            command()
    except StageError as error:
        print(f"\n\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)


@contextmanager
def _signals(handler: Callable[[int, object], None] | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _clean_environ() -> dict[str, str]:
    """Return the environment without the variables of a user's own Airflow."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHONPATH"))}


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
