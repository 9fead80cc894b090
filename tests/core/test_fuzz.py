"""Whatever bytes the API sends become rows or an error of this package, at a bounded cost; names stay in place."""

from __future__ import annotations

import gzip
import json
import logging
import os
import posixpath
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core import columns, formats, protocol, sessions, windows
from airflow_provider_unleash.core.names import object_name
from airflow_provider_unleash.core.protocol import Page, Response
from airflow_provider_unleash.core.windows import Window
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnleashError
from tests.support.answering import answering
from tests.support.odd_names import DOTS, OTHERS, SLASHES
from tests.support.pages import Place, write
from tests.support.paths import SAMPLES
from tests.support.python_processes import import_root

RESPONSES = [path.read_bytes() for path in sorted(SAMPLES.glob("*.json"))]
URL = "https://api.unleashlive.com/v1/analytics/W1/1597622400000/1597708800000/1"
KEY = "ul_pat_0123456789abcdefghijklmnopqrstuvwxyz"
MIDNIGHT = 1_597_622_400_000
DAY = windows.Window(MIDNIGHT, MIDNIGHT + 86_400_000)
MEMORY = fsspec.filesystem("memory")
# The same examples in each run, so that a failure can be repeated.
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# Peak memory of decoding, without the body itself. The worst known bodies take 45 times their size: lists in lists,
# each a list object of 104 bytes for two characters. Cells that a row lacks may add 8; the rest is for Python versions
# with larger objects. The constant is for bodies so small that a few objects are many times as large.
MEMORY_MULTIPLE = 64
MEMORY_CONSTANT = 1 << 20


def check_any_bytes(data: bytes) -> None:
    """Parse the bytes as each kind of response, and use what they contain."""
    response = Response(URL, 200, {}, data, KEY)
    try_to(partial(protocol.parse_version, response))
    ids = try_to(partial(protocol.parse_ids, response)) or []
    try_to(lambda: sessions.SessionList(ids).select(since_ms=0))
    for device_id in ids:
        try_to(partial(protocol.check_device_id, device_id))
    for endpoint in ("compact", "tableau"):
        page = try_to(partial(protocol.parse_page, response, 1, endpoint))
        if page is not None:
            check_page(page)
    text = data.decode("latin-1")
    check_headers({"Retry-After": text, "Date": text[::-1], "Location": text}, data)


def try_to(act: Callable[[], Any]) -> Any:
    """Return what ``act`` returns, or None if it raises an error of this package."""
    try:
        return act()
    except UnleashError:
        return None


def check_page(page: Page) -> None:
    """Use a page in every way; only writers may reject it, and then they leave no object."""
    assert len(page.rows) == len(page.records())
    assert len(page.digest) == 32
    masked = protocol.mask_stream_tokens(page)
    assert protocol.mask_stream_tokens(masked) is masked
    [kept] = windows.HalfOpenPages("W1", DAY, [page])
    assert len(kept.rows) + len(kept.dropped) == len(page.rows)
    for file_format in formats.FILE_FORMATS:
        path = f"/test_fuzz/{file_format}"
        size = try_to(partial(write, Place(path, "memory", MEMORY), [page], file_format))
        assert MEMORY.exists(path) is (size is not None)
        if size is not None:
            assert MEMORY.size(path) == size
            MEMORY.rm_file(path)


def check_headers(headers: dict[str, str], body: bytes) -> None:
    for date in ({}, {"Date": "Mon, 17 Aug 2020 12:00:00 GMT"}):
        seconds = protocol.parse_retry_after({**headers, **date})
        assert seconds is None or 0 <= seconds < float("inf")
    for status in (100, 204, 302, 401, 404, 418, 429, 503, 999):
        with pytest.raises(UnleashError) as caught:
            protocol.raise_for_status(Response(URL, status, headers, body, KEY))
        assert KEY not in str(caught.value)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # each new key is logged
    yield
    logging.disable(logging.NOTSET)


