"""Delta tables: Airflow connections for ``deltalake``, which has store clients of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_unleash.core.columns import check_extra_installed
from airflow_provider_unleash.core.delta import masked_errors, table_uri
from airflow_provider_unleash.core.stores import split_bucket, split_dst
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.folders import open_folder
from airflow_provider_unleash.hooks import get_connection

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath
    from deltalake import DeltaTable


def open_delta_table(dst: str | ObjectStoragePath) -> DeltaTable:
    """
    Return the Delta table in a folder, opened with the Airflow connection in its URL; for queries and maintenance.

    :param dst: folder URL, as for :class:`.UnleashAccountToObjectStorageOperator`.
    :raises InvalidArgumentError: if the folder or its connection cannot be used, or deltalake is not installed.
    """
    check_extra_installed("delta", "open_delta_table", "dst")
    from deltalake import DeltaTable

    uri, options = table_uri(open_folder(dst)), storage_options_of(str(dst))
    with masked_errors(lambda: options):
        return DeltaTable(uri, storage_options=options)


def storage_options_of(dst: str) -> dict[str, str]:
    """
    Return the options for a folder; the names are those of
    https://docs.rs/object_store/latest/object_store/#configuration-system.

    Without a connection in ``dst``, Azure and Google options come from the environment.

    :raises InvalidArgumentError: if the connection authenticates in a way that ``deltalake`` does not support.
    """
    _, store, place = split_dst(dst)
    conn_id, _ = split_bucket(place)
    if store.name == "s3":
        return _aws_options(conn_id or None)
    if store.name == "abfs" and conn_id:
        return _azure_options(conn_id)
    if store.name == "gs" and conn_id:
        return _google_options(conn_id)
    return {}


def _aws_options(conn_id: str | None) -> dict[str, str]:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=conn_id)
    session = hook.get_session()
    found = session.get_credentials()  # of the role, if the connection assumes one
    credentials = found.get_frozen_credentials() if found else None
    endpoint = hook.conn_config.get_service_endpoint_url(service_name="s3")
    return _given(
        aws_access_key_id=credentials and credentials.access_key,
        aws_secret_access_key=credentials and credentials.secret_key,
        aws_session_token=credentials and credentials.token,
        aws_region=hook.region_name or session.region_name,
        aws_endpoint_url=endpoint,
        aws_allow_http=_allows_http(endpoint),
        aws_skip_signature=None if found else "true",  # as in the file system of Airflow's provider
    )


def _azure_options(conn_id: str) -> dict[str, str]:
    connection = get_connection(conn_id, "dst")
    extra = _extra_of(connection, f"extra__{connection.conn_type}__")
    if extra.get("connection_string"):
        parts = dict(part.split("=", 1) for part in extra["connection_string"].split(";") if "=" in part)
        endpoint = parts.get("BlobEndpoint")
        return _given(
            account_name=parts.get("AccountName"),
            account_key=parts.get("AccountKey"),
            sas_token=parts.get("SharedAccessSignature"),
            azure_storage_endpoint=endpoint,
            allow_http=_allows_http(endpoint),
        )
    # As in the file system of Airflow's provider: with a tenant, login and password are those of an application.
    is_application = bool(extra.get("tenant_id"))
    host = connection.host or ""
    account = urlsplit(host if "://" in host else f"https://{host}").netloc.partition(".")[0]
    identity = extra.get("workload_identity_client_id") or extra.get("managed_identity_client_id")
    return _given(
        account_name=extra.get("account_name") or (account if "." in host else None) or connection.login,
        account_key=extra.get("account_key") or (None if is_application else connection.password),
        sas_token=extra.get("sas_token"),
        client_id=connection.login if is_application else identity,
        client_secret=connection.password if is_application else None,
        tenant_id=extra.get("tenant_id") or extra.get("workload_identity_tenant_id"),
    )


def _google_options(conn_id: str) -> dict[str, str]:
    extra = _extra_of(get_connection(conn_id, "dst"), "extra__google_cloud_platform__")
    for name in ("impersonation_chain", "key_secret_name", "credential_config_file"):
        if extra.get(name):
            raise InvalidArgumentError(
                f"dst: a Delta table cannot use {name} of the connection {conn_id}; use key_path, keyfile_dict or the "
                "credentials of the environment",
                argument="dst",
            )
    key = extra.get("keyfile_dict")
    endpoint = extra.get("gcs.endpoint")
    return _given(
        google_service_account_key=key if isinstance(key, str) or not key else json.dumps(key),
        google_service_account=extra.get("key_path"),
        google_base_url=endpoint,
        google_skip_signature="true" if extra.get("is_anonymous") else None,
        allow_http=_allows_http(endpoint),
    )


def _extra_of(connection: Any, prefix: str) -> dict[str, Any]:
    """Return the extra fields; old connections have a prefix before each name."""
    extra = connection.extra_dejson
    return {name.removeprefix(prefix): value for name, value in extra.items() if value != ""}


def _allows_http(endpoint: str | None) -> str | None:
    return "true" if endpoint and endpoint.startswith("http://") else None


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}
