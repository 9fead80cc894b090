"""The client against a real server: its endpoints, arguments, concurrency and page counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.exceptions import AuthenticationError, InvalidArgumentError, RateLimitError
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.window import Window
from tests.support.answering import answering

DEVICE = "Wb8fabc31378ce07"
START, HOUR_MS = 1_597_644_000_000, 3_600_000
END = START + 3 * HOUR_MS

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator(page_size=100) as simulator:
        yield simulator


def connect(sim: Simulator, **options: Any) -> UnleashClient:
    return UnleashClient(sim.api_key, sim.base_url, **options)


# ---- the five endpoints --------------------------------------------------------------------------


def test_all_five_endpoints_return_what_the_api_has(sim: Simulator) -> None:
    with connect(sim) as client:
        assert client.get_version() == "1.0.1"
        assert client.list_devices() == list(sim.devices)
        assert client.list_sessions() == sim.sessions()
        expected = sim.rows(DEVICE, START, END)
        assert len(expected) > 300
        assert client.get_records(DEVICE, START, END) == expected
        assert client.get_records(DEVICE, START, END, endpoint="tableau") == expected
        assert list(client.iter_records(DEVICE, START, END)) == expected
        pages = list(client.iter_pages(DEVICE, START, END))
    assert [page.number for page in pages] == list(range(1, pages[0].total_pages + 1))


@pytest.mark.parametrize("options", [{"reorder_keys": True}, {"new_key": "confidence"}, {"nulls": True}])
def test_both_endpoints_give_equal_records_whatever_the_pages_look_like(options: dict[str, Any]) -> None:
    with Simulator(page_size=100, **options) as sim, connect(sim) as client:
        expected = sim.rows(DEVICE, START, END)
        assert client.get_records(DEVICE, START, END) == expected
        assert client.get_records(DEVICE, START, END, endpoint="tableau") == expected


@pytest.mark.parametrize("start", [START, datetime(2020, 8, 17, 6, tzinfo=timezone.utc)])
def test_the_api_is_asked_for_exactly_the_given_window_with_the_id_percent_encoded(start: Any) -> None:
    with Simulator(rows={"a b%?#ü": []}) as sim, connect(sim) as client:
        assert client.get_records("a b%?#ü", start, END) == []
    assert [request.path for request in sim.requests] == [f"/v1/analytics/a%20b%25%3F%23%C3%BC/{START}/{END}/1"]


def test_an_api_that_ignores_the_window_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"keys": ["timestamp"], "total_num_pages": 1, "data": [["2020-08-16T00:00:00.000Z"]]}'
    with answering(body) as url, UnleashClient("any-key", url) as client:
        assert len(client.get_records(DEVICE, window=Window(START, END))) == 1
    assert "Most rows are stamped outside the window" in caplog.text


@pytest.mark.parametrize("empty_total", [0, 1])
def test_a_window_without_rows_is_one_empty_page(empty_total: int) -> None:
    with Simulator(empty_total=empty_total) as sim, connect(sim) as client:
        assert [len(page.rows) for page in client.iter_pages(sim.devices[-1], START, END)] == [0]


# ---- concurrency ---------------------------------------------------------------------------------

# Seconds. On a busy machine, requests overlap only if responses take longer, which other machines need not wait for.
LATENCIES = (0.01, 0.1, 0.5)


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_page_concurrency_limits_the_requests_in_flight_and_changes_no_row(
    concurrency: int, join_threads: Callable[[], None]
) -> None:
    for latency in LATENCIES:
        with Simulator(page_size=50, latency=latency) as sim, connect(sim) as client:
            records = client.get_records(DEVICE, START, END, page_concurrency=concurrency)
            assert records == sim.rows(DEVICE, START, END)
            assert sim.max_in_flight <= concurrency
        join_threads()
        if sim.max_in_flight == concurrency:
            return
    pytest.fail(f"Only {sim.max_in_flight} requests were in flight")


def test_connections_are_reused(sim: Simulator) -> None:
    with connect(sim, page_concurrency=1) as client:
        client.get_records(DEVICE, START, END)
        assert len(sim.requests) > 3
        assert len(sim._server._connections) == 1


HOURS = [(DEVICE, START + hour * HOUR_MS, START + (hour + 1) * HOUR_MS) for hour in range(3)]
READS = {
    "pages": lambda client: client.iter_pages(DEVICE, START, END),
    "page counts": lambda client: client.iter_page_counts([HOURS[0], HOURS[0], *[HOURS[1]] * 100]),
}
# Of both, the first two are in time, and so many requests are late that they use all workers.
LATE = [
    *(Fault("slow", path=f"/{START}/{END}/", page=page, times=None, seconds=30) for page in range(3, 7)),
    Fault("slow", path=f"{DEVICE}/{START + HOUR_MS}/", times=None, seconds=30),
]


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_closing_an_iterator_ends_its_requests_and_the_client_stays_usable(
    read: Any, join_threads: Callable[[], None]
) -> None:
    with Simulator(page_size=100, faults=LATE) as sim, connect(sim) as client:
        iterator = read(client)
        next(iterator), next(iterator)
        while sim.max_in_flight < 4:
            time.sleep(0.01)
        iterator.close()
        join_threads()
        assert client.traffic.outcomes["cancelled"] >= 3
        assert client.get_version() == "1.0.1"
        assert len(sim.requests) < 10


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_an_error_ends_the_other_requests_of_an_iterator(read: Any, join_threads: Callable[[], None]) -> None:
    errors = [Fault("403", path=f"/{END}/2"), Fault("403", path=f"{DEVICE}/{START}/{START + HOUR_MS}/")]
    with Simulator(page_size=100, faults=errors + LATE) as sim, connect(sim) as client:
        began = time.monotonic()
        with pytest.raises(AuthenticationError):
            list(read(client))
        join_threads()
        assert time.monotonic() - began < 20
    assert set(client.traffic.outcomes) <= {"ok", "client_error", "cancelled"}


def test_an_abandoned_iterator_leaves_no_thread(sim: Simulator, join_threads: Callable[[], None]) -> None:
    with connect(sim) as client:
        next(iter(client.iter_records(DEVICE, START, END)))
    join_threads()


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "options", "argument"),
    [
        *(((device_id, START, END), {}, "device_id") for device_id in ("", "a/b", "..", "a\\b", " a", "a\u200bb", 7)),
        ((DEVICE, END, START), {}, "start"),
        ((DEVICE, datetime(2020, 8, 17), END), {}, "start"),
        ((DEVICE, 1_597_622_400, 1_597_632_400), {}, "start"),
        ((DEVICE, START, "2020-08-17"), {}, "end"),
        ((DEVICE, START, END), {"endpoint": "xml"}, "endpoint"),
        ((DEVICE, START, END), {"page_concurrency": 0}, "page_concurrency"),
    ],
)
def test_an_invalid_argument_is_refused_before_any_request(
    sim: Simulator, window: Any, options: dict[str, Any], argument: str
) -> None:
    with connect(sim) as client:
        for call in (
            lambda: client.iter_pages(*window, **options),
            lambda: client.iter_page_counts([(DEVICE, START, END), window], **options),
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                call()
            assert caught.value.argument == argument
    assert sim.requests == []


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"auth": "basic"}, "auth"),
        *(({"timeout": timeout}, "timeout") for timeout in (0, float("nan"), "30", True)),
        *(({"timeout": timeout}, "timeout") for timeout in (1e10, 10**400)),
        *(({"response_timeout": timeout}, "response_timeout") for timeout in (0, -1, float("inf"), 1e10, 10**400)),
        ({"max_attempts": 0}, "max_attempts"),
        *(({"page_concurrency": number}, "page_concurrency") for number in (-1, 10**9, 10**400)),
        *(({"verify": verify}, "verify") for verify in (False, "no/such/bundle.pem", __file__, "/dev/null")),
        *(({"verify": verify}, "verify") for verify in ("", "/x" * 5000, "\0", "secret-key" * 50)),
        ({"auth": "secret-key"}, "auth"),
        *(({"api_key": key}, "password") for key in ("", "two words")),
        *(({"base_url": url}, "host") for url in ("ftp://host", "http://192.0.2.1:8642", "secret-key.example")),
        *(({"base_url": url}, "host") for url in ("UL_PAT_new.example", "https://api.example/v1/analytics/devices")),
    ],
)
def test_an_invalid_option_is_named_and_the_key_is_not_shown(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        UnleashClient(**{"api_key": "secret-key", "base_url": "http://127.0.0.1:1", **options})
    assert caught.value.argument == argument
    assert "secret-key" not in str(caught.value)


def test_attempts_and_bytes_may_be_more_than_a_float_can_hold(sim: Simulator) -> None:
    with connect(sim, max_attempts=10**400, max_response_bytes=10**400) as client:
        assert client.get_version() == "1.0.1"


# ---- stream tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "warnings"), [(None, 1), (False, 0), (True, 0)])
def test_tokens_are_masked_if_set_and_warned_of_once_if_unset(
    sim: Simulator, mask: bool | None, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with connect(sim, mask_stream_tokens=mask) as client:
            records = client.get_records(DEVICE, START, END)
    expected = sim.rows(DEVICE, START, END)
    token = expected[0]["source_file_name"].partition("=")[2]
    if mask:
        expected = [{**record, "source_file_name": f"{DEVICE}?token=***"} for record in expected]
    assert records == expected
    assert sum("stream tokens" in record.getMessage() for record in caplog.records) == warnings
    assert token not in caplog.text


# ---- page counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_pages_of_many_windows_are_counted_in_order_with_one_request_each(
    sim: Simulator, endpoint: Any, concurrency: int
) -> None:
    windows = [*HOURS, ("Wnone", START, END), (DEVICE, START, END)]
    with connect(sim) as client:
        counts = list(client.iter_page_counts(windows, endpoint=endpoint, page_concurrency=concurrency))
    assert counts == [-(-len(sim.rows(*window)) // 100) for window in windows]
    assert len(set(counts)) > 2
    assert len(sim.requests) == len(windows)


def test_an_error_that_ends_the_page_counts_stops_the_other_requests_at_once() -> None:
    windows = [(DEVICE, START, START + hour * HOUR_MS) for hour in range(1, 25)]
    faults = [
        Fault("slow", path=f"/{START}/{START + HOUR_MS}/", times=None, seconds=30),
        Fault("429", path=f"/{START}/{START + 2 * HOUR_MS}/", times=None, retry_after=61),
    ]
    began = time.monotonic()
    with Simulator(faults=faults) as sim, connect(sim, page_concurrency=2) as client:
        with pytest.raises(RateLimitError):
            list(client.iter_page_counts(windows))
        assert time.monotonic() - began < 15
        assert len(sim.requests) <= 4
        assert client.traffic.retries == 0


def test_page_counts_share_the_limit_of_requests_in_flight() -> None:
    for latency in LATENCIES:
        with Simulator(latency=latency) as sim, connect(sim, page_concurrency=3) as client:
            assert len(list(client.iter_page_counts(HOURS * 5))) == 15
            assert sim.max_in_flight <= 3
        if sim.max_in_flight == 3:
            return
    pytest.fail(f"Only {sim.max_in_flight} requests were in flight")


def test_page_counts_share_the_pause_of_a_refusal(pauses: Callable[[], list[float]]) -> None:
    faults = [Fault("429", after=5, retry_after=1)]
    with Simulator(faults=faults, latency=0.02) as sim, connect(sim, page_concurrency=3) as client:
        assert len(list(client.iter_page_counts(HOURS * 5))) == 15
        assert client.traffic.retries == 1
    [pause] = pauses()
    assert pause >= 1
