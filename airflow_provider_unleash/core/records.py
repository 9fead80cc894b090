"""Rows as records: the methods that client and hook share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from datetime import datetime
from typing import Any, TypedDict, Unpack

from airflow_provider_unleash.core.pages import restart_on_change
from airflow_provider_unleash.core.protocol import Endpoint, Page
from airflow_provider_unleash.core.windows import Window

Moment = datetime | int | None


class ReadOptions(TypedDict, total=False):
    """Options of the methods that read rows; see :meth:`UnleashClient.iter_pages`."""

    window: Window | None
    endpoint: Endpoint
    page_concurrency: int | None


class RecordSource(ABC):
    """What client and hook share: rows as records, from their own ``iter_pages``."""

    @abstractmethod
    def iter_pages(
        self, device_id: str, start: Moment = None, end: Moment = None, **options: Unpack[ReadOptions]
    ) -> Generator[Page, None, None]:
        """Yield the pages of ``[start, end]``, or of ``window``."""

    def iter_records(
        self, device_id: str, start: Moment = None, end: Moment = None, **options: Unpack[ReadOptions]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``[start, end]``, or of ``window``, as dicts; see :meth:`.UnleashClient.iter_pages`."""
        pages = self.iter_pages(device_id, start, end, **options)
        return (record for page in pages for record in page.records())

    def get_records(
        self, device_id: str, start: Moment = None, end: Moment = None, **options: Unpack[ReadOptions]
    ) -> list[dict[str, Any]]:
        """
        Return the rows of ``[start, end]``, or of ``window``, as dicts; see :meth:`.UnleashClient.iter_pages`.

        Starts again if pages change while they are read.
        """
        return restart_on_change(lambda: list(self.iter_records(device_id, start, end, **options)))
