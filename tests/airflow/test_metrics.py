"""What runs report to a real StatsD socket is what the simulator was asked; and no metric fails a task."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash import metrics
from airflow_provider_unleash.client import Traffic, UnleashClient
from airflow_provider_unleash.core import client
from airflow_provider_unleash.core.requester import OUTCOMES
from airflow_provider_unleash.exceptions import ServerError
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.paths import ROOT
from tests.support.python_processes import import_root, module_command
from tests.support.sample_day import CROWD, DAY_END, DAY_START, SILENT, STREET, make_context

DOCUMENT = ROOT / "docs" / "metrics.md"
EVERYTHING = {
    **dict.fromkeys(("land", "rows", "deferred", "own"), "success"),
    **dict.fromkeys(("fails", "refused", "wait"), "failed"),
}
# How each client writes tags; plain StatsD has none. A run of everything takes long, and is made with the first.
KINDS: dict[str, dict[str, str]] = {
    "influxdb": {"STATSD_INFLUXDB_ENABLED": "True"},
    "plain": {},
    "datadog": {"STATSD_DATADOG_ENABLED": "True", "STATSD_DATADOG_METRICS_TAGS": "True"},
}
# The one with a DAG run of everything is slow.
REPORTS = [pytest.param("influxdb", marks=pytest.mark.slow), "plain", "datadog"]
METRIC = re.compile(r"airflow\.unleash\.([a-z_.]+)((?:,\w+=[^,:]*)*):([\d.]+)\|(c|ms)(?:\|#(\S*))?")


@dataclass
class Reported:
    """
    What a run has reported.

    :param counters: sums by metric, and by task.
    :param timings: milliseconds by metric, and by task.
    :param tags: which there were.
    """

    sim: Simulator
    object_bytes: int
    counters: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    timings: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    tags: set[str] = field(default_factory=set)

    def read(self, datagram: str) -> None:
        for line in datagram.split():
            if not line.startswith("airflow.unleash."):
                continue
            found = METRIC.fullmatch(line)
            assert found, line
            name, influxdb, value, kind, datadog = found.groups()
            tags = dict(tag.split("=") for tag in influxdb.split(",")[1:])
            tags |= dict(tag.split(":", 1) for tag in (datadog or "").split(",") if tag)
            self.tags |= set(tags)
            task = tags.get("task_id", "")
            if kind == "c":
                self.counters[name][task] += int(float(value))
            else:
                self.timings[name][task] = float(value)

    def totals(self) -> dict[str, int]:
        return {name: sum(by_task.values()) for name, by_task in self.counters.items()}

    def of(self, task: str) -> dict[str, int]:
        return {name: by_task[task] for name, by_task in self.counters.items() if task in by_task}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reported]:
    """Give a function that makes a run, once for each kind of client."""
    runs: dict[str, Reported] = {}

    def report(kind: str) -> Reported:
        if find_spec("datadog" if kind == "datadog" else "statsd") is None:
            pytest.skip("its client is not installed")
        if kind not in runs:
            runs[kind] = make_run(kind, tmp_path_factory.mktemp(kind))
        return runs[kind]

    return report


def make_run(kind: str, folder: Path) -> Reported:
    faults = [
        Fault("429", path=STREET, page=3, retry_after=1),
        Fault("502", path=STREET, page=5),
        Fault("half_body", path=STREET, page=7),
        Fault("500", path=CROWD, page=2, times=None),
        Fault("404", path="no-such"),
    ]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        Simulator(rows_per_day=240, page_size=20, sessions_from=DAY_START, faults=faults) as sim,
    ):
        server.bind(("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        connection = {"conn_type": "unleash", "host": sim.base_url, "password": sim.api_key}
        settings = {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": str(server.getsockname()[1]),
            "METRICS_ALLOW_LIST": "unleash",
            **KINDS[kind],
        }
        environment = {
            **os.environ,
            **{f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()},
            "AIRFLOW_CONN_UNLEASH_DEFAULT": json.dumps({**connection, "extra": {"mask_stream_tokens": False}}),
        }
        what, states = ("everything", EVERYTHING) if kind == "influxdb" else ("land", {"land": "success"})
        command = module_command("metric_runs", what, f"file://{folder}/lake")
        done = subprocess.run(command, env=import_root(environment), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == states, done.stdout + done.stderr
        [landed] = (folder / "lake").rglob("*.jsonl")
        reported = Reported(sim, landed.stat().st_size)
        server.setblocking(False)
        while True:
            try:
                reported.read(server.recv(1 << 16).decode())
            except BlockingIOError:
                return reported


# ---- what is reported --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REPORTS)
def test_the_requests_of_all_tasks_are_those_that_the_api_got(report: Callable[[str], Reported], kind: str) -> None:
    reported = report(kind)
    requests = {name: number for name, number in reported.totals().items() if name.startswith("requests.")}
    assert sum(requests.values()) == len(reported.sim.requests)
    assert set(requests) >= {
        f"requests.{outcome}" for outcome in ("ok", "throttled", "server_error", "transport_error")
    }


@pytest.mark.parametrize("kind", REPORTS)
def test_a_task_is_told_by_its_tags_and_a_device_is_none(report: Callable[[str], Reported], kind: str) -> None:
    reported = report(kind)
    task = "" if kind == "plain" else "land"
    assert reported.tags == (set() if kind == "plain" else {"dag_id", "task_id"})
    landed = reported.of(task)
    assert 900 <= landed.pop("throttled_ms") <= 1100
    pages = -(-len(reported.sim.rows(STREET, DAY_START, DAY_END)) // 20)
    assert landed == {
        "requests.ok": pages + 2,  # the first and the last page are read again
        "requests.throttled": 1,
        "requests.server_error": 1,
        "requests.transport_error": 1,
        "retries": 3,
        "rows": len(reported.sim.rows(STREET, DAY_START, DAY_END - 1)),
        "bytes": reported.object_bytes,
    }
    assert set(reported.timings) == {"extraction.duration"}
    assert 900 <= reported.timings["extraction.duration"][task] <= 60_000


@pytest.mark.slow
def test_sensor_and_hook_report_what_they_asked(report: Callable[[str], Reported]) -> None:
    reported = report("influxdb")
    assert reported.of("own") == {"requests.ok": 3}  # the first page, the last one, the version
    waited = reported.of("wait")
    assert waited == {"polls": waited["requests.ok"], "requests.ok": waited["requests.ok"]}
    asked = sum(request.path.endswith("/sessions") for request in reported.sim.requests)
    assert reported.totals()["polls"] == asked >= 2


@pytest.mark.slow
def test_what_fails_has_reported_its_requests_too(report: Callable[[str], Reported]) -> None:
    reported = report("influxdb")
    failed = reported.of("fails")
    assert failed["requests.server_error"] == 5
    assert failed["retries"] == 4
    assert failed["requests.ok"] >= 1
    assert not {"rows", "bytes"} & set(failed)
    assert reported.of("refused") == {"requests.client_error": 1}


@pytest.mark.slow
def test_a_trigger_reports_its_polls_and_belongs_to_no_task(report: Callable[[str], Reported]) -> None:
    reported = report("influxdb")
    assert "deferred" not in reported.counters["polls"]
    assert reported.of("") == {"polls": 1, "requests.ok": 1}


@pytest.mark.slow
def test_the_document_lists_what_is_reported_and_nothing_else(report: Callable[[str], Reported]) -> None:
    documented = set(re.findall(r"^\| `unleash\.([a-z_.]+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    reported = report("influxdb")
    seen = set(reported.totals()) | set(reported.timings)
    assert seen <= documented
    assert documented == {f"requests.{outcome}" for outcome in OUTCOMES} | {
        name for name in seen if not name.startswith("requests.")
    }


# ---- that it costs nothing ---------------------------------------------------------------------


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no metrics today")


def test_metrics_that_cannot_be_sent_fail_no_task(
    serve: Callable[..., Simulator], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sim = serve()
    monkeypatch.setattr(metrics, "_stats", lambda in_triggerer: Broken())
    assert UnleashListDevicesOperator(task_id="list").execute(make_context()) == list(sim.devices)
    land = UnleashToObjectStorageOperator(task_id="land", device_id=STREET, dst=f"file://{tmp_path}")
    assert land.execute(make_context())["rows"] > 0


# ---- what a client counts ----------------------------------------------------------------------


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("429", "throttled"),
        ("503", "server_error"),
        ("408", "server_error"),
        ("half_body", "transport_error"),
        ("html", "transport_error"),
        ("401", "client_error"),
        ("404", "client_error"),
        ("redirect", "client_error"),
        ("wrong_shape", "unexpected"),
    ],
)
def test_a_request_counts_by_how_it_ended(serve: Callable[..., Simulator], kind: str, outcome: str) -> None:
    sim = serve(faults=[Fault(kind, retry_after=0 if kind == "429" else None)])
    seen: list[Traffic] = []
    with UnleashClient(sim.api_key, sim.base_url, on_close=seen.append) as asking:
        try:
            asking.list_devices()
        except client.UnleashError:
            assert outcome in ("client_error", "unexpected")
        else:
            assert asking.traffic.outcomes["ok"] == 1
        assert asking.traffic.outcomes[outcome] == 1
        assert asking.traffic.outcomes.total() == asking.traffic.requests == len(sim.requests)
        assert seen == []
    asking.close()
    assert seen == [asking.traffic]


def test_requests_that_nobody_waits_for_any_more_are_cancelled_not_failed(serve: Callable[..., Simulator]) -> None:
    sim = serve(faults=[Fault("slow", page=page, seconds=5.0) for page in (3, 4, 5)])
    with UnleashClient(sim.api_key, sim.base_url) as asking:
        pages = asking.iter_pages(STREET, DAY_START, DAY_END)
        assert [next(pages).number, next(pages).number] == [1, 2]
        pages.close()
        outcomes = asking.traffic.outcomes
        assert set(outcomes) == {"ok", "cancelled"}
        assert outcomes.total() == asking.traffic.requests


def test_a_hook_whose_iterator_is_dropped_reports_all_the_same(
    serve: Callable[..., Simulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(faults=[Fault("500", page=2, times=None)])
    monkeypatch.setattr(client, "BACKOFF_BASE", 0.01)
    seen: list[Traffic] = []
    monkeypatch.setattr(metrics, "report_traffic", seen.append)
    with pytest.raises(ServerError):
        list(UnleashHook().iter_pages(STREET, DAY_START, DAY_END, page_concurrency=1))
    for _ in UnleashHook().iter_pages(SILENT, DAY_START, DAY_END):
        pass
    dropped = UnleashHook().iter_pages(STREET, DAY_START, DAY_END, page_concurrency=1)
    next(dropped)
    del dropped
    assert [traffic.outcomes["server_error"] for traffic in seen] == [5, 0, 0]
    assert all(traffic.outcomes["ok"] for traffic in seen)
