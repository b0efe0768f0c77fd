"""A TCP proxy that breaks connections: between a client and an application, or an application and
a server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final, Literal, get_args

from tests.chaos.proxying import Proxy

Damage = Literal["cut", "delay", "hold", "throttle", "duplicate"]
"""What may happen to connections: reset in the middle; each piece delivered late; nothing
delivered for a while, and then all of it, or a reset; a few bytes at a time; or what was requested
requested once more, on a connection of its own whose answer nobody reads."""

DAMAGES: Final[tuple[Damage, ...]] = get_args(Damage)

LONGEST_HOLD: Final = 2.4
"""Seconds."""

_PIECE: Final = 16 * 1024
_SMALL: Final = 512
_CUTS: Final = 0.2
"""How many pieces of what is to be cut are cut: all, and no connection would get anywhere."""
_LINGER: Final = 5.0
"""Seconds that one direction may go on after the other one has ended."""
_AGAIN: Final = 1.0
"""Seconds for which a repeated request is listened to."""


class FaultyProxy(Proxy):
    """Forwards to a port on this machine, and does damage while it is told to."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.struck = 0
        """How often it did damage since it was told to."""
        self.holds: list[int] = []
        """When it began to hold what was on its way: nanoseconds on the monotonic clock."""
        self._damage: Damage | None = None
        self._left = 0
        self._chance = random.Random(0)
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        self._holding: asyncio.TimerHandle | None = None

    def begin(self, damage: Damage, times: int, chance: random.Random) -> None:
        """Do this damage so many times from now on."""
        self.struck, self._damage, self._left, self._chance = 0, damage, times, chance

    def heal(self) -> None:
        """Let everything pass."""
        self._damage = None
        self._may_pass.set()
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None

    def _strikes(self, damage: Damage) -> bool:
        if self._damage != damage or self._left == 0:
            return False
        self._left -= 1
        self.struck += 1
        return True

    async def serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        said = bytearray()

        def answered(data: bytes) -> None:
            if b"upgrade: websocket" not in said.lower() and self._strikes("duplicate"):
                self.keep(asyncio.create_task(self._repeat(bytes(said))))

        both = [
            asyncio.ensure_future(self._forward(reader, up_writer, said.extend)),
            asyncio.ensure_future(self._forward(up_reader, writer, answered)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not any(one.done() and one.result() for one in both):
                # One direction has ended as it should: the other one may, too.
                await asyncio.wait(both, timeout=_LINGER)
        finally:
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passed: Callable[[bytes], None],
    ) -> bool:
        """Pass on what comes. True means that the connection is to be reset."""
        try:
            while data := await reader.read(_PIECE):
                if await self._is_lost():
                    return True
                if self._chance.random() < _CUTS and self._strikes("cut"):
                    writer.write(data[: self._chance.randrange(len(data))])
                    await writer.drain()
                    return True
                passed(data)
                await self._pass_on(data, writer)
            writer.write_eof()
        except OSError:
            return True
        return False

    async def _is_lost(self) -> bool:
        """Hold what is on its way, if that is the damage. Whether it is lost in the end."""
        if self._strikes("hold"):
            self._may_pass.clear()
            self.holds.append(time.monotonic_ns())
            loop = asyncio.get_running_loop()
            self._holding = loop.call_later(
                self._chance.uniform(0.1, LONGEST_HOLD), self._may_pass.set
            )
        if self._may_pass.is_set():
            return False
        await self._may_pass.wait()
        return self._damage == "hold" and self._chance.random() < 0.5

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._strikes("delay"):
            await asyncio.sleep(self._chance.uniform(0.01, 0.15))
        if not self._strikes("throttle"):
            writer.write(data)
            await writer.drain()
            return
        for start in range(0, len(data), _SMALL):
            writer.write(data[start : start + _SMALL])
            await writer.drain()
            await asyncio.sleep(0.003)

    async def _repeat(self, request: bytes) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return
        try:
            writer.write(request)
            async with asyncio.timeout(_AGAIN):
                while await reader.read(_PIECE):
                    pass
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()
