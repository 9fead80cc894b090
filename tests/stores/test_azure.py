"""
Objects on Azurite, an emulator of Azure's store, through an Airflow connection of type ``wasb``.

These tests need a provider and a server that no other test needs. Run them with ``make test-stores``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.azurite import connection_string, serve_blobs
from tests.support.store_cases import ProcessCases, StoreCases, TableCases, extract

pytest.importorskip("adlfs", reason="the group stores is not installed")


class AzureStore:
    """The container ``lake``, read and written with Azure's own client."""

    scheme, url_scheme = "abfs", "az"

    def __init__(self, endpoint: str) -> None:
        from azure.storage.blob import ContainerClient

        self.endpoint = endpoint
        self._client = ContainerClient.from_connection_string(connection_string(endpoint), "lake")
        self._client.create_container()

    def connection(self, endpoint: str) -> dict[str, Any]:
        return {"conn_type": "wasb", "extra": {"connection_string": connection_string(endpoint)}}

    def names(self) -> list[str]:
        return [blob.name.removeprefix("unleash/") for blob in self._client.list_blobs()]

    def read(self, name: str) -> bytes:
        body: bytes = self._client.download_blob(f"unleash/{name}").readall()
        return body

    def put(self, name: str, body: bytes) -> None:
        self._client.upload_blob(f"unleash/{name}", body)

    def leftovers(self) -> list[str]:
        """Return the names that have uncommitted blocks."""
        blobs = self._client.list_blobs(include=["uncommittedblobs"])
        names = [blob.name for blob in blobs]
        return [name for name in names if self._client.get_blob_client(name).get_block_list("uncommitted")[1]]

    def clear(self) -> None:
        for blob in self._client.list_blobs():
            self._client.delete_blob(blob.name)


@pytest.fixture(scope="module")
def azurite() -> Iterator[AzureStore]:
    logging.getLogger("azure").setLevel(logging.WARNING)  # otherwise ten lines per request
    with serve_blobs() as endpoint:
        yield AzureStore(endpoint)


@pytest.fixture
def lake(azurite: AzureStore) -> Iterator[AzureStore]:
    yield azurite
    azurite.clear()


class TestAzure(StoreCases, TableCases):
    def test_a_missing_container_fails_the_extraction(self, serve, lake):
        serve()
        with pytest.raises(FileNotFoundError):
            extract(lake, dst="abfs://lake_conn@nowhere/unleash")
        assert lake.names() == []


class TestAzureProcesses(ProcessCases):
    pass
