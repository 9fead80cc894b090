"""Checks of arguments that several modules share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_provider_unleash.exceptions import InvalidArgumentError


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    known = tuple(choices)
    if value not in known:
        raise InvalidArgumentError(f"{argument}={value!r} must be one of {', '.join(known)}", argument=argument)


def check_whole_number(argument: str, value: Any, *, or_none: bool = False) -> None:
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        otherwise = ", or None" if or_none else ""
        raise InvalidArgumentError(
            f"{argument}={value!r} must be a whole number above zero{otherwise}", argument=argument
        )


def check_flag(argument: str, value: Any) -> None:
    """Check that this is True or False; the string "false" would count as true."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{argument}={value!r} must be True or False", argument=argument)
