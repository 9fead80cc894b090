"""Write the figures of the cluster runs to docs/scale.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from tools.stage import ROOT

PAGE = ROOT / "docs" / "scale.md"
PICTURE = PAGE.with_suffix(".svg")


def write_figures(target: str, lines: Iterable[str]) -> None:
    """Replace the lines between the comment that names a make target and the next end comment."""
    between = re.compile(rf"(<!-- made by {re.escape(target)} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, number = between.subn(lambda found: f"{found[1]}\n{chr(10).join(lines)}\n\n{found[2]}", PAGE.read_text())
    assert number == 1, f"{PAGE.name} has no section for {target}"
    PAGE.write_text(text)


def table_lines(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return a table of two columns without headings."""
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