KEYS = [*columns.COLUMNS, "extra", "device", "start_date", "", "a", "\x00", '"\\', "é", "人", "\U0001f600"]
# JSON as text, because Python's encoder writes nothing odd.
ODD = [
    *("null", "true", "-0", "-0.0", "1e308", "1e999", "-1e999", "5e-324", "NaN", "Infinity", "1.", ".5", "0x1", "01"),
    *("9" * 19, "-" + "9" * 30, "9" * 400, "9" * 4299, "9" * 4301, "9" * 400 + ".5", "0." + "9" * 5000),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x"', '"\ufeff"', '"a\nb"', '"\x7f"'),
    *('"W?token=x"', '"W?TOKEN=&token=y"', '"1597622730877"', '"2020-08-17T02:08:49.000Z"', '"2020-08-18T00:00:00Z"'),
    *('"0000-01-01T00:00:00Z"', '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59.9999999-23:59"', '"P1D"', "'a'"),
    *("[]", "{}", "[" * 50 + "]" * 50, "[" * 1500 + "]" * 1500, '{"a":' * 1500 + "1" + "}" * 1500, "[" * 9000),
    *('{"a":1,"a":2}', '{"":{"":null}}', "[1,]", "{,}", "/**/1", "", " ", "\ufeff1"),
]
ODDITIES = st.sampled_from(ODD) | st.text(max_size=5).map(json.dumps) | st.integers().map(str) | st.floats().map(str)
NAMES = st.sampled_from(KEYS).map(json.dumps) | ODDITIES


def array(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(parts, max_size=4).map(lambda texts: f"[{','.join(texts)}]")


def json_object(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.lists(st.tuples(names, values).map(":".join), max_size=4)  # names may repeat
    return members.map(lambda texts: f"{{{','.join(texts)}}}")


@st.composite
def fitting(draw: st.DrawFn) -> str:
    """Draw a compact page with as many values per row as keys, which is rare by chance."""
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=5, unique=True))
    rows = draw(st.lists(st.lists(ODDITIES, min_size=len(keys), max_size=len(keys)), max_size=3))
    data = ",".join(f"[{','.join(row)}]" for row in rows)
    return f'{{"keys":{json.dumps(keys)},"total_num_pages":1,"data":[{data}]}}'


