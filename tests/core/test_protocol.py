"""The API on the wire: what is asked, what is refused, and what becomes of every kind of answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, formatdate
from typing import Any
from urllib.parse import quote, unquote

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core.moments import MIN_EPOCH_MS, parse_timestamp, to_epoch_ms
from airflow_provider_unleash.core.protocol import (
    API_URL,
    DEVICES_PATH,
    EXCERPT_CHARS,
    SESSIONS_PATH,
    VERSION_PATH,
    Page,
    Response,
    auth_headers,
    check_api_key,
    check_device_id,
    has_stream_tokens,
    is_loopback,
    mask_stream_tokens,
    mask_token,
    parse_base_url,
    parse_ids,
    parse_page,
    parse_retry_after,
    parse_version,
    quote_device_id,
    raise_for_status,
    window_path,
)
from airflow_provider_unleash.core.sessions import parse_session_start
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
from airflow_provider_unleash.simulator import Simulator
from tests.support.paths import SAMPLES

URL = "https://api.unleashlive.com/v1/analytics/W1/1597622400000/1597708800000/3"
KEY = "ul_pat_0123456789abcdefghijklmnopqrstuvwxyz"
STREAM = "Wabcdb35be35bb72?token=sneaky-firefox-288"
UTC = timezone.utc
# The same examples in each run: a red run can be repeated.
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def answer(
    content: Any = b"", status: int = 200, headers: Mapping[str, str] | None = None, secret: str = KEY
) -> Response:
    """Build an answer; bytes are the body, a text too, anything else becomes JSON."""
    if isinstance(content, str):
        content = content.encode()
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Response(URL, status, headers or {}, body, secret)


def sample(name: str) -> Response:
    return answer((SAMPLES / name).read_bytes())


def compact(rows: list[list[Any]], keys: list[str], total: Any = 1) -> dict[str, Any]:
    return {"keys": keys, "total_num_pages": total, "data": rows}


def tableau(records: list[dict[str, Any]], total: Any = 1) -> dict[str, Any]:
    return {"total_num_pages": total, "data": records}


def shows_piece(secret: str, text: str, length: int = 5) -> bool:
    """Tell whether so many characters of the secret, in one piece, stand in the text."""
    return any(secret[first : first + length] in text for first in range(len(secret) - length + 1))


# ---- where the API is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("api.unleashlive.com", "https://api.unleashlive.com"),
        ("https://api.unleashlive.com", API_URL),
        ("https://api.unleashlive.com/", API_URL),
        ("  https://api.unleashlive.com \n", API_URL),
        ("HTTPS://API.unleashlive.com", "https://API.unleashlive.com"),
        ("api.unleashlive.com:8443", "https://api.unleashlive.com:8443"),
        ("gateway.example/unleash/", "https://gateway.example/unleash"),
        ("https://gateway.example:8443/a/b//", "https://gateway.example:8443/a/b"),
        ("10.0.0.7", "https://10.0.0.7"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://localhost:8642", "http://localhost:8642"),
        ("http://LOCALHOST", "http://LOCALHOST"),
        ("http://127.0.0.1:8642/", "http://127.0.0.1:8642"),
        ("http://127.9.8.7", "http://127.9.8.7"),
        ("http://[::1]:8642", "http://[::1]:8642"),
        ("localhost:8642", "https://localhost:8642"),
    ],
)
def test_a_base_url_is_https_unless_it_says_otherwise(given: str, url: str) -> None:
    assert parse_base_url(given) == url


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "no host name"),
        ("   ", "no host name"),
        ("https://", "no host name"),
        ("https:///v1", "no host name"),
        ("/v1/analytics", "no host name"),
        ("https://two words", "no host name"),
        ("http://[::1%25lo]", "no host name"),
        ("ftp://api.unleashlive.com", "neither https nor http"),
        ("file:///etc/passwd", "neither https nor http"),
        ("https://user:word@api.unleashlive.com", "carries credentials"),
        ("https://user@api.unleashlive.com", "carries credentials"),
        ("https://@api.unleashlive.com", "carries credentials"),
        ("http://127.0.0.1\\@evil.example", "carries credentials"),
        ("https://api.unleashlive.com?key=1", "query or a fragment"),
        ("https://api.unleashlive.com/v1#top", "query or a fragment"),
        ("https://api.unleashlive.com:99999", "Port"),
        ("https://api.unleashlive.com:http", "Port"),
        ("https://[::1", "IPv6"),
        ("https://a\u2100b.example", "NFKC"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused_with_the_reason(given: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(reason)) as caught:
        parse_base_url(given)
    assert caught.value.argument == "host"
    assert API_URL in str(caught.value)


@pytest.mark.parametrize("given", ["https:/api.unleashlive.com", "http:/127.0.0.1:8642", "http://[::1]evil.example"])
def test_a_mistyped_base_url_is_refused_and_not_read_as_another_host(given: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_base_url(given)


@pytest.mark.parametrize(
    "host",
    [
        *("api.unleashlive.com", "10.0.0.7", "192.168.1.1:8642", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("127.1", "2130706433", "0.0.0.0", "[::]", "[2001:db8::1]"),
    ],
)
def test_http_is_for_loopback_unless_it_is_allowed(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"unencrypted.*use https.*allow_http"):
        parse_base_url(f"http://{host}")
    assert parse_base_url(f"http://{host}", allow_http=True) == f"http://{host}"


def test_allowing_http_does_not_make_it_the_default() -> None:
    assert parse_base_url("gateway.example", allow_http=True) == "https://gateway.example"


def test_an_error_about_the_host_does_not_repeat_credentials() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_base_url(f"https://user:{KEY}@api.unleashlive.com")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("localhost", True), ("LocalHost", True), ("127.0.0.1", True), ("127.255.0.3", True), ("::1", True)),
        *(("128.0.0.1", False), ("::2", False), ("localhost.localdomain", False), ("", False), ("0.0.0.0", False)),
    ],
)
def test_only_names_and_addresses_of_this_machine_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# ---- the key -----------------------------------------------------------------------------------


def test_a_key_comes_without_the_white_space_around_it() -> None:
    assert check_api_key(f"  {KEY}\n") == KEY


@pytest.mark.parametrize("key", [None, "", "  ", "\n\t"])
def test_without_a_key_the_error_says_where_it_belongs(key: str | None) -> None:
    with pytest.raises(InvalidArgumentError, match="connection's password") as caught:
        check_api_key(key)
    assert caught.value.argument == "password"


@pytest.mark.parametrize(
    "key", ["two words", "line\nbreak", "line\r\nX-Other: 1", "tab\tin", "schlüssel", "a\x00b", "a\u200bb"]
)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
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
        ("ul_pat_abc", "bearer", {"Authorization": "Bearer ul_pat_abc"}),
        ("abc", "api_key", {"x-api-key": "abc"}),
        ("ul_pat_abc", "api_key", {"x-api-key": "ul_pat_abc"}),
    ],
)
def test_the_key_goes_in_exactly_one_header(key: str, auth: Any, headers: dict[str, str]) -> None:
    assert auth_headers(key, auth) == headers


def test_an_answer_does_not_show_the_key_when_it_is_printed() -> None:
    assert KEY not in repr(answer(b"{}"))


# ---- devices, moments, paths -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_id", "segment"),
    [
        ("Wb8fabc31378ce07", "Wb8fabc31378ce07"),
        ("a b", "a%20b"),
        ("a%2Fb", "a%252Fb"),
        ("%2e%2e", "%252e%252e"),
        ("...", "..."),
        (".hidden", ".hidden"),
        ("a..b", "a..b"),
        ("kamera-ü", "kamera-%C3%BC"),
        ("a?b#c&d=e", "a%3Fb%23c%26d%3De"),
        ("a+b;c:d@e", "a%2Bb%3Bc%3Ad%40e"),
        ("a\u2044b", "a%E2%81%84b"),  # the fraction slash is no slash
        ("a\uff0fb", "a%EF%BC%8Fb"),  # nor is the full-width one
        ("\uff0e\uff0e", "%EF%BC%8E%EF%BC%8E"),
    ],
)
def test_a_device_id_becomes_one_segment_of_the_path(device_id: str, segment: str) -> None:
    assert check_device_id(device_id) == device_id
    assert quote_device_id(device_id) == segment


@pytest.mark.parametrize(
    ("device_id", "problem"),
    [
        *(("a/b", "slash"), ("/", "slash"), ("../x", "slash"), ("a\\b", "slash"), ("..\\x", "slash")),
        *((".", "dot segment"), ("..", "dot segment")),
        *(("a\nb", "control"), ("a\x00", "control"), ("\x7f", "control"), ("a\tb", "control")),
        *(("a\u200bb", "invisible"), ("\u202eabc", "invisible"), ("\ufeffabc", "invisible"), ("a\ud800", "invisible")),
        *((" a", "white space"), ("a ", "white space"), (" ", "white space")),
    ],
)
def test_a_device_id_that_could_change_a_path_is_refused(device_id: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        quote_device_id(device_id)
    assert isinstance(caught.value, ValueError)
    assert caught.value.argument == "device_id"
    assert "UnleashListDevicesOperator" in str(caught.value)


@pytest.mark.parametrize("device_id", ["", None, 5, b"W1", ["W1"]])
def test_a_device_id_that_is_no_text_is_refused(device_id: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a text"):
        check_device_id(device_id)


@PROPERTY
@given(st.text(min_size=1))
def test_any_device_id_is_refused_or_stays_inside_its_segment(device_id: str) -> None:
    try:
        segment = quote_device_id(device_id)
    except InvalidArgumentError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", segment)
    assert segment not in (".", "..")
    assert unquote(segment) == device_id


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("compact", "/v1/analytics/W1/1597622400000/1597708800000/3"),
        ("tableau", "/v1/analytics/tableau/W1/1597622400000/1597708800000/3"),
    ],
)
def test_the_path_of_a_page_is_the_documented_one(endpoint: Any, path: str) -> None:
    assert f"{window_path('W1', 1597622400000, 1597708800000, endpoint)}/3" == path


def test_the_path_of_a_page_is_not_made_from_a_bad_device_id() -> None:
    with pytest.raises(InvalidArgumentError):
        window_path("../sessions", 1597622400000, 1597708800000)


@pytest.mark.parametrize(
    ("moment", "epoch_ms"),
    [
        (1597622400000, 1597622400000),
        (MIN_EPOCH_MS, MIN_EPOCH_MS),
        (datetime(2020, 8, 17, tzinfo=UTC), 1597622400000),
        (datetime(2020, 8, 17, 2, tzinfo=timezone(timedelta(hours=2))), 1597622400000),
        (datetime(2020, 8, 17, 0, 0, 0, 999, tzinfo=UTC), 1597622400000),
        (datetime(2020, 8, 17, 0, 0, 0, 1999, tzinfo=UTC), 1597622400001),
        (datetime(2020, 8, 16, 23, 59, 59, 999999, tzinfo=UTC), 1597622399999),
        (datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), -1),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (pendulum.datetime(2020, 8, 17, 2, tz="Europe/Berlin"), 1597622400000),
        (pendulum.datetime(2020, 10, 25, 2, 30, tz="Europe/Berlin", fold=0), 1603585800000),
        (pendulum.datetime(2020, 10, 25, 2, 30, tz="Europe/Berlin", fold=1), 1603589400000),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), 253402300799999),
    ],
)
def test_a_moment_is_floored_to_epoch_milliseconds(moment: datetime | int, epoch_ms: int) -> None:
    assert to_epoch_ms(moment, "start") == epoch_ms


@pytest.mark.parametrize(
    ("moment", "problem"),
    [
        (datetime(2020, 8, 17), "no timezone"),
        (pendulum.naive(2020, 8, 17), "no timezone"),
        (1597622400, "seconds?"),
        (MIN_EPOCH_MS - 1, "seconds?"),
        (0, "seconds?"),
        (-1597622400000, "too small"),
        (True, "neither"),
        (1597622400000.0, "neither"),
        ("2020-08-17", "neither"),
        (None, "neither"),
    ],
)
def test_a_moment_that_could_be_misread_is_refused(moment: Any, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(problem)) as caught:
        to_epoch_ms(moment, "until")
    assert caught.value.argument == "until"
    assert str(caught.value).startswith("until=")


@pytest.mark.parametrize(
    "moment",
    [
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-5))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))),
        253402300800000,  # the year 10000
        1597622400000000,  # microseconds
    ],
)
def test_a_moment_beyond_the_calendar_is_an_invalid_argument(moment: datetime | int) -> None:
    with pytest.raises(InvalidArgumentError):
        to_epoch_ms(moment, "start")


# ---- statuses ----------------------------------------------------------------------------------


def raised(status: int, content: Any = b"", headers: Mapping[str, str] | None = None) -> UnleashError:
    with pytest.raises(UnleashError) as caught:
        raise_for_status(answer(content, status, headers))
    return caught.value


def test_200_raises_nothing() -> None:
    raise_for_status(answer(b"whatever"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, AuthenticationError) for status in (401, 403)),
        *((status, NotFoundError) for status in (404,)),
        *((status, RateLimitError) for status in (429,)),
        *((status, ServerError) for status in (408, 425, 500, 501, 502, 503, 504, 520, 599)),
        *((status, BadRequestError) for status in (400, 402, 405, 406, 409, 410, 413, 418, 422, 451, 499)),
        *((status, BadRequestError) for status in (300, 301, 302, 303, 304, 307, 308)),
        *((status, UnexpectedResponseError) for status in (100, 201, 202, 204, 206)),
    ],
)
def test_every_other_status_is_its_type_of_error(status: int, kind: type[UnleashError]) -> None:
    error = raised(status, {"message": "said the server"})
    assert type(error) is kind
    assert isinstance(error, TransientError) is (status in (408, 425, 429) or status >= 500)
    assert isinstance(error, PermanentError) is not isinstance(error, TransientError)
    assert (error.status, error.url) == (status, URL)
    assert URL in str(error)
    assert str(status) in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 503, 204])
def test_an_error_repeats_what_the_server_said(status: int) -> None:
    assert "Forbidden, says the gateway" in str(raised(status, {"message": "Forbidden, says the gateway"}))


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_an_error_without_a_body_says_so(status: int) -> None:
    assert "nothing more" in str(raised(status))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_tells_that_tokens_expire_and_where_new_ones_are_made(status: int) -> None:
    message = str(raised(status))
    for advice in ("expires", "30 days", "Your Profile", "Developers", "Viewer", "connection's password"):
        assert advice in message


@pytest.mark.parametrize("header", ["Location", "location", "LOCATION"])
def test_a_redirect_names_where_it_points_and_is_not_followed(header: str) -> None:
    error = raised(302, headers={header: "https://login.example/"})
    assert isinstance(error, BadRequestError)
    assert error.location == "https://login.example/"
    assert "https://login.example/" in str(error)
    assert "connection's host" in str(error)


def test_a_redirect_to_nowhere_is_told_as_such() -> None:
    assert "nowhere" in str(raised(301))


@pytest.mark.parametrize("shown", [KEY, quote("k+y/0123456789=", safe="")])
def test_a_redirect_that_repeats_the_key_does_not_show_it(shown: str) -> None:
    redirect = Response(URL, 302, {"Location": f"https://evil.example/?key={shown}"}, b"", unquote(shown))
    with pytest.raises(BadRequestError) as caught:
        raise_for_status(redirect)
    assert shown not in str(caught.value)
    assert shown not in str(caught.value.location)
    assert "evil.example" in str(caught.value)


# ---- Retry-After -------------------------------------------------------------------------------

NOON = "Mon, 17 Aug 2020 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("1.5", 1.5), ("86400", 86400.0)),
        ("Mon, 17 Aug 2020 12:01:00 GMT", 60.0),
        ("Monday, 17-Aug-20 12:01:00 GMT", 60.0),
        ("Mon Aug 17 12:01:00 2020", 60.0),
        ("Mon, 17 Aug 2020 14:01:00 +0200", 60.0),
        ("Mon, 17 Aug 2020 11:59:00 GMT", 0.0),
        ("Sun, 17 Aug 1980 12:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_in_both_spellings_against_the_answers_own_date(value: str, seconds: float) -> None:
    assert parse_retry_after({"Retry-After": value, "Date": NOON}) == seconds
    assert parse_retry_after({"retry-after": value, "DATE": NOON}) == seconds


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("value", ["Mon Aug 17 12:01:00 2020", "Mon, 17 Aug 2020 12:01:00 GMT"])
def test_a_date_in_retry_after_does_not_depend_on_the_zone_of_this_machine(
    value: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert parse_retry_after({"Retry-After": value, "Date": NOON}) == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("date", [None, "", "not a date"])
def test_without_a_date_retry_after_is_read_against_this_clock(date: str | None) -> None:
    headers = {"Retry-After": formatdate(time.time() + 600, usegmt=True)}
    seconds = parse_retry_after(headers if date is None else {**headers, "Date": date})
    assert seconds is not None
    assert 590 < seconds <= 600


@pytest.mark.parametrize(
    "value",
    [
        *("", "soon", "-5", "1e3", "inf", "nan", "0x10", "7, 8", "1:30", "9" * 5000, "Mon, 17 Aug"),
        *("Mon, 99 Aug 2020 12:00:00 GMT", "Mon, 17 Aug 99999 12:00:00 GMT", "17 Foo 2020 99:99:99 GMT"),
    ],
)
def test_a_retry_after_that_cannot_be_read_is_none(value: str) -> None:
    assert parse_retry_after({"Retry-After": value, "Date": NOON}) is None


def test_without_retry_after_there_is_no_wait() -> None:
    assert parse_retry_after({"Date": NOON}) is None


@PROPERTY
@given(st.text() | st.datetimes(timezones=st.just(UTC)).map(format_datetime), st.text())
def test_any_retry_after_is_seconds_or_none(value: str, date: str) -> None:
    seconds = parse_retry_after({"Retry-After": value, "Date": date})
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimitError), (503, ServerError), (425, ServerError)])
def test_a_transient_error_carries_the_seconds_to_wait(status: int, kind: type[TransientError]) -> None:
    error = raised(status, headers={"Retry-After": "17"})
    assert type(error) is kind
    assert error.retry_after == 17.0  # type: ignore[attr-defined]
    assert raised(status).retry_after is None  # type: ignore[attr-defined]


# ---- excerpts ----------------------------------------------------------------------------------


def test_an_excerpt_is_one_line_of_200_characters_at_most() -> None:
    excerpt = answer("<html>\n\t<h1>Down</h1>\r\n" + "x" * 100_000).excerpt()
    assert excerpt.startswith("<html> <h1>Down</h1> xxx")
    assert len(excerpt) == EXCERPT_CHARS == 200


@pytest.mark.parametrize("body", [b"\x00\x1b[31mred\x07", b"\xff\xfe\x00", "\u202eevil\u200b".encode(), b"\xc3"])
def test_an_excerpt_has_no_control_characters(body: bytes) -> None:
    assert answer(body).excerpt().isprintable()


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
@pytest.mark.parametrize("body", [KEY, f'{{"message": "bad key {KEY}"}}', f"<p>{KEY}</p>{KEY}", f"Bearer {KEY}\n"])
def test_no_error_shows_a_key_that_the_body_echoes(status: int, body: str) -> None:
    with pytest.raises(UnleashError) as caught:
        parse_version(answer(body)) if status == 200 else raise_for_status(answer(body, status))
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


@pytest.mark.parametrize(
    "encode",
    [str, lambda key: quote(key, safe=""), quote, lambda key: quote(key, safe="").lower()],
    ids=["plain", "percent", "percent-but-slash", "percent-lower-case"],
)
def test_no_excerpt_shows_a_key_in_another_spelling(encode: Any) -> None:
    key = "k3y+with/signs=and~more.0123"
    shown = answer(f"no access with ?key={encode(key)}&x=1", secret=key).excerpt()
    assert encode(key) not in shown
    assert shown.startswith("no access with ?key=***")


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("key", [KEY, "k+3/y=&" * 6], ids=["plain", "percent-encoded"])
def test_no_excerpt_shows_a_piece_of_a_key_that_the_cut_goes_through(key: str, copies: int) -> None:
    # White space shrinks to nothing, so what stands where reading ends can be within the first 200 characters.
    shown_as = quote(key, safe="")
    for padding in range(8192 - len(shown_as) * copies - 2, 8192 + 2):
        shown = answer(" " * padding + shown_as * copies + " " * 8192, secret=key).excerpt()
        assert not shows_piece(shown_as, shown), padding


def test_an_excerpt_of_an_answer_without_a_secret_is_the_body() -> None:
    assert answer(b"plain", secret="").excerpt() == "plain"
    assert answer(b"", secret="").excerpt() == ""


@pytest.mark.parametrize(
    "body",
    [
        f'{{"source": "{STREAM}"}}',
        f"{STREAM} and {STREAM}",
        "rtsp://x/W1?quality=1&TOKEN=sneaky-firefox-288&x=1",
        "'W1?token=sneaky-firefox-288'",
        " " * 8175 + STREAM * 3,
        "x" * 178 + STREAM,
    ],
)
def test_no_excerpt_shows_a_stream_token(body: str) -> None:
    assert "sneaky" not in answer(body).excerpt()
    assert "firefox" not in answer(body, secret="").excerpt()


# ---- answers of one text or a list -------------------------------------------------------------


def test_the_documented_version_devices_and_sessions_are_read() -> None:
    assert parse_version(sample("version.json")) == "1.0.1"
    assert parse_ids(sample("devices.json")) == ["Wb8fabc31378ce07", "W022abc5be35bb72", "Weea288bc1faaddd"]
    assert parse_ids(sample("sessions.json")) == ["1595418530512", "1595452859625", "1595492155987"]
    assert parse_ids(answer(b"[]")) == []
    assert parse_ids(answer(b'\xef\xbb\xbf ["a"]\n')) == ["a"]


@pytest.mark.parametrize("content", [b"1.0", b"null", b"[]", b'{"version": "1.0.1"}', b"true"])
def test_a_version_that_is_no_text_is_unexpected(content: bytes) -> None:
    with pytest.raises(UnexpectedResponseError, match="not a JSON string"):
        parse_version(answer(content))


@pytest.mark.parametrize("content", [b'"W1"', b"[1]", b'["W1", null]', b'[["W1"]]', b'{"devices": []}', b"null"])
def test_a_list_that_has_no_texts_is_unexpected(content: bytes) -> None:
    with pytest.raises(UnexpectedResponseError, match=r"JSON array of strings.*connection's host"):
        parse_ids(answer(content))


NOT_JSON = [
    *(b"", b" ", b"<html>Maintenance</html>", b"{", b'"1.0', b'["W1"', b"[1,]", b"nul", b"NaN", b"Infinity"),
    *(b"'W1'", b"\x1f\x8b\x08\x00", b'["\xff"]', b'["W1"]]', b'"1.0"x'),
]


@pytest.mark.parametrize("body", NOT_JSON)
@pytest.mark.parametrize(
    "parse",
    [parse_version, parse_ids, lambda got: parse_page(got, 1)],
    ids=["version", "ids", "check", "page"],
)
def test_a_body_that_is_not_json_is_a_transport_error(parse: Any, body: bytes) -> None:
    with pytest.raises(TransportError, match="not JSON") as caught:
        parse(answer(body))
    assert caught.value.reason == "not_json"
    assert (caught.value.status, caught.value.url) == (200, URL)


def test_an_empty_body_is_told_as_such() -> None:
    with pytest.raises(TransportError, match="an empty body"):
        parse_version(answer(b""))


@pytest.mark.parametrize("cut", [1, 10, 100, -1])
def test_a_page_cut_short_is_a_transport_error(cut: int) -> None:
    whole = sample("analytics_compact.json").body.strip()
    with pytest.raises(TransportError):
        parse_page(answer(whole[:cut]), 1)


@pytest.mark.parametrize("end", [b"}", b"]", b"{}", b"x}"])
def test_a_page_with_something_behind_it_is_a_transport_error(end: bytes) -> None:
    with pytest.raises(TransportError):
        parse_page(answer(sample("analytics_compact.json").body.strip() + end), 1)


# ---- pages -------------------------------------------------------------------------------------


def test_the_documented_pages_are_read() -> None:
    page = parse_page(sample("analytics_compact.json"), 1)
    assert (page.number, page.total_pages, len(page.rows), page.ragged, page.dropped) == (1, 1, 2, False, ())
    assert page.keys == tuple(sorted(page.keys))
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
    metrics = parse_page(sample("analytics_metrics.json"), 1)
    assert [record["class_name"] for record in metrics.records()] == [
        *("this_frame_persons_count", "number_of_groups", "group_pixel_size", "total_count"),
    ]


def test_both_endpoints_give_the_same_record_for_the_row_that_both_samples_have() -> None:
    short = parse_page(sample("analytics_compact.json"), 1)
    long = parse_page(sample("analytics_tableau.json"), 1, "tableau")
    assert short.records()[0] == long.records()[0]
    assert short.keys != long.keys
    assert set(short.keys) == set(long.keys)


@pytest.mark.parametrize("name", ["analytics_compact.json", "analytics_metrics.json"])
def test_both_endpoints_give_equal_records_and_digests_for_the_same_rows(name: str) -> None:
    short = parse_page(sample(name), 1)
    long = parse_page(answer(tableau([dict(reversed(record.items())) for record in short.records()])), 1, "tableau")
    assert short.records() == long.records()
    assert short.digest == long.digest


def test_both_endpoints_of_a_server_give_what_it_has() -> None:
    noon = 1_597_622_400_000 + 12 * 3_600_000
    with Simulator(page_size=40, reorder_keys=True) as sim:

        def read(path: str) -> Response:
            request = urllib.request.Request(sim.base_url + path, headers=auth_headers(sim.api_key))
            with urllib.request.urlopen(request, timeout=5) as response:
                return Response(response.url, response.status, dict(response.headers), response.read(), sim.api_key)

        assert parse_version(read(VERSION_PATH)) == "1.0.1"
        assert parse_ids(read(SESSIONS_PATH)) == sim.sessions()
        device = parse_ids(read(DEVICES_PATH))[0]
        expected = sim.rows(device, noon, noon + 3_600_000)
        for endpoint in ("compact", "tableau"):
            records: list[dict[str, Any]] = []
            number, total = 0, 1
            while number < total:
                number += 1
                page = parse_page(
                    read(f"{window_path(device, noon, noon + 3_600_000, endpoint)}/{number}"), number, endpoint
                )
                total = page.total_pages
                records += page.records()
            assert total > 1
            assert records == expected


@pytest.mark.parametrize("total", [0, 1])
@pytest.mark.parametrize(
    ("endpoint", "content"), [("compact", compact([], ["a"])), ("compact", compact([], [])), ("tableau", tableau([]))]
)
def test_a_page_without_rows_is_empty_whatever_it_says_of_the_pages(endpoint: Any, content: Any, total: int) -> None:
    page = parse_page(answer({**content, "total_num_pages": total}), 1, endpoint)
    assert (page.total_pages, page.rows, page.records()) == (total, [], [])


def test_values_come_as_they_are() -> None:
    values = [1, 1.0, 0.1, -0.0, None, True, "", 'ü\n"', [1, {"a": None}], {"b": []}, 2**63, -(2**70), 1e300]
    keys = [f"k{index}" for index in range(len(values))]
    for endpoint, content in (
        ("compact", compact([values], keys)),
        ("tableau", tableau([dict(zip(keys, values, strict=True))])),
    ):
        [row] = parse_page(answer(content), 1, endpoint).rows  # type: ignore[arg-type]
        assert row == values
        assert list(map(type, row)) == list(map(type, values))


def test_further_members_of_an_answer_are_no_problem() -> None:
    page = parse_page(answer({**compact([[1]], ["a"]), "next": None, "generated": {"by": "x"}}), 1)
    assert page.records() == [{"a": 1}]


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf", b" \r\n\t"])
def test_a_byte_order_mark_and_white_space_before_a_page_are_no_problem(body: bytes) -> None:
    page = parse_page(answer(body + json.dumps(compact([[1]], ["a"])).encode() + b"\n"), 1)
    assert page.records() == [{"a": 1}]


MISFITS: list[Any] = [
    ("compact", [], None, None),
    ("compact", b'"text"', None, None),
    ("compact", 5, None, None),
    ("compact", {}, None, "keys"),
    ("compact", {"keys": ["a"], "total_num_pages": 1}, None, "data"),
    ("compact", {"keys": ["a"], "data": []}, None, "total_num_pages"),
    ("compact", {"total_num_pages": 1, "data": []}, None, "keys"),
    ("compact", {"total_num_pages": 1, "data": [[1]]}, None, "keys"),
    ("compact", {"message": "Internal error"}, None, "keys"),
    *(("compact", compact([[1]], ["a"], total), None, "total_num_pages") for total in (-1, 1.5, "1", None, True, [1])),
    ("compact", compact([], ["a", 1]), None, "keys"),  # type: ignore[list-item]
    ("compact", {**compact([], []), "keys": "a"}, None, "keys"),
    ("compact", {**compact([], []), "data": None}, None, "data"),
    ("compact", {**compact([], []), "data": {"0": [1]}}, None, "data"),
    ("compact", compact([[1], [2], {"a": 3}], ["a"]), 2, "data"),  # type: ignore[list-item]
    ("compact", compact([[1], None], ["a"]), 1, "data"),  # type: ignore[list-item]
    ("compact", tableau([{"a": 1}]), 0, "data"),
    ("tableau", {"data": []}, None, "total_num_pages"),
    ("tableau", {"total_num_pages": 1}, None, "data"),
    ("tableau", tableau([], "1"), None, "total_num_pages"),
    ("tableau", tableau([{"a": 1}, [1]]), 1, "data"),  # type: ignore[list-item]
    ("tableau", tableau([{"a": 1}, {"a": 2}, None]), 2, "data"),  # type: ignore[list-item]
    ("tableau", compact([[1]], ["a"]), 0, "data"),
]


@pytest.mark.parametrize(("endpoint", "content", "row", "field"), MISFITS)
def test_json_that_is_no_page_is_unexpected_and_says_what_stood_there(
    endpoint: Any, content: Any, row: int | None, field: str | None
) -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        parse_page(answer(content), 3, endpoint)
    error, message = caught.value, str(caught.value)
    assert error.page == 3
    assert (error.url, error.status) == (URL, 200)
    assert answer(content).excerpt() in message
    assert field is None or field in message
    assert "connection's host" in message


@pytest.mark.parametrize(("endpoint", "content", "row", "field"), MISFITS)
def test_json_that_is_no_page_names_its_row(endpoint: Any, content: Any, row: int | None, field: str | None) -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        parse_page(answer(content), 3, endpoint)
    assert caught.value.row == row


@pytest.mark.parametrize("total", [-1, 1.5, "1", None])
def test_a_wrong_number_of_pages_is_named_as_the_field(total: Any) -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        parse_page(answer(compact([[1]], ["a"], total)), 3)
    assert caught.value.field == "total_num_pages"


@pytest.mark.parametrize("row", [[], [1], [1, 2, 3]])
def test_a_row_with_too_few_or_too_many_values_is_named(row: list[int]) -> None:
    with pytest.raises(UnexpectedResponseError, match=f"row 1 of page 3 has {len(row)} values for 2 keys") as caught:
        parse_page(answer(compact([[1, 2], row, [3]], ["a", "b"])), 3)
    error = caught.value
    assert (error.page, error.row, error.value) == (3, 1, row)


def test_the_error_of_a_row_shows_neither_token_nor_key_nor_all_of_it() -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        parse_page(answer(compact([[STREAM, KEY, "x" * 1000, 4]], ["a", "b", "c"])), 1)
    assert "sneaky" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert "x" * EXCERPT_CHARS not in str(caught.value)


def test_a_key_that_comes_twice_is_unexpected() -> None:
    with pytest.raises(UnexpectedResponseError, match="names a key twice") as caught:
        parse_page(answer(compact([[1, 2]], ["a", "a"])), 3)
    assert (caught.value.page, caught.value.field) == (3, "keys")


def test_the_error_of_a_key_that_comes_twice_shows_neither_the_api_key_nor_all_keys() -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        parse_page(answer(compact([], [KEY, KEY, *map(str, range(1000))])), 1)
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("endpoint", "content"), [("compact", compact([[1]], ["a"], 0)), ("tableau", tableau([{"a": 1}], 0))]
)
def test_rows_on_one_of_no_pages_are_unexpected(endpoint: Any, content: Any) -> None:
    with pytest.raises(UnexpectedResponseError, match="total_num_pages 0, but 1 rows") as caught:
        parse_page(answer(content), 3, endpoint)
    assert (caught.value.page, caught.value.field, caught.value.value) == (3, "total_num_pages", 0)


@pytest.mark.parametrize(
    "value",
    ["1e400", "-1e400", "9" * 5000, "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5],
    ids=["1e400", "-1e400", "5000 digits", "100000 lists", "100000 objects"],
)
@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_json_that_no_value_here_can_hold_is_unexpected_and_not_retried(endpoint: Any, value: str) -> None:
    rows = f"[[{value}]]" if endpoint == "compact" else f'[{{"a":{value}}}]'
    with pytest.raises(UnexpectedResponseError):
        parse_page(answer(f'{{"keys":["a"],"total_num_pages":1,"data":{rows}}}'), 1, endpoint)


PARTS = [
    *(b"[]", b"{}", b"1", b"0", b"-1", b"1.5", b"1e400", b"null", b'"a"', b'["a"]', b'["a","a"]', b'["timestamp","a"]'),
    *(b"[[1]]", b"[[1],[2,3]]", b'[{"a":1}]', b'[{"a":1},{"b":2}]', b'[[[]],[{"a":null}]]', b"[null]", b'["\xff"]'),
    *(b'[["W?token=x",1]]', b'[{"source_file_name":"W?token=x"},{}]', b'[["\\ud800"]]', b"[[NaN]]", b"9" * 30, b""),
]
PAGES_LIKE = st.tuples(*[st.sampled_from(PARTS)] * 3).map(
    lambda parts: b'{"keys":%s,"total_num_pages":%s,"data":%s}' % parts
)
BODIES = (
    st.binary()
    | st.sampled_from(PARTS)
    | PAGES_LIKE
    | st.tuples(PAGES_LIKE, st.integers(0, 80), st.integers(0, 9), st.binary(max_size=2)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[3] + drawn[0][drawn[1] + drawn[2] :]
    )
)


@PROPERTY
@given(BODIES, st.sampled_from(["compact", "tableau"]))
def test_any_body_is_a_page_or_an_error_of_this_package(body: bytes, endpoint: Any) -> None:
    try:
        page = parse_page(answer(body), 1, endpoint)
    except (TransportError, UnexpectedResponseError):
        return
    assert len(page.digest) == 32
    assert len(page.records()) == len(page.rows)
    mask_stream_tokens(page)


@PROPERTY
@given(BODIES, st.sampled_from([parse_ids, parse_version]))
def test_any_body_is_read_or_an_error_of_this_package(body: bytes, parse: Any) -> None:
    try:
        read = parse(answer(body))
    except (TransportError, UnexpectedResponseError):
        return
    assert read == json.loads(body)


@PROPERTY
@given(st.binary(max_size=400), st.integers(100, 599).filter(lambda status: status != 200), st.text(max_size=300))
def test_any_answer_of_another_status_is_an_error_of_this_package(body: bytes, status: int, location: str) -> None:
    error = raised(status, body, {"Location": location, "Retry-After": location})
    assert error.status == status


# ---- rows that differ --------------------------------------------------------------------------

RAGGED = [{"a": 1, "b": None}, {"c": 3}, {}, {"b": 2, "a": 4}]


def test_ragged_rows_keep_exactly_what_came() -> None:
    page = parse_page(answer(tableau(RAGGED)), 1, "tableau")
    assert page.ragged
    assert page.keys == ("a", "b", "c")
    assert page.records() == RAGGED
    assert page.column("a") == [1, None, None, 4]
    assert page.column("c") == [None, 3, None, None]
    assert page.column("d") is None


@pytest.mark.parametrize("records", [[{"a": 1}, {"b": 2}], [{"a": 1, "b": 2}, {"a": 1, "c": 3}], [{}, {"a": 1}]])
def test_rows_of_equal_length_with_other_keys_are_ragged_too(records: list[dict[str, Any]]) -> None:
    page = parse_page(answer(tableau(records)), 1, "tableau")
    assert page.ragged
    assert page.records() == records


@pytest.mark.parametrize(
    "records", [[{"a": 1}], [{"a": 1}, {"a": None}], [{"a": 1, "b": 2}, {"b": 3, "a": 4}], [{}, {}]]
)
def test_rows_with_the_same_keys_in_any_order_are_not_ragged(records: list[dict[str, Any]]) -> None:
    page = parse_page(answer(tableau(records)), 1, "tableau")
    assert not page.ragged
    assert page.records() == records
    assert page.column("a") == [record.get("a") for record in records] or records == [{}, {}]


@PROPERTY
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers() | st.text(max_size=3))))
def test_tableau_records_survive_whatever_keys_they_have(records: list[dict[str, Any]]) -> None:
    assert parse_page(answer(tableau(records)), 1, "tableau").records() == records


def test_the_index_of_a_row_in_its_answer_counts_those_that_were_dropped() -> None:
    rows: list[list[Any]] = [[index] for index in (1, 3, 5)]
    page = Page(1, 1, ("a",), rows, dropped=(0, 2, 4))
    assert [page.row_index(index) for index in range(3)] == [1, 3, 5]
    assert [Page(1, 1, ("a",), rows).row_index(index) for index in range(3)] == [0, 1, 2]


# ---- digests -----------------------------------------------------------------------------------


def digest(content: dict[str, Any], endpoint: Any = "compact", number: int = 1) -> bytes:
    return parse_page(answer(content), number, endpoint).digest


def test_a_digest_does_not_depend_on_the_order_of_keys_or_on_number_and_total() -> None:
    expected = digest(compact([[1, {"x": 1, "y": 2}]], ["a", "b"]))
    assert digest(compact([[{"y": 2, "x": 1}, 1]], ["b", "a"])) == expected
    assert digest(compact([[1, {"x": 1, "y": 2}]], ["a", "b"], 7), number=7) == expected
    assert digest(tableau([{"b": {"y": 2, "x": 1}, "a": 1}]), "tableau") == expected


@pytest.mark.parametrize(
    "other",
    [
        *(compact([[1, 3], [3, 4]], ["a", "b"]), compact([[3, 4], [1, 2]], ["a", "b"]), compact([[1, 2]], ["a", "b"])),
        *(compact([[1, 2], [3, 4]], ["a", "c"]), compact([[1, 2], [3, None]], ["a", "b"]), compact([], ["a", "b"])),
        *(compact([[1, "2"], [3, 4]], ["a", "b"]), compact([[1, 2], [3, 4], [3, 4]], ["a", "b"])),
    ],
)
def test_a_digest_tells_other_rows(other: dict[str, Any]) -> None:
    assert digest(other) != digest(compact([[1, 2], [3, 4]], ["a", "b"]))


# ---- stream tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        (STREAM, "Wabcdb35be35bb72?token=***"),
        ("W1?token=a&token=b", "W1?token=***&token=***"),
        ("W1?q=1&token=abc&x=2", "W1?q=1&token=***&x=2"),
        ("W1?TOKEN=abc", "W1?TOKEN=***"),
        ("W1?token=", "W1?token=***"),
        ("W1?token=a b'c\"d", "W1?token=***"),
        ("W1?token=***", "W1?token=***"),
        ("W1?mytoken=abc", "W1?mytoken=abc"),
        ("token=abc", "token=abc"),
        ("W9d3f1bcad8e8abd-1597644023-17-Aug-20-06-00-23.mp4", "W9d3f1bcad8e8abd-1597644023-17-Aug-20-06-00-23.mp4"),
        ("", ""),
    ],
)
def test_the_token_of_a_name_is_masked_and_nothing_else(name: str, masked: str) -> None:
    assert mask_token(name) == masked
    assert mask_token(masked) == masked


@pytest.mark.parametrize(
    ("endpoint", "content"),
    [
        ("compact", compact([[STREAM, "x"], [None, STREAM], [STREAM, "y"], ["W2?token=b", 1], [5, 2], [[STREAM], 3]],
                            ["source_file_name", "model_id"])),
        ("tableau", tableau([{"source_file_name": STREAM}, {"model_id": STREAM}, {"source_file_name": "W2?token=b"}])),
    ],
)  # fmt: skip
def test_tokens_are_masked_in_source_file_name_only(endpoint: Any, content: Any) -> None:
    page = parse_page(answer(content), 1, endpoint)
    before = page.records()
    assert has_stream_tokens(page)
    page = mask_stream_tokens(page)
    names = {STREAM: "Wabcdb35be35bb72?token=***", "W2?token=b": "W2?token=***"}

    def expected(record: dict[str, Any]) -> dict[str, Any]:
        name = record.get("source_file_name")
        return {**record, "source_file_name": names[name]} if isinstance(name, str) else record

    assert page.records() == list(map(expected, before))
    assert not has_stream_tokens(page)


@pytest.mark.parametrize(
    "content",
    [
        *(compact([["W1?token=***"]], ["source_file_name"]), compact([["a.mp4"]], ["source_file_name"])),
        *(compact([[None]], ["source_file_name"]), compact([[STREAM]], ["model_id"])),
        *(compact([], ["source_file_name"]), compact([], [])),
    ],
)
def test_a_page_without_open_tokens_is_left_as_it_is(content: dict[str, Any]) -> None:
    page = parse_page(answer(content), 1)
    assert not has_stream_tokens(page)
    assert mask_stream_tokens(page) is page


# ---- stamps and sessions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-08-17T02:08:49.000Z", datetime(2020, 8, 17, 2, 8, 49, tzinfo=UTC)),
        ("2020-08-17T02:08:49Z", datetime(2020, 8, 17, 2, 8, 49, tzinfo=UTC)),
        ("2020-08-17T02:08:49.123456Z", datetime(2020, 8, 17, 2, 8, 49, 123456, tzinfo=UTC)),
        ("2020-08-17T04:08:49.5+02:00", datetime(2020, 8, 17, 2, 8, 49, 500000, tzinfo=UTC)),
        ("2020-08-16T21:38:49-04:30", datetime(2020, 8, 17, 2, 8, 49, tzinfo=UTC)),
        ("2020-08-17T02:08:49.000", datetime(2020, 8, 17, 2, 8, 49, tzinfo=UTC)),
        ("2020-08-17 02:08:49Z", datetime(2020, 8, 17, 2, 8, 49, tzinfo=UTC)),
        ("2020-02-29T23:59:59.999Z", datetime(2020, 2, 29, 23, 59, 59, 999000, tzinfo=UTC)),
        ("2000-12-31T23:59:59.999Z", datetime(2000, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
    ],
)
def test_a_stamp_is_read_as_an_aware_moment(text: str, moment: datetime) -> None:
    read = parse_timestamp(text)
    assert read == moment
    assert read.tzinfo is not None


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "2020-08-17", "02:08:49", "1597630129000", "2020-02-30T00:00:00Z", "2019-02-29T00:00:00Z"),
        *("2020-08-17T24:00:00Z", "2016-12-31T23:59:60Z", "2020-08-17T02:08:49 UTC", "17 Aug 2020 02:08:49"),
    ],
)
def test_what_is_no_stamp_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="no RFC 3339 timestamp"):
        parse_timestamp(text)


@pytest.mark.parametrize("value", [None, 5, 5.0, True, [], {}])
def test_what_is_no_text_is_a_value_error_too(value: Any) -> None:
    with pytest.raises(ValueError, match="no RFC 3339 timestamp"):
        parse_timestamp(value)


@pytest.mark.parametrize("fraction", ["9999995", "999999999", "99999949"])
def test_a_stamp_finer_than_a_microsecond_is_not_rounded_up(fraction: str) -> None:
    # Rounded up, it lies on the end of a window that it is in, and is dropped as the next window's.
    assert parse_timestamp(f"2020-08-17T02:08:49.{fraction}Z") < datetime(2020, 8, 17, 2, 8, 50, tzinfo=UTC)


@pytest.mark.parametrize(
    ("session_id", "start"),
    [("1595418530512", 1595418530512), ("100000000000", 10**11), ("99999999999999", 10**14 - 1)],
)
def test_a_session_id_reads_as_its_start(session_id: str, start: int) -> None:
    assert parse_session_start(session_id) == start


@pytest.mark.parametrize(
    "session_id",
    [
        *("", "abc", "1595418530", "99999999999", "100000000000000", "-1595418530512", "+1595418530512", "1.5e12"),
        *("1595418530512 ", " 1595418530512", "1_595_418_530_512", "1595418530512-2", "0x1734b3a0a90"),
        *("١٥٩٥٤١٨٥٣٠٥١٢", "１５９５４１８５３０５１２", "9" * 5000),  # noqa: RUF001
    ],
)
def test_a_session_id_that_reads_as_no_start_is_unexpected(session_id: str) -> None:
    with pytest.raises(UnexpectedResponseError, match="known_sessions") as caught:
        parse_session_start(session_id)
    assert (caught.value.field, caught.value.value) == ("session_id", session_id)
    assert len(str(caught.value)) < 500


# ---- the layer ---------------------------------------------------------------------------------


def test_the_core_works_without_airflow() -> None:
    code = (
        "import sys; import airflow_provider_unleash.protocol, airflow_provider_unleash.window, "
        "airflow_provider_unleash.writers; sys.exit(int(any(name.split('.')[0] == 'airflow' for name in sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
