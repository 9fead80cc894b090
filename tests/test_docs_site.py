"""The site is built only without broken links, pages and snippets, and loads nothing from other hosts."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the group docs is not installed")
pytest.importorskip("material", reason="the group docs is not installed")

from tests.support.paths import ROOT

PARTS = ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml", "mkdocs.yml")
FOLDERS = ("airflow_provider_unleash", "constraints", "docs", "example_dags", "tools")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a copy of the files that the site is built from."""
    for name in PARTS:
        shutil.copy(ROOT / name, tmp_path / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Besides examples, snippets come from these tests: Debian packages, and queries for readers that guess types.
    for name in ("cluster/test_show.py", "core/test_formats.py"):
        copied = tmp_path / "tests" / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, copied)
    return tmp_path


def build(clone: Path) -> subprocess.CompletedProcess[str]:
    """Run ``make docs`` with the environment of this test."""
    command = ["make", "docs", f"ENV={sys.prefix}", f"--old-file={sys.prefix}/.docs"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)


def test_the_site_contains_the_reference_and_the_files_outside_docs(clone):
    done = build(clone)
    assert done.returncode == 0, done.stderr
    site = clone / "build" / "site"
    pages = {path.relative_to(site).as_posix() for path in site.glob("**/*.html")}
    assert {"index.html", "changelog.html", "license.html", "examples.html"} <= pages
    for path in (clone / "example_dags").glob("**/*.py"):
        assert f"{path.relative_to(clone).as_posix()}.html" in pages
    assert 'href="../example_dags/' not in (site / "reliability.html").read_text()
    assert 'href="example_dags/example_unleash_gaps.py.html"' in (site / "reliability.html").read_text()
    operators = (site / "reference" / "operators.html").read_text()
    for name in ("device_id", "dst", "retry_policy", "&#39;unleash_default&#39;"):
        assert name in operators
    assert "UnleashListDevicesOperator(\n    *,\n" in re.sub(r"<[^>]+>", "", operators)
    # Docstrings are in reST, but readers should not see its markup.
    for page in (site / "reference").glob("*.html"):
        assert not any(role in page.read_text() for role in (":class:", ":meth:", ":func:", ":mod:", ".. code-block"))


def test_every_fault_is_reported_and_no_site_is_built(clone):
    (clone / "docs" / "stray.md").write_text("# Not in the navigation\n")
    with (clone / "docs" / "metrics.md").open("a") as page:
        page.write("\n[a](nowhere.md) [b](formats.md#nowhere) [c](../example_dags/nowhere.py) ![d](nowhere.png)\n")
        page.write("\nIndented:\n\n    import nowhere\n")
        page.write("\n[e](/formats.md)\n\n```python\nimport nowhere\n```\n")
        page.write('\n<script src="https://cdn.example.com/x.js"></script>\n')
    settings = (clone / "mkdocs.yml").read_text()
    (clone / "mkdocs.yml").write_text(settings.replace("metrics.md", "metrics.md\n      - Gone: gone.md"))
    source = clone / "airflow_provider_unleash" / "operators.py"
    source.write_text(source.read_text().replace(":param max_xcom_bytes:", ":param max_xcom_byte:"))
    done = build(clone)
    assert done.returncode != 0
    for fault in (
        'not included in the "nav" configuration:\n  - stray.md',
        "A reference to 'gone.md' is included in the 'nav' configuration, which is not found",
        "contains a link 'nowhere.md'",
        "does not contain an anchor '#nowhere'",
        "contains a link '../example_dags/nowhere.py'",
        "contains a link 'nowhere.png'",
        "contains an absolute link '/formats.md'",
        "not an excerpt of an example:\nimport nowhere",
        "language must be one of",
        "loads https://cdn.example.com/x.js from another host",
        "Parameter 'max_xcom_byte' does not appear in the function signature",
    ):
        assert fault in done.stderr


@pytest.mark.parametrize(
    ("text", "suffix", "found"),
    [
        ('<script src="https://x.com/a.js"></script>', ".html", ["https://x.com/a.js"]),
        ('<link href="//fonts.x.com/a.css" rel="stylesheet">', ".html", ["//fonts.x.com/a.css"]),
        (
            '<img src="http://x.com/a.png"><video poster="http://x.com/b.png">',
            ".html",
            ["http://x.com/a.png", "http://x.com/b.png"],
        ),
        (
            "@font-face { src: url('https://x.com/a.woff') } @import \"//x.com/b.css\";",
            ".css",
            ["https://x.com/a.woff", "//x.com/b.css"],
        ),
        ('<a href="https://x.com">x</a><script src="a/b.js"></script><img src="data:image/png;base64,">', ".html", []),
        ("a { background: url(b.svg) }", ".css", []),
    ],
)
def test_resources_of_other_hosts_are_found(text, suffix, found):
    assert importlib.import_module("tools.docs_hooks").find_outward(text, suffix) == found
