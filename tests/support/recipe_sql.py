"""The SQL of recipes for warehouses that tests cannot run."""

from __future__ import annotations

from tests.support.dag_runs import load_dag
from tests.support.paths import RECIPES
from tests.support.sample_day import DAY, NEXT_DAY


def statements_of(warehouse: str) -> list[str]:
    """Return the setup and the load as the task sends them in the run of the day."""
    load = load_dag(RECIPES / f"example_unleash_{warehouse}.py").get_task("load")
    load.resolve_template_files()
    load.render_template_fields({"data_interval_start": DAY, "data_interval_end": NEXT_DAY})
    assert "{{" not in load.sql
    setup = {"snowflake": "snowflake_setup.sql", "bigquery": "bigquery_setup.sql"}[warehouse]
    return [(RECIPES / "sql" / setup).read_text(), load.sql]
