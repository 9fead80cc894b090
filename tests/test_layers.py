"""Imports follow the layers, and type hints find the mistakes of a DAG author."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BIN = Path(sys.executable).parent


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check a copy of the package against the project's contracts."""
    return subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "airflow_provider_unleash", tmp_path / "airflow_provider_unleash", ignore=ignored)
    return tmp_path


def test_the_package_keeps_its_layers(copy):
    checked = lint_imports(copy)
    assert checked.returncode == 0, checked.stdout
    assert "5 kept, 0 broken" in checked.stdout


def test_an_import_against_the_rules_breaks_its_contract(copy):
    package = "airflow_provider_unleash"
    against = [
        ("tasks", f"{package}.hooks"),
        ("core.protocol", f"{package}.core.client"),
        ("core.formats", "airflow"),
        ("hooks", f"{package}.simulator"),
        ("simulator.data", f"{package}.exceptions"),
    ]
    for module, imported in against:
        with (copy / package / f"{module.replace('.', '/')}.py").open("a") as source:
            source.write(f"\nimport {imported}\n")
    checked = lint_imports(copy)
    assert checked.returncode != 0
    assert "0 kept, 5 broken" in checked.stdout


@pytest.mark.slow
def test_type_hints_find_mistakes_of_a_dag_author_and_none_in_the_examples(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from airflow_provider_unleash.client import UnleashClient\n"
        "from airflow_provider_unleash.operators import UnleashToObjectStorageOperator\n"
        'UnleashToObjectStorageOperator(task_id="a", device_id="b", dst="c", file_format="xml")\n'
        'UnleashToObjectStorageOperator(task_id="a", device_id="b")\n'
        'UnleashClient("key").get_records("device", "yesterday", 0)\n'
    )
    has_sdk = find_spec("airflow.sdk") is not None  # not in Airflow 2.11
    examples = [
        path
        for path in sorted((ROOT / "example_dags").glob("*.py"))
        if has_sdk or "from airflow.sdk import" not in path.read_text()
    ]
    # Outside this project and without its settings, as a user runs mypy.
    command = [BIN / "mypy", "--config-file=", "--no-incremental", *examples, wrong]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert [error.split(": ")[0] for error in errors] == ["wrong.py:3", "wrong.py:4", "wrong.py:5"], checked.stdout
