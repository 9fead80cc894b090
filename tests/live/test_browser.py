"""
In a real browser, the connection form shows what the provider declares, and its connection runs the example.

Uses Airflow's web interface on loopback, in Debian's Chromium. Takes two minutes, so it runs only with
``make test-live``. If all tests pass, it writes the screenshots of docs/tour.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_unleash import get_provider_info
from airflow_provider_unleash.simulator import API_VERSION
from tests.support.browser_tour import (
    DEVICES,
    EXTRAS,
    KEY,
    WRONG_KEY,
    Field,
    Seen,
    find_chromium,
    open_page,
    start_airflow,
    take_tour,
)
from tests.support.live_airflow import live_stage
from tests.support.paths import ROOT
from tests.support.secret_search import files_under, leaks
from tools.bounds import temporary_folder
from tools.stage import StageError, processes_in

IMAGES = ROOT / "docs" / "images"
[TYPE] = get_provider_info()["connection-types"]
BEHAVIOUR, CONN_FIELDS = TYPE["ui-field-behaviour"], TYPE["conn-fields"]


class Tour(Seen):
    """What was seen during the tour, and the files it left."""

    api: str
    folder: Path
    pictures: dict[str, bytes]
    leaks: list[str]


@pytest.fixture(scope="module")
def tour() -> Tour:
    """Return what a user has seen; nothing is running any more."""
    try:
        find_chromium()
    except StageError as error:
        pytest.fail(str(error), pytrace=False)
    seen = Tour()
    with temporary_folder() as seen.folder:
        pictures = seen.folder / "pictures"
        with live_stage(seen.folder) as stage:
            start_airflow(stage)
            with open_page(seen.folder / "browser", seen) as page:
                take_tour(page, stage, seen, pictures)
        seen.api = stage.api
        seen.pictures = {path.name: path.read_bytes() for path in pictures.iterdir()}
        written = files_under(stage.folder)
        seen.leaks = [leak for key in (KEY, WRONG_KEY) for leak in leaks(key, {**seen.texts, **written})]
    return seen


def test_the_connection_type_is_offered_by_its_name(tour):
    assert tour.offered == [TYPE["hook-name"]]


def test_the_form_shows_all_fields_except_the_hidden_ones(tour):
    standard = {"description", "host", "login", "password", "port", "schema"}
    assert set(tour.standard) == standard - set(BEHAVIOUR["hidden-fields"])


def test_labels_and_placeholders_match_the_provider_info(tour):
    assert BEHAVIOUR["relabeling"] == {name: tour.standard[name].label for name in BEHAVIOUR["relabeling"]}
    assert BEHAVIOUR["placeholders"] == {name: tour.standard[name].placeholder for name in BEHAVIOUR["placeholders"]}


def test_the_extra_fields_match_the_provider_info(tour):
    expected = {
        name: Field(what["label"], kind_of(what["schema"]), "", what["description"])
        for name, what in CONN_FIELDS.items()
    }
    assert tour.extras == expected


def kind_of(schema: dict[str, Any]) -> str:
    kinds = {"integer": "spinbutton", "number": "spinbutton", "boolean": "checkbox", "string": "text"}
    return "combobox" if "enum" in schema else kinds[schema["type"][0]]


def test_select_fields_offer_the_options_of_the_provider_info(tour):
    schemas = {name: what["schema"] for name, what in CONN_FIELDS.items() if "enum" in what["schema"]}
    shown = {
        name: [schema.get("values_display", {}).get(str(value), value) for value in schema["enum"]]
        for name, schema in schemas.items()
    }
    assert tour.choices == shown


def test_the_key_is_never_shown(tour):
    # In turn: after typing it, and after opening the form of the saved connection.
    assert tour.key_inputs == [
        *(("password", None), ("password", "***"), ("password", None)),
        *(("password", "***"), ("password", None), ("password", "***")),
    ]


def test_form_values_are_saved_with_their_types(tour):
    api = urlsplit(tour.api)
    assert (tour.saved["conn_type"], tour.saved["host"]) == (TYPE["connection-type"], f"http://{api.hostname}")
    assert (tour.saved["port"], tour.saved["password"]) == (api.port, "***")
    assert set(EXTRAS) == set(CONN_FIELDS)
    assert json.loads(tour.saved["extra"]) == EXTRAS


def test_editing_the_connection_shows_every_saved_extra(tour):
    assert tour.edited == {name: value if value is True else str(value) for name, value in EXTRAS.items()}


@pytest.mark.parametrize("key", ["right key", "right key again"])
def test_the_connection_test_with_a_valid_key_reports_what_it_reached(tour, key):
    assert tour.answers[key].startswith("Test Connection Successful: ")
    assert f"{tour.api} accepts the key; API version {API_VERSION}" in tour.answers[key]


def test_the_connection_test_with_a_wrong_key_says_that_it_is_wrong(tour):
    assert tour.answers["wrong key"].startswith("Test Connection Failed: ")
    assert "The API key is wrong, revoked, or" in tour.answers["wrong key"]


def test_airflow_refuses_to_test_a_connection_without_a_port(tour):
    # https://github.com/apache/airflow/pull/73298. When this test fails, remove the note from docs/connection.md.
    assert tour.answers["no port"] == "Test Connection Failed: Bad Request"


def test_the_example_succeeds_with_the_connection(tour):
    assert tour.states == dict.fromkeys(["run", "extract", "report"], "Success")


def test_the_xcom_tab_shows_the_summary(tour):
    assert tour.summary["devices"] == len(DEVICES)
    assert tour.summary["window_rule"] == "data_interval"
    assert tour.summary["rows"] > 0
    assert tour.summary["manifest"]["path"].endswith(".manifest")


def test_the_rendered_fields_show_the_connection_but_not_its_key(tour):
    assert tour.rendered["unleash_conn_id"] == "unleash_default"
    assert tour.rendered["file_format"] == "parquet"
    assert leaks(KEY, tour.rendered) == []


def test_the_key_is_in_nothing_that_the_browser_received_or_airflow_wrote(tour):
    assert sum(bool(re.match("answer .*/logs/", name)) for name in tour.texts) >= 2, "No logs were searched"
    assert tour.leaks == []


def test_the_search_finds_a_file_name_that_the_browser_received(tour):
    assert leaks(Path(tour.summary["manifest"]["path"]).name, tour.texts)


def test_the_browser_sent_no_requests_to_other_hosts(tour):
    asked = {urlsplit(url.removeprefix("blob:")).hostname for url in tour.urls if not url.startswith("data:")}
    assert asked == {"127.0.0.1"}


def test_no_process_and_no_folder_is_left(tour):
    assert not tour.folder.exists()
    assert processes_in(tour.folder) == []


def test_the_screenshots_match_the_page_and_are_small(tour, request):
    page = (IMAGES.parent / "tour.md").read_text()
    assert set(re.findall(r"!\[.+\]\(images/(\S+)\)", page)) == set(tour.pictures)
    assert {name: len(picture) for name, picture in tour.pictures.items() if len(picture) > 150_000} == {}
    assert request.session.testsfailed == 0, "Other tests failed, so the screenshots are not updated"
    IMAGES.mkdir(exist_ok=True)
    for name, picture in tour.pictures.items():
        (IMAGES / name).write_bytes(picture)
