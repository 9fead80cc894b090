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
    """Expect the block to fail a task without a retry, because of an error of this kind; it is the ``__cause__``."""
    with pytest.raises(AirflowFailException, match=match) as caught:
        yield caught
    cause = caught.value.__cause__
    assert isinstance(cause, kind)
    assert str(caught.value).startswith(f"{type(cause).__name__}: ")
    assert str(cause) == ""  # Airflow logs both errors, but the message only once
