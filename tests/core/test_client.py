"""The client against a real server: what it asks, what it retries, and what it leaves behind."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_unleash import __version__
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core import throttle
from airflow_provider_unleash.core.protocol import Response
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    BadRequestError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    ResultTooLargeError,
    ServerError,
    SnapshotChangedError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)
from airflow_provider_unleash.simulator import Fault, Simulator

DEVICE = "Wb8fabc31378ce07"
START, END = 1_597_622_400_000 + 6 * 3_600_000, 1_597_622_400_000 + 9 * 3_600_000


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MIN_BACKOFF", 0.001)
    monkeypatch.setattr(throttle, "MAX_BACKOFF", 0.002)


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator(page_size=100) as simulator:
        yield simulator


def connect(sim: Simulator, **options: object) -> UnleashClient:
    return UnleashClient(sim.api_key, sim.base_url, **options)  # type: ignore[arg-type]


def page_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("unleash-page")]


def pages_asked(sim: Simulator) -> list[int]:
    return [int(request.path.rsplit("/", 1)[1]) for request in sim.requests if f"/{DEVICE}/" in request.path]


# ---- the five endpoints ----


def test_all_five_endpoints_are_read(sim: Simulator) -> None:
    with connect(sim) as api:
        assert api.get_version() == "1.0.1"
        assert api.list_devices() == list(sim.devices)
        assert api.list_sessions() == sim.sessions()
        expected = sim.rows(DEVICE, START, END)
        assert len(expected) > 300
        assert api.get_records(DEVICE, START, END) == expected
        assert api.get_records(DEVICE, START, END, endpoint="tableau") == expected
        assert list(api.iter_records(DEVICE, START, END)) == expected


@pytest.mark.parametrize("variation", [{"reorder_keys": True}, {"new_key": "confidence"}, {"nulls": True}])
def test_both_endpoints_give_equal_records_whatever_the_pages_look_like(variation: dict[str, object]) -> None:
    with Simulator(page_size=100, **variation) as sim, connect(sim) as api:  # type: ignore[arg-type]
        expected = sim.rows(DEVICE, START, END)
        assert api.get_records(DEVICE, START, END) == expected
        assert api.get_records(DEVICE, START, END, endpoint="tableau") == expected


@pytest.mark.parametrize("moments", [(START, END), (datetime(2020, 8, 17, 6, tzinfo=timezone.utc), END)])
def test_exactly_the_window_that_was_given_is_asked_for(sim: Simulator, moments: tuple[object, int]) -> None:
    with connect(sim) as api:
        next(api.iter_pages(DEVICE, *moments))  # type: ignore[arg-type]
    assert sim.requests[0].path == f"/v1/analytics/{DEVICE}/{START}/{END}/1"


def test_pages_come_in_order_with_their_numbers(sim: Simulator) -> None:
    with connect(sim) as api:
        pages = list(api.iter_pages(DEVICE, START, END))
    assert [page.number for page in pages] == list(range(1, pages[0].total_pages + 1))
    assert pages[0].total_pages > 3


@pytest.mark.parametrize("empty_total", [0, 1])
def test_no_rows_are_one_empty_page_however_they_are_counted(empty_total: int) -> None:
    with Simulator(empty_total=empty_total) as sim, connect(sim) as api:
        silent = sim.devices[-1]
        assert api.get_records(silent, START, END) == []
        assert [len(page.rows) for page in api.iter_pages(silent, START, END)] == [0]


def test_an_id_is_percent_encoded_into_the_path() -> None:
    with Simulator(rows={"a b%?#ü": []}) as sim, connect(sim) as api:
        assert api.get_records("a b%?#ü", START, END) == []
        assert sim.requests[0].path.startswith("/v1/analytics/a%20b%25%3F%23%C3%BC/")


# ---- what every request carries ----


@pytest.mark.parametrize(
    ("key", "auth", "sent"),
    [
        ("simulator-key", "auto", "x-api-key"),
        ("ul_pat_simulator", "auto", "bearer"),
        ("ul_pat_simulator", "api_key", "x-api-key"),
        ("simulator-key", "bearer", "bearer"),
    ],
)
def test_the_key_goes_in_the_header_that_auth_names(sim: Simulator, key: str, auth: str, sent: str) -> None:
    with UnleashClient(key, sim.base_url, auth=auth) as api:  # type: ignore[arg-type]
        api.get_version()
    assert sim.requests[0].auth == sent


def test_a_request_names_the_package_and_takes_gzip(sim: Simulator) -> None:
    with connect(sim, user_agent="airflow/3.3.2") as api:
        api.get_version()
    assert sim.requests[0].user_agent == f"airflow-provider-unleash/{__version__} airflow/3.3.2"
    assert sim.requests[0].accept_encoding == "gzip"


def test_connections_are_reused(sim: Simulator) -> None:
    with connect(sim, page_concurrency=1) as api:
        before = {thread.name for thread in threading.enumerate()}
        api.get_records(DEVICE, START, END)
        served_by = {thread.name for thread in threading.enumerate()} - before
    assert len(served_by) == 1


def test_netrc_does_not_replace_the_key(
    sim: Simulator, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\nmachine localhost login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with UnleashClient("ul_pat_simulator", sim.base_url) as api:
        api._session.trust_env = True  # as for a host that is not this machine
        assert api.get_version() == "1.0.1"
    assert sim.requests[0].auth == "bearer"


def test_a_proxy_of_the_environment_never_sees_what_is_meant_for_this_machine(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with connect(sim) as api:
        assert api.get_version() == "1.0.1"


# ---- what is retried ----


@pytest.mark.parametrize("kind", ["500", "502", "503", "408", "425", "reset", "half_body", "html", "garbage"])
@pytest.mark.parametrize("page", [1, 2, 5])
def test_a_passing_fault_is_retried_at_its_page(sim: Simulator, kind: str, page: int) -> None:
    sim.add_fault(Fault(kind, page=page, times=2))
    with connect(sim) as api:
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
    asked = pages_asked(sim)
    assert asked.count(page) == 2 + (2 if page == 1 else 1)  # page 1 is read again at the end
    assert sum(map(asked.count, {3, 4})) == 2


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("500", ServerError),
        ("408", ServerError),
        ("reset", TransportError),
        ("half_body", TransportError),
        ("html", TransportError),
        ("garbage", TransportError),
        ("429", RateLimitError),
    ],
)
def test_a_lasting_fault_is_raised_after_the_attempts(sim: Simulator, kind: str, error: type[UnleashError]) -> None:
    sim.add_fault(Fault(kind, times=None))
    with connect(sim, max_attempts=3) as api, pytest.raises(error) as caught:
        api.list_devices()
    assert len(sim.requests) == 3
    assert caught.value.url == f"{sim.base_url}/v1/analytics/devices"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("401", AuthenticationError),
        ("403", AuthenticationError),
        ("404", NotFoundError),
        ("400", BadRequestError),
        ("422", BadRequestError),
        ("redirect", BadRequestError),
        ("wrong_shape", UnexpectedResponseError),
    ],
)
@pytest.mark.parametrize("page", [1, 3])
def test_what_repeating_cannot_help_is_asked_once(
    sim: Simulator, kind: str, error: type[UnleashError], page: int
) -> None:
    sim.add_fault(Fault(kind, page=page, times=None))
    with connect(sim) as api, pytest.raises(error):
        api.get_records(DEVICE, START, END)
    assert pages_asked(sim).count(page) == 1


def test_retry_after_is_waited_for(sim: Simulator) -> None:
    sim.add_fault(Fault("429", retry_after=1))
    with connect(sim) as api:
        began = time.monotonic()
        api.list_devices()
    assert time.monotonic() - began >= 1.0


def test_a_long_retry_after_is_raised_at_once_with_its_seconds(sim: Simulator) -> None:
    sim.add_fault(Fault("429", retry_after=3600, times=None))
    with connect(sim) as api, pytest.raises(RateLimitError) as caught:
        api.list_devices()
    assert caught.value.retry_after == 3600
    assert caught.value.status == 429
    assert len(sim.requests) == 1


def test_a_long_retry_after_as_a_date_is_raised_too(sim: Simulator) -> None:
    sim.add_fault(Fault("503", retry_after="date:600", times=None))
    with connect(sim) as api, pytest.raises(ServerError) as caught:
        api.list_devices()
    assert caught.value.retry_after == pytest.approx(600, abs=2)
    assert len(sim.requests) == 1


def test_a_refusal_holds_back_all_requests_of_an_extraction(sim: Simulator) -> None:
    sim.add_fault(Fault("429", page=4, retry_after=1))
    with connect(sim, page_concurrency=4) as api:
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
    # Those under way at the refusal may still be answered; then nobody asks until the second is over.
    times = [request.time for request in sim.requests]
    pauses = [after - before for before, after in pairwise(times)]
    assert max(pauses) >= 0.9
    assert len(times) - pauses.index(max(pauses)) > 3


def test_many_refusals_do_not_use_up_the_patience_of_a_page() -> None:
    # All that are under way are refused, twice: more refusals than one page has attempts.
    with Simulator(page_size=100, latency=0.05) as sim, connect(sim, page_concurrency=8, max_attempts=3) as api:
        sim.add_fault(Fault("429", path=f"/{DEVICE}/", after=1, times=10))
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)


def test_endless_refusals_end_the_extraction(sim: Simulator) -> None:
    sim.add_fault(Fault("429", path=f"/{DEVICE}/", after=1, times=None))
    with connect(sim, page_concurrency=4, max_attempts=3) as api, pytest.raises(RateLimitError):
        api.get_records(DEVICE, START, END)
    assert len(sim.requests) < 20
    assert page_threads() == []


# ---- where the key goes ----


def test_a_redirect_is_named_and_not_followed(sim: Simulator) -> None:
    with Simulator() as other:
        sim.add_fault(Fault("redirect", location=f"{other.base_url}/v1/analytics/devices"))
        with connect(sim) as api, pytest.raises(BadRequestError, match="redirect") as caught:
            api.list_devices()
        assert caught.value.location == f"{other.base_url}/v1/analytics/devices"
        assert other.base_url in str(caught.value)
        assert other.requests == []


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_echoes_is_not_in_the_error(
    sim: Simulator, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sim.add_fault(Fault("echo_key", status=status, times=None))
    with UnleashClient("ul_pat_recognisable", sim.base_url, max_attempts=2) as api, pytest.raises(UnleashError) as info:
        api.list_devices()
    assert "***" in str(info.value)
    assert "recognisable" not in f"{info.value!r} {info.value.__dict__} {api!r} {caplog.text}"


def test_an_http_address_elsewhere_is_refused_before_any_request() -> None:
    with pytest.raises(InvalidArgumentError, match="unencrypted"):
        UnleashClient("key", "http://192.0.2.1:8642")
    UnleashClient("key", "http://192.0.2.1:8642", allow_http=True).close()


# ---- no answer ----


def test_a_refused_connection_is_a_transport_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with UnleashClient("key", f"http://127.0.0.1:{port}", max_attempts=2) as api, pytest.raises(TransportError) as info:
        api.get_version()
    assert info.value.reason == "connection"
    assert "Connection refused" in str(info.value)


def test_a_host_that_does_not_exist_is_a_transport_error() -> None:
    with UnleashClient("key", "https://does-not-exist.invalid", max_attempts=1) as api, pytest.raises(TransportError):
        api.get_version()


def test_a_server_that_does_not_answer_in_time_is_a_timeout(sim: Simulator) -> None:
    sim.add_fault(Fault("slow", seconds=2))
    with connect(sim, timeout=0.1, max_attempts=1) as api, pytest.raises(TransportError) as info:
        api.get_version()
    assert info.value.reason == "timeout"


def test_a_body_that_stops_arriving_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer_half() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n["half')
                time.sleep(0.5)

        pool.submit(answer_half)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with UnleashClient("key", url, timeout=0.2, max_attempts=1) as api, pytest.raises(TransportError) as info:
            api.list_devices()
    assert info.value.reason == "timeout"


def test_tls_spoken_to_a_plain_server_says_tls(sim: Simulator) -> None:
    url = sim.base_url.replace("http:", "https:")
    with UnleashClient("key", url, max_attempts=1) as api, pytest.raises(TransportError, match="TLS") as info:
        api.get_version()
    assert info.value.reason == "tls"


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    if os.system(f"{command} -keyout {key} -out {certificate} 2>/dev/null") != 0:
        pytest.skip("openssl is not there to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(65536)
                        secure.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n"1.0.1"')
                except ssl.SSLError:
                    pass

        pool.submit(answer)
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with UnleashClient("key", url, max_attempts=1) as api, pytest.raises(TransportError, match="verify") as info:
            api.get_version()
        assert info.value.reason == "tls"
        with UnleashClient("key", url, verify=str(certificate)) as api:
            assert api.get_version() == "1.0.1"


def test_a_body_beyond_the_limit_is_refused_while_it_is_read(sim: Simulator) -> None:
    with connect(sim, max_response_bytes=1000) as api, pytest.raises(ResultTooLargeError) as info:
        api.get_records(DEVICE, START, END)
    assert info.value.limit == 1000
    assert len(sim.requests) == 1


# ---- pages that change under the reader ----


def test_pages_that_grow_are_noticed_at_once() -> None:
    with Simulator(page_size=100, growing=100) as sim, connect(sim, page_concurrency=1) as api:
        pages = api.iter_pages(DEVICE, START, END)
        with pytest.raises(SnapshotChangedError, match="total_num_pages"):
            list(pages)


def test_rows_that_change_without_a_new_page_are_noticed_at_the_end() -> None:
    with Simulator(page_size=100, growing=1) as sim, connect(sim, page_concurrency=1) as api:
        read = []
        with pytest.raises(SnapshotChangedError):
            read.extend(page.number for page in api.iter_pages(DEVICE, START, END))
        assert read == sorted(read)


def test_records_are_read_again_until_pages_hold_still() -> None:
    with Simulator(page_size=100, growing=60) as sim, connect(sim) as api:
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
        assert pages_asked(sim).count(1) > 2


def test_records_that_never_hold_still_are_an_error_after_three_restarts(sim: Simulator) -> None:
    with Simulator(page_size=10, growing=10) as sim, connect(sim, page_concurrency=1) as api:
        with pytest.raises(SnapshotChangedError):
            api.get_records(DEVICE, START, END)
        assert pages_asked(sim).count(1) == 4


def test_a_window_of_one_page_is_asked_once(sim: Simulator) -> None:
    with connect(sim) as api:
        assert len(list(api.iter_pages(DEVICE, START, START + 600_000))) == 1
    assert pages_asked(sim) == [1]


def test_first_and_last_page_of_several_are_read_again(sim: Simulator) -> None:
    with connect(sim) as api:
        total = len(list(api.iter_pages(DEVICE, START, END)))
    asked = pages_asked(sim)
    assert sorted(asked[-2:]) == [1, total]
    assert len(asked) == total + 2


# ---- reading ahead ----


@pytest.mark.parametrize("concurrency", [1, 2, 3, 8, 50])
def test_rows_are_the_same_at_any_concurrency_and_no_thread_is_left(sim: Simulator, concurrency: int) -> None:
    with connect(sim, page_concurrency=concurrency) as api:
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
    assert page_threads() == []


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_never_more_requests_are_under_way_than_agreed(concurrency: int) -> None:
    with Simulator(page_size=50, latency=0.01) as sim, connect(sim) as api:
        list(api.iter_pages(DEVICE, START, END, page_concurrency=concurrency))
        assert sim.max_in_flight == concurrency


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_slow_consumer_is_not_buried_in_pages(concurrency: int) -> None:
    with Simulator(page_size=20) as sim, connect(sim) as api:
        pages = api.iter_pages(DEVICE, START, END, page_concurrency=concurrency)
        for _ in range(3):
            page = next(pages)
        time.sleep(0.1)
        last = page.total_pages  # which is asked for second
        assert max(number for number in pages_asked(sim) if number != last) <= page.number + 2 * concurrency
        pages.close()


def test_one_thread_asks_strictly_one_after_another(sim: Simulator) -> None:
    with connect(sim, page_concurrency=1) as api:
        for page in api.iter_pages(DEVICE, START, END):
            before = [1, page.total_pages, *range(2, page.total_pages)]
            assert pages_asked(sim) == before[: min(page.number + 1, page.total_pages)]


def test_closing_the_iterator_ends_the_requests_under_way() -> None:
    with Simulator(page_size=50) as sim, connect(sim, page_concurrency=4) as api:
        sim.add_fault(Fault("slow", path=f"/{DEVICE}/", after=2, times=None, seconds=30))
        pages = api.iter_pages(DEVICE, START, END)
        next(pages)
        began = time.monotonic()
        pages.close()
        assert time.monotonic() - began < 5
        assert page_threads() == []
        sim.clear_faults()
        assert api.get_version() == "1.0.1"


def test_an_error_ends_the_requests_under_way() -> None:
    with Simulator(page_size=50) as sim, connect(sim, page_concurrency=4) as api:
        sim.add_fault(Fault("403", page=2))
        sim.add_fault(Fault("slow", path=f"/{DEVICE}/", after=1, times=None, seconds=30))
        began = time.monotonic()
        with pytest.raises(AuthenticationError):
            list(api.iter_pages(DEVICE, START, END))
        assert time.monotonic() - began < 5
        assert page_threads() == []


def test_an_abandoned_iterator_leaves_no_thread() -> None:
    with Simulator(page_size=50, latency=0.01) as sim, connect(sim, page_concurrency=4) as api:
        next(iter(api.iter_records(DEVICE, START, END)))
    assert page_threads() == []


# ---- arguments ----


@pytest.mark.parametrize("device_id", ["", "a/b", "..", ".", "a\nb", "a\\b", " a", "a\u200bb", 7])
def test_an_id_that_could_change_the_path_is_refused_before_any_request(sim: Simulator, device_id: str) -> None:
    with connect(sim) as api, pytest.raises(ValueError, match="device_id"):
        api.iter_pages(device_id, START, END)
    assert sim.requests == []


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((START, START - 1), {}),
        ((datetime(2020, 8, 17), END), {}),
        ((1_597_622_400, 1_597_632_400), {}),
        ((START, "2020-08-17"), {}),
        ((START, END), {"endpoint": "xml"}),
        ((START, END), {"page_concurrency": 0}),
    ],
)
def test_an_argument_that_means_nothing_is_refused_before_any_request(
    sim: Simulator, arguments: tuple[object, object], options: dict[str, object]
) -> None:
    with connect(sim) as api, pytest.raises(InvalidArgumentError):
        api.iter_pages(DEVICE, *arguments, **options)  # type: ignore[arg-type]
    assert sim.requests == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"auth": "basic"}, "auth"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"page_concurrency": -1}, "page_concurrency"),
        ({"verify": False}, "verify"),
        ({"verify": "no/such/bundle.pem"}, "verify"),
        ({"api_key": ""}, "password"),
        ({"api_key": "two words"}, "password"),
        ({"base_url": "ftp://host"}, "host"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError) as info:
        UnleashClient(**{"api_key": "key", "base_url": "http://127.0.0.1:1", **options})  # type: ignore[arg-type]
    assert info.value.argument == named


# ---- stream tokens ----


def test_stream_tokens_are_masked_where_asked(sim: Simulator) -> None:
    with connect(sim, mask_stream_tokens=True) as api:
        names = {record["source_file_name"] for record in api.get_records(DEVICE, START, END)}
    assert names == {f"{DEVICE}?token=***"}


@pytest.mark.parametrize(("choice", "warnings"), [(None, 1), (False, 0), (True, 0)])
def test_tokens_are_warned_of_once_where_nobody_chose(
    sim: Simulator, choice: bool | None, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(sim, mask_stream_tokens=choice) as api:
        records = api.get_records(DEVICE, START, END)
    assert sum("stream tokens" in record.getMessage() for record in caplog.records) == warnings
    assert (records == sim.rows(DEVICE, START, END)) is not bool(choice)
    token = sim.rows(DEVICE, START, END)[0]["source_file_name"].partition("=")[2]
    assert token not in caplog.text


def test_where_a_page_had_to_be_asked_again_late_the_ends_are_read_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that only looks like JSON is found out late, when the consumer comes to it."""
    take, broken = UnleashClient._ask, threading.Event()

    def ask(api: UnleashClient, path: str) -> Response:
        answer = take(api, path)
        if path.endswith("/5") and not broken.is_set():
            broken.set()
            return replace(answer, body=b"{no JSON}")
        return answer

    monkeypatch.setattr(UnleashClient, "_ask", ask)
    with Simulator(fixed_pages=6, page_size=10) as sim, connect(sim, page_concurrency=4) as api:
        for page in api.iter_pages(DEVICE, START, END):
            while page.number == 4 and len(sim.requests) < 8:
                time.sleep(0.01)
        asked = pages_asked(sim)
    assert sorted(asked[:8]) == [1, 1, 2, 3, 4, 5, 6, 6]
    assert asked[8:] == [5, 1, 6]


