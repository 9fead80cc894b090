"""The simulator matches the documented samples, is consistent, and fails exactly as configured."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_unleash.simulator import (
    FAULT_KINDS,
    KEYS,
    Account,
    Fault,
    Options,
    Simulator,
    generate_rows,
    generate_sessions,
    parse_fault,
    session_start,
)
from airflow_provider_unleash.simulator.__main__ import build_parser, main
from airflow_provider_unleash.simulator.account import PageCache
from airflow_provider_unleash.simulator.data import format_timestamp, parse_timestamp
from tests.support.paths import ROOT, SAMPLES
from tests.support.waiting import wait_until

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
NOON = MIDNIGHT + 12 * HOUR_MS
HOUR = (NOON, NOON + HOUR_MS)
STREET, CROWD = "Wb8fabc31378ce07", "W9d3f1bcad8e8abd"
RECORDINGS, SILENT = "W41f0c6e7a9d2b38", "W7d2e90b4c6a1f58"
ENDPOINTS = {"compact": "/v1/analytics", "tableau": "/v1/analytics/tableau"}


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(sim: Simulator, path: str, method: str = "GET", body: Any = None, **headers: str) -> Reply:
    """Send one request, with the simulator's key unless other headers are given."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()} or {"x-api-key": sim.api_key}
    with closing(http.client.HTTPConnection(sim.host, sim.port, timeout=5)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        return Reply(connection.getresponse())


def page_path(device: str, start: int | str, end: int | str, page: int | str = 1, endpoint: str = "compact") -> str:
    return f"{ENDPOINTS[endpoint]}/{device}/{start}/{end}/{page}"


PATH = page_path(STREET, *HOUR)


def read_pages(sim: Simulator, device: str, start: int, end: int, endpoint: str = "compact") -> list[Any]:
    first = ask(sim, page_path(device, start, end, 1, endpoint)).json()
    numbers = range(2, first["total_num_pages"] + 1)
    return [first, *(ask(sim, page_path(device, start, end, number, endpoint)).json() for number in numbers)]


def records_of(pages: list[Any]) -> list[dict[str, Any]]:
    return [
        dict(zip(page["keys"], row, strict=True)) if "keys" in page else row for page in pages for row in page["data"]
    ]


def statuses(sim: Simulator, count: int, path: str = PATH) -> list[int]:
    return [ask(sim, path).status for _ in range(count)]


def send(sim: Simulator, path: str) -> socket.socket:
    """Send one request without reading the response."""
    sock = socket.create_connection((sim.host, sim.port), timeout=5)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nx-api-key: {sim.api_key}\r\n\r\n".encode())
    return sock


def shape_of(value: Any) -> Any:
    """Replace values by their types, and a list whose items have the same shape by one such item."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = [shape_of(item) for item in value]
        # Compared as text, because dicts with a different order of keys are equal.
        return shapes[:1] if len(set(map(json.dumps, shapes))) == 1 else shapes
    return type(value).__name__


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with Simulator(page_size=100) as sim:
        yield sim


# ---- documented samples ----
SAMPLE_PATHS = {
    "version.json": "/v1/analytics/version",
    "devices.json": "/v1/analytics/devices",
    "sessions.json": "/v1/analytics/sessions",
    "analytics_compact.json": PATH,
    "analytics_metrics.json": page_path(CROWD, *HOUR),
    "analytics_tableau.json": page_path(STREET, *HOUR, endpoint="tableau"),
}


@pytest.mark.parametrize("name", SAMPLE_PATHS)
def test_a_response_has_the_keys_order_and_types_of_the_documented_sample(shared, name):
    sample, answer = json.loads((SAMPLES / name).read_text()), ask(shared, SAMPLE_PATHS[name]).json()
    assert answer
    assert {path.name for path in SAMPLES.iterdir()} == set(SAMPLE_PATHS)
    assert json.dumps(shape_of(answer)) == json.dumps(shape_of(sample))
    if isinstance(answer, dict):
        assert answer["data"]
        assert answer.get("keys") == sample.get("keys")


def test_the_crowd_device_has_the_classes_of_the_documented_metrics():
    sample = json.loads((SAMPLES / "analytics_metrics.json").read_text())
    classes = {record["class_name"] for record in generate_rows(0, CROWD, *HOUR)}
    assert classes == {record["class_name"] for record in records_of([sample])}


@pytest.mark.parametrize(
    ("device", "pattern"), [(STREET, r"\?token=[a-z]+-[a-z]+-\d{3}"), (RECORDINGS, r"-\d+-17-Aug-20-12-00-00\.mp4")]
)
def test_source_file_names_and_timestamps_have_the_documented_format(device, pattern):
    for record in generate_rows(0, device, NOON, NOON + 10 * MINUTE_MS):
        assert re.fullmatch(device + pattern, record["source_file_name"])
        assert re.fullmatch(r"2020-08-17T12:0\d:\d\d\.000Z|2020-08-17T12:10:00\.000Z", record["timestamp"])


# ---- rows and sessions ----
def test_rows_depend_only_on_seed_device_and_time():
    rows = list(generate_rows(1, STREET, *HOUR))
    code = (
        "import json; from airflow_provider_unleash.simulator import generate_rows;"
        f"print(json.dumps(list(generate_rows(1, {STREET!r}, *{HOUR}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout) == rows
    assert list(generate_rows(2, STREET, *HOUR)) != rows
    rows[0]["count"] = -1  # changes no later result
    assert next(generate_rows(1, STREET, *HOUR))["count"] > 0
    assert [row["count"] for row in generate_rows(1, "Wunknown", *HOUR)] != [row["count"] for row in rows]


def test_overlapping_windows_have_the_same_rows():
    wide = list(generate_rows(0, STREET, NOON, NOON + 3 * HOUR_MS))
    start, end = NOON + 47 * MINUTE_MS, NOON + 131 * MINUTE_MS
    inside = [row for row in wide if start <= parse_timestamp(row["timestamp"]) <= end]
    assert list(generate_rows(0, STREET, start, end)) == inside != []


def test_rows_are_ordered_by_time_frame_numbers_never_decrease_and_sessions_are_the_latest():
    rows = list(generate_rows(0, STREET, MIDNIGHT, MIDNIGHT + DAY_MS, rows_per_day=20_000))
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    order = [(int(row["session_id"]), row["frame_number"]) for row in rows]
    assert order == sorted(order)
    starts = list(generate_sessions(0, MIDNIGHT - DAY_MS, MIDNIGHT + DAY_MS))
    for row in rows:
        timestamp = parse_timestamp(row["timestamp"])
        assert int(row["session_id"]) == max(start for start in starts if start <= timestamp)


@pytest.mark.parametrize("rows_per_day", [1000, 10_000])
@pytest.mark.parametrize("device", [STREET, CROWD, RECORDINGS])
def test_a_day_has_about_rows_per_day_rows_with_quiet_nights_and_rush_hours(device, rows_per_day):
    rows = generate_rows(0, device, MIDNIGHT, MIDNIGHT + DAY_MS - 1, rows_per_day=rows_per_day)
    hours = Counter(row["timestamp"][11:13] for row in rows)
    assert sum(hours.values()) == pytest.approx(rows_per_day, rel=0.15)
    assert 0 < 10 * (hours["00"] + hours["01"] + hours["02"]) < hours["07"] + hours["08"] + hours["09"]


def test_a_session_starts_where_it_is_listed():
    starts = list(generate_sessions(5, *HOUR, 60))
    assert starts == sorted(set(starts))
    assert [session_start(5, start, 60) for start in starts] == starts
    assert session_start(5, starts[1] - 1, 60) == starts[0]


def test_sessions_start_over_time_and_stay_listed_since_sessions_from():
    now = [NOON / 1000]
    with Simulator(clock=lambda: now[0], session_period=600) as sim:
        before = ask(sim, "/v1/analytics/sessions").json()
        now[0] += 3600
        after = ask(sim, "/v1/analytics/sessions").json()
        assert after[: len(before)] == before == sim.sessions(NOON)
        assert 5 <= len(after) - len(before) <= 7
        assert all(NOON < int(new) <= NOON + HOUR_MS for new in after[len(before) :])
        assert NOON - 72 * HOUR_MS <= int(before[0]) < NOON - 71 * HOUR_MS
    since = Simulator(clock=lambda: NOON / 1000, sessions_from=NOON - DAY_MS, session_period=3600).sessions()
    assert 22 <= len(since) <= 26
    assert int(since[0]) >= NOON - DAY_MS


# ---- pages and windows ----
@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("device", [STREET, CROWD, RECORDINGS])
def test_all_pages_together_have_the_rows_of_the_window_and_later_pages_are_empty(shared, endpoint, device):
    pages = read_pages(shared, device, NOON, NOON + 3 * HOUR_MS, endpoint)
    assert len(pages) > 3
    assert [len(page["data"]) for page in pages[:-1]] == [100] * (len(pages) - 1)
    assert {page["total_num_pages"] for page in pages} == {len(pages)}
    assert records_of(pages) == shared.rows(device, NOON, NOON + 3 * HOUR_MS)
    beyond = ask(shared, page_path(device, NOON, NOON + 3 * HOUR_MS, len(pages) + 1, endpoint)).json()
    assert (beyond["data"], beyond["total_num_pages"]) == ([], len(pages))


@pytest.mark.parametrize(("inclusive", "expected"), [(True, 3), (False, 2)])
def test_the_end_is_included_only_with_inclusive_to(inclusive, expected):
    rows = [{"timestamp": format_timestamp(NOON + offset)} for offset in (-1, 0, 500, 1000, 1001)]
    with Simulator(rows={"W1": rows}, inclusive_to=inclusive) as sim:
        [page] = read_pages(sim, "W1", NOON, NOON + 1000)
        assert len(page["data"]) == expected == len(sim.rows("W1", NOON, NOON + 1000))


def test_a_selection_lag_explains_the_documented_example_and_loses_no_row_between_windows():
    sample = records_of([json.loads((SAMPLES / "analytics_compact.json").read_text())])
    device = sample[0]["device_id"]
    with Simulator(rows={device: sample}, selection_lag_ms=27_000) as sim:
        assert records_of(read_pages(sim, device, 1597630156000, 1597630156000)) == sample
    sim, middle = Simulator(selection_lag_ms=600_000), NOON + HOUR_MS // 2
    whole = sim.rows(STREET, *HOUR)
    assert sim.rows(STREET, NOON, middle - 1) + sim.rows(STREET, middle, NOON + HOUR_MS) == whole
    assert whole[0]["timestamp"] < format_timestamp(NOON)


def test_rows_after_the_current_time_do_not_exist_yet():
    now = [(NOON + 10 * MINUTE_MS) / 1000]
    with Simulator(clock=lambda: now[0]) as sim:
        early = records_of(read_pages(sim, STREET, *HOUR))
        now[0] += 3600
        late = records_of(read_pages(sim, STREET, *HOUR))
    assert early == list(generate_rows(0, STREET, NOON, NOON + 10 * MINUTE_MS))
    assert late[: len(early)] == early != late


@pytest.mark.parametrize("empty_total", [0, 1])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_one_of_the_six_default_devices_has_no_rows_and_empty_total_pages(empty_total, endpoint):
    with Simulator(empty_total=empty_total) as sim:
        [page] = read_pages(sim, SILENT, *HOUR, endpoint)
        devices = ask(sim, "/v1/analytics/devices").json()
        assert len(devices) == 6
        assert [device for device in devices if not sim.rows(device, *HOUR)] == [SILENT]
        assert (page["total_num_pages"], page["data"]) == (empty_total, [])
        assert page.get("keys", list(KEYS)) == list(KEYS)


@pytest.mark.parametrize(("unknown", "status"), [("empty", 200), ("404", 404)])
def test_an_unknown_device_gets_no_rows_or_404(unknown, status):
    with Simulator(unknown_device=unknown) as sim:
        reply = ask(sim, page_path("Wnone", *HOUR))
        assert (reply.status, reply.json().get("data", [])) == (status, [])
        assert ask(sim, page_path(SILENT, *HOUR)).status == 200


def test_fixed_pages_are_full_and_inside_the_window_except_for_a_silent_device():
    with Simulator(fixed_pages=3, page_size=50) as sim:
        for start, end in [(NOON, NOON + 1000), (MIDNIGHT, MIDNIGHT + 300 * DAY_MS)]:
            pages = read_pages(sim, CROWD, start, end)
            assert [len(page["data"]) for page in pages] == [50, 50, 50]
            assert records_of(pages) == sim.rows(CROWD, start, end)
            times = [parse_timestamp(record["timestamp"]) for record in records_of(pages)]
            assert times == sorted(times)
            assert start == times[0] < times[-1] < end
        assert ask(sim, page_path(SILENT, NOON, NOON + 1000)).json()["data"] == []


def test_given_rows_replace_the_generated_ones_and_without_a_valid_timestamp_are_in_every_window():
    timed = {"timestamp": "2020-08-17T12:00:00.500Z", "count": 1.5}
    rows = [timed, {"timestamp": None, "count": 2}, {"timestamp": "soon"}, {"extra": {"a": [1]}}]
    with Simulator(rows={"W1": rows}) as sim:
        assert sim.devices == ask(sim, "/v1/analytics/devices").json() == ["W1"]
        assert records_of(read_pages(sim, "W1", NOON, NOON + 1000, "tableau")) == rows
        assert sim.rows("W1", 0, 1000) == rows[1:]
        [page] = read_pages(sim, "W1", NOON, NOON + 1000)
        assert page["keys"] == ["timestamp", "count", "extra"]
        assert page["data"][0] == ["2020-08-17T12:00:00.500Z", 1.5, None]
        assert ask(sim, PATH).json()["data"] == []


# ---- variations ----
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_reorder_keys_changes_the_order_on_each_page_but_no_record(endpoint):
    with Simulator(reorder_keys=True, page_size=100) as sim:
        pages = read_pages(sim, STREET, *HOUR, endpoint)
        orders = [tuple(page.get("keys", page["data"][0])) for page in pages]
        assert len(set(orders)) == len(orders) > 1
        assert orders[0] != KEYS
        assert records_of(pages) == sim.rows(STREET, *HOUR)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_new_key_is_on_its_first_page_and_all_later_ones(endpoint):
    with Simulator(new_key="confidence", new_key_page=2, page_size=100) as sim:
        pages = read_pages(sim, STREET, *HOUR, endpoint)
        have = [{"confidence" in record for record in records_of([page])} for page in pages]
        assert have == [{False}, *[{True}] * (len(pages) - 1)]
        assert len(have) > 1
        assert records_of(pages) == sim.rows(STREET, *HOUR)


def test_some_values_are_null_and_the_same_ones_in_every_window():
    with Simulator(nulls=True, page_size=100) as sim:
        wide, narrow = sim.rows(STREET, *HOUR), sim.rows(STREET, NOON, NOON + HOUR_MS // 2)
        assert wide[: len(narrow)] == narrow
        assert 0.05 < sum(None in row.values() for row in wide) / len(wide) < 0.25
        assert not any(row["timestamp"] is None or row["device_id"] is None for row in wide)
        assert records_of(read_pages(sim, STREET, *HOUR)) == wide


def test_a_growing_window_shows_more_rows_with_each_request_until_it_is_complete():
    with Simulator(growing=100, page_size=100) as sim:
        seen = [len(records_of(read_pages(sim, STREET, *HOUR))) for _ in range(3)]
        totals = [ask(sim, page_path(STREET, NOON, NOON + 2 * HOUR_MS)).json()["total_num_pages"] for _ in range(5)]
        assert totals[0] < totals[1] < totals[2] <= totals[3] == totals[4]
        assert seen[0] < seen[1] == seen[2] == len(sim.rows(STREET, *HOUR))


# ---- requests ----
@pytest.mark.parametrize("key", ["simulator-key", "ul_pat_simulator"])
@pytest.mark.parametrize("header", ["x_api_key", "Authorization"])
def test_both_headers_accept_both_keys(shared, header, key):
    value = f"Bearer {key}" if header == "Authorization" else key
    assert ask(shared, "/v1/analytics/version", **{header: value}).json() == "1.0.1"


def test_a_wrong_key_is_forbidden_and_a_missing_key_is_unauthorized(shared):
    forbidden = [{"x_api_key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}]
    unauthorized = [{"Authorization": "Basic c2ltOmtleQ=="}, {"Accept": "*/*"}]
    for path in SAMPLE_PATHS.values():
        for replies, status, message in [(forbidden, 403, "Forbidden"), (unauthorized, 401, "Unauthorized")]:
            for reply in (ask(shared, path, **headers) for headers in replies):
                assert (reply.status, reply.json()) == (status, {"message": message})


def test_given_keys_replace_the_default_ones():
    with Simulator(api_keys=["mine"]) as sim:
        assert sim.api_key == "mine"
        assert ask(sim, "/v1/analytics/version").status == 200
        assert ask(sim, "/v1/analytics/version", x_api_key="simulator-key").status == 403


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_invalid_number_page_or_window_is_a_bad_request(shared, endpoint):
    too_wide = ("0", "99999999999999", "1")
    for numbers in [("a", "2", "1"), ("1", "2.5", "1"), ("1", "2", "0"), ("1", "2", "-1"), ("1", "", "1"), too_wide]:
        reply = ask(shared, page_path(STREET, *numbers, endpoint=endpoint))
        assert (reply.status, list(reply.json())) == (400, ["message"])


def test_an_unknown_path_is_not_found(shared):
    for path in ["/", "/v1/analytics", "/v2/analytics/version", "/v1/analytics/W1/1/2", "/_simulator/x"]:
        reply = ask(shared, path)
        assert (reply.status, reply.json()) == (404, {"message": "Not Found"})
        assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_allowed(shared, method):
    reply = ask(shared, "/v1/analytics/devices", method, body={} if method == "POST" else None)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET")


def test_pages_are_compressed_only_if_client_and_option_allow_it(shared):
    accepts = {"Accept_Encoding": "gzip, deflate", "x_api_key": shared.api_key}
    plain, zipped = ask(shared, PATH), ask(shared, PATH, **accepts)
    assert (plain.headers["Content-Encoding"], zipped.headers["Content-Encoding"]) == (None, "gzip")
    assert gzip.decompress(zipped.body) == plain.body
    with Simulator(gzip=False) as sim:
        assert ask(sim, PATH, **accepts).headers["Content-Encoding"] is None


def test_the_page_cache_keeps_its_limit_and_drops_the_least_recently_used_page():
    account = Account(Options(cache_bytes=100_000, page_size=100), None, time.time)
    for number in range(1, 15):
        account.body(STREET, NOON, NOON + 5 * HOUR_MS, number, tableau=False, compressed=False)
    assert 0 < account.cache.size <= 100_000
    cache = PageCache(10)
    for key, page in [("a", b"1234"), ("b", b"5678"), ("c", b"90")]:
        cache.put((key,), page)
    assert cache.get(("a",)) == b"1234"
    cache.put(("d",), b"xy")
    assert [cache.get((key,)) for key in "abcd"] == [b"1234", None, b"90", b"xy"]
    assert cache.size == 8


def test_an_unknown_or_invalid_option_is_an_error():
    with pytest.raises(TypeError):
        Simulator(pagesize=3)
    for wrong in ({"page_size": 0}, {"unknown_device": "500"}, {"empty_total": 2}, {"session_period": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Simulator(**wrong)


def test_the_log_has_each_request_but_never_the_key(tmp_path):
    log = tmp_path / "log.jsonl"
    with Simulator(log=log, faults=[Fault("echo_key")]) as sim:
        for key in ("sent-secret", sim.api_key):
            ask(sim, f"/v1/analytics/version?key={key}", Authorization=f"Bearer {key}", User_Agent="pytest")
        ask(sim, "/v1/analytics/devices", Accept_Encoding="gzip")
        logged = [(r.number, r.status, r.fault, r.auth, r.user_agent, r.accept_encoding) for r in sim.requests]
        assert logged == [
            (1, 401, "echo_key", "bearer", "pytest", "identity"),
            (2, 200, None, "bearer", "pytest", "identity"),
            (3, 401, None, None, None, "gzip"),
        ]
        assert sim.requests[0].path == "/v1/analytics/version?key=***"
        assert abs(sim.requests[0].time - time.time()) < 60
    lines = log.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]
    assert "secret" not in log.read_text()
    assert sim.api_key not in log.read_text()


def test_max_in_flight_is_the_highest_number_of_concurrent_requests():
    with Simulator(faults=[Fault("slow", times=5, seconds=60)]) as sim, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(send(sim, PATH))
        wait_until(lambda: sim.max_in_flight == 5)
        assert sim.requests == []
    with Simulator() as sim:
        statuses(sim, 3)
        assert sim.max_in_flight == 1
        sim.clear_requests()
        assert (sim.max_in_flight, sim.requests) == (0, [])


# ---- faults ----
def failing(*faults: Fault) -> Simulator:
    return Simulator(faults=faults, page_size=100)


@pytest.mark.parametrize("kind", ["401", "403", "404", "408", "425", "429", "500", "502", "503"])
def test_a_status_fault_has_this_status_and_a_message(kind):
    with failing(Fault(kind)) as sim:
        reply = ask(sim, PATH)
        assert (reply.status, reply.json()) == (int(kind), {"message": http.client.responses[int(kind)]})
        assert reply.headers["Retry-After"] is None
        assert [request.fault for request in sim.requests] == [kind]
        assert ask(sim, PATH).status == 200


def test_retry_after_is_seconds_or_an_http_date():
    with failing(Fault("429", retry_after=7), Fault("429", retry_after="7"), Fault("503", retry_after="date:5")) as sim:
        assert [ask(sim, PATH).headers["Retry-After"] for _ in range(2)] == ["7", "7"]
        asked = time.time()
        date = parsedate_to_datetime(ask(sim, PATH).headers["Retry-After"])
        assert 5 <= date.timestamp() - asked <= 10


def test_a_redirect_points_to_another_origin():
    with failing(Fault("redirect"), Fault("redirect", location="https://x.test/")) as sim:
        replies = [ask(sim, PATH) for _ in range(2)]
        assert [reply.status for reply in replies] == [302, 302]
        assert replies[0].headers["Location"] == f"http://localhost:{sim.port}{PATH}"
        assert replies[1].headers["Location"] == "https://x.test/"


def test_reset_resets_the_connection_before_any_response():
    with failing(Fault("reset")) as sim, send(sim, PATH) as sock:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert [(request.status, request.fault) for request in sim.requests] == [(0, "reset")]


def test_half_body_has_the_full_content_length_and_half_of_the_bytes():
    with failing(Fault("half_body")) as sim:
        with pytest.raises(http.client.IncompleteRead) as error:
            ask(sim, PATH)
        whole = ask(sim, PATH).body
        assert error.value.partial == whole[: len(whole) // 2]
        assert len(error.value.partial) + error.value.expected == len(whole)


def test_html_garbage_and_wrong_shape_are_unusable_bodies_with_status_200():
    with failing(Fault("html"), Fault("garbage"), Fault("wrong_shape"), Fault("html", status=503)) as sim:
        html, garbage, wrong, unavailable = (ask(sim, PATH) for _ in range(4))
        assert [html.status, garbage.status, wrong.status, unavailable.status] == [200, 200, 200, 503]
        assert html.headers.get_content_type() == "text/html"
        assert html.body.startswith(b"<html>")
        assert garbage.headers["Content-Type"] == "application/json"
        with pytest.raises(UnicodeDecodeError):
            garbage.json()
        assert not {"keys", "data", "total_num_pages"} & set(wrong.json())


def test_slow_and_latency_delay_the_correct_response():
    with Simulator(faults=[Fault("slow", seconds=0.1)], latency=0.05) as sim:
        times = [time.monotonic()]
        slow = ask(sim, PATH)
        times.append(time.monotonic())
        assert slow.body == ask(sim, PATH).body
        assert times[1] - times[0] >= 0.15
        assert time.monotonic() - times[1] >= 0.05


@pytest.mark.parametrize("status", [None, 400])
@pytest.mark.parametrize("headers", [{"x_api_key": "s3cret"}, {"Authorization": "Bearer s3cret"}])
def test_echo_key_repeats_the_key_of_the_request(status, headers):
    with failing(Fault("echo_key", status=status)) as sim:
        reply = ask(sim, PATH, **headers)
        assert reply.status == (status or 401)
        assert "s3cret" in reply.json()["message"]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([Fault("500", times=2, after=1)], [200, 500, 500, 200, 200]),
        ([Fault("429", times=2), Fault("503")], [429, 429, 503, 200]),
        ([Fault("500", times=None)], [500] * 4),
    ],
)
def test_faults_occur_in_order_after_and_as_often_as_configured_or_until_cleared(faults, expected):
    with failing(*faults) as sim:
        assert statuses(sim, len(expected)) == expected
        sim.clear_faults()
        assert statuses(sim, 1) == [200]


def test_a_fault_matches_a_part_of_the_path_and_a_page():
    with failing(Fault("500", times=None, path="/tableau/", page=2)) as sim:
        for endpoint, page, expected in [("tableau", 2, 500), ("tableau", 1, 200), ("compact", 2, 200)]:
            assert statuses(sim, 1, page_path(STREET, *HOUR, page, endpoint)) == [expected]
        assert statuses(sim, 1, "/v1/analytics/devices") == [200]


def test_a_fault_with_a_probability_occurs_sometimes_and_the_same_times_for_the_same_seed():
    def seen(seed: int) -> list[int]:
        with Simulator(seed=seed, faults=[Fault("500", times=None, probability=0.5)]) as sim:
            return statuses(sim, 20, "/v1/analytics/version")

    assert set(seen(1)) == {200, 500}
    assert seen(1) == seen(1) != seen(2)


@pytest.mark.parametrize("text", ["kind=fire", "kind=200", "times=3", "kind=429,time=3", "kind=429,times=x", "429", ""])
def test_an_invalid_fault_is_an_error(text):
    with pytest.raises(ValueError, match=r"fault|invalid literal"):
        parse_fault(text)


# ---- control over HTTP ----
def test_another_process_can_add_and_clear_faults_and_requests_without_a_key():
    with Simulator() as sim:
        for posted in ({"kind": "500", "times": None}, [{"kind": "429", "page": 1}, {"kind": "503"}]):
            assert ask(sim, "/_simulator/faults", "POST", posted, Accept="*/*").status == 200
        assert statuses(sim, 2) == [500, 500]
        assert ask(sim, "/_simulator/faults", "DELETE", Accept="*/*").status == 200
        assert statuses(sim, 1) == [200]
        answer = ask(sim, "/_simulator/requests", Accept="*/*").json()
        assert (answer["max_in_flight"], [request["path"] for request in answer["requests"]]) == (1, [PATH] * 3)
        assert sim.api_key not in json.dumps(answer)
        assert ask(sim, "/_simulator/requests", "DELETE", Accept="*/*").status == 200
        assert sim.requests == []


@pytest.mark.parametrize(
    "posted", [{"kind": "fire"}, {}, "reset", 7, [{"kind": "500"}, None], {"kind": "500", "page": []}]
)
def test_one_invalid_posted_fault_rejects_all(posted):
    with Simulator() as sim:
        assert ask(sim, "/_simulator/faults", "POST", posted).status == 400
        assert statuses(sim, 1) == [200]


# ---- shutdown ----
def test_no_thread_or_socket_is_left_even_if_clients_stay_connected():
    before = set(threading.enumerate())
    with Simulator(faults=[Fault("slow", seconds=60, page=9)]) as sim:
        idle = socket.create_connection((sim.host, sim.port), timeout=5)
        waiting = send(sim, page_path(STREET, NOON, NOON, 9))
        wait_until(lambda: sim.max_in_flight > 0)
        start = time.monotonic()
    assert time.monotonic() - start < 20
    assert set(threading.enumerate()) <= before  # other threads of this process may have ended
    with idle, waiting, pytest.raises(ConnectionRefusedError):
        socket.create_connection((sim.host, sim.port), timeout=5)


def test_a_client_that_disconnects_causes_no_traceback(capfd):
    with failing(Fault("slow", seconds=0.05)) as sim:
        with send(sim, PATH) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert ask(sim, PATH).status == 200
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


# ---- command line ----
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_address_applies_its_options_and_stops_cleanly(number, tmp_path):
    log = tmp_path / "log.jsonl"
    options = f"--port 0 --page-size 7 --no-gzip --api-key mine --log {log} --fault kind=429,retry_after=3"
    command, pipe = [sys.executable, "-m", "airflow_provider_unleash.simulator", *options.split()], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        port = int(process.stdout.readline().removeprefix("Unleash live simulator on http://127.0.0.1:"))
        server = SimpleNamespace(host="127.0.0.1", port=port)
        replies = [ask(server, PATH, x_api_key="mine", Accept_Encoding="gzip") for _ in range(2)]
        os.kill(process.pid, number)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert (replies[0].status, replies[0].headers["Retry-After"]) == (429, "3")
    assert len(replies[1].json()["data"]) == 7
    assert len(log.read_text().splitlines()) == 2


def test_the_help_explains_every_option_and_fault_with_a_valid_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for name in [*Options.__dataclass_fields__, "host", "port", "api-key", "fault", "log"]:
        assert f"--{name.replace('_', '-')} " in text
    for name in [*FAULT_KINDS, *Fault.__dataclass_fields__, "/_simulator/"]:
        assert name in text
    [*_, example] = [line for line in text.splitlines() if "--fault" in line]
    faults = [parse_fault(word) for word in example.split() if word.startswith("kind=")]
    refused = Fault("429", times=3, retry_after="1", page=2)
    assert faults == [refused, Fault("half_body", times=None, probability=0.1)]


def test_the_command_line_sets_the_same_options_as_python():
    values = vars(build_parser().parse_args(["--devices", "W1,W2", "--sessions-from", "5", "--nulls"]))
    del values["port"]
    assert Options(**values) == Options(devices=("W1", "W2"), sessions_from=5, nulls=True)


def test_an_invalid_fault_or_option_or_a_port_in_use_ends_the_command(capsys, monkeypatch):
    # Otherwise this process would ignore SIGTERM and Ctrl-C from here on.
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    with Simulator() as sim:
        for args, code, message in [
            (["--fault", "kind=fire"], 2, "Unknown kind of fault 'fire'"),
            (["--empty-total", "7"], 2, "invalid choice"),
            (["--page-size", "0"], 1, "page_size"),
            (["--port", str(sim.port)], 1, "in use"),
        ]:
            with pytest.raises(SystemExit) as ended:
                main(args)
            assert ended.value.code == code
            assert message in capsys.readouterr().err
