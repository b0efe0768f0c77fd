"""A scripted HTTP server on a raw socket: it says exactly the bytes that a test gives it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import orjson


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Said(NamedTuple):
    """What to answer: all of `data`, and then?"""

    data: bytes
    is_reset: bool = False
    """End the connection with a reset instead of an orderly close."""
    until: threading.Event | None = None
    """Hold the connection open until then, or until the client goes."""


Script = Callable[[Asked], Said | bytes]


class Server:
    """Answers every connection once, then closes it. `asked` is what has come so far."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[Asked] = []
        self.left = threading.Event()
        """Set when a client has closed a connection that was held open."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        asked = _read_request(connection)
        if asked is None:
            return
        self.asked.append(asked)
        said = self._script(asked)
        if isinstance(said, bytes):
            said = Said(said)
        try:
            connection.sendall(said.data)
            if said.until is not None:
                self._hold(connection, said.until)
            if said.is_reset:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            return  # the client has left

    def _hold(self, connection: socket.socket, until: threading.Event) -> None:
        connection.settimeout(0.01)
        while not until.is_set():
            try:
                if connection.recv(1) == b"":
                    self.left.set()
                    return
            except TimeoutError:
                continue


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    server = Server(script)
    try:
        yield server
    finally:
        server.close()


def in_turn(*answers: Said | bytes) -> Script:
    """One answer after the other; the last one is repeated."""
    left = list(answers)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """An ordinary response."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(*frames: bytes, url: str | None = "/wait?runId=R&token=T", end: bool = True) -> bytes:
    """A stream in one HTTP chunk for each frame; without its `end` it is cut off."""
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Transfer-Encoding: chunked",
        "Connection: close",
        "Durable-Run-Id: R",
    ]
    if url is not None:
        lines.append(f"Durable-Run-Url: {url}")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames]
    return head + b"".join(chunks) + (b"0\r\n\r\n" if end else b"")


def frame(event: str, data: Any, id: object = None) -> bytes:
    head = b"" if id is None else b"id: %b\n" % str(id).encode()
    return head + b"event: inngest.%b\ndata: %b\n\n" % (event.encode(), orjson.dumps(data))


def metadata(position: object = 0, run_id: str = "R") -> bytes:
    return frame("metadata", {"runId": run_id}, position)


def chunk(data: Any, id: object, step: str | None = None) -> bytes:
    return frame("stream", {"data": data} | ({"hashedStepId": step} if step else {}), id)


def progress(data: Any, id: object, step: str | None = None) -> bytes:
    return chunk(data, id, step).replace(b"inngest.stream", b"durable.progress")


def log_line(data: Any, id: object, step: str | None = None) -> bytes:
    return chunk(data, id, step).replace(b"inngest.stream", b"durable.log")


def commit(step: str | None, id: object) -> bytes:
    return frame("commit", {"hashedStepId": step}, id)


def rollback(step: str | None, id: object) -> bytes:
    return frame("rollback", {"hashedStepId": step}, id)


def response(
    id: object, body: str = "done", status: int = 200, word: str = "succeeded", **more: Any
) -> bytes:
    content = {"body": body, "statusCode": status, "headers": {"x-own": "yes"}, **more}
    return frame("response", {"status": word, "response": content}, id)


HEARTBEAT = b": keep-alive\n\n"


def _read_request(connection: socket.socket) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            piece = connection.recv(65_536)
        except OSError:
            return None
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65_536)
    return Asked(method, path, headers, body)