def test_both_ends_are_read_again_at_once_when_all_the_rest_is_answered() -> None:
    with Simulator(fixed_pages=20, page_size=10, latency=0.2) as sim, connect(sim, page_concurrency=4) as api:
        assert len(list(api.iter_pages(DEVICE, START, END))) == 20
        requests = [request for request in sim.requests if f"/{DEVICE}/" in request.path]
    *before, first, last = sorted(requests, key=lambda request: request.time)
    assert {request.path.rpartition("/")[2] for request in (first, last)} == {"1", "20"}
    assert min(first.time, last.time) >= max(request.time for request in before) + 0.199
    assert abs(first.time - last.time) < 0.2


def with_late_row(rows: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    return [*rows[:index], {**rows[index], "count": 4711}, *rows[index:]]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("page", [1, 3, 7, 9])
def test_a_row_that_comes_while_pages_are_read_is_noticed_wherever_it_comes(page: int, concurrency: int) -> None:
    """Their number and the first look the same before and after: an early look at the last one is what tells."""
    with Simulator(fixed_pages=1, page_size=95) as source:
        rows = source.rows(DEVICE, START, END)
    with Simulator(rows={DEVICE: rows}, page_size=10) as before, connect(before, page_concurrency=concurrency) as api:
        pages = api.iter_pages(DEVICE, START, END)
        read = [next(pages) for _ in range(4)]
        time.sleep(0.05)  # for those that are asked for ahead
        port = before.port
        before.__exit__()
        with (
            Simulator(port, rows={DEVICE: with_late_row(rows, page * 10 - 5)}, page_size=10),
            pytest.raises(SnapshotChangedError),
        ):
            read += pages
        before.__enter__()


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kind", ["404", "500", "garbage", "half_body"])
def test_a_last_page_that_cannot_be_read_early_is_read_in_its_turn(kind: str, concurrency: int) -> None:
    with Simulator(fixed_pages=9, page_size=10) as sim, connect(sim, page_concurrency=concurrency) as api:
        sim.add_fault(Fault(kind, page=9, times=1 if kind == "404" else api.max_attempts))
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)


