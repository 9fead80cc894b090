"""Airflow's side of the door: a connection becomes a client, a run plain values, a permanent error a failed task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowFailException, BaseHook

from airflow_provider_unleash import get_provider_info
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    BadRequestError,
    InvalidArgumentError,
    NotFoundError,
    PermanentError,
    TransportError,
    UnexpectedResponseError,
    UnleashError,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from airflow.providers.common.compat.sdk import Connection, Context

    from airflow_provider_unleash.client import UnleashClient
    from airflow_provider_unleash.frames import FrameType
    from airflow_provider_unleash.protocol import Endpoint, Page

log = logging.getLogger(__name__)

DEFAULT_CONN_ID = "unleash_default"


class UnleashHook(BaseHook):
    """
    Makes an :class:`~airflow_provider_unleash.client.UnleashClient` from an Airflow connection.

    :param unleash_conn_id: connection of type «Unleash live».
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

        :raises InvalidArgumentError: a field of the connection cannot be used; names it.
        """
        return open_client(self.get_connection(self.unleash_conn_id))

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

    def iter_pages(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> Generator[Page, None, None]:
        """Yield the pages of ``[start, end]``, as :meth:`.UnleashClient.iter_pages` does."""
        client = self.get_conn()
        pages = client.iter_pages(device_id, start, end, endpoint=endpoint, page_concurrency=page_concurrency)
        return _with_client(client, pages)

    def iter_records(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``[start, end]``, as :meth:`.UnleashClient.iter_records` does."""
        pages = self.iter_pages(device_id, start, end, endpoint=endpoint, page_concurrency=page_concurrency)
        return (record for page in pages for record in page.records())

    def get_records(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the rows of ``[start, end]``, as :meth:`.UnleashClient.get_records` does."""
        with self.get_conn() as client:
            return client.get_records(device_id, start, end, endpoint=endpoint, page_concurrency=page_concurrency)

    def get_arrow_table(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
        column_types: Mapping[str, str] | None = None,
    ) -> pa.Table:
        """
        Return the rows of ``[start, end]`` as an Arrow table, its columns and types those of the Parquet files.

        Starts again when pages change while they are read; other parameters and errors as :meth:`get_records`.

        :param column_types: further columns, e.g. ``{"confidence": "float64"}``; types are string, int64, float64,
            bool, timestamp.
        :raises InvalidArgumentError: pyarrow is not installed.
        :raises UnexpectedResponseError: a value does not fit its column.
        """
        from airflow_provider_unleash.client import restart_on_change
        from airflow_provider_unleash.writers import RecordBatches, check_extra, columns_of

        columns = columns_of(column_types)
        check_extra("parquet", "An Arrow table", "column_types")
        batches = RecordBatches(columns)
        with self.get_conn() as client:
            iter_pages = partial(client.iter_pages, endpoint=endpoint, page_concurrency=page_concurrency)

            def read() -> pa.Table:
                with closing(iter_pages(device_id, start, end)) as pages:
                    return batches.read(pages)

            return restart_on_change(read)

    @overload
    def get_df(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        df_type: Literal["pandas"] = "pandas",
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
        column_types: Mapping[str, str] | None = None,
    ) -> pd.DataFrame: ...
    @overload
    def get_df(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        df_type: Literal["polars"],
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
        column_types: Mapping[str, str] | None = None,
    ) -> pl.DataFrame: ...
    def get_df(
        self,
        device_id: str,
        start: datetime | int,
        end: datetime | int,
        *,
        df_type: FrameType = "pandas",
        endpoint: Endpoint = "compact",
        page_concurrency: int | None = None,
        column_types: Mapping[str, str] | None = None,
    ) -> pd.DataFrame | pl.DataFrame:
        """
        Return the rows of ``[start, end]`` as a data frame; other parameters and errors as :meth:`get_arrow_table`.

        pandas gets its nullable types (``string``, ``Int64``, ``Float64``, ``boolean``), so that a null stays one and a
        whole number whole; ``timestamp`` is ``datetime64[ms, UTC]``.

        :param df_type: ``pandas`` or ``polars``, of which the extra of that name installs what it needs.
        :raises InvalidArgumentError: the library is not installed.
        """
        from airflow_provider_unleash.frames import check_df_type, to_frame

        check_df_type(df_type)
        options: dict[str, Any] = {"endpoint": endpoint, "page_concurrency": page_concurrency}
        return to_frame(self.get_arrow_table(device_id, start, end, column_types=column_types, **options), df_type)

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the API's version once, and say in words what is wrong."""
        try:
            # One attempt: somebody looks at a button and waits.
            with open_client(self.get_connection(self.unleash_conn_id), max_attempts=1) as client:
                return True, f"{client.base_url} answers, and takes the key; API version {client.get_version()}"
        except UnleashError as error:
            return False, f"{_diagnosis(error)}: {error}"
        except Exception as error:  # e.g. no such connection; the form shows text, not a traceback
            return False, str(error)

    # Airflow before 3.2 reads these two; later versions read the provider info.

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's widgets for the connection's extras."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import BooleanField, IntegerField, StringField
        from wtforms.validators import Optional

        # Of these classes and arguments only: 2.11 refuses a class made of one, 3.0 and 3.1 know no other argument.
        kinds: dict[str, Any] = {"boolean": BooleanField, "integer": IntegerField}
        widgets: dict[str, Any] = {}
        for name, field in _form()["conn-fields"].items():
            schema = field["schema"]
            kind = schema["type"][0]
            options: dict[str, Any] = {} if kind == "boolean" else {"widget": BS3TextFieldWidget()}
            validators = [Optional(), *([_take_true_or_false] if schema.get("enum") == [1, 0] else [])]
            widgets[name] = kinds.get(kind, StringField)(
                field["label"], validators=validators, description=field["description"], **options
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return which of the form's fields are hidden, renamed, and what stands in the empty ones."""
        return {key.replace("-", "_"): value for key, value in _form()["ui-field-behaviour"].items()}


def _form() -> dict[str, Any]:
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form


def _take_true_or_false(form: object, field: Any) -> None:
    """Validate a number of the form: true and false, which a connection made elsewhere may have, are 1 and 0."""
    typed = "".join(field.raw_data).strip().lower()
    if typed in {"true", "false"}:
        field.data, field.errors = int(typed == "true"), []
    elif field.data not in {1, 0}:
        field.errors = ["Neither 1 nor 0."]


def _with_client(client: UnleashClient, pages: Generator[Page, None, None]) -> Generator[Page, None, None]:
    with client, closing(pages):
        yield from pages


def _diagnosis(error: UnleashError) -> str:
    if isinstance(error, AuthenticationError):
        return "Wrong or expired key"
    if isinstance(error, (BadRequestError, NotFoundError, UnexpectedResponseError)):
        return "Not the Unleash live Analytics API"
    if isinstance(error, InvalidArgumentError):
        return "The connection cannot be used"
    if isinstance(error, TransportError):
        return {
            "tls": "TLS problem",
            "timeout": "No answer in time",
            "truncated": "The answer was cut short",
            "not_json": "Not the Unleash live Analytics API, or a proxy before it",
        }.get(error.reason, "No route to the API")
    return "The API has a problem"


# ---- a connection becomes a client -------------------------------------------------------------


def open_client(connection: Connection, **overrides: Any) -> UnleashClient:
    """
    Return a client for an Airflow connection.

    :param connection: of type ``unleash``; its password is the key.
    :param overrides: parameters of the client that win over the connection's.
    :raises InvalidArgumentError: a field cannot be used; names the connection and the field.
    """
    from airflow import __version__ as airflow_version

    from airflow_provider_unleash.client import UnleashClient
    from airflow_provider_unleash.metrics import report_traffic

    conn_id = connection.conn_id
    try:
        arguments = {"on_close": report_traffic, **_client_arguments(connection), **overrides}
        return UnleashClient(connection.password or "", user_agent=f"airflow/{airflow_version}", **arguments)
    except InvalidArgumentError as error:
        # A key may have been pasted into another field, too. And the connection shows its password to log handlers
        # that write the variables of a traceback's frames.
        said = str(error).replace(connection.password or "\0", "***")
        del connection
        raise InvalidArgumentError(f"Connection {conn_id!r}: {said}", argument=error.argument) from None


def _client_arguments(connection: Connection) -> dict[str, Any]:
    from airflow_provider_unleash.protocol import API_URL

    extra = connection.extra_dejson
    readers: dict[str, Callable[[Any], Any]] = {
        "auth": str,
        "timeout": lambda value: float(str(value)),  # through text, so that true is no 1.0 and 4.5 no 4
        "max_attempts": lambda value: int(str(value)),
        "page_concurrency": lambda value: int(str(value)),
        "mask_stream_tokens": _to_bool,
        "verify": _to_verify,
        "allow_http": _to_bool,
    }
    arguments: dict[str, Any] = {}
    for name, read in readers.items():
        value = extra.get(name)
        if value is None or value == "":
            continue
        try:
            arguments[name] = read(value)
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"extra {name}={value!r} cannot be read as {_expected(name)}", argument=name
            ) from None
    if connection.host or connection.port:
        arguments["base_url"] = _base_url((connection.host or API_URL).strip(), connection.port)
    return arguments


def _expected(name: str) -> str:
    schema = _form()["conn-fields"][name]["schema"]
    return " or ".join(map(str, schema.get("enum", schema["type"][:1])))


def _to_bool(value: Any) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False}
    if str(value).strip().lower() not in known:
        raise ValueError(value)
    return known[str(value).strip().lower()]


