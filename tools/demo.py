"""
Extract a past day of every device from a simulated API to Parquet with the daily example DAG, check and plot the rows.

``make demo`` runs this. The exit code is 0 if the DAG run succeeds and the files hold exactly the simulator's rows.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airflow_provider_unleash.simulator import KEYS, PROFILES, generate_rows
from tools.stage import BUILD, ROOT, Stage, StageError, open_stage, run

DAG_ID = "example_unleash_daily"
DAY = datetime(2026, 1, 12, tzinfo=timezone.utc)
NEXT_DAY = DAY + timedelta(days=1)
OBJECTS = ("person", "car", "truck", "bicycle")

Row = tuple[Any, ...]
Counts = Counter[tuple[str, int]]


def show() -> None:
    print(f"airflow-provider-unleash {version('airflow-provider-unleash')} on Airflow {version('apache-airflow')}\n")
    with open_stage("demo") as stage:
        _land(stage)
        print("", *_tree(stage.lake), sep="\n")
        counts, picture = _count(stage.lake), stage.folder / "by_hour.png"
        print("\nObjects counted by class and hour, UTC", *_table(counts), sep="\n")
        _draw(counts, picture)
    print(f"\nfiles    {stage.lake}\npicture  {picture}\nlog      {stage.log}")


def _land(stage: Stage) -> None:
    with _step("Start a simulator of the Unleash live API") as report:
        stage.start_simulator()
        report(stage.api)
    with _step("Create Airflow's database") as report:
        stage.run_airflow("db", "migrate")
        report("SQLite")
    with _step(f"Run {DAG_ID} for {DAY:%Y-%m-%d}") as report:
        stage.run_airflow("dags", "test", DAG_ID, f"{NEXT_DAY:%Y-%m-%d}")
        report(_check_run(stage))
    with _step("Read the files with DuckDB") as report:
        rows = read_rows(stage.lake)
        report(f"{len(rows):,} rows")
    with _step("Compare with the simulator's rows") as report:
        differences = compare(expected_rows(PROFILES), rows)
        if differences:
            raise StageError("\n".join(["The files differ from the simulator's rows:", *differences]))
        report("every row is correct")


@contextmanager
def _step(title: str) -> Iterator[Callable[[str], None]]:
    """Print a line with the title of a step, its result and its duration."""
    results: list[str] = []
    began = time.monotonic()
    print(f"  {title:<42}", end="", flush=True)
    yield results.append
    print(f"{' '.join(results):<28}{time.monotonic() - began:5.1f} s", flush=True)


def _check_run(stage: Stage) -> str:
    """Return the states of the tasks from Airflow's database; raise an error unless the run succeeded."""
    states = stage.query(f"SELECT state FROM dag_run WHERE dag_id = '{DAG_ID}'")
    if states != [("success",)]:
        raise stage.failure(f"The DAG run did not succeed: {states}")
    tasks = Counter(state for (state,) in stage.query(f"SELECT state FROM task_instance WHERE dag_id = '{DAG_ID}'"))
    return "tasks: " + ", ".join(f"{count} {state}" for state, count in tasks.most_common())


# ---- rows ---------------------------------------------------------------------------------------


def read_rows(lake: Path) -> list[Row]:
    """Return all rows: device and date of the folder, the eight known columns in order, and ``extra``."""
    columns = ", ".join("epoch_ms(timestamp)" if key == "timestamp" else key for key in KEYS)
    return _query(lake, f"SELECT device, CAST(start_date AS VARCHAR), {columns}, extra FROM lake")


def expected_rows(devices: Iterable[str]) -> list[Row]:
    """Return the simulator's rows of the day, without those stamped at its end."""
    start, end = _epoch_ms(DAY), _epoch_ms(NEXT_DAY)
    return [
        (device, f"{DAY:%Y-%m-%d}", *(record[key] for key in KEYS[:-1]), _epoch_ms(record["timestamp"]), None)
        for device in devices
        for record in generate_rows(0, device, start, end - 1)
    ]


