"""Requests and responses of the API on the wire. No I/O."""

from __future__ import annotations

import hashlib
import html
import ipaddress
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from airflow_provider_unleash.core.arguments import check_choice
from airflow_provider_unleash.core.log_once import log_once
from airflow_provider_unleash.core.moments import EPOCH, assume_utc, parse_timestamp_or_none, to_epoch_ms
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    BadRequestError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    ServerError,
    TransportError,
    UnexpectedResponseError,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

API_URL = "https://api.unleashlive.com"
PAT_PREFIX = "ul_pat_"
# Shorter ones are wrong, and occur in other texts by chance.
MIN_KEY_CHARS = 8

Auth = Literal["auto", "api_key", "bearer"]

Endpoint = Literal["compact", "tableau"]
ENDPOINT_PATHS: dict[Endpoint, str] = {"compact": "/v1/analytics", "tableau": "/v1/analytics/tableau"}

VERSION_PATH = "/v1/analytics/version"
DEVICES_PATH = "/v1/analytics/devices"
SESSIONS_PATH = "/v1/analytics/sessions"

# Characters of a response body that an error message shows.
EXCERPT_CHARS = 200
# Keys of one page. A response with tens of thousands of keys is broken, and sorting and padding rows gets expensive.
MAX_KEYS = 10_000
# File systems allow 255 bytes for a name; the folder is "device=" and the percent-encoded id.
MAX_DEVICE_ID_BYTES = 255 - len("device=")
_MAX_PAGES = 2**63 - 1
# Rows of the tableau endpoint may lack keys. Up to this many cells, padding them is always cheap.
_FEW_CELLS = 1 << 16

# A parameter whose name ends in token: in a URL, in one that is itself percent-encoded, or with the escapes of JSON.
_PARAMETER = r"((?:[?&;#]|%(?:25)*(?:3F|26)|\\{1,4}u00(?:3F|26))[\w.-]*token(?:\[\w*\])?(?:=|%(?:25)*3D|\\{1,4}u003D))"
# The value ends at the next &, or where one of these characters ends the URL or string. %26 may belong to the value.
_VALUE = r"[^&\\{end}]*(?:(?!\\{{1,4}}u0026)(?:\\.|[^&{end}])[^&\\{end}]*)*"
_STREAM_TOKEN = re.compile(_PARAMETER + _VALUE.format(end=""), re.IGNORECASE | re.DOTALL)
_STREAM_TOKEN_IN_TEXT = re.compile(_PARAMETER + _VALUE.format(end=r"\s\"'"), re.IGNORECASE)
_QUERY = re.compile(rb'\?[\w.-]+(?:\[\w*\])?=[^\s"]*')
_STREAM_TOKEN_IN_JSON = re.compile((_PARAMETER + _VALUE.format(end='"')).encode(), re.IGNORECASE)


# ---- requests ------------------------------------------------------------------------------------


