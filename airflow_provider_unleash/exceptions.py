"""
What can go wrong, as types: catch the branch that your policy needs.

.. code-block:: text

    UnleashError
    ├── TransientError               the same request may succeed later
    │   ├── TransportError           no answer, one cut short, or one that is not JSON
    │   ├── RateLimitError           429
    │   ├── ServerError              5xx, 408, 425
    │   ├── EmptyResultError         on_empty="fail"
    │   └── SnapshotChangedError     pages changed under the reader
    └── PermanentError               repeating cannot help
        ├── AuthenticationError      401, 403
        ├── NotFoundError            404, or a device that the account does not have
        ├── BadRequestError          any other 4xx, and a redirect
        ├── UnexpectedResponseError  JSON, but not this API's
        ├── InvalidArgumentError     also a ValueError
        │   └── WindowError          a run that means no window
        ├── EmptyReplacementError    no rows would replace rows
        └── ResultTooLargeError      too much for XCom
"""

from __future__ import annotations

from typing import Any


class UnleashError(Exception):
    """
    Anything that this package raises of its own accord.

    :param message: what happened and what to do; never contains the API key.
    :param status: HTTP status of the answer, None where there was none.
    :param url: address of the request.
    """

    def __init__(self, message: str, *, status: int | None = None, url: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.url = url


class TransientError(UnleashError):
    """
    The same request may succeed later: retried inside, then raised, so that Airflow's retries go on.

    :param retry_after: seconds that the server asked to wait, None where it did not.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after


class TransportError(TransientError):
    """
    No answer, one cut short, or one that is not JSON (a proxy's maintenance page).

    :param reason: ``tls``, ``timeout``, ``connection``, ``truncated`` or ``not_json``.
    """

    def __init__(self, message: str, *, reason: str = "connection", **facts: Any) -> None:
        super().__init__(message, **facts)
        self.reason = reason


class RateLimitError(TransientError):
    """The API answered 429; ``retry_after`` carries the seconds it asked for."""


class ServerError(TransientError):
    """The API answered 5xx, 408 or 425."""


class EmptyResultError(TransientError):
    """The window has no rows and ``on_empty="fail"``; the data may only be late."""


class SnapshotChangedError(TransientError):
    """The pages of a window changed while they were read."""


class PermanentError(UnleashError):
    """Repeating the same thing cannot help: a task fails on its first try."""


class AuthenticationError(PermanentError):
    """The API refused the key: 401 or 403."""


class NotFoundError(PermanentError):
    """
    The API answered 404, or the account does not have the device.

    :param device_id: the device that was asked for, where it is known.
    """

    def __init__(self, message: str, *, device_id: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.device_id = device_id


class BadRequestError(PermanentError):
    """
    The API answered another 4xx, or a redirect, which is never followed: it would carry the key along.

    :param location: where a redirect pointed.
    """

    def __init__(self, message: str, *, location: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.location = location


class UnexpectedResponseError(PermanentError):
    """
    The answer is JSON, but not as this API documents it.

    :param page: number of the page, from 1.
    :param row: index of the row in its page, from 0.
    :param field: name of the field.
    :param value: what stood there.
    """

    def __init__(
        self,
        message: str,
        *,
        page: int | None = None,
        row: int | None = None,
        field: str | None = None,
        value: object = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.page = page
        self.row = row
        self.field = field
        self.value = value


class InvalidArgumentError(PermanentError, ValueError):
    """
    A parameter or a connection field that cannot be used.

    :param argument: name of the parameter or field.
    """

    def __init__(self, message: str, *, argument: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.argument = argument


class WindowError(InvalidArgumentError):
    """The run means no window, or one that ends before it starts."""


class EmptyReplacementError(PermanentError):
    """
    An answer without rows would have replaced an object that has rows.

    :param path: the object, which is as it was.
    """

    def __init__(self, message: str, *, path: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.path = path


class ResultTooLargeError(PermanentError):
    """
    The rows are more than fits into an XCom, or one body more than may be read.

    :param limit: the limit that was passed, bytes.
    """

    def __init__(self, message: str, *, limit: int | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.limit = limit
