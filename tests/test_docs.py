"""The documents show code that the tests run, and the names and defaults that the code has."""

from __future__ import annotations

import importlib
import inspect
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_unleash
from airflow_provider_unleash import exceptions
from airflow_provider_unleash.client import UnleashClient
from tests.support.paths import ROOT, TESTS
from tools.docs_snippets import CODE, Block, documents, find_faults, read_blocks

DOCUMENTS = documents()
BLOCKS = [block for document in DOCUMENTS for block in read_blocks(document)]
EXAMPLE_DAGS = ROOT / "example_dags"
EXAMPLES = {path.relative_to(EXAMPLE_DAGS).as_posix(): path.read_text() for path in sorted(EXAMPLE_DAGS.rglob("*.py"))}
PUBLIC = ("assets", "client", "coverage", "cursor", "delta", "exceptions", "hooks", "operators", "sensors", "triggers")
FIELDS = airflow_provider_unleash.get_provider_info()["connection-types"][0]["conn-fields"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


# ---- snippets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_code_in_a_document_is_an_excerpt_of_tested_code(document: Path) -> None:
    assert find_faults(read_blocks(document)) == []


@pytest.mark.parametrize(
    ("language", "text", "fault"),
    [
        ("python", "devices = UnleashListDevices(\n", "not an excerpt of an example"),
        ("python", "evices = UnleashListDevicesOperator(task_id=", "not an excerpt of an example"),
        ("python", "        dst=LAKE,\n", "a reader cannot paste this without valid syntax"),
        (
            "python",
            'RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=5)}\n',
            "cannot paste this without timedelta",
        ),
        (
            'python title="From example_unleash_hook.py"',
            "        dst=LAKE,\n",
            "not an excerpt of example_unleash_hook.py",
        ),
        ("sql", "SELECT rows FROM nowhere\n", "not an excerpt of an SQL file"),
        ("json", '{"timeout": 60,}\n', "not JSON"),
        ("shell", "make coffee\n", "the Makefile has no target coffee"),
        (
            "shell",
            "apt-get install redis\n",
            "no test that needs Debian packages names the command: apt-get install redis",
        ),
        ("shell", "pip install 'airflow-provider-unleash[parquet,s4]'\n", "pyproject.toml has no extra s4"),
        ("text", "airflow-provider-unleash[parquet,s4]\n", "pyproject.toml has no extra s4"),
        ("shell", "pip install '.[parquet,s4]'\n", "pyproject.toml has no extra s4"),
        ("shell", "pip install airflow_provider_unleash-0.0.9-py3-none-any.whl\n", "the wheel is airflow_provider"),
        ("shell", "pip install . --constraint constraints/airflow-1.0.txt\n", "there is no file constraints/"),
        ("bash", "python -m airflow_provider_unleash.simulator --prot 1\n", "unrecognized arguments: --prot 1"),
        ("bash", "python -m airflow_provider_unleash.simulator --fault kind=418x\n", "argument --fault"),
        ("shell", "python example.py\n", "no test runs python example.py"),
        ("shell", "curl https://api.unleashlive.com\n", "no test runs the program curl"),
        ("yaml", "a: b\n", "language must be one of python, sql, json, shell, bash, text, not yaml"),
        ("", "a\n", "not empty"),
    ],
)
def test_untested_code_is_a_fault(tmp_path: Path, language: str, text: str, fault: str) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"# A page\n\n```{language}\n{text}```\n")
    [found] = find_faults(read_blocks(document))
    assert found.startswith(f"{document}:3: ")
    assert fault in found


@pytest.mark.parametrize("fence", ["```", "~~~", "   ```", "````"])
def test_code_is_found_in_every_kind_of_fence(tmp_path: Path, fence: str) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"- a list\n\n{fence}json title=x\n{{\n{fence}\n\n{fence}\nb\n{fence}\n")
    indent = fence[: -len(fence.lstrip())] if fence != fence.lstrip() else ""
    assert [(block.line, block.language) for block in read_blocks(document)] == [(3, "json"), (7, "")]
    assert read_blocks(document)[0] == Block(document, 3, "json", "{\n".removeprefix(indent))


