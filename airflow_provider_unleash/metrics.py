"""Extraction metrics, sent through Airflow; docs/metrics.md lists them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_unleash.client import Traffic

log = logging.getLogger(__name__)

# Airflow sets these variables for each task. The device is not a tag: an account may have ten thousand devices.
_TAGS = {"dag_id": "AIRFLOW_CTX_DAG_ID", "task_id": "AIRFLOW_CTX_TASK_ID"}


def report_traffic(traffic: Traffic, *, in_triggerer: bool = False) -> None:
    counters = {f"requests.{outcome}": count for outcome, count in traffic.outcomes.items()}
    counters |= {"retries": traffic.retries, "throttled_ms": round(traffic.throttled_seconds * 1000)}
    _report(counters, in_triggerer=in_triggerer)


def report_extraction(*, rows: int, size: int, seconds: float) -> None:
    """Report a completed extraction; ``size`` is in bytes."""
    _report({"rows": rows, "bytes": size}, seconds=seconds)


def report_poll(*, in_triggerer: bool = False) -> None:
    _report({"polls": 1}, in_triggerer=in_triggerer)


def _report(counters: Mapping[str, int], *, seconds: float | None = None, in_triggerer: bool = False) -> None:
    try:
        stats = _stats(in_triggerer)
        tags = {} if in_triggerer else {tag: os.environ[name] for tag, name in _TAGS.items() if name in os.environ}
        for name, count in counters.items():
            if count:
                stats.incr(f"unleash.{name}", count, tags=tags)
        if seconds is not None:
            # Every Airflow and backend reads a number as milliseconds; some turn a timedelta into seconds.
            stats.timing("unleash.extraction.duration", seconds * 1000, tags=tags)
    except Exception:  # of any kind: a metric must not fail a task
        log.debug("Could not send metrics", exc_info=True)


def _stats(in_triggerer: bool) -> Any:
    # Imported here, because its module differs between Airflow versions and a failure must not fail a task.
    from airflow.providers.common.compat.sdk import Stats

    if in_triggerer:
        # From Airflow 3.2 on, the triggerer configures the Stats of the core, and a task those of the SDK.
        with suppress(ImportError):
            return import_module("airflow.observability.stats").Stats
    return Stats
