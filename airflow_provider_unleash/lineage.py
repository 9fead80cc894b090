"""What OpenLineage is told of an extraction: a device's rows went to a folder of the lake, so many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_unleash.core.columns import COLUMNS
from airflow_provider_unleash.core.stores import place_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import DatasetFacet, InputDataset, OutputDataset, RunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_unleash.window import Window


@dataclass
class Written:
    """
    What an extraction wrote.

    :param dst: the folder: were it the object, each run would make a dataset that no other run has to do with.
    :param columns: the types by name.
    :param rows: how many.
    :param size: their bytes.
    :param account: of an Azure store, which its URL does not name.
    """

    dst: str
    columns: Mapping[str, str]
    rows: int
    size: int
    account: str | None = None


@dataclass
class Extraction:
    """
    How far an extraction came.

    :param base_url: where the API is.
    :param device_id: whose rows are read.
    :param window: what is read of them.
    :param written: None until the object is there, and where none is made.
    """

    base_url: str
    device_id: str
    window: Window
    written: Written | None = None


def lineage_of(extraction: Extraction | None) -> OperatorLineage | None:
    """Return what OpenLineage is told; None before the first request, or without Airflow's OpenLineage provider."""
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
    """
    Return namespace and name of a folder's dataset: https://openlineage.io/docs/spec/naming.

    :param dst: folder URL or absolute path.
    :param account: of an Azure store.
    """
    scheme, bucket, key = place_of(dst)
    if scheme == "file":
        return "file", f"/{key}"
    if scheme == "abfs":
        return f"abfss://{bucket}" + (f"@{account}.dfs.core.windows.net" if account else ""), key or "/"
    return f"{scheme}://{bucket}", key or "/"


def _input_of(extraction: Extraction) -> InputDataset:
    from airflow.providers.common.compat.openlineage.facet import InputDataset

    namespace = f"unleash://{urlsplit(extraction.base_url).netloc}"
    return InputDataset(namespace, f"analytics/{extraction.device_id}", facets=_facets_of(COLUMNS))


def _output_of(written: Written) -> OutputDataset:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet

    statistics = OutputStatisticsOutputDatasetFacet(rowCount=written.rows, size=written.size)
    return OutputDataset(
        *dataset_name(written.dst, written.account),
        facets=_facets_of(written.columns),
        outputFacets={"outputStatistics": statistics},
    )


def _facets_of(columns: Mapping[str, str]) -> dict[str, DatasetFacet]:
    from airflow.providers.common.compat.openlineage.facet import SchemaDatasetFacet, SchemaDatasetFacetFields

    fields = [SchemaDatasetFacetFields(name=name, type=kind) for name, kind in columns.items()]
    return {"schema": SchemaDatasetFacet(fields=fields)}


def _run_facets_of(window: Window) -> dict[str, RunFacet]:
    """Return the window as the run's nominal time, unless the author chose one that is not the run's own."""
    from openlineage.client.facet_v2 import nominal_time_run

    from airflow_provider_unleash.core.moments import format_ms

    if window.rule == "start_end":
        return {}
    start, end = format_ms(window.start_ms), format_ms(window.end_ms)
    return {"nominalTime": nominal_time_run.NominalTimeRunFacet(nominalStartTime=start, nominalEndTime=end)}
