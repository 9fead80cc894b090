"""Apache Airflow provider for the Unleash live Analytics API: AI detections from video streams."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# The connection's extra fields, in the format of `conn-fields`. The hook builds the form of Airflow before 3.2 from
# the same table. Empty means the default.
_CONNECTION_FIELDS: dict[str, Any] = {
    "auth": {
        "label": "Authentication",
        "description": "auto: a key that starts with ul_pat_ is sent as Bearer, any other as x-api-key.",
        "schema": {"type": ["string", "null"], "enum": ["auto", "api_key", "bearer"], "default": "auto"},
    },
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "For connecting and for each read. Default 30.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "response_timeout": {
        "label": "Response timeout (seconds)",
        "description": "For a whole response. Default 300.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "max_attempts": {
        "label": "Attempts",
        "description": "Attempts per request. Default 5.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "page_concurrency": {
        "label": "Page concurrency",
        "description": "Requests in flight at once for one extraction. Default 4.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "mask_stream_tokens": {
        "label": "Mask stream tokens",
        "description": "1: URL parameters whose name ends in token, the credentials of live streams, become ***. "
        "0: keep rows as the API returns them. Empty: same as 0, with a warning.",
        # Numbers, because Airflow masks strings in fields with "token" in their name: the form would not show the
        # value again, and "false" would become *** in every log. The form's select does not support booleans, and
        # its switch has no empty state.
        "schema": {"type": ["integer", "null"], "enum": [1, 0], "values_display": {"1": "1: mask", "0": "0: keep"}},
    },
    "verify": {
        "label": "TLS CA bundle",
        "description": "Path of a CA bundle, if a proxy or a private CA signs the certificate.",
        "schema": {"type": ["string", "null"]},
    },
    "allow_http": {
        "label": "Allow http",
        "description": "Send the key unencrypted to a host that is not this machine.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, which Airflow reads through the entry point ``apache_airflow_provider``."""
    name = "Unleash live"
    modules = {kind: f"airflow_provider_unleash.{kind}" for kind in ("hooks", "operators", "sensors", "triggers")}
    return {
        "package-name": "airflow-provider-unleash",
        "name": name,
        "description": "`Unleash live <https://unleashlive.com/>`__ Analytics API: AI detections from video streams.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": name,
                "external-doc-url": "https://developer.unleashlive.com/api-documentation/analytics/",
                "tags": ["service"],
            }
        ],
        **{kind: [{"integration-name": name, "python-modules": [module]}] for kind, module in modules.items()},
        "extra-links": [
            "airflow_provider_unleash.links.CoverageLink",
            "airflow_provider_unleash.links.ManifestLink",
        ],
        "config": {
            "unleash": {
                "description": "The coverage page in Airflow's web interface, on Airflow 3.1 and later.",
                "options": {
                    "coverage_paths": {
                        "description": "Folders that the page may show: a JSON object of names and folder URLs, as "
                        "the operators take them. Whoever may read assets in Airflow can see their coverage. Without "
                        "it, there is no page.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"lake": "s3://aws_default@lake/unleash"}',
                        "default": None,
                    }
                },
            }
        },
        "cli": ["airflow_provider_unleash.commands.get_commands"],  # Airflow 3.2; earlier versions ignore it
        "connection-types": [
            {
                "connection-type": "unleash",
                "hook-class-name": "airflow_provider_unleash.hooks.UnleashHook",
                "hook-name": name,
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"password": "API key or personal access token"},
                    "placeholders": {"host": "https://api.unleashlive.com", "password": "ul_pat_..."},
                },
                "conn-fields": _CONNECTION_FIELDS,
            }
        ],
    }
