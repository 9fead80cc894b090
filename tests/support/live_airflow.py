"""
Run all components of Airflow on loopback, in their own folder, until every kind of run has ended.

``airflow dags test`` commands use a second Airflow home, because the scheduler would otherwise run their tasks.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from tests.support.dag_runs import DagRun
from tests.support.paths import TESTS
from tests.support.run_kinds import RUN_KINDS, RunKind
from tests.support.secret_search import files_under, leaks
from tools.bounds import temporary_folder, time_limit
from tools.stage import DEFAULT_KEYS, Stage, StageError, ask, kill_processes_in, stopping

LIVE = TESTS / "live"
ROWS_PER_DAY = 48
SECONDS_ALTOGETHER = 15 * 60
# Asset-triggered DAGs run seconds after the update. After this time without progress, no more runs will start.
SECONDS_OF_SILENCE = 120

_SETTINGS = {
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "AIRFLOW__CORE__DAGS_FOLDER": str(LIVE / "dags"),
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__PARALLELISM": "3",
    # Tasks must not use up tries because the machine is busy.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "180",
}


@dataclass(frozen=True)
class Run:
    """
    The outcome of a run's only task, from Airflow's database, the task's log and the API's log.

    :param state: state of the task, or None if the run has no task.
    :param made: when the run was created, or None if its dates come from a schedule.
    :param xcom: what the task returned.
    :param events: events of its outlets: URI and extra.
    :param requests: start and end of the windows requested for the DAG's device, in epoch milliseconds.
    """

    state: str | None
    tries: int | None
    max_tries: int | None
    made: datetime | None
    data_interval_start: datetime | None
    data_interval_end: datetime | None
    partition_date: datetime | None
    xcom: Any
    events: list[tuple[str, Any]]
    log: str
    requests: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Observed:
    """
    What all the runs left behind.

    :param runs: runs by DAG, without those that did not end.
    :param output: output of the command or API request that created the run, by DAG.
    :param folder: the folder in which everything ran.
    :param leaks: places in that folder that contain the API key: logs, databases, the lake.
    """

    runs: dict[str, Run]
    output: dict[str, str]
    folder: Path
    leaks: list[str]


class LiveStage(Stage):
    """A simulator and components of Airflow in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir(parents=True)
        super().__init__(folder, home)
        self.output = folder / "output"
        self.output.mkdir()
        self.environ |= _SETTINGS
        self.listen_on()
        self.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{home}/airflow.db?timeout=60"
        self._commands: list[subprocess.Popen[str]] = []

    def start_simulator(self, *options: str) -> None:
        super().start_simulator(*options)
        self.use_api(self.api)

    def use_api(self, url: str) -> None:
        """Point Airflow's connection at a simulator."""
        self.api = url
        # Set explicitly, so that rows with stream tokens cause no warning.
        connection = {
            "conn_type": "unleash",
            "host": url,
            "password": DEFAULT_KEYS[0],
            "extra": {"mask_stream_tokens": False},
        }
        self.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps(connection)

    def start_commands(self, kinds: Iterable[RunKind]) -> None:
        """Start the commands that create the runs of these kinds."""
        commands = {kind.dag_id: kind.run.replace("DAG", kind.dag_id).split()[1:] for kind in kinds}
        self._commands.append(self._start("tests.support.airflow_commands", str(self.output), json.dumps(commands)))

    def has_api_server(self) -> bool:
        """Return whether the API server responds yet."""
        with suppress(URLError, ConnectionError, TimeoutError):
            return bool(ask(f"{self.url}/api/v2/version"))
        return False

    def check_alive(self) -> bool:
        """Return whether commands are still running; raise if another process has ended."""
        for process in [process for process in self._commands if process.poll() == 0]:
            self._commands.remove(process)
            self._processes.remove(process)
        super().check_alive()
        return bool(self._commands)

    def stop(self, seconds: float = 15) -> None:
        super().stop(seconds)
        kill_processes_in(self.folder)


@contextmanager
def live_stage(folder: Path, seconds: int = SECONDS_ALTOGETHER) -> Iterator[LiveStage]:
    """Yield a stage for at most some seconds, and stop everything on it when the block ends, however it ends."""
    with time_limit(seconds):
        stage = LiveStage(folder / "live")
        with stopping(stage):
            yield stage


def observe() -> Observed:
    """Create all runs, wait for them, stop everything, and return what they left behind."""
    with time_limit(SECONDS_ALTOGETHER), temporary_folder() as folder:
        live, tests = LiveStage(folder / "live"), LiveStage(folder / "tests")
        with stopping(live), stopping(tests):
            _run_everything(live, tests)
            runs = _read_runs(live, _read_workers_log) | _read_runs(tests, _read_tests_log)
            output = {path.stem: path.read_text() for stage in (live, tests) for path in stage.output.iterdir()}
            return Observed(runs, output, folder, leaks(DEFAULT_KEYS[0], files_under(folder)))


