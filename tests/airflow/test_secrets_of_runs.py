"""
DAG runs never write the key or masked stream tokens anywhere: all operators, the sensor in all modes, and the hook.

The runs happen once, in their own process, with debug logging and without Airflow's own masking. The tests search
everything that this process wrote: the database (by column and as bytes), logs, standard output and error, temporary
files, the lake, and OpenLineage's events if its provider is installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from airflow_provider_unleash.simulator import Fault, Simulator
from tests.support.python_processes import import_root, module_command
from tests.support.sample_day import DAY_END, DAY_START, STREET
from tests.support.secret_search import FAULTS, KEYS, files_under, leaks

pytestmark = pytest.mark.slow

KEY, BEARER = KEYS
LEAKED_KEY = "LeAk/4711+key="
# Where a leaking task puts a secret, and where the search must find it.
LEAKS = {
    "printed": "stdout",
    "logged": "stdout",
    "raised": "stdout",
    "written": "lake/leaking/leak.txt",
    "packed": "lake/leaking/leak.gz unpacked",
    "tabled": "lake/leaking/leak.parquet unpacked",
    "temporary": "tmp/",
    "returned": "home/airflow.db xcom.value",
    "rendered": "home/airflow.db rendered_task_instance_fields.rendered_fields",
    "deferred": "home/airflow.db trigger.",
}
HAS_OPENLINEAGE = find_spec("airflow.providers.openlineage") is not None
if HAS_OPENLINEAGE:
    LEAKS["raised_again"] = "lineage.json"
MISFIT = f"{STREET}?token=odd-otter-001"
HAS_SDK = find_spec("airflow.sdk") is not None
HAS_PYARROW = find_spec("pyarrow") is not None
# At this level, Airflow 3 logs the task's message to its supervisor about what to mask, with the key.
_TOLD_TO_MASK = re.compile(rb"msg=MaskSecret\(value=.*?, type='MaskSecret'\)")


def leaked(place: str) -> str:
    return f"LeAk4711{place}"


def connections() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the options of a simulator and the fields of a connection to it, by connection, in order."""
    fresh = {"rows_per_day": 60, "page_size": 20, "sessions_from": DAY_START}
    two_attempts, one_attempt = {"max_attempts": 2}, {"max_attempts": 1, "timeout": 0.1}
    found = {
        fault.replace(" ", "_"): (
            {**fresh, "api_keys": [KEY], "faults": faults},
            {"password": KEY, "extra": one_attempt if fault == "timeout" else two_attempts},
        )
        for fault, faults in FAULTS.items()
    }
    found["waiting"] = found["nothing"]
    for name in ("nothing", "echo_401"):
        found[f"{name}_of_bearer"] = (
            {**found[name][0], "api_keys": [BEARER]},
            {"password": BEARER, "extra": two_attempts},
        )
    found["refused"] = ({}, {"password": KEY, "host": "http://127.0.0.1:1", "extra": two_attempts})
    found["unusable"] = ({}, {"password": f"{KEY} and more"})
    found["leaking"] = ({**fresh, "api_keys": [LEAKED_KEY]}, {"password": LEAKED_KEY})
    half = [Fault("half_body", page=2, times=None)]
    misfit = {"device_id": STREET, "timestamp": "2026-01-12T10:00:00Z", "count": "many", "source_file_name": MISFIT}
    for name, options, masks in (
        ("unmasked", {"seed": 2}, False),
        ("masked", {"seed": 1}, True),
        ("masked_half_body", {"seed": 1, "faults": half}, True),
        ("masked_misfit", {"rows": {STREET: [misfit] * 50}}, True),
    ):
        found[name] = (
            {**fresh, "api_keys": [KEY], **options},
            {"password": KEY, "extra": {**two_attempts, "mask_stream_tokens": masks}},
        )
    return found


