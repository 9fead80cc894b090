"""
Measure the same backfill with 1, 2 and 4 workers on one cluster, and report ratios.

``make bench-cluster`` runs it; ``make bench-cluster ARGS=--page`` also updates docs/scale.md and its picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import psutil

from tools.cluster import PAGE_CONCURRENCY, Cluster, device_ids, open_cluster
from tools.scale_page import PICTURE, wrap, write_figures
from tools.stage import StageError, ask, run

WORKERS = (1, 2, 4)
LATENCY = 0.05
GOAL = 1.8
SECONDS_OF_A_RUN = 900


@dataclass(frozen=True)
class Size:
    """How much each run extracts."""

    extractions: int = 12
    pages: int = 400
    rows_a_page: int = 20

    @property
    def seconds_of_waiting(self) -> float:
        """Minimum seconds that one extraction waits for the API."""
        return self.pages * LATENCY / PAGE_CONCURRENCY


@dataclass(frozen=True)
class Measured:
    """
    The measurements of one run.

    :param seconds: from the start of the first extraction to the end of the last.
    :param task_seconds: median duration of an extraction.
    :param in_flight: maximum number of requests in flight at the API.
    :param refused: number of responses with status 429.
    :param load: five-minute load of the machine at the end of the run; the workers cause only part of it.
    :param rss: peak memory of the largest task, in MiB.
    :param uss: peak memory of a task without shared pages, in MiB.
    """

    workers: int
    seconds: float
    task_seconds: float
    in_flight: int
    refused: int
    load: float
    rss: float
    uss: float


def measure(size: Size, say: Callable[[str], None]) -> list[Measured]:
    """Run the backfill with each number of workers. Each worker runs one task at a time."""
    with open_cluster() as cluster:
        cluster.start_simulator(
            *("--devices", ",".join(_devices(size)), "--latency", str(LATENCY)),
            *("--fixed-pages", str(size.pages), "--page-size", str(size.rows_a_page)),
        )
        say("Starting ...")
        cluster.start_parts(slots=max(WORKERS))
        return [_measure(cluster, size, number, say) for number in WORKERS]


def _devices(size: Size) -> tuple[str, ...]:
    # Skip the simulator's own devices, one of which has no rows.
    return device_ids(size.extractions + 6)[6:]


def _measure(cluster: Cluster, size: Size, number: int, say: Callable[[str], None]) -> Measured:
    names = [f"worker-{index}-of-{number}" for index in range(1, number + 1)]
    for name in names:
        cluster.start_celery_worker(name, concurrency=1)
    _wait_for_workers(cluster, number)
    say(f"Workers: {number}")
    ask(f"{cluster.api}/_simulator/requests", method="DELETE")
    run_id = f"workers-{number}"
    cluster.trigger(run_id, start="2026-01-12", end="2026-01-13", tree=f"_{number}")
    rss, uss = _watch(cluster, run_id)
    for name in names:
        cluster.kill_celery_worker(name)
    rows = cluster.query(
        "SELECT state, try_number, extract(epoch FROM start_date)::float, extract(epoch FROM end_date)::float"
        f" FROM task_instance WHERE task_id = 'extract' AND run_id = '{run_id}'"
    )
    if [(state, tries) for state, tries, *_ in rows] != [("success", 1)] * size.extractions:
        raise cluster.failure(f"Not every extraction succeeded on its first try: {rows}")
    seen = ask(f"{cluster.api}/_simulator/requests")
    return Measured(
        number,
        seconds=max(end for *_, end in rows) - min(start for *_, start, _ in rows),
        task_seconds=statistics.median(end - start for *_, start, end in rows),
        in_flight=seen["max_in_flight"],
        refused=sum(request["status"] == 429 for request in seen["requests"]),
        load=os.getloadavg()[1],
        rss=rss / 2**20,
        uss=uss / 2**20,
    )


def _wait_for_workers(cluster: Cluster, number: int) -> None:
    from celery import Celery

    app = Celery(broker=cluster.environ["AIRFLOW__CELERY__BROKER_URL"])
    while len(app.control.ping(timeout=2)) < number:
        cluster.check_alive()
    app.close()


def _watch(cluster: Cluster, run_id: str) -> tuple[int, int]:
    """Wait for the end of a run, and return the peak RSS and USS of its tasks in bytes."""
    rss = uss = 0
    deadline = time.monotonic() + SECONDS_OF_A_RUN
    while (state := cluster.run_state(run_id)) not in ("success", "failed"):
        cluster.check_alive()
        if time.monotonic() > deadline:
            raise cluster.failure(f"The run did not end within {SECONDS_OF_A_RUN} seconds")
        running = cluster.query("SELECT pid FROM task_instance WHERE task_id = 'extract' AND state = 'running'")
        for (pid,) in running:
            with suppress(psutil.NoSuchProcess):
                memory = psutil.Process(pid).memory_full_info()
                rss, uss = max(rss, memory.rss), max(uss, memory.uss)
        time.sleep(0.5)
    if state == "failed":
        raise cluster.failure("The run failed")
    return rss, uss


# ---- results -----------------------------------------------------------------------------------


def lines(size: Size, measured: Sequence[Measured]) -> Iterator[str]:
    alone = measured[0]
    yield from wrap(
        f"{size.extractions} extractions of {size.pages} pages each from an API that takes {LATENCY * 1000:.0f} ms per"
        f" page, with `page_concurrency` {PAGE_CONCURRENCY}: each waits at least {size.seconds_of_waiting:.0f} s for"
        " the API. Workers are processes with one slot each."
    )
    yield ""
    yield "| workers | speedup | seconds | seconds per task | requests in flight | 429 responses | load |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for one in measured:
        cells = f"{one.seconds:.0f} | {one.task_seconds:.1f} | {one.in_flight} | {one.refused} | {one.load:.1f}"
        yield f"| {one.workers} | {alone.seconds / one.seconds:.2f} | {cells} |"
    ratio = alone.seconds / measured[1].seconds
    met = "met" if ratio >= GOAL else "**missed**"
    yield ""
    yield from wrap(
        f"Goal: a speedup of at least {GOAL} from one worker to two: {ratio:.2f}, {met}. Peak memory of a task:"
        f" {max(one.rss for one in measured):.0f} MiB, of which {max(one.uss for one in measured):.0f} MiB are not"
        " shared with other processes."
    )
    yield ""
    yield "![Speed and requests in flight by workers](scale.svg)"
    yield ""
    yield from wrap(
        f"Measured on {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python"
        f" {platform.python_version()}, Airflow {version('apache-airflow')}, Celery {version('celery')}. All parts of"
        " the cluster share these cores, possibly with other work, so the ratios are only as reliable as the loads are"
        " similar."
    )


def draw(measured: Sequence[Measured]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "unleash"
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    numbers = [one.workers for one in measured]
    left.plot(numbers, [measured[0].seconds / one.seconds for one in measured], "o-", color="#1f6fb2", label="measured")
    left.plot(numbers, numbers, "--", color="#888888", label="workers")
    left.set(xlabel="workers", ylabel="speedup")
    right.plot(numbers, [one.in_flight for one in measured], "o-", color="#2a9d5c", label="measured")
    bound = [number * PAGE_CONCURRENCY for number in numbers]
    right.plot(numbers, bound, "--", color="#888888", label="limit (workers times page_concurrency)")
    right.set(xlabel="workers", ylabel="maximum requests in flight")
    for axes in (left, right):
        axes.set_xticks(numbers)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.2)
        axes.legend(fontsize="small")
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="update docs/scale.md and its picture")
    parser.add_argument("--extractions", type=int, default=Size.extractions, help="per run (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=Size.pages, help="per extraction (default: %(default)s)")
    return run(partial(show, parser.parse_args()))


def show(options: argparse.Namespace) -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    size = Size(options.extractions, options.pages)
    measured = measure(size, say)
    print(json.dumps([vars(one) for one in measured]), *lines(size, measured), sep="\n")
    if any(one.in_flight > one.workers * PAGE_CONCURRENCY for one in measured):
        raise StageError("More requests were in flight than the workers may send")
    if options.page:
        draw(measured)
        write_figures("make bench-cluster ARGS=--page", lines(size, measured))


if __name__ == "__main__":
    sys.exit(main())
