"""The API without Airflow: the public names of :mod:`airflow_provider_unleash.core.client`."""

from airflow_provider_unleash.core.client import UnleashClient
from airflow_provider_unleash.core.requester import Traffic

__all__ = ["Traffic", "UnleashClient"]
