"""A WebSocket for many small messages.

`websockets` guards each message that is sent by a context manager, and passes each that arrives
through a queue of frames and an assembler: for messages as short as those of the wire that is most
of what they cost. The protocol itself, with its handshake, pings, closing and limits, is the
library's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import Event, State

_AHEAD = 16
"""Messages that may wait to be heard before no more are read."""


class Socket(ClientConnection):
    """A connection for one who speaks and one who listens. `say` and `hear` take the places of
    `send` and `recv`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._parts: list[bytes | bytearray | memoryview] = []
        """Of a message that is not whole yet."""
        self._messages: deque[bytes] = deque()
        self._listener: asyncio.Future[None] | None = None
        self._is_held = False

    async def say(self, message: bytes) -> None:
        """Send JSON. Returns when the connection takes more. Raises `ConnectionClosed`, and
        `OSError` if it breaks before that."""
        if self.protocol.state is not State.OPEN or self.transport.is_closing():
            await self.send(message, text=True)
            return
        self.protocol.send_text(message)
        self.send_data()
        if self.paused:
            await self.drain()

    async def hear(self) -> bytes:
        """The next message. Raises `ConnectionClosed` after the last one."""
        while not self._messages:
            if self.protocol.state is State.CLOSED:
                return await self.recv(decode=False)
            self._listener = self.loop.create_future()
            await self._listener
        if self._is_held and len(self._messages) == 1:
            self._is_held = False
            self.transport.resume_reading()
        return self._messages.popleft()

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
            return
        self._parts.append(event.data)
        if not event.fin:
            return
        self._messages.append(b"".join(self._parts))
        self._parts.clear()
        if len(self._messages) > _AHEAD and not self._is_held:
            self._is_held = True
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wake()

    def _wake(self) -> None:
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)
