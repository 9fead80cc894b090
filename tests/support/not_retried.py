"""Expects errors that Airflow does not retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException


@contextmanager
def not_retried(
    kind: type[Exception], match: str | None = None
) -> Iterator[pytest.ExceptionInfo[AirflowFailException]]:
    """Expect the block to fail a task without a retry, by an error of this kind that Airflow logs once."""
    with pytest.raises(AirflowFailException, match=match) as caught:
        yield caught
    assert isinstance(caught.value, kind)
    assert caught.value.__cause__ is None
