"""Servers with the same response to every request."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextmanager
def answering(body: bytes, received: list[bytes] | None = None, **headers: str) -> Iterator[str]:
    """
    Yield the URL of a server that responds with this body, and headers such as ``content_type``.

    :param received: gets the body of each request.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if received is not None:
                received.append(content)
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # the client may close the connection
                self.wfile.write(body)

        do_POST = do_GET  # noqa: N815, a name of http.server

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def trickling() -> Iterator[tuple[str, list[str]]]:
    """
    Yield the URL of a server that never completes a response, but sends one byte of it every 50 ms.

    The list gets "request" for each request, and "end" for each connection that the client ends.
    """
    events: list[str] = []

    def trickle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            events.append("request")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)
        events.append("end")

    with _serve_connections(trickle) as url:
        yield url, events


@contextmanager
def _serve_connections(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    def accept(listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def responding(response: bytes, secret_header: str = "") -> Iterator[str]:
    """
    Yield the URL of a server that sends these bytes and closes the connection.

    :param secret_header: a request header whose value replaces ``KEY`` in the bytes.
    """

    def respond(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = connection.recv(65536).decode("latin-1")
            values = [
                line.partition(":")[2].split()[-1] for line in request.splitlines() if secret_header in line.lower()
            ]
            connection.sendall(response.replace(b"KEY", values[0].encode()) if values else response)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)

    with _serve_connections(respond) as url:
        yield url
