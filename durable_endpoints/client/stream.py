"""Durable streams, asynchronously: the driver that does the I/O of a conversation.

It runs wherever the client does: under asyncio, and with httpx under trio.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Unpack

import anyio
import httpx

from durable_endpoints.client.call import (
    OWN_TIMEOUT,
    AsyncClient,
    Call,
    Sending,
    build,
    check,
    whole,
)
from durable_endpoints.client.conversation import Reading
from durable_endpoints.client.errors import is_lost_connection
from durable_endpoints.client.events import (
    Chunk,
    Commit,
    Log,
    Metadata,
    Progress,
    Rollback,
    StreamEvent,
)
from durable_endpoints.client.reader import Reader, callbacks_by_event


class DurableStream(Reader):
    """A stream that is being read: iterate over it for the events.

    Cancelling one step of the iteration loses nothing: the next one connects again.
    """

    def __init__(self, client: AsyncClient, call: Call) -> None:
        super().__init__(call)
        self._client = client
        self._response: httpx.Response | None = None
        self._body: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> DurableStream:
        return self

    async def __anext__(self) -> StreamEvent:
        while (event := self._talk.take()) is None:
            if self._talk.is_over:
                raise StopAsyncIteration
            await self._advance()
        return event

    async def aclose(self) -> None:
        """Close the connection. The run goes on."""
        body, response = self._body, self._response
        self._body = self._response = None
        if response is not None:
            await response.aclose()
        if body is not None and isinstance(body, AsyncGenerator):
            await body.aclose()

    async def _advance(self) -> None:
        try:
            if self._body is None:
                await self._connect()
            else:
                await self._read(self._body)
        except BaseException as error:
            await self.aclose()
            if not is_lost_connection(error):
                raise
            self._talk.breaks(error)

    async def _connect(self) -> None:
        if self._talk.delay:
            await anyio.sleep(self._talk.delay)
        request, options = self._call.next_request()
        response: httpx.Response = await self._client.send(request, **options)
        self._response = response
        reading = self._call.starts(response)
        if reading is Reading.STREAM:
            self._body = response.aiter_bytes()
            return
        if reading is Reading.ANSWER:
            await response.aread()
            self._call.answers(response)
        await self.aclose()

    async def _read(self, body: AsyncIterator[bytes]) -> None:
        data = await anext(body, None)
        if data is None:
            await self.aclose()
            self._talk.breaks(None)
            return
        self._call.hears(data)
        if self._talk.is_over:
            await self.aclose()


@asynccontextmanager
async def open_stream(
    url: str, *, client: AsyncClient | None = None, **sending: Unpack[Sending]
) -> AsyncIterator[DurableStream]:
    """Call a durable endpoint and read its stream, over any number of connections.

    `url` is the endpoint's, or that of a run (`DurableStream.run_url`), with `last_event_id` to go
    on where another reader stopped. `client` is an `httpx.AsyncClient` or an `httpx2.AsyncClient`,
    which stays open; without one, a client is made for this call. The options are those of
    `Sending`, and what is raised is as in `fetch_with_stream`.
    """
    check(sending, client, asynchronous=True)
    async with _open_client(client) as http:
        content = sending.get("content")
        if isinstance(content, AsyncIterable):
            content = b"".join([part async for part in content])
        request = build(http, url, sending, whole(content))
        await request.aread()
        stream = DurableStream(http, Call(request, sending, http))
        try:
            yield stream
        finally:
            await stream.aclose()


async def fetch_with_stream(
    url: str,
    *,
    on_metadata: Callable[[Metadata], object] | None = None,
    on_data: Callable[[Chunk], object] | None = None,
    on_commit: Callable[[Commit], object] | None = None,
    on_rollback: Callable[[Rollback], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_log: Callable[[Log], object] | None = None,
    client: AsyncClient | None = None,
    **sending: Unpack[Sending],
) -> httpx.Response:
    """Call a durable endpoint, tell the callbacks what it streams, return its own response.

    The callbacks may be `async def`; each is done before the next is called. Lost connections,
    crashes and restarts of the server are waited out: nothing is told twice, nothing is left out.
    An answer that is no stream is returned as it is. A redirect within the stream is the
    endpoint's response, and is not followed; others are.

    When the server gives no sign of life for `give_up_after` seconds, the last network error is
    raised or the last 429, 502, 503 or 504 returned. Raises `StreamError` if the server sends what
    is no durable stream, and whatever a callback raises. Neither that nor cancelling this call
    touches the run; `cancel_run` does.
    """
    callbacks = callbacks_by_event(
        on_metadata, on_data, on_commit, on_rollback, on_progress, on_log
    )
    async with open_stream(url, client=client, **sending) as stream:
        async for event in stream:
            callback = callbacks.get(type(event))
            made = None if callback is None else callback(event)
            if inspect.isawaitable(made):
                await made
        return stream.response


def _open_client(client: AsyncClient | None) -> AbstractAsyncContextManager[AsyncClient]:
    if client is not None:
        return nullcontext(client)
    own: AbstractAsyncContextManager[AsyncClient] = httpx.AsyncClient(timeout=OWN_TIMEOUT)
    return own
