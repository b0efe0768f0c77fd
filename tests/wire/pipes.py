"""Connections in memory between two event loops, which may be the same one."""

from __future__ import annotations

import asyncio
from collections import deque

from durable_endpoints.engines.remote.dialing import LostConnectionError
from durable_endpoints_server.remote.transport import TransportClosedError

_GOING_AWAY = 1001


class Pipe:
    """One direction. It is read on one event loop, and written from any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_closed = False
        self._loop = loop
        self._messages: deque[bytes] = deque()
        self._news = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was sent has been received, or never will be."""
        return not self._messages or self.is_closed

    def put(self, message: bytes) -> None:
        self._messages.append(message)
        self._tell()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._messages:
            if self.is_closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._messages.popleft()

    def close(self) -> None:
        """What was sent before still arrives."""
        self.is_closed = True
        self._tell()

    def cut(self) -> None:
        """What has not been received never will be."""
        self._messages.clear()
        self.close()

    def _tell(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._news.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)


class Line:
    """One connection: the application's end, and the server's."""

    def __init__(
        self, application: asyncio.AbstractEventLoop, server: asyncio.AbstractEventLoop
    ) -> None:
        self.to_server, self.to_application = Pipe(server), Pipe(application)
        self.application = ApplicationEnd(self)
        self.server = ServerEnd(self)

    @property
    def is_idle(self) -> bool:
        return self.to_server.is_idle and self.to_application.is_idle

    def close(self) -> None:
        self.to_server.close()
        self.to_application.close()

    def cut(self) -> None:
        self.to_server.cut()
        self.to_application.cut()


class ApplicationEnd:
    """A `Connection` of the SDK."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def send(self, message: bytes) -> None:
        if self._line.to_server.is_closed:
            raise LostConnectionError("the connection is closed")
        self._line.to_server.put(message)

    async def receive(self) -> bytes:
        message = await self._line.to_application.get()
        if message is None:
            raise LostConnectionError("the connection is closed")
        return message

    async def close(self) -> None:
        self._line.close()


class ServerEnd:
    """A `Transport` of the server."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def send(self, message: str) -> None:
        if self._line.to_application.is_closed:
            raise TransportClosedError(_GOING_AWAY)
        self._line.to_application.put(message.encode())

    async def receive(self) -> bytes:
        message = await self._line.to_server.get()
        if message is None:
            raise TransportClosedError(_GOING_AWAY)
        return message

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self._line.close()
