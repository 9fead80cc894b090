"""
The coverage page in Airflow's web interface shows configured trees, to users who may read assets, and to no one else.

The slow tests run a real API server with Airflow's own auth manager.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pendulum
import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_unleash.core.manifest import Entry, publish_manifest
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.names import object_name, window_name
from airflow_provider_unleash.core.stores import StoragePath
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.links import CoverageLink, ManifestLink
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashToObjectStorageOperator
from airflow_provider_unleash.page import read_trees
from airflow_provider_unleash.plugin import UnleashPlugin
from airflow_provider_unleash.window import Window, plan_windows
from tests.support.answering import trickling
from tests.support.paths import ROOT
from tests.support.python_processes import import_root
from tests.support.sample_day import make_context
from tools.bounds import temporary_folder
from tools.stage import Stage, stopping

OPTION = "AIRFLOW__UNLEASH__COVERAGE_PATHS"
HAS_PAGES = hasattr(AirflowPlugin, "external_views")
needs_pages = pytest.mark.skipif(not HAS_PAGES, reason="has no pages of plugins")
DAYS = plan_windows("2026-05-01", "2026-05-08", every="day")


def land(folder: StoragePath, window: Window, *device_ids: str, dag_id: str = "daily") -> None:
    start, end = format_ms(window.start_ms), format_ms(window.end_ms)
    publish_manifest(
        folder,
        None,
        window,
        {
            one: Entry(one, start, end, 5, 1, 50, object_name(one, window, "jsonl"), end, dag_id, "run")
            for one in device_ids
        },
    )


# ---- what is registered --------------------------------------------------------------------------

_REGISTERED = """
import json, sys
import airflow.plugins_manager
from airflow.providers.common.compat.sdk import AirflowPlugin, conf
before = set(sys.modules)
from airflow_provider_unleash.plugin import UnleashPlugin as plugin
added = set(sys.modules) - before
imported = sorted({"fastapi", "airflow_provider_unleash.web", "airflow_provider_unleash.core"} & added)
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator as operator
print(json.dumps({
    "apps": [app["url_prefix"] for app in getattr(plugin, "fastapi_apps", [])],
    "views": [[view["destination"], view["href"]] for view in getattr(plugin, "external_views", [])],
    "links": [link.name for link in operator.operator_extra_links],
    "imported": imported,
}))
"""


def registered(**variables: str) -> dict[str, Any]:
    """Return what a new Airflow process registers."""
    environment = import_root({**os.environ, **variables})
    done = subprocess.run(
        [sys.executable, "-c", _REGISTERED], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_without_the_setting_nothing_is_registered() -> None:
    assert not {"fastapi_apps", "external_views"} & set(vars(UnleashPlugin))
    assert not UnleashToObjectStorageOperator.operator_extra_links


@pytest.mark.parametrize(
    ("base_url", "path"),
    [("http://airflow:8080", ""), pytest.param("https://company/data/", "/data", marks=pytest.mark.one_airflow)],
)
def test_the_page_its_entries_and_the_link_are_registered_if_airflow_can_show_them(base_url: str, path: str) -> None:
    found = registered(**{OPTION: '{"lake": "s3://lake"}', "AIRFLOW__API__BASE_URL": base_url})
    page = f"{path}/unleash/coverage"
    expected = {"apps": ["/unleash"], "views": [["nav", page], ["dag", page + "?dag_id={DAG_ID}"]]}
    nothing: dict[str, Any] = {"apps": [], "views": [], "links": [], "imported": []}
    assert found == ({**expected, "links": ["Coverage", "Manifest"], "imported": []} if HAS_PAGES else nothing)


@pytest.mark.one_airflow
def test_a_setting_that_cannot_be_read_does_not_break_other_processes() -> None:
    assert registered(**{OPTION: "s3://lake"})["imported"] == []


def test_the_entry_point_names_the_plugin() -> None:
    from importlib.metadata import entry_points

    [entry] = [one for one in entry_points(group="airflow.plugins") if one.name == "unleash"]
    assert entry.load() is UnleashPlugin


def test_the_documented_setting_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    [value] = re.findall("^coverage_paths = (.*)$", (ROOT / "docs" / "coverage.md").read_text(), re.MULTILINE)
    monkeypatch.setenv(OPTION, value)
    assert read_trees() == {"lake": "s3://aws_default@lake/unleash", "archive": "gs://lake/archive"}


@pytest.mark.parametrize("value", ["s3://lake", '["s3://lake"]', '{"lake": 1}', '{"": "s3://lake"}'])
def test_a_setting_of_another_form_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(OPTION, value)
    with pytest.raises(InvalidArgumentError, match="must be a JSON object"):
        read_trees()


# ---- the link from a task ------------------------------------------------------------------------


def read_link(operator: Any) -> dict[str, str]:
    """Return the query of the link from a task."""
    url = CoverageLink().get_link(operator, ti_key=None)
    assert urlsplit(url).path == "/unleash/coverage"
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    lake = f"file://{tmp_path}/lake"
    monkeypatch.setenv(OPTION, json.dumps({"other": "s3://lake", "lake": f"{lake}/"}))
    return lake


def run(operator_class: Any, dst: str, **arguments: Any) -> Any:
    from airflow.providers.common.compat.sdk import DAG

    window = DAYS[0]
    with DAG("dag_of_link", schedule=None, start_date=arguments.pop("start_date", None)):
        operator = operator_class(task_id="extract", dst=dst, start=window.start_ms, end=window.end_ms, **arguments)
    operator.execute(make_context())
    return operator


def test_a_task_links_to_its_window_and_device(serve: Any, lake: str) -> None:
    serve(devices=("W1", "W2"))
    query = {"tree": "lake", "window": window_name(DAYS[0]), "timezone": "UTC"}
    assert read_link(run(UnleashToObjectStorageOperator, lake, device_id="W1")) == {**query, "device": "W1"}
    assert read_link(run(UnleashAccountToObjectStorageOperator, lake)) == query


@pytest.mark.parametrize(("zone", "named"), [("Europe/Berlin", "Europe/Berlin"), ("+05:30", None)])
def test_the_link_names_the_time_zone_of_the_dag(serve: Any, lake: str, zone: str, named: str | None) -> None:
    serve(devices=("W1",))
    start_date = pendulum.datetime(2026, 1, 1, tz=pendulum.timezone(zone) if named else pendulum.FixedTimezone(19_800))
    operator = run(UnleashToObjectStorageOperator, lake, device_id="W1", start_date=start_date)
    assert read_link(operator).get("timezone") == named


def test_a_task_that_failed_early_links_to_its_tree(lake: str) -> None:
    operator = UnleashToObjectStorageOperator(task_id="extract", dst=lake, device_id="W1")
    assert read_link(operator) == {"tree": "lake"}


def test_a_task_of_another_folder_has_no_link(lake: str) -> None:
    operator = UnleashToObjectStorageOperator(task_id="extract", dst=f"{lake}/other", device_id="W1")
    assert CoverageLink().get_link(operator, ti_key=None) == ManifestLink().get_link(operator, ti_key=None) == ""


def test_a_task_that_succeeded_links_to_its_manifest(serve: Any, lake: str) -> None:
    serve(devices=("W1", "W2"))
    assert manifest_of(UnleashToObjectStorageOperator(task_id="extract", dst=lake, device_id="W1")) == ""
    for operator in (
        run(UnleashToObjectStorageOperator, lake, device_id="W1"),
        run(UnleashAccountToObjectStorageOperator, lake, device_ids=["W1", "W2"]),
        run(UnleashAccountToObjectStorageOperator, lake),
    ):
        assert (Path(urlsplit(lake).path) / "_manifest" / manifest_of(operator)).exists()
    assert manifest_of(operator) == f"{window_name(DAYS[0])}.manifest"


def manifest_of(operator: Any) -> str:
    """Return the file that the link names."""
    query = parse_qs(urlsplit(ManifestLink().get_link(operator, ti_key=None)).query)
    assert not query or query["tree"] == ["lake"]
    return query.get("file", [""])[0]


# ---- what the page reads -------------------------------------------------------------------------


@needs_pages
def test_reading_ends_at_a_limit_of_lines_and_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread would otherwise go on after the page has told its user that the store does not respond."""
    from upath import UPath

    from airflow_provider_unleash import web

    for day in DAYS:
        land(UPath(tmp_path), day, "W1", "W2")
    query, trees = web.PageQuery(end="2026-05-08", devices="W1"), {"lake": f"file://{tmp_path}"}
    assert "W1" in web._render(query, trees)
    monkeypatch.setattr(web, "MAX_LINES", 10)
    with pytest.raises(InvalidArgumentError, match="12 lines of manifests are more than 10"):
        web._render(query, trees)
    monkeypatch.setattr(web, "READ_SECONDS", -1.0)
    with pytest.raises(TimeoutError):
        web._render(query, trees)


