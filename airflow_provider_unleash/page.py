"""Settings of the coverage page in Airflow: whether it exists, its URL and its trees. Quick to import."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode, urlsplit

from airflow.providers.common.compat.sdk import AirflowPlugin, conf

from airflow_provider_unleash.exceptions import InvalidArgumentError

SECTION, OPTION = "unleash", "coverage_paths"
URL_PREFIX = "/unleash"


def has_page() -> bool:
    """Return whether the page is configured and this Airflow can show it, which 3.1 and later can."""
    return hasattr(AirflowPlugin, "external_views") and bool(conf.get(SECTION, OPTION, fallback=None))


def read_trees() -> dict[str, str]:
    trees: Any = None
    with suppress(ValueError):
        trees = json.loads(conf.get(SECTION, OPTION, fallback=None) or "{}")
    if not isinstance(trees, dict) or not all(isinstance(dst, str) and name for name, dst in trees.items()):
        raise InvalidArgumentError(
            f'[{SECTION}] {OPTION} must be a JSON object of names and folders, such as {{"lake": "s3://lake/unleash"}}',
            argument=OPTION,
        )
    return trees


def page_url(name: str = "coverage", **query: str) -> str:
    """Return the address of the page, or of a manifest, on Airflow's own host."""
    path = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{path}{URL_PREFIX}/{name}" + (f"?{urlencode(query)}" if query else "")
