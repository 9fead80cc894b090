"""Pages put aside in the store itself, so that a retry goes on where the try before ended, whatever ended it."""

from __future__ import annotations

import gzip
import hashlib
import logging
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import IO, Protocol

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from airflow_provider_unleash import __version__, protocol
from airflow_provider_unleash.exceptions import InvalidArgumentError, SnapshotChangedError
from airflow_provider_unleash.protocol import Answer, Page
from airflow_provider_unleash.stores import PART_BYTES, StoragePath, abort_uploads, publish, remove_tree

log = logging.getLogger(__name__)

# Spark, Hive, Athena and Trino take no folder for data whose name begins so.
FOLDER = "_staging"
_RUN_NAME = re.compile(r"([0-9]{5,})\.pages")
# A file is this line; when it was begun, and the digest of the last page then; the pages, each with its number, whether
# it has the form of the tableau endpoint, the length of its body, and that: an answer of the API, compressed.
_MAGIC = b"unleash pages 1\n"
_BEGUN = struct.Struct(">d32s")
_UNKNOWN = bytes(32)
_FRAME = struct.Struct(">I?I")
# Level 1 takes a third of the time of level 6, for files that are read once, if ever.
_GZIP_LEVEL = 1
_MEMORY_BYTES = 1024 * 1024


class FolderPath(StoragePath, Protocol):
    """A :class:`StoragePath` that has paths below it."""

    def __truediv__(self, name: str) -> FolderPath: ...


class _UnusableRunError(Exception):
    """A run that is too old, or does not fit those before it."""


def check_checkpoint_pages(checkpoint_pages: int | None) -> None:
    """
    Return if that is a number of pages, or None, which is never.

    :raises InvalidArgumentError: it is neither.
    """
    whole = isinstance(checkpoint_pages, int) and not isinstance(checkpoint_pages, bool) and checkpoint_pages > 0
    if checkpoint_pages is not None and not whole:
        raise InvalidArgumentError(
            f"checkpoint_pages={checkpoint_pages!r} is neither a whole number above zero nor None, which puts no "
            "pages aside",
            argument="checkpoint_pages",
        )


