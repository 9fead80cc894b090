"""
The contenders of ``make bench``: functions that read all pages of one window, and the process that runs one of them.

The process reads jobs from standard input, one JSON object per line, and writes one line with the costs of each job.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from airflow_provider_unleash.simulator import DEFAULT_KEYS

DEVICE = "Wb8fabc31378ce07"
START = datetime(2026, 1, 12, tzinfo=timezone.utc)
END = datetime(2026, 1, 13, tzinfo=timezone.utc)
HEADERS = {"x-api-key": DEFAULT_KEYS[0]}
BOUNDS = f"{int(START.timestamp())}000/{int(END.timestamp())}000"
WINDOW = f"{DEVICE}/{BOUNDS}"
PATH = f"/v1/analytics/{WINDOW}"


@dataclass(frozen=True)
class Job:
    """
    One extraction.

    :param api: base URL
    :param page_concurrency: requests in flight; only this package uses it
    :param devices: of the account, in ``ACCOUNT_CONTENDERS``: each has one page
    :param dst: where this package writes, if not to local files
    """

    api: str
    page_concurrency: int = 1
    devices: int = 1
    dst: str = ""


@dataclass(frozen=True)
class Cost:
    """
    Cost of an extraction: rows, wall and CPU seconds, peak memory of the process and memory before, in MiB.

    ``store_requests`` is the number of requests to a store, 0 for local files.
    """

    rows: int
    wall: float
    cpu: float
    peak: float
    before: float
    store_requests: int = 0


# ---- the contenders ------------------------------------------------------------------------------
# Imports are local, so that the process of a contender loads only the libraries of that contender.


def run_floor(job: Job, folder: Path) -> int:
    """Read all pages and decode them once: the minimum for any client."""
    import msgspec

    return sum(len(content["data"]) for content in _contents(job, msgspec.json.decode))


def run_loop(job: Job, folder: Path) -> int:
    """Run a handwritten loop of requests that writes JSON lines."""
    rows = 0
    with (folder / "rows.jsonl").open("w") as file:
        for content in _contents(job, json.loads):
            for row in content["data"]:
                file.write(json.dumps(dict(zip(content["keys"], row, strict=True))) + "\n")
                rows += 1
    return rows


def _contents(job: Job, decode: Callable[[bytes], Any]) -> Iterator[Any]:
    import requests

    with requests.Session() as session:
        page, pages = 1, 1
        while page <= pages:
            response = session.get(f"{job.api}{PATH}/{page}", headers=HEADERS, timeout=60)
            response.raise_for_status()
            content = decode(response.content)
            pages = content["total_num_pages"]
            yield content
            page += 1


def run_account_floor(job: Job, folder: Path) -> int:
    """Read the page of each device and decode it once."""
    import msgspec

    return sum(len(content["data"]) for content in _device_contents(job, msgspec.json.decode))


def run_account_loop(job: Job, folder: Path) -> int:
    """Run a handwritten loop over devices that writes a file of JSON lines for each."""
    rows = 0
    for number, content in enumerate(_device_contents(job, json.loads)):
        with (folder / f"{number}.jsonl").open("w") as file:
            for row in content["data"]:
                file.write(json.dumps(dict(zip(content["keys"], row, strict=True))) + "\n")
                rows += 1
    return rows


def device_ids(devices: int) -> list[str]:
    return [f"W{number:05}" for number in range(devices)]


def _device_contents(job: Job, decode: Callable[[bytes], Any]) -> Iterator[Any]:
    import requests

    with requests.Session() as session:
        for device_id in device_ids(job.devices):
            path = f"/v1/analytics/{device_id}/{BOUNDS}/1"
            response = session.get(f"{job.api}{path}", headers=HEADERS, timeout=60)
            response.raise_for_status()
            yield decode(response.content)


def run_account(file_format: str, split_by_device: bool, job: Job, folder: Path) -> int:
    """Run this package's account operator with all its features on."""
    from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator

    _set_connection(job)
    operator = UnleashAccountToObjectStorageOperator(
        task_id="extract",
        dst=job.dst or f"file://{folder}",
        file_format=file_format,  # type: ignore[arg-type]  # see CONTENDERS
        split_by_device=split_by_device,
        start=START,
        end=END,
    )
    return int(operator.execute({})["rows"])


def run_http_operator(job: Job, folder: Path) -> int:
    """Run Airflow's HttpOperator, which keeps all pages in memory and would return them to XCom."""
    from airflow.providers.http.operators.http import HttpOperator

    pages: list[int] = []

    def next_page(response: Any) -> dict[str, str] | None:
        path, _, page = str(response.url).removeprefix(job.api).rpartition("/")
        if not pages:
            pages.append(response.json()["total_num_pages"])
        return {"endpoint": f"{path}/{int(page) + 1}"} if int(page) < pages[0] else None

    def to_rows(responses: list[Any]) -> list[dict[str, Any]]:
        contents = [response.json() for response in responses]
        return [dict(zip(content["keys"], row, strict=True)) for content in contents for row in content["data"]]

    os.environ["AIRFLOW_CONN_API"] = json.dumps({"conn_type": "http", "host": job.api})
    operator = HttpOperator(
        task_id="fetch",
        http_conn_id="api",
        method="GET",
        endpoint=f"{PATH}/1",
        headers=HEADERS,
        pagination_function=next_page,
        response_filter=to_rows,
    )
    return len(operator.execute({}))