@pytest.mark.parametrize("concurrency", [1, 2, 4])
@pytest.mark.parametrize("total", [2, 3, 5])
def test_an_early_look_that_takes_its_time_is_waited_for_and_not_taken_again(total: int, concurrency: int) -> None:
    with Simulator(fixed_pages=total, page_size=10) as sim, connect(sim, page_concurrency=concurrency) as api:
        sim.add_fault(Fault("slow", page=total, seconds=0.2))
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
        assert len(sim.requests) == total + 2


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_last_page_whose_early_look_failed_is_asked_for_once_in_its_turn(concurrency: int) -> None:
    with Simulator(fixed_pages=3, page_size=10, latency=0.05) as sim, connect(sim, page_concurrency=concurrency) as api:
        sim.add_fault(Fault("404", page=3))
        assert api.get_records(DEVICE, START, END) == sim.rows(DEVICE, START, END)
        assert sorted(pages_asked(sim)) == [1, 1, 2, 3, 3, 3]


# ---- page counts of many windows ----

HOURS = [(DEVICE, START + hour * 3_600_000, START + (hour + 1) * 3_600_000) for hour in range(3)]


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize("page_concurrency", [1, 4])
def test_the_pages_of_many_windows_are_counted_in_order_with_one_request_each(
    sim: Simulator, endpoint: Any, page_concurrency: int
) -> None:
    windows = [*HOURS, ("Wnone", START, END), (DEVICE, START, END)]
    with connect(sim) as api:
        counts = list(api.iter_page_counts(windows, endpoint=endpoint, page_concurrency=page_concurrency))
    assert counts == [-(-len(sim.rows(*window)) // 100) for window in windows]
    assert len(set(counts)) > 2
    assert len(sim.requests) == len(windows)
    assert page_threads() == []


def test_no_more_page_counts_are_asked_for_at_once_than_page_concurrency() -> None:
    with Simulator(latency=0.02) as sim, connect(sim, page_concurrency=3) as api:
        assert len(list(api.iter_page_counts(HOURS * 5))) == 15
        assert sim.max_in_flight == 3


def test_a_refusal_of_one_page_count_holds_all_others_back() -> None:
    fault = Fault("429", times=1, retry_after=1)
    with Simulator(faults=[fault], latency=0.01) as sim, connect(sim, page_concurrency=2) as api:
        assert len(list(api.iter_page_counts(HOURS * 4))) == 12
        arrivals = [request.time for request in sim.requests]
        assert sum(later - earlier >= 0.9 for earlier, later in pairwise(sorted(arrivals))) == 1
        assert api.traffic.retries == 1


def test_closing_page_counts_ends_the_requests_under_way_and_asks_no_more() -> None:
    with Simulator() as sim, connect(sim, page_concurrency=4) as api:
        sim.add_fault(Fault("slow", after=2, times=None, seconds=30))
        counts = api.iter_page_counts(HOURS * 100)
        next(counts)
        began = time.monotonic()
        counts.close()
        assert time.monotonic() - began < 5
        assert page_threads() == []
        assert len(sim.requests) < 20


def test_an_error_of_one_page_count_ends_the_others() -> None:
    with Simulator() as sim, connect(sim, page_concurrency=4) as api:
        sim.add_fault(Fault("404", path=f"/{START}/", times=None))
        sim.add_fault(Fault("slow", after=1, times=None, seconds=30))
        began = time.monotonic()
        with pytest.raises(NotFoundError):
            list(api.iter_page_counts(HOURS * 100))
        assert time.monotonic() - began < 5
        assert page_threads() == []


@pytest.mark.parametrize(
    ("windows", "options", "argument"),
    [
        ([*HOURS, ("a/b", START, END)], {}, "device_id"),
        ([*HOURS, (DEVICE, END, START)], {}, "start"),
        (HOURS, {"endpoint": "odata"}, "endpoint"),
        (HOURS, {"page_concurrency": 0}, "page_concurrency"),
    ],
)
def test_a_bad_argument_of_page_counts_is_seen_before_any_request(
    sim: Simulator, windows: Any, options: Any, argument: str
) -> None:
    with connect(sim) as api, pytest.raises(InvalidArgumentError) as caught:
        api.iter_page_counts(windows, **options)
    assert caught.value.argument == argument
    assert sim.requests == []
