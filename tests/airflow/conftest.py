"""Fixtures that run the DAGs of examples and recipes."""

from __future__ import annotations

from tests.support.recipe_runs import lake, run_recipe, tree_of

__all__ = ["lake", "run_recipe", "tree_of"]
