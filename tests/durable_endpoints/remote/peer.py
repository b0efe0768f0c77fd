"""A server played by a test: it hears what the SDK says, and says what the test wants."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from durable_endpoints.engines.remote.dialing import LostConnectionError
from durable_endpoints.protocol import wire
from durable_endpoints_server.engine.model import Policy

PATIENCE = 5.0


def welcome() -> dict[str, Any]:
    return {
        "now": round(time.time() * 1_000),
        "lease": 30_000,
        "heartbeat": 5_000,
        "policy": Policy()._asdict(),
        "capabilities": [],
        "server": "0",
        "dev": True,
    }


class _End:
    """One connection."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.said: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.is_cut = False

    async def send(self, message: bytes) -> None:
        if self.is_cut:
            raise LostConnectionError("cut")
        self._peer.messages.append(wire.decode(message))
        self._peer.heard.extend(wire.decode(message))
        self._peer.news.set()

    async def receive(self) -> bytes:
        message = await self.said.get()
        if message is None:
            raise LostConnectionError("cut")
        return message

    async def close(self) -> None:
        self.cut()

    def cut(self) -> None:
        self.is_cut = True
        self.said.put_nowait(None)


class Peer:
    """The server's end of one link after the other: a `Dial`."""

    def __init__(self) -> None:
        self.messages: list[list[wire.Frame]] = []
        self.heard: deque[wire.Frame] = deque()
        self.news = asyncio.Event()
        self.trouble: Exception | None = None
        """What each attempt to connect ends with."""
        self.welcomes = True
        self._end: _End | None = None

    async def __call__(self) -> _End:
        if self.trouble is not None:
            raise self.trouble
        self._end = _End(self)
        if self.welcomes:
            self.say("welcome", welcome())
        return self._end

    def say(self, *frame: Any) -> None:
        assert self._end is not None
        self._end.said.put_nowait(wire.encode([list(frame)]))

    def cut(self) -> None:
        """Lose the connection. The SDK opens another one, unless there is `trouble`."""
        assert self._end is not None
        self._end.cut()

    async def hear(self, name: str) -> list[Any]:
        """The parts of the next frame with this name; others are passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self.heard:
                    first, *parts = self.heard.popleft()
                    if first == name:
                        return parts
                self.news.clear()
                await self.news.wait()
