"""The coverage of a tree is exactly what its manifests say."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash.core.manifest import Entry, Layout, publish_manifest
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.names import MANIFESTS, object_name, window_name
from airflow_provider_unleash.coverage import Cell, Coverage, Gap, read_coverage
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.window import Window, plan_windows

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


def read(folder: Any, device_ids: Iterable[str] = ("W1",), **values: Any) -> Coverage:
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


def test_1000_cameras_and_31_days_take_less_than_2_seconds(folder: Any) -> None:
    span = {"start": "2026-05-01", "end": "2026-06-01", "every": "day"}
    cameras = [f"Wb8fabc31378ce{number:04}" for number in range(1000)]
    for day in plan_windows(**span):
        land(folder, day, cameras)
    began = time.process_time()  # not the clock, because the machine may be busy
    coverage = read_coverage(folder, device_ids=cameras, **span)
    assert coverage.counts() == {"landed": 31_000, "empty": 0, "unsettled": 0, "missing": 0}
    assert len(list(coverage)) == 31_000
    assert time.process_time() - began < 2


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
    for day in DAYS[::2]:
        land(folder, day)
    assert read("memory://coverage/lake").counts()["landed"] == 4


def test_a_publication_in_progress_is_not_a_manifest(folder: Any, tmp_path: Path) -> None:
    land(folder, DAYS[0])
    [manifest] = (tmp_path / MANIFESTS).rglob("*.manifest")
    manifest.with_name(f".{manifest.name}.0.tmp").write_text("{")
    assert read(folder).counts()["landed"] == 1


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"device_ids": "W1"}, "device_ids"),
        ({"device_ids": None}, "device_ids"),
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
