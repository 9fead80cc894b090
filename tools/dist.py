"""
Build wheel and sdist, check their contents and metadata, install the wheel, and check that Airflow shows the provider.

``make dist`` runs this. The exit code is 0 if no fault is found. Installing needs the network; building does not,
because hatchling is installed in this environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from tools.matrix import Target, find_python

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
NAME = "airflow-provider-unleash"
PACKAGE = "airflow_provider_unleash"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

# Files that are only in the repository. The Astronomer registry reads its file from there.
NOT_SHIPPED = (".ci/", ".astro-registry.yaml")

# The modules that each extra provides.
EXTRAS = {
    "parquet": ["pyarrow.parquet"],
    "s3": ["s3fs", "airflow.providers.amazon.aws.fs.s3"],
    "gcs": ["gcsfs", "airflow.providers.google.cloud.fs.gcs"],
    "azure": ["adlfs", "airflow.providers.microsoft.azure.fs.adls"],
    "delta": ["deltalake", "pyarrow.dataset"],
    "pandas": ["pandas", "pyarrow"],
    "polars": ["polars", "pyarrow"],
    "openlineage": ["airflow.providers.openlineage.extractors", "openlineage.client"],
}

# constraints/ holds the newest versions, but Google's provider needs older ones (tenacity, googleapis-common-protos).
UNCONSTRAINED = {"gcs"}

# What a user without constraints installs, and how long plain pip may take to resolve it.
PLAIN_EXTRAS, PLAIN_SECONDS = "parquet,s3", 180

# Runs in an environment with only Airflow and the wheel. One process for all commands, because each takes seconds to
# start.
PROBE = """
import contextlib, io, json, sys, warnings
from importlib.util import find_spec
from pathlib import Path
import airflow
from airflow.cli import cli_parser
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator

warnings.simplefilter("always")
caught = []
warnings.showwarning = lambda message, category, filename, *rest: caught.append([filename, str(message)])
import PACKAGE
package = Path(PACKAGE.__file__).parent
for path in sorted(package.glob("**/*.py")):
    name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    __import__(name.removesuffix(".__init__"))
ours = [text for filename, text in caught if Path(filename).is_relative_to(package)]
warnings.simplefilter("ignore")

def ask(*words):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        arguments = parser.parse_args(["providers", *words, "--output", "json"])
        arguments.func(arguments)
    return json.loads(printed.getvalue())

parser = cli_parser.get_parser()
answers = {words[0]: ask(*words) for words in COMMANDS}
# Without wtforms, Airflow before 3.2 lists no connection forms on the command line.
form = find_spec("wtforms") is not None or tuple(map(int, airflow.__version__.split(".")[:2])) >= (3, 2)
found = {"package": str(package), "warnings": ours, "form": form, "answers": answers}
sys.__stdout__.write("\\n" + json.dumps(found) + "\\n")
"""
COMMANDS = [["list"], ["get", NAME, "--full"], ["hooks"], ["behaviours"], ["widgets"], ["triggers"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+", help="Airflow versions to install it with, e.g. 2.11.2 3.3.2@3.13")
    parser.add_argument("--extras", action="store_true", help="also install each extra with each of them")
    parser.add_argument("--uv", default="", help="path of uv, which installs faster than pip")
    options = parser.parse_args()
    wheel, sdist = build(DIST)
    print(f"Built {wheel.relative_to(ROOT)} and {sdist.relative_to(ROOT)}", flush=True)
    faults = [*check_wheel(wheel, list_tree()), *check_sdist(sdist, list_tree())]
    check = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", str(wheel), str(sdist)]
    if subprocess.run(check, check=False).returncode:
        faults.append("twine rejects the distributions")
    targets = [Target(*name.split("@")) if "@" in name else Target(name, HERE) for name in options.targets]
    for target in targets:
        for extra in ["", *(EXTRAS if options.extras else [])]:
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="dist-") as folder:
                found = try_extra(wheel, extra, target, Path(folder), options.uv)
            what = f"Airflow {target.airflow} on Python {target.python}" + (f" with [{extra}]" if extra else "")
            print(f"{what}: {'; '.join(found) or 'ok'}, {time.monotonic() - began:.0f} s", flush=True)
            faults += [f"{what}: {fault}" for fault in found]
    for target in targets:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="dist-") as folder:
            fault = resolve_plainly(wheel, target, Path(folder))
        what = f"Airflow {target.airflow} with [{PLAIN_EXTRAS}], resolved by plain pip without constraints"
        print(f"{what}: {fault or 'ok'}, {time.monotonic() - began:.0f} s", flush=True)
        faults += [f"{what}: {fault}"] if fault else []
    print("\n".join(["", *faults]) if faults else "\nNo faults found.")
    return int(bool(faults))


# ---- build -------------------------------------------------------------------------------------


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist from the repository, and the wheel from the sdist, as pip does without a wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{PACKAGE}-*"):
        old.unlink()
    _hatchling("sdist", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked)
        _hatchling("wheel", folder, Path(unpacked) / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    return wheel, sdist


def _hatchling(kind: str, folder: Path, source: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder.resolve())]
    subprocess.run(command, cwd=source, stdout=subprocess.DEVNULL, check=True)


# ---- contents ----------------------------------------------------------------------------------


def list_tree() -> set[str]:
    """Return the files of the repository, including new ones, without those that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (ROOT / name).exists()}


