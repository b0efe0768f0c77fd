"""A load generator: closed-loop keep-alive clients in a process of its own.

    python -m benchmarks.load PORT CLIENTS SECONDS

prints JSON: the number of answers, and their latencies' median and 95th percentile in milliseconds.
Bare `asyncio.Protocol`, so that it costs less than what it measures. Ends with an error at the
first answer that is not the expected one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

import orjson
import uvloop

from benchmarks.apps import ANSWER, BODY

_REQUEST = (
    b"POST /run HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Client(asyncio.Protocol):
    """Sends a request, waits for its answer, and sends the next."""

    def __init__(self, latencies: list[float], stop_at: float) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._latencies, self._stop_at = latencies, stop_at
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(ANSWER):
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

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            if self._received:
                self.closed.set_exception(RuntimeError(f"cut off: {self._received!r}"))
            else:
                self.closed.set_result(None)

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(_REQUEST)


async def generate(port: int, clients: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    began = time.perf_counter()
    connections = [
        await loop.create_connection(lambda: Client(latencies, began + seconds), "127.0.0.1", port)
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
    print(orjson.dumps(uvloop.run(generate(port, clients, seconds))).decode())
