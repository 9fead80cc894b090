"""Pages for tests of files, and readers of files that know nothing of this package."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow.parquet as pq

from airflow_provider_unleash.core.formats import Format
from airflow_provider_unleash.core.protocol import Page, Response, parse_page
from tests.support.paths import SAMPLES

KNOWN = [
    *("class_name", "count", "device_id", "frame_number"),
    *("model_id", "session_id", "source_file_name", "timestamp"),
]
HEADER = [*KNOWN, "extra"]
DECLARED = {"confidence": "float64", "zone": "string", "visits": "int64", "seen": "bool", "until": "timestamp"}
TEXT_FORMATS = [(name, compression) for name in ("jsonl", "json", "csv") for compression in (None, "gzip")]
FORMATS: list[Any] = [*TEXT_FORMATS, ("parquet", None)]


def sample(name: str, endpoint: Any = "compact") -> Page:
    """Return a page of the API's documentation."""
    return parse_page(Response("https://x/1", 200, {}, (SAMPLES / f"analytics_{name}.json").read_bytes()), 1, endpoint)


def page_of(*records: dict[str, Any], number: int = 1, **more: Any) -> Page:
    """Return a page as from the tableau endpoint: rows may lack keys."""
    keys = tuple(dict.fromkeys(key for record in records for key in record))
    rows = [tuple(record.get(key, msgspec.UNSET) for key in keys) for record in records]
    return Page(number, 9, keys, rows, any(len(record) < len(keys) for record in records), **more)


def record(**values: Any) -> dict[str, Any]:
    """Return an ordinary row with these values."""
    usual = ["person", 1, "W1", 7, "ai", "1597622730877", "a.mp4", "2020-08-17T02:08:49.000Z"]
    return {**dict(zip(KNOWN, usual, strict=True)), **values}


@dataclass(frozen=True)
class Place:
    """A path with the attributes that the package uses, and no others."""

    path: str
    protocol: str
    fs: Any = None


def write(path: Any, pages: Iterable[Page], file_format: Any, compression: Any = None, column_types: Any = None) -> int:
    """Write an object, and return its size according to the writer."""
    with Format(file_format, compression, column_types).open(path) as writer:
        for page in pages:
            writer.write_page(page)
    return writer.size


def plain_bytes(path: Any, compression: str | None = None) -> bytes:
    """Return the bytes of a local object, without its compression."""
    data = Path(path.path).read_bytes()
    return gzip.decompress(data) if compression else data


def read_records(data: bytes, file_format: str) -> list[dict[str, Any]]:
    """Return the rows of an object without compression."""
    if file_format == "parquet":
        return list(pq.read_table(io.BytesIO(data)).to_pylist())
    text = data.decode()
    if file_format == "csv":
        return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
    if file_format == "json":
        return list(json.loads(text))
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_file(path: Any, file_format: str, compression: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a local object."""
    return read_records(plain_bytes(path, compression), file_format)


def in_file(row: dict[str, Any], file_format: str) -> dict[str, Any]:
    """Return a row of known keys as a reader of the file gets it."""
    if file_format in ("json", "jsonl"):
        return row
    row = {**row, "count": None if row["count"] is None else float(row["count"]), "extra": None}
    if file_format == "csv":
        return {key: "" if row[key] is None else str(row[key]) for key in HEADER}
    moment = row["timestamp"] and datetime.fromisoformat(row["timestamp"].replace("Z", "+00:00"))
    return {**row, "timestamp": moment and moment.astimezone(timezone.utc)}


def duck(sql: str) -> list[tuple[Any, ...]]:
    """Return what DuckDB answers."""
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        return list(connection.sql(sql).fetchall())


def tree(folder: Any) -> dict[str, bytes | None]:
    """Return all files below a local folder with their content, and all folders with None."""
    root = Path(folder.path)
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
