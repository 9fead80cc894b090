"""What Airflow calls the folder that an extraction writes to, and what the events of its assets say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import Asset

from airflow_provider_unleash.core.stores import check_dst, place_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.tasks import is_literal

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

# What may stand in a path as it is; «?» and «#» would end it, and Airflow would drop or sort what follows.
_PLAIN = "/:@!$&'()*+,;=~%"


def asset_of(dst: str | ObjectStoragePath) -> Asset:
    """
    Return the asset (Airflow 2: the dataset) of a ``dst``, for ``outlets`` and ``schedule``; asks nobody.

    Its name and URI are the folder's URL without the Airflow connection: ``s3://aws_default@lake/unleash`` and
    ``s3://lake/unleash/`` are ``s3://lake/unleash``. A bucket that two connections find at two providers, or a
    container of the same name in two accounts of Azure, needs assets that you name yourself.

    :param dst: folder URL, as for ``UnleashToObjectStorageOperator``; no template.
    :raises InvalidArgumentError: it is a template, or does not say where it leads.
    """
    text = str(dst)
    if not is_literal(text):
        raise InvalidArgumentError(f"dst={text!r} is a template: an asset's name is fixed", argument="dst")
    check_dst(text)
    scheme, bucket, key = place_of(text)
    return Asset(uri=f"{scheme}://{bucket}/{quote(key, safe=_PLAIN)}")


def add_to_events(context: Context, outlets: Iterable[Any], summary: Mapping[str, Any]) -> None:
    """
    Let the event of each outlet say what was written.

    :param context: of the task; its ``outlet_events`` become the events when the task succeeds.
    :param outlets: of the task; those that are no assets are left alone, and aliases too: Airflow 2.11 and 3.0 fail a
        task that adds to one an event with a list in it.
    :param summary: as the operator returns it.
    """
    values: Mapping[str, Any] = context
    partition_key = getattr(values.get("dag_run"), "partition_key", None)
    extra = {name: summary[name] for name in ("device_id", "start", "end", "rows", "pages", "files")}
    extra["bytes"] = sum(file["bytes"] for file in summary["files"])
    if partition_key is not None:
        extra["partition_key"] = partition_key
    for outlet in outlets:
        if _is_asset(outlet):
            values["outlet_events"][outlet].extra.update(extra)


def _is_asset(outlet: object) -> bool:
    """Tell whether it is an asset or, of Airflow 3, a reference to one by its name or URI."""
    return isinstance(outlet, Asset) or type(outlet).__name__ in ("AssetNameRef", "AssetUriRef")
