"""The simulated API on a real port."""

from __future__ import annotations

import ipaddress
import json
import math
import random
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from email.utils import formatdate
from functools import partial
from http.client import responses
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import unquote

from airflow_provider_unleash.simulator.account import Account, Options, encode_json
from airflow_provider_unleash.simulator.data import Record
from airflow_provider_unleash.simulator.faults import ArmedFault, Fault, parse_fault

DEFAULT_KEYS = ("simulator-key", "ul_pat_simulator")
API_VERSION = "1.0.1"
CONTROL = "/_simulator/"
MAINTENANCE = b"<html><head><title>Maintenance</title></head><body>We will be back soon</body></html>"


@dataclass(frozen=True)
class LoggedRequest:
    """
    A request and its outcome, without the key.

    ``status`` is 0 if the connection was reset; ``auth`` is ``x-api-key``, ``bearer`` or None.
    """

    number: int
    time: float
    method: str
    path: str
    status: int
    fault: str | None
    auth: str | None
    user_agent: str | None
    accept_encoding: str | None


@dataclass(frozen=True)
class _Response:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery: Literal["whole", "half", "reset"] = "whole"


def _message(status: int, text: str = "", **headers: str) -> _Response:
    return _Response(status, encode_json({"message": text or responses.get(status, "Error")}), headers)


