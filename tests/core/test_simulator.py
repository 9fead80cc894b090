"""The simulator keeps to the documented samples, agrees with itself, and fails exactly as it is told to."""

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from airflow_provider_unleash import simulator as module
from airflow_provider_unleash.simulator import (
    KEYS,
    PROFILES,
    Account,
    Fault,
    Options,
    Simulator,
    generate_rows,
    generate_sessions,
    parse_fault,
    session_start,
)
from tests.support.paths import ROOT, SAMPLES

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
NOON = MIDNIGHT + 12 * HOUR_MS
STREET, CROWD, RECORDINGS, SILENT = (
    *("Wb8fabc31378ce07", "W9d3f1bcad8e8abd"),
    *("W41f0c6e7a9d2b38", "W7d2e90b4c6a1f58"),
)
ENDPOINTS = {"compact": "/v1/analytics", "tableau": "/v1/analytics/tableau"}


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(sim: Simulator, path: str, method: str = "GET", body: Any = None, **headers: str) -> Reply:
    """Send one request; with the simulator's key, unless other headers are given."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()} or {"x-api-key": sim.api_key}
    with closing(http.client.HTTPConnection(sim.host, sim.port, timeout=5)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        return Reply(connection.getresponse())


def page_path(device: str, start: int | str, end: int | str, page: int | str = 1, endpoint: str = "compact") -> str:
    return f"{ENDPOINTS[endpoint]}/{device}/{start}/{end}/{page}"


def read_pages(sim: Simulator, device: str, start: int, end: int, endpoint: str = "compact") -> list[Any]:
    first = ask(sim, page_path(device, start, end, 1, endpoint)).json()
    numbers = range(2, first["total_num_pages"] + 1)
    return [first, *(ask(sim, page_path(device, start, end, number, endpoint)).json() for number in numbers)]


PATH = page_path(STREET, NOON, NOON + HOUR_MS)


def statuses(sim: Simulator, count: int, path: str = PATH) -> list[int]:
    return [ask(sim, path).status for _ in range(count)]


def send(sim: Simulator, path: str) -> socket.socket:
    """Send one request and leave its answer for later."""
    sock = socket.create_connection((sim.host, sim.port), timeout=5)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nx-api-key: {sim.api_key}\r\n\r\n".encode())
    return sock


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def records_of(pages: list[Any]) -> list[dict[str, Any]]:
    return [
        dict(zip(page["keys"], row, strict=True)) if "keys" in page else row for page in pages for row in page["data"]
    ]


def shape_of(value: Any) -> Any:
    """Reduce an answer to its keys and JSON types; an array to the one shape of its items."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        [shape] = {json.dumps(shape_of(item)) for item in value}
        return json.loads(shape)
    return [type(item).__name__ for item in value] if isinstance(value, list) else type(value).__name__


# ---- shape -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with Simulator(page_size=100) as sim:
        yield sim


SAMPLE_PATHS = {
    "version.json": "/v1/analytics/version",
    "devices.json": "/v1/analytics/devices",
    "sessions.json": "/v1/analytics/sessions",
    "analytics_compact.json": page_path(STREET, NOON, NOON + HOUR_MS),
    "analytics_metrics.json": page_path(CROWD, NOON, NOON + HOUR_MS),
    "analytics_tableau.json": page_path(STREET, NOON, NOON + HOUR_MS, endpoint="tableau"),
}


def test_every_sample_is_compared():
    assert {path.name for path in SAMPLES.iterdir()} == set(SAMPLE_PATHS)


@pytest.mark.parametrize("name", ["analytics_compact.json", "analytics_metrics.json", "analytics_tableau.json"])
def test_a_page_has_the_keys_their_order_and_the_types_of_the_documented_sample(shared, name):
    sample, answer = json.loads((SAMPLES / name).read_text()), ask(shared, SAMPLE_PATHS[name]).json()
    assert answer["data"]
    # As text, because two dicts are equal whatever the order of their keys.
    assert json.dumps(shape_of(answer)) == json.dumps(shape_of(sample))
    assert answer.get("keys") == sample.get("keys")


@pytest.mark.parametrize("name", ["version.json", "devices.json", "sessions.json"])
def test_a_list_or_version_has_the_types_of_the_documented_sample(shared, name):
    sample, answer = json.loads((SAMPLES / name).read_text()), ask(shared, SAMPLE_PATHS[name]).json()
    assert answer
    assert type(answer) is type(sample)
    assert {type(item) for item in answer} == {type(item) for item in sample}


