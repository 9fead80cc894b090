"""
In every kind of run, a real Airflow requests the window listed in ``run_kinds``, or fails as listed there.

Takes minutes, so it runs only when asked for: ``make test-live``. If all is as expected, it writes
docs/windows-runs.md.
"""

from __future__ import annotations

from datetime import datetime, timezone
from importlib.metadata import version

import pytest

from airflow_provider_unleash.core.names import hash_ids
from airflow_provider_unleash.simulator import generate_rows
from tests.support.live_airflow import ROWS_PER_DAY, Observed, Run, observe
from tests.support.run_kinds import RUN_KINDS, TO_XCOM, RunKind
from tests.support.windows_page import PAGE, outcome_of, render, window_in_log
from tools.stage import processes_in

ASKING = [kind for kind in RUN_KINDS if kind.expected.asked != "nothing"]
FAILING = [kind for kind in RUN_KINDS if kind.expected.rule.startswith("error: ")]


@pytest.fixture(scope="session")
def observed() -> Observed:
    """Return what all the runs left behind; nothing is running any more."""
    return observe()


def run_of(kind: RunKind, observed: Observed) -> Run:
    if kind.dag_id not in observed.runs:
        pytest.fail(f"{kind}\nthe run did not end\n\n{observed.output.get(kind.dag_id, '')[-2000:]}", pytrace=False)
    return observed.runs[kind.dag_id]


def named(kind: RunKind) -> str:
    return kind.dag_id


@pytest.mark.parametrize("kind", RUN_KINDS, ids=named)
def test_a_run_requests_the_expected_window(kind, observed):
    run = run_of(kind, observed)
    outcome = outcome_of(run)
    if outcome != kind.expected:
        text = f"{kind}\n\nexpected\n{kind.expected}\n\nobserved\n{outcome}\n\nthe task's log\n{run.log[-2000:]}"
        pytest.fail(text, pytrace=False)


@pytest.mark.parametrize("kind", ASKING, ids=named)
def test_log_result_and_object_name_show_the_requested_window(kind, observed):
    run = run_of(kind, observed)
    [(start, end)] = run.requests
    assert run.state == "success"
    assert window_in_log(run) == (stamp(start), stamp(end), kind.expected.rule)
    rows = list(generate_rows(0, kind.dag_id, start, end - 1, rows_per_day=ROWS_PER_DAY))
    assert rows, "A window without rows would prove little"
    if kind.dag_id in TO_XCOM:
        assert run.xcom == rows
    else:
        assert summary_of(run) == (stamp(start), stamp(end), kind.expected.rule, len(rows))
        assert run.xcom["files"][0]["path"].endswith(f"/{basic(start)}_{basic(end)}.jsonl")


@pytest.mark.parametrize("kind", FAILING, ids=named)
def test_a_run_without_a_window_fails_on_its_first_try_without_requests(kind, observed):
    run = run_of(kind, observed)
    assert (run.state, run.tries, run.max_tries) == ("failed", 1, 2), run.log[-2000:]
    assert (run.requests, run.xcom) == (frozenset(), None)
    for way_out in ("CronDataIntervalTimetable(", "window=timedelta(days=1)", "start=", "end="):
        assert way_out in run.log


@pytest.mark.parametrize("kind", [kind for kind in RUN_KINDS if kind.outlet], ids=named)
def test_the_event_of_an_outlet_describes_the_written_rows_and_the_partition(kind, observed):
    run = run_of(kind, observed)
    expected = {name: run.xcom[name] for name in ("device_id", "start", "end", "rows", "pages", "files")}
    expected["bytes"] = sum(file["bytes"] for file in run.xcom["files"])
    lake, _, name = run.xcom["files"][0]["path"].partition(f"/device={kind.dag_id}/")
    manifest = f"{lake}/_manifest/{name.removesuffix('jsonl')}{hash_ids([kind.dag_id])}.manifest"
    expected["manifest"] = {"path": manifest, "url": manifest}
    if run.partition_date is not None:
        expected["partition_key"] = f"{run.partition_date:%Y-%m-%d}"
    assert run.events == [(kind.outlet, expected)]


def test_the_key_is_in_no_file_that_scheduler_workers_and_triggerer_wrote(observed):
    assert observed.leaks == []


def test_no_process_and_no_folder_is_left(observed):
    assert not observed.folder.exists()
    assert processes_in(observed.folder) == []


def test_the_page_is_written_if_all_runs_are_as_expected(observed):
    runs = {kind: observed.runs.get(kind.dag_id) for kind in RUN_KINDS}
    wrong = [kind.dag_id for kind, run in runs.items() if run is None or outcome_of(run) != kind.expected]
    assert wrong == [], "Some runs are not as expected, so the page is not updated"
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(RUN_KINDS, observed.runs, version("apache-airflow")))


def summary_of(run: Run) -> tuple[str, str, str, int]:
    return tuple(run.xcom[key] for key in ("start", "end", "window_rule", "rows"))


def stamp(milliseconds: int) -> str:
    """Return a time as the log and the summary show it."""
    return utc(milliseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def basic(milliseconds: int) -> str:
    """Return a time as object names contain it."""
    fraction = f".{milliseconds % 1000:03}" if milliseconds % 1000 else ""
    return f"{utc(milliseconds):%Y%m%dT%H%M%S}{fraction}Z"


def utc(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, timezone.utc).replace(microsecond=milliseconds % 1000 * 1000)
