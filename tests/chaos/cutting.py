"""A TCP proxy that cuts connections where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.chaos.proxying import Proxy


class CuttingProxy(Proxy):
    """Forwards to a port on this machine, and cuts each connection after as many bytes of its
    response as `limit()` says; None lets it be."""

    def __init__(self, target: int, limit: Callable[[], int | None]) -> None:
        super().__init__(target)
        self._limit = limit
        self.cuts = 0

    async def serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        request = asyncio.ensure_future(self._forward(reader, up_writer, None))
        try:
            await self._forward(up_reader, writer, self._limit())
        finally:
            request.cancel()

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
