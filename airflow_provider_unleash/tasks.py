"""What operators and sensors share: the run's times, argument checks, error policy, retry policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import date, timedelta, timezone, tzinfo
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, conf

from airflow_provider_unleash.core.arguments import check_choice
from airflow_provider_unleash.core.moments import parse_duration, parse_moment, parse_timezone
from airflow_provider_unleash.core.protocol import ENDPOINT_PATHS, check_device_id
from airflow_provider_unleash.core.sessions import session_bounds
from airflow_provider_unleash.core.windows import RunTimes, check_partition_format, given_window
from airflow_provider_unleash.exceptions import (
    InvalidArgumentError,
    PermanentError,
    ResultTooLargeError,
    TransientError,
)

try:
    from airflow.providers.common.compat.sdk import RetryDecision, RetryPolicy
except ImportError:  # before Airflow 3.3, where retry_delay always applies
    RetryDecision = RetryPolicy = None  # type: ignore[misc, assignment]

# Keys that Airflow's serialization gives a meaning, so that rows with them would come out of XCom as something else.
XCOM_RESERVED_KEYS = frozenset({"__classname__", "__id__", "__type", "__var"})
# If the API asks for a longer delay than this, it is probably a mistake.
MAX_RETRY_DELAY = timedelta(days=1)


def run_times(context: Mapping[str, Any]) -> RunTimes:
    """Return the times of a run. Airflow 3 omits the keys that a run does not have."""
    dag, dag_run = context.get("dag"), context.get("dag_run")
    run_type = getattr(dag_run, "run_type", "")
    return RunTimes(
        data_interval_start=context.get("data_interval_start"),
        data_interval_end=context.get("data_interval_end"),
        partition_date=context.get("partition_date") or getattr(dag_run, "partition_date", None),
        logical_date=context.get("logical_date"),
        # Airflow 2.11 has no run_after; the start of the run comes closest.
        run_after=getattr(dag_run, "run_after", None) or getattr(dag_run, "start_date", None),
        # Airflow 3.2 tells tasks the key of their partition only.
        undated_partition=None if hasattr(dag_run, "partition_date") else getattr(dag_run, "partition_key", None),
        timezone=timezone_of(dag),
        run_kind=str(getattr(run_type, "value", run_type) or ""),
    )


def timezone_of(dag: Any) -> tzinfo:
    timetable = getattr(dag, "timetable", None)
    # Before Airflow 3.2, timetables keep it in a private attribute.
    zone = getattr(timetable, "timezone", None) or getattr(timetable, "_timezone", None)
    return parse_timezone(zone) or getattr(dag, "timezone", None) or timezone.utc


def is_mapped(context: Mapping[str, Any]) -> bool:
    return int(getattr(context.get("ti"), "map_index", -1)) >= 0


def is_literal(value: Any) -> bool:
    """Return whether an argument is final when the DAG is parsed: neither a template nor the output of a task."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_literal, value))
    if isinstance(value, Mapping):
        return all(map(is_literal, value.values()))
    return value is None or isinstance(value, (int, float, date, timedelta))


def is_final(value: Any) -> bool:
    """Return True: when the task runs, templates are rendered and outputs are values."""
    return True


def check_arguments(task: Any, checks: Mapping[str, Callable[[Any], object]], is_known: Callable[[Any], bool]) -> None:
    """Check the arguments that are known: literals in a constructor, all of them when the task runs."""
    for name, check in checks.items():
        if is_known(getattr(task, name)):
            check(getattr(task, name))


def check_map_length(task: Any, result: Sequence[Any]) -> None:
    """Check that Airflow can map tasks over a result, if it is to; Airflow's own error names neither number."""
    limit = conf.getint("core", "max_map_length", fallback=1024)
    if len(result) > limit and task.has_dag() and any(True for _ in task.iter_mapped_dependants()):
        raise ResultTooLargeError(
            f"Airflow cannot map tasks over {len(result)} items, because [core] max_map_length is {limit}. Raise it, "
            "or pass fewer items"
        )


def check_literal_bounds(since: Any, until: Any) -> None:
    session_bounds(RunTimes(), *(value if is_literal(value) else None for value in (since, until)))


