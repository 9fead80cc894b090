"""What a thousand deferred sensors on one connection cost; reads a job from its standard input, and answers."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass

from airflow_provider_unleash.simulator import DEFAULT_KEYS
from tools.bench_contenders import open_answers

WARM_UP_REQUESTS = 1


@dataclass(frozen=True)
class Waiting:
    """What was waited for: so many sensors, with so many seconds between polls, for so many seconds."""

    api: str
    sensors: int = 1000
    poke_interval: float = 5.0
    seconds: float = 60.0


@dataclass(frozen=True)
class Burden:
    """What it cost the process: the longest time that its event loop did nothing else, and CPU time, seconds."""

    block: float
    cpu: float


async def wait(job: Waiting) -> Burden:
    """Run the triggers of sensors that find nothing, made as the triggerer makes them."""
    from airflow_provider_unleash.triggers import UnleashNewSessionsTrigger

    # Each task has a window of its own, in a future without sessions.
    bounds = range(10**13, 10**13 + job.sensors)
    deferred = (UnleashNewSessionsTrigger(since=since, poke_interval=job.poke_interval).serialize() for since in bounds)
    triggers = [_make(path, arguments) for path, arguments in deferred]
    loop = asyncio.get_running_loop()
    longest = 0.0
    cpu, end = time.process_time(), loop.time() + job.seconds
    tasks = [asyncio.create_task(_drain(trigger)) for trigger in triggers]
    while (before := loop.time()) < end:
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
        raise AssertionError(f"There are no such sessions: {event}")


def main() -> None:
    """Do the job."""
    answers = open_answers()
    job = Waiting(**json.loads(sys.stdin.readline()))
    connection = {"conn_type": "unleash", "host": job.api, "password": DEFAULT_KEYS[0]}
    os.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps(connection)
    asyncio.run(_warm_up())
    print(json.dumps(asdict(asyncio.run(wait(job)))), file=answers, flush=True)


async def _warm_up() -> None:
    """Import what the first poll imports, as any triggerer has."""
    from airflow_provider_unleash.triggers import UnleashNewSessionsTrigger

    async for _ in UnleashNewSessionsTrigger(poke_interval=0.1).run():
        pass


if __name__ == "__main__":
    main()
