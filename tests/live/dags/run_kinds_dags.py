"""One DAG with one task for each kind of run. The device id is the DAG id."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow import sdk

from airflow_provider_unleash.operators import UnleashGetAnalyticsOperator, UnleashToObjectStorageOperator
from tests.support import run_kinds

JANUARY = {"start_date": pendulum.datetime(2026, 1, 1), "end_date": pendulum.datetime(2026, 1, 31)}
NAMES = {**{name: getattr(sdk, name) for name in sdk.__all__ if "Timetable" in name}, "Asset": sdk.Asset}


def evaluate(text: str) -> Any:
    """Evaluate Python source code. The documentation shows the same source, so exactly that must run."""
    return eval(text, {**NAMES, "timedelta": timedelta})


def dates_of(kind: run_kinds.RunKind) -> dict[str, Any]:
    if kind.dates:
        moments = [pendulum.parse(date, tz=kind.timezone) for date in kind.dates]
        return {"start_date": moments[0], "end_date": moments[-1], "catchup": True}
    if kind.run.startswith("airflow dags test"):
        # The command does nothing after an end date. Paused, because the scheduler also sees this DAG.
        return {"start_date": JANUARY["start_date"], "is_paused_upon_creation": True}
    # A past end date keeps the scheduler from creating more runs.
    return JANUARY


for kind in run_kinds.RUN_KINDS:
    with sdk.DAG(
        kind.dag_id,
        schedule=evaluate(kind.schedule),
        default_args={"retries": 2, "retry_delay": timedelta(seconds=1)},
        **{"catchup": False, **dates_of(kind)},
    ):
        common: dict[str, Any] = {"task_id": "fetch", "device_id": kind.dag_id, **evaluate(f"dict({kind.task})")}
        common["outlets"] = [sdk.Asset(kind.outlet)] if kind.outlet else []
        if kind.dag_id in run_kinds.TO_XCOM:
            UnleashGetAnalyticsOperator(**common)
        else:
            UnleashToObjectStorageOperator(dst=os.environ["UNLEASH_LAKE"], **common)
