"""Messages that would repeat: for each poll of a long wait, or for each client of a task."""

from __future__ import annotations

import logging
from functools import lru_cache


@lru_cache(maxsize=256)
def log_once(log: logging.Logger, message: str, level: int = logging.WARNING) -> None:
    log.log(level, "%s", message)
