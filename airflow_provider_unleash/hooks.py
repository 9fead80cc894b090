"""The hook: an Airflow connection becomes a client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_unleash import get_provider_info
from airflow_provider_unleash.core.columns import check_extra_installed, columns_of
from airflow_provider_unleash.core.frames import check_df_type, to_frame, to_table
from airflow_provider_unleash.core.pages import restart_on_change
from airflow_provider_unleash.core.protocol import API_URL, PAT_PREFIX, redact
from airflow_provider_unleash.core.windows import Window, resolve_window
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.metrics import report_traffic
from airflow_provider_unleash.tasks import no_retry, run_times

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from airflow.providers.common.compat.sdk import Connection, Context

    from airflow_provider_unleash.client import UnleashClient
    from airflow_provider_unleash.core.client import Moment, ReadOptions
    from airflow_provider_unleash.core.frames import FrameType
    from airflow_provider_unleash.core.protocol import Page

DEFAULT_CONN_ID = "unleash_default"


class UnleashHook(BaseHook):
    """
    Creates an :class:`~airflow_provider_unleash.client.UnleashClient` from an Airflow connection.

    :param unleash_conn_id: connection of type "Unleash live".
    """

    conn_name_attr = "unleash_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "unleash"
    hook_name = "Unleash live"

    def __init__(self, unleash_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unleash_conn_id = unleash_conn_id

    def get_conn(self) -> UnleashClient:
        """
        Return a new client; use it as a context manager, or close it.

        :raises InvalidArgumentError: if a field of the connection is invalid; names it.
        """
        return open_client(get_connection(self.unleash_conn_id))

    def get_version(self) -> str:
        """Return the version of the API; the way to check that a key works."""
        with self.get_conn() as client:
            return client.get_version()

    def list_devices(self) -> list[str]:
        """Return the ids of all devices of the account."""
        with self.get_conn() as client:
            return client.list_devices()

    def list_sessions(self) -> list[str]:
        """Return the ids of all sessions of the account."""
        with self.get_conn() as client:
            return client.list_sessions()

    def window_of(self, context: Context | dict[str, Any], window: timedelta | str | None = None) -> Window:
        """
        Return the window of a run by the rules of the operators, for ``window=`` of the methods below.

        :param context: of the task: ``get_current_context()``, or the keyword arguments of a ``@task`` function.
        :param window: length of the window for runs without a data interval.
        :raises WindowError: if the run has no window; the task then fails without retries.
        """
        with no_retry():
            return resolve_window(run_times(context), window=window)

    def iter_pages(
        self, device_id: str, start: Moment | None = None, end: Moment | None = None, **options: Unpack[ReadOptions]
    ) -> Generator[Page, None, None]:
        """
        Yield the pages of ``[start, end]``, or of ``window``.

        Parameters and errors are those of :meth:`.UnleashClient.iter_pages`.
        """
        with self.get_conn() as client:
            yield from client.iter_pages(device_id, start, end, **options)

    def iter_records(
        self, device_id: str, start: Moment | None = None, end: Moment | None = None, **options: Unpack[ReadOptions]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``[start, end]``, or of ``window``, as dicts; see :meth:`.UnleashClient.iter_pages`."""
        with self.get_conn() as client:
            yield from client.iter_records(device_id, start, end, **options)

    def get_records(
        self, device_id: str, start: Moment | None = None, end: Moment | None = None, **options: Unpack[ReadOptions]
    ) -> list[dict[str, Any]]:
        """
        Return the rows of ``[start, end]``, or of ``window``, as dicts; see :meth:`.UnleashClient.iter_pages`.

        Starts again if pages change while they are read.
        """
        with self.get_conn() as client:
            return client.get_records(device_id, start, end, **options)

    def get_arrow_table(
        self,
        device_id: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        column_types: Mapping[str, str] | None = None,
        **options: Unpack[ReadOptions],
    ) -> pa.Table:
        """
        Return the rows of ``[start, end]``, or of ``window``, as an Arrow table.

        It has the columns and types of the Parquet files.

        Starts again if pages change while they are read; other parameters and errors as in :meth:`get_records`.

        :param column_types: additional columns, such as ``{"confidence": "float64"}``; the types are string, int64,
            float64, bool and timestamp.
        :raises InvalidArgumentError: if pyarrow is not installed.
        :raises UnexpectedResponseError: if a value does not fit its column.
        """
        columns_of(column_types)
        check_extra_installed("parquet", "An Arrow table", "column_types")

        def read() -> pa.Table:
            with closing(self.iter_pages(device_id, start, end, **options)) as pages:
                return to_table(pages, column_types)

        return restart_on_change(read)

    @overload
    def get_df(
        self,
        device_id: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        df_type: Literal["pandas"] = "pandas",
        column_types: Mapping[str, str] | None = None,
        **options: Unpack[ReadOptions],
    ) -> pd.DataFrame: ...
    @overload
    def get_df(
        self,
        device_id: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        df_type: Literal["polars"],
        column_types: Mapping[str, str] | None = None,
        **options: Unpack[ReadOptions],
    ) -> pl.DataFrame: ...
    def get_df(
        self,
        device_id: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        df_type: FrameType = "pandas",
        column_types: Mapping[str, str] | None = None,
        **options: Unpack[ReadOptions],
    ) -> pd.DataFrame | pl.DataFrame:
        """
        Return the rows of ``[start, end]``, or of ``window``, as a data frame; other parameters and errors as in
        :meth:`get_arrow_table`.

        pandas gets its nullable types (``string``, ``Int64``, ``Float64``, ``boolean``), so that nulls stay nulls and
        whole numbers stay whole; ``timestamp`` is ``datetime64[ms, UTC]``.

        :param df_type: ``pandas`` or ``polars``; the extra of the same name installs what it needs.
        :raises InvalidArgumentError: if the library is not installed.
        """
        check_df_type(df_type)
        return to_frame(self.get_arrow_table(device_id, start, end, column_types=column_types, **options), df_type)

    def test_connection(self) -> tuple[bool, str]:
        """Request the API's version once; return whether that worked, and a sentence about it."""
        try:
            # One attempt, because someone is waiting.
            with open_client(get_connection(self.unleash_conn_id), max_attempts=1) as client:
                return True, f"{client.base_url} accepts the key; API version {client.get_version()}"
        except Exception as error:  # of any kind; the form shows text, not a traceback
            return False, str(error)

    # Airflow before 3.2 calls these two methods; newer versions read the provider info.

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import BooleanField, IntegerField, StringField
        from wtforms.validators import Optional

        # Airflow 2.11 accepts exactly these classes, 3.0 and 3.1 exactly these arguments.
        field_classes: dict[str, Any] = {"boolean": BooleanField, "integer": IntegerField}
        widgets: dict[str, Any] = {}
        for name, field in _form()["conn-fields"].items():
            schema = field["schema"]
            kind = schema["type"][0]
            options: dict[str, Any] = {} if kind == "boolean" else {"widget": BS3TextFieldWidget()}
            validators = [Optional(), *([_accept_true_and_false] if schema.get("enum") == [1, 0] else [])]
            widgets[name] = field_classes.get(kind, StringField)(
                field["label"], validators=validators, description=field["description"], **options
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        return {key.replace("-", "_"): value for key, value in _form()["ui-field-behaviour"].items()}


class ConnectedTask:
    """A task that sends requests. If Airflow kills it, they end at once and it cleans up."""

    ui_color = "#d8e8f6"
    unleash_conn_id: str
    _client: UnleashClient | None = None
    _is_killed = False

    @contextmanager
    def _open_client(self) -> Iterator[UnleashClient]:
        with UnleashHook(self.unleash_conn_id).get_conn() as client:
            self._client = client
            if self._is_killed:  # between the requests of a sensor, or before the first one
                client.cancel()
            try:
                yield client
            finally:
                del self._client

    def on_kill(self) -> None:
        self._is_killed = True
        if self._client is not None:
            self._client.cancel()


def _form() -> dict[str, Any]:
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form


def _accept_true_and_false(form: object, field: Any) -> None:
    """Validate a number of the form; true and false, from connections created elsewhere, are 1 and 0."""
    typed = "".join(field.raw_data).strip().lower()
    if typed in {"true", "false"}:
        field.data, field.errors = int(typed == "true"), []
    elif field.data not in {1, 0}:
        field.errors = ["Must be 1 or 0."]


def get_connection(conn_id: str, argument: str = "unleash_conn_id") -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise missing_connection(error, conn_id, argument) from None


def missing_connection(error: Exception, conn_id: str, argument: str = "unleash_conn_id") -> InvalidArgumentError:
    is_url = "@" in conn_id or "://" in conn_id  # there may be a password in it
    message = "The id of a connection cannot be a URL" if is_url else str(error)
    return InvalidArgumentError(f"{message}. Check {argument}", argument=argument)


def open_client(connection: Connection, **overrides: Any) -> UnleashClient:
    """Return a client for an Airflow connection; ``overrides`` are parameters that take precedence over it."""
    from airflow import __version__ as airflow_version

    from airflow_provider_unleash.client import UnleashClient

    conn_id = connection.conn_id
    try:
        _check_key_is_in_password(connection)
        return UnleashClient(
            connection.password or "",
            user_agent=f"airflow/{airflow_version}",
            **{"on_close": report_traffic, **_client_arguments(connection), **overrides},
        )
    except InvalidArgumentError as error:
        # The message may contain the key, if another field has it too. Drop the connection and the traceback, because
        # some log handlers print the variables of each frame.
        message = redact(str(error), (connection.password or "").strip())
        del connection
        raise InvalidArgumentError(f"Connection {conn_id!r}: {message}", argument=error.argument) from None
    except BaseException as error:  # such as a task timeout
        del connection
        raise error.with_traceback(None) from None


def _check_key_is_in_password(connection: Connection) -> None:
    """Check that the key is in the password and in no other field, before any of them is used or printed."""
    for field in ("host", "login", "schema", "extra"):
        if PAT_PREFIX in str(getattr(connection, field, None) or "").lower():
            raise InvalidArgumentError(
                f"{field} contains a personal access token, which belongs in the password. It may be in logs already: "
                "revoke it and create a new one",
                argument=field,
            )
    if connection.login and not connection.password:
        raise InvalidArgumentError("The API key belongs in the password, but only login is set", argument="password")


def _check_extra_names(extra: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in extra.keys() - set(known):
        spelled = name.strip().lower().replace("-", "_")
        similar = get_close_matches(spelled, known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"the extras are {', '.join(known)}"
        if not similar and any(word in spelled for word in ("key", "token", "secret", "password")):
            hint = "the API key or token belongs in the password"
        raise InvalidArgumentError(f"Unknown extra {name!r}: {hint}", argument="extra")


def _read_extra(connection: Connection) -> Mapping[str, Any]:
    """Return the extra, which must be a JSON object; Airflow would read any other text as empty."""
    text = (connection.extra or "").strip()
    if not text:
        return {}
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidArgumentError('extra must be a JSON object, such as {"timeout": 60}', argument="extra")
    extra: Mapping[str, Any] = connection.extra_dejson  # Airflow masks its secrets in logs
    return extra


def _client_arguments(connection: Connection) -> dict[str, Any]:
    extra = _read_extra(connection)
    fields = _form()["conn-fields"]
    _check_extra_names(extra, list(fields))
    by_type: dict[str, Callable[[str], Any]] = {"string": str, "number": float, "integer": int, "boolean": _parse_bool}
    by_name: dict[str, Callable[[str], Any]] = {"mask_stream_tokens": _parse_bool, "verify": _parse_verify}
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        value, schema = extra.get(name), field["schema"]
        if value is None or value == "":
            continue
        parse = by_name.get(name) or by_type[schema["type"][0]]
        try:
            arguments[name] = parse(str(value))  # from text, so that true is not 1.0 and 4.5 is not 4
        except (KeyError, ValueError):
            expected = " or ".join(map(str, schema.get("enum", [_TYPE_NAMES[schema["type"][0]]])))
            # Without the value, which may be an older key than the password.
            raise InvalidArgumentError(f"extra {name} must be {expected}", argument=name) from None
    if connection.host or connection.port:
        arguments["base_url"] = _base_url((connection.host or API_URL).strip(), connection.port)
    return arguments


_TYPE_NAMES = {"number": "a number", "integer": "a whole number", "boolean": "true or false"}
_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def _parse_bool(text: str) -> bool:
    return _BOOLS[text.strip().lower()]


def _parse_verify(text: str) -> bool | str:
    return _BOOLS.get(text.strip().lower(), text)


def _base_url(host: str, port: int | None) -> str:
    """Return host and port as one URL; a port in the host takes precedence."""
    scheme, separator, place = host.rpartition("://")
    name, slash, path = place.partition("/")
    has_port = re.search(r":\d*$", name)
    return host if port is None or has_port else f"{scheme}{separator}{name}:{port}{slash}{path}"
