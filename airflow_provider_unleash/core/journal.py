"""The journal of an account's extraction: what its failed tries have landed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import msgspec

from airflow_provider_unleash.core.manifest import Entry
from airflow_provider_unleash.core.staging import StagingFolder
from airflow_provider_unleash.core.stores import StoragePath, publish
from airflow_provider_unleash.core.windows import RowCounts

log = logging.getLogger(__name__)

# A killed try forgets what it has landed since the journal was last saved.
SAVE_SECONDS = 5.0
# A killed try leaves a part of a file, with another name.
_FILE_NAME = re.compile(r"(\d{5})\.landed")


class Record(msgspec.Struct, frozen=True):
    """A device that has landed: its line of the manifest, and the counts of its rows."""

    entry: Entry
    counts: RowCounts


class _File(msgspec.Struct):
    """One file of the journal; ``source`` is what its records depend on."""

    source: str
    saved_at: float
    records: list[Record]


class Journal:
    """
    Keeps the devices that have landed, so that a retry on any worker extracts only the others.

    Each save is one object, ``<dst>/_staging/<hash>/00000.landed`` and so on; the hash is that of ``name``. An error in
    here costs requests, never rows: it is logged, and the devices are extracted again. Files older than
    ``resume_within`` or of another ``source`` are ignored.
    """

    def __init__(self, dst: StoragePath, name: str, source: Sequence[object], resume_within: timedelta) -> None:
        self._folder = StagingFolder(dst, name, source, resume_within)
        self._is_enabled = bool(resume_within)
        self._unsaved: list[Record] = []
        self._saved_at = time.monotonic()
        self._files = 0

    def load(self, read_completed: Callable[[], Mapping[str, Entry]]) -> dict[str, Record]:
        """
        Return what failed tries have landed, by device.

        ``read_completed`` returns the entries of the window's manifests; it is called only if there is a journal. A
        record that is not newer than its entry belongs to a task that succeeded, but could not remove its journal.
        """
        if not self._is_enabled:
            return {}
        records: dict[str, Record] = {}
        for path in self._list_files():
            try:
                file = msgspec.json.decode(path.fs.cat_file(path.path), type=_File)
            except Exception as error:
                log.warning("Cannot read %s, so its devices are extracted again: %s", path, error)
                continue
            if file.source == self._folder.source and self._folder.is_recent(file.saved_at):
                records |= {record.entry.device_id: record for record in file.records}
        completed = read_completed() if records else {}
        return {
            device_id: record
            for device_id, record in records.items()
            if device_id not in completed or record.entry.extracted_at > completed[device_id].extracted_at
        }

    def _list_files(self) -> list[StoragePath]:
        files = [found for name in self._folder.list_names() if (found := _FILE_NAME.fullmatch(name))]
        self._files = 1 + max((int(found[1]) for found in files), default=-1)
        return [self._folder.path / found[0] for found in files]

    def add(self, record: Record) -> None:
        self._unsaved.append(record)
        self.save_if_due()

    def save_if_due(self) -> None:
        """Save if the last time was long enough ago; called also while no device lands."""
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if not self._unsaved or not self._is_enabled:
            return
        self._saved_at = time.monotonic()  # also if it fails, so that a store that refuses is not asked for each device
        file = _File(self._folder.source, time.time(), self._unsaved)
        try:
            with publish(self._folder.path / f"{self._files:05}.landed") as stream:
                stream.write(msgspec.json.encode(file))
        except Exception as error:
            log.warning("Cannot save which devices have landed, so a retry would extract them again: %s", error)
            return
        self._files += 1
        self._unsaved = []

    def remove(self) -> None:
        self._unsaved = []
        if self._files:
            self._folder.remove()
