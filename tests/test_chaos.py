"""A short run of what ``make chaos`` does at length."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytest.importorskip("s3fs", reason="the extra s3 is not installed")

# Of these, one kills the store; some are duels, reruns, and so large that an upload has several parts.
EXTRACTIONS = 14


@pytest.mark.slow
def test_whatever_goes_wrong_the_lake_has_each_object_as_it_was_or_as_it_shall_be() -> None:
    command = [sys.executable, "-m", "tools.chaos", "--extractions", str(EXTRACTIONS), "--lanes", "2", "--tamper"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
    report, _, tampering = done.stdout.partition("found after tampering:")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(number.replace(",", "")) for number, name in re.findall(r"([0-9,]+)  (.+)", report)}
    assert "violations: 0 " in report
    assert counts["extractions"] == EXTRACTIONS
    assert counts["rows checked"] > 10_000
    assert counts["workers killed"] > 2
    assert counts["stores killed"] == 1
    # The same look finds what is wrong where something is.
    for found in ("stray objects", "open uploads", "differs from its last extraction", "temporary files"):
        assert found in tampering
