"""
The coverage page in Airflow's web interface, if ``[unleash] coverage_paths`` is set.

Every Airflow process imports this module, so it imports little.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_unleash.page import URL_PREFIX, has_page, page_url

_Channel = Callable[..., Awaitable[Any]]


async def serve(scope: dict[str, Any], receive: _Channel, send: _Channel) -> None:
    """Serve the page; the app is created for the first request, because only the API server needs it."""
    from airflow_provider_unleash.web import get_app

    await get_app()(scope, receive, send)


class UnleashPlugin(AirflowPlugin):
    """Registers nothing unless the page is configured."""

    name = "unleash"

    if has_page():
        fastapi_apps = [{"name": "Unleash live", "app": serve, "url_prefix": URL_PREFIX}]
        external_views = [
            {
                "name": "Unleash coverage",
                "href": page_url(),
                "destination": "nav",
                "category": "browse",
                "url_route": "unleash-coverage",
            },
            {
                "name": "Unleash coverage",
                "href": page_url() + "?dag_id={DAG_ID}",  # Airflow replaces it
                "destination": "dag",
                "url_route": "unleash-dag-coverage",
            },
        ]
