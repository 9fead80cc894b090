"""
Check the code in the documents.

Code in Markdown must be an exact excerpt of a file that a test runs. Python must be complete, so that a reader can
paste it, or have the title "From FILE.py" of the example that it is from. The site's build and tests/test_docs.py call
``find_faults``. The tests also check what needs Airflow: its commands and connections.
"""

from __future__ import annotations

import ast
import builtins
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

from airflow_provider_unleash import __version__

ROOT = Path(__file__).resolve().parents[1]
# Blocks and spans of code; they contain no links.
CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*$|(`+)(?!`).*?(?<!`)\3(?!`)", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[^\s`]*)(?: +title=\"(?P<title>[^\"]*)\")?")


@dataclass(frozen=True)
class Block:
    """
    A block of code in a document.

    :param path: path of the document.
    :param line: line number of the opening fence, from 1.
    :param language: language of the fence, or an empty string.
    :param text: the code, with a newline at the end.
    :param title: what is shown above the code.
    """

    path: Path
    line: int
    language: str
    text: str
    title: str = ""

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}"


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def read_blocks(path: Path) -> list[Block]:
    """Return a document's blocks of code. Indented code without a fence has no language."""
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
            blocks.append(Block(path, number, opening["language"], "\n".join([*text, ""]), opening["title"] or ""))
        elif line.startswith(("    ", "\t")) and not before and not in_list:
            blocks.append(Block(path, number, "", f"{line.strip()}\n"))
        elif line and not line.startswith(" "):
            in_list = bool(re.match(r"([-*+]|\d+\.) ", line))
        before = line.strip()
    return blocks


def find_faults(blocks: list[Block]) -> list[str]:
    """Return a message with location for each fault in the blocks."""
    return [f"{block}: {fault}" for block in blocks for fault in _faults_of(block)]


def _faults_of(block: Block) -> Iterator[str]:
    if block.language not in _CHECKS:
        yield f"language must be one of {', '.join(_CHECKS)}, not {block.language or 'empty'}"
    else:
        faults = list(_CHECKS[block.language](block.text))
        yield from faults or (_check_paste(block) if block.language == "python" else [])


# ---- excerpts ------------------------------------------------------------------------------------


def _check_python(code: str) -> Iterator[str]:
    if not any(f"\n{code}" in f"\n{example}" for example in _examples().values()):
        yield f"not an excerpt of an example:\n{code}"


def _check_paste(block: Block) -> Iterator[str]:
    """Yield a fault if code can neither be pasted nor names the example that it is from."""
    source = block.title.removeprefix("From ")
    if source != block.title:
        if block.text not in _examples().get(source, ""):
            yield f"not an excerpt of {source}"
        return
    try:
        missing = _undefined_names(ast.parse(block.text))
    except SyntaxError as error:
        missing = [f"valid syntax: {error.msg}"]
    if missing:
        yield f'a reader cannot paste this without {", ".join(missing)}; complete it, or add title="From FILE.py"'


def _undefined_names(tree: ast.Module) -> list[str]:
    """Return the names that code uses, but never binds."""
    bound, used = {*vars(builtins), "__file__"}, set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.partition(".")[0])
    return sorted(used - bound)


@cache
def _examples() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((ROOT / "example_dags").glob("**/*.py"))}


def _check_sql(code: str) -> Iterator[str]:
    if not any(f"\n{code}" in f"\n{text}\n" for text in _queries()):
        yield f"not an excerpt of an SQL file in example_dags/ or of a string in an example or test:\n{code}"


@cache
def _queries() -> list[str]:
    files = [path.read_text() for path in sorted((ROOT / "example_dags").glob("**/*.sql"))]
    sources = [*(ROOT / "example_dags").glob("**/*.py"), *(ROOT / "tests").glob("**/*.py")]
    # test_docs.py and test_docs_site.py run no queries.
    texts = [text for path in sorted(sources) if not path.name.startswith("test_docs") for text in _strings_in(path)]
    return [*files, *(_dedent(text.strip("\n")) for text in texts)]


def _strings_in(path: Path) -> Iterator[str]:
    """Yield the strings of a Python file, without its docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def _dedent(text: str) -> str:
    """Remove the common indent; the first line may follow its quotes directly."""
    first, _, rest = text.partition("\n")
    return f"{first.lstrip()}\n{dedent(rest)}".rstrip()


# ---- data and commands ---------------------------------------------------------------------------


def _check_json(code: str) -> Iterator[str]:
    try:
        json.loads(code)
    except ValueError as error:
        yield f"not JSON: {error}"


def read_commands(code: str) -> list[list[str]]:
    """Return the words of each command in a shell block."""
    commands, line = [], ""
    for part in code.replace("\\\n", " ").splitlines(keepends=True):
        line += part
        with suppress(ValueError):  # a quotation that continues on the next line
            words = shlex.split(line, comments=True)
            commands += [words] if words else []
            line = ""
    if line:
        raise ValueError(f"No closing quotation: {line}")
    return commands


def _check_shell(code: str) -> Iterator[str]:
    for program, *arguments in read_commands(code):
        if program not in _COMMANDS:
            yield f"no test runs the program {program}"
        else:
            yield from _COMMANDS[program](arguments)


def _check_make(arguments: list[str]) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    yield from (f"the Makefile has no target {word}" for word in arguments if "=" not in word and word not in targets)


def _check_packages(arguments: list[str]) -> Iterator[str]:
    command = f"apt-get {' '.join(arguments)}"
    if not any(command in path.read_text() for path in (ROOT / "tests").glob("*/*.py")):
        yield f"no test that needs Debian packages names the command: {command}"


def _check_pip(arguments: list[str]) -> Iterator[str]:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for word in arguments:
        named = re.match(r"(?:airflow-provider-unleash|\.|\S+\.whl)\[([^]]*)\]", word)
        for extra in named[1].split(",") if named else ():
            if extra.strip() not in extras:
                yield f"pyproject.toml has no extra {extra.strip()}"
        if word.endswith(".whl") or ".whl[" in word:
            wheel = f"airflow_provider_unleash-{__version__}-py3-none-any.whl"
            if not re.match(rf"(\S+/)?{re.escape(wheel)}(\[|$)", word):
                yield f"the wheel is {wheel}, not {word}"
        if word.startswith("constraints/") and not (ROOT / word).exists():
            yield f"there is no file {word}"


def _check_module(arguments: list[str]) -> Iterator[str]:
    from airflow_provider_unleash import coverage
    from airflow_provider_unleash.simulator import __main__ as simulator

    parsers = {
        "-m airflow_provider_unleash.coverage": coverage.build_parser,
        "-m airflow_provider_unleash.simulator": simulator.build_parser,
    }
    build_parser = parsers.get(" ".join(arguments[:2]))
    if build_parser is None:
        yield f"no test runs python {' '.join(arguments)}"
        return
    output = StringIO()
    try:
        with redirect_stderr(output):
            build_parser().parse_args(arguments[2:])
    except SystemExit:
        yield output.getvalue().strip().splitlines()[-1]


def _nothing(_: object) -> Iterator[str]:
    return iter(())


_COMMANDS: dict[str, Callable[[list[str]], Iterator[str]]] = {
    "apt-get": _check_packages,
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_module,
    "airflow": _nothing,  # checked with Airflow in tests/test_docs.py
    "export": _nothing,  # also there
}
_CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "python": _check_python,
    "sql": _check_sql,
    "json": _check_json,
    "shell": _check_shell,
    "bash": _check_shell,
    "text": lambda code: _check_pip(code.split()),  # e.g. a requirements.txt
}
