"""Describe runs in words and render docs/windows-runs.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import groupby

from tests.support.live_airflow import Run
from tests.support.paths import ROOT
from tests.support.run_kinds import Outcome, RunKind

PAGE = ROOT / "docs" / "windows-runs.md"

# Names of the rules by their description in the log.
RULES = {
    "the task's start and end": "start_end",
    "the run's data interval": "data_interval",
    "the run's partition date and window": "partition_date",
    "window, counted back from the run": "window",
}

_INTRODUCTION = """\
# Windows by kind of run

Which `[start, end)` a task requests from the API, in every kind of run of Airflow {airflow}. `make test-live` writes
these tables: it starts each run with a real scheduler and reads the requests from the API's log. [The window of a
run](windows.md) explains the rules.

Times are in UTC. "The run" in a cell is the time the run was created.
"""


def outcome_of(run: Run) -> Outcome:
    """Describe the outcome of a run in the words of the expected outcomes."""
    asked = [_span(_moment(start), _moment(end), run.made) for start, end in sorted(run.requests)]
    return Outcome(_interval(run), " and ".join(asked) or "nothing", _rule(run))


def window_in_log(run: Run) -> tuple[str, str, str] | None:
    """Return start, end and rule from the log."""
    found = re.search(r'The window is \[(\S+), (\S+)\) from ([^"[\n]+)', run.log)
    return found and (found[1], found[2], RULES[found[3].strip()])


def _interval(run: Run) -> str:
    if run.data_interval_start is None or run.data_interval_end is None:
        date = run.partition_date
        return "none" if date is None else f"none; partition date {_text(date)}"
    return _span(run.data_interval_start, run.data_interval_end, run.made)


def _rule(run: Run) -> str:
    if run.state is None:
        return "the run has no task"
    if run.state != "success":
        found = re.search(r"WindowError: ([^.]+\.)", run.log)
        return f"error: {found[1]}" if found else f"{run.state} without a WindowError"
    if isinstance(run.xcom, dict):
        return str(run.xcom["window_rule"])
    return (window_in_log(run) or ("", "", "none in the log"))[2]


def _span(start: datetime, end: datetime, made: datetime | None) -> str:
    """Describe a span by its dates, or relative to the time the run was created."""
    hours = (end - start) / timedelta(hours=1)
    if start == end:
        return f"empty, at {_text(start, made)}"
    if made and _milliseconds(end) == _milliseconds(made):
        return f"the {hours:g} h up to the run"
    if made and end == _midnight(made) and start == _midnight(start) and hours == 24:
        return "the last whole day before the run"
    return f"{_text(start)} → {_text(end)} ({hours:g} h)"


def _text(moment: datetime, made: datetime | None = None) -> str:
    if moment == made:
        return "the run"
    precision = "milliseconds" if _milliseconds(moment) % 60_000 else "minutes"
    return moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(milliseconds=1)


def _moment(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=milliseconds)


def render(kinds: list[RunKind], runs: dict[str, Run], airflow: str) -> str:
    """Return the whole page."""
    sections = groupby(kinds, lambda kind: kind.section)
    tables = ("\n".join(_table(section, list(members), runs)) for section, members in sections)
    return "\n\n".join([_INTRODUCTION.format(airflow=airflow).strip(), *tables]) + "\n"


def _table(section: str, kinds: list[RunKind], runs: dict[str, Run]) -> Iterator[str]:
    """Yield the lines of a table. If all runs are created in the same way, a line above the table says how."""
    yield f"## {section}\n"
    ways = {_run(kind) for kind in kinds}
    heads = ("run",) * (len(ways) > 1) + ("schedule", "task arguments", "data interval", "requested window", "rule")
    if len(ways) == 1:
        yield f"Created by {ways.pop()}.\n"
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for kind in kinds:
        cells = (_run(kind), _code(kind.schedule), _code(kind.task), *_cells(outcome_of(runs[kind.dag_id])))
        yield f"| {' | '.join(cells[-len(heads) :])} |"


def _run(kind: RunKind) -> str:
    return _code(kind.run) if kind.run.startswith(("airflow ", "POST ")) else kind.run


def _cells(outcome: Outcome) -> tuple[str, str, str]:
    rule = _code(outcome.rule) if outcome.rule in RULES.values() else outcome.rule
    return outcome.interval, outcome.asked, rule


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
