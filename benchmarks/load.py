"""A load generator: closed-loop keep-alive clients in a process of its own.

    python -m benchmarks.load PORT CLIENTS SECONDS [METHOD PATH END]

prints JSON: the number of answers, and their latencies' median and 95th percentile in milliseconds.
Bare `asyncio.Protocol`, so that it costs less than what it measures. Ends with an error at the
first answer that is not the expected one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import NamedTuple, cast

import orjson
import uvloop

from benchmarks.apps import ANSWER, BODY


class Request(NamedTuple):
    """What is asked again and again."""

    method: str = "POST"
    path: str = "/run"
    end: str = ANSWER.decode()
    """What an answer ends with, and nothing else in it does."""

    def encoded(self, port: int) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n".encode()
        if self.method == "GET":
            return head + b"\r\n"
        return head + (
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
        )


THREE_STEPS = Request()


class Client(asyncio.Protocol):
    """Sends a request, waits for its answer, and sends the next."""

    def __init__(self, request: bytes, end: bytes, latencies: list[float], stop_at: float) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._end = request, end
        self._latencies, self._stop_at = latencies, stop_at
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(self._end):
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            self.closed.set_exception(RuntimeError(f"unexpected answer: {self._received!r}"))
            self._transport.abort()
            return
        self._received = b""
        now = time.perf_counter()
        self._latencies.append(now - self._sent_at)
        if now < self._stop_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            if self._received:
                self.closed.set_exception(RuntimeError(f"cut off: {self._received!r}"))
            else:
                self.closed.set_result(None)

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


async def generate(port: int, clients: int, seconds: float, request: Request) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    began = time.perf_counter()
    encoded, end, stop_at = request.encoded(port), request.end.encode(), began + seconds
    connections = [
        await loop.create_connection(
            lambda: Client(encoded, end, latencies, stop_at), "127.0.0.1", port
        )
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.closed for _, client in connections))
    elapsed = time.perf_counter() - began
    latencies.sort()
    return {
        "answers": len(latencies),
        "per_second": len(latencies) / elapsed,
        "p50": latencies[len(latencies) // 2] * 1_000,
        "p95": latencies[len(latencies) * 95 // 100] * 1_000,
    }


if __name__ == "__main__":
    port, clients, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    request = Request(*sys.argv[4:])
    print(orjson.dumps(uvloop.run(generate(port, clients, seconds, request))).decode())
