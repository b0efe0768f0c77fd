"""The floor with a server: the same commits, made by another process, and nothing else.

    python -m benchmarks.far_floor DATABASE --port PORT

What a process has to say in one turn of its event loop travels in one line of JSON, over one
connection; the server writes it as the floor does, and says by its number when it is on disk. No
session, no lease, nothing that could be sent again: what is slower than this is the price of those.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any, cast

import orjson
import uvloop

from benchmarks import heap
from benchmarks.floor import Floor, Row


class FarFloor(asyncio.Protocol):
    """The process's end: a `Floor` whose table is elsewhere."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rows: list[Any] = []
        self._futures: list[asyncio.Future[None]] = []
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._number = 0
        self._rest = b""

    @classmethod
    async def connect(cls, port: int) -> FarFloor:
        _, floor = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return floor

    def add(self, *rows: Row) -> asyncio.Future[None]:
        """Write rows; the future is done when they are on disk."""
        if not self._rows:
            self._loop.call_soon(self._hand_over)
        self._rows += [(kind, run, name, value.decode()) for kind, run, name, value in rows]
        future = self._loop.create_future()
        self._futures.append(future)
        return future

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            for future in self._waiting.pop(int(line)):
                if not future.done():
                    future.set_result(None)

    def _hand_over(self) -> None:
        self._number += 1
        self._waiting[self._number], self._futures = self._futures, []
        rows, self._rows = self._rows, []
        self._transport.write(orjson.dumps([self._number, rows]) + b"\n")


class _Peer(asyncio.Protocol):
    """The server's end."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            number, rows = orjson.loads(line)
            written = self._floor.add(
                *((kind, run, name, value.encode()) for kind, run, name, value in rows)
            )
            written.add_done_callback(partial(self._tell, number))

    def _tell(self, number: int, written: asyncio.Future[None]) -> None:
        self._transport.write(b"%d\n" % number)


async def _serve(database: str, port: int) -> None:
    floor = Floor(database)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Peer(floor), "127.0.0.1", port)
    heap.settle()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[sys.argv.index("--port") + 1])))
