"""The wheel and the sdist contain what they should and nothing else, and tools/dist.py finds faults."""

from __future__ import annotations

import importlib
import re
import shutil
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from trove_classifiers import classifiers

import airflow_provider_unleash
from tests.support.paths import ROOT
from tools import dist, lowest

in_a_clone = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the files are compared with those of a clone")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return dist.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def metadata(built: tuple[Path, Path]) -> Message:
    return dist.read_metadata(built[0])


@in_a_clone
def test_the_wheel_has_only_the_package_and_its_metadata(built):
    assert dist.check_wheel(built[0], dist.list_tree()) == []


@in_a_clone
def test_the_sdist_has_the_files_of_the_clone(built):
    assert dist.check_sdist(built[1], dist.list_tree()) == []


def test_the_wheel_is_typed_and_contains_the_license(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert "airflow_provider_unleash/py.typed" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


@in_a_clone
@pytest.mark.parametrize(
    "name",
    [
        "airflow/__init__.py",
        "tests/core/test_client.py",
        "example_dags/example_unleash_daily.py",
        "airflow_provider_unleash/__pycache__/client.cpython-311.pyc",
        "airflow_provider_unleash/.DS_Store",
    ],
)
def test_an_unexpected_file_in_a_wheel_is_found(built, tmp_path, name):
    wheel = Path(shutil.copy(built[0], tmp_path))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, "")
    assert dist.check_wheel(wheel, dist.list_tree()) == [f"{wheel.name} has an unexpected file {name}"]


@in_a_clone
@pytest.mark.parametrize("name", ["airflow_provider_unleash/py.typed", "airflow_provider_unleash/client.py"])
def test_a_file_that_is_missing_from_a_wheel_is_found(built, tmp_path, name):
    wheel = tmp_path / built[0].name
    with zipfile.ZipFile(built[0]) as whole, zipfile.ZipFile(wheel, "w") as archive:
        for other in set(whole.namelist()) - {name}:
            archive.writestr(other, whole.read(other))
    assert dist.check_wheel(wheel, dist.list_tree()) == [f"{wheel.name} lacks {name}"]


@in_a_clone
def test_a_file_that_git_ignores_is_found_in_an_sdist(built, tmp_path):
    sdist = tmp_path / built[1].name
    with tarfile.open(built[1]) as whole:
        whole.extractall(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (folder / "build").mkdir()
    (folder / "build" / "x").touch()
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(folder, folder.name)
    assert dist.check_sdist(sdist, dist.list_tree()) == [f"{sdist.name} has an unexpected file {folder.name}/build/x"]


def test_each_extra_installs_its_libraries_without_upper_bounds(metadata):
    needed = metadata.get_all("Requires-Dist", [])
    extras = {(line.partition("extra == ")[2].strip("'\""), re.split(r"[\[>=<; ]", line)[0]) for line in needed}
    assert {(extra, name) for extra, name in extras if extra} == {
        ("parquet", "pyarrow"),
        ("delta", "deltalake"),
        ("delta", "pyarrow"),
        ("pandas", "pandas"),
        ("pandas", "pyarrow"),
        ("polars", "polars"),
        ("polars", "pyarrow"),
        ("s3", "apache-airflow-providers-amazon"),
        ("s3", "aiobotocore"),
        ("s3", "s3fs"),
        ("gcs", "apache-airflow-providers-google"),
        ("azure", "apache-airflow-providers-microsoft-azure"),
        ("openlineage", "apache-airflow-providers-openlineage"),
    }
    assert not any("<" in line or "==" in line.partition(";")[0] for line in needed)  # no upper bounds


def test_the_lowest_versions_are_those_of_the_metadata_without_airflow():
    pins = lowest.pins(
        {"dependencies": ["apache-airflow>=2.11", "a>=1"]},
        {"parquet": ["p>=2"], "delta": [], "pandas": ["p>=2"], "polars": []},
    )
    assert pins == ["a==1", "p==2"]


def test_every_extra_is_tested(metadata):
    assert set(metadata.get_all("Provides-Extra", [])) == set(dist.EXTRAS)


def test_every_classifier_exists(metadata):
    ours = metadata.get_all("Classifier", [])
    assert {"Framework :: Apache Airflow", "Framework :: Apache Airflow :: Provider"} <= set(ours) <= classifiers


def test_the_metadata_has_version_license_and_readme(metadata):
    assert metadata["Version"] == airflow_provider_unleash.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def _is_of(module: ModuleType, found: object) -> bool:
    return isinstance(found, type) and found.__module__ == module.__name__


@in_a_clone
def test_the_registry_file_lists_every_class_that_a_dag_uses():
    listed = yaml.safe_load((ROOT / ".astro-registry.yaml").read_text())
    for kind in ("hooks", "operators", "sensors", "triggers"):
        module = importlib.import_module(f"airflow_provider_unleash.{kind}")
        names = getattr(module, "__all__", [name for name, found in vars(module).items() if _is_of(module, found)])
        ours = {f"airflow_provider_unleash.{kind}.{name}" for name in names if name.startswith("Unleash")}
        assert sorted(entry["module"] for entry in listed[kind]) == sorted(ours)
    assert listed["package-name"] == dist.NAME


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """Return the answers of an Airflow that shows everything."""
    hook = "airflow_provider_unleash.hooks.UnleashHook"
    version = airflow_provider_unleash.__version__
    return {
        "package": str(tmp_path / "env" / "airflow_provider_unleash"),
        "warnings": [],
        "form": True,
        "answers": {
            "list": [{"package_name": dist.NAME, "version": version}],
            "get": [{"package-name": dist.NAME, "versions": [version], "hook-class-name": hook}],
            "hooks": [{"connection_type": "unleash", "class": hook}],
            "behaviours": [{"field_behaviours": "unleash"}],
            "widgets": [{"connection_parameter_name": "extra__unleash__auth"}],
            "triggers": [{"class": "airflow_provider_unleash.triggers"}],
        },
    }


def test_an_airflow_that_shows_everything_has_no_faults(found, built, tmp_path):
    assert dist.find_faults(found, built[0], tmp_path) == []


@pytest.mark.parametrize("command", [words[0] for words in dist.COMMANDS])
def test_a_command_that_does_not_show_the_provider_is_a_fault(found, built, tmp_path, command):
    found["answers"][command] = []
    faults = dist.find_faults(found, built[0], tmp_path)
    assert faults == [f"`airflow providers {command}` does not show the provider"]


def test_an_airflow_without_forms_need_not_show_the_form(found, built, tmp_path):
    found["form"] = False
    found["answers"] |= {"behaviours": [], "widgets": []}
    assert dist.find_faults(found, built[0], tmp_path) == []


def test_a_warning_and_a_package_from_elsewhere_are_faults(found, built, tmp_path):
    found |= {"package": str(ROOT), "warnings": ["old"]}
    assert dist.find_faults(found, built[0], tmp_path) == [f"imported from {ROOT}", "warns at import: old"]


def test_the_error_of_a_failed_installer_is_its_last_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho no venv here >&2\nexit 1\n")
    python.chmod(0o755)
    assert dist.install(["x.whl"], tmp_path / "env", str(python), uv="") == "no venv here"
