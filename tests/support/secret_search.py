"""A recognisable key, what can go wrong with it under way, and the search for it in whatever was written."""

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

# Characters that look otherwise in a URL; the second goes as Bearer.
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
    """Return how a secret may stand in a text: as it is, in a URL, as a host, in JSON, Python or base64."""
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
    """Return the secret's part of the base64 of a text that has it anywhere."""
    found = {base64.b64encode(secret.encode()).decode()}
    for before in range(3):
        bits = 8 * before, 8 * (before + len(secret))
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode()
        found.add(encoded[-(-bits[0] // 6) : bits[1] // 6])
    return found


def leaks(secret: str, texts: Mapping[str, str | bytes]) -> list[str]:
    """Return the names of the texts that have the secret in any spelling."""
    found = []
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        found += [f"{name}: {spelling}" for spelling in spellings(secret) if spelling.encode() in content]
    return found


def files_under(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their paths; compressed ones also as what they hold, a database by columns."""
    texts: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, content = str(path), path.read_bytes()
            texts[name] = content
            if content.startswith(b"\x1f\x8b"):
                texts[f"{name} unpacked"] = zlib.decompressobj(wbits=31).decompress(content)  # a part of one, too
            elif content.startswith(b"PAR1"):
                texts[f"{name} unpacked"] = _read_parquet(path)
            elif content.startswith(b"SQLite format 3\0"):
                texts |= {f"{name} {column}": values for column, values in _read_database(path).items()}
    return texts


def _read_parquet(path: Path) -> bytes:
    if find_spec("pyarrow") is None:
        return b""
    import pyarrow.parquet as pq

    with suppress(ValueError):  # a part of one has no end that says where its columns are
        table = pq.ParquetFile(path).read()
        return f"{table.schema!r} {table.schema.metadata!r} {table.to_pylist()!r}".encode()
    return b""


def _read_database(path: Path) -> dict[str, bytes]:
    """Return the values by table and column: SQLite cuts long ones into pages, which are not side by side."""
    texts = {}
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for table in [name.decode() for (name,) in tables]:
            cursor = database.execute(f'SELECT * FROM "{table}"')
            columns = [column.decode() if isinstance(column, bytes) else column for column, *_ in cursor.description]
            values = zip(*cursor.fetchall(), strict=True)
            for column, cells in zip(columns, values, strict=False):  # a table without rows has no values
                cells = (cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)
                texts[f"{table}.{column}"] = b"\n".join(cells)
    return texts
