"""One request: what it carries, when it is retried, where the key goes, and how it fails."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash import __version__
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    BadRequestError,
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
    with UnleashClient("key", url, max_attempts=1, **options) as client, pytest.raises(TransportError) as caught:
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


def test_simultaneous_refusals_do_not_use_up_the_attempts_of_a_page() -> None:
    # All in flight are refused, twice: more refusals than a page has attempts.
    faults = [Fault("429", after=2, times=10)]
    with (
        Simulator(fixed_pages=20, page_size=1, latency=0.05, faults=faults) as sim,
        connect(sim, page_concurrency=8, max_attempts=3) as client,
    ):
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
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = failure(f"http://127.0.0.1:{port}")
    assert refused.reason == "connection"
    assert "Connection refused" in str(refused)
    assert failure("https://does-not-exist.invalid").reason == "connection"


def test_a_response_or_a_rest_of_a_body_that_does_not_come_in_time_is_a_timeout(sim: Simulator) -> None:
    sim.add_fault(Fault("slow", seconds=2))
    assert failure(sim.base_url, timeout=0.1).reason == "timeout"

    def send_half(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n["half')
        time.sleep(0.5)

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
