"""Free ports on loopback, for servers that cannot choose one themselves."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Below the ports that Linux gives to clients, and to servers that listen on port 0. One of these could otherwise take
# the port before the server listens on it.
_PORTS = range(10_000, 32_768)


def free_ports(number: int) -> list[int]:
    """Return different ports on which nothing listens."""
    system = random.SystemRandom()  # a seed would give the same ports to several processes
    ports: set[int] = set()
    while len(ports) < number:
        port = system.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)
