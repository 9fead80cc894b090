"""When Airflow tries a task again: as late as the API asked for (Airflow 3.3 and newer)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow_provider_unleash.exceptions import PermanentError, TransientError

try:
    from airflow.providers.common.compat.sdk import RetryDecision, RetryPolicy
except ImportError:  # Airflow before 3.3, where a task's retry_delay applies
    RetryDecision = RetryPolicy = None  # type: ignore[misc, assignment]

# What the API asks for beyond that is taken for a mistake of its.
LONGEST_DELAY = timedelta(days=1)


def retry_arguments(retry_policy: Any | None) -> dict[str, Any]:
    """Return the argument of a task that says when to try it again: the one that was given, or the package's own."""
    if retry_policy is None and RetryPolicy is not None:
        retry_policy = RetryAfterPolicy()
    return {} if retry_policy is None else {"retry_policy": retry_policy}


if RetryPolicy is not None:

    class RetryAfterPolicy(RetryPolicy):
        """
        Try again when the API said so (429 or 503 with ``Retry-After``), and not where repeating cannot help.

        Else Airflow's own ``retry_delay`` applies. How often is always ``retries``, which a policy cannot extend.
        """

        def evaluate(
            self, exception: BaseException, try_number: int, max_tries: int, context: Any | None = None
        ) -> RetryDecision:
            """Decide by the error that ended the try."""
            if isinstance(exception, PermanentError):
                return RetryDecision.fail(reason=f"{type(exception).__name__}: repeating cannot help")
            if isinstance(exception, TransientError) and exception.retry_after is not None:
                delay = min(timedelta(seconds=min(exception.retry_after, 1e9)), LONGEST_DELAY)
                return RetryDecision.retry(delay=delay, reason=f"The API asked for {delay.total_seconds():.0f} s")
            return RetryDecision.default()

        def serialize(self) -> dict[str, Any]:
            """Return nothing: there is nothing to set."""
            return {}

        @classmethod
        def deserialize(cls, data: dict[str, Any]) -> RetryAfterPolicy:
            """Return one again."""
            return cls()
