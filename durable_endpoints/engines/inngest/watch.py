"""Waiting for the next frames of a stream, as readers do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from durable_endpoints.protocol.streams import Silence


class Watch:
    """Looks whenever something has changed."""

    def __init__(self) -> None:
        self._change = asyncio.Event()
        self._is_poked = False

    def look(self) -> None:
        """Something has changed."""
        self._change.set()

    def poke(self) -> None:
        """Let whoever waits look once more and return."""
        self._is_poked = True
        self.look()

    async def first(self, find: Callable[[], bytes | Silence], patience: int) -> bytes | Silence:
        """What is found first: frames, or why there will be none. Not later than after `patience`
        ms; empty bytes mean that there is nothing yet."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience / 1_000
        while True:
            self._change.clear()
            if found := find():
                return found
            if self._is_poked or loop.time() >= deadline:
                self._is_poked = False
                return Silence.YET
            try:
                async with asyncio.timeout_at(deadline):
                    await self._change.wait()
            except TimeoutError:
                pass
