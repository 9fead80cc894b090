"""Parts of sentences: numbers of things, and long lists cut short."""

from __future__ import annotations

from collections.abc import Sequence


def plural(number: int, thing: str) -> str:
    """Return for example ``1 window`` or ``1,200 windows``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def name_first(names: Sequence[str], most: int = 20) -> str:
    """Return at most so many names, for example ``a, b and 3 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