ROWS = array(array(ODDITIES) | json_object(NAMES, ODDITIES) | ODDITIES)
MEMBERS = st.tuples(st.sampled_from(['"keys"', '"total_num_pages"', '"data"', '"x"']), array(NAMES) | ODDITIES | ROWS)
LIKE_PAGES = (
    st.tuples(array(NAMES) | ODDITIES, ODDITIES, ROWS).map(
        '{{"keys":{0[0]},"total_num_pages":{0[1]},"data":{0[2]}}}'.format
    )
    | st.tuples(st.integers(0, 3), array(json_object(st.sampled_from(KEYS).map(json.dumps), ODDITIES))).map(
        '{{"total_num_pages":{0[0]},"data":{0[1]}}}'.format
    )
    | st.lists(MEMBERS.map(":".join), max_size=5).map(lambda texts: f"{{{','.join(texts)}}}")
    | array(NAMES)
    | fitting()
)
TEXTS = LIKE_PAGES.map(lambda text: text.encode("utf-8", "surrogatepass"))
ENCODED = st.tuples(LIKE_PAGES, st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "latin-1"])).map(
    lambda drawn: drawn[0].encode(drawn[1], "replace")
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a documented response with some bytes changed, removed, repeated or from another one."""
    body = bytearray(draw(st.sampled_from(RESPONSES)))
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(body)))
        last = draw(st.integers(first, min(len(body), first + 40)))
        other = draw(st.sampled_from(RESPONSES))
        cut = draw(st.integers(0, len(other)))
        piece = draw(st.binary(max_size=3) | st.sampled_from(ODD).map(str.encode) | st.just(other[cut : cut + 60]))
        body[first:last] = piece
    return bytes(body[: draw(st.integers(0, len(body)) | st.just(len(body)))])


@PROPERTY
@given(st.binary() | TEXTS | ENCODED | mutated())
@example(b'["' + b"9" * 5000 + b'"]')
@example(b'["00000001595418530512' + b"0" * 5000 + b'"]')
def test_any_bytes_become_rows_that_can_be_used_or_an_error_of_this_package(data):
    check_any_bytes(data)


HEADERS = st.sampled_from(["Retry-After", "retry-AFTER", "Date", "Location", "x"])


@PROPERTY
@given(st.dictionaries(HEADERS, st.text() | st.sampled_from(ODD)), st.binary(max_size=300), st.integers(-1, 10**4))
def test_any_status_but_200_is_an_error_of_this_package_whatever_its_headers(headers, body, status):
    check_headers(headers, body)
    if status != 200:
        with pytest.raises(UnleashError):
            protocol.raise_for_status(Response(URL, status, headers, body, KEY))


COMPACT = '{"keys":["a"],"total_num_pages":1,"data":['
TABLEAU = '{"total_num_pages":1,"data":['
DEEP = "[" * 700 + "]" * 700


def filled(head: str, unit: str, end: str, size: int = 100_000) -> bytes:
    return (head + ",".join([unit] * (size // (len(unit) + 1))) + end).encode()


def distinct(head: str, unit: str, end: str, count: int = 4000) -> bytes:
    return (head + ",".join(unit % index for index in range(count)) + end).encode()


WORST = {
    "rows of an empty list": filled(COMPACT, "[[]]", "]}"),
    "rows of an object": filled(COMPACT, '[{"":0}]', "]}"),
    "lists in lists": filled(COMPACT, f"[{DEEP}]", "]}"),
    "lists in lists, cut short": filled(COMPACT, f"[{DEEP}]", ""),
    "lists in lists, then a number as row": filled(COMPACT, f"[{DEEP}]", ",0]}"),
    "lists in lists, then half a surrogate pair": filled(COMPACT, f"[{DEEP}]", ',"\\ud800"]}'),
    "lists in lists in one row that is too long": filled(COMPACT + "[", DEEP, "]]}"),
    "objects, cut short": filled(COMPACT, "[{}]", ""),
    "objects, then a number beyond floats": filled(COMPACT, "[{}]", ",1e999]}"),
    "one wide string": (COMPACT + '["' + "a" * 100_000 + '\U0001f600"]]}').encode(),
    "one wide string in a row that is too long": (COMPACT + '["' + "a" * 100_000 + '\U0001f600",1]]}').encode(),
    "many keys": distinct('{"keys":[', '"%x"', '],"total_num_pages":1,"data":[]}'),
    "a repeated key": distinct('{"keys":["0",', '"%x"', '],"total_num_pages":1,"data":[]}'),
    "empty objects": filled(TABLEAU, "{}", "]}"),
    "objects with one key": filled(TABLEAU, '{"":0}', "]}"),
    "objects with one key, and empty ones": filled(TABLEAU, '{"":{}},{}', "]}"),
    "objects in objects": filled(TABLEAU, '{"":' * 700 + "0" + "}" * 700, "]}"),
    "objects with different keys": distinct(TABLEAU, '{"%x":0}', "]}"),
    "some objects with different keys, many without": distinct(TABLEAU, '{"%x":0}' + ",{}" * 30, "]}", 1000),
    "one object with many keys, many without": distinct(TABLEAU + "{", '"%x":0', "}" + ",{}" * 9000 + "]}", 3000),
}


def decoding_memory(body: bytes) -> int:
    """Return the peak of parsing a body as a page of either endpoint; it includes what msgspec allocates."""
    response = Response(URL, 200, {}, body, KEY)
    peaks = []
    for endpoint in ("compact", "tableau"):
        tracemalloc.start()
        try:
            try_to(partial(protocol.parse_page, response, 1, endpoint))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return max(peaks)


@pytest.mark.parametrize("body", WORST.values(), ids=WORST)
def test_no_known_body_takes_more_than_64_times_its_size(body):
    assert decoding_memory(body) <= MEMORY_MULTIPLE * len(body) + MEMORY_CONSTANT


@settings(PROPERTY, max_examples=40)
@given(TEXTS | mutated(), st.integers(1, 40))
def test_no_random_body_takes_more_than_64_times_its_size(data, times):
    rows = b",".join([data] * times)
    for body in (
        data,
        b'{"keys":["a"],"total_num_pages":1,"data":[[%s]]}' % rows,
        b'{"total_num_pages":1,"data":[%s]}' % rows,
    ):
        assert decoding_memory(body) <= MEMORY_MULTIPLE * len(body) + MEMORY_CONSTANT


MB = 1 << 20
# Runs in its own process to measure its peak alone; ru_maxrss would include that of the process that started it.
REQUEST = r"""
import re, sys
from pathlib import Path
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.exceptions import ResultTooLargeError, TransportError

def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

with UnleashClient("key", sys.argv[1], max_response_bytes=8 << 20, max_attempts=1) as api:
    before = peak()
    try:
        api.get_version()
    except (ResultTooLargeError, TransportError):
        print(peak() - before)
"""


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_a_body_that_inflates_a_thousandfold_is_refused_before_it_fills_the_memory(encoding):
    packer = zlib.compressobj(9, zlib.DEFLATED, 15 if encoding == "deflate" else 31)
    bomb = b"".join(packer.compress(b" " * MB) for _ in range(64)) + packer.flush()
    bomb = gzip.compress(bomb, 9) if "," in encoding else bomb
    assert len(bomb) * 900 < 64 * MB
    with answering(bomb, content_encoding=encoding) as url:
        command, environment = [sys.executable, "-c", REQUEST, url], import_root(dict(os.environ))
        peak = subprocess.check_output(command, env=environment, text=True, timeout=60)
    assert int(peak) * 1024 < 40 * MB


TRICKS = st.lists(st.sampled_from([*SLASHES, *DOTS, *OTHERS, "W1"]) | st.text(max_size=3), max_size=7).map("".join)


@settings(PROPERTY, max_examples=400)
@given(
    TRICKS
    | st.text()
    | st.sampled_from([".", "x", "人", "%", " x"]).flatmap(lambda c: st.integers(1, 400).map(c.__mul__))
)
@example("..")
@example("x" * 300)
@example("人" * 90)
def test_no_device_id_leaves_its_folder_or_its_segment_of_a_url(device_id):
    try:
        name = object_name(device_id, Window(MIDNIGHT, MIDNIGHT + 1), "jsonl.gz")
    except InvalidArgumentError:
        return
    folders = name.split("/")
    assert [folder.partition("=")[0] for folder in folders[:2]] == ["device", "start_date"]
    assert len(folders) == 3
    assert max(map(len, folders)) <= 255
    assert name.isascii()
    assert unquote(folders[0]) == f"device={device_id}"
    for spelled in (name, name.replace("%25", "%")):
        assert posixpath.normpath(f"/lake/{spelled}") == f"/lake/{spelled}"
    url = requests.Request("GET", "https://h" + f"{protocol.window_path(device_id, 10**12, 10**12)}/3").prepare().url
    assert url is not None
    segments = urlsplit(url).path.split("/")
    assert len(segments) == 7
    assert unquote(segments[3]) == device_id


@pytest.mark.parametrize("device_id", ["x" * 248, "人" * 27, "..%2F..%2Fetc", "ü?#&=%", "~root", "$HOME", "*"])
def test_the_objects_of_any_other_device_id_are_below_their_folder(device_id, tmp_path):
    target = tmp_path / "lake" / object_name(device_id, Window(MIDNIGHT, MIDNIGHT + 1), "jsonl.gz")
    write(Place(str(target), "file"), [], "jsonl", "gzip")
    [found] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found.resolve() == target
    assert unquote(found.parent.parent.name) == f"device={device_id}"
