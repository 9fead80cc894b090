"""The content of a bucket, read without this package."""

from __future__ import annotations

from typing import Any

from tools.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS


class S3Lake:
    """
    A new bucket; names are relative to a prefix in it.

    :param prefix: must end with a slash.
    """

    def __init__(self, store: SeaweedFS, bucket: str = "lake", prefix: str = "tree/") -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.client = open_client(store.url)
        self.client.create_bucket(Bucket=bucket)

    def read(self, name: str) -> bytes | None:
        try:
            found: bytes = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}{name}")["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return found

    def names(self) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {entry["Key"].removeprefix(self.prefix) for page in pages for entry in page.get("Contents", ())}

    def uploads(self, name: str = "") -> list[str]:
        """Return the keys of open multipart uploads."""
        listed = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=f"{self.prefix}{name}")
        return [upload["Key"] for upload in listed.get("Uploads") or ()]


def open_client(endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 8}),
    )


def connection_to(endpoint: str) -> dict[str, Any]:
    """Return the fields of an Airflow connection to a store."""
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    return {"conn_type": "aws", "login": ACCESS_KEY, "password": SECRET_KEY, "extra": extra}
