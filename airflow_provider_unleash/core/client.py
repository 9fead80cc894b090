"""The API as Python methods."""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack, get_args

from airflow_provider_unleash.core import protocol
from airflow_provider_unleash.core.log_once import log_once
from airflow_provider_unleash.core.pages import PageReader, ReadAhead, restart_on_change
from airflow_provider_unleash.core.protocol import Auth, Endpoint, Page, Response
from airflow_provider_unleash.core.requester import Requester, RequestGroup, Traffic
from airflow_provider_unleash.core.windows import HalfOpenPages, Window
from airflow_provider_unleash.exceptions import InvalidArgumentError, TransportError, UnleashError

log = logging.getLogger(__name__)

MAX_TIMEOUT = 86_400.0  # seconds; the operating system rejects much longer ones
MAX_CONCURRENCY = 1000  # urllib3 allocates a place for each connection in advance


Moment = datetime | int


class ReadOptions(TypedDict, total=False):
    """Options of the methods that read rows; see :meth:`UnleashClient.iter_pages`."""

    window: Window | None
    endpoint: Endpoint
    page_concurrency: int | None


@dataclass(frozen=True)
class RequestBudget:
    """What the readers of many windows share: a limit of requests in flight and of pages in memory."""

    group: RequestGroup
    ahead: ReadAhead


