"""
The account part of ``make bench``: many devices of one page each, in one task.

Each run has a process of its own, because a process keeps the memory of its largest run.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from tools.bench_contenders import BOUNDS, HEADERS, Cost, Job, device_ids
from tools.demo_ui import wait_until_ready
from tools.s3_lake import connection_to, open_client
from tools.seaweedfs import SeaweedFS
from tools.stage import Stage, StageError, ask

ROWS_A_PAGE = 240
LATENCY = 50  # milliseconds
CONCURRENCY = 8
OURS = ("split-jsonl", "one-jsonl", "split-parquet", "one-parquet")
NAMES = {
    "account-floor": "floor: read and decode once",
    "split-jsonl": "**this package**, JSON lines, one object per device",
    "one-jsonl": "**this package**, JSON lines, one object",
    "split-parquet": "**this package**, Parquet, one object per device",
    "one-parquet": "**this package**, Parquet, one object",
    "account-loop": "`requests` loop, JSON lines",
    "account-dlt": "dlt rest_api, filesystem",
    "mapped": "mapped tasks of this package",
}
MAPPED_DEVICES = 40
SECONDS_OF_A_RUN = 900
PICTURE_NAME = "performance-account.svg"

DAG = """
from airflow.sdk import DAG
from airflow_provider_unleash.operators import *

SPAN = {"start": "2026-01-12", "end": "2026-01-13"}

with DAG("mapped", schedule=None):
    devices = UnleashListDevicesOperator(task_id="devices")
    extract = UnleashToObjectStorageOperator.partial(task_id="extract", dst="file://LAKE/mapped", **SPAN)
    extract.expand(device_id=devices.output)

with DAG("account", schedule=None):
    UnleashAccountToObjectStorageOperator(task_id="extract", dst="file://LAKE/account", **SPAN)
"""


@dataclass(frozen=True)
class AccountSize:
    """How much is measured: devices of the accounts, and repetitions of all but the largest and the slowest."""

    devices: tuple[int, ...] = (1, 40, 1000, 10_000)
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rounds: int = 3

    @property
    def middle(self) -> int:
        """The account that all contenders read."""
        return self.devices[-2]


@dataclass
class AccountFigures:
    """
    What was measured.

    :param costs: by contender, devices and page_concurrency, one for each round
    :param store_requests: to S3, by contender, for each device
    :param slot_seconds: of a worker slot for each device, by DAG
    """

    size: AccountSize
    costs: dict[tuple[str, int, int], list[Cost]] = field(default_factory=lambda: defaultdict(list))
    store_requests: dict[str, float] = field(default_factory=dict)
    slot_seconds: dict[str, float] = field(default_factory=dict)

    def median(self, name: str, devices: int, concurrency: int, what: str) -> float:
        return statistics.median(float(getattr(cost, what)) for cost in self.costs[name, devices, concurrency])

    def memory(self, name: str, devices: int) -> float:
        """Return the MiB that a run adds."""
        return statistics.median(cost.peak - cost.before for cost in self.costs[name, devices, CONCURRENCY])

    def cpu_ratio(self, name: str, devices: int) -> float:
        """Return the CPU time for each device, as a multiple of the floor's."""
        floor = self.median("account-floor", self.size.middle, 1, "cpu") / self.size.middle
        return self.median(name, devices, _concurrency_of(name), "cpu") / devices / floor

    def beyond_ideal(self, name: str, devices: int, concurrency: int = CONCURRENCY) -> float:
        """Return the time as a multiple of devices × latency ÷ concurrency."""
        return self.median(name, devices, concurrency, "wall") / (devices * LATENCY / 1000 / concurrency)


def _concurrency_of(name: str) -> int:
    return CONCURRENCY if name in OURS else 1


# ---- measuring -----------------------------------------------------------------------------------


