"""PostgreSQL and Redis from the system's packages, on loopback, for the duration of a block."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tools.ports import free_ports
from tools.stage import StageError

SECONDS_TO_START = 60
# Debian does not put the server's commands in PATH.
_PLACES = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


class Service:
    """
    A server with its own folder. Both are removed when the block ends.

    :cvar command: the command that starts the server.
    """

    command: str

    def __enter__(self) -> Self:
        self._binary = find_command(self.command)
        self._temporary = tempfile.TemporaryDirectory(prefix=f"unleash-{self.command}-")
        self.folder = Path(self._temporary.name)
        self.port, self.password = free_ports(1)[0], secrets.token_urlsafe()
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = self._start()
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            # On SIGTERM, PostgreSQL would wait for its clients.
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                # SIGQUIT also ends its children; SIGKILL would leave them running.
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._temporary.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _start(self) -> subprocess.Popen[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether the server accepts a connection."""
        raise NotImplementedError

    def _wait(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(errors="replace")
                raise StageError(f"{self.command} did not start\n{log}")
            time.sleep(0.1)

    def _popen(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        with (self.folder / "log").open("a") as log:
            # Its own session: Ctrl-C then reaches only this process, which stops everything in order.
            process: subprocess.Popen[str] = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, text=True, start_new_session=True, **options
            )
        return process


class Redis(Service):
    """A broker that keeps nothing on disk."""

    command = "redis-server"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _start(self) -> subprocess.Popen[str]:
        process = self._popen([self._binary, "-"], stdin=subprocess.PIPE)
        # Not as command-line options, which every user of this machine can read.
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.password,
            "save": '""',
            "appendonly": "no",
            "dir": self.folder,
        }
        assert process.stdin is not None
        process.stdin.write("".join(f"{name} {value}\n" for name, value in settings.items()))
        process.stdin.close()
        return process

    def answers(self) -> bool:
        import redis

        with suppress(redis.exceptions.RedisError):
            return bool(redis.Redis.from_url(self.url).ping())
        return False


class PostgreSQL(Service):
    """An empty database cluster. PostgreSQL refuses to run as root, and then runs as the user ``postgres`` instead."""

    command = "postgres"

    @property
    def url(self) -> str:
        return f"postgresql://airflow:{self.password}@127.0.0.1:{self.port}/postgres"

    def _start(self) -> subprocess.Popen[str]:
        options: dict[str, Any] = {}
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            options = {"user": "postgres", "group": "postgres", "extra_groups": []}
            for path in (self.folder, password_file):
                shutil.chown(path, "postgres", "postgres")
        data = self.folder / "data"
        made = self._popen(
            [
                *(find_command("initdb"), "--pgdata", str(data), "--username", "airflow", "--no-sync"),
                *("--auth", "scram-sha-256", "--pwfile", str(password_file), "--encoding", "UTF8"),
            ],
            **options,
        )
        if made.wait() != 0:
            raise StageError(f"initdb failed\n{(self.folder / 'log').read_text()}")
        password_file.unlink()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 200,
            "fsync": "off",  # the data need not survive a crash of the machine
        }
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return self._popen([self._binary, "-D", str(data), *arguments], **options)

    def answers(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url).close()
            return True
        return False


def find_command(name: str) -> str:
    """Return the path of a server's command, wherever the system's packages installed it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES]))
    if found is None:
        raise StageError(f"{name} is not installed. On Debian: apt-get install postgresql redis-server")
    return found
