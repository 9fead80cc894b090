"""
Every row lands exactly once on a cluster where workers are killed and the API refuses requests in bursts.

Once with a mapped task per device and day, once with a mapped task per batch of devices and day. Takes a quarter of an
hour and needs PostgreSQL and Redis, so it runs only with ``make test-cluster``. If all tests pass, it updates
docs/scale.md. ``UNLEASH_CLUSTER=6x2`` extracts 2 days of 6 devices instead, and leaves the page alone.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.proof import BATCHES, CHECKPOINT_PAGES, DAY, MAPPED, Proof, bytes_table, expected_names, prove, table
from tools.bounds import time_limit
from tools.cluster import PAGE_CONCURRENCY, POOL_SLOTS, WORKERS, device_ids
from tools.scale_page import table_lines, write_figures
from tools.stage import processes_in

SECONDS_ALTOGETHER = 25 * 60
# Pages that a lost try may have read after its last checkpoint: those of the next checkpoint, and those read ahead and
# in flight for each concurrent request.
PAGES_LOST_WITH_A_TRY = CHECKPOINT_PAGES + 3 * PAGE_CONCURRENCY
# Devices that a lost try may have landed since its journal was saved, every five seconds: at most 14 a second.
DEVICES_LOST_WITH_A_TRY = 100


@pytest.fixture(scope="module", params=[MAPPED, BATCHES], ids=["mapped", "batches"])
def proof(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Proof:
    """Return the results; nothing is running any more."""
    size = request.param
    if smaller := os.environ.get("UNLEASH_CLUSTER"):
        devices, days = map(int, smaller.split("x"))
        size = replace(size, devices=devices, days=days)
    with time_limit(SECONDS_ALTOGETHER):
        proof = prove(size)
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for name, value in table(proof) + bytes_table(proof):
            sys.stdout.write(f"\n  {name:<34} {value}")
        sys.stdout.write("\n")
    return proof


def test_every_task_succeeded_within_its_retries(proof):
    assert proof.run_state == "success"
    assert proof.states == {"success": proof.size.extractions}
    assert all(number <= most for number, most in proof.tries.values())


def test_each_row_is_in_the_lake_exactly_once(proof):
    assert proof.expected_rows > 500 * proof.size.extractions
    assert (proof.missing, proof.extra) == (0, 0)
    assert proof.rows == proof.expected_rows
    assert sum(summary["rows"] for summary in proof.summaries.values()) == proof.rows
    assert proof.missing_without_one_row == 1, "The comparison would not notice a missing row"


def test_no_stray_object_and_no_open_upload_is_left(proof):
    assert proof.names == expected_names(proof.size)
    assert proof.uploads == []


def test_the_manifests_have_one_line_per_device_and_day(proof):
    size = proof.size
    days = [f"{DAY + timedelta(days=day):%Y-%m-%d}" for day in range(size.days)]
    lines = sorted((entry["device_id"], entry["start"][:10]) for entry in proof.entries)
    assert lines == sorted((device, day) for device in device_ids(size.devices) for day in days)
    assert proof.manifests == size.extractions
    assert {entry["path"] for entry in proof.entries} - {None} == proof.names
    assert sum(entry["rows"] for entry in proof.entries) == proof.rows


def test_extractions_of_killed_workers_resume_where_they_stopped(proof):
    assert [name for name, _ in proof.victims] == list(WORKERS)
    killed = {index for index, _ in proof.killed}
    for _, index in proof.victims:
        assert index in killed
        assert proof.summaries[index][f"resumed_{proof.size.resumed}"] >= CHECKPOINT_PAGES


def test_a_lost_try_repeats_few_pages(proof):
    most = DEVICES_LOST_WITH_A_TRY if proof.size.batch_size else PAGES_LOST_WITH_A_TRY
    assert sum(proof.twice.values()) <= most * len(proof.lost)


def test_the_cause_of_each_retry_is_known(proof):
    assert proof.causes["worker killed"] >= len(WORKERS)
    assert set(proof.causes) <= {"worker killed", "heartbeat too late", "RateLimitError"}
    assert proof.refused > 2 * proof.bursts


def test_all_tasks_together_stay_within_the_limits_of_the_pool(proof):
    assert proof.max_running <= POOL_SLOTS
    assert proof.max_in_flight <= POOL_SLOTS * PAGE_CONCURRENCY
    # Otherwise the pool would not have limited anything.
    assert proof.max_in_flight > (POOL_SLOTS - 1) * PAGE_CONCURRENCY


def test_the_result_of_an_extraction_is_small(proof):
    assert proof.xcom_bytes < 4096
    assert proof.metadata["xcom"] > 0


def test_the_key_is_in_no_log_and_in_no_table(proof):
    assert proof.leaks == []


def test_no_process_and_no_folder_is_left(proof):
    assert [path for path in proof.folders if path.exists()] == []
    assert [process for path in proof.folders for process in processes_in(path)] == []


def test_the_page_is_updated_after_a_full_run(proof, request):
    if proof.size not in (MAPPED, BATCHES):
        pytest.skip("this run is smaller than the one that the page describes")
    assert request.session.testsfailed == 0, "Other tests failed, so the page is not updated"
    kind = "batches" if proof.size.batch_size else "mapped"
    write_figures(f"make test-cluster, {kind}", table_lines(table(proof)))
    write_figures(f"make test-cluster, {kind}, bytes", table_lines(bytes_table(proof)))
