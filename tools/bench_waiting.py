"""Measure the cost of a thousand deferred sensors on one connection; a job on standard input, the result on output."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from airflow_provider_unleash.simulator import DEFAULT_KEYS
from tools.bench_contenders import open_results

WARM_UP_REQUESTS = 1


@dataclass(frozen=True)
class Waiting:
    """A number of sensors, the seconds between their polls, and the seconds to wait."""

    api: str
    sensors: int = 1000
    poke_interval: float = 5.0
    seconds: float = 60.0


@dataclass(frozen=True)
class Burden:
    """Cost for the process in seconds: the longest block of its event loop, and CPU time."""

    block: float
    cpu: float


async def wait(job: Waiting, is_over: Callable[[], bool] = lambda: False) -> Burden:
    """Run the triggers of sensors that find no sessions, created as the triggerer creates them, until it is over."""
    from airflow_provider_unleash.triggers import UnleashNewSessionsTrigger

    # Each task waits for sessions after a different time, far in the future.
    bounds = range(10**13, 10**13 + job.sensors)
    deferred = (UnleashNewSessionsTrigger(since=since, poke_interval=job.poke_interval).serialize() for since in bounds)
    triggers = [_make(path, arguments) for path, arguments in deferred]
    loop = asyncio.get_running_loop()
    longest = 0.0
    cpu, end = time.process_time(), loop.time() + job.seconds
    tasks = [asyncio.create_task(_drain(trigger)) for trigger in triggers]
    while (before := loop.time()) < end and not is_over():
        await asyncio.sleep(0.01)
        longest = max(longest, loop.time() - before - 0.01)
    cpu = time.process_time() - cpu
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Burden(longest, cpu)


def _make(path: str, arguments: dict[str, object]) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments)


async def _drain(trigger: object) -> None:
    async for event in trigger.run():  # type: ignore[attr-defined]
        raise AssertionError(f"Unexpected event: {event}")


def main() -> None:
    results = open_results()
    job = Waiting(**json.loads(sys.stdin.readline()))
    connection = {"conn_type": "unleash", "host": job.api, "password": DEFAULT_KEYS[0]}
    os.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps(connection)
    asyncio.run(_warm_up())
    print(json.dumps(asdict(asyncio.run(wait(job)))), file=results, flush=True)


async def _warm_up() -> None:
    """Let the first poll import its modules, as in a triggerer that has run for a while."""
    from airflow_provider_unleash.triggers import UnleashNewSessionsTrigger

    async for _ in UnleashNewSessionsTrigger(poke_interval=0.1).run():
        pass


if __name__ == "__main__":
    main()
