"""Checks of arguments that several modules share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_provider_unleash.exceptions import InvalidArgumentError


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    known = tuple(choices)
    if value not in known:
        raise InvalidArgumentError(f"{argument}={value!r} must be one of {', '.join(known)}", argument=argument)


def check_positive(argument: str, value: Any) -> None:
    """Check that this is a whole number above zero, or None."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidArgumentError(f"{argument}={value!r} must be a whole number above zero", argument=argument)