def check_wheel(wheel: Path, tree: set[str]) -> list[str]:
    """Return the missing and unexpected files of a wheel, which holds only the package and its metadata."""
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    files = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    expected = {name for name in tree if name.startswith(f"{PACKAGE}/")} | {f"{info}/{file}" for file in files}
    return list(compare(wheel.name, set(zipfile.ZipFile(wheel).namelist()), expected))


def check_sdist(sdist: Path, tree: set[str]) -> list[str]:
    """Return the missing and unexpected files of an sdist, which holds the repository, including the tests."""
    folder = sdist.name.removesuffix(".tar.gz")
    expected = {f"{folder}/{name}" for name in tree if not name.startswith(NOT_SHIPPED)} | {f"{folder}/PKG-INFO"}
    with tarfile.open(sdist) as archive:
        return list(compare(sdist.name, {member.name for member in archive if member.isfile()}, expected))


def compare(where: str, names: set[str], expected: set[str]) -> Iterator[str]:
    yield from (f"{where} lacks {name}" for name in sorted(expected - names))
    yield from (f"{where} has an unexpected file {name}" for name in sorted(names - expected))


def read_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


# ---- an empty environment ----------------------------------------------------------------------


def try_extra(wheel: Path, extra: str, target: Target, folder: Path, uv: str) -> list[str]:
    """Install into an empty environment, and return the faults."""
    python = sys.executable if target.python == HERE else find_python(target.python)
    if python is None:
        return [f"Python {target.python} is not installed"]
    requirements = [f"{wheel}[{extra}]" if extra else str(wheel), f"apache-airflow=={target.airflow}"]
    if extra not in UNCONSTRAINED:
        requirements += ["--constraint", str(ROOT / "constraints" / f"airflow-{target.airflow}.txt")]
    installed = install(requirements, folder / "env", python, uv)
    if installed:
        return [f"not installed: {installed}"]
    if extra:
        code = "".join(f"import {module}\n" for module in EXTRAS[extra])
    else:
        code = PROBE.replace("PACKAGE", PACKAGE).replace("COMMANDS", repr(COMMANDS))
    done = run_python(code, folder)
    if done.returncode:
        return [(done.stderr.strip().splitlines() or ["no error message"])[-1]]
    return [] if extra else find_faults(json.loads(done.stdout.splitlines()[-1]), wheel, folder)


def resolve_plainly(wheel: Path, target: Target, folder: Path) -> str:
    """Return the fault of resolving the wheel with pip in a new environment, without constraints."""
    python = sys.executable if target.python == HERE else find_python(target.python)
    if python is None:
        return f"Python {target.python} is not installed"
    subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)
    command = [str(folder / "env" / "bin" / "python"), "-m", "pip", "install", "--dry-run", "-qq", "--no-cache-dir"]
    command += [f"{wheel}[{PLAIN_EXTRAS}]", f"apache-airflow=={target.airflow}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PLAIN_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not resolved after {PLAIN_SECONDS} s"
    return (done.stderr.strip().splitlines() or ["no error message"])[-1] if done.returncode else ""


def install(requirements: list[str], environment: Path, python: str, uv: str) -> str:
    """Return the last line of the installer's error, or an empty string."""
    make = [uv, "venv", "--quiet", "--python", python] if uv else [python, "-m", "venv"]
    inside = str(environment / "bin" / "python")
    pip = [uv, "pip", "install", "--quiet", "--python", inside] if uv else [inside, "-m", "pip", "install", "-qq"]
    for command in ([*make, str(environment)], [*pip, *requirements]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no error message"])[-1].strip()
    return ""


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in the new environment, isolated from settings and from the modules of this repository."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    environ |= {"AIRFLOW_HOME": str(folder / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [str(folder / "env" / "bin" / "python"), "-I", "-c", code]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def find_faults(found: dict[str, Any], wheel: Path, folder: Path) -> list[str]:
    """Return what Airflow does not show of the provider, and the warnings of this package."""
    answers = found["answers"]
    version = wheel.name.split("-")[1]
    shows = {
        "list": (NAME, version) in {(row["package_name"], row["version"]) for row in answers["list"]},
        "get": version in str(answers["get"]) and f"{PACKAGE}.hooks.UnleashHook" in str(answers["get"]),
        "hooks": ("unleash", f"{PACKAGE}.hooks.UnleashHook")
        in {(row["connection_type"], row["class"]) for row in answers["hooks"]},
        "behaviours": {"field_behaviours": "unleash"} in answers["behaviours"],
        "widgets": "extra__unleash__" in str(answers["widgets"]),
        "triggers": f"{PACKAGE}.triggers" in str(answers["triggers"]),
    }
    if not found["form"]:
        del shows["behaviours"], shows["widgets"]
    faults = [
        f"`airflow providers {command}` does not show the provider" for command, shown in shows.items() if not shown
    ]
    if not Path(found["package"]).is_relative_to(folder):
        faults.append(f"imported from {found['package']}")
    return faults + [f"warns at import: {text}" for text in found["warnings"]]


if __name__ == "__main__":
    sys.exit(main())
