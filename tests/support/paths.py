"""Folders of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SAMPLES = TESTS / "samples"
EXAMPLES = ROOT / "example_dags"
RECIPES = EXAMPLES / "recipes"
