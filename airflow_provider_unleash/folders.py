"""The folder that a task writes to: its URL with the Airflow connection in it becomes a path."""

from __future__ import annotations

from difflib import get_close_matches

from airflow.providers.common.compat.sdk import ObjectStoragePath
from upath.registry import available_implementations

from airflow_provider_unleash.core.stores import check_dst, split_bucket, split_dst
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.hooks import get_connection


def check_folder(dst: str) -> None:
    """Check that the URL or absolute path of a folder leads where it says, with a known scheme."""
    check_dst(dst)
    scheme = split_dst(dst)[0].lower()
    known = available_implementations(fallback=True)
    if scheme not in known:
        similar = get_close_matches(scheme, known, n=1)
        hint = f"; did you mean {similar[0]}://?" if similar else ""
        raise InvalidArgumentError(f"dst: no file system has the scheme {scheme}://{hint}", argument="dst")


def open_folder(dst: str | ObjectStoragePath) -> ObjectStoragePath:
    """Check the URL or absolute path of a folder, and return the folder."""
    check_folder(str(dst))
    _, store, place = split_dst(str(dst))
    conn_id, _ = split_bucket(place)
    if conn_id:
        get_connection(conn_id, "dst")  # the Amazon provider would continue without credentials
    try:
        # ObjectStoragePath does not accept one of a plain path.
        folder = dst if isinstance(dst, ObjectStoragePath) else ObjectStoragePath(dst)
        _ = folder.fs
    except (ImportError, ValueError) as error:
        extra = store.extra
        hint = f"pip install 'airflow-provider-unleash[{extra}]'" if extra else "install the provider that serves it"
        raise InvalidArgumentError(f"dst={str(dst)!r} cannot be used: {error}; {hint}", argument="dst") from None
    return folder