def test_indented_code_has_no_language_and_a_list_is_not_code(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("A page\n\n    a = 1\n    b = 2\n\n- a list\n\n    goes on\n\n::: module\n    options: {}\n")
    assert read_blocks(document) == [Block(document, 3, "", "a = 1\n")]
    assert len(find_faults(read_blocks(document))) == 1


@pytest.mark.parametrize("path", sorted(EXAMPLE_DAGS.rglob("*.sql")), ids=lambda path: path.name)
def test_every_sql_file_is_used_by_a_test_or_an_example(path: Path) -> None:
    tests = [test for test in TESTS.glob("**/*.py") if test != Path(__file__)]
    runners = [*(test.read_text() for test in tests), *EXAMPLES.values()]
    assert any(re.search(rf"""["'/]{re.escape(path.name)}["']""", runner) for runner in runners)


# ---- the readme --------------------------------------------------------------------------------


def test_the_readme_shows_the_whole_daily_dag() -> None:
    example = EXAMPLES["example_unleash_daily.py"]
    shown = example.split("# [START daily]\n")[1].split("# [END daily]\n")[0]
    assert shown in [block.text for block in read_blocks(ROOT / "README.md")]


@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
def test_the_first_line_of_text_says_which_unleash(document: str) -> None:
    title, first = [line for line in (ROOT / document).read_text().splitlines() if line][:2]
    assert title == "# airflow-provider-unleash"
    assert "Unleash live" in first
    assert "not the Unleash feature-flag server" in first


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 130


def test_every_page_is_linked_from_an_index() -> None:
    home = ROOT / "docs" / "index.md"
    assert ("docs/index.md", "") in links_of(ROOT / "README.md")
    indexes = [path for path in DOCUMENTS if path.name == "index.md"]
    linked = {(index.parent / target).resolve() for index in indexes for target, _ in links_of(index)}
    assert {name_of(path) for path in DOCUMENTS if path not in linked | {home, ROOT / "README.md"}} == set()
    assert {path for path in indexes if path != home} <= {
        (home.parent / target).resolve() for target, _ in links_of(home)
    }


# ---- links -------------------------------------------------------------------------------------


def links_of(document: Path) -> list[tuple[str, str]]:
    """Return path and anchor of a document's links within the project, without those in code."""
    text = CODE.sub("", document.read_text())
    return [(path, anchor) for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text)]


def anchors_of(document: Path) -> set[str]:
    """Return the anchors of a document's headings, on GitHub and on the site."""
    headings = re.findall(r"^#+ +(.*?) *$", re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=name_of)
