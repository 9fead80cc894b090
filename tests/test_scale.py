"""What docs/scale.md counts of one extraction is what one extraction does, and its arithmetic is right."""

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
    # Airflow keeps the file system of a connection for as long as the process lives: other tests have other ids.
    connect(conn_id="aws_scale", **connection_to(store.url))
    return counted


def extract(start: int, length: int, device: str = STREET, **arguments: Any) -> dict[str, Any]:
    operator = UnleashToObjectStorageOperator(
        task_id="t",
        device_id=device,
        dst="s3://aws_scale@lake/tree",
        file_format="parquet",
        start=start,
        end=start + length,
        **arguments,
    )
    summary: dict[str, Any] = operator.execute(make_context())
    return summary


def read_page() -> str:
    return (Path(__file__).parent.parent / "docs" / "scale.md").read_text()


def cells_of(first_cell: str) -> list[float]:
    """Return the numbers of the three or more cells after the first in that row of the page's tables."""
    [row] = re.findall(rf"^\| {re.escape(first_cell)} \|(.*)\|$", read_page(), re.MULTILINE)
    cells = [cell.strip().replace(" ", "").replace(",", "") for cell in row.split("|")]
    return [float(cell) for cell in cells if re.fullmatch(r"[0-9.]+", cell)]


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


# ---- arithmetic --------------------------------------------------------------------------------

SECONDS_OF_A_SLOT, BYTES_OF_METADATA, BYTES_OF_XCOM = 5.25, 3979, 641


@pytest.mark.parametrize(
    ("row", "of_one"),
    [
        ("extractions a day", 1),
        ("extractions a year", 365),
        ("starts a second", 1 / 86_400),
        ("slots busy", SECONDS_OF_A_SLOT / 86_400),
        ("rows in the metadata database a year", 4 * 365),
        ("metadata, GB a year", BYTES_OF_METADATA * 365 / 1e9),
        ("of it XCom's text, GB a year", BYTES_OF_XCOM * 365 / 1e9),
        ("metadata, GB, if a week is kept", BYTES_OF_METADATA * 7 / 1e9),
        ("S3 requests a day", 5),
        ("S3 requests a second", 5 / 86_400),
        ("files a day", 1),
        ("the same, all windows empty", 2),
    ],
)
def test_ten_thousand_cameras_are_the_extractions_of_a_day_times_what_one_takes(row, of_one):
    expected = [10_000 * windows * of_one for windows in (24 * 60, 24, 1)]
    # The page rounds to two or three digits.
    assert cells_of(row) == pytest.approx(expected, rel=0.05)


def test_ten_thousand_cameras_have_files_and_requests_of_the_size_and_number_of_one():
    extractions, sizes = cells_of("extractions a day"), cells_of("mean size, KB")
    gigabytes = [number * size / 1e6 for number, size in zip(extractions, sizes, strict=True)]
    assert cells_of("GB of files a day") == pytest.approx(gigabytes, rel=0.05)
    requests = [number * each for number, each in zip(extractions, (1, 1, 17), strict=True)]
    assert cells_of("API requests a day") == requests
    assert cells_of("API requests a second") == pytest.approx([number / 86_400 for number in requests], rel=0.05)


def test_what_one_takes_is_what_the_runs_of_the_page_have_measured():
    text = read_page()
    [(xcom, metadata)] = re.findall(r"^\| XCom \| ([0-9,]+) \|\n\|[^|]*altogether \| ([0-9,]+):", text, re.MULTILINE)
    assert int(xcom.replace(",", "")) == pytest.approx(BYTES_OF_XCOM, rel=0.1)
    assert int(metadata.replace(",", "")) == pytest.approx(BYTES_OF_METADATA, rel=0.1)
    [(tasks, waiting)] = re.findall(
        r"^([0-9]+) extractions of .* each waits ([0-9]+) s for", text, re.MULTILINE | re.DOTALL
    )
    [seconds] = re.findall(r"^\| 1 \| 1\.00 \| ([0-9]+) \|", text, re.MULTILINE)
    # A run of another day on another load takes other seconds; the page is about orders of magnitude.
    assert int(seconds) / int(tasks) - int(waiting) == pytest.approx(SECONDS_OF_A_SLOT, rel=0.5)


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("core", "max_map_length"),
        ("core", "max_active_tasks_per_dag"),
        ("core", "parallelism"),
        ("scheduler", "max_tis_per_query"),
    ],
)
def test_defaults_of_airflow_are_those_of_the_page(section, option):
    from airflow.configuration import conf

    default = conf.configuration_description[section]["options"][option]["default"]
    assert cells_of(f"`[{section}] {option}`")[0] == float(default)
