"""The Tableau recipe, read back with Tableau's own engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tableauhyperapi import Connection, HyperProcess, TableName, Telemetry

from airflow_provider_unleash.simulator import KEYS
from tests.support.expected_rows import files_in
from tests.support.sample_day import DAY_END, DAY_FOLDER, DAY_START, SILENT, STREET

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def extracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the extracts."""
    monkeypatch.setenv("UNLEASH_HYPER", f"file://{tmp_path}/hyper")
    return tmp_path / "hyper"


def test_the_tableau_extract_has_every_row_of_the_day_with_its_types(run_recipe, serve, extracts):
    for seed in (1, 2):
        sim = serve(devices=(STREET, "0042", SILENT), seed=seed)
        run = run_recipe("tableau")
        assert files_in(extracts) == [f"unleash_{DAY_FOLDER}.hyper"]
        assert run.xcoms["make_extract"] == f"file://{extracts}/unleash_{DAY_FOLDER}.hyper"
        with (
            HyperProcess(Telemetry.DO_NOT_SEND_USAGE_DATA_TO_TABLEAU, parameters={"log_config": ""}) as process,
            Connection(process.endpoint, extracts / f"unleash_{DAY_FOLDER}.hyper") as connection,
        ):
            table = connection.catalog.get_table_definition(TableName("analytics"))
            types = {column.name.unescaped: str(column.type) for column in table.columns}
            stamp = 'to_char("timestamp" AT TIME ZONE \'UTC\', \'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"\')'
            columns = ", ".join(stamp if key == "timestamp" else f'"{key}"' for key in KEYS)
            rows = connection.execute_list_query(f"SELECT {columns} FROM analytics")
        assert types == dict.fromkeys((*KEYS, "extra"), "TEXT") | {
            "count": "DOUBLE",
            "frame_number": "BIG_INT",
            "timestamp": "TIMESTAMP_TZ",
        }
        expected = [
            [record[key] for key in KEYS]
            for device in sim.devices
            for record in sim.rows(device, DAY_START, DAY_END - 1)
        ]
        assert sorted(rows, key=str) == sorted(expected, key=str)


def test_no_tableau_extract_is_written_for_a_day_without_rows(run_recipe, serve, extracts):
    serve(devices=(SILENT,))
    assert run_recipe("tableau").states["make_extract"] == "skipped"
    assert files_in(extracts) == []
