"""The core of the package does not need Airflow, and the documented names exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

import airflow_provider_unleash
from airflow_provider_unleash import exceptions
from tests.support.paths import ROOT, SAMPLES, TESTS
from tests.support.python_processes import BLOCK, run_code

PACKAGE = Path(airflow_provider_unleash.__file__).parent
CORE = [
    *(f"core.{path.stem}" for path in PACKAGE.glob("core/*.py")),
    "client",
    "coverage",
    "exceptions",
    "simulator",
    "window",
]


def test_the_core_is_imported_and_works_without_airflow():
    code = BLOCK.format(blocked=["airflow"]) + (
        "".join(f"import airflow_provider_unleash.{module}\n" for module in CORE)
        + "from airflow_provider_unleash.client import UnleashClient\n"
        "from airflow_provider_unleash.simulator import Simulator\n"
        "with Simulator() as sim, UnleashClient(sim.api_key, sim.base_url) as client:\n"
        "    print(len(client.list_devices()), client.get_records(sim.devices[0], 10**12, 10**12 + 10**7) != [])\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'airflow']\n"
    )
    assert run_code(code) == "6 True\n"


def test_the_test_above_does_block_airflow():
    code = BLOCK.format(blocked=["airflow"]) + "import airflow_provider_unleash.hooks"
    with pytest.raises(AssertionError, match="airflow is blocked"):
        run_code(code)


def test_the_core_without_pyarrow_fails_for_parquet_only():
    code = BLOCK.format(blocked=["pyarrow"]) + (
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from tempfile import TemporaryDirectory\n"
        "from airflow_provider_unleash.core.formats import Format\n"
        "with TemporaryDirectory() as folder:\n"
        "    path = SimpleNamespace(protocol='file', path=f'{folder}/x.jsonl')\n"
        "    with Format('jsonl').open(path):\n"
        "        pass\n"
        "    print(Path(path.path).exists())\n"
    )
    assert run_code(code) == "True\n"


DOCUMENTED = {
    "assets": "asset_of",
    "client": "UnleashClient",
    "coverage": "read_coverage",
    "exceptions": "UnleashError TransientError PermanentError",
    "hooks": "UnleashHook",
    "operators": "UnleashToObjectStorageOperator UnleashGetAnalyticsOperator UnleashListDevicesOperator "
    "UnleashListSessionsOperator UnleashPlanWindowsOperator",
    "sensors": "UnleashNewSessionsSensor",
    "simulator": "Simulator Fault",
    "window": "plan_windows",
}


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_documented_imports_work(module):
    imported = importlib.import_module(f"airflow_provider_unleash.{module}")
    assert all(hasattr(imported, name) for name in DOCUMENTED[module].split())


def test_the_version_is_written_once():
    version = re.escape(airflow_provider_unleash.__version__)
    places = [
        path.name
        for path in [*PACKAGE.glob("*.py"), ROOT / "pyproject.toml"]
        if re.search(rf"""["']{version}["']""", path.read_text())
    ]
    assert places == ["__init__.py"]


def test_the_distribution_declares_a_provider_and_its_plugin_and_nothing_else():
    entry_points = distribution("airflow-provider-unleash").entry_points
    assert {(entry.group, entry.name) for entry in entry_points} == {
        ("apache_airflow_provider", "provider_info"),
        ("airflow.plugins", "unleash"),
    }


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    tree = re.findall(r"^(.*?)(\w+Error)", exceptions.__doc__, re.MULTILINE)
    documented, parents = {}, {}
    for indent, name in tree:
        documented[name] = parents.get(len(indent) - 4)
        parents[len(indent)] = name
    classes = {name: value.__bases__[0].__name__ for name, value in vars(exceptions).items() if name.endswith("Error")}
    assert {name: parent or "Exception" for name, parent in documented.items()} == classes


@pytest.mark.parametrize("name", [name for name in vars(exceptions) if name.endswith("Error")])
def test_every_error_survives_a_pickle(name):
    import pickle

    error = getattr(exceptions, name)("message", status=418, url="https://api.unleashlive.com/v1")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_every_module_says_in_one_sentence_what_it_is(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_no_test_replaces_the_api_by_a_mock():
    for path in TESTS.rglob("*.py"):
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        }
        assert not {"unittest.mock", "mock", "MagicMock"} & imported, path.name


def test_the_samples_of_the_api_are_json():
    for path in SAMPLES.iterdir():
        json.loads(path.read_text())
