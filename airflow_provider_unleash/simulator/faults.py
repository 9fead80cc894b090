"""Faults: what can go wrong with a request, and for which requests."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FAULT_KINDS = {
    "429": "this status, or any other from 400 to 599 (401, 403, 404, 408, 500, 503, ...), with a JSON message",
    "redirect": "302 to `location` (default: the same path on http://localhost)",
    "reset": "resets the connection before any response",
    "half_body": "the full Content-Length, half of the body, then the connection ends",
    "html": "200 with an HTML maintenance page",
    "garbage": "200 with a JSON content type and bytes that are not JSON",
    "wrong_shape": "200 with JSON that does not match the API",
    "slow": "the correct response after `seconds`",
    "echo_key": "401 with a message that contains the key of the request",
}


@dataclass(frozen=True)
class Fault:
    """
    A fault and the requests that it affects.

    :param kind: one of :data:`FAULT_KINDS`, or a status from 400 to 599
    :param path: affects only requests with this string in their path
    :param page: affects only requests for this page
    :param times: how often it occurs; None means no limit
    :param probability: how likely it occurs on a matching request
    :param retry_after: value of the ``Retry-After`` header; ``date:5`` sends an HTTP date 5 seconds from now
    :param after: number of matching requests to let through first
    :param seconds: delay of ``slow``
    :param location: target of ``redirect``
    :param status: replaces the status of the kind, such as 400 for ``echo_key`` or 503 for ``html``
    """

    kind: str
    path: str = ""
    page: int | None = None
    times: int | None = 1
    probability: float = 1.0
    retry_after: str | float | None = None
    after: int = 0
    seconds: float = 1.0
    location: str = ""
    status: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS and not re.fullmatch("[45][0-9][0-9]", self.kind):
            raise ValueError(f"Unknown kind of fault {self.kind!r}; known kinds: {', '.join(FAULT_KINDS)}")


_FIELD_TYPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("kind", "path", "retry_after", "location"), str),
    **dict.fromkeys(("page", "times", "after", "status"), int),
    **dict.fromkeys(("probability", "seconds"), float),
}


def parse_fault(values: str | Mapping[str, Any]) -> Fault:
    """Return the fault for ``kind=429,times=3`` or a JSON object; raise ValueError if it is invalid."""
    if isinstance(values, str):
        pairs = [pair.partition("=") for pair in values.split(",")]
        values = {name.strip(): value for name, _, value in pairs}
    if "kind" not in values or not set(values) <= set(_FIELD_TYPES):
        raise ValueError(f"A fault needs `kind` and allows {', '.join(_FIELD_TYPES)}; got {', '.join(values)}")
    given: dict[str, Any] = {
        name: None if value in (None, "none") else _FIELD_TYPES[name](value) for name, value in values.items()
    }
    return Fault(**given)


@dataclass
class ArmedFault:
    """A fault that counts the requests it matched and the times it occurred."""

    fault: Fault
    matched: int = 0
    occurred: int = 0

    def occurs(self, path: str, rng: random.Random) -> bool:
        fault = self.fault
        if fault.times is not None and self.occurred >= fault.times:
            return False
        if fault.path not in path or fault.page not in (None, _page_of(path)):
            return False
        self.matched += 1
        if self.matched <= fault.after or rng.random() >= fault.probability:
            return False
        self.occurred += 1
        return True


def _page_of(path: str) -> int | None:
    last = path.partition("?")[0].rpartition("/")[2]
    return int(last) if last.isdecimal() else None
