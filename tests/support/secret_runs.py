"""
DAG runs with every operator, the sensor in all modes and the hook, in their own process.

Environment variables set Airflow's home, log level and connections. There is one run for each named connection; the
states of its tasks are written to the first argument.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tests.support.airflow_home import choose_home, init_database
from tests.support.dag_runs import run_dag
from tests.support.sample_day import CROWD, STREET

DEFERRING = """
    class Deferring(UnleashNewSessionsSensor):
        # Defers without a poke, so that the trigger meets the fault.
        def execute(self, context):
            self._defer(context)
"""
EVERYTHING = """
    from airflow_provider_unleash.hooks import UnleashHook

    conn_id, lake = {conn_id!r}, {lake!r}
    common = dict(unleash_conn_id=conn_id)
    device = dict(device_id={device!r}, **common)
    tableau = dict(endpoint="tableau", **device)
    retried = dict(retries=1, retry_delay=timedelta(0))
    UnleashListDevicesOperator(task_id="devices", **common, **retried)
    UnleashListSessionsOperator(task_id="sessions", **common)
    UnleashGetAnalyticsOperator(task_id="rows", **device)
    UnleashToObjectStorageOperator(task_id="jsonl", dst=lake, compression="gzip", **device, **retried)
    for kind in {formats!r}:
        UnleashToObjectStorageOperator(task_id=kind, dst=f"{{lake}}/{{kind}}", file_format=kind, **tableau)
    for split in (True, False):
        name = f"account_{{split}}"
        UnleashAccountToObjectStorageOperator(
            task_id=name, dst=f"{{lake}}/{{name}}", split_by_device=split, **common, **retried
        )
    mapped = UnleashToObjectStorageOperator.partial(task_id="mapped", dst=f"{{lake}}/mapped", **common)
    mapped.expand(device_id={devices!r})
    for mode in ("poke", "reschedule"):
        UnleashNewSessionsSensor(task_id=mode, mode=mode, poke_interval=0.1, timeout=30, **common)
    UnleashNewSessionsSensor(task_id="deferred", deferrable=True, poke_interval=0.1, timeout=5, **common)
    Deferring(task_id="trigger", deferrable=True, poke_interval=0.1, timeout=5, **common)

    @task(**retried)
    def own(data_interval_start=None, data_interval_end=None):
        hook = UnleashHook(conn_id)
        print(hook.test_connection())
        return hook.get_records({device!r}, data_interval_start, data_interval_end)

    own()
"""
WAITING = """
    # No day has that many sessions.
    waiting = dict(unleash_conn_id={conn_id!r}, min_sessions=999, poke_interval=0.1, timeout=0.3, soft_fail=True)
    UnleashNewSessionsSensor(task_id="poke", **waiting)
    UnleashNewSessionsSensor(task_id="reschedule", mode="reschedule", **waiting)
"""
LEAKING = """
    import base64, gzip, logging, os, tempfile
    from pathlib import Path
    from urllib.parse import quote
    from airflow.providers.common.compat.sdk import BaseHook

    leaked = {{name[5:].lower(): value for name, value in os.environ.items() if name.startswith("LEAK_")}}
    lake = Path({lake!r})

    @task
    def leak():
        print("It is", leaked["printed"])
        logging.getLogger("airflow_provider_unleash").debug("It is %s", quote(leaked["logged"]))
        logging.getLogger("airflow_provider_unleash").info(BaseHook.get_connection({conn_id!r}).password)
        lake.mkdir(parents=True, exist_ok=True)
        (lake / "leak.txt").write_text(leaked["written"])
        (lake / "leak.gz").write_bytes(gzip.compress(leaked["packed"].encode()))
        try:
            import pyarrow, pyarrow.parquet
        except ImportError:
            pass
        else:
            pyarrow.parquet.write_table(pyarrow.table({{"leak": [leaked["tabled"]] * 9}}), lake / "leak.parquet")
        Path(tempfile.mkstemp()[1]).write_text(leaked["temporary"])
        credentials = base64.b64encode(b"user:" + leaked["returned"].encode()).decode()
        return {{"authorization": credentials, "much": "x" * 9999}}

    @task
    def fail():
        raise ValueError(leaked["raised"], leaked.get("raised_again"))

    leak()
    fail()
    UnleashGetAnalyticsOperator(task_id="rendered", device_id=leaked["rendered"], unleash_conn_id={conn_id!r})
    waiting = dict(poke_interval=0.1, timeout=5, unleash_conn_id={conn_id!r})
    Deferring(task_id="deferred", known_sessions=[leaked["deferred"]], deferrable=True, **waiting)
"""
BODIES = {"waiting": WAITING, "leaking": LEAKING}


def switch_masker_off() -> None:
    """Turn off Airflow's masking of secrets, which would hide a leak."""
    for place in ("utils.log", "sdk.execution_time", "_shared.secrets_masker", "sdk._shared.secrets_masker"):
        with suppress(ImportError, AttributeError):  # each Airflow has some of them
            masker = import_module(f"airflow.{place}.secrets_masker").SecretsMasker
            masker.redact = lambda self, item, *args, **kwargs: item


def log_everything(path: Path) -> None:
    """Log all records with all their attributes; in some versions, dag.test() prints from INFO on only."""
    path.parent.mkdir(exist_ok=True)  # Airflow 3.0 creates it with the first log
    handler = logging.FileHandler(path)
    handler.addFilter(lambda record: handler.stream.write(f"{record.__dict__!r}\n"))
    for name in ("", "airflow.task"):
        logging.getLogger(name).setLevel(logging.DEBUG)  # the database migrations raised it
        logging.getLogger(name).addHandler(handler)


def main(out: str, lake: str, *names: str) -> None:
    choose_home("AIRFLOW_")
    home, states = init_database(), {}
    switch_masker_off()
    log_everything(home / "logs" / "records.log")
    throttle, triggers = (import_module(f"airflow_provider_unleash.{name}") for name in ("core.throttle", "triggers"))
    throttle.MIN_BACKOFF = throttle.MAX_BACKOFF = 0.01
    triggers.MAX_FAILED_POLLS = 2
    for name in names:
        body = DEFERRING + BODIES.get(name, EVERYTHING).format(
            conn_id=name,
            lake=f"{lake}/{name}",
            device=STREET,
            devices=[CROWD],
            formats=["csv", *(["parquet"] if find_spec("pyarrow") else [])],
        )
        states[name] = {str(task): state for task, state in run_dag(home, body).states.items()}
    Path(out).write_text(json.dumps(states))


if __name__ == "__main__":
    main(*sys.argv[1:])
