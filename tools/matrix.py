"""
Run the tests on several versions of Airflow and Python, and write docs/compatibility.md.

``make matrix`` runs this. The exit code is 0 if every test passes in every environment. Targets whose Python is not
installed are skipped, except those of Python 3.11.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "matrix"
LOWEST = "lowest"
PAGE = ROOT / "docs" / "compatibility.md"

# Runs in a test environment, and prints which optional features its Airflow has.
PROBE = """
import inspect, json, sys
from pathlib import Path
import airflow
from airflow.models import DagRun
from airflow.providers.common.compat.sdk import DAG
try:
    from airflow.sdk.definitions.context import Context
except ImportError:
    Context = object
schema = Path(airflow.__file__).parent / "provider.yaml.schema.json"
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "without_dates": "logical_date" in inspect.signature(DAG.test).parameters,
    "run_after": hasattr(DagRun, "run_after"),
    "partition_date": "partition_date" in getattr(Context, "__annotations__", ()),
    "form_from_provider_info": schema.exists() and "conn-fields" in schema.read_text(),
}))
"""

FEATURES = {
    "without_dates": "runs without dates",
    "run_after": "`run_after`",
    "partition_date": "partition dates",
    "form_from_provider_info": "form without importing the hook",
}

TEXT = """\
# Compatibility

One code base supports Airflow 2.11 to 3.3. `make matrix` runs the whole test suite on each version, including the
example DAGs as real DAG runs, and writes this table.

{table}

Features that an older Airflow does not have are absent there; everything else works:

- **Runs without dates** (manual, asset-triggered) exist since 3.0. On 2.11, every run has a data interval.
- **`run_after`** exists since 3.0. Rule 4 of the [window](windows.md) uses it as the window's end if the run has no
  dates; 2.11 uses the run's start date instead.
- **Partition dates** (rule 3) are passed to tasks since 3.3. On 3.2, a task gets only the partition key, so a partition
  run fails at once and asks for `start` and `end`.
- **Partition keys of events** (`partition_format`) need 3.3. On older versions, the parameter is an error when the DAG
  is parsed.
- **The connection form** comes from the provider info since 3.2. Older versions import the hook, and Airflow 2.11 and
  3.0 build the form with Flask AppBuilder. On 3.0, only the FAB provider includes it; without that provider, enter the
  extra fields as JSON in *Extra*.

Each Airflow is installed with the versions in `constraints/`. Without constraints, 3.0.6 and 3.2.2 fail every task with
the newest fastapi, whatever the DAG.
"""


@dataclass(frozen=True)
class Target:
    """An Airflow version on a Python version; all of them support the default, 3.11."""

    airflow: str
    python: str = "3.11"

    @property
    def name(self) -> str:
        return self.airflow + ("" if self.python == "3.11" else f"-py{self.python}")

    @property
    def environment(self) -> Path:
        return ROOT / ".matrix" / self.name

    @property
    def results(self) -> Path:
        return RESULTS / f"{self.name}.xml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+", help="e.g. 2.11.2 3.3.2@3.13 lowest")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    parser.add_argument("--jobs", type=int, help="how many at once (default: more than there are cores)")
    parser.add_argument("--page", action="store_true", help="run all tests, and write docs/compatibility.md")
    options = parser.parse_args()
    # Not a version of Airflow: the core tests, with the lowest versions that pyproject.toml allows.
    lowest = LOWEST in options.targets
    if lowest and subprocess.run(["make", "--no-print-directory", LOWEST], cwd=ROOT, check=False).returncode:
        print("──── lowest: failed")
        return 1
    targets = [Target(*name.split("@")) for name in options.targets if name != LOWEST]
    RESULTS.mkdir(parents=True, exist_ok=True)
    # More than cores, because installing waits for the network, and tests wait for servers, intervals and retries. Slow
    # tests wait less.
    jobs = (os.cpu_count() or 1) * (1 if options.page else 2) + 1
    with ThreadPoolExecutor(options.jobs or jobs) as pool:
        selected = "-m ''" if options.page else "-m 'not slow and not one_airflow' tests/airflow"
        arguments = f"{selected} {options.pytest}"
        results = list(pool.map(lambda target: run_tests(target, arguments), targets))
    ran = [target for target, has_run in zip(targets, results, strict=True) if has_run]
    skipped = [target for target in targets if target not in ran]
    print("\n".join(["", *(f"Airflow {target.name:<14} {describe(target)}" for target in ran)]))
    print(
        "\n".join(f"Airflow {target.name:<14} skipped: Python {target.python} is not installed" for target in skipped)
    )
    # Python 3.12 and 3.13 are optional, but 3.11 is required.
    if any(target.python == "3.11" for target in skipped):
        return 1
    if options.page and not skipped:
        PAGE.write_text(TEXT.format(table="\n".join(table(ran))))
    return int(any(failures(target) for target in ran))


def run_tests(target: Target, arguments: str) -> bool:
    """Run the tests, and return whether the Python they need is installed."""
    python = find_python(target.python)
    if python is None:
        print(f"──── Airflow {target.name}: Python {target.python} is not installed, skipped", flush=True)
        return False
    print(f"──── Airflow {target.name}: started", flush=True)
    target.results.unlink(missing_ok=True)
    environment = target.environment.relative_to(ROOT)
    ended = subprocess.run(
        [
            *("make", "--no-print-directory", "test", f"AIRFLOW={target.airflow}", f"ENV={environment}"),
            # A single process, because several targets run at once.
            *(f"PYTHON={python}", f"ARGS=-q -n 0 --junitxml={target.results.relative_to(ROOT)} {arguments}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # All at once, because other threads print too.
    print(f"──── Airflow {target.name}: {describe(target)}\n{ended.stdout}", flush=True)
    return True


def find_python(version: str) -> str | None:
    """Return an interpreter of this version from PATH or pyenv, or None."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(path / "bin" / "python") for path in sorted(pyenv.glob(f"{version}.*"))]
    for candidate in filter(None, candidates):
        # pyenv also puts shims for versions that are not installed on PATH.
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def read_cases(target: Target) -> list[ET.Element]:
    if not target.results.exists():
        return []
    return list(ET.parse(target.results).iter("testcase"))


def failures(target: Target) -> int:
    """Return the number of failed tests, or 1 if no test ran."""
    cases = read_cases(target)
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    return failed if cases else 1


def describe(target: Target) -> str:
    cases = read_cases(target)
    if not cases:
        return "no test ran"
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = failures(target)
    return f"{len(cases) - skipped - failed} passed, {failed} failed, {skipped} skipped"


def table(targets: list[Target]) -> list[str]:
    header = ["Airflow", "Python", "all tests", "example DAGs", *FEATURES.values()]
    lines = [header, ["---"] * len(header)]
    for target in targets:
        facts = probe(target)
        examples = [case for case in read_cases(target) if "test_examples" in case.get("classname", "")]
        succeeded = all(case.find("failure") is None and case.find("error") is None for case in examples)
        lines.append(
            [
                *(target.airflow, facts["python"], "fail" if failures(target) else "pass"),
                "succeed" if examples and succeeded else "fail",
                *("yes" if facts[name] else "no" for name in FEATURES),
            ]
        )
    return [f"| {' | '.join(cells)} |" for cells in lines]


def probe(target: Target) -> dict[str, Any]:
    command = [str(target.environment / "bin" / "python"), "-c", PROBE]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    facts: dict[str, Any] = json.loads(output.splitlines()[-1])
    return facts


if __name__ == "__main__":
    sys.exit(main())
