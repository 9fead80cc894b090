"""Fixtures that run the DAGs of examples and recipes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_provider_unleash.simulator import Simulator
from tests.support.recipe_runs import lake, run_recipe, tree_of
from tests.support.sample_day import DAY_START

__all__ = ["lake", "run_recipe", "tree_of"]


@pytest.fixture
def sim(serve: Callable[..., Simulator]) -> Simulator:
    """Serve the default devices, with the sessions since the sample day."""
    return serve(sessions_from=DAY_START)
