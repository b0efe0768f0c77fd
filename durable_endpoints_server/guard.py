"""What stands before every route: who may call at all, how much, for how long, and what is said
when something fails."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_endpoints_server.routes.answers import ApiError, refusal
from durable_endpoints_server.settings import ServerSettings, is_loopback

logger = logging.getLogger("durable_endpoints")

MAX_BODY = 96 * 1024 * 1024
"""Bytes of any request; most routes allow less. The largest: a response of 64 MiB in base64."""
_SILENCE = 30.0
"""Seconds that a request body may pause."""
_DURATION = 300.0
"""Seconds that a request body may take as a whole."""
_STREAMS = "/v1/realtime/publish/tee"
"""Its bodies come as the application makes them, however slowly."""
_COMPRESSED = ApiError(415, "Compressed requests are not read: send the body as it is.")
_FOR_PAGES = ("/output", "/v1/realtime/sse")
"""How the paths end that a token opens, from web pages of any origin."""


class Guard:
    """Around all routes: bounds what comes in, and answers failures. Of a WebSocket neither: the
    HTTP server bounds its messages, and its route reads them."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._logs_all = settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, is_stream=scope["path"] == _STREAMS)
        began = time.monotonic()
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if Headers(scope=scope).get("content-encoding", "identity").lower() != "identity":
                await refusal(_COMPRESSED)(scope, receive, note)
            else:
                await self._app(scope, body.receive, note)
        except ClientDisconnect:
            pass
        except Exception:
            logger.exception("%s %s failed", *_named(scope), extra=_about(scope))
            if not status:
                failed = ApiError(500, "The server failed, and has logged why.", "internal")
                await refusal(failed)(scope, receive, note)
        if self._logs_all:
            elapsed = round((time.monotonic() - began) * 1_000, 1)
            extra = {**_about(scope), "status": status, "elapsed_ms": elapsed}
            logger.info("%s %s %d in %g ms", *_named(scope), status, elapsed, extra=extra)


class _Body:
    """A request's body on its way in: bounded in size and time."""

    def __init__(self, receive: Receive, is_stream: bool) -> None:
        self._receive = receive
        self._size = 0
        self._is_read = is_stream
        self._until = time.monotonic() + _DURATION

    async def receive(self) -> Message:
        if self._is_read:
            return await self._receive()
        try:
            async with asyncio.timeout(min(_SILENCE, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "The body of the request did not come.", "timeout") from None
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY:
            raise ApiError(413, f"The body has more than {MAX_BODY:,} bytes.", "too_large")
        self._is_read = not message.get("more_body", False)
        return message


class OwnMachine:
    """Around a server for development: refuses web pages of other origins, and host names that only
    DNS rebinding would use. A browser on this machine must not do what a page on the internet wants
    of a server that asks for no keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = None
        if scope["type"] in ("http", "websocket"):
            refused = _foreign(scope["path"], Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refusal(refused)(scope, receive, send)


def _foreign(path: str, headers: Headers) -> ApiError | None:
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not is_loopback(_host_of(f"//{host}")):
        return ApiError(
            403,
            "This server is for development, and answers to names of this machine only, such as "
            "localhost. `durable-endpoints serve` answers to any.",
            "host",
        )
    if origin is None or is_loopback(_host_of(origin)) or path.endswith(_FOR_PAGES):
        return None
    return ApiError(
        403,
        "This server is for development, has no keys, and is not for web pages of other origins.",
        "origin",
    )


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _named(scope: Scope) -> tuple[str, str]:
    """Method and path. Never the query, which may hold a token, and never an event key."""
    path: str = scope["path"]
    return scope["method"], "/e/…" if path.startswith("/e/") else path


def _about(scope: Scope) -> dict[str, Any]:
    method, path = _named(scope)
    client = scope.get("client")
    run_id = scope.get("path_params", {}).get("run_id")
    return {
        "method": method,
        "path": path,
        "run_id": run_id,
        "client": client[0] if client else None,
    }
