"""OpenLineage metadata of an extraction: from the rows of devices to a folder in object storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_unleash.core.columns import COLUMNS
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.stores import place_of

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_unleash.window import Window

# Of one event. With more devices, or before they are known, one dataset stands for all: an event has to stay small.
MAX_INPUTS = 100


@dataclass
class Written:
    """
    What an extraction wrote; ``size`` is in bytes.

    ``dst`` is the folder: with the object, each run would make a dataset that no other run uses. ``manifest`` is
    relative to the folder of manifests. ``account`` is the Azure storage account, which the URL does not name.
    """

    dst: str
    manifest: str
    columns: Mapping[str, str]
    rows: int
    size: int
    account: str | None = None


@dataclass
class Extraction:
    """The progress of an extraction; ``written`` is None until the object is published."""

    base_url: str
    device_ids: Sequence[str]
    window: Window
    written: Written | None = None


def lineage_of(extraction: Extraction | None) -> OperatorLineage | None:
    """Return the lineage; None before the first request, or without Airflow's OpenLineage provider."""
    if extraction is None:
        return None
    # Imported here, because OpenLineage is optional and its facets take 0.6 s to import.
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    from airflow.providers.common.compat.openlineage import facet
    from openlineage.client.facet_v2 import nominal_time_run

    def schema_of(columns: Mapping[str, str]) -> dict[str, Any]:
        fields = [facet.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in columns.items()]
        return {"schema": facet.SchemaDatasetFacet(fields=fields)}

    devices, window, written = extraction.device_ids, extraction.window, extraction.written
    namespace = f"unleash://{urlsplit(extraction.base_url).netloc}"
    names = [f"analytics/{device}" for device in devices] if 0 < len(devices) <= MAX_INPUTS else ["analytics"]
    lineage = OperatorLineage([facet.InputDataset(namespace, name, facets=schema_of(COLUMNS)) for name in names])
    if written:
        statistics = facet.OutputStatisticsOutputDatasetFacet(rowCount=written.rows, size=written.size)
        output = facet.OutputDataset(
            *dataset_name(written.dst, written.account),
            facets=schema_of(written.columns),
            outputFacets={"outputStatistics": statistics},
        )
        lineage.outputs.append(output)
    if window.rule != "start_end":
        start, end = format_ms(window.start_ms), format_ms(window.end_ms)
        lineage.run_facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(start, end)
    return lineage


def dataset_name(dst: str, account: str | None = None) -> tuple[str, str]:
    """Return namespace and name of a folder's dataset, see https://openlineage.io/docs/spec/naming."""
    scheme, bucket, key = place_of(dst)
    if scheme == "file":
        return "file", f"/{key}"
    if scheme == "abfs":
        return f"abfss://{bucket}" + (f"@{account}.dfs.core.windows.net" if account else ""), key or "/"
    return f"{scheme}://{bucket}", key or "/"
