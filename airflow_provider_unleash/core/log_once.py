"""Warnings that would repeat: for each poll of a long wait, or for each client of a task."""

from __future__ import annotations

import logging
from functools import lru_cache


@lru_cache(maxsize=256)
def warn_once(log: logging.Logger, message: str) -> None:
    """Log a warning, once per process."""
    log.warning("%s", message)
