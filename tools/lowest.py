"""Print what to install to test the core with the lowest versions that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The core tests need these in any version. numpy and the file systems choose versions that fit.
TOOLS = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3", "hypothesis>=6", "duckdb>=1", "universal-pathlib"]


def pins(project: dict[str, list[str]], extras: dict[str, list[str]]) -> list[str]:
    """Return each requirement with its lowest version, without Airflow and its providers."""
    lines = [*project["dependencies"], *extras["parquet"], *extras["delta"], *extras["pandas"], *extras["polars"]]
    names = [line for line in lines if not line.startswith("apache-airflow")]
    return sorted({re.sub(r">=", "==", line) for line in names})


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print(*pins(project, project["optional-dependencies"]), *(f"{tool}" for tool in TOOLS))
