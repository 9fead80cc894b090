"""What docs/scale.md counts of one extraction is what one extraction does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from dag_runs import DAY_MS, DAY_START, HOUR_MS, SILENT, STREET, make_context
from s3_lake import S3Lake, connection_to
from seaweedfs import SeaweedFS

from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Simulator

pytest.importorskip("s3fs", reason="the extra s3 is not installed")

MINUTE_MS = HOUR_MS // 60
# What S3 calls the requests of each column of the page.
LISTS = {"ListObjectsV2", "ListMultipartUploads"}
READS = {"HeadObject", "GetObject"}
WRITES = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
DELETES = {"AbortMultipartUpload", "DeleteObject"}


@pytest.fixture(scope="module")
def store() -> Iterator[SeaweedFS]:
    with SeaweedFS() as store:
        S3Lake(store)
        yield store


@pytest.fixture
def calls(store: SeaweedFS, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Give how often each operation of S3 was called by the botocore that s3fs has, which is asynchronous."""
    from aiobotocore.client import AioBaseClient

    counted: Counter[str] = Counter()
    ask = AioBaseClient._make_api_call

    async def count(client: Any, operation: str, arguments: Any) -> Any:
        counted[operation] += 1
        return await ask(client, operation, arguments)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", count)
    connect(conn_id="aws_default", **connection_to(store))
    return counted


def extract(start: int, length: int, device: str = STREET, **arguments: Any) -> dict[str, Any]:
    operator = UnleashToObjectStorageOperator(
        task_id="t",
        device_id=device,
        dst="s3://aws_default@lake/tree",
        file_format="parquet",
        start=start,
        end=start + length,
        **arguments,
    )
    summary: dict[str, Any] = operator.execute(make_context())
    return summary


def cells_of(first_cell: str) -> list[float]:
    """Return the numbers of the cells after the first in that row of the page's tables."""
    text = (Path(__file__).parent.parent / "docs" / "scale.md").read_text()
    [row] = re.findall(rf"^\| {re.escape(first_cell)} \|(.*)\|$", text, re.MULTILINE)
    return [float(cell.replace(",", "")) for cell in row.split("|")]


@pytest.mark.parametrize(("pages", "row"), [(1, "1 page"), (2, "2 pages"), (10, "10 pages")])
def test_requests_of_a_window_are_as_many_as_the_page_says(serve, calls, pages, row):
    start = DAY_START + pages * DAY_MS  # an object of its own
    sim: Simulator = serve(rows_per_day=20 * pages - 5, page_size=20)
    summary = extract(start, DAY_MS)
    assert summary["pages"] == pages
    assert calls.keys() <= LISTS | READS | WRITES | DELETES
    found = [sum(calls[name] for name in names) for names in (LISTS, READS, WRITES, DELETES)]
    assert [len(sim.requests), *found] == cells_of(row)


@pytest.mark.parametrize(
    ("on_empty", "row"),
    [("succeed", "no rows, `on_empty` «succeed»"), ("skip", "no rows, `on_empty` «skip»")],
)
def test_requests_of_a_window_without_rows_are_as_many_as_the_page_says(serve, calls, on_empty, row):
    sim = serve()
    with suppress(AirflowSkipException):
        extract(DAY_START, DAY_MS, SILENT, on_empty=on_empty)
    found = [sum(calls[name] for name in names) for names in (LISTS, READS, WRITES, DELETES)]
    assert [len(sim.requests), *found] == cells_of(row)


def test_files_are_as_large_as_the_page_says(serve, calls):
    serve(rows_per_day=14_400, page_size=1000)
    minutes = [extract(DAY_START + hour * HOUR_MS, MINUTE_MS)["files"][0]["bytes"] for hour in range(24)]
    hours = [extract(DAY_START + hour * HOUR_MS, HOUR_MS)["files"][0]["bytes"] for hour in range(24)]
    day = extract(DAY_START, DAY_MS)
    found = [mean(minutes) / 1000, mean(hours) / 1000, day["files"][0]["bytes"] / 1000]
    assert day["pages"] == 15
    assert found == pytest.approx(cells_of("mean size, KB"), rel=0.1)
    assert day["requests"] == 17
