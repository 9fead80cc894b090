"""One request: what it carries, when it is retried, where the key goes, and how it fails."""

from __future__ import annotations

import gzip
import logging
import os
import signal
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash import __version__
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    BadRequestError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    ResultTooLargeError,
    ServerError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)
from airflow_provider_unleash.simulator import Fault, Simulator

DEVICE = "Wb8fabc31378ce07"
START, END = 1_768_176_000_000, 1_768_262_400_000

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator(fixed_pages=6, page_size=10) as simulator:
        yield simulator


def connect(sim: Simulator, **options: Any) -> UnleashClient:
    return UnleashClient(sim.api_key, sim.base_url, **options)


def requested_pages(sim: Simulator) -> list[int]:
    return [int(request.path.rpartition("/")[2]) for request in sim.requests]


def failure(url: str, **options: Any) -> TransportError:
    with UnleashClient("the-key-", url, max_attempts=1, **options) as client, pytest.raises(TransportError) as caught:
        client.list_devices()
    return caught.value


@contextmanager
def listen(*handlers: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield the port of a server that handles its first connections one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            for handle in handlers:
                connection, _ = server.accept()
                with connection:
                    handle(connection)

        pool.submit(serve)
        yield server.getsockname()[1]


# ---- what a request carries ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "auth", "sent"),
    [
        ("simulator-key", "auto", "x-api-key"),
        ("ul_pat_simulator", "auto", "bearer"),
        ("ul_pat_simulator", "api_key", "x-api-key"),
        ("simulator-key", "bearer", "bearer"),
    ],
)
def test_a_request_carries_the_key_as_auth_says_the_packages_name_and_accepts_gzip(
    sim: Simulator, key: str, auth: Any, sent: str
) -> None:
    with UnleashClient(key, sim.base_url, auth=auth, user_agent="airflow/3.3.2") as client:
        client.get_version()
    [request] = sim.requests
    assert request.auth == sent
    assert request.user_agent == f"airflow-provider-unleash/{__version__} airflow/3.3.2"
    assert request.accept_encoding == "gzip"


def test_an_entry_of_netrc_does_not_replace_the_key(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 0.0.0.0 login somebody password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # This address is not loopback, so requests uses its settings from the environment, but it reaches this machine.
    with UnleashClient("ul_pat_simulator", f"http://0.0.0.0:{sim.port}", allow_http=True) as client:
        assert client.get_version() == "1.0.1"
    assert sim.requests[0].auth == "bearer"


def test_a_request_to_this_machine_does_not_go_through_a_proxy(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with connect(sim) as client:
        assert client.get_version() == "1.0.1"
    assert "proxy" in str(failure(f"http://0.0.0.0:{sim.port}", allow_http=True))


# ---- retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["500", "502", "503", "408", "425", "429", "reset", "half_body", "html", "garbage"])
@pytest.mark.parametrize("page", [1, 3, 6])
def test_a_passing_fault_is_retried_at_its_page_only(sim: Simulator, kind: str, page: int) -> None:
    sim.add_fault(Fault(kind, page=page, times=2))
    with connect(sim) as client:
        assert client.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
    assert sorted(requested_pages(sim)) == sorted([1, 1, 2, 3, 4, 5, 6, 6, page, page])


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        *(("500", ServerError), ("408", ServerError), ("429", RateLimitError)),
        *((kind, TransportError) for kind in ("reset", "half_body", "html", "garbage")),
    ],
)
def test_a_lasting_fault_is_raised_after_max_attempts(sim: Simulator, kind: str, error: type[UnleashError]) -> None:
    sim.add_fault(Fault(kind, times=None))
    with connect(sim, max_attempts=3) as client, pytest.raises(error) as caught:
        client.list_devices()
    assert len(sim.requests) == 3
    assert caught.value.url == f"{sim.base_url}/v1/analytics/devices"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        *((kind, AuthenticationError) for kind in ("401", "403")),
        *(("404", NotFoundError), ("wrong_shape", UnexpectedResponseError)),
        *((kind, BadRequestError) for kind in ("400", "422", "redirect")),
    ],
)
@pytest.mark.parametrize("page", [1, 3, 6])
def test_a_permanent_error_is_not_retried(sim: Simulator, kind: str, error: type[UnleashError], page: int) -> None:
    sim.add_fault(Fault(kind, page=page, times=None))
    with connect(sim) as client, pytest.raises(error):
        client.get_records(DEVICE, START, END)
    assert requested_pages(sim).count(page) == 1


