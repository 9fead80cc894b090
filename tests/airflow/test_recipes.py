"""Every recipe runs and does what its page says; the tests of Spark, Tableau and Salesforce are in tests/recipes/."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import sqlglot
from airflow.providers.common.compat.sdk import BaseHook, ObjectStoragePath
from sqlfluff.core import FluffConfig, Linter

from airflow_provider_unleash.core.columns import COLUMNS
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Simulator
from tests.support.answering import answering
from tests.support.dag_runs import run_dag
from tests.support.expected_rows import contents_in, daily_means, files_in, rows_by_device
from tests.support.paths import RECIPES, ROOT, TESTS
from tests.support.recipe_sql import statements_of
from tests.support.sample_day import (
    DAY_END,
    DAY_FOLDER,
    DAY_MS,
    DAY_START,
    HOUR_MS,
    NEXT_DAY,
    SILENT,
    STREET,
    UTC,
    make_context,
)
from tools.docs_snippets import read_blocks, read_commands
from tools.s3_lake import S3Lake, connection_to
from tools.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS, serve_s3

pytestmark = pytest.mark.usefixtures("quick_retries")

DAGS = sorted(RECIPES.glob("example_unleash_*.py"))
PAGES_FOLDER = ROOT / "docs" / "recipes"
PAGES = sorted(PAGES_FOLDER.glob("*.md"))
HAS_BACKFILLS = find_spec("airflow.sdk") is not None
NAME = "20260112T000000Z_20260113T000000Z.parquet"


# ---- all recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.stem)
def test_every_recipe_has_its_own_test(path):
    tests = [Path(__file__), *(TESTS / "recipes").glob("test_*.py")]
    name = path.stem.removeprefix("example_unleash_")
    if name in ("snowflake", "bigquery"):  # only their SQL is checked, as their pages say
        assert f'"{name}"' in Path(__file__).read_text()
    else:
        assert any(f'run_recipe("{name}"' in test.read_text() for test in tests)


# ---- alert on a silent camera ------------------------------------------------------------------


@pytest.fixture
def posted(connect: Callable[..., None]) -> Iterator[list[bytes]]:
    """Yield the bodies that are posted to the alert webhook."""
    posted: list[bytes] = []
    with answering(b"", posted) as url:
        connect(conn_id="unleash_alerts", conn_type="http", host=url, password="/hook")
        yield posted


@pytest.fixture
def callbacks_get_exceptions(airflow_home: Path, tmp_path: Path) -> bool:
    """Return whether dag.test() passes the exception to callbacks, which Airflow 3.0 and 3.1 do not do."""
    run_dag(
        airflow_home,
        f"""
        def note(context):
            if "exception" in context:
                open({str(tmp_path / "called")!r}, "w").close()

        @task(on_failure_callback=note)
        def fail():
            raise ValueError

        fail()
        """,
    )
    return (tmp_path / "called").exists()


@pytest.mark.slow
def test_silent_camera_check_fails_once_after_all_other_cameras_landed(run_recipe, sim, tree_of, posted):
    run = run_recipe("silent_camera", state="failed")
    assert (run.states["check_cameras"], run.tries["check_cameras"]) == ("failed", 1)
    rows = rows_by_device(sim, DAY_START, DAY_END - 1)
    assert files_in(tree_of("silent_camera")) == sorted(
        f"device={device}/start_date={DAY_FOLDER}/{NAME}" for device in rows if rows[device]
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(STREET, SILENT), (SILENT,)], ids=["one of two", "the only one"])
def test_silent_camera_is_named_in_the_posted_message(run_recipe, serve, posted, callbacks_get_exceptions, devices):
    serve(devices=devices)
    run_recipe("silent_camera", state="failed")
    error = f"No rows from 1 of {len(devices)} cameras: {SILENT}"
    text = error if callbacks_get_exceptions else "see the task log"
    assert [json.loads(body) for body in posted] == [{"text": f"example_unleash_silent_camera: {text}"}]


@pytest.mark.slow
def test_silent_camera_posts_nothing_if_all_cameras_have_rows(run_recipe, serve, posted):
    serve(devices=(STREET,))
    assert run_recipe("silent_camera").states["check_cameras"] == "success"
    assert posted == []


# ---- hash or mask ------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the shared copy."""
    monkeypatch.setenv("UNLEASH_SHARED", f"file://{tmp_path}/shared")
    return tmp_path / "shared"


