"""What keeps a test of many processes within bounds: a folder that goes, and an end of its time."""

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
    """Raise when the time is over, and when somebody ends this process: SIGTERM would else leave the others behind."""

    def end(number: int, frame: object) -> None:
        if number == signal.SIGALRM:
            raise TimeoutError(f"Not over after {seconds} seconds")
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
