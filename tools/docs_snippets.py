"""
What the documents show as code, and what is wrong with it.

Code stands in Markdown as it is read on GitHub, and word for word in a file that a test runs. The build of the site
and tests/test_docs.py ask ``find_faults``; what needs Airflow (its command line, a connection), the tests try.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[1]
# Blocks and spans of code, in which a link is none.
CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*$|(`+)(?!`).*?(?<!`)\3(?!`)", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[^\s`]*)")


@dataclass(frozen=True)
class Block:
    """
    Code in a document.

    :param path: of the document.
    :param line: of the fence above the code, from 1.
    :param language: what the fence names; empty where it names none.
    :param text: the code, with a newline at the end.
    """

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}"


def documents() -> list[Path]:
    """Return the documents that people read."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def read_blocks(path: Path) -> list[Block]:
    """Return a document's blocks of code; what is code by its indent alone has no language."""
    blocks = []
    before, in_list = "", False
    lines = enumerate(path.read_text().splitlines(), 1)
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening:
            text = []
            for _, inside in lines:
                if re.fullmatch(rf" *{opening['fence']}+ *", inside):
                    break
                text.append(inside.removeprefix(opening["indent"]))
            blocks.append(Block(path, number, opening["language"], "\n".join([*text, ""])))
        elif line.startswith(("    ", "\t")) and not before and not in_list:
            blocks.append(Block(path, number, "", f"{line.strip()}\n"))
        elif line and not line.startswith(" "):
            in_list = bool(re.match(r"([-*+]|\d+\.) ", line))
        before = line.strip()
    return blocks


def find_faults(blocks: list[Block]) -> list[str]:
    """Say what is wrong with code in documents, and where; nothing where all is well."""
    return [f"{block}: {fault}" for block in blocks for fault in _faults_of(block)]


def _faults_of(block: Block) -> Iterator[str]:
    if block.language not in _CHECKS:
        yield f"code must be one of {', '.join(_CHECKS)}, not {block.language or 'without a language'}"
    else:
        yield from _CHECKS[block.language](block.text)


# ---- excerpts ------------------------------------------------------------------------------------


def _check_python(code: str) -> Iterator[str]:
    if not any(f"\n{code}" in f"\n{example}" for example in _examples()):
        yield f"no example has, word for word:\n{code}"


@cache
def _examples() -> list[str]:
    return [path.read_text() for path in sorted((ROOT / "example_dags").glob("**/*.py"))]


def _check_sql(code: str) -> Iterator[str]:
    if not any(f"\n{code}" in f"\n{text}\n" for text in _queries()):
        yield f"no file in example_dags/ and no text in an example or a test has, word for word:\n{code}"


@cache
def _queries() -> list[str]:
    files = [path.read_text() for path in sorted((ROOT / "example_dags").glob("**/*.sql"))]
    sources = [*(ROOT / "example_dags").glob("**/*.py"), *(ROOT / "tests").glob("**/*.py")]
    # The tests of the documents run no query.
    texts = [text for path in sorted(sources) if not path.name.startswith("test_docs") for text in _texts_in(path)]
    return [*files, *(_dedent(text.strip("\n")) for text in texts)]


def _texts_in(path: Path) -> Iterator[str]:
    """Yield the texts of a source, without its docstrings."""
    tree = ast.parse(path.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def _dedent(text: str) -> str:
    """Take away what lines are indented by for the code around them; the first may stand behind its quotes."""
    first, _, rest = text.partition("\n")
    return f"{first.lstrip()}\n{dedent(rest)}".rstrip()


# ---- data and commands ---------------------------------------------------------------------------


def _check_json(code: str) -> Iterator[str]:
    try:
        json.loads(code)
    except ValueError as error:
        yield f"no JSON: {error}"


def read_commands(code: str) -> list[list[str]]:
    """Return the words of each command of a block for the shell."""
    commands, line = [], ""
    for part in code.replace("\\\n", " ").splitlines(keepends=True):
        line += part
        with suppress(ValueError):  # a quotation that goes on in the next line
            words = shlex.split(line, comments=True)
            commands += [words] if words else []
            line = ""
    if line:
        raise ValueError(f"No closing quotation: {line}")
    return commands


def _check_shell(code: str) -> Iterator[str]:
    for program, *arguments in read_commands(code):
        if program not in _COMMANDS:
            yield f"no test tries commands of {program}"
        else:
            yield from _COMMANDS[program](arguments)


def _check_make(arguments: list[str]) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    yield from (f"no target {word} in the Makefile" for word in arguments if "=" not in word and word not in targets)


def _check_packages(arguments: list[str]) -> Iterator[str]:
    command = f"apt-get {' '.join(arguments)}"
    if not any(command in path.read_text() for path in (ROOT / "tests").glob("*/*.py")):
        yield f"no test that needs Debian's packages says: {command}"


def _check_pip(arguments: list[str]) -> Iterator[str]:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for word in arguments:
        named = re.match(r"airflow-provider-unleash\[([^]]*)\]", word)
        for extra in named[1].split(",") if named else ():
            if extra.strip() not in extras:
                yield f"no extra {extra.strip()} in pyproject.toml"


def _check_module(arguments: list[str]) -> Iterator[str]:
    if arguments[:2] != ["-m", "airflow_provider_unleash.simulator"]:
        yield f"no test tries python {' '.join(arguments)}"
        return
    from airflow_provider_unleash.simulator.__main__ import build_parser

    said = StringIO()
    try:
        with redirect_stderr(said):
            build_parser().parse_args(arguments[2:])
    except SystemExit:
        yield said.getvalue().strip().splitlines()[-1]


def _nothing(_: object) -> Iterator[str]:
    return iter(())


_COMMANDS: dict[str, Callable[[list[str]], Iterator[str]]] = {
    "apt-get": _check_packages,
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_module,
    "airflow": _nothing,  # tests/test_docs.py asks Airflow
    "export": _nothing,  # the same
}
_CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "python": _check_python,
    "sql": _check_sql,
    "json": _check_json,
    "shell": _check_shell,
    "bash": _check_shell,
    "text": lambda code: _check_pip(code.split()),  # a requirements.txt, too
}
