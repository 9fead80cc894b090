"""Staged pages: a retry of a long extraction continues where the last try stopped, on any worker."""

from __future__ import annotations

import gzip
import hashlib
import logging
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from itertools import count
from types import TracebackType

import msgspec

from airflow_provider_unleash import __version__
from airflow_provider_unleash.core.names import STAGING
from airflow_provider_unleash.core.pages import Snapshot
from airflow_provider_unleash.core.protocol import Page, Response, parse_page, render_page
from airflow_provider_unleash.core.stores import (
    PART_BYTES,
    StoragePath,
    abort_uploads,
    list_names,
    publish,
    remove_tree,
)
from airflow_provider_unleash.exceptions import SnapshotChangedError

log = logging.getLogger(__name__)

# Staging fewer pages than this costs more than requesting them again.
CHECKPOINT_PAGES = 200
_PAGES = ".pages"
# Level 1 takes a third of the time of level 6, for files that are rarely read.
_GZIP_LEVEL = 1
# A page that is larger is not staged, so a longer line is damaged.
_MAX_LINE_BYTES = 1 << 26


class _Header(msgspec.Struct):
    """The first line of a staged file: what its pages belong to."""

    source: str
    snapshot: Snapshot
    staged_at: float
    first_page: int


class _UnusableError(Exception):
    """A staged file is too old or does not fit, or a page does not."""


class StagingFolder:
    """
    Where tries of an extraction leave what a retry needs: ``<dst>/_staging/<hash of name>``.

    :param source: what the content depends on, besides the name, such as base URL and endpoint.
    :param resume_within: older content is not used.
    """

    def __init__(self, dst: StoragePath, name: str, source: Sequence[object], resume_within: timedelta) -> None:
        self.path = dst / STAGING / hashlib.sha256(name.encode()).hexdigest()[:16]
        self.source = repr((*source, __version__))
        self._resume_within = resume_within.total_seconds()

    def is_recent(self, saved_at: float) -> bool:
        return time.time() - saved_at <= self._resume_within

    def list_names(self) -> list[str]:
        try:
            return sorted(list_names(self.path))
        except Exception as error:  # of any kind: stores raise errors of their libraries
            log.warning("Cannot list %s, so nothing in it is used: %s", self.path, error)
            return []

    def remove(self) -> None:
        _remove_logged(self.path)


