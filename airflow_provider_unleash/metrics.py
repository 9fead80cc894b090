"""What an extraction took, as metrics of Airflow; docs/metrics.md lists them."""

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

# Airflow sets these for each task. A device is no tag: an account may have ten thousand.
_TAGS = {"dag_id": "AIRFLOW_CTX_DAG_ID", "task_id": "AIRFLOW_CTX_TASK_ID"}


def report_traffic(traffic: Traffic, *, in_triggerer: bool = False) -> None:
    """Report what a client has asked of the API, once it is closed."""
    counters = {f"requests.{outcome}": number for outcome, number in traffic.outcomes.items()}
    counters |= {"retries": traffic.retries, "throttled_ms": round(traffic.throttled_seconds * 1000)}
    _report(counters, in_triggerer=in_triggerer)


def report_extraction(*, rows: int, size: int, seconds: float) -> None:
    """Report an extraction that is complete."""
    _report({"rows": rows, "bytes": size}, {"extraction.duration": seconds})


def report_poll(*, in_triggerer: bool = False) -> None:
    """Report that the API is asked for new sessions."""
    _report({"polls": 1}, in_triggerer=in_triggerer)


def _report(
    counters: Mapping[str, int], durations: Mapping[str, float] | None = None, *, in_triggerer: bool = False
) -> None:
    try:
        stats = _stats(in_triggerer)
        tags = {} if in_triggerer else {tag: os.environ[name] for tag, name in _TAGS.items() if name in os.environ}
        for name, number in counters.items():
            if number:
                stats.incr(f"unleash.{name}", number, tags=tags)
        for name, seconds in (durations or {}).items():
            # A number is milliseconds to every Airflow and back end; of a timedelta some make seconds.
            stats.timing(f"unleash.{name}", seconds * 1000, tags=tags)
    except Exception:  # whatever it is, no task fails for a metric
        log.debug("No metrics", exc_info=True)


def _stats(in_triggerer: bool) -> Any:
    from airflow.providers.common.compat.sdk import Stats

    if in_triggerer:
        # From Airflow 3.2 on there are two: a triggerer sets up that of the core, a task that of the SDK.
        with suppress(ImportError):
            return import_module("airflow.observability.stats").Stats
    return Stats
