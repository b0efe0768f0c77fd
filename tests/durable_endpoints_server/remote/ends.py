"""A connection in memory, on one event loop: its two ends."""

from __future__ import annotations

import asyncio
from collections import deque

from durable_endpoints_server.remote.transport import TransportClosedError


class MemoryEnd:
    """One end of a connection in memory."""

    def __init__(self) -> None:
        self.peer: MemoryEnd
        self.closed: TransportClosedError | None = None
        """Why nothing can be sent any more, and nothing more will arrive."""
        self._inbox: deque[str] = deque()
        self._news = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was sent to this end has been received."""
        return not self._inbox

    async def send(self, message: str) -> None:
        if self.closed is not None:
            raise self.closed
        self.peer._inbox.append(message)
        self.peer._news.set()

    async def receive(self) -> str:
        while not self._inbox:
            if self.closed is not None:
                raise self.closed
            self._news.clear()
            await self._news.wait()
        return self._inbox.popleft()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed is None:
            self._end(TransportClosedError(code, reason))
            self.peer._end(TransportClosedError(code, reason))

    def cut(self) -> None:
        """Lose the connection at both ends: what was sent and not received is gone."""
        for end in (self, self.peer):
            end._inbox.clear()
            end._end(TransportClosedError(1006, "the connection was cut"))

    def _end(self, why: TransportClosedError) -> None:
        self.closed = self.closed or why
        self._news.set()


def memory_pair() -> tuple[MemoryEnd, MemoryEnd]:
    """Both ends of a new connection in memory."""
    first, second = MemoryEnd(), MemoryEnd()
    first.peer, second.peer = second, first
    return first, second