def _run_everything(live: LiveStage, tests: LiveStage) -> None:
    devices = ",".join(kind.dag_id for kind in RUN_KINDS)
    live.start_simulator("--devices", devices, "--rows-per-day", str(ROWS_PER_DAY))
    tests.use_api(live.api)
    live.run_airflow("db", "migrate")
    for path in live.home.glob("airflow.db*"):
        shutil.copy(path, tests.home)
    tests.start_commands(_kinds_by("airflow dags test"))
    live.start_api_server()
    live.start_airflow("dag-processor")
    # Start runs only when the other components are ready: without an API server, a worker uses up a try of its task,
    # and a DAG that is not there yet misses the update of its asset.
    wait_until(lambda: live.has_api_server() and _are_dags_there(live), live, tests)
    live.start_commands([*_kinds_by("airflow dags trigger"), *_kinds_by("airflow backfill")])
    for kind in _kinds_by("POST"):
        _post_run(live, kind)
    # SQLite allows one writer at a time, and the scheduler writes often.
    wait_until(lambda: not live.check_alive(), live, tests)
    # -s: otherwise they serve logs on all interfaces.
    live.start_airflow("scheduler", "-s")
    live.start_airflow("triggerer", "-s")
    _wait_for_runs(live, tests)


def _kinds_by(how: str) -> list[RunKind]:
    return [kind for kind in RUN_KINDS if kind.run.startswith(how)]


def wait_until(is_so: Callable[[], bool], *stages: LiveStage) -> None:
    while not is_so():
        for stage in stages:
            stage.check_alive()
        time.sleep(0.5)


def _wait_for_runs(live: LiveStage, tests: LiveStage) -> None:
    """Return when all runs have ended, or when there is no more progress."""
    progress: list[Any] = []
    last_news = time.monotonic()
    while True:
        busy = [stage.check_alive() for stage in (live, tests)]
        seen = [stage.query("SELECT dag_id, state FROM dag_run ORDER BY dag_id") for stage in (live, tests)]
        over = [state in ("success", "failed") for states in seen for _, state in states]
        if len(over) == sum(len(kind.dates) or 1 for kind in RUN_KINDS) and all(over) and not any(busy):
            return
        if seen != progress or any(busy):
            progress, last_news = seen, time.monotonic()
        if time.monotonic() - last_news > SECONDS_OF_SILENCE:
            return
        time.sleep(0.5)


def _are_dags_there(live: LiveStage) -> bool:
    if errors := live.query("SELECT stacktrace FROM import_error"):
        raise StageError(errors[0][0])
    return {kind.dag_id for kind in RUN_KINDS} <= {dag for (dag,) in live.query("SELECT dag_id FROM serialized_dag")}


def _post_run(live: LiveStage, kind: RunKind) -> None:
    try:
        output = ask(f"{live.url}/api/v2/dags/{kind.dag_id}/dagRuns", kind.run.removeprefix("POST "))
    except HTTPError as error:
        output = f"{error.code} {error.read().decode()}"
    (live.output / f"{kind.dag_id}.log").write_text(str(output))


def _read_requests(api: str) -> dict[str, frozenset[tuple[int, int]]]:
    """Return the requested windows by device."""
    asked: dict[str, set[tuple[int, int]]] = {}
    for request in ask(f"{api}/_simulator/requests")["requests"]:
        if found := re.fullmatch(r"/v1/analytics/(\w+)/(\d+)/(\d+)/\d+", request["path"]):
            device, start, end = found.groups()
            asked.setdefault(device, set()).add((int(start), int(end)))
    return {device: frozenset(windows) for device, windows in asked.items()}


_RUNS = """
SELECT dag_id, run_id, task_instance.state, try_number, max_tries,
  logical_date, run_after, data_interval_start, data_interval_end, partition_date
FROM dag_run LEFT JOIN task_instance USING (dag_id, run_id)
WHERE dag_run.state IN ('success', 'failed')
ORDER BY logical_date
"""


def _read_runs(stage: LiveStage, read_log: Callable[[LiveStage, str, str], str]) -> dict[str, Run]:
    requests, runs = _read_requests(stage.api), {}
    for dag_id, run_id, state, tries, max_tries, *moments in stage.query(_RUNS):
        logical_date, run_after, *others = map(_parse, moments)
        run = DagRun(stage.home, dag_id, run_id)
        runs[dag_id] = Run(
            state,
            tries,
            max_tries,
            _just_now(logical_date, run_after),
            *others,
            xcom=run.xcoms.get("fetch"),
            events=run.events,
            log=read_log(stage, dag_id, run_id),
            requests=requests.get(dag_id, frozenset()),
        )
    return runs


def _parse(moment: str | None) -> datetime | None:
    return moment and datetime.fromisoformat(moment).replace(tzinfo=timezone.utc)


def _just_now(*moments: datetime | None) -> datetime | None:
    """Return the earliest recent time, because ``airflow dags test`` reads the clock twice."""
    earliest = time.time() - SECONDS_ALTOGETHER
    return min((moment for moment in moments if moment and moment.timestamp() > earliest), default=None)


def _read_workers_log(stage: LiveStage, dag_id: str, run_id: str) -> str:
    logs = (stage.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}").rglob("attempt=*.log")
    return "\n".join(_words(json.loads(line)) for path in sorted(logs) for line in path.read_text().splitlines())


def _words(entry: dict[str, Any]) -> str:
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail", ())]
    return "\n".join([f"{entry['level']}: {entry['event']}", *errors])


def _read_tests_log(stage: LiveStage, dag_id: str, run_id: str) -> str:
    return (stage.output / f"{dag_id}.log").read_text()
