"""A recognizable key, the faults of the API that could leak it, and a search for it in everything that was written."""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from airflow_provider_unleash.simulator import Fault

# The first has characters that are encoded in URLs; the second is sent as Bearer.
KEYS = ["rEcOgnisable/4711+key=", "ul_pat_rEcOgnisable4711"]

FAULTS = {
    "nothing": [],
    "echo 401": [Fault("echo_key", times=None)],
    "echo 400": [Fault("echo_key", times=None, status=400)],
    "echo 429": [Fault("echo_key", times=None, status=429)],
    "echo 500": [Fault("echo_key", times=None, status=500)],
    "echo 200": [Fault("echo_key", times=None, status=200)],
    "redirect": [Fault("redirect", times=None)],
    "html": [Fault("html", times=None)],
    "garbage": [Fault("garbage", times=None)],
    "half body": [Fault("half_body", times=None)],
    "reset": [Fault("reset", times=None)],
    "timeout": [Fault("slow", times=None, seconds=0.3)],
    "wrong shape": [Fault("wrong_shape", times=None)],
}


def spellings(secret: str) -> set[str]:
    """Return the forms of a secret in text: plain, in a URL, as a host, in JSON, Python or base64."""
    plain = {
        secret,
        secret.lower(),
        quote(secret),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }
    return plain | _in_base64(secret)


def _in_base64(secret: str) -> set[str]:
    """Return the forms of the secret in the base64 of a longer text, which depend on its position."""
    found = {base64.b64encode(secret.encode()).decode()}
    for before in range(3):
        bits = 8 * before, 8 * (before + len(secret))
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode()
        found.add(encoded[-(-bits[0] // 6) : bits[1] // 6])
    return found


def leaks(secret: str, texts: Mapping[str, str | bytes]) -> list[str]:
    """Return the names of the texts that contain the secret, with the form found."""
    found = []
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        found += [f"{name}: {spelling}" for spelling in spellings(secret) if spelling.encode() in content]
    return found


def files_under(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files by path; also unpacked if compressed, and by column of a database."""
    texts: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, content = str(path), path.read_bytes()
            texts[name] = content
            if content.startswith(b"\x1f\x8b"):
                # Not gzip.decompress, which refuses a truncated file.
                texts[f"{name} unpacked"] = zlib.decompressobj(wbits=31).decompress(content)
            elif content.startswith(b"PAR1"):
                texts[f"{name} unpacked"] = _read_parquet(path)
            elif content.startswith(b"SQLite format 3\0"):
                texts |= {f"{name} {column}": values for column, values in _read_database(path).items()}
    return texts


def _read_parquet(path: Path) -> bytes:
    if find_spec("pyarrow") is None:
        return b""
    import pyarrow.parquet as pq

    with suppress(ValueError):  # a truncated file lacks the footer
        table = pq.ParquetFile(path).read()
        return f"{table.schema!r} {table.schema.metadata!r} {table.to_pylist()!r}".encode()
    return b""


def _read_database(path: Path) -> dict[str, bytes]:
    """Return the values by table and column; in the file, SQLite splits long ones into pages."""
    texts = {}
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for table in [name.decode() for (name,) in tables]:
            cursor = database.execute(f'SELECT * FROM "{table}"')
            columns = [column.decode() if isinstance(column, bytes) else column for column, *_ in cursor.description]
            values = zip(*cursor.fetchall(), strict=True)
            for column, cells in zip(columns, values, strict=False):  # an empty table
                cells = (cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)
                texts[f"{table}.{column}"] = b"\n".join(cells)
    return texts