@pytest.mark.parametrize(
    ("kind", "retry_after", "error"), [("429", 3600, RateLimitError), ("503", "date:3600", ServerError)]
)
def test_a_retry_after_of_more_than_a_minute_is_raised_at_once(
    sim: Simulator, kind: str, retry_after: Any, error: type[UnleashError]
) -> None:
    sim.add_fault(Fault(kind, retry_after=retry_after, times=None))
    with connect(sim) as client, pytest.raises(error) as caught:
        client.list_devices()
    assert caught.value.retry_after == pytest.approx(3600, abs=2)  # type: ignore[attr-defined]
    assert len(sim.requests) == 1


def test_simultaneous_refusals_do_not_use_up_the_attempts_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    # All eight in flight are refused, and then one more: more refusals than a page has attempts.
    faults = [Fault("429", after=2, times=8), Fault("429", after=2, times=1)]
    together = threading.Barrier(8)
    with (
        Simulator(fixed_pages=20, page_size=1, faults=faults) as sim,
        connect(sim, page_concurrency=8, max_attempts=3) as client,
    ):
        refuse = sim._respond_badly

        def refuse_together(fault: Fault, request: Any) -> Any:
            if fault.times == 8:
                together.wait(60)
            return refuse(fault, request)

        monkeypatch.setattr(sim, "_respond_badly", refuse_together)
        assert client.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)


def test_traffic_counts_requests_by_outcome_and_is_reported_on_close(sim: Simulator) -> None:
    for kind in ("500", "429", "garbage", "reset"):
        sim.add_fault(Fault(kind))
    reported: list[Any] = []
    with connect(sim, on_close=reported.append) as client:
        client.list_devices()
        sim.add_fault(Fault("403"))
        with pytest.raises(AuthenticationError):
            client.list_devices()
        traffic = client.traffic
    client.close()
    assert reported == [traffic]
    assert (traffic.requests, traffic.retries) == (len(sim.requests), 4) == (6, 4)
    expected = {"ok": 1, "server_error": 1, "throttled": 1, "transport_error": 2, "client_error": 1}
    assert traffic.outcomes == expected


# ---- where the key goes --------------------------------------------------------------------------