class Simulator:
    """
    The simulated API, served by background threads while the ``with`` block runs.

    :param port: port to listen on; 0 picks a free one
    :param host: address to listen on
    :param api_keys: keys to accept, in either header
    :param rows: rows by device that replace the generated ones; pages keep their order. A row without a valid
        timestamp is in every window. If a row lacks a key that others on its page have, the compact response has
        null and the tableau response omits it
    :param clock: returns seconds since the epoch; rows and sessions after this time do not exist yet
    :param log: file to append each request to, as a line of JSON
    :param faults: initial faults
    :param options: fields of :class:`~airflow_provider_unleash.simulator.Options`
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        api_keys: Sequence[str] = DEFAULT_KEYS,
        rows: Mapping[str, Iterable[Record]] | None = None,
        clock: Callable[[], float] = time.time,
        log: str | Path | None = None,
        faults: Iterable[Fault] = (),
        **options: Any,
    ) -> None:
        self.host, self.port, self.api_keys, self.api_key = host, port, tuple(api_keys), api_keys[0]
        self.options = Options(**options)
        self._account = Account(self.options, rows, clock)
        self.devices = self._account.devices
        self.max_in_flight = self._in_flight = self._number = 0
        self._requests: list[LoggedRequest] = []
        self._faults = [ArmedFault(fault) for fault in faults]
        self._rng = random.Random(self.options.seed)
        self._log_path = log
        self._log: IO[str] | None = None
        self._lock, self._stopping = threading.Lock(), threading.Event()

    def __enter__(self) -> Simulator:
        self._server = _Server((self.host, self.port), partial(_Handler, self))
        self.port = self._server.server_address[1]
        if self._log_path is not None:
            self._log = Path(self._log_path).open("a", encoding="utf-8", buffering=1)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._log is not None:
            self._log.close()

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[LoggedRequest]:
        """The requests answered so far, in the order of their arrival."""
        with self._lock:
            return sorted(self._requests, key=lambda request: request.number)

    def clear_requests(self) -> None:
        """Clear the requests so far and reset ``max_in_flight``."""
        with self._lock:
            self._requests.clear()
            self.max_in_flight = self._in_flight

    def add_fault(self, fault: Fault) -> None:
        """Add a fault; at most one fault occurs per request, and earlier ones take precedence."""
        with self._lock:
            self._faults.append(ArmedFault(fault))

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def rows(self, device_id: str, start_ms: int, end_ms: int) -> list[Record]:
        """Return the rows that a correct client gets for a window, ignoring the option ``growing``."""
        return self._account.rows(device_id, start_ms, end_ms)

    def sessions(self, now_ms: int | None = None) -> list[str]:
        """Return the IDs of the sessions that have started by ``now_ms`` (default: the clock's time)."""
        return self._account.sessions(now_ms)

    def respond(self, request: _Handler) -> _Response:
        arrived = time.time()
        with self._lock:
            self._number += 1
            number = self._number
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            fault = next((armed.fault for armed in self._faults if armed.occurs(request.path, self._rng)), None)
        try:
            self._stopping.wait(self.options.latency)
            response = self._respond_well(request) if fault is None else self._respond_badly(fault, request)
        finally:
            # Before the response is sent: once the client has it, its next request may arrive on another connection.
            with self._lock:
                self._in_flight -= 1
        self._log_request(number, arrived, request, response.status, fault)
        return response

    def respond_to_control(self, method: str, path: str, body: bytes) -> _Response:
        """Respond to a request that controls the simulator; it needs no key."""
        match method, path.removeprefix(CONTROL):
            case "GET", "requests":
                requests = [asdict(request) for request in self.requests]
                return _Response(200, encode_json({"requests": requests, "max_in_flight": self.max_in_flight}))
            case "DELETE", "requests":
                self.clear_requests()
            case "DELETE", "faults":
                self.clear_faults()
            case "POST", "faults":
                return self._add_posted_faults(body)
            case _:
                return _message(404)
        return _message(200)

    def _add_posted_faults(self, body: bytes) -> _Response:
        try:
            posted = json.loads(body)
            faults = [parse_fault(values) for values in (posted if isinstance(posted, list) else [posted])]
        except (TypeError, ValueError) as error:
            return _message(400, str(error))
        for fault in faults:
            self.add_fault(fault)
        return _Response(200, encode_json({"faults": len(faults)}))

    def _log_request(self, number: int, arrived: float, request: _Handler, status: int, fault: Fault | None) -> None:
        auth, key = request.credential()
        path = request.path.replace(key, "***") if key else request.path
        agent, encoding = request.headers.get("User-Agent"), request.headers.get("Accept-Encoding")
        kind = fault.kind if fault else None
        logged = LoggedRequest(number, arrived, request.command, path, status, kind, auth, agent, encoding)
        with self._lock:
            self._requests.append(logged)
            if self._log is not None:
                self._log.write(json.dumps(asdict(logged)) + "\n")

    def _respond_well(self, request: _Handler) -> _Response:
        auth, key = request.credential()
        if request.command != "GET":
            return _message(405, Allow="GET")
        if key not in self.api_keys:
            return _message(403 if auth else 401)
        match request.path.partition("?")[0].split("/"):
            case ["", "v1", "analytics", "version"]:
                return _Response(200, encode_json(API_VERSION))
            case ["", "v1", "analytics", "devices"]:
                return _Response(200, encode_json(self.devices))
            case ["", "v1", "analytics", "sessions"]:
                return _Response(200, encode_json(self.sessions()))
            case ["", "v1", "analytics", "tableau", device, *numbers] if len(numbers) == 3:
                return self._respond_with_page(request, unquote(device), numbers, tableau=True)
            case ["", "v1", "analytics", device, *numbers] if len(numbers) == 3:
                return self._respond_with_page(request, unquote(device), numbers, tableau=False)
        return _message(404)

    def _respond_with_page(self, request: _Handler, device_id: str, numbers: list[str], *, tableau: bool) -> _Response:
        # 14 digits reach the year 5138; Python's datetime ends with the year 9999.
        if not all(re.fullmatch("[0-9]{1,14}", number) for number in numbers):
            return _message(400, "from, to and page must be integers")
        start, end, page = map(int, numbers)
        if page < 1:
            return _message(400, "page starts at 1")
        if device_id not in self.devices and self.options.unknown_device == "404":
            return _message(404)
        compressed = self.options.gzip and "gzip" in request.headers.get("Accept-Encoding", "")
        try:
            body = self._account.body(device_id, start, end, page, tableau=tableau, compressed=compressed)
        except ValueError as error:
            return _message(400, str(error))
        return _Response(200, body, {"Content-Encoding": "gzip"} if compressed else {})

    def _respond_badly(self, fault: Fault, request: _Handler) -> _Response:
        match fault.kind:
            case "slow":
                self._stopping.wait(fault.seconds)
                return self._respond_well(request)
            case "half_body":
                return replace(self._respond_well(request), delivery="half")
            case "reset":
                return _Response(0, delivery="reset")
            case "redirect":
                # Another name of this host is another origin, so a test sees what a client sends there.
                location = fault.location or f"http://localhost:{self.port}{request.path}"
                response = _message(302, Location=location)
            case "html":
                response = _Response(200, MAINTENANCE, {"Content-Type": "text/html; charset=utf-8"})
            case "garbage":
                response = _Response(200, b"\x80\x81" + self._rng.randbytes(200))
            case "wrong_shape":
                response = _Response(200, encode_json({"items": [], "next": None}))
            case "echo_key":
                response = _message(401, f"Invalid key: {request.credential()[1]}")
            case status:
                response = _message(int(status))
        headers = {} if fault.retry_after is None else {"Retry-After": _retry_after(str(fault.retry_after))}
        return replace(response, status=fault.status or response.status, headers={**response.headers, **headers})


def _retry_after(value: str) -> str:
    if not value.startswith("date:"):
        return value
    # Rounded up: an HTTP date has whole seconds, and the wait must not be shorter than requested.
    return formatdate(math.ceil(time.time() + float(value.removeprefix("date:"))), usegmt=True)


class _Server(socketserver.ThreadingTCPServer):
    """A server that ends all its threads and connections when it closes. HTTPServer also does a DNS lookup."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, *args: Any) -> None:
        self._connections: dict[threading.Thread, Any] = {}
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections = {thread: sock for thread, sock in self._connections.items() if thread.is_alive()}
        target, args = self.process_request_thread, (request, client_address)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._connections[thread] = request
        thread.start()

    def server_close(self) -> None:
        super().server_close()
        for thread, request in self._connections.items():
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, simulator: Simulator, *args: Any) -> None:
        self._simulator = simulator
        super().__init__(*args)

    def credential(self) -> tuple[str | None, str]:
        if (key := self.headers.get("x-api-key")) is not None:
            return "x-api-key", key.strip()
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return ("bearer", key.strip()) if scheme.lower() == "bearer" else (None, "")

    def _handle(self) -> None:
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(int(length)) if length.isdecimal() else b""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
        if not self.path.startswith(CONTROL):
            self._send(self._simulator.respond(self))
        elif ipaddress.ip_address(self.client_address[0]).is_loopback:
            self._send(self._simulator.respond_to_control(self.command, self.path, body))
        else:
            self._send(_message(404))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle  # noqa: N815, names of http.server

    def _send(self, response: _Response) -> None:
        if response.delivery == "reset":
            self._reset()
            return
        body = b"" if self.command == "HEAD" else response.body
        if response.delivery == "half":
            self.close_connection = True
            body = body[: len(body) // 2]
        # One call: two small writes would become two packets.
        self.wfile.write(self._head(response) + body)

    def _head(self, response: _Response) -> bytes:
        headers = {"Date": self.date_time_string(), "Content-Type": "application/json", **response.headers}
        headers["Content-Length"] = str(len(response.body))
        if self.close_connection:
            headers["Connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {response.status} {responses.get(response.status, '')}\r\n{lines}\r\n".encode("latin-1")

    def _reset(self) -> None:
        self.close_connection = True
        # With a linger time of zero, closing sends a reset. The reader holds the socket open, so close it too.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        pass
