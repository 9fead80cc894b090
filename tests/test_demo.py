"""The demo compares its files with the simulator, notices every difference, and leaves nothing behind."""

from __future__ import annotations

import re
import socket

import duckdb
import pytest

from airflow_provider_unleash.simulator import PROFILES
from tests.support.paths import ROOT
from tools import demo

CAMERA, SILENT = "Wb8fabc31378ce07", "W7d2e90b4c6a1f58"


@pytest.fixture
def rows():
    return demo.expected_rows([CAMERA, SILENT])


def write_lake(folder, rows):
    """Write rows to the same folders as the operator, with DuckDB."""
    columns = "device, start_date, class_name, count, device_id, frame_number, model_id, session_id, source_file_name"
    with duckdb.connect() as connection:
        connection.execute(
            f"CREATE TABLE lake ({columns.replace(',', ' VARCHAR,')} VARCHAR, stamp BIGINT, extra VARCHAR)"
        )
        connection.executemany(f"INSERT INTO lake VALUES ({', '.join('?' * 11)})", rows)
        connection.execute(
            f"COPY (SELECT * EXCLUDE (count, frame_number, stamp), count::DOUBLE AS count, frame_number::BIGINT AS "
            f"frame_number, make_timestamp(stamp * 1000) AT TIME ZONE 'UTC' AS timestamp FROM lake) "
            f"TO '{folder}' (FORMAT parquet, PARTITION_BY (device, start_date))"
        )


def test_the_demo_expects_the_day_of_every_camera_but_not_its_end():
    stamps = {row[9] for row in demo.expected_rows(PROFILES)}
    day = 24 * 3600 * 1000
    assert min(stamps) >= 1768176000000
    assert max(stamps) < 1768176000000 + day
    assert len({row[0] for row in demo.expected_rows(PROFILES)}) == len(PROFILES) - 1


def test_files_with_exactly_the_expected_rows_pass(rows, tmp_path):
    write_lake(tmp_path / "lake", rows[:50])
    assert demo.compare(rows[:50], demo.read_rows(tmp_path / "lake")) == []


def test_a_missing_row_is_named(rows, tmp_path):
    write_lake(tmp_path / "lake", rows[:49])
    [difference] = demo.compare(rows[:50], demo.read_rows(tmp_path / "lake"))
    assert difference.startswith(f"  {CAMERA}: 1 missing, such as ")
    assert str(rows[49][9]) in difference


def test_every_difference_is_counted_by_camera(rows):
    assert demo.compare(rows, [*rows, rows[7]])[0].startswith(f"  {CAMERA}: 0 missing, 1 unexpected")
    assert demo.compare(rows, [*rows, (SILENT, *rows[0][1:])])[0].startswith(f"  {SILENT}: 0 missing, 1 unexpected")
    assert f"{len(rows)} missing" in demo.compare(rows, [])[0]


@pytest.mark.parametrize("column", range(11))
def test_another_value_in_any_column_fails(rows, column):
    other = [*rows[0]]
    other[column] = "other"
    assert demo.compare(rows, [tuple(other), *rows[1:]])


def test_a_failed_show_ends_with_exit_code_1_and_its_error(capsys):
    def show():
        raise demo.StageError("The files do not hold the simulator's rows")

    assert demo.run(show) == 1
    assert "The files do not hold" in capsys.readouterr().err


def test_the_simulator_has_stopped_after_a_failed_show(monkeypatch, tmp_path):
    monkeypatch.setattr("tools.stage.BUILD", tmp_path)
    stages = []

    def show():
        with demo.open_stage("show") as stage:
            stage.start_simulator()
            connect(stage).close()
            stages.append(stage)
            raise demo.StageError("This failed")

    assert demo.run(show) == 1
    assert not stages[0].home.exists()
    with pytest.raises(ConnectionRefusedError):
        connect(stages[0])


def connect(stage):
    return socket.create_connection(("127.0.0.1", int(stage.api.rpartition(":")[2])))


def test_a_second_show_in_the_same_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("tools.stage.BUILD", tmp_path)
    with demo.open_stage("show"), pytest.raises(demo.StageError, match="already running"), demo.open_stage("show"):
        pass


def test_the_settings_of_a_users_own_airflow_are_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr("tools.stage.BUILD", tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_UNLEASH_DEFAULT", "of-the-user")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql:///of-the-user")
    with demo.open_stage("show") as stage:
        assert not [value for value in stage.environ.values() if "of-the-user" in value]


def test_constraints_are_pins_and_nothing_else():
    for path in (ROOT / "constraints").glob("*.txt"):
        lines = path.read_text().splitlines()[1:]
        assert all(re.fullmatch(r"[a-z0-9._-]+==[^\s:/]+( ; [^:/]+)?", line) for line in lines), path
        assert f"apache-airflow=={path.stem.removeprefix('airflow-')}" in lines
