"""Time windows: the public names of :mod:`airflow_provider_unleash.core.windows`."""

from airflow_provider_unleash.core.windows import Window, plan_windows

__all__ = ["Window", "plan_windows"]
