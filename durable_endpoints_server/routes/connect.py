"""Connections of our SDK: a WebSocket for each process, and the heartbeat of its thread.

GET  /v1/durable/connect     WebSocket, subprotocol `durable-endpoints.v1`: see `protocol/wire.py`;
                             426 for any other request
POST /v1/durable/heartbeat   {"process": …}: 200, or 404 if this server has nothing of that process
"""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from durable_endpoints.protocol import wire
from durable_endpoints_server.remote.transport import TransportClosedError
from durable_endpoints_server.routes.answers import ApiError, as_json, authorise, refusal
from durable_endpoints_server.server import Server

_LONGEST_BODY = 4096
"""Bytes of a heartbeat."""


def routes(server: Server) -> list[BaseRoute]:
    async def connect(websocket: WebSocket) -> None:
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
            return
        await websocket.accept(wire.SUBPROTOCOL)
        await server.hub.serve(WebSocketEnd(websocket))

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
        WebSocketRoute(wire.PATH, connect),
        Route(wire.PATH, no_websocket),
        Route(wire.HEARTBEAT_PATH, heartbeat, methods=["POST"]),
    ]


class WebSocketEnd:
    """The server's end of a WebSocket, as a `Transport`."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, message: str) -> None:
        try:
            await self._websocket.send_text(message)
        except (WebSocketDisconnect, RuntimeError):
            raise TransportClosedError(1006, "the connection is gone") from None

    async def receive(self) -> str | bytes:
        try:
            message = await self._websocket.receive()
        except RuntimeError:
            raise TransportClosedError(1006, "the connection is gone") from None
        if message["type"] == "websocket.disconnect":
            raise TransportClosedError(message.get("code") or 1005, message.get("reason") or "")
        received: str | bytes | None = message.get("text")
        return received if received is not None else message["bytes"]

    async def close(self, code: int = 1000, reason: str = "") -> None:
        try:
            await self._websocket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError):
            pass  # it is closed
