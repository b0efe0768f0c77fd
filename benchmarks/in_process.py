"""Applications driven in this process, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message

from durable_endpoints import DurableEndpointsMiddleware, endpoint_proxy


@asynccontextmanager
async def durable_app(database: Path, *routes: BaseRoute) -> AsyncIterator[Starlette]:
    """A running application with these routes, on a database of its own."""
    durable = Middleware(DurableEndpointsMiddleware, database=str(database), max_steps=100_000)
    app = Starlette(routes=[*routes, Mount("/wait", endpoint_proxy())], middleware=[durable])
    async with running(app):
        yield app


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """The application between its lifespan's two ends."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    served = asyncio.ensure_future(_coroutine(app(scope, to_app.get, from_app.put)))
    await to_app.put({"type": "lifespan.startup"})
    started = await from_app.get()
    if started["type"] != "lifespan.startup.complete":
        raise RuntimeError(started.get("message", "the application does not start"))
    yield
    await to_app.put({"type": "lifespan.shutdown"})
    await from_app.get()
    await served


async def _coroutine(awaitable: Any) -> None:
    await awaitable


async def call(app: ASGIApp, path: str, query: bytes = b"", body: bytes = b"") -> Message:
    """One request, a POST if it has a body; the response's first message, with its `body`."""
    headers = [(b"host", b"bench"), (b"content-type", b"application/json")]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST" if body else "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    start: Message = {}
    received: list[bytes] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            received.append(message.get("body", b""))

    await app(scope, receive, send)
    return {**start, "body": b"".join(received)}


def location(answer: Message) -> tuple[str, bytes]:
    """Where a redirect leads: path and query."""
    target: bytes = next(value for name, value in answer["headers"] if name == b"location")
    path, _, query = target.partition(b"?")
    return path.decode(), query
