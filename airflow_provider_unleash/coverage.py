"""Coverage: the public names of :mod:`airflow_provider_unleash.core.coverage`."""

from airflow_provider_unleash.core.coverage import Cell, Coverage, Gap, read_coverage

__all__ = ["Cell", "Coverage", "Gap", "read_coverage"]
