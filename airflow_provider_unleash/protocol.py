"""The API on the wire: what to ask, and what an answer says. No I/O, no Airflow."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import cached_property, lru_cache
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

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

API_URL = "https://api.unleashlive.com"
PAT_PREFIX = "ul_pat_"

Auth = Literal["auto", "api_key", "bearer"]
AUTHS: tuple[Auth, ...] = ("auto", "api_key", "bearer")

Endpoint = Literal["compact", "tableau"]
ENDPOINT_PATHS: dict[Endpoint, str] = {"compact": "/v1/analytics", "tableau": "/v1/analytics/tableau"}

VERSION_PATH = "/v1/analytics/version"
DEVICES_PATH = "/v1/analytics/devices"
SESSIONS_PATH = "/v1/analytics/sessions"

# An int below this is a moment before March 1973 in milliseconds, but any plausible one in seconds.
SMALLEST_EPOCH_MS = 10**11
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999, which Python's calendar has
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# The API answers small JSON errors and pages; this much of a body is enough to recognise what it is.
EXCERPT_CHARS = 200
# A file's or folder's name has 255 bytes at most; the folder is «device=» and the id, percent-encoded.
LONGEST_DEVICE_ID = 255 - len("device=")
# A counter of pages beyond this is none; no float holds what is much larger.
_MOST_PAGES = 2**63 - 1
# Cells of a page whose rows lack keys, where it is so small that they do not matter.
_FEW_CELLS = 1 << 16

_BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
_STREAM_TOKEN = re.compile(r"([?&]token=)[^&]*", re.IGNORECASE)
_STREAM_TOKEN_IN_TEXT = re.compile(r"([?&]token=)[^&\s\"']*", re.IGNORECASE)


# ---- requests ----------------------------------------------------------------------------------


def parse_base_url(url: str, *, allow_http: bool = False) -> str:
    """
    Return the base URL without a trailing slash; https is meant where no scheme is given.

    :param url: ``[scheme://]host[:port][/path]``.
    :param allow_http: accept http for a host that is not loopback, too.
    :raises InvalidArgumentError: it is not such a URL, carries credentials, or would send the key unencrypted.
    """
    text = url.strip()
    try:
        parts = urlsplit(text if re.match("[^/]*:/", text) else f"https://{text}")
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _bad_host(f"{error}") from None
    if parts.scheme not in ("http", "https"):
        raise _bad_host("its scheme is neither https nor http")
    if not host or not re.fullmatch(r"[^\s\\%]+", host) or not re.search(r"(^[^\[\]]+|\])(:\d*)?$", parts.netloc):
        raise _bad_host("there is no host name in it")
    if parts.username is not None or parts.password is not None:
        raise _bad_host("it carries credentials; the API key belongs in the connection's password")
    if parts.query or parts.fragment:
        raise _bad_host("it has a query or a fragment")
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        raise _bad_host(
            f"http://{host} would send the API key unencrypted: use https "
            '(or set the connection\'s extra {"allow_http": true} where the network is trusted)'
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _bad_host(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The host of the Unleash live API cannot be used: {reason}. Expected e.g. {API_URL}", argument="host"
    )


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_api_key(api_key: str | None) -> str:
    """
    Return the key without surrounding white space.

    :raises InvalidArgumentError: it is empty, or has characters that no HTTP header can carry.
    """
    key = (api_key or "").strip()
    if not key:
        raise InvalidArgumentError(
            "There is no API key: put the key or personal access token into the connection's password",
            argument="password",
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidArgumentError(
            "The API key has spaces, line breaks or characters outside ASCII: copy it again", argument="password"
        )
    return key


def auth_headers(api_key: str, auth: Auth = "auto") -> dict[str, str]:
    """
    Return the header that carries the key.

    The older documentation of the API has ``x-api-key``, the newer one ``Authorization: Bearer`` with a
    personal access token, which starts with ``ul_pat_``.
    """
    if auth == "bearer" or (auth == "auto" and api_key.startswith(PAT_PREFIX)):
        return {"Authorization": f"Bearer {api_key}"}
    return {"x-api-key": api_key}


def check_device_id(device_id: str) -> str:
    """
    Return the id as it is.

    :raises InvalidArgumentError: it is no text, empty, or could change the path of a URL or of an object.
    """
    if not isinstance(device_id, str) or not device_id:
        raise InvalidArgumentError(f"device_id must be a text, not {device_id!r}", argument="device_id")
    problem = None
    if "/" in device_id or "\\" in device_id:
        problem = "a slash"
    elif device_id in (".", ".."):
        problem = "a dot segment"
    elif not device_id.isprintable():
        problem = "control or invisible characters"
    elif device_id != device_id.strip():
        problem = "white space around it"
    elif len(quote(device_id, safe="")) > LONGEST_DEVICE_ID:
        problem = f"more than {LONGEST_DEVICE_ID} bytes percent-encoded, too long for the name of a folder"
    if problem:
        raise InvalidArgumentError(
            f"device_id {device_id[:EXCERPT_CHARS]!r} has {problem}; UnleashListDevicesOperator lists the real ones",
            argument="device_id",
        )
    return device_id


def quote_device_id(device_id: str) -> str:
    """Return a checked id, percent-encoded to one segment of a path."""
    return quote(check_device_id(device_id), safe="")


def analytics_path(device_id: str, start_ms: int, end_ms: int, page: int, endpoint: Endpoint = "compact") -> str:
    """Return the path of one page of ``[start_ms, end_ms]``; pages count from 1."""
    return f"{ENDPOINT_PATHS[endpoint]}/{quote_device_id(device_id)}/{start_ms}/{end_ms}/{page}"


def to_epoch_ms(moment: datetime | int, argument: str) -> int:
    """
    Return a moment in whole epoch milliseconds, floored.

    :param moment: an aware ``datetime`` (pendulum included), or epoch milliseconds as ``int``.
    :param argument: what the error calls it.
    :raises InvalidArgumentError: it is naive, an int that looks like seconds, or something else.
    """
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidArgumentError(f"{argument}={moment} has no timezone", argument=argument)
        return _in_calendar(datetime.__sub__(moment, _EPOCH) // timedelta(milliseconds=1), moment, argument)
    if not isinstance(moment, int) or isinstance(moment, bool):
        raise InvalidArgumentError(
            f"{argument}={moment!r} is neither an aware datetime nor epoch milliseconds", argument=argument
        )
    if moment < SMALLEST_EPOCH_MS:
        raise InvalidArgumentError(
            f"{argument}={moment} is too small for epoch milliseconds; seconds? Then multiply by 1000",
            argument=argument,
        )
    return _in_calendar(moment, moment, argument)


def _in_calendar(moment_ms: int, given: object, argument: str) -> int:
    if _FIRST_MS <= moment_ms <= _LAST_MS:
        return moment_ms
    raise InvalidArgumentError(
        f"{argument}={given} lies beyond the years 1 to 9999; microseconds? Milliseconds have 13 digits",
        argument=argument,
    )


def from_epoch_ms(moment_ms: int) -> datetime:
    """Return epoch milliseconds as an aware UTC datetime."""
    return _EPOCH + timedelta(milliseconds=moment_ms)


def format_ms(moment_ms: int) -> str:
    """Return epoch milliseconds as the API writes its stamps: ``2020-08-17T02:08:49.000Z``."""
    return from_epoch_ms(moment_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """
    One HTTP answer.

    :param secret: the key, which no excerpt shows, even where the body echoes it.
    """

    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    secret: str = field(default="", repr=False)

    def excerpt(self) -> str:
        """Return the first 200 characters of the body, without the key and stream tokens."""
        head = self.redact(self.body[:8192].decode("utf-8", "replace"))
        if len(self.body) > 8192:
            head = head[: len(head) - 3 * len(self.secret)]  # the cut may have gone through the key, percent-encoded
        text = "".join(char if char.isprintable() else "�" for char in " ".join(head.split()))
        return text[:EXCERPT_CHARS]

    def redact(self, text: str) -> str:
        """Return the text without the key, in any spelling of a URL, and without stream tokens."""
        for spelling in {self.secret, quote(self.secret), quote(self.secret, safe="")} - {""}:
            text = re.sub(re.escape(spelling), "***", text, flags=re.IGNORECASE)
        return mask_tokens_in_text(text)


@dataclass(frozen=True)
class Page:
    """
    One page of rows, the same from both endpoints.

    :param number: from 1.
    :param total_pages: what this page said of the number of pages; 0 where there are no rows.
    :param keys: names of the fields, in the order of each row.
    :param tuples: the rows, as they are kept: the garbage collector forgets tuples of plain values, where thousands
        of lists keep it busy for as long as decoding them takes.
    :param ragged: whether some rows lack a key, ``msgspec.UNSET`` standing there; only the tableau endpoint can.
    :param dropped: indices, in the answer, of rows that are not here any more.
    """

    number: int
    total_pages: int
    keys: tuple[str, ...]
    tuples: list[tuple[Any, ...]]
    ragged: bool = False
    dropped: tuple[int, ...] = ()
    _columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def rows(self) -> list[list[Any]]:
        """A copy of the rows as lists of values, in the order of ``keys``."""
        return list(map(list, self.tuples))

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dicts, each with the keys that came."""
        keys = self.keys
        if self.ragged:
            return [
                {key: value for key, value in zip(keys, row, strict=True) if value is not msgspec.UNSET}
                for row in self.tuples
            ]
        return [dict(zip(keys, row, strict=True)) for row in self.tuples]

    def columns(self) -> dict[str, list[Any]]:
        """Return the fields of all rows, None where a row lacks one."""
        return {key: self._column(key) for key in self.keys}

    def column(self, key: str) -> list[Any] | None:
        """Return one field of all rows, None where a row lacks it; or None where the whole page does."""
        return self._column(key) if key in self.keys else None

    @cached_property
    def indices(self) -> dict[str, int]:
        """Where in a row each key stands."""
        return {key: index for index, key in enumerate(self.keys)}

    def _column(self, key: str) -> list[Any]:
        # Kept, because boundary, masking and writer ask for the same ones.
        if key not in self._columns:
            index = self.indices[key]
            values = [row[index] for row in self.tuples]
            self._columns[key] = [None if v is msgspec.UNSET else v for v in values] if self.ragged else values
        return self._columns[key]

    def row_index(self, index: int) -> int:
        """Return the index that a row of ``rows`` had in the answer."""
        for dropped in self.dropped:
            index += dropped <= index
        return index

    def digest(self) -> bytes:
        """Return a hash of the rows, the same whatever the order of the keys."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:  # kept, because client and staging both ask for that of the first page
        return hashlib.sha256(_SORTED.encode(self.records())).digest()


def raise_for_status(answer: Answer) -> None:
    """
    Return for 200, raise the error that any other status means.

    :raises TransientError: 408, 425, 429, 5xx.
    :raises PermanentError: any other status.
    """
    status = answer.status
    if status == 200:
        return
    facts: dict[str, Any] = {"status": status, "url": answer.url}
    said = f"{answer.url} answered {status}: {answer.excerpt() or 'nothing more'}"
    if status in (401, 403):
        raise AuthenticationError(f"{said}. {_KEY_ADVICE}", **facts)
    if status == 404:
        raise NotFoundError(said, **facts)
    if status == 429:
        raise RateLimitError(said, retry_after=parse_retry_after(answer.headers), **facts)
    if status in (408, 425) or status >= 500:
        raise ServerError(said, retry_after=parse_retry_after(answer.headers), **facts)
    if 300 <= status < 400:
        location = answer.redact(_header(answer.headers, "Location") or "nowhere")
        raise BadRequestError(
            f"{answer.url} answered {status}, a redirect to {location}. Redirects are not followed, because the "
            "key would go along: put the API's real address into the connection's host",
            location=location,
            **facts,
        )
    if status >= 400:
        raise BadRequestError(said, **facts)
    raise UnexpectedResponseError(f"{said}. This API documents 200 only", **facts)


# Where keys are made: https://developer.unleashlive.com/api-documentation/authentication/
_KEY_ADVICE = (
    "The API key is wrong, has been revoked, or may not read analytics; a personal access token (ul_pat_…) also "
    "expires, after 30 days unless another time was chosen. Make a new one in Unleash live under Your Profile → "
    "Developers, role Viewer, and put it into the connection's password"
)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name.lower()), None)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Return the seconds of a ``Retry-After`` header, given as seconds or as an HTTP date (RFC 9110, 10.2.3).

    A date is read against the answer's own ``Date``, so that a wrong clock on either side does no harm.
    """
    value = (_header(headers, "Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
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
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()  # all HTTP dates are GMT


class _CompactAnswer(msgspec.Struct):
    keys: list[str]
    total_num_pages: Annotated[int, msgspec.Meta(ge=0, le=_MOST_PAGES)]
    data: list[tuple[Any, ...]]


class _TableauAnswer(msgspec.Struct):
    total_num_pages: Annotated[int, msgspec.Meta(ge=0, le=_MOST_PAGES)]
    data: list[dict[str, Any]]


_BOM = b"\xef\xbb\xbf"
_SORTED = msgspec.json.Encoder(order="sorted")
_PLAIN = msgspec.json.Encoder()
_ANY = msgspec.json.Decoder()
_TEXT = msgspec.json.Decoder(str)
_TEXTS = msgspec.json.Decoder(list[str])
_COMPACT = msgspec.json.Decoder(_CompactAnswer)
_TABLEAU = msgspec.json.Decoder(_TableauAnswer)


def parse_version(answer: Answer) -> str:
    """Return the version that ``/version`` answers: a JSON string."""
    version: str = _decode(answer, _TEXT, "a JSON string")
    return version


def parse_ids(answer: Answer) -> list[str]:
    """Return the ids that ``/devices`` and ``/sessions`` answer: a JSON array of strings."""
    ids: list[str] = _decode(answer, _TEXTS, "a JSON array of strings")
    return ids


def check_json_object(answer: Answer) -> Answer:
    """
    Return the answer, if its body looks like an object: the cheap check, for where decoding comes later.

    :raises TransportError: it is not JSON.
    :raises UnexpectedResponseError: it is, but nothing that can be read.
    """
    body = answer.body
    if body[:1] == b"{" and body[-1:] == b"}":
        return answer
    _decode(answer, _ANY, "what can be read")
    return answer


def parse_page(answer: Answer, number: int, endpoint: Endpoint = "compact") -> Page:
    """
    Return one page.

    :raises TransportError: the body is not JSON.
    :raises UnexpectedResponseError: it is, but not a page; names page, row and field where they are known.
    """
    try:
        page = _compact_page(answer, number) if endpoint == "compact" else _tableau_page(answer, number)
    except UnexpectedResponseError as error:
        error.page = number
        raise
    if page.total_pages == 0 and page.tuples:
        raise UnexpectedResponseError(
            f"{answer.url} answered total_num_pages 0, but {len(page.tuples)} rows",
            page=number,
            field="total_num_pages",
            value=0,
            url=answer.url,
        )
    return page


def _compact_page(answer: Answer, number: int) -> Page:
    content = _decode(answer, _COMPACT, "an object of keys, total_num_pages and data, an array of arrays", list)
    keys, rows = tuple(content.keys), content.data
    if len(set(keys)) != len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise UnexpectedResponseError(
            f"{answer.url} names a key twice: {answer.redact(twice)[:EXCERPT_CHARS]!r}",
            field="keys",
            value=keys,
            url=answer.url,
        )
    if set(map(len, rows)) - {len(keys)}:
        index, misfit = next((index, list(row)) for index, row in enumerate(rows) if len(row) != len(keys))
        raise UnexpectedResponseError(
            f"{answer.url}: row {index} of page {number} has {len(misfit)} values for {len(keys)} keys: "
            f"{answer.redact(repr(misfit))[:EXCERPT_CHARS]}",
            row=index,
            value=misfit,
            url=answer.url,
        )
    return Page(number, content.total_num_pages, keys, rows)


def _tableau_page(answer: Answer, number: int) -> Page:
    content = _decode(answer, _TABLEAU, "an object of total_num_pages and data, an array of objects", dict)
    records = content.data
    keys = tuple(dict.fromkeys(chain.from_iterable(records)))
    if len(keys) > 1 and set(map(len, records)) == {len(keys)}:
        return Page(number, content.total_num_pages, keys, list(map(itemgetter(*keys), records)))
    # A row has a cell for each key, those that it lacks too: rows with a key each of their own make the square of them.
    if len(keys) * len(records) > max(len(answer.body), _FEW_CELLS):
        raise UnexpectedResponseError(
            f"{answer.url} answered {len(records)} rows, which have {len(keys)} keys together and lack most of them",
            field="data",
            url=answer.url,
        )
    rows = [tuple(record.get(key, msgspec.UNSET) for key in keys) for record in records]
    ragged = any(len(record) < len(keys) for record in records)
    return Page(number, content.total_num_pages, keys, rows, ragged)


def render_page(page: Page) -> tuple[bytes, Endpoint]:
    """Return the body of an answer that :func:`parse_page` reads as this page, and the endpoint that answers so."""
    if page.ragged:  # only an array of objects can leave keys out
        return _PLAIN.encode({"total_num_pages": page.total_pages, "data": page.records()}), "tableau"
    return _PLAIN.encode(_CompactAnswer(list(page.keys), page.total_pages, page.tuples)), "compact"


def _decode(answer: Answer, decoder: msgspec.json.Decoder[Any], expected: str, row_type: type | None = None) -> Any:
    try:
        return decoder.decode(answer.body.removeprefix(_BOM))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        misfit = error
    # The typed decoder stops at the first misfit, so only reading it all tells JSON from the half of something.
    try:
        content = _ANY.decode(answer.body.removeprefix(_BOM))
    except (msgspec.ValidationError, RecursionError):
        content = None  # JSON, but with a number that no float holds, or nested too deep
    except (msgspec.DecodeError, UnicodeDecodeError):
        if _is_json(answer.body):  # with half a surrogate pair, which msgspec takes for the end of a text
            raise UnexpectedResponseError(
                f"{answer.url} answered JSON with half a character: {answer.excerpt()}", url=answer.url
            ) from None
        raise TransportError(
            f"{answer.url} answered {answer.status}, but not JSON: {answer.excerpt() or 'an empty body'}",
            reason="not_json",
            status=answer.status,
            url=answer.url,
        ) from None
    field, row = _locate_misfit(content, row_type)
    del content  # some log handlers show the variables of a traceback's frames
    raise UnexpectedResponseError(
        f"{answer.url} answered JSON, but not {expected} ({answer.redact(str(misfit))}"
        f"{'' if row is None else f', row {row}'}): {answer.excerpt()}. Is the connection's host the Unleash live API?",
        row=row,
        field=field,
        status=answer.status,
        url=answer.url,
    )


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _locate_misfit(content: object, row_type: type | None) -> tuple[str | None, int | None]:
    """Return field and row of what keeps a content from being a page of such rows, None where that is not known."""
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
    fits = isinstance(total, int) and not isinstance(total, bool) and 0 <= total <= _MOST_PAGES
    return (None if fits else "total_num_pages"), None


# ---- values ------------------------------------------------------------------------------------


def parse_timestamp(text: str) -> datetime:
    """
    Return the moment of a row's ``timestamp``, e.g. ``2020-08-17T02:08:49.000Z``; UTC where it names no offset.

    :raises ValueError: it is not RFC 3339.
    """
    try:
        # msgspec rounds what is finer than a microsecond, which could make it the next millisecond.
        moment = msgspec.convert(_BEYOND_MICROSECONDS.sub(r"\1", text), datetime)
    except (msgspec.ValidationError, TypeError):
        raise ValueError(f"{text!r} is no RFC 3339 timestamp") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def are_stamped_between(values: Sequence[Any], start: datetime, end: datetime) -> bool:
    """Tell whether all values certainly are timestamps after ``start`` and before ``end``; the quick look."""
    try:
        # Rows come in the order of time, which sorts faster than least and greatest are found.
        moments = sorted(msgspec.convert(values, list[datetime]))
        return not moments or (start < moments[0] and moments[-1] < end)
    except (msgspec.ValidationError, TypeError):  # one is no timestamp, or names no offset
        return False


def read_timestamp(value: Any) -> datetime | None:
    """Return the moment of a row's ``timestamp``, None where it has none that can be read."""
    try:
        return parse_timestamp(value) if isinstance(value, str) else None
    except ValueError:
        return None


# Who polls reads the same ids each time, and a thousand who wait read them a thousand times.
@lru_cache(maxsize=1 << 16)
def parse_session_start(session_id: str) -> int:
    """
    Return the start of a session in epoch milliseconds, which its id reads as.

    The API's documented example shows ids of that form; it does not promise it.

    :raises UnexpectedResponseError: the id does not read so.
    """
    readable = session_id.isascii() and session_id.isdigit() and len(session_id) <= 20
    if readable and SMALLEST_EPOCH_MS <= int(session_id) < 10**14:
        return int(session_id)
    raise UnexpectedResponseError(
        f"The session id {session_id[:EXCERPT_CHARS]!r} does not read as a start in epoch milliseconds, so its "
        "start is unknown. Give known_sessions, which compares ids only",
        field="session_id",
        value=session_id,
    )


def mask_token(text: str) -> str:
    """Return a ``source_file_name`` with its stream token, the credential of a live stream, replaced by ``***``."""
    return _STREAM_TOKEN.sub(r"\1***", text)


def mask_tokens_in_text(text: str) -> str:
    """Return any text with the stream tokens in it replaced by ``***``."""
    return _STREAM_TOKEN_IN_TEXT.sub(r"\1***", text)


def mask_stream_tokens(page: Page) -> Page:
    """Return the page with the tokens in ``source_file_name`` masked."""
    masked = _token_names(page)
    if not masked:
        return page
    index = page.keys.index("source_file_name")
    rows = [
        (*row[:index], masked.get(row[index], row[index]), *row[index + 1 :]) if isinstance(row[index], str) else row
        for row in page.tuples
    ]
    return replace(page, tuples=rows)


def has_stream_tokens(page: Page) -> bool:
    """Tell whether a ``source_file_name`` carries the token of a live stream."""
    return bool(_token_names(page))


def _token_names(page: Page) -> dict[str, str]:
    """Return the masked form of each ``source_file_name`` that carries an unmasked token."""
    names: Sequence[Any] = page.column("source_file_name") or ()
    try:
        distinct = set(names)
    except TypeError:  # a list or an object among them
        distinct = {name for name in names if isinstance(name, str)}
    masked = {name: mask_token(name) for name in distinct if isinstance(name, str)}
    return {name: mask for name, mask in masked.items() if mask != name}
