"""A run's stream, sent to one client as server-sent events (WHATWG HTML §9.2).

This is the sending itself. The request that executes the run is answered by
`requester_stream.py`, whoever else reads it by `following.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Send

from durable_endpoints.answers import durable_headers
from durable_endpoints.engines.base import StreamReader
from durable_endpoints.protocol.frames import CONTENT_TYPE, HEARTBEAT, metadata_frame
from durable_endpoints.protocol.messages import Headers
from durable_endpoints.protocol.streams import Silence


class EventStream:
    """Sends frames to one client."""

    def __init__(self, run_id: str, reader: StreamReader, send: Send, heartbeat: int) -> None:
        """`heartbeat` is how long the stream may be silent, in milliseconds."""
        self.reader = reader
        self._run_id = run_id
        self._send = send
        self._heartbeat = heartbeat

    async def begin(self, headers: Headers, status: str = "running") -> None:
        """Send the head, with how the run stands, and the first frame."""
        own = {
            "Content-Type": CONTENT_TYPE,
            "X-Accel-Buffering": "no",
            **durable_headers(self._run_id, status),
        }
        pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in own.items()]
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*pairs, *headers]}
        )
        await self.send(metadata_frame(self._run_id, self.reader.id))

    async def send(self, frames: bytes) -> None:
        """Send some frames. Returns when the client's connection takes more."""
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})

    async def end(self, frames: bytes = b"") -> None:
        """Send the last frames, and end the stream."""
        await self._send({"type": "http.response.body", "body": frames, "more_body": False})

    async def relay(self, is_stopped: Callable[[], bool]) -> Silence:
        """Pass on what is read until nothing more comes, or somebody says stop and pokes."""
        while not is_stopped():
            found = await self.reader.next(self._heartbeat)
            if found is Silence.YET:
                if not is_stopped():
                    await self.send(HEARTBEAT)
            elif isinstance(found, Silence):
                return found
            else:
                await self.send(found)
        return Silence.YET
