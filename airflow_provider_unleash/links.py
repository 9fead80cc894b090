"""Links to the coverage page in Airflow's web interface, and which trees it may show."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode, urlsplit

from airflow.providers.common.compat.sdk import AirflowPlugin, BaseOperatorLink, conf

from airflow_provider_unleash.core.names import window_name
from airflow_provider_unleash.core.stores import place_of
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.tasks import timezone_of

SECTION, OPTION = "unleash", "coverage_paths"
URL_PREFIX = "/unleash"


def has_page() -> bool:
    """Return whether the page is configured and this Airflow can show it, which 3.1 and later can."""
    return hasattr(AirflowPlugin, "external_views") and bool(conf.get(SECTION, OPTION, fallback=None))


def read_trees() -> dict[str, str]:
    """Return the folders that the page may show, by name."""
    trees = conf.getjson(SECTION, OPTION, fallback={})
    if not isinstance(trees, dict) or not all(isinstance(dst, str) and name for name, dst in trees.items()):
        raise InvalidArgumentError(
            f'[{SECTION}] {OPTION} must be a JSON object of names and folders, such as {{"lake": "s3://lake/unleash"}}',
            argument=OPTION,
        )
    return trees


def page_url(**query: str) -> str:
    """Return the address of the page on Airflow's own host."""
    path = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{path}{URL_PREFIX}/coverage" + (f"?{urlencode(query)}" if query else "")


class CoverageLink(BaseOperatorLink):
    """From an extraction to its window on the page; there is none if the page does not show its folder."""

    name = "Coverage"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address; Airflow calls this where the task has run."""
        place = place_of(str(operator.dst))
        tree = next((name for name, dst in read_trees().items() if place_of(dst) == place), None)
        if tree is None:
            return ""
        query = {"tree": tree}
        extraction = operator.extraction
        if extraction is not None:
            query["window"] = window_name(extraction.window)
            zone = timezone_of(operator.dag)
            query["timezone"] = str(getattr(zone, "key", None) or getattr(zone, "name", None) or zone)
            if len(extraction.device_ids) == 1:
                query["device"] = extraction.device_ids[0]
        return page_url(**query)
