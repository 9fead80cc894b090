"""The pages of one window: read ahead, in order, and all of one snapshot."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from airflow_provider_unleash.core.protocol import Page, Response
from airflow_provider_unleash.core.throttle import backoff
from airflow_provider_unleash.exceptions import SnapshotChangedError, UnexpectedResponseError

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RESTARTS = 3


@dataclass(frozen=True)
class Snapshot:
    """
    What identifies the pages of a window at one time: if any row is added or removed, one of these changes.

    Pages are cut one after the other, so a new row in any page moves rows into the last one.
    """

    total_pages: int
    first: bytes
    last: bytes


class ReadAhead:
    """
    Threads that fetch pages before they are consumed; the readers of many windows may share them.

    ``concurrency`` pages are fetched at a time, and less than twice as many are ahead of their readers; when readers
    share this, each may have one more.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._workers = ThreadPoolExecutor(concurrency, "unleash-page")  # starts threads when they are needed
        self._room = threading.Semaphore(2 * concurrency - 2)

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    def iter_responses(
        self, fetch: Callable[[int], Response], numbers: Iterable[int]
    ) -> Iterator[tuple[int, Response]]:
        if self._concurrency == 1:
            yield from ((number, fetch(number)) for number in numbers)
            return
        rest = iter(numbers)
        following = next(rest, None)
        ahead: deque[tuple[int, Future[Response]]] = deque()
        taken = 0  # Permits taken. Each reader's first page needs none, so readers cannot block each other.
        try:
            while following is not None or ahead:
                while following is not None and (not ahead or self._room.acquire(blocking=False)):
                    taken += bool(ahead)
                    ahead.append((following, self._workers.submit(fetch, following)))
                    following = next(rest, None)
                number, response = ahead.popleft()
                if taken:
                    taken -= 1
                    self._room.release()
                yield number, response.result()
        finally:
            for _, response in ahead:
                response.cancel()
            if taken:
                self._room.release(taken)


class PageReader:
    """
    Reads the pages of one window in order, some requests ahead, and checks that they belong together.

    The first page is read, then the last, then those between; in the end the first and the last are read again. If they
    changed, so may have any page between. This detects a change while pages are read, whatever page it falls into,
    because the last page was known before any page between was requested.

    ``fetch`` is called from several threads, ``parse`` from the consuming thread only, because decoding in the threads
    that wait for the network makes them compete for the GIL. ``close`` is called at the end of the block, if there may
    be requests in flight.
    """

    def __init__(
        self,
        fetch: Callable[[int], Response],
        parse: Callable[[int, Response], Page],
        close: Callable[[], None],
        ahead: ReadAhead,
    ) -> None:
        self._fetch = fetch
        self._parse = parse
        self._close = close
        self._ahead = ahead
        self.first = Page(1, 0, (), [])
        self.last = self.first
        self._fingerprints: dict[int, int] = {}

    def __enter__(self) -> PageReader:
        self.first = self.last = self._parse(1, self._fetch(1))
        if self.first.total_pages > 1:
            self._check_has_rows(self.first)
            self._check_not_repeated(self.first)
            number = self.first.total_pages
            self.last = self._parse(number, self._fetch(number))
            self._check_total(self.last)
            self._check_not_repeated(self.last)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.first.total_pages > 1:
            self._close()

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.first.total_pages, self.first.digest, self.last.digest)

    def iter_from(self, number: int) -> Iterator[Page]:
        """Yield the pages from this number to the last, then check that the snapshot is still the same."""
        total = self.first.total_pages
        if number == 1:
            yield self.first
        for page in self._read_ahead(range(max(2, number), total)):
            self._check_total(page)
            self._check_has_rows(page)
            self._check_not_repeated(page)
            yield page
        if total > 1:
            if number <= total:
                yield self.last
            self._check_unchanged()

    def _check_unchanged(self) -> None:
        known = {1: self.first, self.last.number: self.last}
        for page in self._read_ahead(known):
            self._check_total(page)
            before = known[page.number]
            if page != before and page.digest != before.digest:
                raise _changed(f"page {page.number} has other rows when read again")

    def _check_total(self, page: Page) -> None:
        total = self.first.total_pages
        if page.total_pages != total:
            raise _changed(f"total_num_pages was {total}, but page {page.number} says {page.total_pages}")

    def _check_has_rows(self, page: Page) -> None:
        """Check that a page has rows; only the last one may be empty."""
        if not page.rows:
            raise UnexpectedResponseError(
                f"Page {page.number} of {self.first.total_pages} has no rows", page=page.number
            )

    def _check_not_repeated(self, page: Page) -> None:
        if page.rows:
            number = self._fingerprints.setdefault(page.fingerprint, page.number)
            # The rows of an earlier page are not kept, so request it again.
            if number != page.number and self._parse(number, self._fetch(number)).digest == page.digest:
                raise UnexpectedResponseError(
                    f"Pages {number} and {page.number} have the same rows: the API, or a cache in front of it, "
                    "ignores the page number",
                    page=page.number,
                )

    def _read_ahead(self, numbers: Iterable[int]) -> Iterator[Page]:
        for number, response in self._ahead.iter_responses(self._fetch, numbers):
            yield self._parse(number, response)


def _changed(what: str) -> SnapshotChangedError:
    return SnapshotChangedError(f"The pages changed while they were read: {what}")


def restart_on_change(read: Callable[[], T]) -> T:
    """Return what ``read`` returns; call it again, up to three times, if pages change while it reads them."""
    for restart in range(1, MAX_RESTARTS + 1):
        try:
            return read()
        except SnapshotChangedError as error:
            log.warning("%s. Reading the window again", error)
        time.sleep(backoff(restart))
    return read()
