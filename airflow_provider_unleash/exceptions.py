"""
Errors that this package raises. Catch the branch that your policy needs.

.. code-block:: text

    UnleashError
    ├── TransientError               the same request may succeed later
    │   ├── TransportError           no response, a truncated one, or one that is not JSON
    │   ├── RateLimitError           429
    │   ├── ServerError              5xx, 408, 425
    │   ├── EmptyResultError         on_empty="fail"
    │   └── SnapshotChangedError     pages changed while they were read
    └── PermanentError               repeating cannot help
        ├── AuthenticationError      401, 403
        ├── NotFoundError            404, or a device that the account does not have
        ├── BadRequestError          any other 4xx, and a redirect
        ├── UnexpectedResponseError  JSON, but not this API's
        ├── InvalidArgumentError     also a ValueError
        │   └── WindowError          the run has no usable window
        ├── EmptyReplacementError    no rows would replace rows
        └── ResultTooLargeError      too much for XCom
"""

from __future__ import annotations

from typing import Any


class UnleashError(Exception):
    """
    Base class of all errors that this package raises.

    :param message: what happened and what to do; never contains the API key.
    :param status: HTTP status of the response; None if there was no response.
    :param url: URL of the request.
    """

    def __init__(self, message: str, *, status: int | None = None, url: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.url = url


class TransientError(UnleashError):
    """
    The same request may succeed later: retried here first, then raised so that Airflow's retries continue.

    :param retry_after: seconds that the server asked to wait, if it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.retry_after = retry_after


class TransportError(TransientError):
    """
    No response, a truncated one, or one that is not JSON (a proxy's maintenance page).

    :param reason: ``tls``, ``timeout``, ``connection``, ``truncated`` or ``not_json``.
    """

    def __init__(self, message: str, *, reason: str = "connection", **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.reason = reason


class RateLimitError(TransientError):
    """The API responded with 429; ``retry_after`` has the seconds it asked for."""


class ServerError(TransientError):
    """The API responded with 5xx, 408 or 425."""


class EmptyResultError(TransientError):
    """The window has no rows and ``on_empty="fail"``; the data may arrive late."""


class SnapshotChangedError(TransientError):
    """The pages of a window changed while they were read."""


class PermanentError(UnleashError):
    """Repeating cannot help: a task fails on its first try."""


class AuthenticationError(PermanentError):
    """The API rejected the key: 401 or 403."""


class NotFoundError(PermanentError):
    """
    The API responded with 404, or the account does not have the device.

    :param device_id: the requested device, if known.
    """

    def __init__(self, message: str, *, device_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.device_id = device_id


class BadRequestError(PermanentError):
    """
    The API responded with any other 4xx, or with a redirect, which is never followed: it would expose the key.

    :param location: target of the redirect.
    """

    def __init__(self, message: str, *, location: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.location = location


class UnexpectedResponseError(PermanentError):
    """
    The response is JSON, but not what this API documents.

    :param page: page number, from 1.
    :param row: index of the row in its page, from 0.
    :param field: name of the field.
    :param value: the unexpected value.
    """

    def __init__(
        self,
        message: str,
        *,
        page: int | None = None,
        row: int | None = None,
        field: str | None = None,
        value: object = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.page = page
        self.row = row
        self.field = field
        self.value = value


class InvalidArgumentError(PermanentError, ValueError):
    """
    A parameter or connection field has a value that cannot be used.

    :param argument: name of the parameter or field.
    """

    def __init__(self, message: str, *, argument: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.argument = argument


class WindowError(InvalidArgumentError):
    """The run has no window, or one that ends before it starts."""


class EmptyReplacementError(PermanentError):
    """
    A response without rows would replace an object that has rows.

    :param path: path of the object, which is unchanged.
    """

    def __init__(self, message: str, *, path: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.path = path


class ResultTooLargeError(PermanentError):
    """
    The rows do not fit into XCom, or a response body is too large to read.

    :param limit: the exceeded limit in bytes.
    """

    def __init__(self, message: str, *, limit: int | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.limit = limit