# ---- the page on a real API server ---------------------------------------------------------------


class Server:
    """
    An API server with two users: one may read assets, and one may do nothing.

    :param hung: requests that the store which never responds has received.
    """

    def __init__(self, stage: Stage, hung: list[str]) -> None:
        self.stage = stage
        self.hung = hung
        self.session = requests.Session()
        self.session.trust_env = False

    def log_in(self, user: str) -> dict[str, str]:
        """Return the session cookie of a user."""
        answer = self.session.post(f"{self.stage.url}/auth/token", json={"username": user, "password": user})
        answer.raise_for_status()
        return {"_token": answer.json()["access_token"]}

    def get(self, user: str | None = "viewer", path: str = "/unleash/coverage", **query: str) -> requests.Response:
        cookies = self.log_in(user) if user else {}
        return self.session.get(self.stage.url + path, params=query, cookies=cookies, timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    from upath import UPath

    with temporary_folder() as folder, trickling() as (url, hung):
        home = folder / "home"
        home.mkdir()
        stage = Stage(folder, home)
        stage.listen_on()
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps({"viewer": "viewer", "nobody": "nobody"}))
        trees = {
            "days": f"file://{folder}/days",
            "damaged": f"file://{folder}/damaged",
            "lost": "s3://no_such_connection@lake/tree",
            "hours": f"file://{folder}/hours",
            "slow": "s3://slow_store@lake/tree",
        }
        stage.environ |= {
            OPTION: json.dumps(trees),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "viewer:viewer,nobody:",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
            "NO_PROXY": "127.0.0.1",
        }
        for day in (*DAYS[:3], *DAYS[4:]):
            land(UPath(folder / "days"), day, "W1", "W2")
        for hour in plan_windows("2026-05-01", "2026-05-02", every="hour"):
            land(UPath(folder / "hours"), hour, "W1", dag_id="hourly")
        land(UPath(folder / "damaged"), DAYS[0], "W1")
        [manifest] = (folder / "damaged").rglob("*.manifest")
        manifest.write_text("{")
        with stopping(stage):
            stage.run_airflow("db", "migrate")
            # In Airflow's database, which only the API server and not a worker may read.
            slow = {"conn_type": "aws", "login": "a", "password": "b", "extra": {"endpoint_url": url}}
            stage.run_airflow("connections", "add", "slow_store", "--conn-json", json.dumps(slow))
            stage.start_api_server()
            server = Server(stage, hung)
            while not is_up(server):
                stage.check_alive()
                time.sleep(0.2)
            yield server


