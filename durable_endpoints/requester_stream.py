"""The stream as the answer to the request that executes the run.

A task of its own sends it, so that the handler never waits for its client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from durable_endpoints.engines.base import Session
from durable_endpoints.errors import EngineError
from durable_endpoints.event_stream import EventStream
from durable_endpoints.protocol.messages import Headers
from durable_endpoints.protocol.streams import Silence

logger = logging.getLogger("durable_endpoints")


class RequesterStream:
    """It begins once the run is on disk, and ends as `finish` says: with the response, or because
    the run goes on without its client."""

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
        self._is_gone = self._is_finished = False
        self._begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._decided = asyncio.Event()
        """Set once it is finished, or its client has left."""
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
        self._is_finished = True
        self._decided.set()
        self._stream.reader.poke()

    async def run(self) -> None:
        """Send it. To be run in a task of its own."""
        gone: asyncio.Future[None] | None = None
        try:
            await self._session.acknowledge()
            headers = await self._headers()
            gone = asyncio.ensure_future(self._until_gone())
            gone.add_done_callback(self._leave)
            self._begun.set_result(True)
            await self._send(headers)
        except EngineError as error:
            if self._begun.done():
                logger.error("the stream of a run is broken off: %s", error)
        except OSError:
            pass  # the client has left (ASGI HTTP spec 2.4 lets `send` raise then)
        finally:
            if not self._begun.done():
                self._begun.set_result(False)
            if gone is not None:
                gone.cancel()
            self._stream.reader.close()
            # These refer to the request, which refers to this.
            self._headers = self._redirect = self._until_gone = _forgotten

    async def _send(self, headers: Headers) -> None:
        stream = self._stream
        await stream.begin(headers)
        try:
            await self._relay()
        except EngineError:
            await stream.end()
            raise
        if self._is_elsewhere:
            await self._tell_where()
        await stream.end(self._last)
        if self._on_sent is not None and not self._is_gone:
            self._on_sent()

    def _leave(self, gone: asyncio.Future[None]) -> None:
        if not gone.cancelled():
            self._is_gone = True
            self._decided.set()
            self._stream.reader.poke()

    async def _relay(self) -> None:
        while not self._is_done():
            silence = await self._stream.relay(lambda: self._is_done() or self._owes_redirect())
            if self._owes_redirect() and not self._is_done():
                await self._tell_where()
            elif silence is Silence.OVER:
                await self._decided.wait()
                return

    def _is_done(self) -> bool:
        if self._is_gone:
            return True
        return self._is_finished and self._stream.reader.position >= self._until

    def _owes_redirect(self) -> bool:
        """The first step has ended, and is on disk: from now on a client can go on elsewhere."""
        return not self._is_redirected and not self._stream.reader.stops_at_outcome

    async def _tell_where(self) -> None:
        if not self._is_redirected:
            self._is_redirected = True
            await self._stream.send(await self._redirect())


async def _forgotten() -> NoReturn:
    raise AssertionError("the stream is over")