def pseudonym(key: str, device: str) -> str:
    return hmac.new(key.encode(), device.encode(), hashlib.sha256).hexdigest()[:32]


@pytest.mark.slow
def test_privacy_shares_every_row_and_nothing_that_identifies_the_device(run_recipe, sim, tree_of, shared, connect):
    connect(conn_id="unleash_pseudonyms", conn_type="generic", password="a key")
    run = run_recipe("privacy")
    expected = {device: rows for device, rows in rows_by_device(sim, DAY_START, DAY_END - 1).items() if rows}
    assert files_in(shared) == sorted(
        f"camera={pseudonym('a key', d)}/start_date={DAY_FOLDER}/{NAME}" for d in expected
    )
    secrets = {*sim.devices, *sim.sessions(), "token", ".mp4"}
    for device, rows in expected.items():
        folder = f"camera={pseudonym('a key', device)}/start_date={DAY_FOLDER}"
        table = pq.ParquetFile(shared / folder / NAME).read()
        assert table.column_names == ["timestamp", "class_name", "count", "frame_number", "model_id", "camera_id"]
        assert set(table.column("camera_id").to_pylist()) == {pseudonym("a key", device)}
        original = sim.rows(device, DAY_START, DAY_END - 1)
        assert len(original) == rows
        for name in ("class_name", "count", "frame_number", "model_id"):
            assert table.column(name).to_pylist() == [record[name] for record in original]
        text = f"{table.to_pylist()} {table.schema.metadata} {folder}"
        assert [secret for secret in secrets if secret in text] == []
        # The source contains them, so the search above would have found them.
        original_file = tree_of("privacy") / f"device={device}" / f"start_date={DAY_FOLDER}" / NAME
        source = f"{pq.ParquetFile(original_file).read().to_pylist()}"
        assert device in source
        assert [word for word in ("token", ".mp4") if word in source]
    assert sum(
        sum(run.xcoms["share", index].values()) for index in range(len(sim.devices)) if ("share", index) in run.xcoms
    ) == sum(expected.values())


@pytest.mark.slow
def test_privacy_pseudonyms_stay_the_same_over_days_and_change_with_the_key(run_recipe, serve, lake, shared, connect):
    serve(devices=(STREET,))
    connect(conn_id="unleash_pseudonyms", conn_type="generic", password="a key")
    run_recipe("privacy")
    before = (shared / files_in(shared)[0]).read_bytes()
    run_recipe("privacy")
    assert len(files_in(shared)) == 1
    assert (shared / files_in(shared)[0]).read_bytes() == before
    run_recipe("privacy", moment=NEXT_DAY + timedelta(days=1))
    assert len(files_in(shared)) == 2
    assert {name.split("/")[0] for name in files_in(shared)} == {f"camera={pseudonym('a key', STREET)}"}
    connect(conn_id="unleash_pseudonyms", conn_type="generic", password="another key")
    run_recipe("privacy")
    assert {name.split("/")[0] for name in files_in(shared)} == {
        f"camera={pseudonym(key, STREET)}" for key in ("a key", "another key")
    }


@pytest.mark.slow
def test_privacy_shares_nothing_without_a_key(run_recipe, serve, lake, shared, connect):
    serve(devices=(STREET,))
    connect(conn_id="unleash_pseudonyms", conn_type="generic")
    run_recipe("privacy", state="failed")
    assert files_in(shared) == []


# ---- compact -----------------------------------------------------------------------------------


