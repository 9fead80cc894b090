"""A cursor loses no session, whenever it is listed, and does not grow for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_unleash.simulator import Simulator
from tests.support.dag_runs import has_asset_state_store, run_dag
from tests.support.sample_day import DAY_END, DAY_START

# ---- in a DAG run --------------------------------------------------------------------------------

CONSUMER = """
from airflow.providers.common.compat.sdk import Asset
from airflow_provider_unleash.cursor import SessionCursor
from airflow_provider_unleash.hooks import UnleashHook

sessions = Asset("unleash://{name}/sessions")

@task(inlets=[sessions])
def consume(**context):
    cursor = SessionCursor(context, sessions)
    listed = UnleashHook().list_sessions()
    pending = cursor.pending(listed)
    cursor.mark_handled(pending[:{most}], listed)
    return pending

consume()
"""


@pytest.mark.skipif(not has_asset_state_store(), reason="this Airflow has no asset state store")
def test_the_cursor_stays_in_airflows_store(airflow_home: Any, serve: Callable[..., Simulator]) -> None:
    sim = serve(sessions_from=DAY_START, session_period=3600.0, clock=lambda: DAY_END / 1000)
    run = run_dag(airflow_home, CONSUMER.format(name="a", most=3), arguments="schedule=None")
    assert run.xcoms["consume"] == sim.sessions()
    # A run of another DAG has a cursor of its own.
    run = run_dag(airflow_home, CONSUMER.format(name="a", most=3), arguments="schedule=None")
    assert run.xcoms["consume"] == sim.sessions()


@pytest.mark.skipif(has_asset_state_store(), reason="this Airflow has an asset state store")
def test_on_an_older_airflow_the_error_says_what_it_takes(airflow_home: Any, serve: Callable[..., Simulator]) -> None:
    serve()
    run = run_dag(airflow_home, CONSUMER.format(name="b", most=3), arguments="schedule=None")
    assert run.states == {"consume": "failed"}
