"""The request body: recorded as the application reads it, completed when a run begins.

Every read of the body goes through one object with one position, so there are never two readers of
`receive()`. Before a run begins it passes messages through and keeps a copy; `complete` reads what
the application has not, and from then on the application is served from the copy.
"""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive


class RequestBody:
    """What the application receives, with a memory."""

    __slots__ = (
        "_buffer",
        "_gone",
        "_limit",
        "_position",
        "_receive",
        "_served",
        "in_run",
        "is_complete",
    )

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._buffer = bytearray()
        self._position = 0
        """How many bytes of the buffer the application has had."""
        self._served = False
        """Whether the application has had the last message of the body."""
        self._gone = False
        self.is_complete = False
        self.in_run = False
        """Whether the request has become a run, and its handler is told of no disconnect."""

    @property
    def is_broken_off(self) -> bool:
        """Whether the client left before all of it was there."""
        return self._gone and not self.is_complete

    async def receive(self) -> Message:
        """The next message for the application."""
        if self.in_run:
            return await self._receive_in_run()
        message = await self._receive()
        if message["type"] == "http.request":
            chunk = message.get("body", b"")
            self._keep(chunk)
            self._position += len(chunk)
            if not message.get("more_body", False):
                self.is_complete = self._served = True
        elif message["type"] == "http.disconnect":
            self._gone = True
        return message

    async def _receive_in_run(self) -> Message:
        """The rest of the body, and never a disconnect: the run goes on without its client."""
        if not self._served:
            self._served = True
            rest = bytes(self._buffer[self._position :])
            self._position = len(self._buffer)
            return {"type": "http.request", "body": rest, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def complete(self) -> bytes:
        """Read what is left, and return the whole body.

        Raises as `whole` does, and `ClientDisconnect` if the client left before it was sent.
        """
        while not self.is_complete and not self._gone:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = True
            else:
                self._keep(message.get("body", b""))
                self.is_complete = not message.get("more_body", False)
        if self.is_broken_off:
            raise ClientDisconnect
        return self.whole()

    async def until_gone(self) -> None:
        """Return when the client has left. For a request that has become a run, or joins one: the
        body is complete, and the application receives nothing more from the server."""
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"

    def whole(self) -> bytes:
        """The body, which is complete. Raises `HTTPException` 413 if it is larger than a run's
        request may be."""
        if len(self._buffer) > self._limit:
            raise HTTPException(
                413,
                f"The request body is larger than the {self._limit:,} bytes that a durable "
                "endpoint keeps (max_request_body).",
            )
        return bytes(self._buffer)

    def _keep(self, chunk: bytes) -> None:
        # Beyond the limit only the fact that it was passed is kept.
        if len(self._buffer) <= self._limit:
            self._buffer += chunk[: self._limit + 1 - len(self._buffer)]


class StoredBody:
    """The body of a re-entered request."""

    __slots__ = ("_body", "_served")

    is_broken_off = False

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._served = False

    async def receive(self) -> Message:
        """The whole body in one message, and then nothing: a disconnect would cancel responses."""
        if not self._served:
            self._served = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")
