"""PostgreSQL and Redis from the system's packages, on loopback, for as long as a block lasts."""

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

from tools.stage import StageError, free_port

SECONDS_TO_START = 60
# Debian keeps the server's commands out of PATH.
_PLACES = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


class Service:
    """
    A server with a folder of its own, both of which go when the block ends.

    :param command: the one that serves.
    """

    command: str

    def __enter__(self) -> Self:
        self._binary = find_command(self.command)
        self._temporary = tempfile.TemporaryDirectory(prefix=f"unleash-{self.command}-")
        self.folder = Path(self._temporary.name)
        self.port, self.password = free_port(), secrets.token_urlsafe()
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
            # For PostgreSQL, SIGTERM would mean to wait for its clients.
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                # Its children end by that, which a SIGKILL of it alone would leave.
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
        """Tell whether it lets us in."""
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
            # A session of its own: Ctrl-C is for us, who then stop all in order.
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
        # Not as options, which everybody on this machine could read.
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
    """An empty database ``airflow``; run by root, it runs as the user ``postgres``, as it asks for."""

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
            "fsync": "off",  # what is lost with the machine is lost on purpose
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
    """Return the path of a server's command, wherever the system's packages have put it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES]))
    if found is None:
        raise StageError(f"There is no «{name}» on this machine: apt-get install postgresql redis-server")
    return found
