"""Connections of our SDK: a WebSocket for each process, and the heartbeat of its thread.

GET  /v1/durable/connect     WebSocket, subprotocol `durable-endpoints.v1`: see `protocol/wire.py`;
                             426 for any other request
POST /v1/durable/heartbeat   {"process": …}: 200, or 404 if this server has nothing of that process
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from durable_endpoints.protocol import wire
from durable_endpoints_server.remote.transport import TransportClosedError
from durable_endpoints_server.routes.answers import ApiError, as_json, authorise, refusal
from durable_endpoints_server.server import Server

_LONGEST_BODY = 4096
"""Bytes of a heartbeat."""


def routes(server: Server) -> list[BaseRoute]:
    async def admit(websocket: WebSocket) -> bool:
        try:
            authorise(server, websocket)
            if "origin" in websocket.headers:
                # Where no key is needed, no web page that somebody visits shall get in either.
                raise ApiError(403, "Processes connect here, not web pages.", "forbidden")
            if wire.SUBPROTOCOL not in websocket.scope["subprotocols"]:
                message = f"The subprotocol {wire.SUBPROTOCOL} is the one that is spoken here."
                raise ApiError(400, message, "unknown_subprotocol")
            if server.host.draining:
                raise ApiError(503, "The server is shutting down.", "closing", {"Retry-After": "1"})
        except ApiError as error:
            await websocket.send_denial_response(refusal(error))
            return False
        await websocket.accept(wire.SUBPROTOCOL)
        return True

    async def no_websocket(request: Request) -> Response:
        authorise(server, request)
        raise ApiError(
            426,
            "Processes connect here by WebSocket. A proxy in between has to pass on the headers "
            "Upgrade and Connection.",
            "no_websocket",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    async def heartbeat(request: Request) -> Response:
        authorise(server, request)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_BODY:
                raise ApiError(413, "A heartbeat is a short message.", "too_large")
        try:
            process = orjson.loads(body)["process"]
        except (ValueError, TypeError, KeyError, IndexError):
            process = None
        if not isinstance(process, str):
            raise ApiError(400, 'A heartbeat says whose it is: {"process": "…"}.', "bad_request")
        if not server.hub.hear(process):
            raise ApiError(404, "This server has nothing of that process.", "unknown_process")
        return as_json({"lease": server.settings.lease})

    return [
        WebSocketRoute(wire.PATH, _Connect(server, admit)),
        Route(wire.PATH, no_websocket),
        Route(wire.HEARTBEAT_PATH, heartbeat, methods=["POST"]),
    ]


class _Connect:
    """The address as an ASGI application: a plain one, because a message costs little, and what
    Starlette puts around each is not."""

    def __init__(self, server: Server, admit: Callable[[WebSocket], Awaitable[bool]]) -> None:
        self._server = server
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await self._admit(WebSocket(scope, receive, send)):
            await self._server.hub.serve(WebSocketEnd(receive, send))


class WebSocketEnd:
    """The server's end of a WebSocket that is accepted, as a `Transport`."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._closed: TransportClosedError | None = None

    async def send(self, message: str) -> None:
        await self._say({"type": "websocket.send", "text": message})

    async def receive(self) -> str | bytes:
        if self._closed is not None:
            raise self._closed
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            code, reason = event.get("code") or 1005, event.get("reason") or ""
            self._closed = TransportClosedError(code, reason)
            raise self._closed
        received: str | bytes | None = event.get("text")
        return received if received is not None else event["bytes"]

    async def close(self, code: int = 1000, reason: str = "") -> None:
        try:
            await self._say({"type": "websocket.close", "code": code, "reason": reason})
        except TransportClosedError:
            pass

    async def _say(self, event: Message) -> None:
        if self._closed is not None:
            raise self._closed
        try:
            await self._send(event)
        except (OSError, RuntimeError):  # the ASGI server's words for a connection that is gone
            raise TransportClosedError(1006, "the connection is gone") from None
