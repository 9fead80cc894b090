"""The day and the devices that most tests use, and the context of a task that extracts that day."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

UTC = timezone.utc
DAY = datetime(2026, 1, 12, tzinfo=UTC)
NEXT_DAY = DAY + timedelta(days=1)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
DAY_START = 1_768_176_000_000  # DAY in epoch milliseconds
DAY_END = DAY_START + DAY_MS
DAY_FOLDER = f"{DAY:%Y-%m-%d}"  # in the names of objects
STREET, CROWD, SILENT = "Wb8fabc31378ce07", "W9d3f1bcad8e8abd", "W7d2e90b4c6a1f58"


def make_context(
    interval: tuple[datetime, datetime] | None = (DAY, NEXT_DAY),
    *,
    run_type: str = "scheduled",
    run_after: datetime | None = None,
    dag_timezone: Any = UTC,
    **moments: datetime,
) -> dict[str, Any]:
    """Return a task's context without a DAG run. As in Airflow 3, keys that do not apply to the run are missing."""
    context = {"dag": SimpleNamespace(timezone=dag_timezone), **moments}
    context["dag_run"] = SimpleNamespace(run_type=run_type, run_after=run_after)
    if interval is not None:
        context |= {"data_interval_start": interval[0], "data_interval_end": interval[1]}
    return context
