"""Capturing a run's response at `send`: passed on as it comes, kept, and not ended before it is
on disk.

The last message is what tells the client that the response is complete, so that one is held back
until the run's completion is acknowledged. Where a `content-length` or the method tells the client
earlier, that earlier message is held back too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import Message, Send

from durable_endpoints.protocol.messages import Headers, StoredResponse

RUN_ID_HEADER = b"durable-run-id"

Finish = Callable[[], Awaitable[bool]]
"""Called when the response is complete; returns whether its end may be sent."""


class Capture:
    """Stands between the application and the client for the time of a run."""

    def __init__(self, send: Send, run_id: str, method: str, limit: int, finish: Finish) -> None:
        """`limit` is the largest body that is kept, in bytes."""
        self._send = send
        self._run_id = run_id
        self._is_head = method == "HEAD"
        self._limit = limit
        self._finish = finish
        self._start: Message | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._held: list[Message] = []
        self._promised: int | None = None
        """How many body bytes the client expects; None if only the last message tells."""
        self.is_muted = False
        """Whether the application is not heard any more."""
        self.is_detached = False
        """Whether the client has been answered otherwise: the response is only kept."""
        self.has_sent = False
        """Whether any of the response has been passed on."""
        self.is_complete = False

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        if self.is_muted or self.is_complete:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._begin(message)
        elif kind == "http.response.body":
            await self._body(message)
        elif not self.is_detached:
            await self._send(message)

    @property
    def started(self) -> bool:
        """Whether the application has begun to answer."""
        return self._start is not None

    @property
    def status(self) -> int:
        """The status code of the response."""
        assert self._start is not None
        return int(self._start["status"])

    @property
    def too_large(self) -> bool:
        """Whether the body is larger than what is kept."""
        return self._size > self._limit

    def response(self) -> StoredResponse:
        """The complete response."""
        assert self._start is not None
        headers: Headers = [(bytes(k), bytes(v)) for k, v in self._start.get("headers", [])]
        return StoredResponse(self.status, headers, b"".join(self._chunks))

    async def release(self) -> None:
        """Pass on what was held back."""
        held, self._held = self._held, []
        if self.is_detached:
            return
        for message in held:
            await self._forward(message)

    def _begin(self, message: Message) -> None:
        self._start = message
        self._held = [message]
        if self._is_head or message["status"] in (204, 304) or message["status"] < 200:
            self._promised = 0
            return
        for name, value in message.get("headers", ()):
            if name.lower() == b"content-length" and value.isdigit():
                self._promised = int(value)

    async def _body(self, message: Message) -> None:
        chunk = message.get("body", b"")
        self._size += len(chunk)
        if self.too_large:
            self._chunks.clear()
        elif not self._is_head:
            self._chunks.append(chunk)
        self._held.append(message)
        if not message.get("more_body", False):
            self.is_complete = True
            if await self._finish():
                await self.release()
        elif self._promised is None or self._size < self._promised:
            await self.release()

    async def _forward(self, message: Message) -> None:
        self.has_sent = True
        if message is self._start:
            headers = [*message.get("headers", ()), (RUN_ID_HEADER, self._run_id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)