class Staging:
    """
    Stages the pages of one object while they are read, and loads those that an earlier try has staged.

    Each ``checkpoint_pages`` pages become one file, ``<dst>/_staging/<hash>/00000.pages`` and so on, published whole or
    not at all; the hash is that of the object's name. A file starts with a line about what its pages belong to; each
    further line is a checksum and a page, as a response of the API. Tries that read the same object at the same time
    write the same files. ``source`` is what else determines the pages, such as base URL and endpoint. Extractions of at
    most ``checkpoint_pages`` pages are not staged. Files older than ``resume_within`` are removed, not used.

    An error in here costs requests, never rows: it is logged and the API is asked instead. A context manager: the files
    stay until :meth:`remove`, unless the block raises because the pages changed.

    :ivar has_files: whether there may be staged files, which :meth:`remove` removes.
    """

    def __init__(
        self,
        dst: StoragePath,
        object_name: str,
        source: Sequence[object],
        *,
        checkpoint_pages: int | None,
        resume_within: timedelta,
    ) -> None:
        self._folder = StagingFolder(dst, object_name, source, resume_within)
        self._checkpoint_pages = checkpoint_pages
        self._snapshot = Snapshot(0, b"", b"")
        self._file = ExitStack()
        self._stream: gzip.GzipFile | None = None
        self._next_file = self._pages_in_file = 0
        self._is_enabled = self.has_files = False
        self.next_page = 2
        self.resumed_pages = 0

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard_file()
        if isinstance(error, SnapshotChangedError):
            self.remove()

    def stages(self, total_pages: int) -> bool:
        return self._checkpoint_pages is not None and total_pages > self._checkpoint_pages

    def load(self, snapshot: Snapshot) -> Iterator[Page]:
        """
        Yield the pages from page 2 on that an earlier try has staged, without a gap; call it before :meth:`keep`.

        Staged pages of another snapshot or source are removed.
        """
        self._snapshot = snapshot
        self._is_enabled = True
        found = self._folder.list_names()
        self.has_files = bool(found)
        for index in count():
            if _file_name(index) not in found:
                break
            path = self._folder.path / _file_name(index)
            try:
                for page in self._read_file(path):
                    self.resumed_pages += 1
                    self.next_page += 1
                    yield page
            except Exception as error:
                # Another try may have removed the file, or it is damaged. The API has these pages too.
                log.warning("Cannot use staged pages in %s: %s", path, error)
                break
            self._next_file = index + 1
        if self.resumed_pages:
            log.info("Resuming at page %d, after the staged pages in %s", self.next_page, self._folder.path)
        for name in found:
            if name >= _file_name(self._next_file):
                _remove_logged(self._folder.path / name)

    def _read_file(self, path: StoragePath) -> Iterator[Page]:
        with path.fs.open(path.path, "rb", block_size=PART_BYTES) as packed, gzip.open(packed) as lines:
            header = msgspec.json.decode(lines.readline(_MAX_LINE_BYTES), type=_Header)
            if not self._folder.is_recent(header.staged_at):
                raise _UnusableError("they are older than resume_within")
            if (header.source, header.snapshot) != (self._folder.source, self._snapshot):
                raise _UnusableError("the API or the settings have changed")
            if header.first_page != self.next_page:
                raise _UnusableError(f"page {header.first_page} follows page {self.next_page - 1}")
            while line := lines.readline(_MAX_LINE_BYTES):
                if self.next_page >= self._snapshot.total_pages:
                    raise _UnusableError("there are more pages than the API has")
                checksum, _, content = line.rstrip(b"\n").partition(b" ")
                # gzip has a checksum too, but compares it at the end of the file, when these pages are in use already.
                if checksum != _checksum(content):
                    raise _UnusableError(f"page {self.next_page} is damaged")
                endpoint, _, body = content.partition(b" ")
                response = Response(path.path, 200, {}, body)
                yield parse_page(response, self.next_page, "tableau" if endpoint == b"tableau" else "compact")

    def keep(self, pages: Iterable[Page]) -> Iterator[Page]:
        for page in pages:
            # The last page is part of the snapshot, so every try reads it.
            if self._is_enabled and page.number == self.next_page < self._snapshot.total_pages:
                try:
                    self._stage(page)
                except Exception as error:
                    self._is_enabled = False
                    log.warning("Cannot stage pages, so a retry would request them again: %s", error)
                    self._discard_file()
                    self.remove()
            yield page

    def _stage(self, page: Page) -> None:
        if self._stream is None:
            self.has_files = True  # even if publishing the first file fails halfway
            packed = self._file.enter_context(publish(self._folder.path / _file_name(self._next_file)))
            header = _Header(self._folder.source, self._snapshot, time.time(), page.number)
            self._stream = self._file.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, packed, mtime=0))
            self._stream.write(msgspec.json.encode(header) + b"\n")
            self._pages_in_file = 0
        body, endpoint = render_page(page)
        content = endpoint.encode() + b" " + body
        if len(content) > _MAX_LINE_BYTES - 16:  # the checksum
            raise _UnusableError(f"page {page.number} has {len(content)} bytes")
        self._stream.write(_checksum(content) + b" " + content + b"\n")
        self.next_page += 1
        self._pages_in_file += 1
        if self._pages_in_file == self._checkpoint_pages:
            self._stream = None
            self._next_file += 1
            self._file.close()

    def _discard_file(self) -> None:
        """Drop the file that is not complete; nothing of it is published."""
        self._stream = None
        with suppress(Exception), self._file:
            raise _UnusableError("it is incomplete")

    def remove(self) -> None:
        """Remove the staged files, and unfinished uploads of them by killed tries; call it once the object is there."""
        if self.has_files:
            self.has_files = False
            self._folder.remove()
            abort_uploads(self._folder.path, below=True)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def remove_all_staged(dst: StoragePath) -> bool:
    """Remove the pages that all tasks have staged below ``dst``, and return whether there were any."""
    pages = [path for path in dst.fs.find((dst / STAGING).path) if path.endswith(_PAGES)]
    for path in pages:
        with suppress(OSError):  # its task, or another one, has removed it
            dst.fs.rm_file(path)
    return bool(pages)


def _file_name(index: int) -> str:
    return f"{index:05}{_PAGES}"


def _remove_logged(path: StoragePath) -> None:
    try:
        remove_tree(path)
    except Exception as error:
        # The object does not need it. Failing would make tasks that may write but not delete fail forever.
        log.warning("Cannot remove %s; you can remove it: %s", path, error)
