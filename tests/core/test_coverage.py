"""The coverage of a tree is exactly what its manifests say."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core.account import land_account
from airflow_provider_unleash.core.coverage import scan_tree
from airflow_provider_unleash.core.coverage_page import render_coverage
from airflow_provider_unleash.core.coverage_text import Screen, format_report
from airflow_provider_unleash.core.manifest import Entry, Layout, publish_manifest
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.names import MANIFESTS, object_name, window_name
from airflow_provider_unleash.coverage import Cell, Coverage, Gap, main, read_coverage
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.simulator import Simulator
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.python_processes import import_root

UTC = timezone.utc
HOUR_MS = 3_600_000
MAY = {"start": "2026-05-01", "end": "2026-05-08", "every": "day"}
DAYS = plan_windows(**MAY)
CAMERAS = [f"W{number:03}" for number in range(200)]


def make_entry(
    device_id: str, window: Window, *, rows: int = 10, hours: float = 2, extension: str = "jsonl", run_id: str = "run"
) -> Entry:
    """Return the line of a device that was extracted hours after the end of the window."""
    start, end = format_ms(window.start_ms), format_ms(window.end_ms)
    path = object_name(device_id, window, extension) if rows else None
    extracted_at = format_ms(window.end_ms + int(hours * HOUR_MS))
    return Entry(device_id, start, end, rows, 1, rows * 100, path, extracted_at, "daily", run_id)


def land(
    folder: Any, window: Window, device_ids: Iterable[str] = ("W1",), *, whole_account: bool = True, **values: Any
) -> None:
    entries = {device_id: make_entry(device_id, window, **values) for device_id in device_ids}
    publish_manifest(folder, None if whole_account else entries, window, entries)


def read(folder: Any, device_ids: Iterable[str] | None = ("W1",), **values: Any) -> Coverage:
    return read_coverage(folder, device_ids=device_ids, **{**MAY, **values})


def test_500_holes_of_200_cameras_and_60_days_are_found_exactly(folder: Any) -> None:
    span = {"start": "2026-03-01", "end": "2026-04-30", "every": "day"}
    days = plan_windows(**span)
    chosen = random.Random(5)
    cells = [(camera, day) for day in days for camera in CAMERAS]
    holes = set(chosen.sample(cells, 500))
    rows = {cell: chosen.choice([0, 5, 5000]) for cell in cells if cell not in holes}
    for day in days:
        entries = {
            camera: make_entry(camera, day, rows=rows[camera, day]) for camera in CAMERAS if (camera, day) in rows
        }
        # Some days were extracted by one task, others by a task per batch of cameras.
        for batch in [None] if chosen.random() < 0.7 else [CAMERAS[:50], CAMERAS[50:]]:
            part = {camera: entries[camera] for camera in batch or CAMERAS if camera in entries}
            publish_manifest(folder, batch, day, part)
    coverage = read_coverage(folder, device_ids=CAMERAS, **span)
    seen = {(cell.device_id, cell.start): (cell.state, cell.rows) for cell in coverage}
    expected: dict[tuple[str, Window], tuple[str, int]] = dict.fromkeys(holes, ("missing", 0))
    expected |= {cell: ("landed" if number else "empty", number) for cell, number in rows.items()}
    assert seen == {(camera, day.start): value for (camera, day), value in expected.items()}
    assert len(coverage) == 12_000
    assert coverage.counts()["missing"] == sum(gap.windows for gap in coverage.gaps()) == 500


def test_1000_cameras_take_at_most_20_times_as_long_as_100(folder: Any) -> None:
    span = {"start": "2026-05-01", "end": "2026-06-01", "every": "day"}

    def seconds_of(number: int) -> float:
        """Return the CPU time, not the time, because the machine may be busy."""
        cameras = [f"Wb8fabc31378ce{camera:04}" for camera in range(number)]
        tree = folder / str(number)
        for day in plan_windows(**span):
            land(tree, day, cameras)
        began = time.process_time()
        coverage = read_coverage(tree, device_ids=cameras, **span)
        assert coverage.counts() == {"landed": 31 * number, "empty": 0, "unsettled": 0, "missing": 0}
        assert len(list(coverage)) == 31 * number
        return time.process_time() - began

    seconds_of(1)  # imports its modules
    assert seconds_of(1000) < 20 * seconds_of(100)


def test_a_cell_has_what_the_manifest_says(folder: Any) -> None:
    land(folder, DAYS[0])
    landed, missing = list(read(folder))[:2]
    start, end = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)
    extracted_at = datetime(2026, 5, 2, 2, tzinfo=UTC)
    path = object_name("W1", DAYS[0], "jsonl")
    assert landed == Cell("W1", start, end, "landed", 10, 1000, path, extracted_at, extracted_at, "daily", "run")
    assert landed.delay == landed.first_delay == timedelta(hours=2)
    assert missing == Cell("W1", end, end + timedelta(days=1), "missing")
    assert missing.delay is missing.first_delay is None


@pytest.mark.parametrize("whole_account_is_newer", [True, False])
def test_the_newest_line_of_several_manifests_counts_and_the_oldest_is_the_first(
    folder: Any, whole_account_is_newer: bool
) -> None:
    land(folder, DAYS[0], rows=1, hours=60 if whole_account_is_newer else 3, run_id="account")
    land(folder, DAYS[0], rows=2, hours=30, run_id="one", whole_account=False)
    land(folder, DAYS[0], ["W1", "W2"], rows=3, hours=90 if not whole_account_is_newer else 2, whole_account=False)
    [cell] = [cell for cell in read(folder) if cell.state != "missing"]
    assert cell.rows == (1 if whole_account_is_newer else 3)
    delays = (2, 60) if whole_account_is_newer else (3, 90)
    assert (cell.first_delay, cell.delay) == tuple(timedelta(hours=hours) for hours in delays)


@pytest.mark.parametrize(
    ("hours", "settle", "state"),
    [
        (-1, timedelta(0), "unsettled"),
        (0, timedelta(0), "landed"),
        (47, "P2D", "unsettled"),
        (47, timedelta(days=2), "unsettled"),
        (48, "P2D", "landed"),
    ],
)
def test_a_window_is_unsettled_if_it_was_extracted_too_early(
    folder: Any, hours: float, settle: Any, state: str
) -> None:
    land(folder, DAYS[0], hours=hours)
    land(folder, DAYS[1], hours=hours, rows=0)
    states = read(folder, settle=settle).states_of("W1")
    assert states[:2] == [state, state if state == "unsettled" else "empty"]


def test_a_later_extraction_settles_a_window(folder: Any) -> None:
    for hours in (1, 50):
        land(folder, DAYS[0], hours=hours)
    assert read(folder, settle="P2D").states_of("W1")[0] == "landed"


def test_windows_of_another_grid_are_reported_and_not_counted(folder: Any) -> None:
    week = Window(DAYS[0].start_ms - 86_400_000, DAYS[5].end_ms)
    hour = Window(DAYS[3].start_ms, DAYS[3].start_ms + HOUR_MS)
    for window in (DAYS[0], week, hour):
        land(folder, window)
    land(folder, Window(DAYS[-1].end_ms, DAYS[-1].end_ms + HOUR_MS))  # after the span
    coverage = read(folder)
    assert coverage.other_windows == sorted([window_name(week), window_name(hour)])
    assert coverage.counts() == {"landed": 1, "empty": 0, "unsettled": 0, "missing": 6}


def test_a_span_of_all_years_costs_no_more_than_the_days_of_the_tree(folder: Any) -> None:
    """Whoever may see the coverage page may ask for it."""
    land(folder, DAYS[0])
    read(folder)  # imports its modules
    tracemalloc.start()
    try:
        coverage = read(folder, start="0001-01-01", end="9999-12-31", every="P9999Y")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert coverage.other_windows == [window_name(DAYS[0])]
    assert peak < 10_000_000


def test_objects_of_another_layout_are_reported_and_not_counted(folder: Any) -> None:
    for day, extension in zip(DAYS, ["jsonl.gz", "parquet", "jsonl.gz"], strict=False):
        land(folder, day, extension=extension)
    coverage = read(folder)
    assert coverage.layout == Layout(True, "jsonl.gz")
    assert coverage.other_layouts == {Layout(True, "parquet"): 1}
    assert coverage.states_of("W1")[:3] == ["landed", "missing", "landed"]


def test_days_follow_the_calendar_of_the_time_zone(folder: Any) -> None:
    grid = {
        "start": "2026-10-24T00:00:00+02:00",
        "end": "2026-10-27T00:00:00+01:00",
        "every": "day",
        "timezone": "Europe/Berlin",
    }
    for day in plan_windows(**grid):
        land(folder, day)
    coverage = read(folder, **grid)
    assert coverage.counts()["landed"] == 3
    assert [str(cell.start) for cell in coverage][1:] == ["2026-10-25 00:00:00+02:00", "2026-10-26 00:00:00+01:00"]


def test_consecutive_missing_windows_are_one_gap(folder: Any) -> None:
    for number in (0, 3, 5):
        land(folder, DAYS[number])
    day = [datetime(2026, 5, number, tzinfo=UTC) for number in range(1, 9)]
    assert read(folder, ["W1"]).gaps() == [
        Gap("W1", day[1], day[3], 2),
        Gap("W1", day[4], day[5], 1),
        Gap("W1", day[6], day[7], 1),
    ]


def test_devices_count_once_in_the_order_given(folder: Any) -> None:
    coverage = read(folder, ["W2", "W1", "W2"])
    assert coverage.device_ids == ["W2", "W1"]
    assert len(coverage) == len(list(coverage)) == 14


def test_without_device_ids_the_devices_are_those_of_the_manifests(folder: Any) -> None:
    land(folder, DAYS[1], ["W2", "W1"])
    span = {**MAY, "timezone": None, "settle": timedelta(0)}
    assert scan_tree(folder, None, **span).device_ids == ["W1", "W2"]
    with pytest.raises(InvalidArgumentError, match="device_ids=None must be a list"):
        read(folder, None)


def test_a_tree_without_manifests_is_missing(tmp_path: Path) -> None:
    assert read(str(tmp_path / "nothing")).counts()["missing"] == 7


def test_a_folder_may_be_a_path_a_url_or_relative(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land(folder, DAYS[0])
    monkeypatch.chdir(tmp_path.parent)
    for dst in (folder, str(tmp_path), f"file://{tmp_path}", tmp_path.name):
        assert read(dst).counts()["landed"] == 1


def test_a_store_in_memory_is_read_like_a_remote_one() -> None:
    from upath import UPath

    folder = UPath("memory://coverage/lake")
    try:
        for day in DAYS[::2]:
            land(folder, day)
        assert read("memory://coverage/lake").counts()["landed"] == 4
    finally:
        folder.fs.rm("/coverage", recursive=True)


def test_a_publication_in_progress_is_not_a_manifest(folder: Any, tmp_path: Path) -> None:
    land(folder, DAYS[0])
    [manifest] = (tmp_path / MANIFESTS).rglob("*.manifest")
    manifest.with_name(f".{manifest.name}.0.tmp").write_text("{")
    assert read(folder).counts()["landed"] == 1


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"device_ids": "W1"}, "device_ids"),
        ({"device_ids": 1}, "device_ids"),
        ({"device_ids": ["a/b"]}, "device_id"),
        ({"every": "fortnight"}, "every"),
        ({"every": None}, "every"),
        ({"start": None}, "start"),
        ({"start": "2026-06-01"}, "start"),
        ({"settle": "2 days"}, "settle"),
        ({"settle": timedelta(days=-1)}, "settle"),
        ({"settle": "P9000Y"}, "settle"),
        ({"timezone": "Mars"}, "timezone"),
        ({"dst": "s3://aws_default@lake/unleash"}, "dst"),
        ({"dst": "s3:///unleash"}, "dst"),
    ],
)
def test_a_wrong_argument_is_named(folder: Any, values: dict[str, Any], argument: str) -> None:
    values = {"dst": folder, "device_ids": ["W1"], **MAY, **values}
    with pytest.raises(InvalidArgumentError) as caught:
        read_coverage(values.pop("dst"), **values)
    assert caught.value.argument == argument


def test_a_damaged_manifest_is_an_error_that_names_it(folder: Any, tmp_path: Path) -> None:
    land(folder, DAYS[0])
    [manifest] = (tmp_path / MANIFESTS).rglob("*.manifest")
    manifest.write_text(manifest.read_text()[:-10])
    with pytest.raises(InvalidArgumentError, match=manifest.name):
        read(folder)


# ---- the command line and the page ---------------------------------------------------------------


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "airflow_provider_unleash.coverage", *map(str, arguments)]
    variables = import_root({**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **environment})
    return subprocess.run(command, env=variables, capture_output=True, text=True, encoding="utf-8", check=False)


def options(**values: str) -> list[str]:
    return [part for name, value in {**MAY, **values}.items() for part in (f"--{name}", value)]


@pytest.fixture
def tree(folder: Any, tmp_path: Path) -> Path:
    """Return a tree in which W1 misses two days and W2 is empty, unsettled on one day, and late on another."""
    for number, day in enumerate(DAYS):
        rows, hours = (0, 50) if number == 4 else (1000 * number + 1, 2 if number else -1)
        entries = {"W2": make_entry("W2", day, rows=0 if number else 7, hours=hours)}
        if number not in (2, 3):
            entries["W1"] = make_entry("W1", day, rows=rows)
        publish_manifest(folder, None, day, entries)
    return tmp_path


def test_the_command_prints_a_heat_map_and_the_gaps(tree: Path) -> None:
    done = run(tree, *options(settle="PT1H"))
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert "W1 ░░XX·██" in lines
    assert "W2 ?······" in lines
    assert "4 landed, 7 empty, 1 unsettled, 2 missing" in lines
    assert "  2026-05-03  2026-05-05  2 windows  W1" in lines
    assert "  2026-05-01  2026-05-02  1 window  W2" in lines


def test_the_exit_code_is_0_if_nothing_is_missing_even_if_unsettled(tree: Path) -> None:
    done = run(tree, *options(devices="W2", settle="P2D"))
    assert done.returncode == 0, done.stderr
    assert "0 missing" in done.stdout


def test_json_has_the_gaps_and_every_cell(tree: Path) -> None:
    done = run(tree, *options(devices="W1,W3"), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["counts"] == {"landed": 4, "empty": 1, "unsettled": 0, "missing": 9}
    assert found["missing"] == [
        {"device_id": "W1", "start": "2026-05-03T00:00:00Z", "end": "2026-05-05T00:00:00Z", "windows": 2},
        {"device_id": "W3", "start": "2026-05-01T00:00:00Z", "end": "2026-05-08T00:00:00Z", "windows": 7},
    ]
    assert len(found["cells"]) == 14


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (options(every="fortnight"), "every='fortnight' must be one of"),
        (options(start="yesterday"), "start='yesterday' is not an ISO 8601 date"),
        (options(settle="2 days"), "settle='2 days' is not a duration"),
        (options(devices="W1,,W2"), "device_id must be a non-empty string"),
        (options(timezone="Mars"), "timezone='Mars' is not a time zone"),
        ([], "the following arguments are required: --start, --end, --every"),
        ([*options(), "--html", "/nowhere/page.html"], "/nowhere/page.html"),
    ],
)
def test_a_wrong_option_is_explained_with_exit_code_2(
    tree: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        code: object = main([str(tree), *arguments])
    except SystemExit as ended:  # of argparse
        code = ended.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_manifests_is_not_complete(tmp_path: Path) -> None:
    done = run(tmp_path, *options())
    assert done.returncode == 1
    assert f"{tmp_path} has no manifests of such windows" in done.stderr


def test_a_terminal_without_unicode_gets_ascii(tree: Path) -> None:
    done = run(tree, *options(), PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stdout.isascii()
    assert "W1 11XX" in done.stdout


@pytest.mark.parametrize("end", ["2026-05-01", "2026-05-02"])  # 120 windows, or one that shares its character with none
def test_a_narrow_terminal_and_many_devices_hide_no_gap(folder: Any, end: str) -> None:
    for number, day in enumerate(plan_windows("2026-01-01", end, every="day")):
        land(folder, day, [camera for camera in CAMERAS if (camera, number) != ("W150", 77)])
    coverage = read(folder, CAMERAS, start="2026-01-01", end=end)
    lines = format_report(coverage, Screen(columns=60, lines=10)).splitlines()
    [line] = [line for line in lines if line.startswith("W150 ")]
    assert line.count("X") == 1
    assert max(map(len, lines)) < 90
    assert sum(line.startswith("W") for line in lines) == 10


def read_data(page: str) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])  # type: ignore[no-any-return]


def test_the_page_has_every_cell(tree: Path) -> None:
    page = tree / "page.html"
    assert run(tree, *options(settle="PT1H"), "--html", page).returncode == 1
    data = read_data(page.read_text(encoding="utf-8"))
    assert data["ids"] == ["W1", "W2"]
    assert [device["states"] for device in data["devices"]] == ["llmmell", "ueeeeee"]
    assert data["devices"][0]["rows"] == [1, 1001, 0, 0, 0, 5001, 6001]
    assert data["devices"][1]["last"] == [-3600, *[7200] * 3, 180_000, 7200, 7200]
    assert data["runs"] == [["daily", "run"]]
    assert data["devices"][0]["paths"] == {}  # all have the names that the script gives them


def test_the_page_loads_nothing_from_elsewhere_and_is_small(folder: Any) -> None:
    span = {"start": "2026-05-01", "end": "2026-06-01"}
    cameras = [f"Wb8fabc31378ce{number:04}" for number in range(1000)]
    for day in plan_windows(**span, every="day"):
        land(folder, day, cameras, rows=1_234_567)
    page = render_coverage(read(folder, cameras, **span), str(folder))
    assert len(page) < 3_000_000
    assert not re.findall(r"https?:|url\(|@import|src=", page)


def test_text_in_the_page_is_not_markup(folder: Any) -> None:
    odd = "</script><!--gaps--><b>&".replace("/", "")
    for day in DAYS[1:]:
        land(folder, day, [odd], run_id="</script><script>alert(1)</script>")
    page = render_coverage(read(folder, [odd]), "file:///<i>&")
    assert page.count("</script>") == page.count("<script") == 3
    assert "<b>" not in page.partition("<script type")[0]
    assert "<i>" not in page
    assert read_data(page)["ids"] == [odd]


@pytest.mark.parametrize("split_by_device", [True, False])
def test_the_command_that_the_page_copies_heals_a_gap(folder: Any, tmp_path: Path, split_by_device: bool) -> None:
    with Simulator(devices=("W1", "W2"), rows_per_day=48) as sim:
        with UnleashClient(sim.api_key, sim.base_url, mask_stream_tokens=False) as client:
            for day in (DAYS[0], *DAYS[3:]):
                land_account(client, None, day, folder, compression="gzip", split_by_device=split_by_device)
        command = read_data(render_coverage(read(folder), str(folder)))["command"]
        gap = json.dumps([[day.start_ms, day.end_ms] for day in DAYS[1:3]])
        command = command.replace("__WINDOWS__", gap).replace("__DEVICES__", '["W1"]' if split_by_device else "None")
        command = command.replace('["UNLEASH_API_KEY"])', f'["UNLEASH_API_KEY"], "{sim.base_url}")')
        command = command.replace("python -", f"{sys.executable} -")
        environment = import_root({**os.environ, "UNLEASH_API_KEY": sim.api_key})
        subprocess.run(["bash", "-ec", command], env=environment, cwd=tmp_path, check=True)
    coverage = read(folder, ["W1", "W2"])
    assert coverage.states_of("W1") == ["landed"] * 7
    assert coverage.states_of("W2").count("missing") == (2 if split_by_device else 0)