def measure(stage: Stage, size: AccountSize, say: Callable[[str], None]) -> AccountFigures:
    figures = AccountFigures(size)
    apis = {devices: _serve(stage, devices) for devices in {1, MAPPED_DEVICES, *size.devices}}
    for name, devices, concurrency, rounds in _runs(size):
        for number in range(rounds):
            say(f"{name}, {devices} devices, {concurrency} requests in flight, round {number + 1} of {rounds} ...")
            cost = _run_once(stage, name, Job(apis[devices], concurrency, devices), apis[1])
            figures.costs[name, devices, concurrency].append(cost)
    with SeaweedFS() as store:
        open_client(store.url).create_bucket(Bucket="lake")
        stage.environ["AIRFLOW_CONN_LAKE"] = json.dumps(connection_to(store.url))
        for name in ("split-jsonl", "one-jsonl"):
            say(f"{name} to S3, {MAPPED_DEVICES} devices ...")
            job = Job(apis[MAPPED_DEVICES], CONCURRENCY, MAPPED_DEVICES, f"s3://lake@lake/{name}")
            figures.store_requests[name] = _run_once(stage, name, job, apis[1]).store_requests / MAPPED_DEVICES
    say(f"{MAPPED_DEVICES} mapped tasks ...")
    figures.slot_seconds = _measure_slots(stage, apis[MAPPED_DEVICES])
    return figures


def _runs(size: AccountSize) -> Iterator[tuple[str, int, int, int]]:
    """Yield contender, devices, requests in flight and rounds."""
    for devices in size.devices:
        for name in OURS:
            yield name, devices, CONCURRENCY, 1 if devices > size.middle else size.rounds
    yield "account-floor", size.middle, 1, 1
    yield "account-loop", size.middle, 1, 1
    yield "account-dlt", MAPPED_DEVICES, 1, 1
    for concurrency in size.concurrencies:
        if concurrency != CONCURRENCY:
            for name in ("split-jsonl", "one-jsonl"):
                yield name, size.middle, concurrency, 1
    for name in ("split-jsonl", "one-jsonl"):
        yield name, size.devices[-1], 32, 1


def _serve(stage: Stage, devices: int) -> str:
    """Start an API whose pages are rendered before anything is measured, and return its URL."""
    stage.start_simulator(
        *("--devices", ",".join(device_ids(devices)), "--fixed-pages", "1", "--page-size", str(ROWS_A_PAGE)),
        *("--cache-bytes", str(2**31)),
    )
    api = stage.api
    for endpoint in ("analytics", "analytics/tableau") if devices == MAPPED_DEVICES else ("analytics",):
        for device_id in device_ids(devices):
            url = f"{api}/v1/{endpoint}/{device_id}/{BOUNDS}/1"
            with urlopen(Request(url, headers={**HEADERS, "Accept-Encoding": "gzip"})) as answer:
                answer.read()
    slow = {"kind": "slow", "seconds": LATENCY / 1000, "times": None}
    urlopen(f"{api}/_simulator/faults", json.dumps(slow).encode()).close()
    return api


