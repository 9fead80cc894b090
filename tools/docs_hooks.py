"""
MkDocs hooks for `make docs`: check snippets, and add pages for files outside docs/.

The documents link to examples, the changelog and the license by their paths in the repository, which works on GitHub.
In the site, these files become pages, and the links are rewritten.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files, InclusionLevel

from tools.docs_snippets import CODE, ROOT, documents, find_faults, read_blocks

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

# A warning of a logger below "mkdocs" fails a strict build.
log = logging.getLogger("mkdocs.hooks.docs")

EXAMPLES = sorted(path for kind in ("py", "sql") for path in (ROOT / "example_dags").glob(f"**/*.{kind}"))
# Pages by paths in the repository.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "README.md": "index.md",
    "example_dags": "examples.md",
    **{name: f"{name}.md" for name in (path.relative_to(ROOT).as_posix() for path in EXAMPLES)},
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_pre_build(config: MkDocsConfig) -> None:
    for fault in find_faults([block for path in documents() for block in read_blocks(path)]):
        log.warning(fault)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, content in _generate():
        files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def _generate() -> Iterator[tuple[str, str]]:
    yield "changelog.md", (ROOT / "CHANGELOG.md").read_text()
    yield "license.md", f"# License\n\n```text\n{(ROOT / 'LICENSE').read_text()}```\n"
    lines = []
    for path in EXAMPLES:
        name = path.relative_to(ROOT / "example_dags").as_posix()
        source = path.read_text()
        about = (ast.get_docstring(ast.parse(source)) or "").replace("``", "`") if path.suffix == ".py" else ""
        lines.append(f"- [{name}](example_dags/{name}.md)" + (f": {about.splitlines()[0]}" if about else ""))
        yield f"example_dags/{name}.md", f"# {name}\n\n{about}\n\n````{path.suffix[1:]}\n{source}````\n"
    yield (
        "examples.md",
        "\n".join(["# Examples", "", "Each example is run by a test, or says what is not tested.", "", *lines, ""]),
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to files of the repository; MkDocs warns about links without a page."""
    # Only the changelog keeps the links of a file in the root folder.
    at_root = page.file.src_uri == "changelog.md"
    folder = "." if at_root else posixpath.join("docs", posixpath.dirname(page.file.src_uri))
    pieces, end = [], 0
    for code in CODE.finditer(markdown):
        pieces += [_relink(markdown[end : code.start()], folder, page), code[0]]
        end = code.end()
    return "".join([*pieces, _relink(markdown[end:], folder, page)])


def _relink(text: str, folder: str, page: Page) -> str:
    here = posixpath.dirname(page.file.src_uri) or "."

    def relink(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return posixpath.relpath(PAGES[target], here) if target in PAGES else link[1]

    return _LINK.sub(relink, text)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn about resources that a browser would load from other hosts."""
    for path in sorted(Path(config.site_dir).glob("**/*")):
        if path.suffix in (".html", ".css"):
            for address in find_outward(path.read_text(), path.suffix):
                log.warning("%s loads %s from another host", path.relative_to(config.site_dir), address)


def find_outward(text: str, suffix: str = ".html") -> list[str]:
    """Return the addresses of resources that a page or a style sheet loads from other hosts."""
    if suffix == ".css":
        loaded = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", text)
    else:
        parser = _Loaded()
        parser.feed(text)
        loaded = parser.addresses
    return [address for address in loaded if re.match(r"(\w+:)?//", address)]


class _Loaded(HTMLParser):
    """Collects the resources of a page. Links to follow are not resources."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            return
        for name, value in attrs:
            if name in ("src", "href", "data", "poster") and value:
                self.addresses.append(value)
