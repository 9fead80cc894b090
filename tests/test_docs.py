"""What the documents show is what the tests run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLES = {path.name: path.read_text() for path in sorted((ROOT / "example_dags").glob("*.py"))}


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_code_is_an_excerpt_of_an_example(document: Path) -> None:
    for block in python_blocks(document):
        assert any(block in example for example in EXAMPLES.values()), f"No example has:\n{block}"


def test_the_readme_shows_the_daily_dag_whole() -> None:
    example = EXAMPLES["example_unleash_daily.py"]
    shown = example.split("# [START daily]\n")[1].split("# [END daily]\n")[0]
    assert shown in python_blocks(ROOT / "README.md")


def test_the_first_line_of_text_says_which_unleash() -> None:
    title, first = [line for line in (ROOT / "README.md").read_text().splitlines() if line][:2]
    assert title == "# airflow-provider-unleash"
    assert "Unleash live" in first
    assert "not the Unleash feature-flag server" in first


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_linked_from_the_readme(name: str) -> None:
    assert f"(example_dags/{name})" in (ROOT / "README.md").read_text()


def test_every_error_that_a_user_meets_is_explained() -> None:
    from airflow_provider_unleash import exceptions

    branches = {"UnleashError", "TransientError", "PermanentError"}
    errors = {name for name in vars(exceptions) if name.endswith("Error")} - branches
    assert len(errors) == 13
    readme = (ROOT / "README.md").read_text()
    assert {name for name in errors if f"`{name}`" not in readme} == set()
