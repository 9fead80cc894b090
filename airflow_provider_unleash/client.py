"""The only module that talks to the network: requests that are retried, paged, bounded and cancelled."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.exceptions import TimeoutError as PoolTimeoutError

from airflow_provider_unleash import __version__, protocol
from airflow_provider_unleash.exceptions import (
    InvalidArgumentError,
    RateLimitError,
    ResultTooLargeError,
    ServerError,
    SnapshotChangedError,
    TransientError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)
from airflow_provider_unleash.protocol import Answer, Auth, Endpoint, Page

log = logging.getLogger(__name__)
T = TypeVar("T")
Resume = Callable[[Page, Callable[[], bytes]], Iterable[Page]]

USER_AGENT = f"airflow-provider-unleash/{__version__}"
# Seconds: waits grow from the base to the most; a server that asks for more than the longest wait frees the slot.
BACKOFF_BASE = 0.5
BACKOFF_MOST = 30.0
LONGEST_WAIT = 60.0
RESTARTS = 3
# Before 2.6, urllib3 inflates all of a chunk at once, up to a thousandfold, and holds that twice.
_CHUNK_BYTES = 1 << (18 if tuple(map(int, version("urllib3").split(".")[:2])) >= (2, 6) else 14)


@dataclass
class Traffic:
    """
    What a client has asked of the API so far.

    :param requests: sent, repeated ones included.
    :param retries: requests sent again.
    :param throttled_seconds: seconds for which the API asked everybody to wait.
    :param outcomes: how many requests ended how, by one of ``OUTCOMES``.
    """

    requests: int = 0
    retries: int = 0
    throttled_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


# How a request ends: the first whose error it is. Cancelled are those that nobody waits for any more.
_ENDINGS: dict[str, tuple[type[UnleashError], ...]] = {
    "throttled": (RateLimitError,),
    "server_error": (ServerError,),
    "transport_error": (TransportError,),
    "unexpected": (UnexpectedResponseError, ResultTooLargeError),
    "client_error": (UnleashError,),
}
OUTCOMES = ("ok", *_ENDINGS, "cancelled")


class UnleashClient:
    """
    The Unleash live Analytics API without Airflow; a context manager.

    :param api_key: API key, or personal access token (``ul_pat_…``).
    :param base_url: where the API is; https is meant where no scheme is given.
    :param auth: ``auto`` sends a key that starts with ``ul_pat_`` as Bearer and any other as ``x-api-key``.
    :param timeout: seconds for the connect and for each read.
    :param max_attempts: tries of one request.
    :param page_concurrency: requests under way at once for one extraction.
    :param mask_stream_tokens: True masks ``?token=…`` in ``source_file_name``; None leaves it and warns once.
    :param verify: True, or the path of a CA bundle.
    :param allow_http: accept http for a host that is not loopback, too.
    :param max_response_bytes: a larger body is refused while it is read.
    :param user_agent: appended to the package's own.
    :param on_close: called once with the traffic, when the client is closed.
    :raises InvalidArgumentError: a parameter cannot be used.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str = protocol.API_URL,
        *,
        auth: Auth = "auto",
        timeout: float = 30.0,
        max_attempts: int = 5,
        page_concurrency: int = 4,
        mask_stream_tokens: bool | None = None,
        verify: bool | str = True,
        allow_http: bool = False,
        max_response_bytes: int = 256 * 1024 * 1024,
        user_agent: str = "",
        on_close: Callable[[Traffic], object] | None = None,
    ) -> None:
        if auth not in protocol.AUTHS:
            raise InvalidArgumentError(f"auth={auth!r} is none of {', '.join(protocol.AUTHS)}", argument="auth")
        if verify is not True and not (isinstance(verify, str) and Path(verify).exists()):
            raise InvalidArgumentError(
                f"verify={verify!r} is neither true nor the path of a CA bundle (without verification, the API key "
                "would go to whoever answers)",
                argument="verify",
            )
        self._key = protocol.check_api_key(api_key)
        if len(self._key) >= 8 and self._key.lower() in base_url.lower():
            raise InvalidArgumentError("The host has the API key in it, which belongs in the password", argument="host")
        self.base_url = protocol.parse_base_url(base_url, allow_http=allow_http)
        self.timeout = _positive(timeout, "timeout")
        self.max_attempts = int(_positive(max_attempts, "max_attempts", least=1))
        self.page_concurrency = int(_positive(page_concurrency, "page_concurrency", least=1))
        self.max_response_bytes = int(_positive(max_response_bytes, "max_response_bytes", least=1))
        self.mask_stream_tokens = mask_stream_tokens
        self._verify = verify
        self._tokens_reported = False
        self._traffic = Traffic()
        self._traffic_lock = threading.Lock()
        self._on_close = on_close
        self._session = _open_session(
            self.base_url, protocol.auth_headers(self._key, auth), user_agent, pool_size=max(10, self.page_concurrency)
        )

    def __repr__(self) -> str:
        return f"UnleashClient(base_url={getattr(self, 'base_url', None)!r})"  # also of one that could not be made

    def __enter__(self) -> UnleashClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self.traffic)

    @property
    def traffic(self) -> Traffic:
        """What has been asked of the API so far."""
        with self._traffic_lock:
            return replace(self._traffic, outcomes=self._traffic.outcomes.copy())

    def _count(self, **more: float) -> None:
        with self._traffic_lock:
            for name, number in more.items():
                setattr(self._traffic, name, getattr(self._traffic, name) + number)

    @contextlib.contextmanager
    def _counting(self, gate: _Gate) -> Iterator[None]:
        """Count a request, and how it ends."""
        self._count(requests=1)
        outcome = "cancelled"  # by what is no error of ours, e.g. the timeout of a task
        try:
            yield
            outcome = "ok"
        except UnleashError as error:
            if not gate.stopped:
                outcome = next(name for name, kinds in _ENDINGS.items() if isinstance(error, kinds))
            raise
        finally:
            with self._traffic_lock:
                self._traffic.outcomes[outcome] += 1

    # ---- the five endpoints ----

    def get_version(self) -> str:
        """Return the version of the API; the way to check that a key works."""
        return self._get(protocol.VERSION_PATH, protocol.parse_version)

    def list_devices(self) -> list[str]:
        """Return the ids of all devices of the account."""
        return self._get(protocol.DEVICES_PATH, protocol.parse_ids)

    def list_sessions(self) -> list[str]:
        """Return the ids of all sessions of the account."""
        return self._get(protocol.SESSIONS_PATH, protocol.parse_ids)

    def iter_pages(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
        resume: Resume | None = None,
    ) -> Generator[Page, None, None]:
        """
        Yield the pages of ``[start, end]`` in order, read ahead by ``page_concurrency`` requests at once.

        At most twice as many pages are in memory, and the last one, which is asked for second. Closing the iterator
        ends the requests under way.

        :param device_id: one of :meth:`list_devices`.
        :param start: aware ``datetime`` or epoch milliseconds; the API is asked for exactly this.
        :param end: likewise.
        :param endpoint: ``compact`` or ``tableau``; both give the same records.
        :param page_concurrency: requests under way at once; the client's where None.
        :param resume: called with the first page and a function that returns the digest of the last one, returns the
            pages from the second on, in order, as far as they are known from before; the API is asked for the others.
        :raises InvalidArgumentError: an argument cannot be used; before any request.
        :raises SnapshotChangedError: pages changed under the reader: ``total_num_pages`` differs between pages,
            or the first or last page of several differs when read again at the end.
        :raises UnleashError: see :mod:`airflow_provider_unleash.exceptions`.
        """
        path = _window_path(device_id, start, end, endpoint)
        return _Extraction(self, path, endpoint, self._concurrency(page_concurrency)).pages(resume)

    def iter_records(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``[start, end]`` as dicts; parameters and errors as :meth:`iter_pages`."""
        pages = self.iter_pages(device_id, start, end, endpoint=endpoint, page_concurrency=page_concurrency)
        return (record for page in pages for record in page.records())

    def get_records(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the rows of ``[start, end]`` as dicts; starts again when pages change while they are read."""
        read = partial(self.iter_records, device_id, start, end, endpoint=endpoint, page_concurrency=page_concurrency)
        return restart_on_change(lambda: list(read()))

    def iter_page_counts(
        self,
        windows: Iterable[tuple[str, datetime | int, datetime | int]],
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> Generator[int, None, None]:
        """
        Yield for each window how many pages ``[start, end]`` has, in order, by asking for its first page.

        Closing the iterator ends the requests under way.

        :param windows: ``(device_id, start, end)``, as :meth:`iter_pages` takes them.
        :param endpoint: ``compact`` or ``tableau``; both have the same pages.
        :param page_concurrency: requests under way at once; the client's where None.
        :raises InvalidArgumentError: an argument cannot be used; before any request.
        :raises UnleashError: see :mod:`airflow_provider_unleash.exceptions`.
        """
        paths = [_window_path(*window, endpoint)(1) for window in windows]
        return self._count_pages(paths, endpoint, self._concurrency(page_concurrency))

    def _count_pages(self, paths: list[str], endpoint: Endpoint, concurrency: int) -> Generator[int, None, None]:
        gate = _Gate(concurrency, self.max_attempts, self._count)
        parse = partial(protocol.parse_page, number=1, endpoint=endpoint)
        workers = ThreadPoolExecutor(concurrency, "unleash-page", initializer=_watch_sockets, initargs=(gate,))
        try:
            yield from workers.map(lambda path: self._get(path, parse, gate).total_pages, paths)
        finally:
            gate.stop()
            workers.shutdown(wait=True, cancel_futures=True)

    def _concurrency(self, page_concurrency: int | None) -> int:
        if page_concurrency is None:
            return self.page_concurrency
        return int(_positive(page_concurrency, "page_concurrency", least=1))

    # ---- one request ----

    def _get(self, path: str, parse: Callable[[Answer], T], gate: _Gate | None = None) -> T:
        """Ask until the answer can be read, or repeating cannot help, or patience is over."""
        gate = gate or _Gate(1, self.max_attempts, self._count)
        patience = _Patience(gate, self.max_attempts)
        retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            after=patience.count,
            stop=patience.is_over,
            wait=patience.wait,
            before_sleep=self._report_retry,
            sleep=gate.sleep,
            reraise=True,
        )
        result: T = retrying(gate.run, partial(self._ask_and_parse, path, parse, gate))
        return result

    def _ask_and_parse(self, path: str, parse: Callable[[Answer], T], gate: _Gate) -> T:
        with self._counting(gate):
            return parse(self._ask(path))

    def _report_retry(self, state: RetryCallState) -> None:
        self._count(retries=1)
        log.warning("%s; asking again (failure %d)", _error_of(state), state.attempt_number)

    def _ask(self, path: str) -> Answer:
        """Send one request and return its answer of status 200, or raise what it means."""
        url = self.base_url + path
        try:
            with self._session.get(
                url,
                timeout=(self.timeout, self.timeout),
                allow_redirects=False,
                stream=True,
                verify=self._verify,
            ) as response:
                # The body in no variable of its own: some log handlers show those of a traceback's frames.
                answer = Answer(url, response.status_code, response.headers, self._read_body(response), self._key)
        except requests.RequestException as error:
            # Its message is kept, its traceback is not: the frames of requests hold the header with the key.
            raise _transport_error(url, error) from None
        protocol.raise_for_status(answer)
        return answer

    def _read_body(self, response: requests.Response) -> bytes:
        chunks, size = [], 0
        for chunk in response.iter_content(_CHUNK_BYTES):
            size += len(chunk)
            if size > self.max_response_bytes:
                raise ResultTooLargeError(
                    f"{response.url} answered more than {self.max_response_bytes} bytes",
                    limit=self.max_response_bytes,
                    url=response.url,
                    status=response.status_code,
                )
            chunks.append(chunk)
        return b"".join(chunks)

    def _guard_tokens(self, page: Page) -> Page:
        """Mask stream tokens, or say once that there are some, as ``mask_stream_tokens`` has it."""
        if self.mask_stream_tokens:
            return protocol.mask_stream_tokens(page)
        if self.mask_stream_tokens is None and not self._tokens_reported and protocol.has_stream_tokens(page):
            self._tokens_reported = True
            log.warning(
                "Rows carry stream tokens (?token=… in source_file_name): whoever reads them can open the live stream. "
                'Set the connection\'s extra {"mask_stream_tokens": 1} to mask them, or 0 to keep them'
            )
        return page


def _window_path(
    device_id: str, start: datetime | int, end: datetime | int, endpoint: Endpoint
) -> Callable[[int], str]:
    """Return the path of each page of a window, by its number."""
    if endpoint not in protocol.ENDPOINT_PATHS:
        raise InvalidArgumentError(f"endpoint={endpoint!r} is neither compact nor tableau", argument="endpoint")
    start_ms, end_ms = protocol.to_epoch_ms(start, "start"), protocol.to_epoch_ms(end, "end")
    if start_ms > end_ms:
        raise InvalidArgumentError(f"start={start} is after end={end}", argument="start")
    protocol.check_device_id(device_id)
    return partial(protocol.analytics_path, device_id, start_ms, end_ms, endpoint=endpoint)


def restart_on_change(read: Callable[[], T]) -> T:
    """
    Return what ``read`` returns, starting it again while pages change under it, three times at the most.

    :raises SnapshotChangedError: they changed each time.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(SnapshotChangedError),
        stop=stop_after_attempt(RESTARTS + 1),
        wait=lambda state: _backoff(state.attempt_number),
        before_sleep=lambda state: log.warning("%s; starting the window again", _error_of(state)),
        reraise=True,
    )
    return retrying(read)


def _positive(value: float, argument: str, least: float = 0.0) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < least or value == 0:
        raise InvalidArgumentError(f"{argument}={value!r} must be a number above zero", argument=argument)
    return value


# ---- when to ask again ----


class _StoppedError(Exception):
    """The extraction that a request belongs to has ended."""


class _Gate:
    """
    Lets as many requests of one extraction through at once as the API bears.

    A refusal (429, or ``Retry-After`` on another answer) holds all of them back and halves how many may be under
    way; each round of successes lets one more through again. Refusals count against one budget for all, which any
    success resets, so that many threads do not use up the patience of one page.
    """

    def __init__(self, most: int, patience: int, count: Callable[..., None]) -> None:
        self._most = self._limit = most
        self._count = count
        self._patience = patience
        self._under_way = 0
        self._successes = 0
        self._refusals = 0
        self._resume_at = self._refused_at = 0.0
        self._changed = threading.Condition()
        self._sockets: dict[int, socket.socket] = {}
        self.stopped = False

    def run(self, ask: Callable[[], T]) -> T:
        """Return what ``ask`` returns, called as soon as it may be."""
        asked_at = self._enter()
        try:
            result = ask()
        except TransientError as error:
            if isinstance(error, RateLimitError) or error.retry_after is not None:
                self._refuse(error, asked_at)
            raise
        else:
            self._succeed()
            return result
        finally:
            self._leave()

    def _enter(self) -> float:
        with self._changed:
            while True:
                if self.stopped:
                    raise _StoppedError
                pause = self._resume_at - time.monotonic()
                if pause <= 0 and self._under_way < self._limit:
                    self._under_way += 1
                    return time.monotonic()
                self._changed.wait(pause if pause > 0 else None)

    def _leave(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _refuse(self, error: TransientError, asked_at: float) -> None:
        with self._changed:
            # Requests that were under way when the API first refused are the same refusal, not a new one.
            if asked_at >= self._refused_at:
                self._refused_at = time.monotonic()
                self._refusals += isinstance(error, RateLimitError)
                self._limit = max(1, self._limit // 2)
                self._successes = 0
            resumed = max(self._resume_at, time.monotonic())
            self._resume_at = max(resumed, time.monotonic() + self._pause(error))
            self._count(throttled_seconds=self._resume_at - resumed)

    def _pause(self, error: TransientError) -> float:
        if error.retry_after is None:
            return _backoff(self._refusals)
        return error.retry_after if error.retry_after <= LONGEST_WAIT else 0.0

    def _succeed(self) -> None:
        with self._changed:
            self._refusals = 0
            self._successes += 1
            if self._successes >= self._limit < self._most:
                self._limit += 1
                self._successes = 0

    @property
    def exhausted(self) -> bool:
        """Whether the API refused so often that waiting longer is Airflow's business."""
        return self._refusals >= self._patience

    def sleep(self, seconds: float) -> None:
        """Sleep, or return early when the extraction is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped, seconds)

    def watch(self, connected: socket.socket) -> None:
        """Remember what this thread is about to wait for; after the stop, don't let it wait."""
        with self._changed:
            self._sockets[threading.get_ident()] = connected
            if self.stopped:
                _shut(connected)

    def stop(self) -> None:
        """Let nobody through any more, and end the requests under way."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
            if self._under_way:
                for connected in self._sockets.values():
                    _shut(connected)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        connected.shutdown(socket.SHUT_RDWR)


class _Patience:
    """How often and when one request is sent again; refusals count in the gate, other failures here."""

    def __init__(self, gate: _Gate, max_attempts: int) -> None:
        self._gate = gate
        self._max_attempts = max_attempts
        self._failures = 0

    def count(self, state: RetryCallState) -> None:
        self._failures += not isinstance(_error_of(state), RateLimitError)

    def is_over(self, state: RetryCallState) -> bool:
        error = _error_of(state)
        too_long = error.retry_after is not None and error.retry_after > LONGEST_WAIT
        return too_long or self._gate.exhausted or self._failures >= self._max_attempts

    def wait(self, state: RetryCallState) -> float:
        error = _error_of(state)
        held_back = isinstance(error, RateLimitError) or error.retry_after is not None
        return 0.0 if held_back else _backoff(self._failures)


def _error_of(state: RetryCallState) -> TransientError:
    # tenacity calls these hooks after an exception only, and only for those that are retried.
    return cast("TransientError", state.outcome and state.outcome.exception())


def _backoff(failures: int) -> float:
    """Return seconds to wait after so many failures, with full jitter."""
    # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    return random.uniform(0.0, min(BACKOFF_MOST, BACKOFF_BASE * 2 ** max(0, failures - 1)))


# ---- the pages of one window ----


class _Extraction:
    """Reads the pages of one window ahead, in order, and leaves nothing behind when it is closed."""

    def __init__(self, client: UnleashClient, path: Callable[[int], str], endpoint: Endpoint, concurrency: int) -> None:
        self._client = client
        self._path = path
        self._endpoint = endpoint
        self._concurrency = concurrency
        self._gate = _Gate(concurrency, client.max_attempts, client._count)
        self._workers: ThreadPoolExecutor | None = None
        self._asked_again = False
        self._total = 0
        self._early: Callable[[], Answer | None] = lambda: None
        self._digests: dict[int, bytes] = {}

    def pages(self, resume: Resume | None = None) -> Generator[Page, None, None]:
        try:
            first = self._parse(1, self._fetch(1))
            self._total = first.total_pages
            self._digests[1] = first.digest() if self._total > 1 or resume else b""
            self._ask_for_last()
            known = iter(resume(first, self._digest_of_last) if resume else ())
            yield first
            del first
            if self._total > 1:
                yield from self._rest(known)
        finally:
            self._stop()

    def _rest(self, known: Iterator[Page]) -> Iterator[Page]:
        """Yield the pages after the first; then read the first and the last again, and compare."""
        following = 2
        for page in known:
            self._check(page)
            following = page.number + 1
            yield page
            del page
        for page, is_read_again in self._in_order(range(following, self._total + 1), (1, self._total)):
            if is_read_again and self._asked_again:  # for another page, and so perhaps after this one
                page = self._parse(page.number, self._fetch(page.number))
            self._check(page)
            if not is_read_again:
                yield page
            del page  # before the next one is made: the same memory again is what a processor has in its cache

    def _check(self, page: Page) -> None:
        """Raise if a page shows that the pages have changed since the first was read."""
        total = self._total
        if page.total_pages != total:
            raise self._changed(page, f"total_num_pages was {total}, page {page.number} says {page.total_pages}")
        if page.number in (1, total):
            digest = page.digest()
            if digest != self._digests.setdefault(page.number, digest):
                raise self._changed(page, f"page {page.number} has other rows when read again")

    def _ask_for_last(self) -> None:
        """Ask for the last page before those between: a row that comes or goes in any of them moves its rows."""
        if self._total > 1:
            self._early = partial(_unless_failed, self._submit(partial(self._fetch, self._total)))
            if self._concurrency == 1:  # nobody else asks
                answer = self._early()
                self._early = lambda: answer

    def _answer_in_turn(self) -> Answer:
        return self._early() or self._fetch(self._total)

    def _digest_of_last(self) -> bytes:
        """Return the digest of the last page as it was before those between were read, b"" where that is unknown."""
        if self._total > 1 and self._total not in self._digests:
            with contextlib.suppress(UnleashError):
                answer = self._early()
                if answer is not None:
                    self._digests[self._total] = self._parse(self._total, answer).digest()
        return self._digests.get(max(1, self._total), b"")

    def _changed(self, page: Page, what: str) -> SnapshotChangedError:
        return SnapshotChangedError(f"The pages changed while they were read: {what}", url=self._path(page.number))

    def _in_order(self, numbers: Iterable[int], afterwards: Iterable[int]) -> Iterator[tuple[Page, bool]]:
        """
        Yield pages in that order, and whether they were asked for afterwards: when all others were answered.

        Some requests are ahead of the consumer.
        """
        rest = chain(((number, False) for number in numbers), ((number, True) for number in afterwards))
        ahead: deque[tuple[int, bool, Callable[[], Answer]]] = deque()
        while True:
            for number, is_afterwards in islice(rest, 2 * self._concurrency - 1 - len(ahead)):
                ask = partial(self._fetch, number)
                if is_afterwards:
                    before = [answer for _, is_check, answer in ahead if not is_check]
                    ask = partial(self._fetch_after, number, before)
                    del before
                elif number == self._total:
                    ask = partial(self._answer_in_turn)
                ahead.append((number, is_afterwards, self._submit(ask)))
                del ask
            if not ahead:
                return
            number, is_afterwards, answer = ahead.popleft()
            page = self._parse(number, answer())
            del answer
            yield page, is_afterwards
            del page

    def _submit(self, ask: Callable[[], Answer]) -> Callable[[], Answer]:
        """Return a way to get the answer, asked for in the background where there is a background."""
        if self._concurrency == 1:
            return ask
        if self._workers is None:
            self._workers = ThreadPoolExecutor(
                self._concurrency, "unleash-page", initializer=_watch_sockets, initargs=(self._gate,)
            )
        return self._workers.submit(ask).result

    def _fetch_after(self, number: int, before: list[Callable[[], Answer]]) -> Answer:
        # What is before has a thread already, because threads take requests in order.
        while before:
            before.pop()()
        return self._fetch(number)

    def _fetch(self, number: int) -> Answer:
        return self._client._get(self._path(number), protocol.check_json_object, self._gate)

    def _parse(self, number: int, answer: Answer) -> Page:
        # Decoding in the consuming thread keeps the threads that wait for the network from fighting it for the GIL.
        parse = partial(protocol.parse_page, number=number, endpoint=self._endpoint)
        try:
            page = parse(answer)
        except TransportError:
            self._asked_again = True
            page = self._client._get(self._path(number), parse, self._gate)
        return self._client._guard_tokens(page)

    def _stop(self) -> None:
        self._gate.stop()
        if self._workers is not None:
            self._workers.shutdown(wait=True, cancel_futures=True)


def _unless_failed(ask: Callable[[], T]) -> T | None:
    with contextlib.suppress(UnleashError):
        return ask()
    return None


# ---- the connection pool ----

_thread = threading.local()


def _watch_sockets(gate: _Gate) -> None:
    """Let the gate know of each socket that this thread uses."""
    _thread.gate = gate


class _Watched:
    """A connection whose socket another thread can shut; requests has no way to cancel a request."""

    sock: socket.socket | None

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)  # type: ignore[misc]  # a mixin's super() is known where it is mixed in
        gate: _Gate | None = getattr(_thread, "gate", None)
        if gate is not None and self.sock is not None:
            gate.watch(self.sock)


class _HTTPConnection(_Watched, HTTPConnection):
    pass


class _HTTPSConnection(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    _POOLS: ClassVar = {"http": _HTTPPool, "https": _HTTPSPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._POOLS
        return manager


class _KeyAuth(AuthBase):
    """As an auth object, the key's header is not replaced by an entry of ~/.netrc, as requests does with headers."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)
        return request


def _open_session(base_url: str, headers: dict[str, str], user_agent: str, pool_size: int) -> requests.Session:
    session = requests.Session()
    session.auth = _KeyAuth(headers)
    session.headers.update(
        {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": f"{USER_AGENT} {user_agent}".strip(),
        }
    )
    adapter = _Adapter(pool_maxsize=pool_size)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    # What is meant for this machine is not sent through a proxy of the environment, the key along with it.
    session.trust_env = not protocol.is_loopback(urlsplit(base_url).hostname or "")
    return session


def _transport_error(url: str, error: requests.RequestException) -> UnleashError:
    """Return what an exception of requests means here."""
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    said = f"No usable answer from {url}: {cause or type(error).__name__}"
    if isinstance(error, requests.exceptions.SSLError):
        return TransportError(
            f"{said}. TLS failed: where a proxy or an own CA signs the certificate, put its bundle's path into the "
            "connection's extra «verify»; a server without TLS wants http:// in the host",
            reason="tls",
            url=url,
        )
    if isinstance(cause, PoolTimeoutError) and not isinstance(cause, NewConnectionError):
        return TransportError(said, reason="timeout", url=url)
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)):
        return TransportError(f"{said}. The body was cut short or damaged", reason="truncated", url=url)
    if isinstance(error, ValueError):  # InvalidURL, InvalidProxyURL, InvalidHeader …: nothing was sent
        return InvalidArgumentError(said, argument="host", url=url)
    return TransportError(f"{said}. Check host, port, proxy and firewall", reason="connection", url=url)
