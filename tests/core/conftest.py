"""Tests of the core never import Airflow."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def no_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import airflow`` fail, even where other tests have imported it into this process."""
    monkeypatch.setitem(sys.modules, "airflow", None)
