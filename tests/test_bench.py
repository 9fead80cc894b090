"""In the benchmark, every contender reads every row, and the page shows which goals are missed."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec

import pytest

from airflow_provider_unleash.simulator import DEFAULT_KEYS, Simulator
from tools import bench, bench_account
from tools.bench_account import CONCURRENCY, AccountFigures, AccountSize, account_text, draw_accounts
from tools.bench_contenders import ACCOUNT_CONTENDERS, CONTENDERS, Cost, Job, device_ids, measure
from tools.bench_waiting import Waiting, wait

NEEDS = {"http": "airflow.providers.http", "dlt": "dlt"}


def is_installed(name: str) -> bool:
    try:
        return find_spec(NEEDS.get(name, "airflow")) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_reads_every_row_of_every_page(name, airflow_home, monkeypatch):
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    # The contender sets these for its own process.
    for variable in (
        *("AIRFLOW_CONN_UNLEASH_DEFAULT", "AIRFLOW_CONN_API"),
        *("RUNTIME__DLTHUB_TELEMETRY", "DLT_DATA_DIR"),
    ):
        monkeypatch.setenv(variable, "")
    with Simulator(fixed_pages=3, page_size=7) as sim:
        cost = measure(CONTENDERS[name], Job(sim.base_url, page_concurrency=2))
        pages = [request.path.rpartition("/")[2] for request in sim.requests]
    assert cost.rows == 21
    assert set(pages) == {"1", "2", "3"}
    assert cost.wall > 0
    assert cost.peak >= cost.before > 1


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", ACCOUNT_CONTENDERS)
def test_each_contender_reads_the_page_of_every_device(name, airflow_home, monkeypatch):
    if name == "account-dlt" and not is_installed("dlt"):
        pytest.skip("dlt is not installed")
    for variable in ("AIRFLOW_CONN_UNLEASH_DEFAULT", "RUNTIME__DLTHUB_TELEMETRY", "DLT_DATA_DIR"):
        monkeypatch.setenv(variable, "")
    with Simulator(devices=tuple(device_ids(3)), fixed_pages=1, page_size=7) as sim:
        cost = measure(ACCOUNT_CONTENDERS[name], Job(sim.base_url, page_concurrency=2, devices=3))
        read = [request.path for request in sim.requests if request.path.endswith("/1")]
    assert cost.rows == 21
    assert len(read) == len(set(read)) == 3


def test_sensors_that_wait_share_their_polls_and_leave_the_loop_free(connect):
    with Simulator() as sim:
        connect(host=sim.base_url, password=DEFAULT_KEYS[0])
        waiting = Waiting(sim.base_url, sensors=50, poke_interval=0.5, seconds=60)
        burden = asyncio.run(wait(waiting, lambda: len(sim.requests) >= 3))
        assert 3 <= len(sim.requests) < 10
    assert burden.cpu < 1.8


@pytest.fixture
def figures() -> bench.Figures:
    """Return figures that meet all goals."""
    size = bench.Size(pages=200, rounds=1)
    found = bench.Figures(size)
    walls = {"floor": 10.0, "loop": 13.0, "http": 14.0, "dlt": 20.0}
    for latency in bench.LATENCIES:
        for name, concurrency in bench.runs_of_a_round(size.contenders, latency):
            wall = walls.get(name, size.pages * latency / 1000 / concurrency * 1.2 if latency else 1.5)
            found.costs[name, latency, concurrency].append(Cost(1, wall, 1.5 if name in bench.OURS else 1.0, 0, 0))
    found.memory |= {(name, pages): pages / 100 for name in size.contenders for pages in size.memory_pages}
    found.imports.append((3.0, 0.01))
    found.waiting = bench.Waited(requests=12, block=0.02, cpu=1.0)
    return found


@pytest.mark.parametrize(
    ("found", "bound", "shown"),
    [(7.996, 8, "7.996"), (7.99996, 8, "7.99996"), (8.0, 8, "8.00"), (8.13, 8, "8.13"), (1.3001, 1.3, "1.3001")],
)
def test_a_narrowly_missed_goal_shows_by_how_much(found, bound, shown):
    assert f"| {shown} |" in bench._goal("speedup", found, bound)


def test_goals_that_are_met_are_shown_as_met(figures):
    assert len(list(bench.goals(figures))) == 17
    assert all(line.endswith("| met |") for line in bench.goals(figures)), list(bench.goals(figures))


@pytest.mark.parametrize("spoil", ["wall", "cpu", "memory", "imports", "requests", "block"])
def test_a_missed_goal_is_shown_as_missed(figures, spoil):
    if spoil == "wall":
        figures.costs["parquet", 50, 8][:] = [Cost(1, 99.0, 1.5, 0, 0)]
    elif spoil == "cpu":
        figures.costs["jsonl", 0, 1][:] = [Cost(1, 1.5, 1.8, 0, 0)]
    elif spoil == "memory":
        figures.memory["csv", 1000] = 22.0
    elif spoil == "imports":
        figures.imports[:] = [(3.0, 0.3)]
    else:
        figures.waiting = bench.Waited(**{"requests": 12, "block": 0.02, "cpu": 1.0, spoil: 14})
    missed = [line for line in bench.goals(figures) if line.endswith("| **missed** |")]
    assert len(missed) == (4 if spoil == "wall" else 1)


def test_the_page_has_every_contender_and_concurrency(figures, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "version", lambda name: "1.2.3")
    page = bench.device_text(figures)
    assert all(f"| {name} |" in page for name in bench.NAMES.values())
    assert all(f"| {concurrency} | " in page for concurrency in bench.CONCURRENCIES)
    bench.draw(figures, tmp_path / "picture.svg")
    assert "</svg>" in (tmp_path / "picture.svg").read_text()


def test_the_section_of_accounts_shows_which_goals_are_missed(tmp_path):
    found = AccountFigures(AccountSize())
    for name, devices, concurrency, _ in bench_account._runs(found.size):
        wall = devices * 0.05 / concurrency * 1.2
        cpu = devices * (0.002 if name == "account-floor" else 0.003)
        found.costs[name, devices, concurrency].append(Cost(240 * devices, wall, cpu, 50, 40))
    found.store_requests = {"split-jsonl": 1.2, "one-jsonl": 0.2}
    found.slot_seconds = {"mapped": 5.0, "account": 0.2}
    text = account_text(found, bench._goal)
    assert all(f"| {name} |" in text for key, name in bench_account.NAMES.items() if key != "mapped")
    assert text.count("| met |") == 13
    found.costs["one-jsonl", 1000, CONCURRENCY][:] = [Cost(1, 9.0, 9.0, 50, 40)]
    missed = [line for line in account_text(found, bench._goal).splitlines() if line.endswith("| **missed** |")]
    assert [line.split("|")[1].strip() for line in missed] == [
        "1000 devices, one-jsonl: time ÷ ideal",
        "1000 devices, one-jsonl: CPU time ÷ floor",
    ]
    draw_accounts(found, tmp_path / "picture.svg")
    assert "</svg>" in (tmp_path / "picture.svg").read_text()


def test_a_part_that_was_not_measured_keeps_its_section(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("")
    bench.write_page(page, {"account": "old accounts", "device": "old device"})
    bench.write_page(page, {"device": "new device"})
    text = page.read_text()
    assert "old accounts" in text
    assert "new device" in text
    assert "old device" not in text