def parse_base_url(url: str, *, allow_http: bool = False) -> str:
    """Return the base URL, ``scheme://host[:port][/path]``, without a trailing slash; without a scheme, it is https."""
    text = url.strip()
    try:
        parts = urlsplit(text if re.match("[^/]*:/", text) else f"https://{text}")
        host, _ = parts.hostname, parts.port
    except ValueError:  # its text may show a password
        raise _bad_host("its name or port is invalid. An IPv6 address needs brackets: [::1]") from None
    if parts.scheme not in ("http", "https"):
        raise _bad_host("its scheme must be https or http")
    if host in ("http", "https"):
        raise _bad_host("its scheme must end in ://")
    if parts.port == 0:
        raise _bad_host("port 0 cannot be connected to")
    if not host or not re.fullmatch(r"[^\s\\%]+", host) or not re.search(r"(^[^\[\]]+|\])(:\d*)?$", parts.netloc):
        raise _bad_host("it has no host name")
    if parts.username is not None or parts.password is not None:
        raise _bad_host("it contains credentials; the API key belongs in the connection's password")
    if "/v1/analytics" in parts.path.lower():
        raise _bad_host("it contains /v1/analytics, which is added to each request: remove it")
    if parts.query or parts.fragment:
        raise _bad_host("it has a query or a fragment")
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        raise _bad_host(
            f"http://{host} would send the API key unencrypted. Use https, "
            'or set the connection\'s extra {"allow_http": true} if you trust the network'
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _bad_host(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The host of the Unleash live API is invalid: {reason}. Expected for example {API_URL}", argument="host"
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_api_key(api_key: str | None) -> str:
    key = (api_key or "").strip()
    if not key:
        raise InvalidArgumentError(
            "The API key is missing: set the connection's password to the key or personal access token",
            argument="password",
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidArgumentError(
            "The API key contains spaces, line breaks or non-ASCII characters: copy it again", argument="password"
        )
    return key


def auth_headers(api_key: str, auth: Auth = "auto") -> dict[str, str]:
    """
    Return the header that carries the key.

    The API's older documentation uses ``x-api-key``, the newer one ``Authorization: Bearer`` with a personal access
    token, which starts with ``ul_pat_``.
    """
    if auth == "bearer" or (auth == "auto" and api_key.startswith(PAT_PREFIX)):
        return {"Authorization": f"Bearer {api_key}"}
    return {"x-api-key": api_key}


def check_device_id(device_id: str) -> str:
    """Return the id unchanged, or raise InvalidArgumentError if it could change the path of a URL or object."""
    if not isinstance(device_id, str) or not device_id:
        raise InvalidArgumentError(f"device_id must be a non-empty string, not {device_id!r}", argument="device_id")
    problem = None
    if "/" in device_id or "\\" in device_id:
        problem = "contains a slash"
    elif device_id in (".", ".."):
        problem = "is a dot segment"
    elif not device_id.isprintable():
        problem = "contains control or invisible characters"
    elif device_id != device_id.strip():
        problem = "starts or ends with white space"
    elif len(quote(device_id, safe="")) > MAX_DEVICE_ID_BYTES:
        problem = f"has more than {MAX_DEVICE_ID_BYTES} bytes percent-encoded, too long for a folder name"
    if problem:
        raise InvalidArgumentError(
            f"device_id {device_id[:EXCERPT_CHARS]!r} {problem}; UnleashListDevicesOperator lists valid ids",
            argument="device_id",
        )
    return device_id


def quote_device_id(device_id: str) -> str:
    return quote(check_device_id(device_id), safe="")


def window_path(device_id: str, start: datetime | int, end: datetime | int, endpoint: Endpoint = "compact") -> str:
    check_choice("endpoint", endpoint, ENDPOINT_PATHS)
    start_ms, end_ms = to_epoch_ms(start, "start"), to_epoch_ms(end, "end")
    if start_ms > end_ms:
        raise InvalidArgumentError(f"start={start} is after end={end}", argument="start")
    return f"{ENDPOINT_PATHS[endpoint]}/{quote_device_id(device_id)}/{start_ms}/{end_ms}"


# ---- responses -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """One HTTP response; excerpts never show ``secret``, the key, even if the body repeats it."""

    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    secret: str = field(default="", repr=False)

    def excerpt(self) -> str:
        head = self.redact(self.body[:8192].decode("utf-8", "replace"))
        if len(self.body) > 8192:
            head = head[: max(0, len(head) - 6 * len(self.secret))]  # the cut may have split an encoded key
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(head.split()))
        return text[:EXCERPT_CHARS]

    def redact(self, text: str) -> str:
        return redact(text, self.secret)

    def has_secret(self) -> bool:
        """Return whether the body has the key, maybe with the escapes of JSON."""
        if len(self.secret) < MIN_KEY_CHARS:
            return False
        if b"\\" not in self.body:
            return self.secret.encode() in self.body
        body = self.body.replace(b"\\/", b"/")
        if not re.search(rb"\\u00[2-7]", body):  # no ASCII character is escaped, and the key has no others
            return self.secret.encode() in body
        return bool(re.search("".join(map(_any_spelling, self.secret)), body.decode("utf-8", "replace"), re.IGNORECASE))


def redact(text: str, secret: str) -> str:
    """Return the text without the key, in any encoding of URLs, JSON and HTML, and without stream tokens."""
    if len(secret) >= MIN_KEY_CHARS:
        # Also if it is broken into lines.
        text = re.sub(r"\s*".join(map(_any_spelling, secret)), "***", text, flags=re.IGNORECASE)
    return mask_tokens_in_text(text)


def _any_spelling(char: str) -> str:
    code, name = ord(char), html.escape(char)
    # No two of these match the same text, so the search does not become slow.
    named = "" if name == char else f"{re.escape(name)}|"
    return rf"(?:\\{{0,4}}{re.escape(char)}|%(?:25)*{code:02x}|\\{{1,4}}u{code:04x}|{named}&#0*{code};|&#x0*{code:x};)"


def raise_for_status(response: Response) -> None:
    status = response.status
    if status == 200:
        return
    facts: dict[str, Any] = {"status": status, "url": response.url}
    message = f"{response.url} returned {status}: {response.excerpt() or 'empty body'}"
    retry_after = parse_retry_after(response.headers)
    if status == 429 or (status == 403 and retry_after is not None):
        raise RateLimitError(message, retry_after=retry_after, **facts)
    if status in (401, 403):
        raise AuthenticationError(f"{message}. {_KEY_ADVICE}", **facts)
    if status == 404:
        raise NotFoundError(f"{message}. Check the device ID, and whether the connection's host is the API's", **facts)
    if status in (408, 425) or status >= 500:
        raise ServerError(message, retry_after=retry_after, **facts)
    if 300 <= status < 400:
        location = response.redact(_header(response.headers, "Location") or "nowhere")
        raise BadRequestError(
            f"{response.url} returned {status}, a redirect to {location[:EXCERPT_CHARS]}. Redirects are not followed, "
            "because that would send the key to another address. Set the connection's host to the API's real address",
            location=location,
            **facts,
        )
    if status >= 400:
        raise BadRequestError(message, **facts)
    raise UnexpectedResponseError(f"{message}. This API documents status 200 only", **facts)


# Where keys are created: https://developer.unleashlive.com/api-documentation/authentication/
_KEY_ADVICE = (
    "The API key is wrong, revoked, or not allowed to read analytics. A personal access token (ul_pat_...) also "
    "expires, after 30 days by default. Create a new one in Unleash live under Your Profile > Developers with the role "
    "Viewer, and set it as the connection's password"
)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name.lower()), None)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Return the ``Retry-After`` header in seconds; the header holds seconds or an HTTP date (RFC 9110, 10.2.3).

    A date is compared with the response's own ``Date``, so that wrong clocks do not matter.
    """
    value = (_header(headers, "Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,20}(\.\d+)?", value):
        return float(value)
    until = _http_date(value)
    if until is None:
        return None
    now = _http_date(_header(headers, "Date") or "")
    return max(0.0, until - (time.time() if now is None else now))


def _http_date(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return assume_utc(moment).timestamp()  # HTTP dates are in GMT


# ---- pages ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """
    One page of rows, the same from both endpoints.

    :param number: page number, from 1.
    :param total_pages: number of pages according to this page; 0 if there are no rows.
    :param keys: field names, in the order of the values in each row.
    :param rows: the rows. Tuples, because the garbage collector stops tracking tuples of plain values; thousands of
        lists would slow down an extraction by a fifth.
    :param ragged: whether some rows lack a key, with ``msgspec.UNSET`` in its place; only on the tableau endpoint.
    :param dropped: indices, in the response, of rows that were removed.
    """

    number: int
    total_pages: int
    keys: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    ragged: bool = False
    dropped: tuple[int, ...] = ()
    _columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def records(self) -> list[dict[str, Any]]:
        keys = self.keys
        if self.ragged:
            return [
                {key: value for key, value in zip(keys, row, strict=True) if value is not msgspec.UNSET}
                for row in self.rows
            ]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]

    def column(self, key: str) -> list[Any] | None:
        """Return one field of all rows, with None for rows that lack it; or None if the whole page lacks it."""
        if key not in self.indices:
            return None
        # Cached, because the window rule, token masking and the writer use the same columns.
        if key not in self._columns:
            index = self.indices[key]
            values = [row[index] for row in self.rows]
            self._columns[key] = [None if v is msgspec.UNSET else v for v in values] if self.ragged else values
        return self._columns[key]

    @cached_property
    def indices(self) -> dict[str, int]:
        return {key: index for index, key in enumerate(self.keys)}

    def row_index(self, index: int) -> int:
        """Return the index in the response of a row that is still here."""
        for dropped in self.dropped:
            index += dropped <= index
        return index

    @cached_property
    def digest(self) -> bytes:
        """
        A hash of the rows that changes only if the data does.

        It ignores what the API may spell differently in each response: the order of keys and rows, null or no key, 1 or
        1.0, the spelling of timestamps, and the query of URLs, such as a stream token that is signed anew.
        """
        columns = {key: _normalize(key, self.column(key) or []) for key in sorted(self.keys)}
        columns = {key: values for key, values in columns.items() if any(value is not None for value in values)}
        encoded = _ENCODER.encode_lines(list(zip(*columns.values(), strict=True)))
        if b"{" in encoded:  # maybe an object
            encoded = "\n".join(sorted_json(_ANY.decode(line)) for line in encoded.splitlines()).encode()
        head = _without_queries(_ENCODER.encode([list(columns), len(self.rows)]))
        lines = _without_queries(encoded).split(b"\n")
        return hashlib.sha256(head + b"\n".join(sorted(lines))).digest()

    @property
    def fingerprint(self) -> int:
        """A quick hash that pages with the same rows share, in any order, and other pages seldom."""
        # The API may spell a timestamp differently each time.
        frame = "frame_number" if "frame_number" in self.indices else "timestamp"
        columns = [self.column(key) or [] for key in (frame, "class_name", "count")]
        with suppress(TypeError):  # an object or array
            return hash((len(self.rows), *(sum(map(hash, values)) for values in columns)))
        return len(self.rows)


def _without_queries(text: bytes) -> bytes:
    return _QUERY.sub(b"", _mask_json(text))


def _normalize(key: str, values: list[Any]) -> list[Any]:
    if key == "timestamp":
        moments = map(parse_timestamp_or_none, values)
        return [value if moment is None else moment - EPOCH for value, moment in zip(values, moments, strict=True)]
    if float in map(type, values):
        return [int(value) if type(value) is float and value.is_integer() else value for value in values]
    return values


# Not msgspec's order="sorted": it recurses once per key, and a page with 60 000 keys overflowed the C stack.
_SORTED_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sorted_json(value: Any) -> str:
    return _SORTED_JSON.encode(value)


class _CompactBody(msgspec.Struct):
    keys: list[str]
    total_num_pages: Annotated[int, msgspec.Meta(ge=0, le=_MAX_PAGES)]
    data: list[tuple[Any, ...]]


class _TableauBody(msgspec.Struct):
    total_num_pages: Annotated[int, msgspec.Meta(ge=0, le=_MAX_PAGES)]
    data: list[dict[str, Any]]


_BOM = b"\xef\xbb\xbf"
_ENCODER = msgspec.json.Encoder()
_ANY = msgspec.json.Decoder()
_STRING = msgspec.json.Decoder(str)
_STRINGS = msgspec.json.Decoder(list[str])
_SESSIONS = msgspec.json.Decoder(list[str | int | None])
_COMPACT = msgspec.json.Decoder(_CompactBody)
_TABLEAU = msgspec.json.Decoder(_TableauBody)


def parse_version(response: Response) -> str:
    return _decode(response, _STRING, "a JSON string")


def parse_ids(response: Response) -> list[str]:
    return _decode(response, _STRINGS, "a JSON array of strings")


def parse_sessions(response: Response) -> list[str]:
    """Return the ids from ``/sessions``; an integer is read as its digits, and null is skipped with a warning."""
    ids = _decode(response, _SESSIONS, "a JSON array of strings")
    sessions = [str(one) for one in ids if one is not None]
    if len(sessions) < len(ids):
        log_once(log, f"Skipping a session without an id, which {response.url} lists")
    return sessions


def parse_page(response: Response, number: int, endpoint: Endpoint = "compact") -> Page:
    try:
        return _parse_page(response, number, endpoint)
    except UnexpectedResponseError as error:
        error.page = number
        # Without traceback: its frames hold rows, which may echo the key, and some log handlers print their variables.
        raise error.with_traceback(None) from None


def _parse_page(response: Response, number: int, endpoint: Endpoint) -> Page:
    page = _compact_page(response, number) if endpoint == "compact" else _tableau_page(response, number)
    if page.total_pages == 0 and page.rows:
        message = f"{response.url} returned total_num_pages 0, but {len(page.rows)} rows"
        raise UnexpectedResponseError(message, field="total_num_pages", value=0, url=response.url)
    if len(page.keys) > MAX_KEYS:
        message = f"{response.url} returned rows with {len(page.keys)} keys; at most {MAX_KEYS} are supported"
        raise UnexpectedResponseError(message, field="keys", url=response.url)
    return page


def _compact_page(response: Response, number: int) -> Page:
    body = _decode(response, _COMPACT, "an object with keys, total_num_pages and data, an array of arrays", list)
    keys, rows = tuple(body.keys), body.data
    if len(set(keys)) != len(keys):
        repeated = Counter(keys).most_common(1)[0][0]
        message = f"{response.url} lists a key twice: {response.redact(repeated)[:EXCERPT_CHARS]!r}"
        raise UnexpectedResponseError(message, field="keys", value=keys, url=response.url)
    if set(map(len, rows)) - {len(keys)}:
        index, misfit = next((index, list(row)) for index, row in enumerate(rows) if len(row) != len(keys))
        raise UnexpectedResponseError(
            f"{response.url}: row {index} of page {number} has {len(misfit)} values for {len(keys)} keys: "
            f"{response.redact(repr(misfit))[:EXCERPT_CHARS]}",
            row=index,
            value=misfit,
            url=response.url,
        )
    return Page(number, body.total_num_pages, keys, rows)


def _tableau_page(response: Response, number: int) -> Page:
    body = _decode(response, _TABLEAU, "an object with total_num_pages and data, an array of objects", dict)
    records = body.data
    keys = tuple(dict.fromkeys(chain.from_iterable(records)))
    if len(keys) > 1 and set(map(len, records)) == {len(keys)}:
        return Page(number, body.total_num_pages, keys, list(map(itemgetter(*keys), records)))
    # Each row gets a cell for every key, so rows that share no keys need the square of their size in memory.
    if len(keys) * len(records) > max(len(response.body), _FEW_CELLS):
        raise UnexpectedResponseError(
            f"{response.url} returned {len(records)} rows with {len(keys)} keys in all, most of which each row lacks",
            field="data",
            url=response.url,
        )
    rows = [tuple(record.get(key, msgspec.UNSET) for key in keys) for record in records]
    ragged = any(len(record) < len(keys) for record in records)
    return Page(number, body.total_num_pages, keys, rows, ragged)


def render_page(page: Page) -> tuple[bytes, Endpoint]:
    """Return a body that :func:`parse_page` parses as this page, and its endpoint."""
    if page.ragged:  # only an array of objects can omit keys
        return _ENCODER.encode({"total_num_pages": page.total_pages, "data": page.records()}), "tableau"
    return _ENCODER.encode(_CompactBody(list(page.keys), page.total_pages, page.rows)), "compact"


def _decode(response: Response, decoder: msgspec.json.Decoder[T], expected: str, row_type: type | None = None) -> T:
    """Decode a body; the one place that tells bad JSON (transient) from JSON of another API (permanent)."""
    # No variable for the body, which may echo the key: some log handlers print the variables of a traceback's frames.
    try:
        decoded = decoder.decode(response.body.removeprefix(_BOM))
        if not response.has_secret():
            return decoded
        del decoded
        # The key would get into files, logs and XCom with the rows and ids.
        raise UnexpectedResponseError(
            f"{response.url} returned the API key in its JSON, so none of it is used: {response.excerpt()}",
            status=response.status,
            url=response.url,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        misfit = error
    # A typed decoder stops at the first misfit, so decode everything to tell other JSON from a truncated body.
    try:
        content = _ANY.decode(response.body.removeprefix(_BOM))
    except (msgspec.ValidationError, RecursionError):
        content = None  # JSON, but nested too deeply, or with a number that a float cannot hold
    except (msgspec.DecodeError, UnicodeDecodeError):
        if not _is_json(response.body.removeprefix(_BOM)):
            raise TransportError(
                f"{response.url} returned {response.status}, but {_describe_body(response)}. Is the connection's host "
                "the Unleash live API, without a login page or proxy in front of it?",
                reason="not_json",
                status=response.status,
                url=response.url,
            ) from None
        content = None  # JSON with half a surrogate pair, which msgspec reports like a truncated string
    field, row = _locate_misfit(content, row_type)
    del content  # for the same reason
    raise UnexpectedResponseError(
        f"{response.url} returned JSON, but not {expected} ({response.redact(str(misfit))}"
        f"{'' if row is None else f', row {row}'}): {response.excerpt()}. Is the connection's host the Unleash live "
        "API?",
        row=row,
        field=field,
        status=response.status,
        url=response.url,
    )


def _describe_body(response: Response) -> str:
    coding = response.redact(_header(response.headers, "Content-Encoding") or "identity")
    if coding.lower() not in ("identity", "gzip", "x-gzip", "deflate"):
        return f"with Content-Encoding {coding[:EXCERPT_CHARS]}, which was not asked for"
    if b"\0" in response.body[:2] or response.body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "in UTF-16 or UTF-32; JSON must be in UTF-8"
    return f"not JSON: {response.excerpt() or 'empty body'}"


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body.decode(), parse_constant=_refuse_constant)  # of bytes, it would guess the encoding
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _locate_misfit(content: object, row_type: type | None) -> tuple[str | None, int | None]:
    """Return the field and row that keep a body from being a page; None if unknown."""
    if row_type is None or not isinstance(content, dict):
        return None, None
    keys, total, rows = (content.get(name) for name in ("keys", "total_num_pages", "data"))
    if not isinstance(rows, list):
        return "data", None
    row = next((index for index, row in enumerate(rows) if not isinstance(row, row_type)), None)
    if row is not None:
        return "data", row
    if row_type is list and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        return "keys", None
    is_count = isinstance(total, int) and not isinstance(total, bool) and 0 <= total <= _MAX_PAGES
    return (None if is_count else "total_num_pages"), None


# ---- stream tokens -------------------------------------------------------------------------------


def may_have_stream_tokens(response: Response) -> bool:
    """Return whether a page may have stream tokens: cheap, and True for some pages without any."""
    return b"token" in response.body.lower() or b"\\u00" in response.body  # JSON may escape any letter


def mask_token(text: str) -> str:
    """Return a string value with its stream token, the credential of a live stream, replaced by ``***``."""
    return _STREAM_TOKEN.sub(r"\1***", text) if "token" in text.lower() else text


def mask_tokens_in_text(text: str) -> str:
    return _STREAM_TOKEN_IN_TEXT.sub(r"\1***", text)


def mask_stream_tokens(page: Page) -> Page:
    """Return the page with the stream tokens in all its strings masked; the page itself if it has none."""
    columns: list[Sequence[Any]] = list(zip(*page.rows, strict=True))
    masked = [_mask_values(values) for values in columns]
    keys = tuple(map(mask_token, page.keys))
    if keys == page.keys and not any(masked):
        return page
    columns = [new or old for new, old in zip(masked, columns, strict=True)]
    return replace(page, keys=keys, rows=list(zip(*columns, strict=True)))


def _mask_values(values: Sequence[Any]) -> list[Any] | None:
    # Most values repeat, so look at each string once.
    masks = {text: mask_token(text) for text in {value for value in values if type(value) is str}}
    if all(text == mask for text, mask in masks.items()) and {dict, list}.isdisjoint(map(type, values)):
        return None
    masked = [masks[value] if type(value) is str else _mask_nested(value) for value in values]
    return None if masked == list(values) else masked


def _mask_nested(value: Any) -> Any:
    return _ANY.decode(_mask_json(_ENCODER.encode(value))) if type(value) in (dict, list) else value


def _mask_json(text: bytes) -> bytes:
    return _STREAM_TOKEN_IN_JSON.sub(rb"\1***", text) if b"token" in text.lower() else text
