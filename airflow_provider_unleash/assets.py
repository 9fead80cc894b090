"""The asset of an extraction's folder, and what its events contain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import Asset

from airflow_provider_unleash.core.stores import check_dst, place_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.tasks import is_literal

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

# Characters that stay unquoted. Not "?" and "#": they end the path, and Airflow drops or reorders what follows.
_SAFE_CHARACTERS = "/:@!$&'()*+,;=~%"


def asset_of(dst: str | ObjectStoragePath) -> Asset:
    """
    Return the asset (Airflow 2: dataset) of a ``dst``, for ``outlets`` and ``schedule``; makes no requests.

    Its name and URI are the folder's URL without the Airflow connection: ``s3://aws_default@lake/unleash`` and
    ``s3://lake/unleash/`` both become ``s3://lake/unleash``. Name the assets yourself if two connections use the same
    bucket name at different providers, or the same container name in different Azure accounts.

    :param dst: folder URL, as for ``UnleashToObjectStorageOperator``; not a template.
    :raises InvalidArgumentError: if ``dst`` is a template, or not a folder URL.
    """
    url = str(dst)
    if not is_literal(url):
        raise InvalidArgumentError(f"dst={url!r} is a template, but an asset's name is fixed", argument="dst")
    check_dst(url)
    scheme, bucket, key = place_of(url)
    return Asset(uri=f"{scheme}://{bucket}/{quote(key, safe=_SAFE_CHARACTERS)}")


# The facts in an event, which stays small however many devices there are.
_EVENT_FIELDS = (
    *("device_id", "devices", "devices_with_rows", "start", "end", "rows", "pages", "bytes", "objects", "files"),
    "manifest",
)


def add_to_events(
    context: Mapping[str, Any], outlets: Iterable[Any], facts: Mapping[str, Any], partition_key: str | None = None
) -> None:
    """
    Add facts of an extraction to the event of each outlet asset, but not of an alias: Airflow 2.11 and 3.0 fail a task
    that adds an event with a list in it to an alias.

    :param partition_key: key of the events (Airflow 3.3); None leaves them the run's key, if it has one.
    """
    extra = {name: facts[name] for name in _EVENT_FIELDS if name in facts}
    key = partition_key or getattr(context.get("dag_run"), "partition_key", None)
    if key is not None:
        extra["partition_key"] = key
    for outlet in outlets:
        # The other two are Airflow 3's references to an asset, by name or URI.
        if isinstance(outlet, Asset) or type(outlet).__name__ in ("AssetNameRef", "AssetUriRef"):
            event = context["outlet_events"][outlet]
            event.extra.update(extra)
            if partition_key is not None:
                event.add_partitions(partition_key)
