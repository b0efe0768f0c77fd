"""The demo's client: asks for the stream, and notes on what connections it came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from durable_endpoints.client import (
    Chunk,
    Commit,
    Log,
    Metadata,
    Pacing,
    Progress,
    Rollback,
    StreamEvent,
    open_stream,
)
from durable_endpoints.demo.process import AppError
from durable_endpoints.demo.screen import Screen
from durable_endpoints.demo.viewer import Viewer

_TIMEOUT = httpx.Timeout(5, read=None)
_PACING = Pacing(longest_delay=0.25)
"""An application that was killed is back within a second or two."""


@dataclass
class Connection:
    """One request of the client's."""

    method: str
    path: str
    after: str | None
    """The `Last-Event-ID` that it was sent with …"""
    seen: int
    """… and the position that the client had seen by then."""
    status: int | None = None
    """None if nobody answered."""


@dataclass
class Visit:
    """What a client saw on the way to its answer."""

    viewer: Viewer
    connections: list[Connection] = field(default_factory=list)
    events: list[Chunk | Commit | Rollback | Progress | Log] = field(default_factory=list)
    run: str | None = None
    response: httpx.Response | None = None

    @property
    def positions(self) -> list[int]:
        """Of all events, as they came."""
        return [int(event.position) for event in self.events]

    @property
    def streams(self) -> list[Connection]:
        """The connections that were answered."""
        return [connection for connection in self.connections if connection.status is not None]

    def see(self, event: StreamEvent) -> None:
        """Take in one event."""
        self.viewer.feed(event)
        if isinstance(event, Metadata):
            self.run = event.run_id
        else:
            self.events.append(event)


async def ask(url: str, content: bytes, key: str, screen: Screen, visit: Visit) -> None:
    """POST with an Idempotency-Key and read the stream to its end; fills `visit` as it goes.

    The client of the package meets what breaks: it reads the run on from the position it has seen.
    Raises `AppError` if the answer is not a success.
    """
    screen.say("client", f"POST {httpx.URL(url).path}  {len(content):,} bytes, key {key}")
    hooks: dict[str, list[Callable[..., Any]]] = {
        "request": [partial(_note_request, screen, visit)],
        "response": [partial(_note_response, screen, visit)],
    }
    async with (
        httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, event_hooks=hooks) as client,
        open_stream(
            url,
            client=client,
            method="POST",
            content=content,
            headers={"content-type": "text/plain; charset=utf-8"},
            idempotency_key=key,
            pacing=_PACING,
        ) as stream,
    ):
        async for event in stream:
            visit.see(event)
    visit.response = stream.response
    status = f"{stream.response.status_code} {stream.response.reason_phrase}"
    if not stream.response.is_success:
        raise AppError(f"the handler answered {status}: {_reason(stream.response)}")
    screen.say("client", f"{status}: the handler's own answer", "green")


async def _note_request(screen: Screen, visit: Visit, request: httpx.Request) -> None:
    seen = visit.positions[-1] if visit.events else 0
    after = request.headers.get("last-event-id")
    if visit.connections and visit.connections[-1].status is not None:
        asks = f"{request.method} {request.url.path}" + (
            f", Last-Event-ID {after}" if after else ""
        )
        screen.say("client", f"the connection ended at position {seen}: {asks}")
    visit.connections.append(Connection(request.method, request.url.path, after, seen))


async def _note_response(screen: Screen, visit: Visit, response: httpx.Response) -> None:
    visit.connections[-1].status = response.status_code
    content_type = response.headers.get("content-type", "no content")
    screen.say("client", f"{response.status_code} {content_type}")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, LookupError, TypeError):
        return response.text[:300]