def compare(expected: Iterable[Row], found: Iterable[Row]) -> list[str]:
    """Return a line for each device whose rows differ from the expected ones; the order does not matter."""
    wanted, there = Counter(expected), Counter(found)
    missing, unexpected = wanted - there, there - wanted
    return [
        f"  {device}: {_describe('missing', missing, device)}, {_describe('unexpected', unexpected, device)}"
        for device in sorted({row[0] for row in missing | unexpected})
    ]


def _describe(word: str, rows: Counter[Row], device: str) -> str:
    own = [row for row in rows.elements() if row[0] == device]
    return f"{len(own)} {word}" + (f", such as {own[0]}" if own else "")


def _epoch_ms(moment: datetime | str) -> int:
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return round(moment.timestamp() * 1000)


def _query(lake: Path, sql: str) -> list[Row]:
    import duckdb

    with duckdb.connect() as connection:
        connection.read_parquet(f"{lake}/**/*.parquet", hive_partitioning=True, filename=True).create_view("lake")
        return connection.execute(sql).fetchall()


# ---- output -------------------------------------------------------------------------------------


def _tree(lake: Path) -> Iterator[str]:
    rows: dict[str, int] = dict(_query(lake, "SELECT filename, count(*) FROM lake GROUP BY 1"))
    yield _short(lake)
    for path in sorted(lake.rglob("*")):
        line = f"{'  ' * len(path.relative_to(lake).parts)}{path.name}"
        if path.is_file():
            count = f"{rows[str(path)]:>6,} rows" if str(path) in rows else ""
            line = f"{line:<50}{count:<11}{path.stat().st_size:>9,} bytes"
        yield line


def _table(counts: Counts) -> Iterator[str]:
    """Yield a line per hour with the sums of objects and a bar for all of them, then a line per crowd metric."""
    yield f"{'hour':5}{''.join(f'{name:>9}' for name in OBJECTS)}  all objects"
    totals = [sum(counts[name, hour] for name in OBJECTS) for hour in range(24)]
    for hour, total in enumerate(totals):
        cells = "".join(f"{counts[name, hour]:9,.0f}" for name in OBJECTS)
        yield f"{hour:02}:00{cells}  {_bar(total / max(totals)):<18} {total:,.0f}"
    yield f"\n{'crowd metric, average per hour':<32}{'lowest':>9}{'highest':>9}"
    for metric in sorted({name for name, _ in counts} - set(OBJECTS)):
        averages = [average for (name, _), average in counts.items() if name == metric]
        yield f"{metric:<32}{min(averages):9.1f}{max(averages):9.1f}"


def _bar(share: float, width: int = 18) -> str:
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _count(lake: Path) -> Counts:
    """Return the sum (objects) or the average (crowd metrics) by class and hour."""
    function = f"CASE WHEN class_name IN {OBJECTS} THEN sum(count) ELSE avg(count) END"
    hour = "epoch_ms(timestamp) // 3600000 % 24"
    rows = _query(lake, f"SELECT class_name, {hour}, {function} FROM lake GROUP BY 1, 2")
    return Counter({(name, hour): count for name, hour, count in rows})


def _draw(counts: Counts, path: Path) -> None:
    # Otherwise matplotlib writes its font cache to the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(BUILD / "matplotlib"))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    hours = range(24)
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    below = [0.0] * 24
    for name in OBJECTS:
        heights = [counts[name, hour] for hour in hours]
        axes.bar(hours, heights, bottom=below, label=name, width=0.85)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set(title=f"Objects counted by all cameras on {DAY:%A, %d %B %Y}", xlabel="hour, UTC", ylabel="count")
    axes.set_xticks(hours)
    axes.spines[["top", "right"]].set_visible(False)
    # Without "reverse", the legend would list the lowest bar first.
    axes.legend(frameon=False, loc="upper left", reverse=True)
    figure.savefig(path, dpi=120)


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run(show))
