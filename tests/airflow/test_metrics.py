"""The metrics that DAG runs send to a StatsD socket match the requests of the simulator, and never fail a task."""

from __future__ import annotations

import json
import os
import re
import socket
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash import metrics
from airflow_provider_unleash.client import Traffic
from airflow_provider_unleash.core.requester import OUTCOMES
from airflow_provider_unleash.exceptions import ServerError
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashListDevicesOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.metric_runs import OTHER
from tests.support.paths import ROOT
from tests.support.python_processes import run_module
from tests.support.sample_day import CROWD, DAY_END, DAY_START, SILENT, STREET, make_context

DOCUMENT = ROOT / "docs" / "metrics.md"
EVERYTHING = {
    **dict.fromkeys(("land", "account", "rows", "deferred", "own"), "success"),
    **dict.fromkeys(("fails", "refused", "wait"), "failed"),
}
# How each client sends tags; plain StatsD has none. Only the first runs every task, because that takes long.
KINDS: dict[str, dict[str, str]] = {
    "influxdb": {"STATSD_INFLUXDB_ENABLED": "True"},
    "plain": {},
    "datadog": {"STATSD_DATADOG_ENABLED": "True", "STATSD_DATADOG_METRICS_TAGS": "True"},
}
# The one with a DAG run of everything is slow.
REPORTS = [
    pytest.param("influxdb", marks=pytest.mark.slow),
    pytest.param("plain", marks=pytest.mark.one_airflow),
    "datadog",
]
METRIC = re.compile(r"airflow\.unleash\.([a-z_.]+)((?:,\w+=[^,:]*)*):([\d.]+)\|(c|ms)(?:\|#(\S*))?")


@dataclass
class Reported:
    """
    The metrics of a run.

    :param counters: sums by metric and task.
    :param timings: milliseconds by metric and task.
    :param tags: names of the tags.
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
    """Return a function that makes a run, once for each kind of client."""
    runs: dict[str, Reported] = {}

    def report(kind: str) -> Reported:
        if find_spec("datadog" if kind == "datadog" else "statsd") is None:
            pytest.skip("the client is not installed")
        if kind not in runs:
            runs[kind] = make_run(kind, tmp_path_factory.mktemp(kind))
        return runs[kind]

    return report


def make_run(kind: str, folder: Path) -> Reported:
    """Run tasks in their own process and return what they reported."""
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
        printed = run_module("metric_runs", what, f"file://{folder}/lake", environment=environment)
        assert json.loads(printed.splitlines()[-1]) == states, printed
        [landed] = (folder / "lake").rglob("*.jsonl")
        reported = Reported(sim, landed.stat().st_size)
        server.setblocking(False)
        while True:
            try:
                reported.read(server.recv(1 << 16).decode())
            except BlockingIOError:
                return reported


@pytest.mark.parametrize("kind", REPORTS)
def test_the_counted_requests_are_those_that_the_api_received(report, kind):
    reported = report(kind)
    requests = {name: number for name, number in reported.totals().items() if name.startswith("requests.")}
    assert sum(requests.values()) == len(reported.sim.requests)
    assert set(requests) >= {
        f"requests.{outcome}" for outcome in ("ok", "throttled", "server_error", "transport_error")
    }


@pytest.mark.parametrize("kind", REPORTS)
def test_metrics_have_a_tag_for_the_task_but_not_for_the_device(report, kind):
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
def test_an_account_reports_its_totals_once(report):
    reported = report("influxdb")
    rows = len(reported.sim.rows(OTHER, DAY_START, DAY_END - 1))
    assert reported.of("account") | {"bytes": 0} == {
        "requests.ok": -(-rows // 20) + 2 + 1 + 1,  # first and last page again, the silent device, the list of devices
        "rows": rows,
        "bytes": 0,
    }
    assert "account" in reported.timings["extraction.duration"]


@pytest.mark.slow
def test_sensor_and_hook_report_their_requests(report):
    reported = report("influxdb")
    assert reported.of("own") == {"requests.ok": 3}  # the first page, the last one, the version
    waited = reported.of("wait")
    assert waited == {"polls": waited["requests.ok"], "requests.ok": waited["requests.ok"]}
    requested = sum(request.path.endswith("/sessions") for request in reported.sim.requests)
    assert reported.totals()["polls"] == requested >= 2


@pytest.mark.slow
def test_failed_tasks_report_their_requests_too(report):
    reported = report("influxdb")
    failed = reported.of("fails")
    assert failed["requests.server_error"] == 5
    assert failed["retries"] == 4
    assert failed["requests.ok"] >= 1
    assert not {"rows", "bytes"} & set(failed)
    assert reported.of("refused") == {"requests.client_error": 1}


@pytest.mark.slow
def test_a_trigger_reports_its_polls_without_a_task(report):
    reported = report("influxdb")
    assert "deferred" not in reported.counters["polls"]
    assert reported.of("") == {"polls": 1, "requests.ok": 1}


@pytest.mark.slow
def test_the_documentation_lists_exactly_the_reported_metrics(report):
    documented = set(re.findall(r"^\| `unleash\.([a-z_.]+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    reported = report("influxdb")
    seen = set(reported.totals()) | set(reported.timings)
    assert seen <= documented
    assert documented == {f"requests.{outcome}" for outcome in OUTCOMES} | {
        name for name in seen if not name.startswith("requests.")
    }


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the metrics are broken")


def test_metrics_that_cannot_be_sent_do_not_fail_a_task(serve, monkeypatch, tmp_path):
    sim = serve()
    monkeypatch.setattr(metrics, "_stats", lambda in_triggerer: Broken())
    assert UnleashListDevicesOperator(task_id="list").execute(make_context()) == list(sim.devices)
    land = UnleashToObjectStorageOperator(task_id="land", device_id=STREET, dst=f"file://{tmp_path}")
    assert land.execute(make_context())["rows"] > 0


@pytest.mark.usefixtures("quick_retries")
def test_a_hook_reports_its_requests_even_if_its_iterator_fails_or_is_dropped(serve, monkeypatch):
    serve(faults=[Fault("500", page=2, times=None)])
    seen: list[Traffic] = []
    monkeypatch.setattr("airflow_provider_unleash.hooks.report_traffic", seen.append)
    with pytest.raises(ServerError):
        list(UnleashHook().iter_pages(STREET, DAY_START, DAY_END, page_concurrency=1))
    assert len(list(UnleashHook().iter_pages(SILENT, DAY_START, DAY_END))) == 1
    dropped = UnleashHook().iter_pages(STREET, DAY_START, DAY_END, page_concurrency=1)
    next(dropped)
    del dropped
    assert [traffic.outcomes["server_error"] for traffic in seen] == [5, 0, 0]
    assert all(traffic.outcomes["ok"] for traffic in seen)
