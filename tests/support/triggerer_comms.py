"""
Poll for sessions on the event loop on which a triggerer talks to its supervisor, and print whether both work.

Runs in its own process, because that connection is global to a process and does not close cleanly.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import threading
import time
from typing import Any

os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")

import msgspec
from airflow.jobs.triggerer_job_runner import TriggerCommsDecoder
from airflow.sdk.definitions.connection import Connection
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import _ResponseFrame

from airflow_provider_unleash import triggers


class StateChanges:
    """The message that a triggerer sends each second."""

    def model_dump(self) -> dict[str, str]:
        return {"type": "TriggerStateChanges"}


def supervise(side: socket.socket) -> None:
    """Answer each request with an empty response after a short delay."""
    stream = side.makefile("rb")
    while head := stream.read(4):
        request = msgspec.msgpack.decode(stream.read(int.from_bytes(head, "big")))
        time.sleep(0.03)
        side.sendall(_ResponseFrame(id=request[0], body=None).as_bytes())


async def main(url: str, key: str) -> None:
    ours, theirs = socket.socketpair()
    threading.Thread(target=supervise, args=(theirs,), daemon=True).start()
    reader, writer = await asyncio.open_connection(sock=ours)
    decoder = TriggerCommsDecoder(async_writer=writer, async_reader=reader, socket=ours)
    task_runner.SUPERVISOR_COMMS = decoder
    if hasattr(decoder, "start_reader"):
        await decoder.start_reader()

    async def connection(conn_id: str) -> Any:
        extra = json.dumps({"timeout": 20})
        return Connection(conn_id=conn_id, conn_type="unleash", host=url, password=key, extra=extra)

    triggers.get_async_connection = connection
    async for event in triggers.UnleashNewSessionsTrigger(poke_interval=0.1).run():
        sessions = event.payload.get("sessions", event.payload)
    try:
        await asyncio.wait_for(decoder.asend(StateChanges()), 5)
        error = ""
    except Exception as caught:
        error = repr(caught)
    sys.stdout.write(json.dumps({"sessions": sessions, "error": error}) + "\n")
    sys.stdout.flush()
    os._exit(0)


asyncio.run(main(*sys.argv[1:]))
