"""Python processes that tests start: a piece of code, or a module of ``tests.support``."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import ROOT

BLOCK = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
"""


def run_code(code: str, *options: str) -> str:
    """Run code in a new Python process and return its output."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, cwd="/", env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_module(
    name: str, *arguments: object, environment: dict[str, str] | None = None, given: str | None = None
) -> str:
    """Run a module of ``tests.support`` in a new Python process and return its output; ``given`` is its input."""
    done = subprocess.run(
        module_command(name, *arguments),
        env=import_root(environment or {**os.environ}),
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def module_command(name: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of ``tests.support``, in an environment of :func:`import_root`."""
    return [sys.executable, "-m", f"tests.support.{name}", *map(str, arguments)]


def import_root(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment with the root of the repository on Python's path."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
