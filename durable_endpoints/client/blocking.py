"""Durable streams for code without an event loop: the blocking driver of a conversation."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Unpack

import httpx

from durable_endpoints.client.call import (
    OWN_TIMEOUT,
    Call,
    Sending,
    SyncClient,
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


class DurableStreamSync(Reader):
    """A stream that is being read: iterate over it for the events. As `DurableStream`."""

    def __init__(self, client: SyncClient, call: Call) -> None:
        super().__init__(call)
        self._client = client
        self._response: httpx.Response | None = None
        self._body: Iterator[bytes] | None = None

    def __iter__(self) -> DurableStreamSync:
        return self

    def __next__(self) -> StreamEvent:
        while (event := self._talk.take()) is None:
            if self._talk.is_over:
                raise StopIteration
            self._advance()
        return event

    def close(self) -> None:
        """Close the connection. The run goes on."""
        response = self._response
        self._body = self._response = None
        if response is not None:
            response.close()

    def _advance(self) -> None:
        try:
            if self._body is None:
                self._connect()
            else:
                self._read(self._body)
        except BaseException as error:
            self.close()
            if not is_lost_connection(error):
                raise
            self._talk.breaks(error)

    def _connect(self) -> None:
        if self._talk.delay:
            time.sleep(self._talk.delay)
        request, options = self._call.next_request()
        response: httpx.Response = self._client.send(request, **options)
        self._response = response
        reading = self._call.starts(response)
        if reading is Reading.STREAM:
            self._body = response.iter_bytes()
            return
        if reading is Reading.ANSWER:
            response.read()
            self._call.answers(response)
        self.close()

    def _read(self, body: Iterator[bytes]) -> None:
        data = next(body, None)
        if data is None:
            self.close()
            self._talk.breaks(None)
            return
        self._call.hears(data)
        if self._talk.is_over:
            self.close()


@contextmanager
def open_stream_sync(
    url: str, *, client: SyncClient | None = None, **sending: Unpack[Sending]
) -> Iterator[DurableStreamSync]:
    """`open_stream` that blocks. `client` is an `httpx.Client` or an `httpx2.Client`."""
    check(sending, client, asynchronous=False)
    with _open_client(client) as http:
        request = build(http, url, sending, whole(sending.get("content")))
        request.read()
        stream = DurableStreamSync(http, Call(request, sending, http))
        try:
            yield stream
        finally:
            stream.close()


def fetch_with_stream_sync(
    url: str,
    *,
    on_metadata: Callable[[Metadata], object] | None = None,
    on_data: Callable[[Chunk], object] | None = None,
    on_commit: Callable[[Commit], object] | None = None,
    on_rollback: Callable[[Rollback], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_log: Callable[[Log], object] | None = None,
    client: SyncClient | None = None,
    **sending: Unpack[Sending],
) -> httpx.Response:
    """`fetch_with_stream` that blocks. Its callbacks are plain functions."""
    callbacks = callbacks_by_event(
        on_metadata, on_data, on_commit, on_rollback, on_progress, on_log
    )
    for given in callbacks.values():
        if inspect.iscoroutinefunction(given):
            raise TypeError(f"{given!r} is async; await fetch_with_stream(…) instead")
    with open_stream_sync(url, client=client, **sending) as stream:
        for event in stream:
            callback = callbacks.get(type(event))
            if callback is not None:
                callback(event)
        return stream.response


def _open_client(client: SyncClient | None) -> AbstractContextManager[SyncClient]:
    if client is not None:
        return nullcontext(client)
    own: AbstractContextManager[SyncClient] = httpx.Client(timeout=OWN_TIMEOUT)
    return own
