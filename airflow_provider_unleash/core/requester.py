"""One HTTP session: sends requests, retries and counts them, and cancels those in flight."""

from __future__ import annotations

import io
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException, HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HeaderParsingError
from urllib3.exceptions import TimeoutError as PoolTimeoutError
from urllib3.util.response import assert_header_parsing

from airflow_provider_unleash import __version__
from airflow_provider_unleash.core.protocol import Auth, Response, auth_headers, is_loopback, raise_for_status, redact
from airflow_provider_unleash.core.throttle import Throttle, backoff, is_long_pause, is_refusal
from airflow_provider_unleash.exceptions import (
    InvalidArgumentError,
    RateLimitError,
    ResultTooLargeError,
    ServerError,
    TransientError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_AGENT = f"airflow-provider-unleash/{__version__}"
# Before 2.6, urllib3 inflates each chunk in one go, up to a thousandfold, and holds the result twice.
_CHUNK_BYTES = 1 << (18 if tuple(map(int, version("urllib3").split(".")[:2])) >= (2, 6) else 14)


@dataclass
class Traffic:
    """
    The requests of a client so far.

    :param requests: requests sent, retries included.
    :param retries: requests sent again.
    :param throttled_seconds: seconds for which the API asked all requests to pause.
    :param outcomes: number of requests by outcome: ok, throttled, server_error, transport_error, unexpected,
        client_error or cancelled.
    """

    requests: int = 0
    retries: int = 0
    throttled_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


# A request counts as the first entry that matches its error. "cancelled" requests were no longer needed.
_OUTCOMES: dict[str, tuple[type[UnleashError], ...]] = {
    "throttled": (RateLimitError,),
    "server_error": (ServerError,),
    "transport_error": (TransportError,),
    "unexpected": (UnexpectedResponseError, ResultTooLargeError),
    "client_error": (UnleashError,),
}
OUTCOMES = ("ok", *_OUTCOMES, "cancelled")


def _outcome_of(error: UnleashError) -> str:
    return next(name for name, kinds in _OUTCOMES.items() if isinstance(error, kinds))


_thread = threading.local()  # its flight is the request that the thread is sending


class _Flight:
    """One request in flight; the whole response must arrive by ``deadline``, on the monotonic clock."""

    def __init__(self, is_cancelled: Callable[[], bool], deadline: float) -> None:
        self._is_cancelled = is_cancelled
        self._sockets: list[socket.socket] = []
        self.deadline = deadline
        self.was_sent = False

    @property
    def is_expired(self) -> bool:
        return time.monotonic() >= self.deadline

    def watch(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self._is_cancelled():
            self.end()

    def end(self) -> None:
        for connected in self._sockets:
            with suppress(OSError):  # already closed
                connected.shutdown(socket.SHUT_RDWR)


class RequestGroup:
    """
    Requests that share a throttle and are cancelled together.

    It has no locks, because :meth:`cancel` may run in a signal handler. Each step is atomic in CPython.
    """

    def __init__(self, throttle: Throttle, parent: RequestGroup | None = None) -> None:
        self.throttle = throttle
        self._parent = parent
        self._flights: set[_Flight] = set()
        self._cancelled = False

    def new_child(self) -> RequestGroup:
        """Return a group with the same throttle that can be cancelled alone, and is cancelled with this one."""
        return RequestGroup(self.throttle, self)

    def is_cancelled(self) -> bool:
        return self._cancelled or (self._parent is not None and self._parent.is_cancelled())

    def cancel(self) -> None:
        self._cancelled = True
        for flight in list(self._flights):
            flight.end()
        self.throttle.wake()

    @contextmanager
    def in_flight(self, seconds: float) -> Iterator[_Flight]:
        """Let :meth:`cancel` or the deadline end the request that this thread sends in the block."""
        flight = _thread.flight = _Flight(self.is_cancelled, time.monotonic() + seconds)
        groups = (self,) if self._parent is None else (self, self._parent)
        for group in groups:
            group._flights.add(flight)
        try:
            yield flight
        finally:
            for group in groups:
                group._flights.discard(flight)
            _thread.flight = None


class Requester:
    """Sends GET requests with the key, and retries those that may succeed later."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        auth: Auth,
        *,
        timeout: float,
        response_timeout: float,
        max_attempts: int,
        verify: bool | str,
        max_response_bytes: int,
        user_agent: str,
        pool_size: int,
    ) -> None:
        self.base_url = base_url
        self._key = api_key
        self._timeout = timeout
        self._response_timeout = response_timeout
        self._max_attempts = max_attempts
        self._verify = verify
        self._max_response_bytes = max_response_bytes
        self._session = _open_session(base_url, auth_headers(api_key, auth), user_agent, pool_size)
        self._traffic = Traffic()
        self._traffic_lock = threading.Lock()
        self._groups: WeakSet[RequestGroup] = WeakSet()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        for group in list(self._groups):
            group.cancel()

    def close(self) -> None:
        self._session.close()

    @property
    def traffic(self) -> Traffic:
        """A copy of the traffic so far."""
        with self._traffic_lock:
            return replace(self._traffic, outcomes=self._traffic.outcomes.copy())

    def _count(self, **amounts: float) -> None:
        with self._traffic_lock:
            for name, amount in amounts.items():
                setattr(self._traffic, name, getattr(self._traffic, name) + amount)

    def new_group(self, limit: int = 1) -> RequestGroup:
        group = RequestGroup(
            Throttle(limit, self._max_attempts, on_pause=lambda seconds: self._count(throttled_seconds=seconds))
        )
        self._groups.add(group)
        if self._cancelled:
            group.cancel()
        return group

    def get(self, path: str, parse: Callable[[Response], T], group: RequestGroup | None = None) -> T:
        """Return the parsed response; retry transient errors, including those that ``parse`` raises."""
        group = group or self.new_group()
        failures = 0
        while True:
            try:
                return group.throttle.run(lambda: self._attempt(path, parse, group), group.is_cancelled)
            except TransientError as error:
                failures += not isinstance(error, RateLimitError)  # the throttle counts those, for all requests
                is_over = group.throttle.is_exhausted or failures >= self._max_attempts
                if group.is_cancelled() or is_long_pause(error) or is_over:
                    raise
                self._count(retries=1)
                log.warning("%s. Retrying", error)
                if not is_refusal(error):  # after a refusal, the throttle pauses
                    group.throttle.sleep(backoff(failures), group.is_cancelled)

    def _attempt(self, path: str, parse: Callable[[Response], T], group: RequestGroup) -> T:
        self._count(requests=1)
        outcome = "cancelled"  # also if another exception ends the request, such as a task timeout
        try:
            result = parse(self._send(path, group))
            outcome = "ok"
            return result
        except UnleashError as error:
            if not group.is_cancelled():
                outcome = _outcome_of(error)
            raise
        finally:
            with self._traffic_lock:
                self._traffic.outcomes[outcome] += 1

    def recount(self, error: UnleashError) -> None:
        """Count a response that failed to parse after :meth:`get` had counted it as ok."""
        with self._traffic_lock:
            self._traffic.outcomes["ok"] -= 1
            self._traffic.outcomes[_outcome_of(error)] += 1
            self._traffic.retries += isinstance(error, TransientError)

    def _send(self, path: str, group: RequestGroup) -> Response:
        """Send one request; return its response if the status is 200, else raise the matching error."""
        url = self.base_url + path
        error: BaseException | None = None
        with group.in_flight(self._response_timeout) as flight:
            try:
                with self._session.get(
                    url,
                    timeout=(self._timeout, self._timeout),
                    allow_redirects=False,
                    stream=True,
                    verify=self._verify,
                ) as http:
                    # No variable for the body: some log handlers print the variables of a traceback's frames.
                    response = Response(url, http.status_code, http.headers, self._read_body(http), self._key)
            except UnleashError as caught:
                error = caught
            except Exception as caught:  # of requests, urllib3, http.client or the codecs: sorted by what happened
                cause = redact(_cause_of(caught, url), self._key)
                error = _own_error(url, caught, cause, was_sent=flight.was_sent)
            except BaseException as caught:  # such as a task timeout
                error = caught
        is_incomplete = isinstance(error, Exception) or (error is None and response.status != 200)
        if group.is_cancelled() and is_incomplete:
            error = TransportError("The request was cancelled", reason="cancelled", url=url)
        elif flight.is_expired and isinstance(error, Exception):
            message = f"No complete response from {url} within response_timeout={self._response_timeout} s"
            error = TransportError(message, reason="timeout", url=url)
        if error is not None:
            # Without traceback and context: the frames of requests and urllib3 hold the header with the key.
            error.__context__ = error.__cause__ = None
            raise error.with_traceback(None)
        raise_for_status(response)
        return response

    def _read_body(self, http: requests.Response) -> bytes:
        if http.status_code != 200:  # the status is the error, whatever its body is
            body = b""
            with suppress(Exception):  # a body cut short may end within a repeated key, so it counts as empty
                for chunk in http.iter_content(8192):
                    body += chunk
                    if len(body) > 8192:
                        break
                return body
            return b""
        if "," in http.headers.get("Content-Encoding", ""):  # urllib3 before 2.6 would inflate all of it in one go
            raise TransportError(f"{http.url} returned a body compressed twice", reason="not_json", url=http.url)
        chunks, size = [], 0
        for chunk in http.iter_content(_CHUNK_BYTES):
            size += len(chunk)
            if size > self._max_response_bytes:
                raise ResultTooLargeError(
                    f"{http.url} returned more than {self._max_response_bytes} bytes",
                    limit=self._max_response_bytes,
                    url=http.url,
                    status=http.status_code,
                )
            chunks.append(chunk)
        return b"".join(chunks)


# ---- the session ---------------------------------------------------------------------------------


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline. A read timeout is not enough: a body may trickle one byte at a time."""

    def __init__(self, connected: socket.socket, raw: io.RawIOBase, deadline: float) -> None:
        self._socket = connected
        self._raw = raw
        self._deadline = deadline
        self._timeout = connected.gettimeout() or math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(min(self._timeout, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _FinalResponse(HTTPResponse):
    """Reads until the deadline, and skips interim responses such as 103; http.client only skips 100."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(sock, self.fp.detach(), _thread.flight.deadline))

    def begin(self) -> None:
        super().begin()
        try:
            assert_header_parsing(self.msg)
        except HeaderParsingError:  # urllib3 would log what it cannot parse, which may echo the key, and continue
            raise HTTPException("The headers cannot be parsed") from None

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # typeshed lacks private methods
        while 102 <= status < 200:
            while self.fp.readline(1 << 16) not in (b"\r\n", b"\n", b""):
                pass
            version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, status, reason


class _WatchedConnection:
    """
    A connection whose socket another thread can shut down; requests cannot cancel a request.

    It is mixed into a connection of urllib3, which has the methods that it extends.
    """

    response_class: Any = _FinalResponse
    sock: Any
    timeout: Any

    def connect(self) -> None:
        self.timeout = max(0.001, min(self.timeout, _thread.flight.deadline - time.monotonic()))
        with ExitStack() as self._while_connecting:
            super().connect()  # type: ignore[misc]  # urllib3's connection has it

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]  # urllib3's connection has it
        # A copy, because TLS takes the descriptor away from this one before the handshake.
        _thread.flight.watch(self._while_connecting.enter_context(connected.dup()))
        return connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)  # type: ignore[misc]  # urllib3's connection has it
        _thread.flight.was_sent = True
        _thread.flight.watch(self.sock)


class _HTTPConnection(_WatchedConnection, HTTPConnection):
    pass


class _HTTPSConnection(_WatchedConnection, HTTPSConnection):
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
    """Sets the key's header. With a plain header, requests would replace the key by an entry of ``~/.netrc``."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)
        return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None. Even with allow_redirects=False, requests would parse the target and read the whole body."""


def _open_session(base_url: str, headers: dict[str, str], user_agent: str, pool_size: int) -> requests.Session:
    session = _Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
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
    # Requests to this machine, and the key in them, do not go through a proxy from the environment.
    session.trust_env = not is_loopback(urlsplit(base_url).hostname or "")
    return session


def _cause_of(error: Exception, url: str) -> str:
    if any("@" in proxy for proxy in get_environ_proxies(url).values()):
        return type(error).__name__  # the text may have a part of the proxy's password
    return str(_reason_of(error) or type(error).__name__)


def _reason_of(error: Exception) -> object:
    return getattr(error.args[0], "reason", error.args[0]) if error.args else None


def _is_bundle_damaged(error: Exception) -> bool:
    """Return whether the CA bundle cannot be loaded; errors about the server come from OpenSSL's library "SSL"."""
    cause = _reason_of(error)
    return isinstance(cause, Exception) and "X509" in [getattr(part, "library", None) for part in cause.args]


def _is_malformed(error: Exception) -> bool:
    """Return whether what arrived is not HTTP; requests wraps an error of urllib3, which wraps one of http.client."""
    cause = error
    while cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    # A connection that is closed before a response is both.
    return isinstance(cause, HTTPException) and not isinstance(cause, ConnectionError)


def _own_error(url: str, error: Exception, cause: str, *, was_sent: bool) -> UnleashError:
    """Convert a library's error into one of this package, by what happened to the request."""
    message = f"No usable response from {url}: {cause}"
    is_network = isinstance(error, (requests.ConnectionError, requests.Timeout))
    can_send = is_network and not _is_bundle_damaged(error)
    if isinstance(error, requests.exceptions.SSLError) and can_send:
        return TransportError(
            f"{message}. TLS failed. If a proxy or your own CA signs the certificate, set the connection's extra "
            "verify to the path of its CA bundle; if the server has no TLS, use http:// in the host",
            reason="tls",
            url=url,
        )
    if was_sent and is_network and isinstance(_reason_of(error), PoolTimeoutError):
        return TransportError(message, reason="timeout", url=url)
    if not was_sent and not can_send:
        return InvalidArgumentError(
            f"Cannot send a request to {url}: {cause}. Check the connection's host, proxy settings and CA bundle",
            argument="host",
            url=url,
        )
    if was_sent and (_is_malformed(error) or not isinstance(error, requests.ConnectionError)):
        return TransportError(f"{message}. The response was truncated or damaged", reason="truncated", url=url)
    if was_sent:
        return TransportError(f"{message}. The connection was closed before a response", reason="reset", url=url)
    return TransportError(f"{message}. Check the host, port, proxy and firewall", reason="connection", url=url)
