"""DuckDB with its Delta extension, which knows nothing of this package or of ``deltalake``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

# An environment of its own, because the extension is one of an older DuckDB.
PYTHON = ROOT / "build/delta-reader/bin/python"

_QUERY = """
import json, sys
from pathlib import Path
import duckdb, duckdb_extension_delta

[extension] = Path(duckdb_extension_delta.__path__[0]).rglob("*.duckdb_extension")
connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
connection.execute(f"LOAD '{extension}'")
connection.execute("SET TimeZone = 'UTC'")
print(json.dumps(connection.execute(sys.argv[1]).fetchall(), default=str))
"""


def delta_scan(query: str, table: Path | None = None) -> list[tuple[Any, ...]]:
    """Return the rows of a query; with a table, ``t`` is that Delta table. Dates and times are text."""
    if not PYTHON.exists():
        raise RuntimeError("DuckDB's Delta extension is not installed; make setup installs it")
    if table is not None:
        query = f"WITH t AS (FROM delta_scan('{table}')) {query}"
    done = subprocess.run([PYTHON, "-c", _QUERY, query], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)]
