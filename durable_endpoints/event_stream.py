"""A run's stream, sent to one client as server-sent events (WHATWG HTML §9.2).

`EventStream` is the sending itself. `LiveStream` is the answer to the request that executes the
run: a task of its own sends it, so that the handler never waits for its client. Whoever else reads
a run is served by `following.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.types import Send

from durable_endpoints.answers import durable_headers
from durable_endpoints.engines.base import Session, StreamReader
from durable_endpoints.errors import EngineError
from durable_endpoints.protocol.frames import CONTENT_TYPE, HEARTBEAT, metadata_frame
from durable_endpoints.protocol.messages import Headers
from durable_endpoints.protocol.streams import Silence

logger = logging.getLogger("durable_endpoints")


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


class LiveStream:
    """The answer to the request whose own execution is streamed.

    It begins once the run is on disk, and ends as `finish` says: with the response, or because the
    run goes on without its client.
    """

    def __init__(
        self,
        stream: EventStream,
        session: Session,
        headers: Callable[[], Awaitable[Headers]],
        redirect: Callable[[], Awaitable[bytes]],
        until_gone: Callable[[], Awaitable[None]],
    ) -> None:
        """`headers` makes those of the stream's head, `redirect` the frame that says where the run
        can be followed; `until_gone` returns when the client has left."""
        self._stream = stream
        self._session = session
        self._headers = headers
        self._redirect = redirect
        self._until_gone = until_gone
        self._is_gone = False
        self._begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._finished = asyncio.Event()
        self._until = 0
        self._last = b""
        self._on_sent: Callable[[], None] | None = None
        self._is_elsewhere = False
        self._is_redirected = False
        stream.reader.stops_at_outcome = stream.reader.stays = True

    async def has_begun(self) -> bool:
        """Whether the client is getting a stream, once that is known. It is not if the run could
        not be registered: then it gets an ordinary answer."""
        return await asyncio.shield(self._begun)

    def finish(
        self,
        last: bytes,
        until: int,
        is_elsewhere: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """End the stream with `last`, after everything up to the position `until`, and, if the run
        goes on elsewhere, with where that is. `on_sent` is called if the client was there to the
        end."""
        self._last, self._until, self._is_elsewhere = last, until, is_elsewhere
        self._on_sent = on_sent
        self._finished.set()
        self._stream.reader.poke()

    async def run(self) -> None:
        """Send it. To be run in a task of its own."""
        stream = self._stream
        try:
            await self._session.acknowledge()
            headers = await self._headers()
        except EngineError:
            self._begun.set_result(False)
            stream.reader.close()
            return
        self._begun.set_result(True)
        gone = asyncio.ensure_future(self._until_gone())
        gone.add_done_callback(self._leave)
        try:
            await stream.begin(headers)
            await self._relay()
            if self._is_elsewhere:
                await self._tell_where()
            await stream.end(self._last)
            if self._on_sent is not None and not self._is_gone:
                self._on_sent()
        except EngineError as error:
            logger.error("the stream of a run is broken off: %s", error)
            await stream.end()
        except OSError:
            pass  # the client has left (ASGI HTTP spec 2.4 lets `send` raise then)
        finally:
            gone.cancel()
            stream.reader.close()

    def _leave(self, gone: asyncio.Future[None]) -> None:
        if not gone.cancelled():
            self._is_gone = True
            self._stream.reader.poke()

    async def _relay(self) -> None:
        while not self._is_done():
            silence = await self._stream.relay(lambda: self._is_done() or self._owes_redirect())
            if self._owes_redirect() and not self._is_done():
                await self._tell_where()
            elif silence is Silence.OVER:
                await self._finished.wait()
                return

    def _is_done(self) -> bool:
        if self._is_gone:
            return True
        return self._finished.is_set() and self._stream.reader.position >= self._until

    def _owes_redirect(self) -> bool:
        """The first step has ended, and is on disk: from now on a client can go on elsewhere."""
        return not self._is_redirected and not self._stream.reader.stops_at_outcome

    async def _tell_where(self) -> None:
        if not self._is_redirected:
            self._is_redirected = True
            await self._stream.send(await self._redirect())
