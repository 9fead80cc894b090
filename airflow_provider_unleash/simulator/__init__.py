"""
A simulator of the Unleash live Analytics API, for demos, tests and people without API access.

::

    python -m airflow_provider_unleash.simulator --port 8642
    curl -H 'x-api-key: simulator-key' http://127.0.0.1:8642/v1/analytics/devices

``--help`` lists all options and faults. In a test, use ``with Simulator(page_size=10) as sim:`` and ``sim.base_url``.
"""

from airflow_provider_unleash.simulator.account import Account, Options
from airflow_provider_unleash.simulator.data import KEYS, PROFILES, generate_rows, generate_sessions, session_start
from airflow_provider_unleash.simulator.faults import FAULT_KINDS, Fault, parse_fault
from airflow_provider_unleash.simulator.server import API_VERSION, DEFAULT_KEYS, Simulator

__all__ = [
    "API_VERSION", "DEFAULT_KEYS", "FAULT_KINDS", "KEYS", "PROFILES",
    "Account", "Fault", "Options", "Simulator",
    "generate_rows", "generate_sessions", "parse_fault", "session_start",
]  # fmt: skip