def is_up(server: Server) -> bool:
    try:
        return server.session.get(f"{server.stage.url}/api/v2/version").ok
    except requests.ConnectionError:
        return False


def notes_of(answer: requests.Response) -> list[str]:
    return re.findall("<p class=note>(.*?)</p>", answer.text)


def data_of(answer: requests.Response) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    assert answer.status_code == 200, notes_of(answer)
    return json.loads(answer.text.partition('id="data">')[2].partition("</script>")[0])  # type: ignore[no-any-return]


on_a_server = [pytest.mark.slow, needs_pages]


@pytest.mark.parametrize(("user", "status"), [(None, 401), ("nobody", 403), ("viewer", 200)])
class TestPermission:
    pytestmark = on_a_server

    def test_only_users_who_may_read_assets_see_the_page(self, server: Server, user: str | None, status: int) -> None:
        assert server.get(user, tree="days").status_code == status
        assert server.get(user, path="/api/v2/assets").status_code == status

    def test_only_users_who_may_read_assets_see_a_manifest(self, server: Server, user: str | None, status: int) -> None:
        file = f"{window_name(DAYS[0])}.manifest"
        answer = server.get(user, path="/unleash/manifest", tree="days", file=file)
        assert answer.status_code == status
        assert ('"device_id":"W1"' in answer.text) is (status == 200)

    def test_an_error_tells_others_nothing_about_the_trees(self, server: Server, user: str | None, status: int) -> None:
        answer = server.get(user, tree="no such tree")
        assert answer.status_code == (400 if status == 200 else status)
        assert ("days" in answer.text) is (status == 200)


