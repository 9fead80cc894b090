"""Links from a task in Airflow's web interface."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_unleash.core.moments import parse_timezone
from airflow_provider_unleash.core.names import window_name
from airflow_provider_unleash.core.stores import place_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.page import page_url, read_trees
from airflow_provider_unleash.tasks import timezone_of

# Airflow calls get_link in the process that has executed the operator.


class CoverageLink(BaseOperatorLink):
    """From an extraction to its window on the coverage page; empty if the page does not show its folder."""

    name = "Coverage"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        tree = _find_tree(operator)
        if tree is None:
            return ""
        query = {"tree": tree}
        extraction = operator.extraction
        if extraction is not None:
            query["window"] = window_name(extraction.window)
            zone = str(timezone_of(operator.dag))
            with suppress(InvalidArgumentError):  # a fixed offset has no name
                parse_timezone(zone)
                query["timezone"] = zone
            if len(extraction.device_ids) == 1:
                query["device"] = extraction.device_ids[0]
        return page_url(**query)


class ManifestLink(BaseOperatorLink):
    """From an extraction to its manifest; empty if it failed, or if the page does not show its folder."""

    name = "Manifest"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        tree = _find_tree(operator)
        extraction = operator.extraction
        if tree is None or extraction is None or extraction.written is None:
            return ""
        return page_url("manifest", tree=tree, file=extraction.written.manifest)


def _find_tree(operator: Any) -> str | None:
    place = place_of(str(operator.dst))
    return next((name for name, dst in read_trees().items() if place_of(dst) == place), None)
