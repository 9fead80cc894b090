"""A griffe extension for the reference: links for reST roles, and constructors with the parameters of their bases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import griffe

PACKAGE = "airflow_provider_unleash"
# :class:`~a.b.Name`, :meth:`.Class.name`, :func:`name`
_ROLE = re.compile(r":(?:class|func|meth|mod):`(~?)\.?([\w.]+)`")
_CODE = re.compile(r"^\.\. code-block:: (\w+)\n\n((?: {4}.*\n|\n)*(?: {4}.*))", re.MULTILINE)


class Reference(griffe.Extension):
    """Lets mkdocstrings show docstrings that are written in reST, as Airflow's are."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if pkg.name != PACKAGE:
            return
        things = {thing.path: thing for thing in _walk(pkg)}
        for thing in things.values():
            if thing.docstring:
                link = _Links(thing.path, list(things))
                text = _CODE.sub(lambda code: f"```{code[1]}\n{dedent(code[2])}\n```", thing.docstring.value)
                thing.docstring.value = _ROLE.sub(link, text)
        for thing in things.values():
            if isinstance(thing, griffe.Class):
                _take_parameters_of_bases(thing, things)
            if isinstance(thing, griffe.Function):
                _show_defaults(thing, things)


def _walk(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from _walk(member)


class _Links:
    """Turns a reST role into a link of mkdocstrings. A short name means the nearest object of that name."""

    def __init__(self, here: str, paths: list[str]) -> None:
        self._here = here
        self._paths = paths

    def __call__(self, role: re.Match[str]) -> str:
        short, name = role.groups()
        found = [path for path in self._paths if path == name or path.endswith(f".{name}")]
        nearest = max(found, key=lambda path: self._nearness(path), default=name)
        return f"[`{name.rpartition('.')[2] if short else name}`][{nearest}]"

    def _nearness(self, path: str) -> int:
        pairs = zip(path.split("."), self._here.split("."), strict=False)
        return next((number for number, (one, other) in enumerate(pairs) if one != other), len(self._here))


def _take_parameters_of_bases(thing: griffe.Class, things: dict[str, griffe.Object]) -> None:
    """Replace ``**kwargs`` with the parameters of base classes in this package; Airflow's stay ``**kwargs``."""
    for base in thing.bases:
        path = base if isinstance(base, str) else base.canonical_path
        parent = things.get(path)
        if not isinstance(parent, griffe.Class):
            continue
        _take_parameters_of_bases(parent, things)
        inherited, own = parent.members.get("__init__"), thing.members.get("__init__")
        if not isinstance(inherited, griffe.Function):
            continue
        if own is None:
            taken = griffe.Function("__init__", parameters=griffe.Parameters(*inherited.parameters))
            thing.set_member("__init__", taken)
        elif isinstance(own, griffe.Function) and "kwargs" in own.parameters:
            first = [one for one in own.parameters if one.name != "kwargs"]
            names = {one.name for one in first}
            own.parameters = griffe.Parameters(*first, *(one for one in inherited.parameters if one.name not in names))


def _show_defaults(function: griffe.Function, things: dict[str, griffe.Object]) -> None:
    """Show the value of a default instead of the name of its constant."""
    for parameter in function.parameters:
        if isinstance(parameter.default, griffe.Expr):
            constant = things.get(parameter.default.canonical_path)
            if isinstance(constant, griffe.Attribute) and constant.value is not None:
                parameter.default = constant.value
