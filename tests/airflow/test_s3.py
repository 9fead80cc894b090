"""Objects on a real S3-compatible store, through an Airflow connection."""

from __future__ import annotations

import gc
import json
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
from upath import UPath

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.commands import show_coverage
from airflow_provider_unleash.core.account import land_account
from airflow_provider_unleash.core.formats import Format
from airflow_provider_unleash.coverage import read_coverage
from airflow_provider_unleash.exceptions import ServerError
from airflow_provider_unleash.folders import open_folder
from airflow_provider_unleash.simulator import Fault
from airflow_provider_unleash.window import plan_windows
from tests.support.store_cases import NAME, ProcessCases, StoreCases, TableCases, extract, page_of, path_of
from tools.s3_lake import connection_to, open_client
from tools.seaweedfs import serve_s3

pytest.importorskip("s3fs", reason="the extra s3 is not installed")


class S3Store:
    """The bucket ``lake``, as boto3's own client sees it."""

    scheme = url_scheme = "s3"

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._client = open_client(endpoint)
        self._client.create_bucket(Bucket="lake")

    def connection(self, endpoint: str) -> dict[str, Any]:
        return connection_to(endpoint)

    def _keys(self) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket="lake").get("Contents", ())]

    def names(self) -> list[str]:
        return [key.removeprefix("unleash/") for key in self._keys()]

    def read(self, name: str) -> bytes:
        body: bytes = self._client.get_object(Bucket="lake", Key=f"unleash/{name}")["Body"].read()
        return body

    def put(self, name: str, body: bytes) -> None:
        self._client.put_object(Bucket="lake", Key=f"unleash/{name}", Body=body)

    def leftovers(self) -> list[str]:
        return [found["Key"] for found in self._client.list_multipart_uploads(Bucket="lake").get("Uploads") or ()]

    def open_upload(self, key: str) -> None:
        self._client.create_multipart_upload(Bucket="lake", Key=key)

    def abort_uploads(self) -> None:
        for found in self._client.list_multipart_uploads(Bucket="lake")["Uploads"]:
            self._client.abort_multipart_upload(Bucket="lake", Key=found["Key"], UploadId=found["UploadId"])

    def clear(self) -> None:
        for key in self._keys():
            self._client.delete_object(Bucket="lake", Key=key)


@pytest.fixture(scope="session")  # Airflow caches the file system of a connection, with its address
def seaweedfs() -> Iterator[S3Store]:
    with serve_s3() as endpoint:
        yield S3Store(endpoint)


@pytest.fixture
def lake(seaweedfs: S3Store) -> Iterator[S3Store]:
    yield seaweedfs
    seaweedfs.clear()


class TestS3(StoreCases, TableCases):
    @pytest.mark.one_airflow
    def test_a_multipart_upload_that_fails_is_aborted(self, lake):
        def fail_half_way() -> None:
            with Format("jsonl").open(path_of(lake, "large.jsonl")) as writer:
                for _ in range(12):
                    writer.write_page(page_of(1000, "x" * 1000))
                assert lake.leftovers() == ["unleash/large.jsonl"]
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_half_way()
        gc.collect()  # fsspec publishes abandoned handles when they are collected
        assert lake.names() == lake.leftovers() == []

    @pytest.mark.one_airflow
    def test_uploads_that_a_killed_try_left_open_are_aborted_and_no_others(self, lake, serve):
        serve(rows_per_day=60_000)  # more than one part, as that of the killed try
        others = [f"unleash/{NAME}.jsonl.gz", f"unleash/{NAME}.jsonl.bak", "unleash/other"]
        for key in (f"unleash/{NAME}.jsonl", f"unleash/{NAME}.jsonl", *others):
            lake.open_upload(key)
        extract(lake)
        assert sorted(lake.leftovers()) == sorted(others)
        lake.abort_uploads()

    @pytest.mark.one_airflow
    def test_an_upload_of_pages_that_a_killed_try_left_open_is_aborted(self, lake, serve, quick_retries):
        sim = serve(faults=[Fault("500", page=6, times=None)])
        with pytest.raises(ServerError):
            extract(lake, checkpoint_pages=2)
        [folder] = {name.rpartition("/")[0] for name in lake.names()}
        other = "unleash/_staging/0123456789abcdef/00000.pages"
        for key in (f"unleash/{folder}/00000.pages", f"unleash/{folder}/00003.pages", other):
            lake.open_upload(key)
        sim.clear_faults()
        extract(lake, checkpoint_pages=2)
        assert lake.leftovers() == [other]
        lake.abort_uploads()


@pytest.mark.slow
@pytest.mark.one_airflow
class TestS3Processes(ProcessCases):
    pass


def test_coverage_reads_manifests_through_a_connection_or_the_environment(lake, serve, connect, tmp_path, capsys):
    sim = serve(devices=("W1", "W2"), rows_per_day=48)
    connect(conn_id="my_lake", **connection_to(lake.endpoint))
    days = plan_windows("2026-05-01", "2026-05-04", every="day")
    with UnleashClient(sim.api_key, sim.base_url, mask_stream_tokens=False) as client:
        for day in days[:2]:
            land_account(client, None, day, open_folder("s3://my_lake@lake/unleash"))
    capsys.readouterr()
    page = tmp_path / "page.html"
    span = {"start": "2026-05-01", "end": "2026-05-04", "every": "day"}
    dst = "s3://my_lake@lake/unleash"
    unset = dict.fromkeys(("devices", "timezone", "settle", "verbose"))
    with pytest.raises(SystemExit) as ended:
        show_coverage(Namespace(**span, **unset, dst=dst, json=True, html=page))
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"landed": 4, "empty": 0, "unsettled": 0, "missing": 2}
    assert "open_folder('s3://my_lake@lake/unleash')" in page.read_text()
    environment = UPath("s3://lake/unleash", **open_folder(dst).fs.storage_options)
    assert read_coverage(environment, device_ids=["W1"], **span).states_of("W1") == ["landed", "landed", "missing"]
