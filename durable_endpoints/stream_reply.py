"""The answer to a client that gets its run's stream: whatever it is told is a last frame of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from durable_endpoints.answers import origin_of, stream_headers
from durable_endpoints.body import RequestBody
from durable_endpoints.engines.base import Session
from durable_endpoints.event_stream import EventStream
from durable_endpoints.execution import Departure
from durable_endpoints.following import is_ours
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol.frames import redirect_frame, response_frame
from durable_endpoints.protocol.messages import Headers, StoredResponse
from durable_endpoints.reply import Reply
from durable_endpoints.requester_stream import RequesterStream

if TYPE_CHECKING:
    from durable_endpoints.door import Door

_WRITTEN = (Departure.WAITING, Departure.HANDOVER, Departure.STOPPED)
"""Departures after which everything that was streamed is certain to be in the log."""


class StreamReply(Reply):
    """Answers with the stream of the run that the request itself executes.

    Until that has begun, because the run is not on disk yet, or never will be, it answers like any
    other.
    """

    is_stream = True

    def __init__(self, door: Door, session: Session, options: EndpointOptions) -> None:
        super().__init__(door, session.id)
        self._session = session
        self._options = options
        self._for_us = is_ours(door.snapshot["headers"])
        body = door.body
        assert isinstance(body, RequestBody)
        reader = session.read_stream()
        heartbeat = door.application.settings.heartbeat
        self._stream = RequesterStream(
            EventStream(session.id, reader, door.send_out, heartbeat),
            session,
            self._headers,
            self._redirect,
            body.until_gone,
        )
        self._sending: asyncio.Task[None] = door.engine.spawn(
            self._stream.run(), f"stream {session.id} to its client"
        )

    async def later(self, options: EndpointOptions) -> None:
        if self.is_given or not await self._stream.has_begun():
            await super().later(options)
            return
        self.is_given = True
        execution, session = self._door.execution, self._session
        certain = execution is not None and execution.departure in _WRITTEN
        until = session.stream_tail if certain else session.stream_written
        self._stream.finish(b"", until, is_elsewhere=True)

    async def stored(self, response: StoredResponse, succeeded: bool = True) -> None:
        if self.is_given or not await self._stream.has_begun():
            await super().stored(response, succeeded)
            return
        self.is_given = True
        tail, execution = self._session.stream_tail, self._door.execution
        last = response_frame(response, succeeded, tail + 1, self._for_us)
        is_kept_for_this = execution is not None and execution.options.omit_response_body
        self._stream.finish(last, tail, on_sent=self._delivered if is_kept_for_this else None)

    async def unavailable(self, detail: str, executed: str = "") -> None:
        """The stream just ends: the client asks for the rest of it, until somebody has it."""
        if await self._stream.has_begun():
            await self.later(self._options)
        else:
            await super().unavailable(detail, executed)

    async def closed(self) -> None:
        """Return when the client has been sent everything."""
        await asyncio.shield(self._sending)

    async def _send(self, response: Response) -> None:
        if await self._stream.has_begun():
            body = bytes(response.body)
            await self.stored(
                StoredResponse(response.status_code, response.raw_headers, body), False
            )
        else:
            await super()._send(response)

    def _delivered(self) -> None:
        self._door.engine.delivered(self.run_id)

    async def _run_url(self) -> str:
        options = self._options
        token = self._door.engine.sign_run(self.run_id, options.cancellable)
        return await self.url(options, token)

    async def _headers(self) -> Headers:
        return stream_headers(await self._run_url())

    async def _redirect(self) -> bytes:
        url = await self._run_url()
        settings, scope = self._door.application.settings, self._door.snapshot
        if "://" not in url:
            url = origin_of(scope, settings.public_url) + url
        return redirect_frame(self.run_id, f"{url}{'&' if '?' in url else '?'}after=sync")
