"""Importing the package adds little to what Airflow imports, and causes no warning."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import airflow_provider_unleash
from tests.support.python_processes import run_code

PACKAGE = Path(airflow_provider_unleash.__file__).parent
HAS_PAGE = find_spec("airflow.api_fastapi") is not None  # in Airflow 2.11, there is nothing to import web for
MODULES = sorted({path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} - (set() if HAS_PAGE else {"web"}))

IMPORT = """
import json, sys, warnings
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, BaseHook, BaseOperator
from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue

before, caught = set(sys.modules), []
warnings.showwarning = lambda message, category, filename, *rest: caught.append(f"{filename}: {message}")
import airflow_provider_unleash.operators, airflow_provider_unleash.sensors

added = set(sys.modules) - before
for module in MODULES:
    __import__(f"airflow_provider_unleash.{module}")
print(json.dumps({"added": sorted(added), "caught": caught}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Return the modules that importing the operators adds to Airflow, and the warnings of importing all modules."""
    return json.loads(run_code(f"MODULES = {MODULES!r}\n{IMPORT}", "-W", "always").splitlines()[-1])


def test_importing_operators_loads_no_library_that_airflow_does_not_load(imported):
    added = {name.partition(".")[0] for name in imported["added"]} - set(sys.stdlib_module_names)
    # Airflow 2.11 and 3.0 do not load all of the last three by themselves.
    assert added <= {"airflow", "airflow_provider_unleash", "msgspec", "upath"}


def test_importing_operators_does_not_load_the_http_client(imported):
    ours = {name.partition(".")[2] for name in imported["added"] if name.startswith("airflow_provider_unleash.")}
    assert ours >= {"hooks", "operators", "sensors"}
    assert not ours & {"core.client", "core.requester", "triggers"}


def test_importing_a_module_causes_no_warning(imported):
    assert [text for text in imported["caught"] if text.startswith(str(PACKAGE))] == []
