"""
In a real browser, a user finds the coverage page in Airflow's web interface, and heals a gap that it shows.

Works on Airflow 3.1 and later, in Debian's Chromium: ``make test-live AIRFLOW=3.1.8`` runs only this. If all tests
pass, it writes the screenshots of docs/coverage.md.
"""

from __future__ import annotations

import re
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from airflow import __version__ as airflow_version

from tests.support.browser_tour import find_chromium, open_page
from tests.support.coverage_tour import CAMERAS, DAG_ID, TODAY, CoverageSeen, start_airflow, take_tour
from tests.support.live_airflow import live_stage
from tests.support.paths import ROOT
from tools.bounds import temporary_folder
from tools.stage import StageError, processes_in

IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def tour() -> CoverageSeen:
    """Return what a user has seen; nothing is running any more."""
    try:
        find_chromium()
    except StageError as error:
        pytest.fail(str(error), pytrace=False)
    seen = CoverageSeen()
    with temporary_folder() as folder:
        with live_stage(folder) as stage:
            start_airflow(stage)
            with open_page(folder / "browser", seen) as page:
                take_tour(page, stage, seen, folder / "pictures")
        seen.pictures = {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}
        assert processes_in(folder) == []
    return seen


def day(days_ago: int) -> str:
    return f"{TODAY - timedelta(days_ago):%Y-%m-%d}"


def missing_in(counts: str) -> int:
    found = re.search(r"([\d,]+) missing", counts)
    assert found is not None
    return int(found[1].replace(",", ""))


def test_the_navigation_the_dag_and_its_task_lead_to_the_tree(tour: CoverageSeen) -> None:
    assert tour.trees == dict.fromkeys(["navigation", "dag", "task"], "cameras")


def test_the_page_counts_the_gaps_of_30_days_until_today(tour: CoverageSeen) -> None:
    assert missing_in(tour.counts) > 80
    assert "unsettled" in tour.counts
    assert "late" in tour.counts


@pytest.mark.parametrize(
    ("key", "camera", "window"),
    [
        ("End", CAMERAS[0], day(1)),
        ("Home", CAMERAS[0], day(30)),
        ("ArrowDown", CAMERAS[1], day(30)),
        ("ArrowRight", CAMERAS[1], day(29)),
    ],
)
def test_keys_select_a_window(tour: CoverageSeen, key: str, camera: str, window: str) -> None:
    assert tour.cells[key].startswith(camera)
    assert f"{window} to" in tour.cells[key]


def test_n_selects_the_next_gap(tour: CoverageSeen) -> None:
    assert "missing" in tour.cells["gap"]
    assert "Copy command" in tour.cells["gap"]


def test_the_copied_command_heals_the_gap(tour: CoverageSeen) -> None:
    assert tour.button == "Copied"
    assert "land_account(" in tour.command
    assert missing_in(tour.healed) < missing_in(tour.counts)


def test_the_link_of_a_task_selects_its_window(tour: CoverageSeen) -> None:
    assert f"{day(1)} to {day(0)}" in tour.cells["task"]
    assert re.search(r"State\s+landed", tour.cells["task"])
    assert DAG_ID in tour.cells["task"]


def test_the_page_is_dark_where_airflow_is(tour: CoverageSeen) -> None:
    light, dark = "rgb(255, 255, 255)", "rgb(20, 24, 28)"
    assert tour.colours == {"system light": light, "system dark": dark, "Airflow dark": dark}


def test_the_browser_sent_no_requests_to_other_hosts(tour: CoverageSeen) -> None:
    asked = {urlsplit(url.removeprefix("blob:")).hostname for url in tour.urls if not url.startswith("data:")}
    assert asked == {"127.0.0.1"}


def test_the_screenshots_match_the_page_and_are_small(tour: CoverageSeen, request: pytest.FixtureRequest) -> None:
    page = (IMAGES.parent / "coverage.md").read_text()
    assert set(re.findall(r"!\[.+\]\(images/(\S+)\)", page)) == set(tour.pictures)
    assert {name: len(picture) for name, picture in tour.pictures.items() if len(picture) > 200_000} == {}
    assert request.session.testsfailed == 0, "Other tests failed, so the screenshots are not updated"
    if f"Airflow {airflow_version}" in page:
        for name, picture in tour.pictures.items():
            (IMAGES / name).write_bytes(picture)
