"""A run becomes words, and the words a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import groupby

from tests.support.live_airflow import Run
from tests.support.paths import ROOT
from tests.support.run_kinds import Outcome, RunKind

PAGE = ROOT / "docs" / "windows.md"

# What the log calls the rules.
RULES = {
    "the task's start and end": "start_end",
    "the run's data interval": "data_interval",
    "the run's partition date and window": "partition_date",
    "window, up to the moment of the run": "window",
}

_INTRODUCTION = """\
# The window of a run

Which `[start, end)` a task asks of the API, in every kind of run of Airflow {airflow}. The tables are written by
`make test-live`: it makes each of these runs with a real scheduler, and reads in the API's log what was asked.
Moments are in UTC; «the run» is the moment at which it was made.

In short:

| you want | do | the window |
| --- | --- | --- |
| each day or hour | `schedule=CronDataIntervalTimetable("@daily", timezone="UTC")` | the run's data interval |
| to keep `schedule="@daily"` | give the task `window=timedelta(days=1)` | the day before the run |
| local days | the timetable and `start_date` in that timezone, e.g. Europe/Berlin | the local day, 23 to 25 hours |
| to start by hand, or by an asset | `window=…`, or `start=` and `end=` | what they say |
| a past day again | clear its run, or a backfill | the run's data interval |
| to try it | `airflow dags test DAG DATE` | the day before DATE |

The first rule that applies wins. The log has it in a sentence, the summary as `window_rule`:

1. `start_end`: the task has `start` and `end`.
2. `data_interval`: the run has a data interval that is longer than zero.
3. `partition_date`: the task has `window`, and the run a partition date: the window begins there.
4. `window`: the task has `window`, which ends at the end of the run's data interval; at its logical date, if it has no
   data interval; or when the run was made, if it has neither.

Otherwise the task fails on its first try, and asks nothing. Whole days are days in the DAG's timezone, which is that
of its `start_date`: they have 23 or 25 hours when clocks change there. So give `start_date` and timetable one timezone.

Three things to know about Airflow itself:

- `schedule="@daily"` gives runs an empty data interval, since Airflow 3.
- `airflow dags trigger DAG -l DATE` sets the logical date only; the data interval is that of a run made now. To run a
  past day again, use a backfill, or give the REST API a logical date.
- A run whose logical date is before the DAG's `start_date` has no tasks, and succeeds. The first run of a
  `CronTriggerTimetable` with `interval` is one: let `start_date` be an interval earlier than the first that is wanted.
"""


# ---- in words ----------------------------------------------------------------------------------


def outcome_of(run: Run) -> Outcome:
    """Say what became of a run in the words of the table of expectations."""
    asked = [_span(_moment(start), _moment(end), run.made) for start, end in sorted(run.requests)]
    return Outcome(_interval(run), " and ".join(asked) or "nothing", _rule(run))


def window_in_log(run: Run) -> tuple[str, str, str] | None:
    """Return start, end and rule as the log has them."""
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
    """Say it with dates; where they depend on when the run was made, with words."""
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


# ---- the page ----------------------------------------------------------------------------------


def render(kinds: list[RunKind], runs: dict[str, Run], airflow: str) -> str:
    """Return the whole page."""
    sections = groupby(kinds, lambda kind: kind.section)
    tables = ("\n".join(_table(section, list(members), runs)) for section, members in sections)
    return "\n\n".join([_INTRODUCTION.format(airflow=airflow).strip(), *tables]) + "\n"


def _table(section: str, kinds: list[RunKind], runs: dict[str, Run]) -> Iterator[str]:
    """Yield the lines of a table; what is the same in all its rows stands above it."""
    yield f"## {section}\n"
    ways = {_run(kind) for kind in kinds}
    heads = ("run",) * (len(ways) > 1) + ("schedule", "the task has", "data interval", "asked of the API", "rule")
    if len(ways) == 1:
        yield f"Each run: {ways.pop()}\n"
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
