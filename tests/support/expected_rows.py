"""The expected content of a lake, computed from the simulator's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash.core.names import MANIFESTS
from airflow_provider_unleash.simulator import Simulator


def files_in(lake: Path) -> list[str]:
    """Return the names of all files below a folder except manifests."""
    paths = [path.relative_to(lake) for path in lake.rglob("*") if path.is_file()]
    return sorted(str(path) for path in paths if MANIFESTS not in path.parts)


def contents_in(lake: Path) -> dict[str, bytes]:
    return {name: (lake / name).read_bytes() for name in files_in(lake)}


def rows_by_device(sim: Simulator, start_ms: int, end_ms: int) -> dict[str, int]:
    return {device: len(sim.rows(device, start_ms, end_ms)) for device in sim.devices}


def daily_means(sim: Simulator, start_ms: int, end_ms: int) -> dict[tuple[str, str], tuple[Any, int]]:
    """Return the mean of counts and the number of rows by device and class."""
    found: dict[tuple[str, str], list[float]] = {}
    for device in sim.devices:
        for record in sim.rows(device, start_ms, end_ms):
            found.setdefault((device, record["class_name"]), []).append(record["count"])
    return {key: (pytest.approx(sum(counts) / len(counts)), len(counts)) for key, counts in found.items()}
