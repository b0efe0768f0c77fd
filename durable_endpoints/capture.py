"""Capturing a run's response at `send`: passed on as it comes, kept, and not ended before it is
on disk.

The last message is what tells the client that the response is complete, so that one is held back
until the run's completion is acknowledged. Where a `content-length` or the method tells the client
earlier, that earlier message is held back too.
"""

from __future__ import annotations

from starlette.types import Message, Send

from durable_endpoints.protocol.messages import Headers, StoredResponse

RUN_ID_HEADER = b"durable-run-id"


class Capture:
    """Stands between the application and the client for the time of a run."""

    __slots__ = (
        "_chunks",
        "_held",
        "_is_head",
        "_limit",
        "_promised",
        "_run_id",
        "_send",
        "_size",
        "_start",
        "has_sent",
        "is_complete",
        "is_detached",
        "is_muted",
        "is_reentry",
    )

    def __init__(self, send: Send, run_id: str, method: str, limit: int) -> None:
        """`limit` is the largest body that is kept, in bytes."""
        self._send = send
        self._run_id = run_id
        self._is_head = method == "HEAD"
        self._limit = limit
        self._start: Message | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._held: list[Message] = []
        self._promised: int | None = None
        """How many body bytes the client expects; None if only the last message tells."""
        self.is_muted = False
        """Whether the application is not heard any more."""
        self.is_detached = False
        """Whether the client is answered otherwise: the response is only kept."""
        self.is_reentry = False
        """Whether there is no client here at all."""
        self.has_sent = False
        """Whether any of the response has been passed on."""
        self.is_complete = False

    def take(self, message: Message) -> bool:
        """Take what the application sends. Whether something may be passed on now, by `release`;
        what completes the response may only after that was recorded."""
        if self.is_muted or self.is_complete:
            return False
        kind = message["type"]
        if kind == "http.response.start":
            self._begin(message)
            return False
        self._held.append(message)
        if kind != "http.response.body":
            return True
        self._add(message)
        return self.is_complete or self._promised is None or self._size < self._promised

    @property
    def status(self) -> int:
        """The status code of the response."""
        assert self._start is not None
        return int(self._start["status"])

    @property
    def is_event_stream(self) -> bool:
        """Whether the application itself sends server-sent events."""
        assert self._start is not None
        return any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in self._start.get("headers", ())
        )

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
        if self.is_reentry:
            if self.is_complete and self._start is not None:
                # For the middlewares outside, which want to see a response; nobody reads it.
                await self._send(self._start)
                await self._send({"type": "http.response.body", "body": b""})
            return
        if self.is_detached:
            return
        self.has_sent = True
        for message in held:
            if message is self._start:
                headers = [*message.get("headers", ()), (RUN_ID_HEADER, self._run_id.encode())]
                message = {**message, "headers": headers}
            await self._send(message)

    def _begin(self, message: Message) -> None:
        self._start = message
        self._held = [message]
        if self._is_head or message["status"] in (204, 304) or message["status"] < 200:
            self._promised = 0
            return
        for name, value in message.get("headers", ()):
            if name.lower() == b"content-length" and value.isdigit():
                self._promised = int(value)

    def _add(self, message: Message) -> None:
        chunk = message.get("body", b"")
        self._size += len(chunk)
        if self.too_large:
            self._chunks.clear()
        elif not self._is_head:
            self._chunks.append(chunk)
        self.is_complete = not message.get("more_body", False)
