"""The SQL for BigQuery, read by GoogleSQL's own parser."""

from __future__ import annotations

import pytest
from zetasql.api import Parser
from zetasql.core.exceptions import ServerError

from tests.support.recipe_sql import statements_of


def test_bigquery_sql_is_googlesql() -> None:
    for sql in statements_of("bigquery"):
        assert Parser.parse_script_static(sql)


def test_bigquery_sql_with_a_mistake_is_none() -> None:
    setup, load = statements_of("bigquery")
    for wrong in (setup.replace("PARTITION COLUMNS", "PARTITIONS"), load.replace("INSERT INTO", "INSERT ON")):
        with pytest.raises(ServerError, match="Syntax error"):
            Parser.parse_script_static(wrong)
