"""
Errors that this package raises. Catch the branch that your policy needs.

.. code-block:: text

    UnleashError
    ├── TransientError               the same request may succeed later
    │   ├── TransportError           no response, a truncated one, or one that is not JSON
    │   ├── RateLimitError           429, or 403 with Retry-After
    │   ├── ServerError              5xx, 408, 425
    │   ├── EmptyResultError         on_empty="fail"
    │   ├── PartialExtractionError   some devices failed, at least one of them transiently
    │   └── SnapshotChangedError     pages changed while they were read
    └── PermanentError               repeating cannot help
        ├── AuthenticationError      401, 403
        ├── NotFoundError            404, or a device that the account does not have
        ├── BadRequestError          any other 4xx, and a redirect
        ├── UnexpectedResponseError  JSON, but not this API's
        ├── InvalidArgumentError     also a ValueError
        │   └── WindowError          the run has no usable window
        ├── EmptyReplacementError    no rows would replace rows
        ├── PermanentPartialExtractionError    some devices failed, all of them permanently
        └── ResultTooLargeError      too much for XCom, mapped tasks or memory
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class UnleashError(Exception):
    """
    Base class of all errors that this package raises. Each keeps the facts about itself as attributes.

    :param message: what happened and what to do; never contains the API key.
    :param facts: values of the attributes.
    :ivar status: HTTP status of the response; None if there was no response.
    :ivar url: URL of the request.
    """

    status: int | None = None
    url: str | None = None

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        for name, value in facts.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name}")
            setattr(self, name, value)


class TransientError(UnleashError):
    """
    The same request may succeed later: retried here first, then raised so that Airflow's retries continue.

    :ivar retry_after: seconds that the server asked to wait, if it did.
    """

    retry_after: float | None = None


class TransportError(TransientError):
    """
    No response, a truncated one, or one that is not JSON (a proxy's maintenance page).

    :ivar reason: ``tls``, ``connection`` (no connection to the server), ``reset`` (closed before a response),
        ``timeout``, ``truncated``, ``not_json`` or ``cancelled``.
    """

    reason: str = "connection"


class RateLimitError(TransientError):
    """The API responded with 429, or 403 and ``Retry-After``; ``retry_after`` has the seconds it asked for."""


class ServerError(TransientError):
    """The API responded with 5xx, 408 or 425."""


class EmptyResultError(TransientError):
    """The window has no rows and ``on_empty="fail"``; the data may be late."""


class PartialExtractionError(TransientError):
    """
    Some devices of an account failed, at least one of them in a way that a retry may cure.

    :ivar errors: the error of each failed device.
    :ivar untried: number of devices that were not tried.
    """

    errors: Mapping[str, Exception] = MappingProxyType({})
    untried: int = 0


class SnapshotChangedError(TransientError):
    """The pages of a window changed while they were read."""


class PermanentError(UnleashError):
    """Repeating cannot help: the task fails on its first try."""


class AuthenticationError(PermanentError):
    """The API refused the key: 401 or 403."""


class NotFoundError(PermanentError):
    """
    The API responded with 404, or the account does not have the device.

    :ivar device_id: the requested device, if known.
    """

    device_id: str | None = None


class BadRequestError(PermanentError):
    """
    The API responded with another 4xx, or with a redirect, which is not followed because it would send the key along.

    :ivar location: target of the redirect.
    """

    location: str | None = None


class UnexpectedResponseError(PermanentError):
    """
    The response is JSON, but not as this API documents it.

    :ivar page: number of the page, from 1.
    :ivar row: index of the row in its page, from 0.
    :ivar field: name of the field.
    :ivar value: its value.
    """

    page: int | None = None
    row: int | None = None
    field: str | None = None
    value: object = None


class InvalidArgumentError(PermanentError, ValueError):
    """
    A parameter or connection field is invalid.

    :ivar argument: name of the parameter or field.
    :ivar path: the one object that cannot be written, if others may be.
    """

    argument: str | None = None
    path: str | None = None


class WindowError(InvalidArgumentError):
    """The run has no usable window, or the window ends before it starts."""


class EmptyReplacementError(PermanentError):
    """
    A response without rows would have replaced an object that has rows.

    :ivar path: the object, which is unchanged.
    """

    path: str | None = None


class PermanentPartialExtractionError(PermanentError):
    """
    Some devices of an account failed, and no retry can help any of them.

    :ivar errors: the error of each failed device.
    :ivar untried: number of devices that were not tried.
    """

    errors: Mapping[str, Exception] = MappingProxyType({})
    untried: int = 0


class ResultTooLargeError(PermanentError):
    """
    The rows do not fit into an XCom, or a response body is too large.

    :ivar limit: the limit that was exceeded, in bytes.
    """

    limit: int | None = None