def _run_once(stage: Stage, name: str, job: Job, warm_up_api: str) -> Cost:
    """Run a job in a new process, after a small one that imports what it needs."""
    worker = stage.start_worker("tools.bench_contenders", name)
    assert worker.stdin is not None
    assert worker.stdout is not None
    warm_up = Job(warm_up_api, 1, 1, f"file://{stage.folder}/first-{name}" if not job.dst else f"{job.dst}-first")
    cost = None
    for one in (warm_up, job):
        print(json.dumps(asdict(one)), file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
        if not answer:
            raise stage.failure(f"{name} failed")
        cost = Cost(**json.loads(answer))
    stage.stop_worker(worker)
    assert cost is not None
    if cost.rows != job.devices * ROWS_A_PAGE:
        raise StageError(f"{name} read {cost.rows} rows of {job.devices * ROWS_A_PAGE}")
    return cost


def _measure_slots(stage: Stage, api: str) -> dict[str, float]:
    """Return the seconds of a worker slot for each device, with a real scheduler."""
    dags = stage.folder / "dags"
    dags.mkdir()
    (dags / "bench.py").write_text(DAG.replace("LAKE", str(stage.folder)))
    connection = {"conn_type": "unleash", "host": api, "password": HEADERS["x-api-key"]}
    stage.environ |= {
        "AIRFLOW_CONN_UNLEASH_DEFAULT": json.dumps({**connection, "extra": {"page_concurrency": CONCURRENCY}}),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
    }
    stage.listen_on()
    stage.run_airflow("db", "migrate")
    stage.start_api_server()
    stage.start_airflow("scheduler", "-s")
    stage.start_airflow("dag-processor")
    stage.start_airflow("triggerer", "-s")
    wait_until_ready(stage, {"mapped", "account"})
    return {dag_id: _slot_seconds(stage, dag_id) for dag_id in ("mapped", "account")}


def _slot_seconds(stage: Stage, dag_id: str) -> float:
    run = ask(f"{stage.url}/api/v2/dags/{dag_id}/dagRuns", json.dumps({"logical_date": None}), method="POST")
    stage.wait_for_run(dag_id, run["dag_run_id"], SECONDS_OF_A_RUN)
    tasks = f"FROM task_instance WHERE dag_id = '{dag_id}' AND task_id = 'extract' AND state = 'success'"
    [(seconds, number)] = stage.query(f"SELECT sum(duration), count(*) {tasks}")
    if int(number) != (MAPPED_DEVICES if dag_id == "mapped" else 1):
        raise stage.failure(f"{number} tasks of {dag_id} have succeeded")
    return float(seconds) / MAPPED_DEVICES


# ---- results -------------------------------------------------------------------------------------


def account_table(figures: AccountFigures) -> Iterator[str]:
    size = figures.size
    yield "| | devices | seconds | time ÷ ideal | CPU ms per device | CPU ÷ floor | MiB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, devices, concurrency in figures.costs:
        if concurrency == _concurrency_of(name):
            wall, cpu = (figures.median(name, devices, concurrency, what) for what in ("wall", "cpu"))
            memory = statistics.median(cost.peak - cost.before for cost in figures.costs[name, devices, concurrency])
            cells = [
                f"{devices}",
                f"{wall:.2f}",
                f"{figures.beyond_ideal(name, devices, concurrency):.2f}",
                f"{1000 * cpu / devices:.1f}",
                f"{figures.cpu_ratio(name, devices):.2f}" if devices >= size.middle or name not in OURS else "",
                f"{memory:.0f}",
            ]
            yield f"| {NAMES[name]} | {' | '.join(cells)} |"


def concurrency_table(figures: AccountFigures) -> Iterator[str]:
    yield f"| `page_concurrency`, {figures.size.middle} devices | one object per device | one object |"
    yield "| ---: | ---: | ---: |"
    for concurrency in figures.size.concurrencies:
        cells = (
            f"{figures.median(name, figures.size.middle, concurrency, 'wall'):.1f} s, "
            f"{figures.beyond_ideal(name, figures.size.middle, concurrency):.2f} × ideal"
            for name in ("split-jsonl", "one-jsonl")
        )
        yield f"| {concurrency} | {' | '.join(cells)} |"


def account_goals(figures: AccountFigures, goal: Callable[..., str]) -> Iterator[str]:
    """Yield the goals; ``goal`` formats one."""
    middle, large = figures.size.middle, figures.size.devices[-1]
    for name in OURS:
        what = f"{middle} devices, {name}"
        yield goal(f"{what}: time ÷ ideal", figures.beyond_ideal(name, middle), 1.3)
        yield goal(
            f"{what}: CPU time ÷ floor", figures.cpu_ratio(name, middle), 2.2 if name.startswith("split") else 1.6
        )
        more = figures.memory(name, large) - figures.memory(name, MAPPED_DEVICES)
        yield goal(f"{name}: MiB more with {large} devices than with {MAPPED_DEVICES}", more, 30)
    account = figures.median("split-jsonl", middle, CONCURRENCY, "wall") / middle
    yield goal(
        f"slot time per device, {MAPPED_DEVICES} mapped tasks ÷ one task of {middle} devices",
        figures.slot_seconds["mapped"] / account,
        100,
        at_most=False,
    )


TEXT = """\
Each device has one page of {rows} rows, and the API takes {latency} ms for each request. This package uses
`page_concurrency={concurrency}`; the others request one page after another. Each run has a process of its own, which
has done a small extraction before. The ideal time is devices × latency ÷ requests in flight. CPU time is relative to
the floor: a `requests` session that reads the same pages and `msgspec` that decodes them. {runs}

{table}

{concurrency_table}

![Seconds by devices]({picture})

| | |
| --- | ---: |
| slot seconds per device, {mapped_devices} mapped tasks on a scheduler | {mapped:.2f} |
| slot seconds per device, one task of {mapped_devices} devices on a scheduler, with its start | {account:.2f} |
| S3 requests per device, one object per device, {mapped_devices} devices | {split_requests:.2f} |
| S3 requests per device, one object, {mapped_devices} devices | {one_requests:.2f} |
| {large} devices, 32 requests in flight, one object per device: seconds, CPU seconds | {split_large} |
| {large} devices, 32 requests in flight, one object: seconds, CPU seconds | {one_large} |

{goals}
"""


def _describe_runs(size: AccountSize) -> str:
    if size.rounds == 1:
        return "Each figure is from a single\nrun."
    return f"Accounts of up to {size.middle}\ndevices are medians of {size.rounds} runs."


def account_text(figures: AccountFigures, goal: Callable[..., str]) -> str:
    large = figures.size.devices[-1]

    def seconds(name: str) -> str:
        return ", ".join(f"{figures.median(name, large, 32, what):.0f}" for what in ("wall", "cpu"))

    goals = ["| goal | bound | measured | |", "| --- | ---: | ---: | --- |", *account_goals(figures, goal)]
    return TEXT.format(
        rows=ROWS_A_PAGE,
        latency=LATENCY,
        concurrency=CONCURRENCY,
        runs=_describe_runs(figures.size),
        table="\n".join(account_table(figures)),
        concurrency_table="\n".join(concurrency_table(figures)),
        picture=PICTURE_NAME,
        mapped_devices=MAPPED_DEVICES,
        mapped=figures.slot_seconds["mapped"],
        account=figures.slot_seconds["account"],
        split_requests=figures.store_requests["split-jsonl"],
        one_requests=figures.store_requests["one-jsonl"],
        large=large,
        split_large=seconds("split-jsonl"),
        one_large=seconds("one-jsonl"),
        goals="\n".join(goals),
    )


def draw_accounts(figures: AccountFigures, picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "unleash"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    devices = figures.size.devices
    styles = {"split-jsonl": ("o-", "#1f6fb2"), "one-jsonl": ("s-", "#2a9d5c")}
    for name, (style, color) in styles.items():
        seconds = [figures.median(name, number, CONCURRENCY, "wall") for number in devices]
        axes.plot(devices, seconds, style, color=color, label=NAMES[name].replace("**", ""))
    axes.plot(devices, [n * LATENCY / 1000 / CONCURRENCY for n in devices], "--", color="#888888", label="ideal")
    axes.plot(devices, [n * LATENCY / 1000 for n in devices], ":", color="#c77d0a", label="one request after another")
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="seconds")
    axes.set_title(f"One page per device, {LATENCY} ms a request, {CONCURRENCY} requests in flight")
    axes.legend(loc="upper left", fontsize="small")
    axes.grid(alpha=0.2)
    figure.savefig(picture, metadata={"Date": None})
