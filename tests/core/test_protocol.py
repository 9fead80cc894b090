"""Requests and responses on the wire."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import pytest

from airflow_provider_unleash.core.protocol import (
    API_URL,
    EXCERPT_CHARS,
    Page,
    Response,
    auth_headers,
    check_api_key,
    check_device_id,
    mask_stream_tokens,
    mask_token,
    may_have_stream_tokens,
    parse_base_url,
    parse_ids,
    parse_page,
    parse_retry_after,
    parse_sessions,
    parse_version,
    quote_device_id,
    raise_for_status,
    render_page,
    window_path,
)
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    BadRequestError,
    InvalidArgumentError,
    NotFoundError,
    PermanentError,
    RateLimitError,
    ServerError,
    TransientError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)
from tests.support.paths import SAMPLES

URL = "https://api.unleashlive.com/v1/analytics/W1/1597622400000/1597708800000/3"
KEY = "ul_pat_0123456789abcdefghijklmnopqrstuvwxyz"
STREAM = "Wabcdb35be35bb72?token=sneaky-firefox-288"


def respond(
    content: Any = b"", status: int = 200, headers: Mapping[str, str] | None = None, secret: str = KEY
) -> Response:
    """Return a response; bytes and strings are its body, anything else becomes JSON."""
    if isinstance(content, str):
        content = content.encode()
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Response(URL, status, headers or {}, body, secret)


def sample(name: str) -> Response:
    return respond((SAMPLES / name).read_bytes())


def compact(rows: Any, keys: Any, total: Any = 1) -> dict[str, Any]:
    return {"keys": keys, "total_num_pages": total, "data": rows}


def tableau(records: Any, total: Any = 1) -> dict[str, Any]:
    return {"total_num_pages": total, "data": records}


# ---- base URL ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("api.unleashlive.com", API_URL),
        ("  https://api.unleashlive.com/ \n", API_URL),
        ("HTTPS://API.unleashlive.com", "https://API.unleashlive.com"),
        ("api.unleashlive.com:8443", "https://api.unleashlive.com:8443"),
        ("https://gateway.example:8443/a/b//", "https://gateway.example:8443/a/b"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("localhost:8642", "https://localhost:8642"),
        ("http://LOCALHOST", "http://LOCALHOST"),
        ("http://127.9.8.7:8642/", "http://127.9.8.7:8642"),
        ("http://[::1]:8642", "http://[::1]:8642"),
    ],
)
def test_a_base_url_without_a_scheme_is_https(given: str, url: str) -> None:
    assert parse_base_url(given) == url


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        *((url, "no host name") for url in ("", "https://", "https:///v1", "/v1", "https://two words")),
        *((url, "no host name") for url in ("http://[::1%25lo]", "http://[::1]evil.example")),
        *((url, "scheme must be https or http") for url in ("ftp://api.unleashlive.com", "file:///etc/passwd")),
        *((url, "no host name") for url in ("https:/api.unleashlive.com", "http:/127.0.0.1:8642")),
        (f"https://user:{KEY}@api.unleashlive.com", "contains credentials"),
        ("https://@api.unleashlive.com", "contains credentials"),
        ("http://127.0.0.1\\@evil.example", "contains credentials"),
        ("https://api.unleashlive.com?key=1", "query or a fragment"),
        ("https://api.unleashlive.com/v1#top", "query or a fragment"),
        *((f"https://api.unleashlive.com:{port}", "name or port is invalid") for port in ("99999", "http")),
        *((url, "name or port is invalid") for url in (f"https://a:{KEY}", f"https://user:{KEY}@a\u2100b.example")),
        *((url, "must end in ://") for url in ("https//api.unleashlive.com", "http//127.0.0.1", "https")),
        ("https://127.0.0.1:0", "port 0"),
        *((url, "[::1]") for url in ("::1", "https://[::1")),
    ],
)
def test_an_unusable_base_url_is_refused_with_a_reason_and_without_its_credentials(given: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(reason)) as caught:
        parse_base_url(given)
    assert caught.value.argument == "host"
    assert API_URL in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        *("api.unleashlive.com", "10.0.0.7", "192.168.1.1:8642", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("127.1", "2130706433", "0.0.0.0", "[::]", "[2001:db8::1]"),
    ],
)
def test_http_needs_loopback_or_permission(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"unencrypted.*Use https.*allow_http"):
        parse_base_url(f"http://{host}")
    assert parse_base_url(f"http://{host}", allow_http=True) == f"http://{host}"
    assert parse_base_url(host, allow_http=True) == f"https://{host}"


# ---- key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "\n\t"])
def test_the_error_about_a_missing_key_says_where_it_belongs(key: str | None) -> None:
    with pytest.raises(InvalidArgumentError, match="connection's password") as caught:
        check_api_key(key)
    assert caught.value.argument == "password"


@pytest.mark.parametrize("key", ["two words", "line\r\nX-Other: 1", "tab\tin", "schlüssel", "a\x00b", "a\u200bb"])
def test_a_key_that_does_not_fit_a_header_is_refused_but_not_shown(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="copy it again") as caught:
        check_api_key(key)
    assert key not in str(caught.value)
    assert caught.value.argument == "password"


@pytest.mark.parametrize(
    ("key", "auth", "headers"),
    [
        ("abc", "auto", {"x-api-key": "abc"}),
        ("ul_pat_abc", "auto", {"Authorization": "Bearer ul_pat_abc"}),
        ("UL_PAT_abc", "auto", {"x-api-key": "UL_PAT_abc"}),
        ("xul_pat_abc", "auto", {"x-api-key": "xul_pat_abc"}),
        ("abc", "bearer", {"Authorization": "Bearer abc"}),
        ("ul_pat_abc", "api_key", {"x-api-key": "ul_pat_abc"}),
    ],
)
def test_the_key_is_stripped_and_goes_into_exactly_one_header(key: str, auth: Any, headers: dict[str, str]) -> None:
    assert auth_headers(check_api_key(f"  {key}\n"), auth) == headers


# ---- device IDs and paths ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_id", "segment"),
    [
        *(("Wb8fabc31378ce07", "Wb8fabc31378ce07"), ("a b", "a%20b"), ("a%2Fb", "a%252Fb"), ("%2e%2e", "%252e%252e")),
        *(("...", "..."), (".hidden", ".hidden"), ("a..b", "a..b"), ("kamera-ü", "kamera-%C3%BC")),
        *(("a?b#c&d=e", "a%3Fb%23c%26d%3De"), ("a+b;c:d@e", "a%2Bb%3Bc%3Ad%40e")),
        ("a\u2044b", "a%E2%81%84b"),  # a fraction slash does not separate segments
        ("\uff0e\uff0e", "%EF%BC%8E%EF%BC%8E"),
    ],
)
def test_a_device_id_becomes_one_path_segment(device_id: str, segment: str) -> None:
    assert check_device_id(device_id) == device_id
    assert quote_device_id(device_id) == segment
    for endpoint, path in (("compact", "/v1/analytics"), ("tableau", "/v1/analytics/tableau")):
        window = window_path(device_id, 10**12, 10**12 + 1, endpoint)  # type: ignore[arg-type]
        assert window == f"{path}/{segment}/1000000000000/1000000000001"


@pytest.mark.parametrize(
    ("device_id", "problem"),
    [
        *((device_id, "slash") for device_id in ("a/b", "/", "../x", "a\\b", "..\\x")),
        *((device_id, "dot segment") for device_id in (".", "..")),
        *((device_id, "control") for device_id in ("a\nb", "a\x00", "\x7f", "\u202eabc", "\ufeffabc", "a\ud800")),
        *((device_id, "white space") for device_id in (" a", "a ", " ")),
        *((device_id, "too long") for device_id in ("ü" * 42, "x" * 249, "x" * 10**6)),
        *((device_id, "non-empty string") for device_id in ("", None, 5, b"W1", ["W1"])),
    ],
)
def test_a_device_id_that_could_change_a_path_is_refused(device_id: Any, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        window_path(device_id, 10**12, 10**12 + 1)
    assert isinstance(caught.value, ValueError)
    assert caught.value.argument == "device_id"
    assert len(str(caught.value)) < 600


# ---- statuses ------------------------------------------------------------------------------------


def raised(status: int, content: Any = b"", headers: Mapping[str, str] | None = None) -> UnleashError:
    with pytest.raises(UnleashError) as caught:
        raise_for_status(respond(content, status, headers))
    return caught.value


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (AuthenticationError, [401, 403]),
        (NotFoundError, [404]),
        (RateLimitError, [429]),
        (ServerError, [408, 425, 500, 501, 502, 503, 504, 520, 599]),
        (BadRequestError, [400, 402, 405, 409, 410, 413, 418, 422, 451, 499, *(300, 301, 302, 303, 304, 307, 308)]),
        (UnexpectedResponseError, [100, 201, 202, 204, 206]),
    ],
)
def test_each_status_but_200_raises_its_error_with_the_servers_message(
    kind: type[UnleashError], statuses: list[int]
) -> None:
    raise_for_status(respond(b"anything"))
    for status in statuses:
        error = raised(status, {"message": "a reason"}, {} if status == 403 else {"Retry-After": "17"})
        assert type(error) is kind
        assert isinstance(error, TransientError) is (status in (408, 425, 429) or status >= 500)
        assert isinstance(error, PermanentError) is not isinstance(error, TransientError)
        assert (error.status, error.url) == (status, URL)
        assert f"{URL} returned {status}" in str(error)
        assert 300 <= status < 400 or "a reason" in str(error)
        if isinstance(error, TransientError):
            assert error.retry_after == 17.0
            assert raised(status).retry_after is None  # type: ignore[attr-defined]


def test_a_403_that_says_when_to_try_again_is_a_rate_limit() -> None:
    assert raised(403, headers={"Retry-After": "17"}).retry_after == 17.0  # type: ignore[attr-defined]
    assert isinstance(raised(403, headers={"Retry-After": NOON, "Date": NOON}), RateLimitError)
    assert isinstance(raised(403, headers={"Retry-After": "later"}), AuthenticationError)


@pytest.mark.parametrize("status", [401, 403])
def test_a_rejected_key_explains_that_tokens_expire_and_where_to_create_one(status: int) -> None:
    message = str(raised(status))
    for advice in ("empty body", "expires", "30 days", "Your Profile > Developers", "Viewer", "connection's password"):
        assert advice in message


@pytest.mark.parametrize("header", ["Location", "location", "LOCATION"])
def test_a_redirect_names_its_target_and_the_field_to_change(header: str) -> None:
    error = raised(302, headers={header: "https://login.example/"})
    assert isinstance(error, BadRequestError)
    assert error.location == "https://login.example/"
    assert "https://login.example/" in str(error)
    assert "connection's host" in str(error)
    assert "nowhere" in str(raised(301))


@pytest.mark.parametrize("shown", [KEY, quote("k+y/0123456789=", safe="")])
def test_a_redirect_that_repeats_the_key_does_not_show_it(shown: str) -> None:
    redirect = Response(URL, 302, {"Location": f"https://evil.example/?key={shown}"}, b"", unquote(shown))
    with pytest.raises(BadRequestError, match=r"evil\.example") as caught:
        raise_for_status(redirect)
    assert shown not in f"{caught.value} {caught.value.location}"


# ---- Retry-After ---------------------------------------------------------------------------------

NOON = "Mon, 17 Aug 2020 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("1.5", 1.5), ("86400", 86400.0)),
        ("99999999999", 99999999999.0),
        ("Mon, 17 Aug 2020 12:01:00 GMT", 60.0),
        ("Monday, 17-Aug-20 12:01:00 GMT", 60.0),
        ("Mon Aug 17 12:01:00 2020", 60.0),
        ("Mon, 17 Aug 2020 14:01:00 +0200", 60.0),
        ("Mon, 17 Aug 2020 11:59:00 GMT", 0.0),
    ],
)
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_retry_after_is_seconds_or_a_date_compared_with_the_responses_own_date(
    value: str, seconds: float, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert parse_retry_after({"Retry-After": value, "Date": NOON}) == seconds
        assert parse_retry_after({"retry-after": value, "DATE": NOON}) == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "value",
    [
        *("", "soon", "-5", "1e3", "inf", "nan", "0x10", "7, 8", "1:30", "9" * 5000, "Mon, 17 Aug"),
        *("Mon, 99 Aug 2020 12:00:00 GMT", "Mon, 17 Aug 99999 12:00:00 GMT", "17 Foo 2020 99:99:99 GMT"),
    ],
)
def test_an_unreadable_retry_after_is_ignored_and_an_unreadable_date_replaced_by_the_clock(value: str) -> None:
    assert parse_retry_after({"Retry-After": value, "Date": NOON}) is None
    seconds = parse_retry_after({"Retry-After": formatdate(time.time() + 600, usegmt=True), "Date": value})
    assert seconds == pytest.approx(600, abs=5)


# ---- excerpts ------------------------------------------------------------------------------------


def test_an_excerpt_is_one_line_of_at_most_200_printable_characters() -> None:
    excerpt = respond("<html>\n\t<h1>Down</h1>\r\n" + "x" * 100_000).excerpt()
    assert excerpt.startswith("<html> <h1>Down</h1> xxx")
    assert len(excerpt) == EXCERPT_CHARS == 200
    for body in (b"\x00\x1b[31mred\x07", b"\xff\xfe\x00", "\u202eevil\u200b".encode(), b"\xc3"):
        assert respond(body).excerpt().isprintable()


@pytest.mark.parametrize(
    "encode",
    [
        *(str, lambda key: quote(key, safe=""), quote, lambda key: quote(key, safe="").lower()),
        *(html.escape, lambda key: "".join(f"&#x{ord(char):X};" for char in key)),
        lambda key: key.replace("/", "&#47;"),
        *(lambda key: json.dumps(key)[1:-1], lambda key: key.replace("/", "\\/"), "\n".join),
    ],
    ids=[
        *("plain", "percent", "percent except slash", "percent in lower case"),
        *("HTML", "HTML in numbers", "HTML slash", "JSON", "JSON slash", "lines"),
    ],
)
def test_no_excerpt_or_error_shows_a_key_that_the_body_echoes_in_any_encoding(encode: Any) -> None:
    key = "k3y+with/signs=and~more.&<\\'0123"
    response = respond(f"no access with ?key={encode(key)}&x=1, Bearer {encode(key)}", 403, secret=key)
    assert response.excerpt() == "no access with ?key=***&x=1, Bearer ***"
    for error in (partial(raise_for_status, response), partial(parse_version, response)):
        with pytest.raises(UnleashError) as caught:
            error()
        assert encode(key) not in f"{caught.value!r} {response!r}"


def test_a_text_stays_readable_if_the_key_is_a_short_wrong_one() -> None:
    assert respond("the message", secret="e").excerpt() == "the message"


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("key", [KEY, "k+3/y=&" * 6], ids=["plain", "percent"])
def test_no_excerpt_shows_part_of_a_key_that_the_cut_splits(key: str, copies: int) -> None:
    # White space is removed, so the place of the cut can be within the first 200 characters.
    encoded = quote(key, safe="")
    pieces = [encoded[first : first + 5] for first in range(len(encoded) - 4)]
    for padding in range(8192 - len(encoded) * copies - 2, 8192 + 2):
        shown = respond(" " * padding + encoded * copies + " " * 8192, secret=key).excerpt()
        assert not [piece for piece in pieces if piece in shown], padding


@pytest.mark.parametrize(
    "body",
    [
        f'{{"source": "{STREAM}"}}',
        f"'{STREAM}' and {STREAM}",
        "rtsp://x/W1?quality=1&TOKEN=sneaky-firefox-288&x=1",
        " " * 8175 + STREAM * 3,
        "x" * 178 + STREAM,
    ],
)
def test_no_excerpt_shows_a_stream_token(body: str) -> None:
    assert not re.search("sneaky|firefox", respond(body).excerpt() + respond(body, secret="").excerpt())


# ---- version and IDs -----------------------------------------------------------------------------


def test_the_documented_samples_of_version_devices_and_sessions_are_parsed() -> None:
    assert parse_version(sample("version.json")) == "1.0.1"
    assert parse_ids(sample("devices.json")) == ["Wb8fabc31378ce07", "W022abc5be35bb72", "Weea288bc1faaddd"]
    assert parse_ids(sample("sessions.json")) == ["1595418530512", "1595452859625", "1595492155987"]
    assert parse_ids(respond(b"[]")) == []
    assert parse_ids(respond(b'\xef\xbb\xbf ["a"]\n')) == ["a"]


@pytest.mark.parametrize(
    ("parse", "expected", "contents"),
    [
        (parse_version, "a JSON string", [b"1.0", b"null", b"[]", b'{"version": "1.0.1"}', b"true"]),
        (parse_ids, "a JSON array of strings", [b'"W1"', b"[1]", b'["W1", null]', b'[["W1"]]', b'{"devices": []}']),
    ],
)
def test_other_json_than_a_version_or_ids_is_unexpected(parse: Any, expected: str, contents: list[bytes]) -> None:
    for content in contents:
        with pytest.raises(UnexpectedResponseError, match=f"not {expected}.*connection's host"):
            parse(respond(content))


def test_a_session_id_may_be_an_integer_and_null_is_skipped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    body = b'["1595418530512", 1595452859625, null]'
    for _ in range(2):
        assert parse_sessions(respond(body)) == ["1595418530512", "1595452859625"]
    assert caplog.text.count("Skipping") == 1
    with pytest.raises(UnexpectedResponseError, match="not a JSON array of strings"):
        parse_sessions(respond(b'[{"id": "1595418530512"}]'))


@pytest.mark.parametrize(
    ("parse", "content"),
    [
        (parse_version, KEY),
        (parse_ids, ["W1", KEY]),
        (partial(parse_page, number=1), compact([[KEY]], ["timestamp"])),
        (partial(parse_page, number=1), compact([["x"]], [KEY])),
        (partial(parse_page, number=1, endpoint="tableau"), tableau([{"zones": [{"a": f"x{KEY}"}]}])),
    ],
)
def test_a_response_that_contains_the_key_is_refused(parse: Any, content: Any) -> None:
    with pytest.raises(UnexpectedResponseError, match="returned the API key in its JSON") as caught:
        parse(respond(json.dumps(content).encode()))
    assert KEY not in f"{caught.value} {vars(caught.value)}"
    with pytest.raises(UnexpectedResponseError, match="returned the API key in its JSON"):
        parse(respond(json.dumps(content).replace("l", r"\u006C").encode()))


NOT_JSON = [
    *(b"", b" ", b"<html>Maintenance</html>", b"{", b'"1.0', b'["W1"', b"[1,]", b"nul", b"NaN", b"Infinity"),
    *(b"'W1'", b"\x1f\x8b\x08\x00", b'["\xff"]', b'["W1"]]', b'"1.0"x'),
]


@pytest.mark.parametrize("parse", [parse_version, parse_ids, lambda response: parse_page(response, 1)])
def test_a_body_that_is_not_json_is_a_transport_error(parse: Any) -> None:
    whole = sample("analytics_compact.json").body.strip()
    cut_or_continued = [*(whole[:size] for size in (1, 10, 100, -1)), *(whole + end for end in (b"}", b"{}", b"x}"))]
    for body in NOT_JSON + cut_or_continued:
        with pytest.raises(TransportError, match="not JSON: " + ("empty body" if not body.strip() else "")) as caught:
            parse(respond(body))
        assert (caught.value.reason, caught.value.status, caught.value.url) == ("not_json", 200, URL)


# ---- pages ---------------------------------------------------------------------------------------


def test_the_documented_samples_of_pages_are_parsed() -> None:
    page = parse_page(sample("analytics_compact.json"), 1)
    assert (page.number, page.total_pages, len(page.rows), page.ragged, page.dropped) == (1, 1, 2, False, ())
    assert page.records()[1] == {
        "class_name": "person",
        "count": 3,
        "device_id": "Wabcdb35be35bb72",
        "frame_number": 110252,
        "model_id": "starter-ai",
        "session_id": "1597622730878",
        "source_file_name": STREAM,
        "timestamp": "2020-08-17T02:08:49.000Z",
    }
    other = parse_page(sample("analytics_tableau.json"), 1, "tableau")
    assert page.records()[0] == other.records()[0]  # both samples have this row
    assert page.keys != other.keys
    metrics = parse_page(sample("analytics_metrics.json"), 1)
    assert [record["class_name"] for record in metrics.records()] == [
        *("this_frame_persons_count", "number_of_groups", "group_pixel_size", "total_count")
    ]


def test_values_keep_their_types() -> None:
    values = [1, 1.0, 0.1, -0.0, None, True, "", 'ü\n"', [1, {"a": None}], {"b": []}, 2**63, -(2**70), 1e300]
    record = {f"k{index}": value for index, value in enumerate(values)}
    for endpoint, content in (("compact", compact([values], list(record))), ("tableau", tableau([record]))):
        [row] = parse_page(respond(content), 1, endpoint).rows  # type: ignore[arg-type]
        assert list(row) == values
        assert list(map(type, row)) == list(map(type, values))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b" \r\n\t"])
def test_a_byte_order_mark_white_space_and_further_fields_are_allowed(start: bytes) -> None:
    content = {**compact([[1]], ["a"]), "next": None, "generated": {"by": "x"}}
    assert parse_page(respond(start + json.dumps(content).encode() + b"\n"), 1).records() == [{"a": 1}]


@pytest.mark.parametrize(
    ("endpoint", "content", "field", "row"),
    [
        *(("compact", content, None, None) for content in ([], b'"text"', 5)),
        *(
            ("compact", compact([[1]], ["a"], total), "total_num_pages", None)
            for total in (-1, 1.5, "1", None, True, 2**63, 10**400)
        ),
        ("compact", {"keys": ["a"], "data": []}, "total_num_pages", None),
        *(("compact", compact([], keys), "keys", None) for keys in (["a", 1], "a", None)),
        ("compact", {"total_num_pages": 1, "data": [[1]]}, "keys", None),
        *(("compact", compact(rows, ["a"]), "data", None) for rows in (None, {"0": [1]}, "a")),
        *(("compact", content, "data", None) for content in ({}, {"message": "Internal error"})),
        ("compact", compact([[1], [2], {"a": 3}], ["a"]), "data", 2),
        ("compact", compact([[1], None], ["a"]), "data", 1),
        ("compact", tableau([{"a": 1}]), "data", 0),
        ("tableau", {"data": []}, "total_num_pages", None),
        ("tableau", {"total_num_pages": 1}, "data", None),
        ("tableau", tableau([], "1"), "total_num_pages", None),
        ("tableau", tableau([{"a": 1}, [1]]), "data", 1),
        ("tableau", tableau([{"a": 1}, {"a": 2}, None]), "data", 2),
        ("tableau", compact([[1]], ["a"]), "data", 0),
    ],
)
def test_json_that_is_not_a_page_is_unexpected_and_its_field_and_row_are_named(
    endpoint: Any, content: Any, field: str | None, row: int | None
) -> None:
    with pytest.raises(UnexpectedResponseError, match="connection's host") as caught:
        parse_page(respond(content), 3, endpoint)
    error = caught.value
    assert (error.page, error.field, error.row, error.url, error.status) == (3, field, row, URL, 200)
    assert respond(content).excerpt() in str(error)
    assert row is None or f"row {row}" in str(error)


@pytest.mark.parametrize(
    "content",
    [
        compact([[STREAM, KEY, "x" * 1000, 4]], ["a", "b", "c"]),
        compact([], [KEY, KEY, *map(str, range(1000))]),
        tableau([{"source": f"{STREAM} {KEY}", "rest": "x" * 1000}]),
    ],
)
def test_errors_about_a_page_are_short_and_show_neither_key_nor_token(content: Any) -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        parse_page(respond(content), 1)
    message = str(caught.value)
    assert len(message) < 600
    frames = [entry.locals for entry in caught.traceback[1:]]  # some log handlers print them
    for text in (message, repr(frames)):
        assert "sneaky" not in text
        assert KEY not in text


@pytest.mark.parametrize(
    ("endpoint", "content", "message", "facts"),
    [
        *(
            (
                "compact",
                compact([[1, 2], row, [3]], ["a", "b"]),
                f"row 1 of page 3 has {len(row)} values for 2 keys",
                {"row": 1, "value": row},
            )
            for row in ([], [1], [1, 2, 3])
        ),
        ("compact", compact([[1, 2]], ["a", "a"]), "lists a key twice: 'a'", {"field": "keys"}),
        *(
            (endpoint, content, "total_num_pages 0, but 1 rows", {"field": "total_num_pages", "value": 0})
            for endpoint, content in (("compact", compact([[1]], ["a"], 0)), ("tableau", tableau([{}], 0)))
        ),
    ],
)
def test_a_page_that_contradicts_itself_is_unexpected(
    endpoint: Any, content: Any, message: str, facts: dict[str, Any]
) -> None:
    with pytest.raises(UnexpectedResponseError, match=message) as caught:
        parse_page(respond(content), 3, endpoint)
    assert vars(caught.value).items() >= {"page": 3, **facts}.items()


@pytest.mark.parametrize(
    "value",
    ["1e400", "9" * 5000, '"\\ud800"', "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5],
    ids=["1e400", "5000 digits", "half a surrogate pair", "100000 arrays", "100000 objects"],
)
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_json_with_a_value_that_cannot_be_held_is_unexpected_and_not_retried(endpoint: Any, value: str) -> None:
    rows = f"[[{value}]]" if endpoint == "compact" else f'[{{"a":{value}}}]'
    with pytest.raises(UnexpectedResponseError):
        parse_page(respond(f'{{"keys":["a"],"total_num_pages":1,"data":{rows}}}'), 1, endpoint)


# ---- ragged rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "ragged"),
    [
        ([{"a": 1, "b": None}, {"c": 3}, {}, {"b": 2, "a": 4}], True),
        ([{"a": 1}, {"b": 2}], True),
        ([{"a": 1, "b": 2}, {"a": 1, "c": 3}], True),
        ([{"a": [1, {"b": 2}], "c": 2**64}, {}], True),
        ([{"a": 1}, {"a": None}], False),
        ([{"a": 1, "b": 2}, {"b": 3, "a": 4}], False),
        ([{"ä\n": "\U0001f600\u0000", "b": 1e300}], False),
        ([{}, {}], False),
        ([], False),
    ],
)
def test_rows_keep_exactly_the_keys_they_have_also_when_they_are_rendered_again(
    records: list[dict[str, Any]], ragged: bool
) -> None:
    page = parse_page(respond(tableau(records)), 1, "tableau")
    assert page.ragged is ragged
    assert page.records() == records
    for key in page.keys:
        assert page.column(key) == [record.get(key) for record in records]
    assert page.column("unknown") is None
    body, rendered_as = render_page(page)
    assert parse_page(respond(body), 1, rendered_as) == page


def test_the_row_index_counts_the_dropped_rows_of_the_response() -> None:
    rows = [(1,), (3,), (5,)]
    page = Page(1, 1, ("a",), rows, dropped=(0, 2, 4))
    assert [page.row_index(index) for index in range(3)] == [1, 3, 5]
    assert [Page(1, 1, ("a",), rows).row_index(index) for index in range(3)] == [0, 1, 2]


# ---- digests -------------------------------------------------------------------------------------

ROWS = [
    {"a": 1, "b": {"x": 1, "y": 2}, "source_file_name": STREAM, "timestamp": "2020-08-17T02:08:49.500Z"},
    {"a": 2, "b": None, "source_file_name": "recording.mp4", "timestamp": "not a time"},
]


def digest(records: list[dict[str, Any]], endpoint: Any = "tableau", number: int = 1, total: int = 1) -> bytes:
    keys = list(records[0])
    rows = [[record[key] for key in keys] for record in records]
    content = compact(rows, keys, total) if endpoint == "compact" else tableau(records, total)
    return parse_page(respond(content), number, endpoint).digest


def changed(**values: Any) -> list[dict[str, Any]]:
    return [{**ROWS[0], **values}, ROWS[1]]


@pytest.mark.parametrize(
    "same",
    [
        [dict(reversed(row.items())) for row in ROWS],
        ROWS[::-1],
        changed(b={"y": 2, "x": 1}),
        *(changed(source_file_name=f"Wabcdb35be35bb72?{query}") for query in ("token=brave-otter-100", "sig=2")),
        *(changed(a=1.0), [{**row, "c": None} for row in ROWS], [ROWS[0], {**ROWS[1], "a": 2.0}]),
        *(changed(timestamp=f"2020-08-17T{text}") for text in ("02:08:49.5Z", "02:08:49.500", "04:08:49.50+02:00")),
    ],
)
def test_a_digest_ignores_what_the_api_may_spell_differently(same: Any) -> None:
    for endpoint in ("compact", "tableau"):
        assert digest(same, endpoint, number=7, total=9) == digest(ROWS)


@pytest.mark.parametrize(
    "other",
    [
        ROWS[:1],
        [*ROWS, ROWS[1]],
        *(changed(**{key: value}) for key, value in (("a", 3), ("a", "1"), ("a", None), ("b", {"x": 1}), ("c", 1))),
        *(changed(source_file_name=name) for name in ("Wother?token=sneaky-firefox-288", "Wabcdb35be35bb72?left")),
        *(changed(timestamp=text) for text in ("2020-08-17T02:08:49.501Z", "2020-08-17T02:08:49.500+01:00", "x")),
    ],
)
def test_a_digest_changes_with_the_data(other: Any) -> None:
    assert parse_page(respond(tableau(other)), 1, "tableau").digest != digest(ROWS)


# ---- stream tokens -------------------------------------------------------------------------------


DEEP = json.loads("[" * 900 + "]" * 900)


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        (STREAM, "Wabcdb35be35bb72?token=***"),
        ("W1?token=a&token=b", "W1?token=***&token=***"),
        ("W1?q=1&token=abc&x=2", "W1?q=1&token=***&x=2"),
        *(("W1?token=a%26b&x=2", "W1?token=***&x=2"), ("W1?u=%3Ftoken%3Da%26x%3D1&y=2", "W1?u=%3Ftoken%3D***&y=2")),
        *(("W1?TOKEN=abc", "W1?TOKEN=***"), ("W1?token=", "W1?token=***"), ("W1?token=a b'c\"d", "W1?token=***")),
        *(
            (f"W1?{name}=a&x=2", f"W1?{name}=***&x=2")
            for name in ("mytoken", "access_token", "stream-token", "token[]")
        ),
        *((name, name) for name in ("W1?tokens=abc", "token=abc", "W9d3f1bcad8e8abd-1597644023.mp4", "")),
    ],
)
def test_only_the_token_of_a_name_is_masked(name: str, masked: str) -> None:
    assert mask_token(name) == masked
    assert mask_token(masked) == masked


@pytest.mark.parametrize(
    ("endpoint", "content"),
    [
        ("compact", compact([[STREAM, "x"], [None, STREAM], ["W2?token=secret", 1.5], [5, 2**70], [[STREAM], 3]],
                            ["source_file_name", "model_id"])),
        ("compact", compact([[{"a": [1, {STREAM: f"{STREAM}&b=\u00e9\\"}]}], [DEEP]], ["zone"])),
        ("compact", compact([["%3FTOKEN%3Dsecret"], ["%253Ftoken%253Dsecret"]], ["zone"])),
        ("compact", compact([["x"]], [STREAM])),
        ("tableau", tableau([{"source_file_name": STREAM}, {"model_id": STREAM}, {"b": ["rtsp://x/#token=secret&b=1"]}])),
    ],
)  # fmt: skip
def test_tokens_are_masked_in_all_strings_at_any_depth(endpoint: Any, content: Any) -> None:
    response = respond(content)
    page = parse_page(response, 1, endpoint)
    assert may_have_stream_tokens(response)
    masked = mask_stream_tokens(page)
    assert mask_stream_tokens(masked) is masked
    expected = json.dumps(page.records())
    for token in ("sneaky-firefox-288", "secret"):
        expected = expected.replace(token, "***")
    assert masked.records() == json.loads(expected)
    assert masked.digest == page.digest


@pytest.mark.parametrize(
    "content",
    [
        *(compact([[name]], ["source_file_name"]) for name in ("W1?token=***", "a.mp4", None)),
        *(compact([[["mytoken=a"], {"token": 1}]], ["a", "b"]), compact([], [])),
    ],
)
def test_a_page_without_tokens_is_returned_unchanged(content: dict[str, Any]) -> None:
    page = parse_page(respond(content), 1)
    assert mask_stream_tokens(page) is page


def test_a_token_is_found_however_json_spells_it() -> None:
    for spelling in (r"W1?t\u006fken=secret", r"W1\u003FTOKEN\u003dsecret", r"W1?q=1\u0026token=sec\u0072et"):
        response = respond(b'{"keys": ["a"], "total_num_pages": 1, "data": [["%s"]]}' % spelling.encode())
        assert may_have_stream_tokens(response)
        [row] = mask_stream_tokens(parse_page(response, 1)).rows
        assert row[0].endswith("=***")
        assert "secret" not in respond(spelling.encode()).excerpt() or "u006f" in spelling or "u0072" in spelling
    assert not may_have_stream_tokens(respond(compact([["a.mp4"]], ["source_file_name"])))
