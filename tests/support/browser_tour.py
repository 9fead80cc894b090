"""
A tour of Airflow's web interface in a real browser, from the connection form to the summary of a successful run.

The tour reads what each page shows from its DOM, and keeps everything that the browser received for a search.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.support.live_airflow import LiveStage, wait_until
from tests.support.paths import EXAMPLES
from tests.support.secret_search import KEYS
from tools.stage import BUILD, StageError

DAG_ID = "example_unleash_daily"
DEVICES = ("Wb8fabc31378ce07", "W022abc5be35bb72")
KEY = KEYS[0]
WRONG_KEY = "wRongKey/4711+key="
EXTRAS = {
    "auth": "api_key",
    "timeout": 12.5,
    "response_timeout": 240,
    "max_attempts": 3,
    "page_concurrency": 2,
    "mask_stream_tokens": 1,
    "verify": certifi.where(),
    "allow_http": True,
}
SECONDS_FOR_A_STEP = 60
SECONDS_FOR_THE_RUN = 180
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    # Resolve no outside host names, and use no proxy.
    *("--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)
# Widths of the screenshots in the documentation. The wide one fits a task's tabs in one line.
NARROW, WIDE = 1200, 1440


@dataclass(frozen=True)
class Field:
    """
    A form field, read from the DOM.

    :param kind: ARIA role or type of the input.
    """

    label: str
    kind: str
    placeholder: str
    help: str


@dataclass
class Seen:
    """
    What a user has seen, from the form to the summary.

    :param offered: connection types offered for "unleash".
    :param standard: standard fields of the form by name.
    :param extras: extra fields of the form by name.
    :param choices: options of the select fields by name.
    :param key_inputs: type of the key's input while typing; with its value when the connection is edited.
    :param saved: the connection as Airflow's API returns it.
    :param edited: values of the extra fields when the connection is edited, by name.
    :param answers: results of testing the connection, by what was tested.
    :param states: task states as shown on the run's page; ``run`` is the state of the run.
    :param summary: summary of an extraction, from its XCom tab.
    :param rendered: rendered fields of that extraction.
    :param texts: contents of all pages, and everything that the browser received.
    :param urls: everything that the browser requested.
    """

    offered: list[str] = field(default_factory=list)
    standard: dict[str, Field] = field(default_factory=dict)
    extras: dict[str, Field] = field(default_factory=dict)
    choices: dict[str, list[str]] = field(default_factory=dict)
    key_inputs: list[tuple[str, str | None]] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)
    edited: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rendered: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str | bytes] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)


def start_airflow(stage: LiveStage) -> None:
    """Start everything that a run needs, with the daily example and without a connection."""
    dags = stage.folder / "dags"
    dags.mkdir()
    shutil.copy(EXAMPLES / f"{DAG_ID}.py", dags)
    stage.start_simulator("--api-key", KEY, "--devices", ",".join(DEVICES), "--rows-per-day", "500")
    # The run must use the connection that is added through the form.
    del stage.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"]
    stage.environ |= {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        # The DAG is not paused, because the trigger dialog would unpause it at the same time and SQLite allows one
        # writer. With the schedule off, only triggered runs start.
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
    }
    stage.run_airflow("db", "migrate")
    stage.start_api_server()
    stage.start_airflow("dag-processor")
    stage.start_airflow("scheduler", "-s")
    wait_until(lambda: stage.has_api_server() and bool(stage.query("SELECT dag_id FROM serialized_dag")), stage)


def find_chromium() -> str:
    """Return the path of a Chromium browser."""
    for name in CHROMIUM:
        if path := shutil.which(name):
            return path
    raise StageError(f"None of {', '.join(CHROMIUM)} is installed. On Debian: apt-get install chromium")


@contextmanager
def open_page(folder: Path, seen: Seen) -> Iterator[Page]:
    """Yield a page of a new browser. Afterwards, ``seen`` contains everything that it requested and received."""
    archive = folder / "received.har"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile",
            executable_path=find_chromium(),
            args=OPTIONS,
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
            record_har_path=archive,
            record_har_content="embed",
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(SECONDS_FOR_A_STEP * 1000)
        page = context.pages[0]
        try:
            yield page
        except Exception:
            BUILD.mkdir(exist_ok=True)
            page.screenshot(path=BUILD / "browser-failed.png")
            raise
        finally:
            context.close()
    _read_archive(archive, seen)


def _read_archive(archive: Path, seen: Seen) -> None:
    known: set[bytes] = set()
    for number, entry in enumerate(json.loads(archive.read_text())["log"]["entries"]):
        url, content = entry["request"]["url"], entry["response"]["content"]
        seen.urls.append(url)
        text = content.get("text", "")
        body = base64.b64decode(text) if content.get("encoding") == "base64" else text.encode()
        seen.texts[f"head {number} of {url}"] = json.dumps([url, entry["response"]["headers"]])
        if body not in known:  # all pages load the same megabytes of scripts
            known.add(body)
            seen.texts[f"answer {number} of {url}"] = body


def take_tour(page: Page, stage: LiveStage, seen: Seen, pictures: Path) -> None:
    """Add a connection, test it with a valid and a wrong key, run the example, and read its results."""
    expect.set_options(timeout=SECONDS_FOR_A_STEP * 1000)
    _add_connection(page, stage, seen, pictures)
    seen.answers["right key"] = _test_connection(page, stage, seen, pictures / "connection-test-ok.png")
    _edit_connection(page, seen, lambda form: _fill_key(form, seen, WRONG_KEY))
    seen.answers["wrong key"] = _test_connection(page, stage, seen, pictures / "connection-test-wrong-key.png")
    _edit_connection(page, seen, lambda form: _fill_key(form, seen, KEY))
    seen.answers["right key again"] = _test_connection(page, stage, seen)
    run = _trigger(page, stage)
    _watch(page, stage, run, seen, pictures)
    _read_task(page, f"{run}/tasks/extract", seen, pictures)
    for task in ("extract", "report"):
        page.goto(f"{run}/tasks/{task}")
        expect(page.get_by_test_id("virtualized-list")).to_contain_text("Post Execute")
        _keep_text(page, seen)
    # Last, because the example needs a working connection.
    _edit_connection(page, seen, lambda form: _move_port_into_host(form, stage))
    seen.answers["no port"] = _test_connection(page, stage, seen)


def _add_connection(page: Page, stage: LiveStage, seen: Seen, pictures: Path) -> None:
    page.set_viewport_size({"width": NARROW, "height": 1000})
    page.goto(f"{stage.url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.locator("[name=connection_id]").fill("unleash_default")
    form.get_by_label("Connection Type").fill("unleash")
    seen.offered = page.get_by_role("option").all_inner_texts()
    page.get_by_role("option", name="Unleash live", exact=True).click()
    section = _open_section(form, "Standard Fields")
    seen.standard = _read_fields(section)
    api = urlsplit(stage.api)
    form.locator("[name=host]").fill(f"{api.scheme}://{api.hostname}")
    form.locator("[name=port]").fill(str(api.port))
    _fill_key(form, seen, KEY)
    _take_picture(page, pictures / "connection-form.png", form)
    section = _open_section(form, "Extra Fields")
    seen.extras = _read_fields(section)
    for name, what in seen.extras.items():
        _fill_extra(section, name, what, EXTRAS[name], seen)
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    seen.saved = page.request.get(f"{stage.url}/api/v2/connections/unleash_default").json()


def _fill_extra(section: Locator, name: str, what: Field, value: Any, seen: Seen) -> None:
    root = section.locator("[data-scope=field][data-part=root]").filter(
        has=section.page.locator(f"[name=element_{name}]")
    )
    if what.kind == "combobox":
        root.get_by_role("combobox").click()
        # The list of options is at the end of the page, outside the form.
        options = section.page.get_by_role("option")
        seen.choices[name] = options.all_inner_texts()
        options.filter(has_text=re.compile(f"^{value}(:|$)")).click()
    elif what.kind == "checkbox":
        root.locator("[data-scope=switch][data-part=control]").click()
    else:
        root.locator(f"[name=element_{name}]").fill(str(value))


def _edit_connection(page: Page, seen: Seen, change: Callable[[Locator], None]) -> None:
    page.set_viewport_size({"width": NARROW, "height": 1000})
    page.goto(urlsplit(page.url)._replace(path="/connections", query="").geturl())
    page.get_by_role("button", name="Edit Connection").click()
    form = page.get_by_role("dialog")
    expect(form.locator("[name=host]")).not_to_have_value("")
    section = _open_section(form, "Extra Fields")
    seen.edited = section.evaluate(_READ_VALUES)
    _open_section(form, "Standard Fields")
    key = form.locator("[name=password]")
    seen.key_inputs.append((key.get_attribute("type") or "", key.input_value()))
    change(form)
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)


def _fill_key(form: Locator, seen: Seen, key: str) -> None:
    input_ = form.locator("[name=password]")
    input_.fill(key)
    seen.key_inputs.append((input_.get_attribute("type") or "", None))
    seen.texts[f"form {len(seen.texts)}"] = form.inner_text()


def _move_port_into_host(form: Locator, stage: LiveStage) -> None:
    form.locator("[name=host]").fill(stage.api)
    form.locator("[name=port]").fill("")


def _test_connection(page: Page, stage: LiveStage, seen: Seen, picture: Path | None = None) -> str:
    page.set_viewport_size({"width": NARROW, "height": 560})
    page.goto(f"{stage.url}/connections")  # reload to clear the notifications about saving
    page.get_by_role("button", name="Test Connection").click()
    note = page.locator("[data-scope=toast][data-part=root]")
    expect(note).to_have_count(1)
    page.mouse.move(NARROW / 2, 400)  # otherwise it rests on a button and shows its tooltip
    if picture:
        _take_picture(page, picture)
    _keep_text(page, seen)
    return note.inner_text().replace("\n", ": ")


def _trigger(page: Page, stage: LiveStage) -> str:
    """Trigger a run and return its URL."""
    page.set_viewport_size({"width": WIDE, "height": 710})
    page.goto(f"{stage.url}/dags/{DAG_ID}")
    page.get_by_test_id("trigger-dag-button").click()
    with page.expect_response(lambda answer: answer.request.method == "POST" and "/dagRuns" in answer.url) as made:
        page.get_by_test_id("trigger-dag-submit").click()
    return f"{stage.url}/dags/{DAG_ID}/runs/{made.value.json()['dag_run_id']}"


def _watch(page: Page, stage: LiveStage, run: str, seen: Seen, pictures: Path) -> None:
    page.goto(run)
    badges = page.get_by_test_id("state-badge")
    over = re.compile("Success|Failed")
    # The page refreshes itself while the run is active.
    expect(badges.first).to_have_text(over, timeout=SECONDS_FOR_THE_RUN * 1000)
    stage.check_alive()
    page.goto(run)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    seen.states["run"] = badges.first.inner_text()
    for row in rows.all():
        task, state = (row.get_by_test_id(f"table-cell-{name}").inner_text() for name in ("task_display_name", "state"))
        seen.states[task] = state
    _take_picture(page, pictures / "daily-run.png")
    _keep_text(page, seen)


def _read_task(page: Page, task: str, seen: Seen, pictures: Path) -> None:
    page.set_viewport_size({"width": WIDE, "height": 880})
    page.goto(f"{task}/xcom")
    page.get_by_test_id("expand-all-button").click()
    editor = page.locator("tbody [role=code]")
    expect(editor).to_contain_text("devices_with_rows")
    _take_picture(page, pictures / "xcom-summary.png")
    # The DOM contains only the visible lines.
    page.locator("tbody").get_by_role("button", name="Copy to clipboard").click()
    seen.summary = json.loads(page.evaluate("navigator.clipboard.readText()"))
    _keep_text(page, seen)
    page.goto(f"{task}/rendered_templates")
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible()
    for row in rows.all():
        name, value = row.locator("td").all()
        without_numbers = value.locator("code > span > span:nth-child(n+2)")
        seen.rendered[name.inner_text()] = "".join(without_numbers.all_text_contents())
    _take_picture(page, pictures / "rendered-fields.png")
    _keep_text(page, seen)


_READ_FIELDS = """
section => Object.fromEntries([...section.querySelectorAll("[data-scope=field][data-part=root]")].map(root => {
  const input = root.querySelector("input:not([type=hidden]), textarea");
  const text = part => part ? part.innerText.trim() : "";
  return [root.querySelector("[name]").name.replace(/^element_/, ""), {
    label: text(root.querySelector("[data-scope=field][data-part=label]")),
    kind: input.getAttribute("role") || input.type,
    placeholder: input.placeholder,
    help: text(root.querySelector("[data-part=helper-text]")),
  }];
}))
"""
_READ_VALUES = """
section => Object.fromEntries([...section.querySelectorAll("[name^=element_]")].map(input => [
  input.name.replace(/^element_/, ""), input.type === "checkbox" ? input.checked : input.value,
]))
"""


def _read_fields(section: Locator) -> dict[str, Field]:
    return {name: Field(**what) for name, what in section.evaluate(_READ_FIELDS).items()}


def _open_section(form: Locator, name: str) -> Locator:
    button = form.get_by_role("button", name=name, exact=True)
    if button.get_attribute("aria-expanded") != "true":
        button.click()
    section = form.locator(f"[id='{button.get_attribute('aria-controls')}']")
    expect(section.locator("[data-scope=field]").first).to_be_visible()
    return section


def _keep_text(page: Page, seen: Seen) -> None:
    seen.texts[f"page {len(seen.texts)} {page.url}"] = page.content() + page.locator("body").inner_text()


def _take_picture(page: Page, path: Path, part: Locator | None = None) -> None:
    page.wait_for_load_state("networkidle")
    expect(page.locator("[role=progressbar]:visible")).to_have_count(0)
    page.evaluate("document.fonts.ready")
    (part or page).screenshot(path=path, animations="disabled", caret="hide")
