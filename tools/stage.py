"""What demos, bench and live tests share: a simulated API, and an Airflow of their own in a temporary folder."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
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

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class StageError(Exception):
    """Something on the stage did not work; the message is for whoever watches."""


class Stage:
    """
    Processes and files of one show.

    :param folder: what stays for a look, made anew
    :param home: Airflow's home, which does not stay
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
        """Start an API on a free port, and point Airflow's connection at it."""
        process = self._start("airflow_provider_unleash.simulator", "--port", "0", *options, stdout=subprocess.PIPE)
        assert process.stdout is not None
        said = process.stdout.readline().split()
        if not said:
            raise self.failure("The simulator did not start")
        self.api = said[-1]
        connection = {"conn_type": "unleash", "host": self.api, "password": DEFAULT_KEYS[0]}
        self.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps(connection)

    def listen_on(self, port: int = 0) -> None:
        """Choose where Airflow's API server will listen, on loopback: all other parts talk to it."""
        self.url = f"http://127.0.0.1:{port or free_port()}"
        self.environ |= {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(),
        }

    def start_api_server(self) -> None:
        """Start what all other parts of Airflow talk to."""
        self.start_airflow("api-server", "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2])

    def start_airflow(self, *command: str) -> subprocess.Popen[str]:
        """Start a part of Airflow that goes on until the show is over."""
        return self._start("airflow", *command)

    def run_airflow(self, *command: str) -> None:
        """Run one command of Airflow to its end."""
        process = self._start("airflow", *command)
        process.wait()
        self._processes.remove(process)
        if process.returncode != 0:
            raise self.failure(f"airflow {' '.join(command)} ended with exit code {process.returncode}")

    def query(self, sql: str) -> list[tuple[str, ...]]:
        """Ask Airflow's database."""
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            return database.execute(sql).fetchall()

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a part of Airflow with all that it started, as if its machine were lost."""
        parts = [psutil.Process(process.pid)]
        # Stopped first, from the top: else a parent sees its children die, and says so, or starts others.
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
        """Return if everything that was started still runs."""
        for process in self._processes:
            if process.poll() is not None:
                raise self.failure(f"Process {process.args!r} ended with exit code {process.returncode}")

    def failure(self, message: str) -> StageError:
        """Return an error with the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return StageError("\n".join([*lines[-40:], "", message, f"Above is the end of {self.log}"]))

    def start_worker(self, module: str, *args: str) -> subprocess.Popen[str]:
        """Start a module that reads what to do from its standard input, and answers on its standard output."""
        return self._start(module, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop_worker(self, process: subprocess.Popen[str]) -> None:
        """End a worker that has nothing left to do."""
        process.communicate()
        self._processes.remove(process)

    def _start(
        self, module: str, *args: str, stdin: int = subprocess.DEVNULL, stdout: int | None = None
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *args]
        with self.log.open("a") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order.
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
        """End everything that was started, with what it started."""
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


def free_port() -> int:
    """Return a port of loopback where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


def ask(url: str, body: str | None = None, *, method: str | None = None, timeout: float = 60) -> Any:
    """Return what a server on loopback answers, as JSON; no proxy is asked."""
    headers = {"Content-Type": "application/json"}
    request = Request(url, None if body is None else body.encode(), headers, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=timeout) as answer:
        return json.load(answer)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in a folder."""
    return [process for process in psutil.process_iter() if _cwd(process).is_relative_to(folder)]


def kill_processes_in(folder: Path) -> None:
    """Kill what still works in a folder: tasks have process groups of their own, but all work in Airflow's home."""
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
    """End what was started on a stage, however the block ends."""
    try:
        yield
    finally:
        # An impatient second Ctrl-C would leave processes behind.
        with _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            stage.stop()


@contextmanager
def open_stage(name: str) -> Iterator[Stage]:
    """Yield an empty stage, and end what was started on it however the block ends."""
    folder = BUILD / name
    BUILD.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="unleash-") as home:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"make {name} is running already in this folder") from None
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        stage = Stage(folder, Path(home))
        with stopping(stage):
            yield stage


def run(show: Callable[[], None]) -> int:
    """Return the exit code of a show: 0, or 1 and a word about why."""
    try:
        with _signals(_exit, signal.SIGTERM, signal.SIGHUP):
            show()
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
    """Return the environment without what a user's own Airflow may have put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHONPATH"))}


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
