"""
On a cluster whose workers are killed, under an API that refuses in bursts, every row is in the lake exactly once.

Takes a quarter of an hour, so it runs only when asked for: ``make test-cluster``. It needs PostgreSQL and Redis. If all
is as it should be, it writes docs/scale.md. UNLEASH_CLUSTER=6x2 makes it 6 devices × 2 days, and no page.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.support.bounds import time_limit
from tests.support.proof import CHECKPOINT_PAGES, Proof, Size, bytes_table, expected_names, prove, table
from tools.cluster import PAGE_CONCURRENCY, POOL_SLOTS, WORKERS
from tools.scale_page import table_lines, write_figures
from tools.stage import processes_in

SECONDS_ALTOGETHER = 25 * 60
# What a try that is lost had read beyond the pages that it had put aside: those of a run not complete yet, those read
# ahead for each request that may be under way, and those under way.
PAGES_LOST_WITH_A_TRY = CHECKPOINT_PAGES + 3 * PAGE_CONCURRENCY


@pytest.fixture(scope="module")
def proof(pytestconfig: pytest.Config) -> Proof:
    """Give what was there in the end; nothing runs any more."""
    devices, days = map(int, os.environ.get("UNLEASH_CLUSTER", "40x7").split("x"))
    with time_limit(SECONDS_ALTOGETHER):
        proof = prove(Size(devices, days))
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for name, value in table(proof) + bytes_table(proof):
            sys.stdout.write(f"\n  {name:<34} {value}")
        sys.stdout.write("\n")
    return proof


def test_every_task_succeeded_within_its_retries(proof: Proof) -> None:
    assert proof.run_state == "success"
    assert proof.states == {"success": proof.size.extractions}
    assert all(number <= most for number, most in proof.tries.values())


def test_each_row_is_in_the_lake_exactly_once(proof: Proof) -> None:
    assert proof.expected_rows > 500 * proof.size.extractions
    assert (proof.missing, proof.extra) == (0, 0)
    assert proof.rows == proof.expected_rows
    assert sum(summary["rows"] for summary in proof.summaries.values()) == proof.rows
    assert proof.found_without_a_row == 1, "The comparison would not have seen a missing row"


def test_there_is_no_stray_object_and_no_open_upload(proof: Proof) -> None:
    assert proof.names == expected_names(proof.size)
    assert proof.uploads == []


def test_workers_were_killed_and_their_extractions_went_on_where_they_stopped(proof: Proof) -> None:
    assert [name for name, _ in proof.victims] == list(WORKERS)
    killed = {index for index, _ in proof.killed}
    for _, index in proof.victims:
        assert index in killed
        assert proof.summaries[index]["resumed_pages"] >= CHECKPOINT_PAGES


def test_a_lost_try_costs_few_pages(proof: Proof) -> None:
    assert sum(proof.twice.values()) <= PAGES_LOST_WITH_A_TRY * len(proof.lost)


def test_the_cause_of_each_retry_is_known(proof: Proof) -> None:
    assert proof.causes["worker killed"] >= len(WORKERS)
    assert set(proof.causes) <= {"worker killed", "heartbeat too late", "RateLimitError"}
    assert proof.refused > 2 * proof.bursts


def test_all_tasks_together_ask_no_more_at_once_than_the_pool_allows(proof: Proof) -> None:
    assert proof.at_once <= POOL_SLOTS
    assert proof.max_in_flight <= POOL_SLOTS * PAGE_CONCURRENCY
    # Else nothing would have been bounded by it.
    assert proof.max_in_flight > (POOL_SLOTS - 1) * PAGE_CONCURRENCY


def test_the_result_of_an_extraction_is_small(proof: Proof) -> None:
    assert proof.xcom_bytes < 4096
    assert proof.metadata["xcom"] > 0


def test_the_key_is_in_no_log_and_in_no_table(proof: Proof) -> None:
    assert proof.leaks == []


def test_no_process_and_no_folder_is_left(proof: Proof) -> None:
    assert [path for path in proof.folders if path.exists()] == []
    assert [process for path in proof.folders for process in processes_in(path)] == []


def test_the_page_is_written_from_what_was_seen(proof: Proof, request: pytest.FixtureRequest) -> None:
    if proof.size != Size():
        pytest.skip("a smaller run than the page is about")
    assert request.session.testsfailed == 0, "The page stays as it was"
    write_figures("make test-cluster", table_lines(table(proof)))
    write_figures("make test-cluster (bytes)", table_lines(bytes_table(proof)))
