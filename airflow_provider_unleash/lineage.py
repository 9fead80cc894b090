"""OpenLineage metadata of an extraction: from a device's rows to a folder in object storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_unleash.core.columns import COLUMNS
from airflow_provider_unleash.core.moments import format_ms
from airflow_provider_unleash.core.stores import place_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import DatasetFacet, InputDataset, OutputDataset, RunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_unleash.window import Window


@dataclass
class Written:
    """
    What an extraction wrote; ``size`` is in bytes.

    ``dst`` is the folder: with the object, each run would make a dataset that no other run uses. ``account`` is the
    Azure storage account, which the URL does not name.
    """

    dst: str
    columns: Mapping[str, str]
    rows: int
    size: int
    account: str | None = None


@dataclass
class Extraction:
    """The progress of an extraction; ``written`` is None until the object is published."""

    base_url: str
    device_id: str
    window: Window
    written: Written | None = None


def lineage_of(extraction: Extraction | None) -> OperatorLineage | None:
    """Return the lineage; None before the first request, or without Airflow's OpenLineage provider."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    if extraction is None:
        return None
    return OperatorLineage(
        inputs=[_input_of(extraction)],
        outputs=[_output_of(extraction.written)] if extraction.written else [],
        run_facets=_run_facets_of(extraction.window),
    )


def dataset_name(dst: str, account: str | None = None) -> tuple[str, str]:
    """Return namespace and name of a folder's dataset, see https://openlineage.io/docs/spec/naming."""
    scheme, bucket, key = place_of(dst)
    if scheme == "file":
        return "file", f"/{key}"
    if scheme == "abfs":
        return f"abfss://{bucket}" + (f"@{account}.dfs.core.windows.net" if account else ""), key or "/"
    return f"{scheme}://{bucket}", key or "/"


# These functions import what they need: OpenLineage is optional, and its facets take 0.6 s to import.


def _input_of(extraction: Extraction) -> InputDataset:
    from airflow.providers.common.compat.openlineage.facet import InputDataset

    namespace = f"unleash://{urlsplit(extraction.base_url).netloc}"
    return InputDataset(namespace, f"analytics/{extraction.device_id}", facets=_facets_of(COLUMNS))


def _output_of(written: Written) -> OutputDataset:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet

    statistics = OutputStatisticsOutputDatasetFacet(rowCount=written.rows, size=written.size)
    namespace, name = dataset_name(written.dst, written.account)
    facets = _facets_of(written.columns)
    return OutputDataset(namespace, name, facets=facets, outputFacets={"outputStatistics": statistics})


def _facets_of(columns: Mapping[str, str]) -> dict[str, DatasetFacet]:
    from airflow.providers.common.compat.openlineage.facet import SchemaDatasetFacet, SchemaDatasetFacetFields

    fields = [SchemaDatasetFacetFields(name=name, type=kind) for name, kind in columns.items()]
    return {"schema": SchemaDatasetFacet(fields=fields)}


def _run_facets_of(window: Window) -> dict[str, RunFacet]:
    """Return the window as the run's nominal time, unless the author set it with ``start`` and ``end``."""
    if window.rule == "start_end":
        return {}
    from openlineage.client.facet_v2 import nominal_time_run

    start, end = format_ms(window.start_ms), format_ms(window.end_ms)
    return {"nominalTime": nominal_time_run.NominalTimeRunFacet(nominalStartTime=start, nominalEndTime=end)}