@dataclass
class Runs:
    """
    The results of the runs.

    :param states: states of the tasks, by connection.
    :param texts: everything that they wrote, by file, and by column of a database.
    :param tokens: stream tokens of each connection's simulator.
    """

    states: dict[str, dict[str, str]]
    texts: dict[str, bytes]
    tokens: dict[str, set[str]]

    def find(self, *secrets: str) -> list[str]:
        return [found for secret in secrets for found in leaks(secret, self.texts)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("home", "lake", "tmp", "user"):
        (folder / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")} | {
        "AIRFLOW_HOME": f"{folder}/home",
        "AIRFLOW__CORE__FERNET_KEY": "",  # otherwise the arguments of triggers are encrypted
        "AIRFLOW__CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",  # a process for each event takes half of the time
        "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": "True",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
            {"type": "file", "log_file_path": f"{folder}/lineage.json", "append": True}
        ),
        "HOME": f"{folder}/user",
        "TMPDIR": f"{folder}/tmp",
        **{f"LEAK_{place.upper()}": leaked(place) for place in LEAKS},
    }
    tokens = {}
    with ExitStack() as stack:
        for name, (options, fields) in connections().items():
            sim = stack.enter_context(Simulator(**options))
            fields = {"conn_type": "unleash", "host": sim.base_url, **fields}
            environment[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps(fields)
            rows = [row for device in sim.devices for row in sim.rows(device, DAY_START, DAY_END)]
            tokens[name] = set(re.findall(r"\?token=([^'&]+)", repr(rows)))
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            ended = subprocess.run(
                module_command("secret_runs", folder / "states.json", folder / "lake", *connections()),
                env=import_root(environment),
                cwd=folder / "user",
                stdout=stdout,
                stderr=stderr,
                timeout=840,
            )
    assert ended.returncode == 0, (folder / "stderr").read_text()[-3000:]
    texts = {name.removeprefix(f"{folder}/"): text for name, text in files_under(folder).items()}
    texts["stdout"] = _TOLD_TO_MASK.sub(b"", texts["stdout"])
    return Runs(json.loads((folder / "states.json").read_text()), texts, tokens)


def test_runs_without_a_fault_succeed_and_all_others_fail(runs):
    for name, states in runs.states.items():
        if name.startswith(("nothing", "unmasked")) or name == "masked":
            assert set(states.values()) == {"success"}, (name, states)
        elif not name.startswith(("waiting", "leaking", "masked_")):
            assert set(states.values()) == {"failed"}, (name, states)
    assert runs.states["waiting"]["poke"] == "skipped"
    assert runs.states["masked_misfit"] | {"csv": "failed"} == runs.states["masked_misfit"]
    assert runs.states["masked_half_body"] | {"csv": "failed", "rows": "failed"} == runs.states["masked_half_body"]


@pytest.mark.parametrize("key", KEYS)
def test_no_run_writes_the_key_or_half_of_it_anywhere(runs, key):
    middle = len(key) // 2
    assert runs.find(key, key[:middle], key[middle:]) == []


@pytest.mark.parametrize("name", ["masked", "masked_half_body", "masked_misfit"])
def test_no_run_writes_a_masked_stream_token_anywhere(runs, name):
    tokens = runs.tokens[name]
    assert tokens
    assert runs.find(*tokens) == []


def test_the_search_finds_stream_tokens_that_are_not_masked(runs):
    found = " ".join(runs.find(*runs.tokens["unmasked"]))
    assert all(f"unmasked/account_{split}/" in found for split in (True, False))
    formats = ["csv:", "jsonl.gz unpacked:", *(["parquet unpacked:"] if HAS_PYARROW else [])]
    assert [name for name in ["home/airflow.db xcom.value", *formats] if name not in found] == []


def test_the_searched_texts_include_manifests_and_what_failed_account_tasks_have_landed(runs):
    for folder, extension in (
        ("masked/account_True/_manifest/", ".manifest"),
        ("masked/account_False/_manifest/", ".manifest"),
        ("masked_half_body/account_True/_staging/", ".landed"),
    ):
        assert any(place.startswith(f"lake/{folder}") and place.endswith(extension) for place in runs.texts), folder


def test_the_searched_texts_include_debug_logs_tracebacks_and_all_tables(runs):
    printed = b"".join(text for name, text in runs.texts.items() if name.startswith(("stdout", "home/logs")))
    for words in ("GET /v1/analytics/", "Traceback (most recent call last)", "Poll failed (1 in a row)", "(False, "):
        assert words.encode() in printed
    for error in ("AuthenticationError", "BadRequestError", "ServerError", "TransportError", "UnexpectedResponseError"):
        assert error.encode() in printed
    tables = ["rendered_task_instance_fields", "xcom", "task_instance"]
    for name in [*tables, *(["trigger"] if HAS_SDK else [])]:
        assert any(text and place.startswith(f"home/airflow.db {name}.") for place, text in runs.texts.items()), name


@pytest.mark.parametrize(("place", "text"), LEAKS.items())
def test_the_search_finds_a_secret_that_a_task_leaks(runs, place, text):
    if place == "tabled" and not HAS_PYARROW:
        pytest.skip("pyarrow is not installed")
    if place == "deferred" and not HAS_SDK:
        pytest.skip("in Airflow 2.11, dag.test() does not store triggers")
    texts = [text, "home/logs"] if text == "stdout" else [text]
    assert any(found.startswith(tuple(texts)) for found in runs.find(leaked(place)))


def test_the_search_finds_the_key_of_a_connection_that_a_task_logs(runs):
    """Airflow's masking, if it were on, would hide this key."""
    assert runs.find(LEAKED_KEY)
