"""Progress of an extraction: a line in the log every ten seconds."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0


class Progress:
    """
    Counts what is done, and logs it.

    :param what: starts each line.
    :param unit: what is counted, in the plural.
    :ivar total: how many there are; the caller may correct it.
    """

    def __init__(self, what: str, unit: str, total: int) -> None:
        self._what = what
        self._unit = unit
        self.total = total
        self.done = self._rows = 0
        self._began = self._logged = time.monotonic()

    def add(self, rows: int) -> None:
        self.done += 1
        self._rows += rows
        now = time.monotonic()
        if now - self._logged >= PROGRESS_SECONDS:
            self._logged = now
            rate = self.done / (now - self._began)
            log.info(
                "%s%d of %d %s (%.0f %%), %d rows, %.0f %s/s, about %.0f s left",
                self._what,
                self.done,
                self.total,
                self._unit,
                100 * self.done / self.total,
                self._rows,
                rate,
                self._unit,
                (self.total - self.done) / rate,
            )
