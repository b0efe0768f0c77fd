"""What an attacker does: sends any bytes, and sees what comes back."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import Any, NamedTuple

KEY = "signkey-prod-0123456789abcdef0123456789abcdef"
OLD_KEY = "fedcba9876543210fedcba9876543210"
EVENT_KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    elapsed: float
    """Seconds until the server closed the connection, or the answer was complete."""

    def json(self) -> Any:
        return json.loads(self.body)


class Attacker:
    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def send(self, *pieces: bytes, pause: float = 0.0) -> Answer:
        """Send bytes on a connection of its own, and read until it is closed."""
        with self.connect() as connection:
            began = time.monotonic()
            with suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            return _read(connection, began)

    def ask(
        self, method: str, path: str, body: bytes = b"", key: str = "", **headers: str
    ) -> Answer:
        """A well-formed request."""
        lines = [f"{method} {path} HTTP/1.1", "connection: close", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if "host" not in headers:
            lines.append("host: localhost")
        if key:
            lines.append(f"authorization: Bearer {key}")
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def _read(connection: socket.socket, began: float) -> Answer:
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    elapsed = time.monotonic() - began
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1]) if lines[0] else 0
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return Answer(status, headers, body, elapsed)
