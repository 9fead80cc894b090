"""Windows and bounds of runs whose times are given by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from airflow_provider_unleash.core.sessions import session_bounds
from airflow_provider_unleash.core.windows import RunTimes, Window, resolve_window

TIMES = {field.name for field in fields(RunTimes)}


def split(values: dict[str, Any]) -> tuple[RunTimes, dict[str, Any]]:
    times = RunTimes(**{name: value for name, value in values.items() if name in TIMES})
    return times, {name: value for name, value in values.items() if name not in TIMES}


def resolve(**values: Any) -> Window:
    times, arguments = split(values)
    return resolve_window(times, **arguments)


def bounds_of(**values: Any) -> tuple[int | None, int | None]:
    times, arguments = split(values)
    return session_bounds(times, **arguments)
