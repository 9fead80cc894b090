"""A temporary folder and a time limit for tests of many processes."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="unleash-live-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise on timeout, and if this process is terminated, so that it can end its child processes."""

    def end(number: int, frame: object) -> None:
        if number == signal.SIGALRM:
            raise TimeoutError(f"Timeout after {seconds} seconds")
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