def run_dlt(job: Job, folder: Path) -> int:
    """Run dlt's rest_api source with its filesystem destination; it needs objects, so it reads the tableau endpoint."""
    return _run_dlt(job, folder, [WINDOW])


def run_account_dlt(job: Job, folder: Path) -> int:
    """Run dlt over all devices: one resource for each."""
    return _run_dlt(job, folder, [f"{device_id}/{BOUNDS}" for device_id in device_ids(job.devices)])


def _run_dlt(job: Job, folder: Path, windows: Sequence[str]) -> int:
    # Otherwise dlt sends telemetry, and writes to the user's home.
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(folder)}
    import dlt
    from dlt.sources.helpers.rest_client.paginators import BasePaginator
    from dlt.sources.rest_api import rest_api_source

    class PageInPath(BasePaginator):
        _pages = 0

        def update_state(self, response: Any, data: list[Any] | None = None) -> None:
            self._page = int(response.url.rpartition("/")[2])
            self._pages = self._pages or response.json()["total_num_pages"]
            self._has_next_page = self._page < self._pages

        def update_request(self, request: Any) -> None:
            request.url = f"{request.url.rpartition('/')[0]}/{self._page + 1}"

    source = rest_api_source(
        {
            "client": {"base_url": job.api, "headers": HEADERS},
            "resources": [
                {
                    "name": f"rows_{number}",
                    "table_name": "rows",
                    "endpoint": {
                        "path": f"/v1/analytics/tableau/{window}/1",
                        "paginator": PageInPath(),
                        "data_selector": "data",
                    },
                }
                for number, window in enumerate(windows)
            ],
        }
    )
    destination = dlt.destinations.filesystem(bucket_url=f"{folder}/lake")
    pipeline: Any = dlt.pipeline("bench", pipelines_dir=str(folder), destination=destination)
    pipeline.run(source)
    return int(pipeline.last_trace.last_normalize_info.row_counts["rows"])


def run_ours(file_format: str, job: Job, folder: Path) -> int:
    """Run this package's operator with all its features on."""
    from airflow_provider_unleash.operators import UnleashToObjectStorageOperator

    _set_connection(job)
    operator = UnleashToObjectStorageOperator(
        task_id="extract",
        device_id=DEVICE,
        dst=f"file://{folder}",
        file_format=file_format,  # type: ignore[arg-type]  # see CONTENDERS
        start=START,
        end=END,
    )
    return int(operator.execute({})["rows"])


def _set_connection(job: Job) -> None:
    connection = {"conn_type": "unleash", "host": job.api, "password": DEFAULT_KEYS[0]}
    extra = {"page_concurrency": job.page_concurrency, "mask_stream_tokens": False}
    os.environ["AIRFLOW_CONN_UNLEASH_DEFAULT"] = json.dumps({**connection, "extra": extra})


ACCOUNT_CONTENDERS: dict[str, Callable[[Job, Path], int]] = {
    "account-floor": run_account_floor,
    "split-jsonl": partial(run_account, "jsonl", True),
    "split-parquet": partial(run_account, "parquet", True),
    "one-jsonl": partial(run_account, "jsonl", False),
    "one-parquet": partial(run_account, "parquet", False),
    "account-loop": run_account_loop,
    "account-dlt": run_account_dlt,
}
CONTENDERS: dict[str, Callable[[Job, Path], int]] = {
    "floor": run_floor,
    "parquet": partial(run_ours, "parquet"),
    "jsonl": partial(run_ours, "jsonl"),
    "json": partial(run_ours, "json"),
    "csv": partial(run_ours, "csv"),
    "loop": run_loop,
    "http": run_http_operator,
    "dlt": run_dlt,
}


# ---- the process ---------------------------------------------------------------------------------


def measure(contender: Callable[[Job, Path], int], job: Job) -> Cost:
    """Run a contender once in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _count_store_requests(job) as store_requests:
        before = _memory("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        rows = contender(job, Path(folder))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Cost(rows, wall, cpu, _memory("VmHWM"), before, len(store_requests))


@contextmanager
def _count_store_requests(job: Job) -> Iterator[list[str]]:
    """Yield the requests to S3 so far, by the name of the operation."""
    sent: list[str] = []
    if not job.dst:
        yield sent
        return
    from aiobotocore.client import AioBaseClient

    original = AioBaseClient._make_api_call

    async def count(self: Any, operation_name: str, *args: Any, **kwargs: Any) -> Any:
        sent.append(operation_name)
        return await original(self, operation_name, *args, **kwargs)

    AioBaseClient._make_api_call = count
    try:
        yield sent
    finally:
        AioBaseClient._make_api_call = original


def _memory(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def open_results() -> TextIO:
    """Return a stream to the parent process. From now on, prints of libraries go to the log."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return results


def main() -> None:
    results = open_results()
    contender = {**CONTENDERS, **ACCOUNT_CONTENDERS}[sys.argv[1]]
    for line in sys.stdin:
        print(json.dumps(asdict(measure(contender, Job(**json.loads(line))))), file=results, flush=True)


if __name__ == "__main__":
    main()
