"""What the operators share: the connection, the window, where objects go, and what is reported."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from airflow.providers.common.compat.sdk import BaseOperator, ObjectStoragePath

from airflow_provider_unleash.assets import add_to_events
from airflow_provider_unleash.core.account import LandedAccount
from airflow_provider_unleash.core.arguments import check_choice, check_flag
from airflow_provider_unleash.core.columns import COLUMNS, columns_of
from airflow_provider_unleash.core.extract import Extracted, Landed, OnEmpty
from airflow_provider_unleash.core.formats import Compression, FileFormat, Format
from airflow_provider_unleash.core.moments import format_ms, parse_duration
from airflow_provider_unleash.core.protocol import Endpoint
from airflow_provider_unleash.core.stores import StoragePath, url_of
from airflow_provider_unleash.core.windows import Window, resolve_window
from airflow_provider_unleash.folders import check_folder, open_folder
from airflow_provider_unleash.hooks import DEFAULT_CONN_ID, ConnectedTask
from airflow_provider_unleash.lineage import Extraction, Written, lineage_of
from airflow_provider_unleash.links import CoverageLink, ManifestLink
from airflow_provider_unleash.metrics import report_extraction
from airflow_provider_unleash.page import has_page
from airflow_provider_unleash.tasks import (
    WINDOW_CHECKS,
    check_arguments,
    check_start_before_end,
    is_final,
    is_literal,
    is_mapped,
    no_retry,
    retry_arguments,
    run_times,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, RetryPolicy
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_unleash.client import UnleashClient


class UnleashOperator(ConnectedTask, BaseOperator):
    """Base of all operators: the connection, and no retries after a permanent error."""

    template_fields: Sequence[str] = ("unleash_conn_id",)

    # retry_policy is a named argument so that default_args can set it.
    def __init__(
        self, *, unleash_conn_id: str = DEFAULT_CONN_ID, retry_policy: RetryPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**retry_arguments(retry_policy), **kwargs)
        self.unleash_conn_id = unleash_conn_id

    def execute(self, context: Context) -> Any:
        with no_retry():
            return self._execute(context)

    def _execute(self, context: Context) -> Any:
        raise NotImplementedError


class FetchOperator(UnleashOperator):
    """Base of the fetch operators: the window, lineage, and what happens without rows."""

    template_fields: Sequence[str] = (
        *UnleashOperator.template_fields,
        *("start", "end", "window", "endpoint", "on_empty"),
    )
    extraction: Extraction | None = None
    _began = 0.0

    def __init__(
        self,
        *,
        start: datetime | str | int | None = None,
        end: datetime | str | int | None = None,
        window: timedelta | str | None = None,
        endpoint: Endpoint = "compact",
        on_empty: OnEmpty = "succeed",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.start = start
        self.end = end
        self.window = window
        self.endpoint = endpoint
        self.on_empty = on_empty
        with no_retry():
            self._check_arguments(is_literal)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        checks: dict[str, Callable[[Any], object]] = {
            **WINDOW_CHECKS,
            "on_empty": lambda value: check_choice("on_empty", value, get_args(OnEmpty)),
        }
        check_arguments(self, checks, is_known)
        check_start_before_end(self, is_known)

    def _resolve_window(self, context: Context) -> Window:
        """Check the rendered arguments, return the run's window, and name a mapped task after its arguments."""
        self.extraction = None
        self._check_arguments(is_final)
        window = resolve_window(run_times(context), start=self.start, end=self.end, window=self.window)
        self.log.info("The window is %s", window)
        values: Any = context
        if is_mapped(context) and not values.get("map_index_template"):
            name = self._name_if_mapped() + (" {{ task.start }}" if self.start else "")
            values["map_index_template"] = name.strip()
        return window

    def _name_if_mapped(self) -> str:
        """Return the template of the name that the grid shows instead of an index; the start is appended."""
        return "{{ task.device_id }}"

    @contextmanager
    def _open_client_of(self, context: Mapping[str, Any]) -> Iterator[UnleashClient]:
        """Yield the client of a task; of mapped tasks, only the first warns about stream tokens."""
        with self._open_client() as client:
            if is_mapped(context) and context["ti"].map_index > 0:
                client.token_log_level = logging.INFO
            self._began = time.monotonic()
            yield client

    def _report(self, what: str, extracted: Extracted, client: UnleashClient) -> dict[str, float]:
        traffic = client.traffic
        statistics = {
            "seconds": round(time.monotonic() - self._began, 3),
            "requests": traffic.requests,
            "retries": traffic.retries,
            "throttled_seconds": round(traffic.throttled_seconds, 3),
        }
        report_extraction(rows=extracted.counts.rows, size=extracted.size, seconds=statistics["seconds"])
        self.log.info(
            "%s. Pages: %d, bytes: %d, seconds: %.1f, requests: %d, retries: %d, throttled seconds: %.1f",
            *(what, extracted.counts.pages, extracted.size, *statistics.values()),
        )
        return statistics

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """Return the lineage of this try, successful or not; makes no requests."""
        return lineage_of(self.extraction)


