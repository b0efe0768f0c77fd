"""An httpx transport into an ASGI application in the same event loop, for tests.

Unlike `httpx.ASGITransport` it gives the response when its head is there, streams the body as it
comes, and does not wait for what the application does afterwards: a client of a durable endpoint
has its answer long before the handler ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import httpx
from starlette.types import ASGIApp, Message

logger = logging.getLogger("durable_endpoints")

_exchange: ContextVar[Exchange | None] = ContextVar("durable_endpoints_exchange", default=None)


def current_exchange() -> Exchange | None:
    """The request of an `AppTransport` that the calling code works for."""
    return _exchange.get()


class AppTransport(httpx.AsyncBaseTransport):
    """Sends requests into `app`. An exception of the application ends the response, as it would
    over the network; it is logged, and not raised here."""

    def __init__(self, app: ASGIApp, root_path: str = "", state: dict[str, Any] | None = None):
        self._app = app
        self._root_path = root_path
        self._state = state if state is not None else {}
        self._tasks: dict[asyncio.Task[None], Exchange] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = Exchange(await request.aread(), request.method == "HEAD")
        task = asyncio.create_task(self._run(self._scope(request), exchange))
        self._tasks[task] = exchange
        task.add_done_callback(self._tasks.pop)
        try:
            await exchange.started.wait()
        except asyncio.CancelledError:
            exchange.leave()
            raise
        if exchange.failure is not None:
            raise exchange.failure
        if exchange.start is None:
            raise httpx.RemoteProtocolError("the application sent no response", request=request)
        return httpx.Response(
            exchange.start["status"],
            headers=exchange.start.get("headers", []),
            stream=_Body(exchange),
        )

    async def aclose(self) -> None:
        """Wait for what the application still does, a moment; then cancel it."""
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=0.2)
            for task in late:
                task.cancel()

    def cut(self) -> None:
        """Lose the server: whoever waits for a response, or reads one, gets
        `httpx.RemoteProtocolError`, and what the application does for them is cancelled."""
        for task, exchange in list(self._tasks.items()):
            if not exchange.is_complete:
                exchange.fail(httpx.RemoteProtocolError("the server was lost: it crashed"))
            task.cancel()

    async def _run(self, scope: dict[str, Any], exchange: Exchange) -> None:
        _exchange.set(exchange)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            # The application's own handlers have had it. A server logs it, and so does this: or a
            # test would show a 500 and not why.
            if exchange.failure is None:
                path = scope["path"]
                logger.exception("%s %s: exception in the application", scope["method"], path)
        finally:
            exchange.end()

    def _scope(self, request: httpx.Request) -> dict[str, Any]:
        url = request.url
        raw_path = url.raw_path.partition(b"?")[0]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": raw_path,
            "root_path": self._root_path,
            "query_string": url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 50_000),
            "server": (url.host, url.port or 80),
            "state": dict(self._state),
            "extensions": {},
        }


class Exchange:
    """One request and its response."""

    def __init__(self, body: bytes, is_head: bool) -> None:
        self.start: Message | None = None
        self.started = asyncio.Event()
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.is_complete = False
        self.failure: Exception | None = None
        """What its client is told instead of the rest of the response."""
        self._body: bytes | None = body
        self._is_head = is_head
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            if not self._is_head:  # a server does not send it either (RFC 9110 §9.3.2)
                self.chunks.put_nowait(message.get("body", b""))
            self.started.set()
            if not message.get("more_body", False):
                self.is_complete = True
                self.end()

    def end(self) -> None:
        self.started.set()
        self.chunks.put_nowait(None)

    def fail(self, error: Exception) -> None:
        """Raise `error` to the client, wherever it is."""
        self.failure = error
        self.end()

    def leave(self) -> None:
        self._left.set()


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._exchange.chunks.get()) is not None:
            if chunk:
                yield chunk
        if self._exchange.failure is not None and not self._exchange.is_complete:
            raise self._exchange.failure
        if not self._exchange.is_complete:
            raise httpx.RemoteProtocolError("the response was cut off")

    async def aclose(self) -> None:
        self._exchange.leave()