def test_the_targets_of_links_within_the_project_exist(document: Path) -> None:
    for path, anchor in links_of(document):
        target = document.parent / path if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors_of(target), f"{path}#{anchor}"


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("# A `b`, c\n\n[x](y.md#a-b-c) `[no](link)` [z](#d) ![p](p.png) [w](https://w)\n")
    assert links_of(document) == [("y.md", "a-b-c"), ("", "d"), ("p.png", "")]
    assert anchors_of(document) == {"a-b-c"}


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=name_of)
def test_files_and_targets_that_the_text_names_exist(document: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", document.read_text())
    folders = "tests|tools|docs|example_dags|constraints|airflow_provider_unleash"
    paths = [text for text in code if re.fullmatch(rf"({folders})/[\w./-]*", text)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    commands = [text for text in code if re.fullmatch(r"make [a-z-]+( [A-Z]+=\S+)*", text)]
    assert find_faults([Block(document, 0, "shell", f"{command}\n") for command in commands]) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_linked_from_a_page(name: str) -> None:
    assert any(f"/example_dags/{name})" in document.read_text() for document in DOCUMENTS)


# ---- names and defaults ------------------------------------------------------------------------


def rows_under(text: str, head: str) -> list[list[str]]:
    """Return the cells of all tables with this first column; a bar in code does not separate cells."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        inside = line.startswith(f"| {head} |") or (inside and line.startswith("|"))
        if inside and not line.startswith((f"| {head} |", "| ---")):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def code_in(cell: str) -> str:
    [code] = re.findall(r"`([^`]+)`", cell)[:1] or [cell]
    return code


def parameters_of(kind: type) -> dict[str, Any]:
    """Return the parameters of a class's constructors in this package, with their defaults."""
    found: dict[str, Any] = {}
    for one in kind.__mro__:
        if one.__module__.startswith("airflow_provider_unleash") and "__init__" in vars(one):
            for name, parameter in inspect.signature(one.__init__).parameters.items():
                if name not in ("self", "kwargs"):
                    found.setdefault(name, parameter.default)
    return found


def documented_in(text: str, head: str = "parameter") -> dict[str, Any]:
    """Return the parameters of a page's tables, with their defaults."""
    values = {"required": inspect.Parameter.empty}
    return {
        code_in(row[0]): values.get(row[1]) or eval(code_in(row[1]), {"timedelta": timedelta})
        for row in rows_under(text, head)
    }


def sections_of(text: str) -> dict[str, str]:
    """Return a page's sections by heading; the text before the first one has the page's title."""
    return {part.partition("\n")[0]: part for part in re.split(r"^#{1,2} ", text, flags=re.MULTILINE) if part}


OPERATORS = [
    name
    for name in vars(importlib.import_module("airflow_provider_unleash.operators"))
    if re.match(r"Unleash\w+Operator$", name)
]


@pytest.mark.parametrize("module", PUBLIC)
def test_each_parameter_of_a_constructor_is_in_the_docstring_that_the_reference_shows(module: str) -> None:
    public = importlib.import_module(f"airflow_provider_unleash.{module}")
    for name, kind in vars(public).items():
        if inspect.isclass(kind) and kind.__module__ == public.__name__ and re.match("Unleash|SessionC|.*Error$", name):
            shown = set(re.findall(r"^:param (\w+):", inspect.getdoc(kind) or "", re.MULTILINE))
            if module == "exceptions":  # only the parameters that a class adds to its base
                own = vars(kind).get("__init__")
                names = set(inspect.signature(own).parameters) - {"self", "kwargs"} if own else set()
                assert shown == names - ({"message"} if kind is not public.UnleashError else set()), name
            else:
                assert shown == set(parameters_of(kind)), name


@pytest.mark.parametrize("name", OPERATORS)
def test_each_parameter_of_an_operator_is_documented_with_its_default_and_whether_it_is_a_template(name: str) -> None:
    operator = getattr(importlib.import_module("airflow_provider_unleash.operators"), name)
    sections = sections_of(page("operators"))
    texts = [sections["Operators"], sections[name]]
    texts += [sections[title] for title in ("Window", "Storage") if f"(#{title.lower()})" in sections[name]]
    documented: dict[str, Any] = {}
    for text in texts:
        assert not documented.keys() & documented_in(text).keys()
        documented |= documented_in(text)
    assert documented == parameters_of(operator)
    templates = {code_in(row[0]) for text in texts for row in rows_under(text, "parameter") if row[2] == "yes"}
    assert templates == set(operator.template_fields)


def test_each_parameter_of_the_sensor_is_documented_with_its_default_and_whether_it_is_a_template() -> None:
    from airflow_provider_unleash.sensors import UnleashNewSessionsSensor

    rows = rows_under(page("sensors-and-events"), "parameter")
    assert documented_in(page("sensors-and-events")) == parameters_of(UnleashNewSessionsSensor)
    assert {code_in(row[0]) for row in rows if row[2] == "yes"} == set(UnleashNewSessionsSensor.template_fields)


def test_each_parameter_of_the_triggers_is_documented() -> None:
    from airflow_provider_unleash.triggers import UnleashNewSessionsEventTrigger, UnleashNewSessionsTrigger

    text = page("sensors-and-events")
    documented = documented_in(text, "parameter of `UnleashNewSessionsEventTrigger`")
    assert documented == parameters_of(UnleashNewSessionsEventTrigger)
    [about] = re.findall(r"the sensor runs as an `UnleashNewSessionsTrigger`(.*?)\. ", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", about)) == set(parameters_of(UnleashNewSessionsTrigger))


def test_each_field_of_the_connection_is_documented_with_its_default() -> None:
    defaults = inspect.signature(UnleashClient.__init__).parameters
    rows = {code_in(row[0]): row[1] for row in rows_under(page("connection"), "field") if row[0].startswith("extra ")}
    assert rows.keys() == FIELDS.keys()
    for name, default in rows.items():
        text = code_in(default)
        value = {"not set": None, "true": True, "false": False}.get(text, text)
        expected = defaults[name].default
        assert (
            float(text) if isinstance(expected, (int, float)) and not isinstance(expected, bool) else value
        ) == expected


def test_every_error_that_a_user_sees_is_explained_once() -> None:
    branches = {"UnleashError", "TransientError", "PermanentError"}
    errors = {name for name in vars(exceptions) if name.endswith("Error")} - branches
    assert len(errors) == 15
    rows = [code_in(row[0]) for row in rows_under(page("failures"), "you see")]
    assert sorted(rows) == sorted(errors)
    permanent = [issubclass(getattr(exceptions, name), exceptions.PermanentError) for name in rows]
    assert permanent == [True] * 9 + [False] * 6  # the page names the last of the permanent errors


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    [shown] = [block.text for block in read_blocks(ROOT / "docs" / "failures.md") if block.language == "text"]
    assert inspect.cleandoc(exceptions.__doc__ or "").replace("\n    ", "\n").endswith(shown.strip())


def test_every_format_column_and_choice_is_documented() -> None:
    from typing import get_args

    from airflow_provider_unleash.core.columns import columns_of
    from airflow_provider_unleash.core.extract import OnEmpty
    from airflow_provider_unleash.core.formats import FileFormat

    text = page("formats")
    assert {code_in(row[0]) for row in rows_under(text, "`file_format`")} == set(get_args(FileFormat))
    assert {code_in(row[0]).strip('"') for row in rows_under(text, "`on_empty`")} == set(get_args(OnEmpty))
    shown = {code_in(row[0]): row[1].replace("\\[ms, UTC\\]", "") for row in rows_under(text, "column")}
    assert [*shown.items()] == [*columns_of(None).items()]


def test_every_field_of_a_manifest_is_documented_in_its_order() -> None:
    from airflow_provider_unleash.core.manifest import Entry

    assert [code_in(row[0]) for row in rows_under(page("account"), "field")] == [*Entry.__struct_fields__]


def test_every_public_name_is_in_the_readme_and_in_the_reference() -> None:
    named = {code_in(row[0]) for row in rows_under((ROOT / "README.md").read_text(), "import")}
    for name in named:
        module, _, attribute = name.partition(".")
        assert hasattr(importlib.import_module(f"airflow_provider_unleash.{module}"), attribute), name
    assert {name.partition(".")[0] for name in named} == set(PUBLIC)
    directives = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: airflow_provider_unleash\.([\w.]+)", directives, re.MULTILINE))
    assert {name for name in named if name not in shown and name.partition(".")[0] not in shown} == set()
    ours = {
        f"{module}.{name}"
        for module in ("hooks", "operators", "sensors", "triggers")
        for name in vars(importlib.import_module(f"airflow_provider_unleash.{module}"))
        if re.match(r"Unleash\w+(Hook|Operator|Sensor|Trigger)$", name) or name == f"Unleash{module[:-1].title()}"
    }
    own = {name for name in ours if _module_of(name) == f"airflow_provider_unleash.{name.partition('.')[0]}"}
    assert own - shown == set()
    # DAGs do not import the trigger of the sensor.
    assert own - named == {"triggers.UnleashNewSessionsTrigger"}


def _module_of(name: str) -> str:
    module, _, attribute = name.partition(".")
    return getattr(importlib.import_module(f"airflow_provider_unleash.{module}"), attribute).__module__


def test_every_extra_is_documented() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {code_in(row[0]) for row in rows_under(page("install"), "extra")} == set(extras)


def test_the_number_of_kinds_of_run_is_that_of_the_table() -> None:
    tables = page("windows-runs").partition("\n## ")[2]
    rows = [line for line in tables.splitlines() if re.match(r"\| (?!run |schedule |---)", line)]
    for name in ("operators", "windows"):
        assert f"{len(rows)} kinds of run" in page(name)