def test_the_crowd_device_has_the_classes_of_the_documented_metrics():
    sample = json.loads((SAMPLES / "analytics_metrics.json").read_text())
    classes = {record["class_name"] for record in generate_rows(0, CROWD, NOON, NOON + HOUR_MS)}
    assert classes == {record["class_name"] for record in records_of([sample])}


@pytest.mark.parametrize(
    ("device", "pattern"),
    [(STREET, r"\?token=[a-z]+-[a-z]+-\d{3}$"), (RECORDINGS, r"-17-Aug-20-12-00-00\.mp4$")],
)
def test_a_source_file_name_reads_as_documented(device, pattern):
    for record in generate_rows(0, device, NOON, NOON + 10 * MINUTE_MS):
        assert re.search(pattern, record["source_file_name"])
        assert record["source_file_name"].startswith(device)
        assert re.fullmatch(r"2020-08-17T12:0\d:\d\d\.000Z|2020-08-17T12:10:00\.000Z", record["timestamp"])


# ---- rows --------------------------------------------------------------------------------------------


def test_rows_depend_on_seed_device_and_time_alone():
    def day(seed: int, device: str) -> list[Any]:
        return list(generate_rows(seed, device, MIDNIGHT, MIDNIGHT + DAY_MS))

    first = day(1, STREET)
    module._hour_records.cache_clear()
    assert day(1, STREET) == first
    assert day(2, STREET) != first
    assert [row["count"] for row in day(1, "Wunheardof")] != [row["count"] for row in first]


