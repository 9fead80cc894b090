"""A short run of what ``make chaos`` does at length."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytest.importorskip("s3fs", reason="the extra s3 is not installed")

# Of these, one kills the store; some are of an account in either layout, duels or reruns.
EXTRACTIONS = 14


@pytest.mark.slow
def test_each_object_and_manifest_is_the_old_or_the_new_one_whatever_fails():
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
    assert counts["layout split"] > 1
    assert counts["layout one"] > 1
    assert counts["manifests"] >= EXTRACTIONS
    # The same checks find what is wrong.
    for found in (
        "stray objects",
        "open uploads",
        "differs from its last extraction",
        "the manifest of",
        "temporary files",
    ):
        assert found in tampering
