"""Every example DAG runs and does what it says."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from itertools import pairwise, permutations, product
from pathlib import Path
from statistics import fmean

import duckdb
import pyarrow.parquet as pq
import pytest

from airflow_provider_unleash.delta import open_delta_table
from airflow_provider_unleash.simulator import Simulator
from tests.support.airflow_home import dags_folder
from tests.support.dag_runs import DagRun, dags_of, has_asset_state_store, load_dag, run_dag_file
from tests.support.delta_reader import delta_scan
from tests.support.expected_rows import contents_in, daily_means, files_in, rows_by_device
from tests.support.paths import EXAMPLES as EXAMPLES_FOLDER
from tests.support.sample_day import (
    DAY_END,
    DAY_FOLDER,
    DAY_MS,
    DAY_START,
    HOUR_MS,
    NEXT_DAY,
    SILENT,
    STREET,
    make_context,
)

pytestmark = pytest.mark.usefixtures("quick_retries")

EXAMPLES = sorted(EXAMPLES_FOLDER.glob("*.py"))
SDK = importlib.import_module("airflow.sdk" if find_spec("airflow.sdk") else "airflow")
# Those that this Airflow can parse, with recipes.
DAG_FILES = [
    path
    for path in sorted(EXAMPLES_FOLDER.rglob("example_*.py"))
    if all(hasattr(SDK, name) or name not in path.read_text() for name in ("AssetWatcher", "RollupMapper"))
]


@pytest.fixture
def run_example(airflow_home: Path, lake: Path) -> Callable[..., DagRun]:
    def run_example(name: str, **arguments: object) -> DagRun:
        [path] = [path for path in EXAMPLES if path.name == f"example_unleash_{name}.py"]
        run = run_dag_file(airflow_home, Path(shutil.copy(path, dags_folder())), **arguments)
        assert run.state == "success"
        return run

    return run_example


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_has_its_own_test(path):
    assert path.name.startswith("example_unleash_")
    assert f"test_{path.stem.removeprefix('example_unleash_')}_" in Path(__file__).read_text()


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_every_example_can_be_parsed_without_requests_and_warnings(path, sim):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dag = load_dag(path)
    assert [warning for warning in caught if warning.filename == str(path) or "unleash" in warning.filename] == []
    assert dag.dag_id == path.stem
    assert dag.catchup is False
    assert sim.requests == []


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_every_example_has_tags_and_a_description(path):
    for dag in dags_of(path):
        assert "unleash" in dag.tags
        assert dag.description


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_no_two_examples_write_to_the_same_tree_or_into_one_another(lake, slashes, monkeypatch):
    monkeypatch.setenv("UNLEASH_LAKE", f"file://{lake}{slashes}")
    trees: dict[str, set[str]] = {}
    for path in DAG_FILES:
        for dag in dags_of(path):
            for task in dag.tasks:
                dst = getattr(task, "partial_kwargs", vars(task)).get("dst")
                if dst:
                    trees.setdefault(dst.rstrip("/"), set()).add(dag.dag_id)
    assert len(trees) >= 6
    assert {dst: dags for dst, dags in trees.items() if len(dags) > 1} == {}
    assert [(dst, other) for dst, other in permutations(trees, 2) if other.startswith(f"{dst}/")] == []


@pytest.mark.slow
def test_examples_on_the_same_day_do_not_double_rows_for_the_query_of_the_readme(run_example, serve, lake):
    sim = serve(devices=(STREET, SILENT), sessions_from=DAY_START)
    for name in ("daily", "gaps", "wait_for_sessions"):
        run_example(name)
    query = (EXAMPLES_FOLDER / "sql" / "rows_by_class.sql").read_text().replace("s3://lake/unleash", str(lake))
    with duckdb.connect() as connection:
        detections = sum(row[2] for row in connection.execute(query).fetchall())
    assert detections == len(sim.rows(STREET, DAY_START, DAY_END - 1))


def test_daily_writes_the_rows_of_every_device_and_no_file_of_a_silent_one(run_example, sim, lake):
    run = run_example("daily")
    expected = rows_by_device(sim, DAY_START, DAY_END - 1)
    assert run.states == {"extract": "success", "report": "success"}
    assert expected[SILENT] == 0
    assert run.xcoms["report"] == sum(expected.values())
    check_files(sim, lake, expected)


def check_files(sim: Simulator, lake: Path, expected: dict[str, int]) -> None:
    """Check that a lake has one file with the day of each device that has rows."""
    assert files_in(lake) == sorted(
        f"device={device}/start_date={DAY_FOLDER}/20260112T000000Z_20260113T000000Z.parquet"
        for device, rows in expected.items()
        if rows
    )
    for name in files_in(lake):
        device = name.partition("/")[0].removeprefix("device=")
        table = pq.read_table(lake / name, partitioning=None)
        records = sim.rows(device, DAY_START, DAY_END - 1)
        assert table.column("frame_number").to_pylist() == [record["frame_number"] for record in records]


@pytest.mark.slow
def test_delta_writes_the_rows_of_every_device_to_a_table_that_maintenance_compacts(
    run_example, airflow_home, serve, tree_of
):
    table = tree_of("delta")
    for seed in (1, 2):
        sim = serve(seed=seed)
        run = run_example("delta")
        assert run.xcoms["extract"]["rows"] == sum(rows_by_device(sim, DAY_START, DAY_END - 1).values())
    before = open_delta_table(f"file://{table}").to_pyarrow_table().num_rows
    maintained = run_example("delta", variable="maintenance_dag")
    assert maintained.xcoms == {"compact": 0, "vacuum": 0}
    assert open_delta_table(f"file://{table}").to_pyarrow_table().num_rows == before
    query = (EXAMPLES_FOLDER / "sql" / "delta_scan.sql").read_text()
    counted = {
        (device, name): (detections, mean)
        for device, name, detections, mean in delta_scan(query.replace("s3://lake/unleash_delta", str(table)))
    }
    expected = daily_means(sim, DAY_START, DAY_END - 1)
    assert {key: (mean, detections) for key, (detections, mean) in counted.items()} == expected


@pytest.mark.slow
def test_mapped_writes_the_same_files_as_daily_and_skips_the_task_of_a_silent_device(run_example, sim, tree_of):
    run = run_example("mapped")
    expected = rows_by_device(sim, DAY_START, DAY_END - 1)
    assert {device: run.states["extract", index] for index, device in enumerate(sim.devices)} == {
        device: "success" if rows else "skipped" for device, rows in expected.items()
    }
    assert run.xcoms["report"] == sum(expected.values())
    check_files(sim, tree_of("mapped"), expected)


@pytest.mark.slow
def test_batches_write_the_same_files_as_daily_with_a_task_per_500_devices(run_example, serve, tree_of):
    sim = serve(devices=(STREET, SILENT, *(f"W{number:04}" for number in range(499))), rows_per_day=10)
    run = run_example("batches")
    expected = rows_by_device(sim, DAY_START, DAY_END - 1)
    assert [run.xcoms["extract", index]["devices"] for index in range(2)] == [500, 1]
    assert run.xcoms["complete"] == sum(expected.values())
    assert [uri for uri, _ in run.events] == [f"file://{tree_of('batches')}"]
    check_files(sim, tree_of("batches"), expected)


@pytest.mark.slow
def test_batches_do_not_signal_a_day_that_lacks_a_device(airflow_home, serve, lake):
    serve(devices=(STREET, SILENT), rows_per_day=10)
    [path] = [path for path in EXAMPLES if path.stem == "example_unleash_batches"]
    copy = dags_folder() / path.name
    changed = path.read_text().replace("chain(*batches)", "[*chain(*batches), 'another']")
    copy.write_text(changed.replace("minutes=5", "minutes=0"))
    run = run_dag_file(airflow_home, copy)
    assert (run.states["extract", 0], run.states["complete"]) == ("success", "failed")
    assert run.events == []


@pytest.mark.slow
def test_hourly_writes_one_file_for_all_devices_of_which_a_query_of_one_device_reads_a_part(
    run_example, serve, tree_of, monkeypatch
):
    monkeypatch.setattr("airflow_provider_unleash.core.formats.ROW_GROUP_ROWS", 100)
    sim = serve(devices=(STREET, SILENT, *(f"W{number:04}" for number in range(20))), rows_per_day=5_000)
    run = run_example("hourly")
    lake = tree_of("account_hourly")
    hour = DAY_END - HOUR_MS
    expected = rows_by_device(sim, hour, DAY_END - 1)
    [name] = files_in(lake)
    assert name == f"start_date={DAY_FOLDER}/20260112T230000Z_20260113T000000Z.parquet"
    assert run.xcoms["extract"]["rows"] == pq.read_metadata(lake / name).num_rows == sum(expected.values())
    one_device, row_groups = (
        (EXAMPLES_FOLDER / "sql" / query).read_text().replace("s3://lake/unleash", str(lake))
        for query in ("one_device.sql", "row_groups.sql")
    )
    with duckdb.connect() as connection:
        assert sum(rows for _, rows, _ in connection.execute(one_device).fetchall()) == expected[STREET] > 0
        [(total, to_read)] = connection.execute(row_groups).fetchall()
    assert 1 <= to_read < total


@pytest.mark.slow
def test_the_query_of_manifests_tells_silent_devices_from_those_that_were_never_extracted(run_example, serve, lake):
    for seed in (1, 2):
        sim = serve(seed=seed)
        run_example("daily")
    expected = rows_by_device(sim, DAY_START, DAY_END - 1)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in ("manifest.sql", "silent_devices.sql"):
            query = (EXAMPLES_FOLDER / "sql" / name).read_text()
            silent = connection.execute(query.replace("s3://lake/unleash", str(lake))).fetchall()
        found = connection.execute('SELECT device_id, "rows", path IS NULL, "end" - "start" FROM manifest').fetchall()
    assert silent == [(SILENT,)]
    assert sorted(found) == sorted((device, rows, not rows, timedelta(days=1)) for device, rows in expected.items())


@pytest.mark.slow
def test_daily_writes_files_that_the_query_of_the_readme_averages(run_example, sim, lake):
    run_example("daily")
    query = (EXAMPLES[0].parent / "sql" / "rows_by_class.sql").read_text()
    with duckdb.connect() as connection:
        counted = connection.execute(query.replace("s3://lake/unleash", str(lake))).fetchall()
    counts: dict[tuple[str, str], list[float]] = {}
    for device in sim.devices:
        for record in sim.rows(device, DAY_START, DAY_END - 1):
            counts.setdefault((device, record["class_name"]), []).append(record["count"])
    assert {(device, name): detections for device, name, detections, _ in counted} == {
        key: len(values) for key, values in counts.items()
    }
    assert {(device, name): mean for device, name, _, mean in counted} == pytest.approx(
        {key: fmean(values) for key, values in counts.items()}
    )


@pytest.mark.slow
def test_daily_changes_nothing_when_it_runs_again(run_example, sim, lake):
    rows = run_example("daily").xcoms["report"]
    before = contents_in(lake)
    assert run_example("daily").xcoms["report"] == rows
    assert contents_in(lake) == before


@pytest.mark.slow
def test_gaps_writes_what_is_missing_of_two_weeks_and_then_nothing(run_example, serve, tree_of):
    lake = tree_of("gaps")
    sim = serve(devices=(STREET, SILENT))
    planned = run_example("gaps").xcoms["plan"]
    assert [one["start"][:10] for one in planned] == [f"2025-12-{day}" for day in (30, 31)] + [
        f"2026-01-{day:02}" for day in range(1, 13)
    ]
    assert {tuple(one["device_ids"]) for one in planned} == {(STREET, SILENT)}
    rows = sum(pq.read_metadata(lake / name).num_rows for name in files_in(lake))
    assert rows == len(sim.rows(STREET, DAY_END - 14 * DAY_MS, DAY_END - 1))
    assert run_example("gaps").xcoms["plan"] == []
    for manifest in (lake / "_manifest" / f"start_date={DAY_FOLDER}").iterdir():
        manifest.unlink()
    assert [one["start"][:10] for one in run_example("gaps").xcoms["plan"]] == [DAY_FOLDER]


@pytest.mark.skipif(not hasattr(SDK, "RollupMapper"), reason="this Airflow has no roll-ups of partitions")
@pytest.mark.slow
def test_partitions_writes_the_missing_days_and_signals_each_of_them_once(run_example, serve, tree_of):
    serve(devices=(STREET, SILENT), rows_per_day=20)
    keys = "SELECT partition_key FROM asset_event WHERE source_dag_id = ? AND source_run_id = ?"
    run = run_example("partitions")
    days = [f"2025-12-{day}" for day in (30, 31)] + [f"2026-01-{day:02}" for day in range(1, 13)]
    assert sorted(key for (key,) in run.query(keys)) == days
    assert run_example("partitions").query(keys) == []
    for manifest in (tree_of("partitions") / "_manifest" / f"start_date={DAY_FOLDER}").iterdir():
        manifest.unlink()
    assert run_example("partitions").query(keys) == [(DAY_FOLDER,)]


@pytest.mark.slow
def test_aggregate_counts_the_last_hour_by_class(run_example, sim):
    run = run_example("aggregate", moment=NEXT_DAY - timedelta(hours=12))
    noon = DAY_START + 12 * HOUR_MS
    records = sim.rows(STREET, noon - HOUR_MS, noon - 1)
    counts = Counter(record["class_name"] for record in records)
    assert len(counts) > 1
    assert run.xcoms == {"get_rows": records, "count_by_class": dict(counts)}


@pytest.mark.slow
def test_hook_counts_the_rows_of_each_device_and_names_the_silent_ones(run_example, sim):
    run = run_example("hook")
    assert run.xcoms["count_rows"] == rows_by_device(sim, DAY_START, DAY_END - 1)
    assert run.xcoms["report_silent"] == [SILENT]


@pytest.mark.slow
def test_data_frame_counts_the_classes_of_the_busiest_hour_of_each_device(run_example, sim):
    run = run_example("data_frame")
    for index, device in enumerate(sim.devices):
        hours: dict[str, Counter[str]] = {}
        for record in sim.rows(device, DAY_START, DAY_END - 1):
            hours.setdefault(record["timestamp"][:13], Counter())[record["class_name"]] += 1
        busiest = max(hours.values(), key=Counter.total, default=Counter())
        assert run.xcoms["busiest_hour", index] == busiest
    assert len(run.xcoms["busiest_hour", 0]) > 1


@pytest.mark.slow
def test_wait_for_sessions_waits_and_then_writes_every_device_with_rows(run_example, sim, tree_of):
    lake = tree_of("wait_for_sessions")
    run = run_example("wait_for_sessions")
    assert run.xcoms["wait_for_sessions"] == [session for session in sim.sessions() if int(session) < DAY_END]
    assert run.xcoms["wait_for_sessions"]
    expected = {device for device, rows in rows_by_device(sim, DAY_START, DAY_END - 1).items() if rows}
    assert [name.split("/")[0] for name in files_in(lake)] == sorted(f"device={device}" for device in expected)
    for name in files_in(lake):
        device = name.partition("/")[0].removeprefix("device=")
        lines = gzip.decompress((lake / name).read_bytes()).splitlines()
        assert [json.loads(line) for line in lines] == sim.rows(device, DAY_START, DAY_END - 1)


@pytest.mark.slow
def test_backfill_writes_each_step_of_a_span_to_the_tree_of_that_step(run_example, serve, lake, tmp_path):
    sim = serve(devices=(STREET, SILENT))
    for every, days in (("day", [11, 12, 13]), ("month", [11])):
        run = run_example("backfill", conf={"start": "2026-01-11", "end": "2026-01-14", "every": every})
        spans = [
            (DAY_START + (day - 12) * DAY_MS, DAY_START + (until - 12) * DAY_MS - 1)
            for day, until in pairwise([*days, 14])
        ]
        rows = [len(sim.rows(STREET, *span)) for span in spans]
        assert [run.xcoms["extract", index]["rows"] for index in range(len(days))] == rows
        assert run.xcoms["report"] == sum(rows) > 0
        assert run.labels == {
            ("extract", index): f"{device} 2026-01-{day}"
            for index, (device, day) in enumerate(product((STREET, SILENT), days))
        }
        assert [run.states["extract", index] for index in range(2 * len(days))] == (
            ["success"] * len(days) + ["skipped"] * len(days)
        )
        tree = tmp_path / f"lake_{every}s_2026-01-11_2026-01-14"
        assert [name.split("/")[1] for name in files_in(tree)] == [f"start_date=2026-01-{day}" for day in days]
    assert files_in(lake) == []


@pytest.mark.slow
def test_backfill_of_another_span_does_not_duplicate_rows(run_example, serve, tmp_path):
    serve(devices=(STREET,))
    for end in ("2026-01-13", "2026-01-14"):
        run_example("backfill", conf={"start": "2026-01-11", "end": end, "every": "month"})
        assert len(files_in(tmp_path / f"lake_months_2026-01-11_{end}")) == 1


@pytest.mark.parametrize("name", ["daily", "mapped", "backfill"])
@pytest.mark.slow
def test_daily_mapped_and_backfill_report_zero_rows_if_all_cameras_are_silent(run_example, serve, name):
    serve(devices=(SILENT,))
    run = run_example(name, **({"conf": {"start": "2026-01-12", "end": "2026-01-13"}} if name == "backfill" else {}))
    assert run.xcoms["report"] == 0


def test_backfill_plans_by_default_a_year_of_40_devices_in_fewer_windows_than_airflow_maps(serve):
    serve()
    [path] = [path for path in EXAMPLES if path.stem == "example_unleash_backfill"]
    dag = load_dag(path)
    plan = dag.get_task("plan_windows")
    plan.device_ids = [f"W{number}" for number in range(40)]
    for name in ("start", "end", "every"):
        setattr(plan, name, dag.params[name])
    windows = plan.execute(make_context(None))
    assert len(windows) == 40 * 12
    assert (windows[0]["start"], windows[-1]["end"]) == ("2025-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


@pytest.mark.skipif(not has_asset_state_store(), reason="this Airflow has no asset state store")
@pytest.mark.slow
def test_event_driven_writes_new_sessions_once(run_example, serve, tree_of):
    lake = tree_of("sessions")
    now = int(time.time() * 1000)
    options = {"sessions_from": now - 3 * HOUR_MS, "session_period": 1800.0}

    def has_new_sessions_soon(seed: int) -> bool:
        """Return whether a session becomes 30 minutes old, and so new, within the next 10 minutes."""
        return any(
            20 * 60_000 <= now - int(session) <= 30 * 60_000
            for session in Simulator(seed=seed, **options).sessions(now)
        )

    seed = next(seed for seed in range(99) if not has_new_sessions_soon(seed))
    sim = serve(seed=seed, devices=(STREET, SILENT), rows_per_day=2000, **options)
    run = run_example("event_driven")
    ended = int(time.time() * 1000)
    windows = run.xcoms["begin"]
    assert [window["device_id"] for window in windows] == [STREET, SILENT]
    [(start, end)] = {(window["start"], window["end"]) for window in windows}
    assert str(start) == sim.sessions()[0]
    assert now <= end + 30 * 60_000 <= ended
    [rows] = [
        run.xcoms["extract", index]["rows"] for index, window in enumerate(windows) if window["device_id"] == STREET
    ]
    assert rows == len(sim.rows(STREET, start, end - 1)) > 0
    # The same event again has nothing to do and writes nothing.
    before = files_in(lake)
    run = run_example("event_driven")
    assert run.states["begin"] == "skipped"
    assert files_in(lake) == before


@pytest.fixture
def warehouse(tmp_path: Path, connect: Callable[..., None]) -> Path:
    """Return the DuckDB file of the connection ``duckdb_default``."""
    connect(conn_id="duckdb_default", conn_type="duckdb", host=f"{tmp_path}/warehouse")
    return tmp_path / "warehouse"


@pytest.mark.slow
def test_assets_loads_each_file_once_and_again_when_it_is_rewritten(run_example, serve, tree_of, warehouse):
    lake = tree_of("assets")
    for seed in (1, 2):
        sim = serve(seed=seed)
        run_example("assets")
        expected = {device: rows for device, rows in rows_by_device(sim, DAY_START, DAY_END - 1).items() if rows}
        loaded = run_example("assets", variable="load_dag").xcoms
        rows = {file["path"]: file["rows"] for file in loaded["new_files"]}
        assert rows == {f"file://{lake}/{name}": pq.read_metadata(lake / name).num_rows for name in files_in(lake)}
        assert sum(rows.values()) == sum(expected.values())
        again = run_example("assets", variable="load_dag").xcoms
        assert (again["new_files"], again["load"]) == ([], loaded["load"])
        with duckdb.connect(warehouse) as connection:
            counted = connection.execute("SELECT device_id, count(*) FROM analytics GROUP BY ALL").fetchall()
        assert dict(counted) == expected


@pytest.mark.slow
def test_assets_fails_and_loads_nothing_if_a_file_does_not_match_its_event(
    run_example, airflow_home, serve, tree_of, warehouse
):
    lake = tree_of("assets")
    serve(devices=(STREET,))
    run_example("assets")
    [name] = files_in(lake)
    pq.write_table(pq.read_table(lake / name, partitioning=None).slice(1), lake / name)
    [path] = [path for path in EXAMPLES if path.stem == "example_unleash_assets"]
    copy = dags_folder() / path.name
    copy.write_text(path.read_text().replace("minutes=5", "minutes=0"))
    run = run_dag_file(airflow_home, copy, variable="load_dag")
    assert run.states["load"] == "failed"
    with duckdb.connect(warehouse) as connection:
        assert connection.execute("FROM files UNION ALL SELECT path, count FROM analytics").fetchall() == []