@pytest.fixture
def compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the compacted files."""
    monkeypatch.setenv("UNLEASH_COMPACT", f"file://{tmp_path}/compact")
    return tmp_path / "compact"


def land_hours(dst: str, devices: Iterable[str], hours: Iterable[int]) -> None:
    """Extract hours of the day into a tree of hourly windows, as an hourly DAG does."""
    for device, hour in product(devices, hours):
        start = DAY_START + hour * HOUR_MS
        operator = UnleashToObjectStorageOperator(
            task_id="t", device_id=device, dst=dst, file_format="parquet", start=start, end=start + HOUR_MS
        )
        operator.execute(make_context())


def rows_of_compacted(files: str) -> Counter[tuple[Any, ...]]:
    """Return the rows of compacted files with their device, in the form that ``rows_of_simulator`` returns."""
    columns = ", ".join(name for name in COLUMNS if name != "timestamp")
    stamp = "strftime(timestamp AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%gZ')"
    with duckdb.connect() as connection:
        return Counter(connection.execute(f"SELECT device, {stamp}, {columns} FROM '{files}'").fetchall())


def rows_of_simulator(sim: Simulator, start_ms: int, end_ms: int) -> Counter[tuple[Any, ...]]:
    return Counter(
        (device, record["timestamp"], *(record[name] for name in COLUMNS if name != "timestamp"))
        for device in sim.devices
        for record in sim.rows(device, start_ms, end_ms - 1)
    )


@pytest.mark.slow
def test_compact_keeps_every_row_once_and_rewrites_only_what_was_replaced(run_recipe, serve, lake, compacted):
    devices = (STREET, SILENT, "0042", "a street é=1")
    sim = serve(devices=devices)
    land_hours(f"file://{lake}", devices, range(24))
    before = contents_in(lake)
    assert len(before) == 24 * len(devices)
    run = run_recipe("compact")
    expected = rows_of_simulator(sim, DAY_START, DAY_END)
    assert rows_of_compacted(f"{compacted}/**/*.parquet") == expected
    assert expected.total() == sum(summary["rows"] for summary in run.xcoms.values())
    assert sum(summary["files"] for summary in run.xcoms.values()) == len(before)
    made = contents_in(compacted)
    assert 1 < len(made) <= 4
    assert {name.split("/")[0] for name in made} == {f"start_date={DAY_FOLDER}"}
    assert contents_in(lake) == before

    again = run_recipe("compact")
    assert again.xcoms == {}
    assert set(again.states.values()) == {"skipped"}
    assert contents_in(compacted) == made

    # A day later, because the DAG looks back several days for late data. Only one source has changed.
    late = serve(devices=devices, seed=2)
    land_hours(f"file://{lake}", [STREET], [7])
    run = run_recipe("compact", moment=NEXT_DAY + timedelta(days=1))
    assert len(run.xcoms) == 1
    hour = (DAY_START + 7 * HOUR_MS, DAY_START + 8 * HOUR_MS)
    old, new = (Counter({k: n for k, n in rows_of_simulator(s, *hour).items() if k[0] == STREET}) for s in (sim, late))
    assert old != new
    assert rows_of_compacted(f"{compacted}/**/*.parquet") == expected - old + new
    assert sum((compacted / name).read_bytes() != body for name, body in made.items()) == 1
    assert files_in(compacted) == sorted(made)


@pytest.mark.slow
def test_compact_keeps_the_order_of_the_api(run_recipe, serve, lake, compacted):
    sim = serve(devices=(STREET,))
    land_hours(f"file://{lake}", [STREET], range(24))
    run_recipe("compact")
    [name] = files_in(compacted)
    frames = [record["frame_number"] for record in sim.rows(STREET, DAY_START, DAY_END - 1)]
    assert pq.ParquetFile(compacted / name).read().column("frame_number").to_pylist() == frames


@pytest.mark.slow
def test_compact_reads_and_writes_an_s3_store_through_airflows_connection(
    run_recipe, serve, connect, monkeypatch, tmp_path
):
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    monkeypatch.setenv("UNLEASH_LAKE", "s3://aws_compact@lake/unleash")
    monkeypatch.setenv("UNLEASH_COMPACT", "s3://aws_compact@lake/compact")
    sim = serve(devices=(STREET, "0042"))
    with SeaweedFS() as store:
        lake = S3Lake(store, prefix="compact/")
        connect(conn_id="aws_compact", **connection_to(store.url))
        land_hours("s3://aws_compact@lake/unleash", sim.devices, range(6, 9))
        run_recipe("compact")
        names = lake.names()
        assert {name.split("/")[0] for name in names} == {f"start_date={DAY_FOLDER}"}
        assert set(run_recipe("compact").states.values()) == {"skipped"}
        assert lake.names() == names
        for number, name in enumerate(names):
            (tmp_path / f"{number}.parquet").write_bytes(lake.read(name) or b"")
    expected = rows_of_simulator(sim, DAY_START + 6 * HOUR_MS, DAY_START + 9 * HOUR_MS)
    assert rows_of_compacted(f"{tmp_path}/*.parquet") == expected


# ---- backfill a year ---------------------------------------------------------------------------


@pytest.mark.slow
def test_past_year_lands_past_days_and_a_rerun_replaces_only_its_own_day(run_recipe, serve, tree_of):
    lake = tree_of("past_year")
    serve(devices=(STREET, SILENT), seed=1)
    year_ago = [NEXT_DAY - timedelta(days=days) for days in (366, 365, 364)]
    for moment in year_ago:
        run_recipe("past_year", moment=moment)
    days = [f"start_date={moment - timedelta(days=1):%Y-%m-%d}" for moment in year_ago]
    assert [name.split("/")[1] for name in files_in(lake)] == days
    before = contents_in(lake)
    serve(devices=(STREET, SILENT), seed=2)
    run_recipe("past_year", moment=year_ago[1])
    after = contents_in(lake)
    assert list(after) == list(before)
    assert [name.split("/")[1] for name in after if after[name] != before[name]] == [days[1]]


# ---- DuckDB ------------------------------------------------------------------------------------


def read_counts(warehouse: Path) -> dict[tuple[str, str, str], tuple[float, int]]:
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        rows = connection.execute(
            "SELECT CAST(start_date AS VARCHAR), device, class_name, mean, row_count FROM daily_counts"
        ).fetchall()
    found = {(day, device, name): (mean, count) for day, device, name, mean, count in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
def test_duckdb_counts_each_day_once_however_often_it_runs(run_recipe, serve, lake, tmp_path, monkeypatch):
    warehouse = tmp_path / "warehouse"
    monkeypatch.setenv("UNLEASH_WAREHOUSE", str(warehouse))
    devices = (STREET, SILENT, "0042", "a street é=1")
    expected = {}
    for seed, day in ((1, 0), (2, 0), (2, 1)):
        sim = serve(devices=devices, seed=seed)
        run = run_recipe("duckdb", moment=NEXT_DAY + timedelta(days=day))
        start = DAY_START + day * DAY_MS
        date = f"{NEXT_DAY + timedelta(days=day - 1):%Y-%m-%d}"
        counts = daily_means(sim, start, start + DAY_MS - 1)
        expected = {key: value for key, value in expected.items() if key[0] != date}
        expected |= {(date, *key): value for key, value in counts.items()}
        assert read_counts(warehouse) == expected
        assert run.xcoms["load"] == len(expected)
    assert {device for _, device, _ in expected} == {STREET, "0042", "a street é=1"}


@pytest.mark.slow
def test_duckdb_reads_an_s3_store_through_airflows_connection_without_its_own_key(
    run_recipe, serve, connect, tmp_path, monkeypatch
):
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    monkeypatch.setenv("UNLEASH_WAREHOUSE", str(tmp_path / "warehouse"))
    monkeypatch.setenv("UNLEASH_LAKE", "s3://aws_duckdb@lake/unleash")
    sim = serve(devices=(STREET, SILENT))
    with serve_s3() as endpoint:
        # The connection on the page about stores, with another endpoint and other keys.
        fields = dict(connections_of(PAGES_FOLDER / "stores.md"))["AIRFLOW_CONN_AWS_DEFAULT"]
        fields |= {"login": ACCESS_KEY, "password": SECRET_KEY}
        assert fields["extra"].pop("endpoint_url").startswith("https://minio")
        fields["extra"] |= {"endpoint_url": endpoint}
        connect(conn_id="aws_duckdb", **fields)
        ObjectStoragePath("s3://aws_duckdb@lake").mkdir()
        run_recipe("duckdb")
    counts = daily_means(sim, DAY_START, DAY_END - 1)
    assert read_counts(tmp_path / "warehouse") == {(DAY_FOLDER, *key): value for key, value in counts.items()}


@pytest.mark.slow
def test_duckdb_query_of_the_lake_returns_what_the_simulator_has(run_recipe, serve, tree_of):
    sim = serve(devices=(STREET, "0042", SILENT))
    run_recipe("past_year")
    sql = (RECIPES / "sql" / "duckdb_lake.sql").read_text()
    assert sql.count("s3://lake/unleash/") == 1
    found = duckdb.connect().execute(sql.replace("s3://lake/unleash/", f"{tree_of('past_year')}/")).fetchall()
    counts: dict[tuple[str, str, str], list[float]] = {}
    for device in sim.devices:
        for record in sim.rows(device, DAY_START, DAY_END - 1):
            counts.setdefault((device, record["timestamp"][:13], record["class_name"]), []).append(record["count"])
    assert {
        (device, f"{hour.astimezone(UTC):%Y-%m-%dT%H}", name): mean for device, hour, name, mean in found
    } == pytest.approx({key: fmean(values) for key, values in counts.items()})


# ---- Snowflake and BigQuery --------------------------------------------------------------------


def faults_of(sql: str, dialect: str) -> list[str]:
    parsed = Linter(config=FluffConfig(overrides={"dialect": dialect})).parse_string(sql)
    return [violation.desc() for violation in parsed.violations]


@pytest.mark.one_airflow
@pytest.mark.parametrize("warehouse", ["snowflake", "bigquery"])
def test_the_sql_of_a_warehouse_parses_in_its_dialect(warehouse):
    for sql in statements_of(warehouse):
        assert faults_of(sql, warehouse) == []
        # The parser notices an error in any line.
        for line in range(1, len(sql.splitlines()), 3):
            broken = sql.splitlines()
            broken[line:line] = [") WRONG ("]
            assert faults_of("\n".join(broken), warehouse) != []


def test_snowflake_loads_each_column_of_the_files_into_the_column_of_the_same_name():
    setup, load = statements_of("snowflake")
    names = [*COLUMNS, "extra"]
    table = setup.split("CREATE TABLE IF NOT EXISTS unleash_analytics (")[1].split("\n)")[0]
    assert [line.split()[0] for line in table.strip().splitlines()] == ["start_date", *names]
    assert re.findall(r"\$1:(\w+)::", load) == names
    types = {line.split()[0]: line.split()[1].rstrip(",") for line in table.strip().splitlines()}
    assert dict(re.findall(r"\$1:(\w+)::(\w+)", load)) == {name: types[name] for name in names}
    [pattern] = re.findall(r"PATTERN = '(.*)'", load)
    assert re.fullmatch(pattern, f"unleash/device={STREET}/start_date={DAY_FOLDER}/{NAME}")
    assert not re.fullmatch(pattern, f"unleash/device={STREET}/start_date=2026-01-13/{NAME}")
    assert not re.fullmatch(pattern, f"unleash/_staging/device={STREET}/start_date={DAY_FOLDER}/{NAME}-1a/00000.pages")


@pytest.mark.slow
def test_bigquery_load_translated_for_duckdb_holds_each_day_once_after_reruns(run_recipe, serve, tree_of):
    setup, load = statements_of("bigquery")
    lake = tree_of("past_year")
    with duckdb.connect() as warehouse:
        warehouse.execute("CREATE SCHEMA unleash")
        # DuckDB has no external tables, so a view reads the same tree.
        external, table = setup.split(";\n", 1)
        assert external.startswith("CREATE EXTERNAL TABLE")
        [create] = sqlglot.transpile(table, read="bigquery", write="duckdb", error_level=sqlglot.ErrorLevel.RAISE)
        warehouse.execute(create)
        for seed in (1, 2):
            sim = serve(devices=(STREET, "0042", SILENT), seed=seed)
            for moment in (NEXT_DAY, NEXT_DAY + timedelta(days=1)):
                run_recipe("past_year", moment=moment)
            warehouse.execute(
                f"CREATE OR REPLACE VIEW unleash.lake AS FROM read_parquet('{lake}/device=*/**/*.parquet',"
                " hive_types = {'device': VARCHAR, 'start_date': DATE})"
            )
            for statement in sqlglot.transpile(load, read="bigquery", write="duckdb"):
                warehouse.execute(statement)
            rows = warehouse.execute(
                "SELECT CAST(start_date AS VARCHAR), device_id, class_name, avg(count), count(*)"
                " FROM unleash.analytics GROUP BY ALL"
            ).fetchall()
            counts = daily_means(sim, DAY_START, DAY_END - 1)
            assert {(day, device, name): (mean, count) for day, device, name, mean, count in rows} == {
                (DAY_FOLDER, *key): value for key, value in counts.items()
            }


# ---- pages -------------------------------------------------------------------------------------


def commands_of(page: Path, program: str) -> list[list[str]]:
    """Return the arguments of a program's commands on a page."""
    blocks = [block for block in read_blocks(page) if block.language == "shell"]
    return [words for block in blocks for name, *words in read_commands(block.text) if name == program]