def test_a_redirect_is_named_and_not_followed(sim: Simulator) -> None:
    with Simulator() as other:
        location = f"{other.base_url}/v1/analytics/devices"
        sim.add_fault(Fault("redirect", location=location))
        with connect(sim) as client, pytest.raises(BadRequestError, match=f"redirect to {location}") as caught:
            client.list_devices()
        assert caught.value.location == location
        assert other.requests == []


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_echoes_is_in_no_error_and_no_log(
    sim: Simulator, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sim.add_fault(Fault("echo_key", status=status, times=None))
    with UnleashClient("ul_pat_secret", sim.base_url, max_attempts=2) as client, pytest.raises(UnleashError) as caught:
        client.list_devices()
    assert "***" in str(caught.value)
    assert "ul_pat_secret" not in f"{caught.value!r} {caught.value.__dict__} {client!r} {caplog.text}"


# ---- no response ---------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached_is_a_connection_error() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # does not listen, and nothing else can take the port
        refused = failure(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert refused.reason == "connection"
    assert "Connection refused" in str(refused)
    assert failure("https://does-not-exist.invalid").reason == "connection"


def test_a_response_or_a_rest_of_a_body_that_does_not_come_in_time_is_a_timeout(sim: Simulator) -> None:
    sim.add_fault(Fault("slow", seconds=2))
    assert failure(sim.base_url, timeout=0.1).reason == "timeout"

    def send_half(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n["half')
        connection.recv(1)  # until the client closes the connection

    with listen(send_half) as port:
        assert failure(f"http://127.0.0.1:{port}", timeout=0.2).reason == "timeout"


def test_a_server_without_tls_or_with_an_unknown_certificate_is_a_tls_error(sim: Simulator, tmp_path: Path) -> None:
    plain = failure(sim.base_url.replace("http:", "https:"))
    assert plain.reason == "tls"
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    if os.system(f"{command} -keyout {key} -out {certificate} 2>/dev/null") != 0:
        pytest.skip("needs openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(65536)
                secure.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n"1.0.1"')
        except ssl.SSLError:
            pass

    with listen(answer, answer) as port:
        unknown = failure(f"https://127.0.0.1:{port}")
        assert unknown.reason == "tls"
        assert "verify" in str(unknown)
        with UnleashClient("key", f"https://127.0.0.1:{port}", verify=str(certificate)) as client:
            assert client.get_version() == "1.0.1"


def test_a_body_beyond_the_limit_is_refused_while_it_is_read(sim: Simulator) -> None:
    with connect(sim, max_response_bytes=1000) as client, pytest.raises(ResultTooLargeError) as caught:
        client.get_records(DEVICE, START, END)
    assert caught.value.limit == 1000
    assert len(sim.requests) == 1


# ---- deadlines and cancelling --------------------------------------------------------------------


def trickle(start: bytes, drip: bytes) -> Callable[[socket.socket], None]:
    """Return a server that sends a part of a response every 0.05 s, for 30 s or until the client closes."""

    def send(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(start)
        with suppress(OSError):
            for _ in range(600):
                connection.sendall(drip)
                time.sleep(0.05)

    return send


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10], b"\x00"),
        *((b"HTTP/1.1 200 OK\r\nX: ", b"x"), (b"HTTP/1.1 ", b"2"), (b"", b"HTTP/1.1 102 Processing\r\n\r\n")),
    ],
    ids=["body", "chunks", "gzip", "headers", "status", "interim"],
)
def test_a_response_that_never_ends_is_a_timeout(start: bytes, drip: bytes) -> None:
    with listen(trickle(start, drip)) as port:
        error = failure(f"http://127.0.0.1:{port}", timeout=60, response_timeout=0.3)
    assert error.reason == "timeout"
    assert "response_timeout=0.3" in str(error)


def test_the_status_is_the_error_of_a_response_with_a_body_that_never_ends() -> None:
    began = time.monotonic()
    with (
        listen(trickle(b"HTTP/1.1 500 Error\r\nContent-Length: 10000\r\n\r\n", b" ")) as port,
        UnleashClient("key", f"http://127.0.0.1:{port}", response_timeout=0.3, max_attempts=1) as client,
        pytest.raises(ServerError),
    ):
        client.list_devices()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("fault", [Fault("slow", seconds=30, after=3), Fault("429", retry_after=30, after=3)])
@pytest.mark.parametrize("by_signal", [False, True])
def test_cancelling_a_client_ends_all_its_requests_at_once(sim: Simulator, fault: Fault, by_signal: bool) -> None:
    sim.add_fault(replace(fault, times=None))
    with connect(sim) as client:
        if by_signal:
            previous = signal.signal(signal.SIGALRM, lambda *_: client.cancel())
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        else:
            threading.Timer(0.3, client.cancel).start()
        began = time.monotonic()
        with pytest.raises(TransportError, match="cancelled") as caught:
            client.get_records(DEVICE, START, END)
        assert time.monotonic() - began < 10
        assert caught.value.reason == "cancelled"
        sent = client.traffic.requests
        with pytest.raises(TransportError, match="cancelled"):
            client.list_devices()
        assert client.traffic.requests == sent
        if by_signal:
            signal.signal(signal.SIGALRM, previous)


def test_a_tls_handshake_that_stalls_is_cancelled_and_obeys_the_response_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        error = failure(url, timeout=60, response_timeout=0.3)
        assert (error.reason, "response_timeout=0.3" in str(error)) == ("timeout", True)
        with UnleashClient("key", url, timeout=60) as client:
            threading.Timer(0.3, client.cancel).start()
            with pytest.raises(TransportError, match="cancelled"):
                client.list_devices()


def test_a_cancelled_request_is_no_error_of_the_server() -> None:
    """Otherwise a sensor's timeout would look like an error of the API."""
    with (
        listen(trickle(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000\r\n\r\n", b" ")) as port,
        UnleashClient("key", f"http://127.0.0.1:{port}") as client,
    ):
        threading.Timer(0.3, client.cancel).start()
        with pytest.raises(TransportError, match="cancelled"):
            client.list_devices()


# ---- odd responses -------------------------------------------------------------------------------


def respond_with(*responses: bytes, requests: list[bytes] | None = None) -> Any:
    """Return a context with the port of a server that sends these bytes, one response per connection."""

    def respond(response: bytes) -> Callable[[socket.socket], None]:
        def send(connection: socket.socket) -> None:
            (requests if requests is not None else []).append(connection.recv(65536))
            with suppress(OSError):
                connection.sendall(response)

        return send

    return listen(*map(respond, responses))


def whole(body: bytes, headers: bytes = b"", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n"
    return head % (status, len(body), headers) + body


def test_interim_responses_are_skipped() -> None:
    interim = (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    )
    with respond_with(interim + whole(b'"1.0.1"')) as port, UnleashClient("key", f"http://127.0.0.1:{port}") as client:
        assert client.get_version() == "1.0.1"


@pytest.mark.parametrize("status", [b"302 Found", b"404 Not Found"])
def test_the_body_of_a_redirect_or_error_is_not_read_whole(status: bytes) -> None:
    bomb = gzip.compress(bytes(1 << 27))
    raw = whole(bomb, b"Content-Encoding: gzip\r\nLocation: http://localhost/\r\n", status)
    tracemalloc.start()
    try:
        with (
            respond_with(raw) as port,
            UnleashClient("key", f"http://127.0.0.1:{port}") as client,
            pytest.raises((BadRequestError, NotFoundError)),
        ):
            client.get_version()
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "raw",
    [
        *(
            whole(b"", b"Location: %s\r\n" % place, b"302 Found")
            for place in (b"http://[", b"http://\xff/", b"\xff", b"")
        ),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-7\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n"1.0.1"',
        b'HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n"1.0.1',
        *(b"HTTP/1.1 %s OK\r\n\r\n" % status for status in (b"2x0", b"-1", b"99999999999", b"")),
        *(b"SSH-2.0-OpenSSH\r\n", b"\xff\xfe", b"", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        whole(b"not gzip", b"Content-Encoding: gzip\r\n"),
        whole(b'"1.0.1"', b"Content-Encoding: br\r\n"),
    ],
)
def test_a_broken_response_is_an_error_that_may_pass_or_a_redirect(raw: bytes) -> None:
    with (
        respond_with(raw) as port,
        UnleashClient("key", f"http://127.0.0.1:{port}", max_attempts=1) as client,
        suppress(TransportError, BadRequestError),
    ):
        assert client.get_version() == "1.0.1"  # http.client forgives some of them


@pytest.mark.parametrize(
    ("raw", "reason", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "truncated", "truncated or damaged"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\nno header\r\nContent-Length: 7\r\n\r\n[]", "truncated", "truncated or damaged"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "truncated", "truncated or damaged"),
        (b"", "reset", "closed before a response"),
    ],
)
def test_a_malformed_response_is_told_from_none(raw: bytes, reason: str, message: str) -> None:
    with (
        respond_with(raw) as port,
        UnleashClient("key", f"http://127.0.0.1:{port}", max_attempts=1) as client,
        pytest.raises(TransportError, match=message) as caught,
    ):
        client.list_devices()
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("body", "headers", "named"),
    [
        *(('["W1"]'.encode(encoding), b"", "UTF-16") for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")),
        (b"\x8b\x00\x80", b"Content-Encoding: br\r\n", "Content-Encoding br"),
        (b"\x8b\x00\x80", b"Content-Encoding: The-Key-\r\n", "Content-Encoding ***,"),
        (b"twice", b"Content-Encoding: gzip, gzip\r\n", "compressed twice"),
    ],
)
def test_a_body_in_an_unusable_encoding_is_called_by_its_name(body: bytes, headers: bytes, named: str) -> None:
    with respond_with(whole(body, headers)) as port:
        error = failure(f"http://127.0.0.1:{port}")
    assert named in str(error)


@pytest.mark.parametrize("name", [b"Content-Encoding", b"Location"])
def test_an_error_shows_only_the_start_of_a_header(name: bytes) -> None:
    raw = whole(b"{", name + b": " + b"x" * 9000 + b"\r\n", b"302 Found" if name == b"Location" else b"200 OK")
    with (
        respond_with(raw) as port,
        pytest.raises(UnleashError) as caught,
        UnleashClient("key", f"http://127.0.0.1:{port}", max_attempts=1) as client,
    ):
        client.list_devices()
    assert "xxx" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_cookies_are_not_sent_back() -> None:
    requests: list[bytes] = []
    raw = whole(b'"1.0.1"', b"Set-Cookie: session=1; Path=/\r\n")
    with respond_with(raw, raw, requests=requests) as port, UnleashClient("key", f"http://127.0.0.1:{port}") as client:
        assert client.get_version() == client.get_version()
    assert len(requests) == 2
    assert b"cookie" not in requests[1].lower()


@pytest.mark.parametrize("host", ["https://api..example", f"https://{'a' * 64}.example", "https://xn--a.\u00ad"])
def test_a_host_that_cannot_be_asked_is_an_invalid_argument_and_nothing_is_retried(host: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught, UnleashClient("key", host) as client:
        client.list_devices()
    assert caught.value.argument == "host"


@pytest.mark.parametrize("proxy", ["proxy:99999", "pro/xy", "proxy:x"])
def test_an_unusable_proxy_is_an_error_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret/pw@{proxy}")
    with UnleashClient("key", "https://api.example", max_attempts=1) as client, pytest.raises(UnleashError) as caught:
        client.list_devices()
    assert "proxy" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_an_unusable_ca_bundle_in_the_environment_is_an_invalid_argument(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with socket.create_server(("0.0.0.0", 0)) as server:  # not loopback, which needs no bundle of the environment
        url = f"https://0.0.0.0:{server.getsockname()[1]}"
        with UnleashClient("key", url) as client, pytest.raises(InvalidArgumentError, match="CA bundle"):
            client.list_devices()
        assert client.traffic.requests == 1