def test_rows_are_the_same_in_another_process():
    code = (
        "import json; from airflow_provider_unleash.simulator import generate_rows;"
        f"print(json.dumps(list(generate_rows(3, {CROWD!r}, {NOON}, {NOON + 10 * MINUTE_MS}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout) == list(generate_rows(3, CROWD, NOON, NOON + 10 * MINUTE_MS))


def test_two_windows_agree_about_their_overlap():
    wide = list(generate_rows(0, STREET, NOON, NOON + 3 * HOUR_MS))
    start, end = NOON + 47 * MINUTE_MS, NOON + 131 * MINUTE_MS
    inside = [row for row in wide if start <= module._parse_stamp(row["timestamp"]) <= end]
    assert list(generate_rows(0, STREET, start, end)) == inside != []


def test_rows_are_ordered_by_time_and_frame_numbers_never_run_backwards():
    rows = list(generate_rows(0, STREET, MIDNIGHT, MIDNIGHT + DAY_MS, rows_per_day=20_000))
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    order = [(int(row["session_id"]), row["frame_number"]) for row in rows]
    assert order == sorted(order)


def test_a_caller_cannot_change_the_rows_of_the_next_caller():
    next(generate_rows(0, STREET, NOON, NOON + HOUR_MS))["count"] = -1
    assert next(generate_rows(0, STREET, NOON, NOON + HOUR_MS))["count"] > 0


def test_nights_are_quieter_than_rush_hours():
    night = len(list(generate_rows(0, STREET, MIDNIGHT, MIDNIGHT + 3 * HOUR_MS)))
    rush = len(list(generate_rows(0, STREET, MIDNIGHT + 7 * HOUR_MS, MIDNIGHT + 10 * HOUR_MS)))
    assert 0 < night * 10 < rush


@pytest.mark.parametrize("rows_per_day", [1000, 10_000])
@pytest.mark.parametrize("device", [STREET, CROWD, RECORDINGS])
def test_a_day_has_about_as_many_rows_as_asked_for(device, rows_per_day):
    rows = sum(1 for _ in generate_rows(0, device, MIDNIGHT, MIDNIGHT + DAY_MS - 1, rows_per_day=rows_per_day))
    assert rows == pytest.approx(rows_per_day, rel=0.15)


def test_a_row_belongs_to_the_latest_session_that_has_begun():
    starts = list(generate_sessions(0, MIDNIGHT - DAY_MS, MIDNIGHT + DAY_MS))
    for row in generate_rows(0, STREET, MIDNIGHT, MIDNIGHT + DAY_MS, rows_per_day=500):
        stamp = module._parse_stamp(row["timestamp"])
        assert int(row["session_id"]) == max(start for start in starts if start <= stamp)


# ---- sessions ----------------------------------------------------------------------------------------


def test_sessions_begin_as_time_passes_and_stay_listed():
    now = [NOON / 1000]
    with Simulator(clock=lambda: now[0], session_period=600) as sim:
        before = ask(sim, "/v1/analytics/sessions").json()
        now[0] += 3600
        after = ask(sim, "/v1/analytics/sessions").json()
        assert after[: len(before)] == before == sim.sessions(NOON)
        assert 5 <= len(after) - len(before) <= 7
        assert all(NOON < int(new) <= NOON + HOUR_MS for new in after[len(before) :])
        assert NOON - 72 * HOUR_MS <= int(before[0]) < NOON - 71 * HOUR_MS


def test_sessions_are_listed_from_the_moment_asked_for():
    with Simulator(clock=lambda: NOON / 1000, sessions_from=NOON - DAY_MS, session_period=3600) as sim:
        assert 22 <= len(sim.sessions()) <= 26
        assert int(sim.sessions()[0]) >= NOON - DAY_MS


def test_a_session_starts_where_it_is_listed():
    starts = list(generate_sessions(5, NOON, NOON + HOUR_MS, 60))
    assert starts == sorted(set(starts))
    assert [session_start(5, start, 60) for start in starts] == starts
    assert session_start(5, starts[1] - 1, 60) == starts[0]


# ---- pages and windows -------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("device", [STREET, CROWD, RECORDINGS])
def test_all_pages_together_are_the_rows_of_the_window(shared, endpoint, device):
    pages = read_pages(shared, device, NOON, NOON + 3 * HOUR_MS, endpoint)
    assert len(pages) > 3
    assert [len(page["data"]) for page in pages[:-1]] == [100] * (len(pages) - 1)
    assert {page["total_num_pages"] for page in pages} == {len(pages)}
    assert records_of(pages) == shared.rows(device, NOON, NOON + 3 * HOUR_MS)


@pytest.mark.parametrize(("inclusive", "expected"), [(True, 3), (False, 2)])
def test_to_is_inclusive_only_if_so_asked(inclusive, expected):
    rows = [{"timestamp": module._format_stamp(NOON + offset)} for offset in (-1, 0, 500, 1000, 1001)]
    with Simulator(rows={"W1": rows}, inclusive_to=inclusive) as sim:
        [page] = read_pages(sim, "W1", NOON, NOON + 1000)
        assert len(page["data"]) == expected == len(sim.rows("W1", NOON, NOON + 1000))


def test_a_selection_lag_returns_the_documented_example_and_loses_nothing_between_windows():
    sample = records_of([json.loads((SAMPLES / "analytics_compact.json").read_text())])
    device = sample[0]["device_id"]
    with Simulator(rows={device: sample}, selection_lag_ms=27_000) as sim:
        assert records_of(read_pages(sim, device, 1597630156000, 1597630156000)) == sample
    with Simulator(selection_lag_ms=600_000) as sim:
        middle, end = NOON + HOUR_MS // 2, NOON + HOUR_MS
        whole = sim.rows(STREET, NOON, end)
        assert sim.rows(STREET, NOON, middle - 1) + sim.rows(STREET, middle, end) == whole
        assert whole[0]["timestamp"] < module._format_stamp(NOON)


def test_rows_stamped_after_now_do_not_exist_yet():
    now = [(NOON + 10 * MINUTE_MS) / 1000]
    with Simulator(clock=lambda: now[0]) as sim:
        early = records_of(read_pages(sim, STREET, NOON, NOON + HOUR_MS))
        now[0] += 3600
        late = records_of(read_pages(sim, STREET, NOON, NOON + HOUR_MS))
    assert early == list(generate_rows(0, STREET, NOON, NOON + 10 * MINUTE_MS))
    assert late[: len(early)] == early != late


@pytest.mark.parametrize("empty_total", [0, 1])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_rows_have_the_total_that_was_asked_for(empty_total, endpoint):
    with Simulator(empty_total=empty_total) as sim:
        [page] = read_pages(sim, SILENT, NOON, NOON + HOUR_MS, endpoint)
        assert SILENT in ask(sim, "/v1/analytics/devices").json()
        assert (page["total_num_pages"], page["data"]) == (empty_total, [])
        assert page.get("keys", list(KEYS)) == list(KEYS)


@pytest.mark.parametrize(("unknown", "status"), [("empty", 200), ("404", 404)])
def test_an_unknown_device_gets_what_was_asked_for(unknown, status):
    with Simulator(unknown_device=unknown) as sim:
        reply = ask(sim, page_path("Wnone", NOON, NOON + HOUR_MS))
        assert (reply.status, reply.json().get("data", [])) == (status, [])
        assert ask(sim, page_path(SILENT, NOON, NOON + HOUR_MS)).status == 200


def test_a_page_after_the_last_is_empty_and_has_the_same_total(shared):
    total = ask(shared, page_path(STREET, NOON, NOON + HOUR_MS)).json()["total_num_pages"]
    beyond = ask(shared, page_path(STREET, NOON, NOON + HOUR_MS, total + 1)).json()
    assert (beyond["data"], beyond["total_num_pages"]) == ([], total)


def test_fixed_pages_are_full_inside_the_window_and_none_for_a_silent_device():
    with Simulator(fixed_pages=3, page_size=50) as sim:
        for start, end in [(NOON, NOON + 1000), (MIDNIGHT, MIDNIGHT + 300 * DAY_MS)]:
            pages = read_pages(sim, CROWD, start, end)
            assert [len(page["data"]) for page in pages] == [50, 50, 50]
            assert records_of(pages) == sim.rows(CROWD, start, end)
            stamps = [module._parse_stamp(record["timestamp"]) for record in records_of(pages)]
            assert stamps == sorted(stamps)
            assert start == stamps[0] < stamps[-1] < end
        assert ask(sim, page_path(SILENT, NOON, NOON + 1000)).json()["data"] == []


def test_a_window_too_wide_to_generate_is_refused_at_once(shared):
    reply = ask(shared, page_path(STREET, 0, 99_999_999_999_999))
    assert (reply.status, list(reply.json())) == (400, ["message"])


def test_given_rows_replace_the_generated_ones_and_are_in_every_window_without_a_readable_stamp():
    stamped = {"timestamp": "2020-08-17T12:00:00.500Z", "count": 1.5}
    rows = [stamped, {"timestamp": None, "count": 2}, {"timestamp": "soon"}, {"extra": {"a": [1]}}]
    with Simulator(rows={"W1": rows}) as sim:
        assert sim.devices == ask(sim, "/v1/analytics/devices").json() == ["W1"]
        assert records_of(read_pages(sim, "W1", NOON, NOON + 1000, "tableau")) == rows
        assert sim.rows("W1", 0, 1000) == rows[1:]
        [page] = read_pages(sim, "W1", NOON, NOON + 1000)
        assert page["keys"] == ["timestamp", "count", "extra"]
        assert page["data"][0] == ["2020-08-17T12:00:00.500Z", 1.5, None]
        assert ask(sim, page_path(STREET, NOON, NOON + HOUR_MS)).json()["data"] == []


# ---- variations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_reordered_keys_change_from_page_to_page_and_change_no_record(endpoint):
    with Simulator(reorder_keys=True, page_size=100) as sim:
        pages = read_pages(sim, STREET, NOON, NOON + HOUR_MS, endpoint)
        orders = [tuple(page.get("keys", page["data"][0])) for page in pages]
        assert len(set(orders)) == len(orders) > 1
        assert orders[0] != KEYS
        assert records_of(pages) == sim.rows(STREET, NOON, NOON + HOUR_MS)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_new_key_appears_on_its_page_and_stays(endpoint):
    with Simulator(new_key="confidence", new_key_page=2, page_size=100) as sim:
        pages = read_pages(sim, STREET, NOON, NOON + HOUR_MS, endpoint)
        have = [["confidence" in record for record in records_of([page])] for page in pages]
        assert not any(have[0])
        assert len(have) > 1
        assert all(all(page) for page in have[1:])
        assert records_of(pages) == sim.rows(STREET, NOON, NOON + HOUR_MS)


def test_nulls_are_some_and_the_same_in_every_window():
    with Simulator(nulls=True, page_size=100) as sim:
        wide, narrow = sim.rows(STREET, NOON, NOON + HOUR_MS), sim.rows(STREET, NOON, NOON + HOUR_MS // 2)
        assert wide[: len(narrow)] == narrow
        assert 0.05 < sum(None in row.values() for row in wide) / len(wide) < 0.25
        assert not any(row["timestamp"] is None or row["device_id"] is None for row in wide)
        assert records_of(read_pages(sim, STREET, NOON, NOON + HOUR_MS)) == wide


def test_a_growing_window_shows_more_with_each_request_until_it_is_whole():
    with Simulator(growing=100, page_size=100) as sim:
        whole = sim.rows(STREET, NOON, NOON + HOUR_MS)
        seen = [len(records_of(read_pages(sim, STREET, NOON, NOON + HOUR_MS))) for _ in range(3)]
        totals = [ask(sim, page_path(STREET, NOON, NOON + 2 * HOUR_MS)).json()["total_num_pages"] for _ in range(5)]
        assert totals[0] < totals[1] < totals[2] <= totals[3] == totals[4]
        assert seen[0] < seen[1] == seen[2] == len(whole)


# ---- requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["simulator-key", "ul_pat_simulator"])
@pytest.mark.parametrize("header", ["x_api_key", "Authorization"])
def test_either_header_takes_either_key(shared, header, key):
    value = f"Bearer {key}" if header == "Authorization" else key
    assert ask(shared, "/v1/analytics/version", **{header: value}).json() == "1.0.1"


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"x_api_key": "wrong"}, 403, "Forbidden"),
        ({"Authorization": "Bearer wrong"}, 403, "Forbidden"),
        ({"Authorization": "Bearer"}, 403, "Forbidden"),
        ({"Authorization": "Basic c2ltOmtleQ=="}, 401, "Unauthorized"),
        ({"Accept": "*/*"}, 401, "Unauthorized"),
    ],
)
def test_a_wrong_key_is_forbidden_and_no_key_is_unauthorized(shared, headers, status, message):
    for path in SAMPLE_PATHS.values():
        reply = ask(shared, path, **headers)
        assert (reply.status, reply.json()) == (status, {"message": message})