def check_partition_support(partition_format: object) -> None:
    from airflow import __version__ as airflow_version

    check_partition_format(partition_format)
    if tuple(map(int, airflow_version.split(".")[:2])) < (3, 3):
        raise InvalidArgumentError(
            f"partition_format needs Airflow 3.3; this is {airflow_version}", argument="partition_format"
        )


WINDOW_CHECKS: dict[str, Callable[[Any], object]] = {
    "start": lambda value: parse_moment(value, "start"),
    "end": lambda value: parse_moment(value, "end"),
    "window": parse_duration,
    "endpoint": lambda value: check_choice("endpoint", value, ENDPOINT_PATHS),
}


def check_start_before_end(task: Any, is_known: Callable[[Any], bool]) -> None:
    if is_known(task.start) and is_known(task.end):
        given_window(task.start, task.end)


def check_device_ids(device_ids: Any) -> None:
    """Check that these are device ids, or None, and not a string that a template rendered."""
    if device_ids is None:
        return
    # A string is a sequence too; the outputs of mapped tasks are sequences, but not lists.
    if isinstance(device_ids, (str, bytes, Mapping)) or not isinstance(device_ids, (Sequence, Set)):
        raise InvalidArgumentError(
            f"device_ids={device_ids!r} must be a list of device ids. Pass the output of a task, "
            "device_ids=devices.output; a template gives a list only if the DAG has render_template_as_native_obj=True",
            argument="device_ids",
        )
    for device_id in device_ids:
        check_device_id(device_id)


@contextmanager
def no_retry() -> Iterator[None]:
    """
    Make a permanent error one that Airflow does not retry, without changing its type, facts or traceback.

    Constructors use it too, because a mapped task runs its constructor again on the worker. When the DAG is parsed, the
    error is still a ValueError.
    """
    try:
        yield
    except PermanentError as error:
        kind = type(error)
        final_kind = type(kind.__name__, (kind, AirflowFailException), {"__module__": kind.__module__})
        final = final_kind(str(error))
        vars(final).update(vars(error))
        # From its own cause, so that Airflow does not log the same error twice.
        raise final.with_traceback(error.__traceback__) from error.__cause__


def retry_arguments(retry_policy: Any | None) -> dict[str, Any]:
    """Return the retry policy as an argument of ``BaseOperator``: the given one, else this package's own."""
    if retry_policy is None and RetryPolicy is not None:
        retry_policy = RetryAfterPolicy()
    return {} if retry_policy is None else {"retry_policy": retry_policy}


def _own_delay(task: Any, try_number: int) -> timedelta:
    """Return the shortest delay before the next try by the task's own settings, as Airflow computes it."""
    if task is None:
        return timedelta(0)
    factor = 2.0 if task.retry_exponential_backoff is True else float(task.retry_exponential_backoff) or 1.0
    seconds = task.retry_delay.total_seconds() * factor ** min(try_number - 1, 64)
    return min(timedelta(seconds=min(seconds, 1e9)), task.max_retry_delay or timedelta.max)


if RetryPolicy is not None:

    class RetryAfterPolicy(RetryPolicy):
        """
        Retry no earlier than the API asks for (``Retry-After``), and never after a permanent error.

        If Airflow's own ``retry_delay`` is longer, it applies. A policy cannot change the number of ``retries``.
        """

        def evaluate(
            self, exception: BaseException, try_number: int, max_tries: int, context: Any | None = None
        ) -> RetryDecision:
            if isinstance(exception, PermanentError):
                return RetryDecision.fail(reason=f"{type(exception).__name__} is permanent")
            if isinstance(exception, TransientError) and exception.retry_after is not None:
                delay = min(timedelta(seconds=min(exception.retry_after, 1e9)), MAX_RETRY_DELAY)
                if delay > _own_delay((context or {}).get("task"), try_number):
                    return RetryDecision.retry(delay=delay, reason=f"The API asked for {delay.total_seconds():.0f} s")
            return RetryDecision.default()

        def serialize(self) -> dict[str, Any]:
            return {}

        @classmethod
        def deserialize(cls, data: dict[str, Any]) -> RetryAfterPolicy:
            return cls()
