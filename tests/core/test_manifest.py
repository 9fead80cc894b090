"""Manifests: what completed tasks have landed, and what a tree holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_provider_unleash.core.manifest import Entry, Layout, open_tree, publish_manifest, read_manifest
from airflow_provider_unleash.core.names import manifest_name, object_name
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.window import Window
from tests.support.pages import duck

HOUR_MS = 3_600_000
START = 1_768_176_000_000  # Monday 2026-01-12, 00:00 UTC
DAY = Window(START, START + 24 * HOUR_MS)
SPLIT, WHOLE = Layout(True, "jsonl"), Layout(False, "jsonl")
MANIFEST = "_manifest/start_date=2026-01-12/20260112T000000Z_20260113T000000Z"


def entry(device_id: str, *, extracted_at: str = "2026-01-13T01:00:00.000Z", **values: Any) -> Entry:
    path = object_name(device_id, DAY, "jsonl")
    usual: dict[str, Any] = {"rows": 3, "pages": 1, "bytes": 300, "path": path, "extracted_at": extracted_at}
    return Entry(device_id, "2026-01-12T00:00:00.000Z", "2026-01-13T00:00:00.000Z", **{**usual, **values})


def publish(lake: Path, *entries: Entry, device_ids: list[str] | None = None, window: Window = DAY) -> Path:
    return Path(publish_manifest(UPath(lake), device_ids, window, {found.device_id: found for found in entries}).path)


def hours(first: float, length: float) -> Window:
    """Return a window that starts so many hours after Monday, and lasts so many hours."""
    return Window(START + round(first * HOUR_MS), START + round((first + length) * HOUR_MS))


# ---- lines ---------------------------------------------------------------------------------------


def test_a_manifest_has_a_line_of_json_for_each_device_in_order(tmp_path):
    silent = entry("A", rows=0, bytes=0, path=None, dag_id="daily", run_id="run 1")
    path = publish(tmp_path, entry("B"), silent)
    assert path == tmp_path / f"{MANIFEST}.manifest"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "device_id": "A",
            "start": "2026-01-12T00:00:00.000Z",
            "end": "2026-01-13T00:00:00.000Z",
            "rows": 0,
            "pages": 1,
            "bytes": 0,
            "path": None,
            "extracted_at": "2026-01-13T01:00:00.000Z",
            "dag_id": "daily",
            "run_id": "run 1",
        },
        {
            "device_id": "B",
            "start": "2026-01-12T00:00:00.000Z",
            "end": "2026-01-13T00:00:00.000Z",
            "rows": 3,
            "pages": 1,
            "bytes": 300,
            "path": "device=B/start_date=2026-01-12/20260112T000000Z_20260113T000000Z.jsonl",
            "extracted_at": "2026-01-13T01:00:00.000Z",
            "dag_id": None,
            "run_id": None,
        },
    ]


def test_duckdb_reads_manifests_as_a_table(tmp_path):
    publish(tmp_path, entry("A"), entry("B \u00e9"))
    publish(tmp_path, entry("C", rows=0, path=None), device_ids=["C"])
    found = duck(
        'SELECT device_id, rows, path IS NULL, extracted_at - "end" = INTERVAL 1 HOUR FROM read_json('
        f"'{tmp_path}/_manifest/*/*.manifest', format='newline_delimited', columns={{device_id: 'VARCHAR', "
        "rows: 'BIGINT', path: 'VARCHAR', extracted_at: 'TIMESTAMPTZ', \"end\": 'TIMESTAMPTZ'}) ORDER BY ALL"
    )
    assert found == [("A", 3, False, True), ("B \u00e9", 3, False, True), ("C", 0, True, True)]


def test_the_entries_of_a_manifest_are_those_that_were_published(tmp_path):
    entries = [entry("A", dag_id="d"), entry("\u00e9 'x'", path=None)]
    assert read_manifest(UPath(publish(tmp_path, *entries))) == entries
    assert read_manifest(UPath(tmp_path / "missing.manifest")) == []


def test_a_manifest_of_the_account_keeps_entries_of_other_devices(tmp_path):
    publish(tmp_path, entry("A"), entry("B"))
    path = publish(tmp_path, entry("B", rows=9), entry("C"))
    assert [(found.device_id, found.rows) for found in read_manifest(UPath(path))] == [("A", 3), ("B", 9), ("C", 3)]


def test_a_file_that_is_not_a_manifest_is_named_and_stays(tmp_path):
    path = publish(tmp_path, entry("A"))
    path.write_text('{"device_id": "A", "rows": "many"}\n')
    for read in (lambda: read_manifest(UPath(path)), lambda: publish(tmp_path, entry("B"))):
        with pytest.raises(InvalidArgumentError, match=r"Z\.manifest is not a manifest"):
            read()
    assert "many" in path.read_text()


# ---- the tree ------------------------------------------------------------------------------------


def test_a_tree_has_the_newest_entry_of_each_device_from_all_manifests_of_its_window(tmp_path):
    publish(tmp_path, entry("A"), entry("B", extracted_at="2026-01-13T09:00:00.000Z"))
    publish(tmp_path, entry("A", rows=8, extracted_at="2026-01-13T02:00:00.000Z"), device_ids=["A"])
    publish(tmp_path, entry("B", rows=8, extracted_at="2026-01-13T02:00:00.000Z"), device_ids=["B"])
    publish(tmp_path, entry("C"), window=hours(0, 1))
    entries = open_tree(UPath(tmp_path), DAY, SPLIT).read_entries()
    assert {device_id: found.rows for device_id, found in entries.items()} == {"A": 8, "B": 3}


def test_a_new_tree_has_no_entries_and_fits_every_layout(tmp_path):
    for layout in (SPLIT, WHOLE):
        tree = open_tree(UPath(tmp_path / "lake"), DAY, layout)
        assert (tree.read_entries(), tree.overlapping) == ({}, ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("window", [DAY, hours(24, 24), hours(-24, 24), hours(24 * 200, 24), hours(-24 * 200, 24)])
@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        (SPLIT, None),
        (WHOLE, "has jsonl objects, one per device, such as device=B/.* would write jsonl objects, one for all"),
        (Layout(True, "jsonl.gz"), r"would write jsonl\.gz objects, one per device"),
        (Layout(True, "parquet"), "would write parquet objects, one per device"),
    ],
)
def test_a_tree_has_one_layout_and_format(tmp_path, layout, problem, window):
    publish(tmp_path, entry("A", rows=0, path=None), entry("B"))
    if problem is None:
        open_tree(UPath(tmp_path), window, layout)
    else:
        with pytest.raises(InvalidArgumentError, match=problem) as caught:
            open_tree(UPath(tmp_path), window, layout)
        assert caught.value.argument == "dst"


@pytest.mark.parametrize("extension", ["jsonl", "jsonl.gz", "csv.gz", "parquet"])
@pytest.mark.parametrize("window", [DAY, Window(DAY.start_ms + 1, DAY.end_ms - 1)])
def test_a_tree_of_objects_for_all_devices_is_recognized(tmp_path, extension, window):
    publish(tmp_path, entry("A", path=object_name(None, window, extension)), window=window)
    open_tree(UPath(tmp_path), window, Layout(False, extension))
    with pytest.raises(InvalidArgumentError, match="one for all devices, such as start_date=2026-01-12"):
        open_tree(UPath(tmp_path), window, Layout(True, extension))


def test_the_layout_is_found_in_the_first_lines_of_a_large_manifest(tmp_path):
    publish(tmp_path, *(entry(f"W{number:05}", run_id="x" * 200) for number in range(400)))
    with pytest.raises(InvalidArgumentError, match="one per device"):
        open_tree(UPath(tmp_path), DAY, WHOLE)


def test_manifests_without_objects_say_nothing_about_the_layout(tmp_path):
    publish(tmp_path, entry("A", rows=0, path=None))
    open_tree(UPath(tmp_path), DAY, Layout(False, "parquet"))


def test_other_files_among_the_manifests_are_ignored(tmp_path):
    """A killed task leaves part of a manifest, and people and tools leave files."""
    published = publish(tmp_path, entry("A"))
    for name in (f".{published.name}.0123.tmp", "notes.txt", "zzz", "20260112T000000Z_20260112T010000Z.jsonl"):
        published.with_name(name).write_text('{"device_id": "A", "sta')
        (tmp_path / "_manifest" / name).write_text("x")
    for window in (DAY, hours(24 * 200, 24)):
        assert open_tree(UPath(tmp_path), window, SPLIT).overlapping == ()
        with pytest.raises(InvalidArgumentError, match="A tree has one layout"):
            open_tree(UPath(tmp_path), window, WHOLE)
    assert set(open_tree(UPath(tmp_path), DAY, SPLIT).read_entries()) == {"A"}


# ---- overlapping windows -------------------------------------------------------------------------

WEEK, MONTH, QUARTER, YEAR = hours(0, 168), hours(-264, 744), hours(-264, 2160), hours(-264, 8760)
LOCAL_MONTH = hours(-266, 744)  # two hours east of UTC


@pytest.mark.parametrize(
    ("old", "new", "overlaps"),
    [
        (hours(0, 1), DAY, True),
        (hours(23, 1), DAY, True),
        (hours(-0.5, 1), DAY, True),
        (hours(0, 24), hours(5, 1), True),
        (WEEK, hours(150, 24), True),
        (hours(150, 24), WEEK, True),
        (MONTH, hours(470, 10), True),
        (MONTH, DAY, True),
        (LOCAL_MONTH, hours(460, 10), True),
        (QUARTER, hours(1800, 24), True),
        (YEAR, hours(8400, 24), True),
        (hours(8400, 24), YEAR, True),
        (DAY, DAY, False),
        (hours(-24, 24), DAY, False),
        (hours(24, 24), DAY, False),
        (hours(24, 1), DAY, False),
        (hours(-168, 168), DAY, False),
        (MONTH, hours(480, 24), False),
    ],
)
def test_other_windows_of_the_same_time_are_found_and_logged(tmp_path, caplog, old, new, overlaps):
    path = publish(tmp_path, entry("A"), window=old)
    found = open_tree(UPath(tmp_path), new, SPLIT).overlapping
    name = str(path.relative_to(tmp_path / "_manifest")).removesuffix(".manifest")
    assert found == ((name,) if overlaps else ())
    assert ("their rows are there twice" in caplog.text) == overlaps


def test_a_warning_names_five_overlapping_windows_each_once(tmp_path, caplog):
    for hour in range(7):
        for device_id in ("A", "B"):
            publish(tmp_path, entry(device_id), device_ids=[device_id], window=hours(hour, 1))
    assert len(open_tree(UPath(tmp_path), DAY, SPLIT).overlapping) == 7
    assert caplog.text.count("start_date=") == 5
    assert "T050000Z and 2 more" in caplog.text


def test_the_windows_of_a_name_that_manifests_share_do_not_mix(tmp_path):
    """With and without milliseconds, one name is the beginning of another."""
    longer = Window(DAY.start_ms, DAY.end_ms + 5)
    publish(tmp_path, entry("A"), window=longer)
    assert open_tree(UPath(tmp_path), DAY, SPLIT).read_entries() == {}
    assert manifest_name(None, longer).startswith(MANIFEST.removesuffix("Z"))
