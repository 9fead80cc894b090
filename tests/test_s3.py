"""Objects on a real S3-compatible store, through an Airflow connection."""

from __future__ import annotations

import csv
import gc
import gzip
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
from dag_runs import DAY_END, DAY_START, STREET, make_context
from seaweedfs import ACCESS_KEY, SECRET_KEY, serve_s3

from airflow_provider_unleash.exceptions import EmptyReplacementError, ServerError
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from airflow_provider_unleash.protocol import Page
from airflow_provider_unleash.simulator import Fault, Simulator
from airflow_provider_unleash.writers import open_object

pytest.importorskip("s3fs", reason="the extra s3 is not installed")

DST = "s3://lake_conn@lake/unleash"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serve_s3() as url:
        yield url


@pytest.fixture(scope="module")
def store(endpoint: str) -> Any:
    """Give boto3's own client, as an independent reader, and the bucket «lake»."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="lake")
    return client


@pytest.fixture(autouse=True)
def lake(store: Any, endpoint: str, connect: Callable[..., None], airflow_home: object) -> Iterator[None]:
    """Make the connection to the store, and empty the bucket afterwards."""
    connect(
        conn_id="lake_conn",
        conn_type="aws",
        login=ACCESS_KEY,
        password=SECRET_KEY,
        extra={"endpoint_url": endpoint, "region_name": "us-east-1"},
    )
    yield
    for key in keys(store):
        store.delete_object(Bucket="lake", Key=key)


def keys(store: Any) -> list[str]:
    return [found["Key"] for found in store.list_objects_v2(Bucket="lake").get("Contents", ())]


def uploads(store: Any) -> list[str]:
    return [found["Key"] for found in store.list_multipart_uploads(Bucket="lake").get("Uploads") or ()]


def read(store: Any, key: str) -> bytes:
    body: bytes = store.get_object(Bucket="lake", Key=key)["Body"].read()
    return body


def extract(**arguments: Any) -> Any:
    operator = UnleashToObjectStorageOperator(task_id="extract", device_id=STREET, dst=DST, **arguments)
    return operator.execute(make_context())


def in_window(sim: Simulator) -> list[dict[str, Any]]:
    return sim.rows(STREET, DAY_START, DAY_END - 1)


def page_of(rows: int, text: str = "x") -> Page:
    return Page(1, 1, ("class_name", "source_file_name"), [["person", text] for _ in range(rows)])


def path_of(name: str) -> Any:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    return ObjectStoragePath(DST) / name


@pytest.mark.parametrize(("file_format", "compression"), [("jsonl", None), ("jsonl", "gzip"), ("json", None)])
def test_json_lands_as_it_came(serve: Callable[..., Simulator], store: Any, file_format: str, compression: Any) -> None:
    sim = serve()
    extract(file_format=file_format, compression=compression)
    [key] = keys(store)
    body = gzip.decompress(read(store, key)) if compression else read(store, key)
    rows = json.loads(body) if file_format == "json" else [json.loads(line) for line in body.splitlines()]
    assert rows == in_window(sim)


def test_csv_lands_with_its_header(serve: Callable[..., Simulator], store: Any) -> None:
    sim = serve()
    extract(file_format="csv")
    [key] = keys(store)
    rows = list(csv.DictReader(io.StringIO(read(store, key).decode(), newline="")))
    assert [row["timestamp"] for row in rows] == [row["timestamp"] for row in in_window(sim)]


def test_parquet_lands_typed_and_the_summary_names_it_twice(serve: Callable[..., Simulator], store: Any) -> None:
    sim = serve()
    summary = extract(file_format="parquet")
    name = f"device={STREET}/start_date=2026-01-12/20260112T000000Z_20260113T000000Z.parquet"
    assert keys(store) == [f"unleash/{name}"]
    table = pq.read_table(io.BytesIO(read(store, f"unleash/{name}")))
    assert table.num_rows == len(in_window(sim))
    [written] = summary["files"]
    assert written["path"] == f"s3://lake_conn@lake/unleash/{name}"
    assert written["url"] == f"s3://lake/unleash/{name}"
    assert written["bytes"] == len(read(store, f"unleash/{name}"))


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "parquet"])
def test_a_rerun_replaces_its_own_object_and_nothing_else(
    serve: Callable[..., Simulator], store: Any, file_format: str
) -> None:
    serve()
    store.put_object(Bucket="lake", Key="unleash/other", Body=b"other")
    extract(file_format=file_format)
    before = {key: read(store, key) for key in keys(store)}
    extract(file_format=file_format)
    assert {key: read(store, key) for key in keys(store)} == before
    assert len(before) == 2


def test_an_extraction_that_fails_half_way_leaves_the_old_object_and_nothing_else(
    serve: Callable[..., Simulator], store: Any, quick_retries: None
) -> None:
    sim = serve()
    extract()
    before = {key: read(store, key) for key in keys(store)}
    sim.add_fault(Fault("500", page=7, times=None))
    with pytest.raises(ServerError):
        extract()
    assert {key: read(store, key) for key in keys(store)} == before
    assert uploads(store) == []


def test_a_multipart_upload_that_fails_is_aborted(store: Any) -> None:
    def fail_half_way() -> None:
        with open_object(path_of("large.jsonl"), "jsonl") as writer:
            for _ in range(12):
                writer.write_page(page_of(1000, "x" * 1000))
            assert uploads(store) == ["unleash/large.jsonl"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    gc.collect()  # fsspec publishes abandoned handles when they are collected
    assert keys(store) == uploads(store) == []


def test_a_multipart_upload_appears_whole_and_only_at_the_end(store: Any) -> None:
    with open_object(path_of("large.jsonl"), "jsonl") as writer:
        for _ in range(20):
            writer.write_page(page_of(1000, "x" * 1000))
        assert keys(store) == []
    assert keys(store) == ["unleash/large.jsonl"]
    assert uploads(store) == []
    body = read(store, "unleash/large.jsonl")
    assert len(body) == writer.size
    assert body.count(b"\n") == 20_000


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "parquet"])
def test_no_rows_do_not_replace_rows(serve: Callable[..., Simulator], store: Any, file_format: str) -> None:
    serve()
    extract(file_format=file_format)
    before = {key: read(store, key) for key in keys(store)}
    serve(rows={STREET: []})
    from airflow.providers.common.compat.sdk import AirflowFailException

    with pytest.raises(AirflowFailException) as caught:
        extract(file_format=file_format)
    assert isinstance(caught.value.__cause__, EmptyReplacementError)
    assert {key: read(store, key) for key in keys(store)} == before
    extract(file_format=file_format, replace_with_empty=True)
    assert {key: read(store, key) for key in keys(store)} != before


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "parquet"])
def test_an_empty_window_lands_as_an_empty_object(
    serve: Callable[..., Simulator], store: Any, file_format: str
) -> None:
    serve(rows={STREET: []})
    for _ in range(2):  # an empty object may replace an empty one
        assert extract(file_format=file_format)["rows"] == 0
    assert len(keys(store)) == 1
