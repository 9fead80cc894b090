"""``make cluster`` reports what is missing, listens on loopback only, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tools.services import PostgreSQL, Redis, StageError, find_command

SECONDS_TO_START = 300


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process and its descendants listen."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found |= {sock.laddr.ip for sock in one.net_connections("inet") if sock.status == psutil.CONN_LISTEN}
    return found


def test_the_error_for_a_missing_command_names_the_packages():
    with pytest.raises(StageError, match="apt-get install postgresql redis-server"):
        find_command("no-such-server")


@pytest.mark.parametrize("kind", [PostgreSQL, Redis])
def test_a_service_and_its_folder_are_gone_after_the_block(kind):
    with kind() as service:
        process = psutil.Process(service.pid)
        assert listening(process) == {"127.0.0.1"}
        assert service.folder.exists()
    assert not process.is_running()
    assert not service.folder.exists()


@pytest.mark.parametrize("kind", [PostgreSQL, Redis])
def test_a_service_rejects_a_wrong_password(kind):
    with kind() as service:
        assert service.answers()
        service.password = "another"
        assert not service.answers()


def test_ctrl_c_stops_the_cluster_and_leaves_nothing_behind():
    command = [sys.executable, "-m", "tools.cluster"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as show:
        try:
            assert show.stdout is not None
            output = ""
            deadline = time.monotonic() + SECONDS_TO_START
            while "Ctrl-C" not in output and time.monotonic() < deadline and (line := show.stdout.readline()):
                output += line
            assert "Ctrl-C" in output
            parts = psutil.Process(show.pid).children(recursive=True)
            names = {" ".join(part.cmdline()) for part in parts}
            for part in ("postgres", "redis-server", "weed", "celery worker", "scheduler", "api_server", "triggerer"):
                assert any(part in name.replace("-m airflow ", "") for name in names), f"{part}: {sorted(names)}"
            assert listening(psutil.Process(show.pid)) == {"127.0.0.1"}
        finally:
            show.send_signal(signal.SIGINT)
        assert show.wait(120) == 0
    assert [part for part in parts if part.is_running()] == []
    folder = output.split("log          ")[1].split()[0]
    assert not Path(folder).parent.exists()