def connections_of(page: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return variable and fields of the connections that a page sets."""
    assignments = [word.partition("=") for words in commands_of(page, "export") for word in words]
    return [(name, json.loads(value)) for name, _, value in assignments if name.startswith("AIRFLOW_CONN_")]


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.stem)
def test_every_recipe_is_shown_in_full_on_a_page(path):
    name = path.stem.removeprefix("example_unleash_")
    shown = path.read_text().split(f"# [START {name}]\n")[1].split(f"# [END {name}]\n")[0]
    assert any(shown == block.text for page in PAGES for block in read_blocks(page))


def test_airflow_reads_every_connection_on_a_page(monkeypatch):
    connections = [connection for page in PAGES for connection in connections_of(page)]
    assert len(connections) >= 6
    for name, fields in connections:
        monkeypatch.setenv(name, json.dumps(fields))
        connection = BaseHook.get_connection(name.removeprefix("AIRFLOW_CONN_").lower())
        assert connection.conn_type == fields["conn_type"]
        assert connection.extra_dejson == fields.get("extra", {})


def test_airflow_parses_every_command_on_a_page_that_is_for_its_version():
    from airflow.cli.cli_parser import get_parser

    commands = [words for page in PAGES for words in commands_of(page, "airflow")]
    assert [words[:2] for words in commands] == [["pools", "set"], ["backfill", "create"], ["dags", "backfill"]]
    for words in commands:
        if words[:2] != (["dags", "backfill"] if HAS_BACKFILLS else ["backfill", "create"]):
            get_parser().parse_args(words)


def is_in_database(home: Path, dag_id: str) -> bool:
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        [(count,)] = database.execute("SELECT count(*) FROM serialized_dag WHERE dag_id = ?", (dag_id,))
    return count > 0


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BACKFILLS, reason="this Airflow's backfill command runs the tasks itself")
def test_the_backfill_of_a_year_covers_every_day_of_it(run_recipe, serve, capsys, airflow_home):
    from airflow.cli.cli_parser import get_parser

    serve(devices=(SILENT,))
    run_recipe("past_year")
    if not is_in_database(airflow_home, "example_unleash_past_year"):
        pytest.skip("dag.test() of this Airflow does not write the DAG to the database")
    [_, words, _] = commands_of(PAGES_FOLDER / "backfill.md", "airflow")
    # Other tests have already created runs for some days.
    arguments = get_parser().parse_args([*words, "--dry-run", "--reprocess-behavior", "completed"])
    capsys.readouterr()
    arguments.func(arguments)
    days = sorted(re.findall(r"2025-\d\d-\d\d", capsys.readouterr().out))
    assert sorted(set(days)) == [f"{datetime(2025, 1, 1) + timedelta(days=day):%Y-%m-%d}" for day in range(365)]
