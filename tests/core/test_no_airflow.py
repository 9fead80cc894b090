"""The core and its tests work without Airflow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.python_processes import BLOCK, import_root


def test_all_core_tests_are_collected_without_airflow():
    code = BLOCK.format(blocked=["airflow"]) + (
        "import pytest\n"
        "code = pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider', 'tests/core'])\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'airflow']\n"
        "sys.exit(code)\n"
    )
    environment = import_root(dict(os.environ))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_core_test_cannot_import_airflow():
    with pytest.raises(ImportError):
        import airflow  # noqa: F401
