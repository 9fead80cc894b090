"""BigQuery's SQL, parsed by GoogleSQL's own parser."""

from __future__ import annotations

import pytest
from zetasql.api import Parser
from zetasql.core.exceptions import ServerError

from tests.support.recipe_sql import statements_of


def test_bigquery_sql_is_valid_googlesql():
    for sql in statements_of("bigquery"):
        assert Parser.parse_script_static(sql)


def test_a_mistake_in_bigquery_sql_is_noticed():
    setup, load = statements_of("bigquery")
    for wrong in (setup.replace("PARTITION COLUMNS", "PARTITIONS"), load.replace("INSERT INTO", "INSERT ON")):
        with pytest.raises(ServerError, match="Syntax error"):
            Parser.parse_script_static(wrong)
