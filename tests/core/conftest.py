"""Fixtures for tests of the core, which never import Airflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from upath import UPath


@pytest.fixture(autouse=True)
def no_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``import airflow`` fail, even if other tests have imported it into this process."""
    monkeypatch.setitem(sys.modules, "airflow", None)


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Return a local folder as a path that has a file system."""
    return UPath(f"file://{tmp_path}")
