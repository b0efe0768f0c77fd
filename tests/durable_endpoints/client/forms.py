"""The forms of the client, each behind the same coroutine, so that a test can drive them all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio
import httpx
import httpx2

from durable_endpoints.client import (
    Pacing,
    StreamEvent,
    fetch_with_stream,
    fetch_with_stream_sync,
    open_stream,
    open_stream_sync,
)

FAST = Pacing(first_delay=0.0, longest_delay=0.0, longest_retry_after=0.0)


class Read(NamedTuple):
    """What a call gave."""

    response: httpx.Response
    events: list[StreamEvent]
    run_id: str | None
    run_url: str | None
    last_event_id: str | None


Reading = Callable[..., Awaitable[Read]]


async def read(url: str, **options: Any) -> Read:
    events: list[StreamEvent] = []
    async with open_stream(url, **{"pacing": FAST, **options}) as stream:
        async for event in stream:
            events.append(event)
    return Read(stream.response, events, stream.run_id, stream.run_url, stream.last_event_id)


async def read_sync(url: str, **options: Any) -> Read:
    def run() -> Read:
        events: list[StreamEvent] = []
        with open_stream_sync(url, **{"pacing": FAST, **options}) as stream:
            events.extend(stream)
        return Read(stream.response, events, stream.run_id, stream.run_url, stream.last_event_id)

    return await anyio.to_thread.run_sync(run)


async def fetch(url: str, **options: Any) -> httpx.Response:
    return await fetch_with_stream(url, **{"pacing": FAST, **options})


async def fetch_sync(url: str, **options: Any) -> httpx.Response:
    return await anyio.to_thread.run_sync(
        lambda: fetch_with_stream_sync(url, **{"pacing": FAST, **options})
    )


class Form(NamedTuple):
    """One way to use the client."""

    read: Reading
    fetch: Callable[..., Awaitable[httpx.Response]]
    library: Any
    is_async: bool

    def make_client(self, **options: Any) -> Any:
        """A client of the user's own. It speaks no TLS here, and loading certificates is slow."""
        kind = self.library.AsyncClient if self.is_async else self.library.Client
        return kind(verify=False, **options)


FORMS = {
    "httpx": Form(read, fetch, httpx, True),
    "httpx-sync": Form(read_sync, fetch_sync, httpx, False),
    "httpx2": Form(read, fetch, httpx2, True),
    "httpx2-sync": Form(read_sync, fetch_sync, httpx2, False),
}


async def close(client: Any) -> None:
    if hasattr(client, "aclose"):
        await client.aclose()
    else:
        client.close()
