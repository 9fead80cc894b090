"""
A tour of the coverage page in Airflow's web interface, in a real browser.

A tree of 40 cameras has an outage, single gaps, late, empty and unsettled days, and one day that a DAG has extracted.
The user finds the page, heals a gap with the command that the page copies, and comes to the page from the task.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from playwright.sync_api import FrameLocator, Locator, Page, expect
from upath import UPath

from airflow_provider_unleash.core.manifest import Entry, publish_manifest
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.names import object_name
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.browser_tour import NARROW, SECONDS_FOR_A_STEP, Seen
from tests.support.live_airflow import LiveStage, wait_until
from tests.support.paths import EXAMPLES

DAG_ID = "example_unleash_daily"
TODAY = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
_CHOSEN = random.Random(7)
CAMERAS = sorted(f"W{_CHOSEN.getrandbits(56):014x}" for _ in range(40))
# Days before today
OUTAGE, LATE, UNSETTLED = (20, 21), (24,), (2,)


@dataclass
class CoverageSeen(Seen):
    """
    What a user has seen.

    :param counts: the legend of the page, with the numbers of cells.
    :param cells: details of the selected window, by step of the tour.
    :param button: the text of the button that copies, after copying.
    :param command: what was copied.
    :param healed: the legend after the command has run.
    :param colours: background of the page by colour scheme.
    :param trees: the tree that the page shows, by where the user came from.
    :param pictures: screenshots by file name.
    """

    counts: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    button: str = ""
    command: str = ""
    healed: str = ""
    colours: dict[str, str] = field(default_factory=dict)
    trees: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


def write_tree(folder: Path) -> None:
    """Write the manifests of 29 days until the day before yesterday."""
    usual = {camera: _CHOSEN.choice([0, 300, 2000, 9000]) for camera in CAMERAS}
    for days_ago in range(30, 1, -1):
        if days_ago in OUTAGE:
            continue
        [window] = plan_windows(TODAY - timedelta(days_ago), TODAY - timedelta(days_ago - 1), every="day")
        entries = {}
        for number, camera in enumerate(CAMERAS):
            is_broken = number == 4 and 5 <= days_ago <= 11
            if is_broken or _CHOSEN.random() < 0.015:
                continue
            hours = -1 if days_ago in UNSETTLED else 50 if days_ago in LATE or _CHOSEN.random() < 0.03 else 2
            rows = 0 if _CHOSEN.random() < 0.05 else int(usual[camera] * _CHOSEN.random())
            entries[camera] = _entry(camera, window, rows, hours)
        publish_manifest(UPath(folder), None, window, entries)


def _entry(camera: str, window: Window, rows: int, hours: int) -> Entry:
    start, end, extracted_at = map(format_ms, (window.start_ms, window.end_ms, window.end_ms + hours * 3_600_000))
    path = object_name(camera, window, "parquet") if rows else None
    return Entry(camera, start, end, rows, 1, rows * 97, path, extracted_at, DAG_ID, f"scheduled__{end}")


def start_airflow(stage: LiveStage) -> None:
    """Start an API server that may show the tree, after a run of the daily example has extracted yesterday."""
    dags = stage.folder / "dags"
    dags.mkdir()
    shutil.copy(EXAMPLES / f"{DAG_ID}.py", dags)
    write_tree(stage.lake)
    stage.start_simulator("--devices", ",".join(CAMERAS), "--rows-per-day", "500")
    trees = {"cameras": f"file://{stage.lake}", "archive": f"file://{stage.folder}/archive"}
    stage.environ |= {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__UNLEASH__COVERAGE_PATHS": json.dumps(trees),
    }
    stage.run_airflow("db", "migrate")
    stage.run_airflow("dags", "test", DAG_ID, f"{TODAY:%Y-%m-%d}")
    stage.start_api_server()
    wait_until(stage.has_api_server, stage)


def take_tour(page: Page, stage: LiveStage, seen: CoverageSeen, pictures: Path) -> None:
    """Find the page, look at gaps, heal one, and come back from the DAG and from its task."""
    expect.set_options(timeout=SECONDS_FOR_A_STEP * 1000)
    page.set_viewport_size({"width": NARROW, "height": 640})
    _open_from_navigation(page, stage, seen, pictures)
    _look_around(page, seen, pictures)
    _heal(page, stage, seen)
    _open_from_dag(page, stage, seen)
    _open_from_task(page, stage, seen, pictures)


def frame_of(page: Page) -> FrameLocator:
    """Return the page in the frame in which Airflow shows it."""
    return page.frame_locator("iframe")


def _open_from_navigation(page: Page, stage: LiveStage, seen: CoverageSeen, pictures: Path) -> None:
    page.goto(stage.url)
    page.get_by_role("button", name="Browse", exact=True).click()
    page.get_by_role("menuitem", name="Unleash coverage").click()
    frame = frame_of(page)
    expect(frame.locator("#cell h2")).to_be_visible()
    seen.trees["navigation"] = _tree_of(frame)
    seen.counts = frame.locator("#counts").inner_text()


def _tree_of(frame: FrameLocator | Page) -> str:
    tree: str = frame.locator("[name=tree]").input_value()
    return tree


def _look_around(page: Page, seen: CoverageSeen, pictures: Path) -> None:
    frame = frame_of(page)
    cell = frame.locator("#cell")
    frame.locator("#map").focus()
    for key in ("End", "Home", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
        seen.cells[key] = cell.inner_text()
    page.keyboard.press("n")
    expect(cell).to_contain_text("missing")
    seen.cells["gap"] = cell.inner_text()
    pictures.mkdir(exist_ok=True)
    page.screenshot(path=pictures / "coverage-page.png")
    seen.colours["system light"] = _colour_of(frame.locator("body"))
    page.emulate_media(color_scheme="dark")
    seen.colours["system dark"] = _colour_of(frame.locator("body"))
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="User", exact=True).click()
    page.get_by_role("menuitem", name="Appearance").hover()
    page.get_by_role("menuitemradio", name="Dark Mode").click()
    expect(page.locator("html.dark")).to_have_count(1)
    seen.colours["Airflow dark"] = _colour_of(frame.locator("body"))
    page.screenshot(path=pictures / "coverage-page-dark.png")
    page.evaluate("localStorage.removeItem('theme')")
    page.reload()
    page.keyboard.press("Escape")
    frame.locator("#map").focus()
    page.keyboard.press("n")


def _colour_of(element: Locator) -> str:
    colour: str = element.evaluate("element => getComputedStyle(element).backgroundColor")
    return colour


def _heal(page: Page, stage: LiveStage, seen: CoverageSeen) -> None:
    """Run the command that the page copies, as a user does in a shell."""
    frame = frame_of(page)
    button = frame.get_by_role("button", name="Copy command")
    button.click()
    expect(frame.locator("#cell button")).to_have_text("Copied")
    seen.button = frame.locator("#cell button").inner_text()
    seen.command = page.evaluate("navigator.clipboard.readText()")
    command = seen.command.replace("python -", f"{sys.executable} -")
    subprocess.run(["bash", "-ec", command], env=stage.environ, cwd=stage.home, check=True)
    frame.get_by_role("button", name="Show").click()
    missing = frame.locator("#counts span").first
    expect(missing).not_to_have_text(seen.counts.splitlines()[0])
    expect(missing).to_contain_text("missing")
    seen.healed = frame.locator("#counts").inner_text()


def _open_from_dag(page: Page, stage: LiveStage, seen: CoverageSeen) -> None:
    page.goto(f"{stage.url}/dags/{DAG_ID}")
    page.get_by_role("link", name="Unleash coverage").click()
    frame = frame_of(page)
    expect(frame.locator("#cell h2")).to_be_visible()
    seen.trees["dag"] = _tree_of(frame)


def _open_from_task(page: Page, stage: LiveStage, seen: CoverageSeen, pictures: Path) -> None:
    [(run_id,)] = stage.query(f"SELECT run_id FROM dag_run WHERE dag_id = '{DAG_ID}'")
    page.goto(f"{stage.url}/dags/{DAG_ID}/runs/{run_id}/tasks/extract/details")
    link = page.get_by_role("link", name="Coverage", exact=True)
    expect(link).to_be_visible()
    page.screenshot(path=pictures / "coverage-link.png")
    link.evaluate("link => { link.target = '_self'; }")  # before Airflow 3.3, it opens another tab
    link.click()
    expect(page.locator("#cell h2")).to_be_visible()
    seen.trees["task"] = _tree_of(page)
    seen.cells["task"] = page.locator("#cell").inner_text()