def _to_verify(value: Any) -> bool | str:
    try:
        return _to_bool(value)
    except ValueError:
        return str(value)


def _base_url(host: str, port: int | None) -> str:
    """Return host and port as one URL; a port that the host already names wins."""
    url = host if "://" in host else f"https://{host}"
    parts = urlsplit(url)
    try:
        named = parts.port
    except ValueError:
        return url  # the client says what is wrong with it
    if port is None or named is not None or not parts.netloc:
        return url
    return parts._replace(netloc=f"{parts.netloc}:{port}").geturl()


# ---- a run becomes plain values ----------------------------------------------------------------


class RunMoments(TypedDict):
    """What the moments of a run are, None where it has none; the arguments of ``resolve_window``."""

    data_interval_start: datetime | None
    data_interval_end: datetime | None
    partition_date: datetime | None
    logical_date: datetime | None
    run_after: datetime | None
    undated_partition: str | None
    dag_timezone: tzinfo
    run_kind: str


def moments_of(context: Context) -> RunMoments:
    """Read the moments of a run; Airflow 3 leaves keys out that a run does not have, so nothing is indexed."""
    values: Mapping[str, Any] = context
    dag, dag_run = values.get("dag"), values.get("dag_run")
    run_type = getattr(dag_run, "run_type", "")
    return RunMoments(
        data_interval_start=values.get("data_interval_start"),
        data_interval_end=values.get("data_interval_end"),
        partition_date=values.get("partition_date") or getattr(dag_run, "partition_date", None),
        logical_date=values.get("logical_date"),
        # Airflow 2.11 has no run_after; a run's start is the nearest it knows.
        run_after=getattr(dag_run, "run_after", None) or getattr(dag_run, "start_date", None),
        # Airflow 3.2 tells a task the key of its partition only.
        undated_partition=None if hasattr(dag_run, "partition_date") else getattr(dag_run, "partition_key", None),
        dag_timezone=getattr(dag, "timezone", None) or timezone.utc,
        run_kind=str(getattr(run_type, "value", run_type) or ""),
    )


