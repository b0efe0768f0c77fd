"""Servers that cut what they send into pieces of one to three bytes, in the midst of characters."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from socketserver import BaseRequestHandler, BaseServer, ThreadingTCPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

SIZES = (1, 2, 3, 1, 1, 3, 2)
"""Of the pieces, again and again. Their sum is odd: each character is cut at each place."""


def pieces(data: bytes) -> Iterator[bytes]:
    start = 0
    for size in cycle(SIZES):
        if start >= len(data):
            return
        yield data[start : start + size]
        start += size


@contextmanager
def serving(server: ThreadingTCPServer) -> Iterator[str]:
    """The server's URL, as long as it is needed."""
    with server:
        thread = Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class SplittingProxy(ThreadingTCPServer):
    """Hands on what the server at `url` answers, piece by piece."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handover)
        parts = urlsplit(url)
        self.upstream = (parts.hostname, parts.port)


class _Handover(BaseRequestHandler):
    def __init__(self, request: Any, client_address: Any, server: BaseServer) -> None:
        assert isinstance(server, SplittingProxy)
        self.upstream = server.upstream
        super().__init__(request, client_address, server)

    def handle(self) -> None:
        client: socket.socket = self.request
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection(self.upstream) as upstream, suppress(OSError):
            asking = Thread(target=self._ask, args=[client, upstream])
            asking.start()
            while data := upstream.recv(65_536):
                for piece in pieces(data):
                    client.sendall(piece)
            client.shutdown(socket.SHUT_RDWR)
            asking.join()

    def _ask(self, client: socket.socket, upstream: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_RDWR)


class TextServer(ThreadingHTTPServer):
    """Serves one text, chunked (RFC 9112 §7.1): each piece is a chunk, so no buffer on the way can
    put a character together again. `/cut/…` breaks off in the middle when it is asked first;
    `/halting/…` waits there until `go_on` is set."""

    daemon_threads = True

    def __init__(self, text: str) -> None:
        super().__init__(("127.0.0.1", 0), _TextHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.data = text.encode()
        self.seen: set[str] = set()
        self.go_on = Event()


class _TextHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, TextServer)
        data, middle = self.server.data, len(self.server.data) // 2
        is_first = self.path not in self.server.seen
        self.server.seen.add(self.path)
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._send(pieces(data[:middle]))
        if self.path.startswith("/cut/") and is_first:
            self.close_connection = True
            return
        if self.path.startswith("/halting/"):
            self.server.go_on.wait(10)
        self._send(pieces(data[middle:]))
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, chunks: Iterable[bytes]) -> None:
        self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks))

    def log_message(self, format: str, *args: Any) -> None:
        pass
