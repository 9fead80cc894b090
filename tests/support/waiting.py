"""Waiting for what another thread or process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def wait_until(
    happened: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 60
) -> None:
    """Return once this is true; fail after a time that is long even on a busy machine, or if the process ends."""
    ends_at = time.monotonic() + seconds
    while not happened():
        if process is not None:
            assert process.poll() is None, f"The process ended too early with {process.returncode}"
        assert time.monotonic() < ends_at, f"Timeout after {seconds} seconds"
        time.sleep(0.002)  # a busy loop would slow down what it waits for