class StorageOperator(FetchOperator):
    """Base of the operators that write objects: the tree and the format."""

    template_fields: Sequence[str] = (
        *FetchOperator.template_fields,
        *("dst", "file_format", "compression", "column_types", "resume_within"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"column_types": "json"}
    operator_extra_links = (CoverageLink(), ManifestLink()) if has_page() else ()
    _format: type[Format] = Format

    def __init__(
        self,
        *,
        dst: str | ObjectStoragePath,
        file_format: FileFormat = "jsonl",
        compression: Compression | None = None,
        column_types: Mapping[str, str] | None = None,
        replace_with_empty: bool = False,
        resume_within: timedelta | str | None = timedelta(days=1),
        **kwargs: Any,
    ) -> None:
        self.dst = dst
        self.file_format = file_format
        self.compression = compression
        self.column_types = column_types
        self.replace_with_empty = replace_with_empty
        self.resume_within = resume_within
        super().__init__(**kwargs)

    def _check_arguments(self, is_known: Callable[[Any], bool]) -> None:
        super()._check_arguments(is_known)
        if is_known(self.resume_within):
            parse_duration(self.resume_within, "resume_within")
        if all(map(is_known, (self.file_format, self.compression, self.column_types))):
            self._format(self.file_format, self.compression, self.column_types)
        if is_known(self.dst):
            check_folder(str(self.dst))
        check_flag("replace_with_empty", self.replace_with_empty)

    def _land_arguments(self, context: Mapping[str, Any]) -> dict[str, Any]:
        dag_run = context.get("dag_run")
        return {
            "dst": open_folder(self.dst),
            "file_format": self.file_format,
            "compression": self.compression,
            "column_types": self.column_types,
            "endpoint": self.endpoint,
            "on_empty": self.on_empty,
            "replace_with_empty": self.replace_with_empty,
            "resume_within": parse_duration(self.resume_within, "resume_within"),
            "dag_id": getattr(dag_run, "dag_id", None),
            "run_id": getattr(dag_run, "run_id", None),
        }

    def _summarize(
        self,
        window: Window,
        landed: Landed | LandedAccount,
        context: Context,
        *,
        partition_key: str | None = None,
        **facts: Any,
    ) -> dict[str, Any]:
        """Return the summary, and add its totals and the manifest to the events of the outlet assets."""
        if self.extraction:
            columns = COLUMNS if self.file_format in ("jsonl", "json") else columns_of(self.column_types)
            name = "/".join(landed.manifest.path.split("/")[-2:])
            account = getattr(landed.manifest.fs, "account_name", None)  # Azure's file system has it
            self.extraction.written = Written(str(self.dst), name, columns, landed.counts.rows, landed.size, account)
        totals = {"start": format_ms(window.start_ms), "end": format_ms(window.end_ms), **asdict(landed.counts)}
        event = {**totals, **facts, "bytes": landed.size, "manifest": place_in_summary(landed.manifest)}
        add_to_events(context, self.outlets, event, partition_key)
        settings = {"window_rule": window.rule, "endpoint": self.endpoint, "file_format": self.file_format}
        return {**totals, **settings, **facts, "overlapping_windows": len(landed.overlapping)}


def place_in_summary(path: StoragePath) -> dict[str, str]:
    """Return a path with its Airflow connection, and the URL that other tools read."""
    url = url_of(path)
    return {"path": str(path) if "://" in str(path) else url, "url": url}  # a local path is not a URL
