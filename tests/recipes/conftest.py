"""Fixtures for the recipes that need more than Airflow."""

from __future__ import annotations

from tests.support.recipe_runs import lake, run_recipe, tree_of

__all__ = ["lake", "run_recipe", "tree_of"]
