"""
Run operators, sensor, trigger and hook in their own process, with the metrics that environment variables configure.

Prints the states of the tasks. The cheaper variant executes one operator without a DAG run.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from importlib import import_module

from tests.support.airflow_home import choose_home, init_database
from tests.support.dag_runs import run_dag
from tests.support.sample_day import CROWD, DAY_END, DAY_START, SILENT, STREET, make_context

OTHER = "W022abc5be35bb72"  # a device without faults
BODY = """
    from airflow_provider_unleash.hooks import UnleashHook

    class Deferring(UnleashNewSessionsSensor):
        def execute(self, context):
            self._defer(context)

    lake = {lake!r}
    UnleashToObjectStorageOperator(task_id="land", device_id={street!r}, dst=lake)
    UnleashGetAnalyticsOperator(task_id="rows", device_id={silent!r})
    UnleashToObjectStorageOperator(task_id="fails", device_id={crowd!r}, dst=lake)
    account = dict(dst=f"{{lake}}/account", device_ids=[{silent!r}, {other!r}], file_format="csv")
    UnleashAccountToObjectStorageOperator(task_id="account", **account)
    UnleashToObjectStorageOperator(task_id="refused", device_id="no-such", dst=lake)
    UnleashNewSessionsSensor(task_id="wait", known_sessions=[], min_sessions=10**6, poke_interval=0.1, timeout=0.2)
    Deferring(task_id="deferred", deferrable=True, known_sessions=[], poke_interval=0.1, timeout=60)

    @task
    def own():
        hook = UnleashHook()
        next(hook.iter_pages({street!r}, {start}, {end}, page_concurrency=1)).number
        return hook.get_version()

    own()
"""


def set_up_metrics() -> None:
    """Set up metrics as Airflow 3.2 does when a task or a triggerer starts; older versions always do."""
    for place in ("airflow.sdk.observability", "airflow.observability"):
        with suppress(ModuleNotFoundError):
            stats = import_module(f"{place}.stats")
            factory = import_module(f"{place}.metrics.stats_utils").get_stats_factory
            if hasattr(stats, "initialize"):
                stats.initialize(factory=factory(), export_legacy_names=True)
            else:
                stats.Stats.initialize(factory=factory(stats.Stats))


def run_everything(lake: str) -> dict[str, str]:
    """Return the states of the tasks."""
    home = init_database()
    throttle = import_module("airflow_provider_unleash.core.throttle")
    throttle.MIN_BACKOFF = throttle.MAX_BACKOFF = 0.01
    devices = {"street": STREET, "silent": SILENT, "crowd": CROWD, "other": OTHER}
    body = BODY.format(lake=lake, start=DAY_START, end=DAY_END, **devices)
    return {str(task): state for task, state in run_dag(home, body).states.items()}


def land_once(lake: str) -> dict[str, str]:
    """Execute an operator as a worker does, without a DAG run."""
    from airflow_provider_unleash.operators import UnleashToObjectStorageOperator

    os.environ |= {"AIRFLOW_CTX_DAG_ID": "test_1", "AIRFLOW_CTX_TASK_ID": "land"}
    land = UnleashToObjectStorageOperator(task_id="land", device_id=STREET, dst=lake)
    land.execute(make_context())
    return {"land": "success"}


def main(variant: str, lake: str) -> None:
    choose_home("AIRFLOW__METRICS__", "AIRFLOW_CONN_")
    import airflow  # noqa: F401 (reads the configuration)

    set_up_metrics()
    states = run_everything(lake) if variant == "everything" else land_once(lake)
    sys.stdout.write(f"\n{json.dumps(states)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