def test_other_keys_replace_the_default_ones():
    with Simulator(api_keys=["mine"]) as sim:
        assert sim.api_key == "mine"
        assert ask(sim, "/v1/analytics/version").status == 200
        assert ask(sim, "/v1/analytics/version", x_api_key="simulator-key").status == 403


@pytest.mark.parametrize(
    "numbers", [("a", "2", "1"), ("1", "2.5", "1"), ("1", "2", "0"), ("1", "2", "-1"), ("1", "", "1")]
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_numbers_that_are_none_and_pages_below_one_are_bad_requests(shared, numbers, endpoint):
    reply = ask(shared, page_path(STREET, *numbers, endpoint=endpoint))
    assert (reply.status, list(reply.json())) == (400, ["message"])


@pytest.mark.parametrize(
    "path", ["/", "/v1/analytics", "/v2/analytics/version", "/v1/analytics/W1/1/2", "/_simulator/x"]
)
def test_an_unknown_path_is_not_found(shared, path):
    reply = ask(shared, path)
    assert (reply.status, reply.json()) == (404, {"message": "Not Found"})
    assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_nothing_but_get_is_allowed(shared, method):
    reply = ask(shared, "/v1/analytics/devices", method, body={} if method == "POST" else None)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_percent_encoded_device_is_decoded(endpoint):
    rows = [{"timestamp": "2020-08-17T12:00:00.000Z", "device_id": "a/b ä"}]
    with Simulator(rows={"a/b ä": rows}) as sim:
        assert records_of(read_pages(sim, "a%2Fb%20%C3%A4", NOON, NOON, endpoint)) == rows


def test_pages_are_compressed_only_for_clients_that_accept_it_and_only_if_so_asked(shared):
    path, accepts = page_path(STREET, NOON, NOON + HOUR_MS), {"Accept_Encoding": "gzip, deflate"}
    plain, zipped = ask(shared, path), ask(shared, path, x_api_key=shared.api_key, **accepts)
    assert (plain.headers["Content-Encoding"], zipped.headers["Content-Encoding"]) == (None, "gzip")
    assert gzip.decompress(zipped.body) == plain.body
    with Simulator(gzip=False) as sim:
        reply = ask(sim, path, x_api_key=sim.api_key, **accepts)
        assert reply.headers["Content-Encoding"] is None


def test_one_connection_serves_many_requests(shared):
    with closing(http.client.HTTPConnection(shared.host, shared.port, timeout=5)) as connection:
        connection.connect()
        sock = connection.sock
        for path in [*SAMPLE_PATHS.values(), "/nowhere"]:
            connection.request("GET", path, headers={"x-api-key": shared.api_key})
            connection.getresponse().read()
            assert connection.sock is sock


def test_latency_is_added_to_every_request():
    with Simulator(latency=0.05) as sim:
        start = time.monotonic()
        ask(sim, "/v1/analytics/version")
        assert time.monotonic() - start >= 0.05


def test_rendered_pages_occupy_no_more_than_allowed():
    account = Account(Options(cache_bytes=100_000, page_size=100), None, time.time)
    for number in range(1, 15):
        account.body(STREET, NOON, NOON + 5 * HOUR_MS, number, tableau=False, compressed=False)
    bodies = account._bodies._bodies.values()
    assert 0 < sum(map(len, bodies)) == account._bodies._size <= 100_000


def test_an_option_that_does_not_exist_or_fit_is_an_error():
    with pytest.raises(TypeError):
        Simulator(pagesize=3)
    for wrong in ({"page_size": 0}, {"unknown_device": "500"}, {"empty_total": 2}, {"session_period": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Simulator(**wrong)


# ---- the log -----------------------------------------------------------------------------------------


def test_the_log_tells_what_was_asked_and_never_the_key(tmp_path):
    log = tmp_path / "log.jsonl"
    with Simulator(log=log, faults=[Fault("echo_key")]) as sim:
        for key in ("sent-secret", sim.api_key):
            ask(sim, f"/v1/analytics/version?key={key}", Authorization=f"Bearer {key}", User_Agent="pytest")
        ask(sim, "/v1/analytics/devices", Accept_Encoding="gzip")
        told = [(r.number, r.status, r.fault, r.auth, r.user_agent, r.accept_encoding) for r in sim.requests]
        assert told == [
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


def test_max_in_flight_counts_the_requests_under_way_at_once():
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


# ---- faults ------------------------------------------------------------------------------------------


@contextmanager
def failing(*faults: Fault) -> Iterator[Simulator]:
    with Simulator(faults=faults, page_size=100) as sim:
        yield sim


@pytest.mark.parametrize("kind", ["401", "403", "404", "408", "425", "429", "500", "502", "503"])
def test_a_status_fault_answers_with_that_status_and_a_message(kind):
    with failing(Fault(kind)) as sim:
        reply = ask(sim, PATH)
        assert (reply.status, reply.json()) == (int(kind), {"message": http.client.responses[int(kind)]})
        assert reply.headers["Retry-After"] is None
        assert [request.fault for request in sim.requests] == [kind]
        assert ask(sim, PATH).status == 200


@pytest.mark.parametrize("value", [7, "7"])
def test_retry_after_is_sent_in_seconds(value):
    with failing(Fault("429", retry_after=value)) as sim:
        assert ask(sim, PATH).headers["Retry-After"] == "7"


def test_retry_after_is_sent_as_an_http_date_no_earlier_than_asked_for():
    with failing(Fault("503", retry_after="date:5")) as sim:
        asked = time.time()
        moment = parsedate_to_datetime(ask(sim, PATH).headers["Retry-After"]).timestamp()
        assert 5 <= moment - asked <= 7


@pytest.mark.parametrize(
    ("location", "expected"), [("", "http://localhost:{port}" + PATH), ("https://x.test/", "https://x.test/")]
)
def test_a_redirect_points_to_another_origin(location, expected):
    with failing(Fault("redirect", location=location)) as sim:
        reply = ask(sim, PATH)
        assert (reply.status, reply.headers["Location"]) == (302, expected.format(port=sim.port))


def test_a_reset_resets_the_connection_before_any_answer():
    with failing(Fault("reset")) as sim, send(sim, PATH) as sock:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert [(request.status, request.fault) for request in sim.requests] == [(0, "reset")]


def test_half_a_body_has_the_right_length_in_its_header_and_half_the_bytes():
    with failing(Fault("half_body")) as sim:
        with closing(http.client.HTTPConnection(sim.host, sim.port, timeout=5)) as connection:
            connection.request("GET", PATH, headers={"x-api-key": sim.api_key})
            response = connection.getresponse()
            with pytest.raises(http.client.IncompleteRead) as error:
                response.read()
        whole = ask(sim, PATH).body
        assert response.headers["Content-Length"] == str(len(whole))
        assert error.value.partial == whole[: len(whole) // 2]


def test_a_maintenance_page_is_html_with_status_200():
    with failing(Fault("html"), Fault("html", status=503)) as sim:
        reply = ask(sim, PATH)
        assert (reply.status, reply.headers.get_content_type()) == (200, "text/html")
        assert reply.body.startswith(b"<html>")
        assert ask(sim, PATH).status == 503


def test_garbage_is_called_json_and_is_none():
    with failing(Fault("garbage")) as sim:
        reply = ask(sim, PATH)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        with pytest.raises(UnicodeDecodeError):
            reply.json()


def test_a_wrong_shape_is_json_without_any_documented_key():
    with failing(Fault("wrong_shape")) as sim:
        reply = ask(sim, PATH)
        assert reply.status == 200
        assert not {"keys", "data", "total_num_pages"} & set(reply.json())


def test_slow_is_the_right_answer_later():
    with failing(Fault("slow", seconds=0.1)) as sim:
        start = time.monotonic()
        slow = ask(sim, PATH)
        assert time.monotonic() - start >= 0.1
        assert slow.body == ask(sim, PATH).body


@pytest.mark.parametrize("status", [None, 400])
@pytest.mark.parametrize("headers", [{"x_api_key": "s3cret"}, {"Authorization": "Bearer s3cret"}])
def test_an_echoed_key_is_the_one_that_was_sent(status, headers):
    with failing(Fault("echo_key", status=status)) as sim:
        reply = ask(sim, PATH, **headers)
        assert reply.status == (status or 401)
        assert "s3cret" in reply.json()["message"]


def test_a_fault_happens_so_many_times_after_so_many_requests():
    with failing(Fault("500", times=2, after=1)) as sim:
        assert statuses(sim, 5) == [200, 500, 500, 200, 200]


def test_a_fault_happens_for_ever_until_cleared():
    with failing(Fault("500", times=None)) as sim:
        assert statuses(sim, 4) == [500] * 4
        sim.clear_faults()
        assert statuses(sim, 1) == [200]


def test_a_fault_matches_part_of_a_path_and_a_page():
    with failing(Fault("500", times=None, path="/tableau/", page=2)) as sim:
        for endpoint, page, expected in [("tableau", 2, 500), ("tableau", 1, 200), ("compact", 2, 200)]:
            assert statuses(sim, 1, page_path(STREET, NOON, NOON + HOUR_MS, page, endpoint)) == [expected]
        assert statuses(sim, 1, "/v1/analytics/devices") == [200]


def test_faults_happen_one_after_the_other():
    with failing(Fault("429", times=2), Fault("503")) as sim:
        assert statuses(sim, 4) == [429, 429, 503, 200]


def test_a_probable_fault_happens_now_and_then_and_alike_for_one_seed():
    def seen(seed: int) -> list[int]:
        with Simulator(seed=seed, faults=[Fault("500", times=None, probability=0.5)]) as sim:
            return statuses(sim, 20, "/v1/analytics/version")

    assert set(seen(1)) == {200, 500}
    assert seen(1) == seen(1) != seen(2)


@pytest.mark.parametrize("text", ["kind=fire", "kind=200", "times=3", "kind=429,time=3", "kind=429,times=x", "429", ""])
def test_what_is_no_fault_is_an_error(text):
    with pytest.raises(ValueError, match=r"fault|invalid literal"):
        parse_fault(text)


# ---- control over HTTP -------------------------------------------------------------------------------


def test_another_process_can_read_and_clear_the_log_without_a_key():
    with Simulator() as sim:
        ask(sim, PATH)
        answer = ask(sim, "/_simulator/requests", Accept="*/*").json()
        assert (answer["max_in_flight"], [request["path"] for request in answer["requests"]]) == (1, [PATH])
        assert sim.api_key not in json.dumps(answer)
        assert ask(sim, "/_simulator/requests", "DELETE", Accept="*/*").status == 200
        assert sim.requests == []


def test_another_process_can_add_and_clear_faults_without_a_key():
    with Simulator() as sim:
        for posted in ({"kind": "500", "times": None}, [{"kind": "429", "page": 1}, {"kind": "503"}]):
            assert ask(sim, "/_simulator/faults", "POST", posted, Accept="*/*").status == 200
        assert statuses(sim, 2) == [500, 500]
        assert ask(sim, "/_simulator/faults", "DELETE", Accept="*/*").status == 200
        assert statuses(sim, 1) == [200]


@pytest.mark.parametrize(
    "posted", [{"kind": "fire"}, {}, "reset", 7, [{"kind": "500"}, None], {"kind": "500", "page": []}]
)
def test_posted_faults_that_are_none_are_refused_all_together(posted):
    with Simulator() as sim:
        assert ask(sim, "/_simulator/faults", "POST", posted).status == 400
        assert statuses(sim, 1) == [200]


# ---- its end -----------------------------------------------------------------------------------------


def test_no_thread_and_no_socket_is_left_though_clients_still_hold_on():
    before = set(threading.enumerate())
    with Simulator(faults=[Fault("slow", seconds=60, page=9)]) as sim:
        idle = socket.create_connection((sim.host, sim.port), timeout=5)
        waiting = send(sim, page_path(STREET, NOON, NOON, 9))
        wait_until(lambda: sim.max_in_flight > 0)
        start = time.monotonic()
    assert time.monotonic() - start < 2
    assert set(threading.enumerate()) == before
    with idle, waiting, pytest.raises(ConnectionRefusedError):
        socket.create_connection((sim.host, sim.port), timeout=5)


def test_a_client_that_goes_away_leaves_no_traceback(capfd):
    with failing(Fault("slow", seconds=0.05)) as sim:
        with send(sim, PATH) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert ask(sim, PATH).status == 200
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


# ---- the command line --------------------------------------------------------------------------------


def start_cli(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "airflow_provider_unleash.simulator", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_listens_and_ends_cleanly(number, tmp_path):
    log = tmp_path / "log.jsonl"
    faults = ["--fault", "kind=429,times=1,retry_after=3", "--api-key", "mine", "--log", str(log)]
    with start_cli("--port", "0", "--page-size", "7", "--no-gzip", *faults) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        port = int(said.removeprefix("Unleash live simulator on http://127.0.0.1:"))
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            replies = []
            for _ in range(2):
                connection.request("GET", PATH, headers={"x-api-key": "mine", "Accept-Encoding": "gzip"})
                replies.append(Reply(connection.getresponse()))
            os.kill(process.pid, number)
            assert process.communicate(timeout=5) == ("", "")
    assert process.returncode == 0
    assert (replies[0].status, replies[0].headers["Retry-After"]) == (429, "3")
    assert len(replies[1].json()["data"]) == 7
    assert len(log.read_text().splitlines()) == 2


def test_the_command_explains_every_option_and_fault(capsys):
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    for name in [*Options.__dataclass_fields__, "host", "port", "api-key", "fault", "log"]:
        assert f"--{name.replace('_', '-')} " in told
    for name in [*module.FAULT_KINDS, *Fault.__dataclass_fields__, "/_simulator/"]:
        assert name in told


def test_the_example_in_the_help_is_two_faults():
    example = next(line for line in module.FAULT_HELP.splitlines() if "--fault" in line)
    faults = [parse_fault(text) for text in example.split() if text.startswith("kind=")]
    refused = Fault("429", times=3, retry_after="1", page=2)
    assert faults == [refused, Fault("half_body", times=None, probability=0.1)]


def test_the_command_line_sets_the_same_options_as_python():
    values = vars(module._build_parser().parse_args(["--devices", "W1,W2", "--sessions-from", "5", "--nulls"]))
    del values["port"]
    expected = Options(devices=("W1", "W2"), sessions_from=5, nulls=True)
    assert Options(**values) == expected


def test_a_fault_or_option_that_makes_no_sense_ends_the_command(capsys):
    for args, code in [(["--fault", "kind=fire"], 2), (["--empty-total", "7"], 2), (["--page-size", "0"], 1)]:
        with pytest.raises(SystemExit) as ended:
            module.main(args)
        assert ended.value.code == code
        assert capsys.readouterr().err


def test_a_port_in_use_ends_the_command(capsys):
    with Simulator() as sim, pytest.raises(SystemExit) as ended:
        module.main(["--port", str(sim.port)])
    assert ended.value.code == 1
    assert "in use" in capsys.readouterr().err


def test_the_default_devices_are_six_and_one_is_silent():
    silent = [device for device in PROFILES if not list(generate_rows(0, device, NOON, NOON + HOUR_MS))]
    assert (len(PROFILES), silent) == (6, [SILENT])
