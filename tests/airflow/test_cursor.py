"""A cursor keeps its state in Airflow's asset state store; tests/core tests what it does."""

from __future__ import annotations

import pytest

from tests.support.dag_runs import has_asset_state_store, run_dag
from tests.support.sample_day import DAY_END, DAY_START

CONSUMER = """
from airflow.providers.common.compat.sdk import Asset
from airflow_provider_unleash.cursor import SessionCursor
from airflow_provider_unleash.hooks import UnleashHook

sessions = Asset("unleash://account/sessions")

@task(inlets=[sessions])
def consume(**context):
    cursor = SessionCursor(context, sessions)
    listed = UnleashHook().list_sessions()
    pending = cursor.pending(listed)
    cursor.mark_handled(pending[:3], listed)
    return pending

consume() >> consume.override(task_id="consume_again")()
"""


@pytest.mark.skipif(not has_asset_state_store(), reason="this Airflow has no asset state store")
def test_each_dag_has_its_own_cursor_in_airflows_store(airflow_home, serve):
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000)
    for _ in range(2):  # each run is one of another DAG
        run = run_dag(airflow_home, CONSUMER, arguments="schedule=None")
        assert run.xcoms == {"consume": sim.sessions(), "consume_again": sim.sessions()[3:]}


@pytest.mark.skipif(has_asset_state_store(), reason="this Airflow has an asset state store")
def test_a_cursor_on_an_older_airflow_fails_the_task(airflow_home, serve):
    serve()
    run = run_dag(airflow_home, CONSUMER, arguments="schedule=None")
    assert run.states["consume"] == "failed"