class Staging:
    """
    Puts the pages of one object aside while they are read, and gives those back that an earlier try has put aside.

    They lie in runs of ``checkpoint_pages`` pages, compressed, in ``<dst>/_staging/<object>-<content>/00000.pages`` and
    so on, each file whole or not there. The name of the folder is a hash of the object's name, and one of whatever
    would make other pages of them. Two tries that read the same object at once write the same files.

    What goes wrong in here costs requests, never rows: it is logged, and the API is asked instead. A context manager:
    what is put aside stays where the block raises, unless it raises because the pages have changed.

    :param dst: folder that the object's name starts from.
    :param object_name: as :func:`.writers.object_name` has it.
    :param source: what the pages depend on besides themselves, e.g. base URL, window, endpoint; texts and numbers.
    :param checkpoint_pages: pages of a run; only an extraction of more pages puts any aside, with None none does.
    :param resume_within: pages that have been put aside longer than this are removed, not used.
    """

    def __init__(
        self,
        dst: FolderPath,
        object_name: str,
        source: Sequence[object],
        *,
        checkpoint_pages: int | None,
        resume_within: timedelta,
    ) -> None:
        self._root = dst / FOLDER
        self._object = _short_hash(object_name)
        self._source = source
        self._checkpoint_pages = checkpoint_pages
        self._resume_within = resume_within.total_seconds()
        self._first: Page | None = None
        self._folder = self._root  # the one for these pages, once the first is known
        self._digest_of_last: Callable[[], bytes] = bytes
        self._runs = 0
        self._resumed_to = 1
        self._spool: IO[bytes] | None = None
        self._spooled = 0
        self._keeps = self._leaves = False

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SnapshotChangedError):
            self.remove()

    @property
    def resumed_pages(self) -> int:
        """How many pages came from an earlier try."""
        return self._resumed_to - 1

    def resume(self, first: Page, digest_of_last: Callable[[], bytes]) -> Iterator[Page]:
        """
        Return the pages from the second on that an earlier try has put aside, as far as they go without a gap.

        What was put aside of this object for another answer is removed.

        :param digest_of_last: returns the digest of the last page, b"" where it is not known.
        """
        if self._checkpoint_pages is None:
            return iter(())
        content = (*self._source, __version__, first.total_pages, first.digest())
        folder_name = f"{self._object}-{_short_hash(*content)}"
        self._folder = self._root / folder_name
        self._keeps = first.total_pages > self._checkpoint_pages
        self._first = first if self._keeps else None
        self._digest_of_last = digest_of_last
        self._runs, self._resumed_to = 0, 1
        found = self._list_folders()
        self._leaves = bool(found)
        files = found.pop(folder_name, set())
        for other in found:
            log.info("Removing pages of another answer from %s/%s", self._root, other)
            _remove(self._root / other)
        return self._staged_pages({int(match[1]) for match in map(_RUN_NAME.fullmatch, files) if match})

    def _list_folders(self) -> dict[str, set[str]]:
        """Return the names of the files by those of this object's folders."""
        files: dict[str, set[str]] = {}
        try:
            self._root.fs.invalidate_cache(self._root.path)
            for path in self._root.fs.find(self._root.path, prefix=f"{self._object}-"):
                folder, name = str(path).split("/")[-2:]
                if folder.startswith(f"{self._object}-"):  # not every store knows of the prefix
                    files.setdefault(folder, set()).add(name)
        except FileNotFoundError:
            pass
        except Exception as error:
            log.warning("%s cannot be listed, so all pages are asked for: %s", self._root, error)
        return files

    def _staged_pages(self, found: set[int]) -> Iterator[Page]:
        complete = 1
        for index in count():
            if index not in found:
                break
            path = self._folder / _run_name(index)
            try:
                for page in self._read_run(path):
                    if page.number > 1:
                        self._resumed_to = page.number
                        yield page
                    del page
            except Exception as error:
                # A zombie may have removed it, or it is damaged: whatever it is, the API has these pages, too.
                log.warning("%s is not used: %s", path, error)
                # Runs begin where the one before ends, so none can begin in the middle of one.
                self._keeps = self._keeps and self._resumed_to == complete
                break
            self._runs, complete = index + 1, self._resumed_to
        if self.resumed_pages:
            log.info("Pages up to %d come from an earlier try, in %s", self._resumed_to, self._folder)
        # What follows a gap would be taken for what follows the run that fills it.
        for index in sorted(found):
            if index >= self._runs:
                _remove(self._folder / _run_name(index))

    def _read_run(self, path: StoragePath) -> Iterator[Page]:
        with path.fs.open(path.path, "rb", block_size=PART_BYTES) as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise _UnusableRunError("it is no file of pages")
            begun_at, digest = _BEGUN.unpack(stream.read(_BEGUN.size))
            if time.time() - begun_at > self._resume_within:
                raise _UnusableRunError("it is older than resume_within")
            if digest != (self._digest_of_last() or digest) and digest != _UNKNOWN:
                raise _UnusableRunError("the last page has other rows since")
            while header := stream.read(_FRAME.size):
                number, is_tableau, length = _FRAME.unpack(header)
                if number not in (1, self._resumed_to + 1):
                    raise _UnusableRunError(f"page {number} follows page {self._resumed_to}")
                answer = Answer(path.path, 200, {}, gzip.decompress(stream.read(length)))
                yield protocol.parse_page(answer, number, "tableau" if is_tableau else "compact")

    def keep(self, pages: Iterable[Page]) -> Generator[Page, None, None]:
        """Yield the pages, and put each run of them aside as soon as it is complete."""
        try:
            for page in pages:
                if self._keeps and page.number > self._resumed_to:
                    self._add(page)
                yield page
                del page
        finally:
            self._close_spool()

    def _add(self, page: Page) -> None:
        try:
            if page.number == 2 and self._first is not None:
                self._write(self._first)
            self._first = None
            self._write(page)
        except Exception as error:
            self._keeps = False
            self._close_spool()
            log.warning("No more pages are put aside, a retry would ask for them again: %s", error)

    def _write(self, page: Page) -> None:
        if self._spool is None:
            # Not to the store at once: there, many a store shows a file before it is complete, or keeps what is not.
            self._spool = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 – closed by _close_spool
            self._spool.write(_MAGIC + _BEGUN.pack(time.time(), self._digest_of_last()))
        body, endpoint = protocol.render_page(page)
        packed = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        self._spool.write(_FRAME.pack(page.number, endpoint == "tableau", len(packed)) + packed)
        self._spooled += 1
        if self._spooled == self._checkpoint_pages:
            self._publish_run(self._spool)

    def _publish_run(self, spool: IO[bytes]) -> None:
        spool.seek(0)
        self._leaves = True  # even where the answer to this is lost
        with publish(self._folder / _run_name(self._runs)) as stream:
            shutil.copyfileobj(spool, stream)
        self._runs += 1
        self._close_spool()

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
        self._spool, self._spooled = None, 0

    def remove(self) -> None:
        """Remove what is put aside for these pages, and what killed tries of this object have left half sent."""
        if self._leaves:
            _remove(self._folder)
            abort_uploads(self._root / f"{self._object}-", below=True)


def _run_name(index: int) -> str:
    return f"{index:05}.pages"


def _short_hash(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _remove(path: StoragePath) -> None:
    retrying = Retrying(
        # tenacity takes a time-out of the task for an error, too.
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, PermissionError)),
        stop=stop_after_attempt(3),
        wait=wait_exponential(0.5),
        reraise=True,
    )
    try:
        retrying(remove_tree, path)
    except Exception as error:
        # The object is whole without it; failing now would make a task fail for ever that may write, but not delete.
        log.warning("%s is left behind and can be removed: %s", path, error)