class UnleashClient:
    """
    The Unleash live Analytics API without Airflow; a context manager.

    >>> with UnleashClient("ul_pat_...") as client:
    ...     devices = client.list_devices()
    ...     rows = client.get_records(devices[0], 1768176000000, 1768262400000)

    :param api_key: API key or personal access token (``ul_pat_...``).
    :param base_url: address of the API; https if it has no scheme.
    :param auth: ``auto`` sends a key that starts with ``ul_pat_`` as Bearer and any other as ``x-api-key``;
        ``api_key`` and ``bearer`` choose one.
    :param timeout: seconds for the connect and for each read.
    :param response_timeout: seconds for a whole response.
    :param max_attempts: attempts per request.
    :param page_concurrency: requests in flight while the pages of a window are read.
    :param mask_stream_tokens: True masks the value of each URL parameter whose name ends in ``token``, in all strings
        of a page, as ``***``; False keeps it; None keeps it and logs one warning per process.
    :param verify: True, or the path of a CA bundle.
    :param allow_http: also allow http for hosts other than loopback.
    :param max_response_bytes: larger response bodies are refused while they are read.
    :param user_agent: appended to the package's own.
    :param on_close: called once with the traffic when the client is closed.
    :raises InvalidArgumentError: if a parameter is invalid.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str = protocol.API_URL,
        *,
        auth: Auth = "auto",
        timeout: float = 30.0,
        response_timeout: float = 300.0,
        max_attempts: int = 5,
        page_concurrency: int = 4,
        mask_stream_tokens: bool | None = None,
        verify: bool | str = True,
        allow_http: bool = False,
        max_response_bytes: int = 256 * 1024 * 1024,
        user_agent: str = "",
        on_close: Callable[[Traffic], object] | None = None,
    ) -> None:
        if auth not in get_args(Auth):
            raise InvalidArgumentError(f"auth must be one of {', '.join(get_args(Auth))}", argument="auth")
        if verify is not True:
            _check_ca_bundle(verify)
        key = protocol.check_api_key(api_key)
        if (
            len(key) >= protocol.MIN_KEY_CHARS and key.lower() in base_url.lower()
        ) or protocol.PAT_PREFIX in base_url.lower():
            raise InvalidArgumentError("The host contains an API key, which belongs in the password", argument="host")
        self.base_url = protocol.parse_base_url(base_url, allow_http=allow_http)
        self.page_concurrency = _check_concurrency(page_concurrency)
        self.mask_stream_tokens = mask_stream_tokens
        self.token_log_level = logging.WARNING
        self._warned_of_tokens = False
        self._on_close = on_close
        self._requester = Requester(
            self.base_url,
            key,
            auth,
            timeout=_check_number("timeout", timeout, maximum=MAX_TIMEOUT),
            response_timeout=_check_number("response_timeout", response_timeout, maximum=MAX_TIMEOUT),
            max_attempts=int(_check_number("max_attempts", max_attempts, minimum=1)),
            verify=verify,
            max_response_bytes=int(_check_number("max_response_bytes", max_response_bytes, minimum=1)),
            user_agent=user_agent,
            pool_size=max(10, self.page_concurrency),
        )

    def __repr__(self) -> str:
        return f"UnleashClient(base_url={getattr(self, 'base_url', None)!r})"  # works even if __init__ failed

    def __enter__(self) -> UnleashClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the open connections."""
        self._requester.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self.traffic)

    def cancel(self) -> None:
        """End all requests, those in flight too, with a :class:`.TransportError`; safe in a signal handler."""
        self._requester.cancel()

    @property
    def traffic(self) -> Traffic:
        """The requests so far."""
        return self._requester.traffic

    def get_version(self) -> str:
        """Return the version of the API; the way to check that a key works."""
        return self._requester.get(protocol.VERSION_PATH, protocol.parse_version)

    def list_devices(self, *, budget: RequestBudget | None = None) -> list[str]:
        """Return the ids of all devices of the account."""
        return self._requester.get(protocol.DEVICES_PATH, protocol.parse_ids, budget.group if budget else None)

    def list_sessions(self) -> list[str]:
        """Return the ids of all sessions of the account."""
        return self._requester.get(protocol.SESSIONS_PATH, protocol.parse_sessions)

    def iter_pages(
        self,
        device_id: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        window: Window | None = None,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> Generator[Page, None, None]:
        """
        Yield the pages of ``[start, end]``, or of ``window``, in order.

        Up to ``page_concurrency`` requests are in flight and twice as many pages in memory. Closing the iterator
        cancels the requests.

        :param device_id: one of :meth:`list_devices`.
        :param start: aware ``datetime`` or epoch milliseconds; the API is asked for exactly this.
        :param end: like ``start``.
        :param window: instead of ``start`` and ``end``: drops rows stamped exactly at its end, as the operators do.
        :param endpoint: ``compact`` or ``tableau``; both give the same records.
        :param page_concurrency: requests in flight; by default the client's.
        :raises InvalidArgumentError: if an argument is invalid; before any request.
        :raises SnapshotChangedError: if pages changed while they were read.
        :raises UnleashError: see :mod:`airflow_provider_unleash.exceptions`.
        """
        if window is not None and start is None and end is None:
            start, end = window.start_ms, window.end_ms
        elif window is not None or start is None or end is None:
            raise InvalidArgumentError("Give start and end, or window", argument="window")
        reader = self.open_pages(device_id, start, end, endpoint=endpoint, page_concurrency=page_concurrency)
        return _iter_all(reader, device_id, window)

    def iter_records(
        self, device_id: str, start: Moment | None = None, end: Moment | None = None, **options: Unpack[ReadOptions]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``[start, end]``, or of ``window``, as dicts; see :meth:`iter_pages`."""
        pages = self.iter_pages(device_id, start, end, **options)
        return (record for page in pages for record in page.records())

    def get_records(
        self, device_id: str, start: Moment | None = None, end: Moment | None = None, **options: Unpack[ReadOptions]
    ) -> list[dict[str, Any]]:
        """
        Return the rows of ``[start, end]``, or of ``window``, as dicts; see :meth:`iter_pages`.

        Starts again if pages change while they are read.
        """
        return restart_on_change(lambda: list(self.iter_records(device_id, start, end, **options)))

    @contextmanager
    def open_budget(self) -> Iterator[RequestBudget]:
        """Yield a budget of ``page_concurrency`` requests; leaving the block cancels those in flight."""
        budget = self._new_budget(self.page_concurrency)
        try:
            yield budget
        finally:
            budget.group.cancel()
            budget.ahead.close()

    def _new_budget(self, concurrency: int) -> RequestBudget:
        return RequestBudget(self._requester.new_group(concurrency), ReadAhead(concurrency))

    def open_pages(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
        budget: RequestBudget | None = None,
    ) -> PageReader:
        """
        Return a reader of the pages of ``[start, end]``; parameters and errors as in :meth:`iter_pages`.

        With a ``budget``, it shares the requests in flight with other readers.
        """
        path = protocol.window_path(device_id, start, end, endpoint)
        if budget is None:
            own = self._new_budget(self._concurrency(page_concurrency))
            group, ahead = own.group, own.ahead
        else:
            group, ahead = budget.group.new_child(), budget.ahead

        def close() -> None:
            group.cancel()
            if budget is None:
                ahead.close()

        def fetch(number: int) -> Response:
            return self._requester.get(f"{path}/{number}", lambda response: response, group)

        def parse(number: int, response: Response) -> Page:
            read = partial(self._parse_page, number=number, endpoint=endpoint)
            try:
                return read(response)
            except UnleashError as error:
                self._requester.recount(error)
                if not isinstance(error, TransportError):
                    raise
                return self._requester.get(f"{path}/{number}", read, group)  # it was not JSON

        return PageReader(fetch, parse, close, ahead)

    def iter_page_counts(
        self,
        windows: Iterable[tuple[str, datetime | int, datetime | int]],
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> Generator[int, None, None]:
        """
        Yield the number of pages of each window in order, with one request per window.

        Closing the iterator cancels the requests in flight.

        :param windows: ``(device_id, start, end)``, as in :meth:`iter_pages`.
        :param endpoint: ``compact`` or ``tableau``; both have the same pages.
        :param page_concurrency: requests in flight; by default the client's.
        :raises InvalidArgumentError: if an argument is invalid; before any request.
        :raises UnleashError: see :mod:`airflow_provider_unleash.exceptions`.
        """
        paths = [f"{protocol.window_path(*window, endpoint)}/1" for window in windows]
        return self._count_pages(paths, endpoint, self._concurrency(page_concurrency))

    def _count_pages(self, paths: list[str], endpoint: Endpoint, concurrency: int) -> Generator[int, None, None]:
        group = self._requester.new_group(concurrency)
        parse = partial(protocol.parse_page, number=1, endpoint=endpoint)
        errors: list[UnleashError] = []

        def count(path: str) -> int:
            try:
                return self._requester.get(path, parse, group).total_pages
            except UnleashError as error:
                errors.append(error)
                group.cancel()  # now, not once this window's turn comes: the API may have asked for a long pause
                raise

        with ThreadPoolExecutor(concurrency, "unleash-page") as workers:
            try:
                yield from workers.map(count, paths)
            except UnleashError:
                raise errors[0] from None  # later ones only say that their requests were cancelled
            finally:
                group.cancel()
                workers.shutdown(cancel_futures=True)

    def _concurrency(self, page_concurrency: int | None) -> int:
        if page_concurrency is None:
            return self.page_concurrency
        return _check_concurrency(page_concurrency)

    def _parse_page(self, response: Response, number: int, endpoint: Endpoint) -> Page:
        page = protocol.parse_page(response, number, endpoint)
        if self.mask_stream_tokens is False or self._warned_of_tokens or not protocol.may_have_stream_tokens(response):
            return page
        masked = protocol.mask_stream_tokens(page)
        if self.mask_stream_tokens:
            return masked
        if masked is not page:
            self._warned_of_tokens = True
            log_once(
                log,
                "Rows contain stream tokens (?token=...): anyone who reads them can open the live stream. Set the "
                'connection\'s extra {"mask_stream_tokens": 1} to mask them, or 0 to keep them',
                self.token_log_level,
            )
        return page


def _iter_all(reader: PageReader, device_id: str, window: Window | None) -> Generator[Page, None, None]:
    with reader:
        if window is None:
            yield from reader.iter_from(1)
        else:
            pages = HalfOpenPages(device_id, window, reader.iter_from(1))
            yield from pages
            pages.counts.warn_if_not_as_asked(window)


def _check_ca_bundle(verify: object) -> None:
    reason = "Without verification, any server could receive the API key"
    if isinstance(verify, str):
        try:
            if verify and Path(verify).is_dir():
                return
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(verify)
            return
        except (OSError, ValueError) as error:  # missing, unreadable, without certificates, or not a path
            reason = getattr(error, "strerror", None) or str(error)  # without the name, which may be a key
    raise InvalidArgumentError(f"verify must be true or the path of a CA bundle. {reason}", argument="verify")


def _check_concurrency(value: float) -> int:
    return int(_check_number("page_concurrency", value, minimum=1, maximum=MAX_CONCURRENCY))


def _check_number(argument: str, value: float, minimum: float = 0.0, maximum: float = math.inf) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if not is_number or value < minimum or value == 0:
        raise InvalidArgumentError(f"{argument}={value!r} must be a number above zero", argument=argument)
    if value > maximum:
        raise InvalidArgumentError(f"{argument}={value!r} must be at most {maximum:.0f}", argument=argument)
    return value
