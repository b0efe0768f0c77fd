"""uvicorn's protocols with bounds: for the head of a request, its time, what comes after an answer,
and a handshake that is none. Without them whoever has no key keeps connections, and memory."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers."""
HEAD_TIMEOUT = 10.0
"""Seconds for a head, from the opening of the connection, or from its first byte after an answer.
"""
LINGER = 2.0
"""Seconds for a client to read an answer that came before it had sent its whole request."""
READ_AHEAD = 16 * 1024
"""Bytes of messages of a WebSocket that may wait here before no more are read, each counting 64
more than it has. uvicorn would stop reading the socket, and start again, for each one."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head_size = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(HEAD_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_size = 0
        if self._timer is None:
            self._close_after(HEAD_TIMEOUT)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self._close_after(LINGER)

    def _close_after(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Arrivals:
    """What has arrived for the one who receives: `asyncio.Queue`, as far as it is needed here, in a
    fraction of its time."""

    def __init__(self) -> None:
        self._events: deque[ASGIReceiveEvent] = deque()
        self._receiver: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        return not self._events

    def put_nowait(self, event: ASGIReceiveEvent) -> None:
        self._events.append(event)
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    async def get(self) -> ASGIReceiveEvent:
        while not self._events:
            self._receiver = asyncio.get_running_loop().create_future()
            await self._receiver
        return self._events.popleft()


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.queue = _Arrivals()  # type: ignore[assignment]
        self._ahead = 0
        """How much has arrived since nothing waited to be received."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None:
            self.transport.close()  # which uvicorn leaves open, without an answer

    def send_receive_event_to_app(self) -> None:
        self._ahead += 64 + sum(map(len, self.frames))
        is_reading, self.read_paused = not self.read_paused, True
        super().send_receive_event_to_app()
        self.read_paused = not is_reading
        if is_reading and self._ahead > READ_AHEAD:
            self.read_paused = True
            self.transport.pause_reading()

    async def receive(self) -> ASGIReceiveEvent:
        event = await super().receive()
        if self.queue.empty():
            self._ahead = 0
        return event

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.close_sent:
            # A refusal ends the handshake too: uvicorn would log it as a mistake of the route.
            self.handshake_complete = True

    def shutdown(self) -> None:
        if not self.transport.is_closing():  # else uvicorn fails, and so would the whole shutdown
            super().shutdown()