class TestPage:
    pytestmark = on_a_server

    def test_it_shows_the_newest_30_windows_of_the_first_tree_in_the_grid_of_the_tree(self, server: Server) -> None:
        page = server.get(end="2026-05-08")
        data = data_of(page)
        assert (len(data["windows"]), data["labels"][-1]) == (30, ["2026-05-07", "2026-05-08"])
        assert [device["states"][-7:] for device in data["devices"]] == ["lllmlll"] * 2
        assert "open_folder('file://" in data["command"]
        assert page.headers["Content-Security-Policy"] == "frame-ancestors 'self'"

    @pytest.mark.parametrize(
        ("tree", "file", "status"),
        [
            *(("days", file, 400) for file in ("", "../days/x.manifest", f"../{window_name(DAYS[0])}.manifest")),
            *(("days", f"{window_name(DAYS[0])}.{end}", 400) for end in ("parquet", "manifest/../x", "00.manifest")),
            ("days", f"{window_name(DAYS[3])}.manifest", 404),
            ("days", f"{window_name(DAYS[0])}.0123abcd.manifest", 404),
            ("file:///etc", f"{window_name(DAYS[0])}.manifest", 400),
            ("lost", f"{window_name(DAYS[0])}.manifest", 400),
        ],
    )
    def test_only_manifests_of_configured_trees_are_shown(
        self, server: Server, tree: str, file: str, status: int
    ) -> None:
        answer = server.get(path="/unleash/manifest", tree=tree, file=file)
        assert answer.status_code == status
        assert answer.headers["Content-Type"].startswith("text/plain")

    def test_the_last_window_is_the_last_complete_one(self, server: Server) -> None:
        before = time.time() * 1000
        start, end = data_of(server.get(tree="hours"))["windows"][-1]
        after = time.time() * 1000
        assert end - start == 3_600_000
        assert end <= after
        assert before < end + 3_600_000

    def test_a_window_may_be_named_and_is_the_last(self, server: Server) -> None:
        data = data_of(server.get(tree="days", window=window_name(DAYS[2]), device="W2"))
        assert data["names"][-1] == window_name(DAYS[2])

    def test_the_query_chooses_span_grid_calendar_and_devices(self, server: Server) -> None:
        query = {"start": "2026-05-01", "end": "2026-05-02", "every": "PT12H", "timezone": "Europe/Berlin"}
        page = server.get(tree="hours", devices="W1, W9", **query)
        data = data_of(page)
        assert data["ids"] == ["W1", "W9"]
        assert data["labels"][0] == ["2026-05-01", "2026-05-01T12:00+02:00"]
        assert "windows of another grid" in notes_of(page)[0]
        for name, value in query.items():
            assert re.search(f'name="{name}"[^>]* value="{re.escape(value)}"', page.text)

    def test_the_page_of_a_dag_shows_the_tree_that_it_extracts_to(self, server: Server) -> None:
        """Trees that cannot be read come before it."""
        assert "<option selected>hours</option>" in server.get(dag_id="hourly").text

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ({"tree": "/etc"}, "has no tree"),
            ({"tree": "file:///etc"}, "has no tree"),
            ({"tree": "days", "timezone": "Mars"}, "is not a time zone"),
            ({"tree": "days", "start": "<b>soon"}, "&lt;b&gt;soon"),
            ({"tree": "days", "devices": "../W1"}, "device_id"),
            ({"tree": "days", "every": "PT1S", "start": "2020-01-01"}, "windows are more than 1,000"),
            ({"tree": "days", "start": "2026-01-01", "devices": ",".join(map(str, range(900)))}, "more than 100,000"),
            ({"tree": "lost"}, "no_such_connection"),
            ({"tree": "damaged"}, "is not a manifest"),
        ],
    )
    def test_a_wrong_query_or_tree_is_explained(self, server: Server, query: dict[str, str], words: str) -> None:
        answer = server.get(**query)
        assert answer.status_code == 400
        assert words in notes_of(answer)[0]
        assert "<form" in answer.text
        assert "<b>" not in answer.text


@pytest.mark.slow
@needs_pages
def test_a_store_that_does_not_respond_is_an_error_while_the_server_answers_others(server: Server) -> None:
    answers: list[requests.Response] = []
    asking = [threading.Thread(target=lambda: answers.append(server.get(tree="slow"))) for _ in range(6)]
    for thread in asking:
        thread.start()
    while not server.hung:
        time.sleep(0.05)
    for _ in range(3):
        assert server.session.get(f"{server.stage.url}/api/v2/version", timeout=10).ok
        assert answers == []
    for thread in asking:
        thread.join()
    assert [answer.status_code for answer in answers] == [504] * 6
    assert notes_of(answers[0]) == ["The store did not respond within 20 seconds"]
