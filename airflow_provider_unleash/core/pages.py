"""The pages of one window: read ahead, in order, and all of one snapshot."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

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


class PageReader:
    """
    Reads the pages of one window in order, some requests ahead, and checks that they belong together.

    The first page is read, then the last, then those between; in the end the first and the last are read again. If they
    changed, so may have any page between. This detects a change while pages are read, whatever page it falls into,
    because the last page was known before any page between was requested.

    ``fetch`` is called from several threads, ``parse`` from the consuming thread only, because decoding in the threads
    that wait for the network makes them compete for the GIL. Leaving the block cancels the requests in flight.
    """

    def __init__(
        self,
        fetch: Callable[[int], Response],
        parse: Callable[[int, Response], Page],
        cancel: Callable[[], None],
        concurrency: int,
    ) -> None:
        self._fetch = fetch
        self._parse = parse
        self._cancel = cancel
        self._concurrency = concurrency
        self._workers: ThreadPoolExecutor | None = None
        self.first = Page(1, 0, (), [])
        self.last = self.first

    def __enter__(self) -> PageReader:
        try:
            self.first = self.last = self._parse(1, self._fetch(1))
            if self.first.total_pages > 1:
                number = self.first.total_pages
                self.last = self._parse(number, self._fetch(number))
                self._check_total(self.last)
                self._check_not_repeated(self.last, by_digest=True)
        except BaseException:
            self._cancel()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        if self._workers is not None:
            self._workers.shutdown(wait=True, cancel_futures=True)

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
            if not page.rows:
                raise UnexpectedResponseError(f"Page {page.number} of {total} has no rows", page=page.number)
            self._check_not_repeated(page, by_digest=page.number == 2)
            yield page
        if total > 1:
            if number <= total:
                yield self.last
            self._check_unchanged()

    def _check_unchanged(self) -> None:
        known = {1: self.first.digest, self.last.number: self.last.digest}
        for page in self._read_ahead(known):
            self._check_total(page)
            if page.digest != known[page.number]:
                raise _changed(f"page {page.number} has other rows when read again")

    def _check_total(self, page: Page) -> None:
        total = self.first.total_pages
        if page.total_pages != total:
            raise _changed(f"total_num_pages was {total}, but page {page.number} says {page.total_pages}")

    def _check_not_repeated(self, page: Page, *, by_digest: bool) -> None:
        """Compare a page with both ends; by digest only some, because that takes longer than parsing them."""
        for end in (self.first, self.last):
            if (
                page.number != end.number
                and page.rows
                and (page.digest == end.digest if by_digest else page.rows == end.rows)
            ):
                raise UnexpectedResponseError(
                    f"Pages {end.number} and {page.number} have the same rows: the API, or a cache in front of it, "
                    "ignores the page number",
                    page=page.number,
                )

    def _read_ahead(self, numbers: Iterable[int]) -> Iterator[Page]:
        """Yield pages in this order; at most twice as many as there are requests in flight are in memory."""
        rest = iter(numbers)
        if self._concurrency == 1:
            yield from (self._parse(number, self._fetch(number)) for number in rest)
            return
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._concurrency, "unleash-page")
        ahead: deque[tuple[int, Future[Response]]] = deque()
        while True:
            for number in islice(rest, 2 * self._concurrency - 1 - len(ahead)):
                ahead.append((number, self._workers.submit(self._fetch, number)))
            if not ahead:
                return
            number, response = ahead.popleft()
            yield self._parse(number, response.result())


def _changed(what: str) -> SnapshotChangedError:
    return SnapshotChangedError(f"The pages changed while they were read: {what}")


def restart_on_change(read: Callable[[], T]) -> T:
    """Return what ``read`` returns; call it again, up to three times, if pages change while it reads them."""
    retrying = Retrying(
        retry=retry_if_exception_type(SnapshotChangedError),
        stop=stop_after_attempt(MAX_RESTARTS + 1),
        wait=lambda state: backoff(state.attempt_number),
        before_sleep=_log_restart,
        reraise=True,
    )
    return retrying(read)


def _log_restart(state: RetryCallState) -> None:
    log.warning("%s. Reading the window again", state.outcome and state.outcome.exception())
