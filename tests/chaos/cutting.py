"""A TCP proxy that cuts connections where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType


class CuttingProxy:
    """Forwards to a port on this machine, and cuts each connection after as many bytes of its
    response as `limit()` says; None lets it be."""

    def __init__(self, port: int, limit: Callable[[], int | None]) -> None:
        self._target = port
        self._limit = limit
        self.cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        request = asyncio.ensure_future(self._forward(reader, up_writer, None))
        try:
            await self._forward(up_reader, writer, self._limit())
        except asyncio.CancelledError:
            pass  # the end of the test, which asyncio's streams of Python 3.11 would complain about
        finally:
            request.cancel()
            up_writer.transport.abort()
            writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if left is not None and len(data) >= left:
                    writer.write(data[:left])
                    await writer.drain()
                    self.cuts += 1
                    writer.transport.close()  # what was written still goes out
                    await asyncio.sleep(0.001)
                    return
                writer.write(data)
                await writer.drain()
                left = None if left is None else left - len(data)
            await writer.drain()
            if left is None or left > 0:
                writer.close()
                await writer.wait_closed()
        except OSError:
            pass