# ---- arguments of a task -----------------------------------------------------------------------


def is_visible(value: Any) -> bool:
    """Tell whether an argument is final when the DAG is parsed: no template, and no output of another task."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_visible, value))
    if isinstance(value, Mapping):
        return all(map(is_visible, value.values()))
    return value is None or isinstance(value, (int, float, date, timedelta))


def check_visible_bounds(since: Any, until: Any) -> None:
    """
    Check the bounds of sessions as far as they are known when the DAG is parsed.

    :raises InvalidArgumentError: one cannot be read, or nothing can lie between them.
    """
    from airflow_provider_unleash.window import session_bounds

    with failing_for_good_when_mapped():
        session_bounds(*(value if is_visible(value) else None for value in (since, until)))


# ---- a permanent error fails the task ----------------------------------------------------------


@contextmanager
def failing_for_good() -> Iterator[None]:
    """Turn an error that repeating cannot help into one that Airflow does not retry."""
    try:
        yield
    except PermanentError as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


@contextmanager
def failing_for_good_when_mapped() -> Iterator[None]:
    """
    Let an argument's error be one that Airflow does not retry, and stay what it is.

    A constructor runs when a DAG is parsed, where a ValueError is expected, and again when a mapped task runs.
    """
    try:
        yield
    except InvalidArgumentError as error:
        final = type(type(error).__name__, (type(error), AirflowFailException), {})
        raise final(str(error), argument=error.argument) from None
