"""The core and its tests work where Airflow is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.python_processes import BLOCK


def test_every_test_of_the_core_is_collected_where_airflow_cannot_be_imported() -> None:
    code = BLOCK.format(blocked=["airflow"]) + (
        "import pytest\n"
        "code = pytest.main(['--collect-only', '--quiet', '-p', 'no:cacheprovider', 'tests/core'])\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'airflow']\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_test_of_the_core_cannot_import_airflow() -> None:
    with pytest.raises(ImportError):
        import airflow  # noqa: F401
