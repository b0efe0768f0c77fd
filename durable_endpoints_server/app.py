"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints_server.guard import Guard
from durable_endpoints_server.routes import (
    apps,
    checkpoint,
    connect,
    events,
    gql,
    health,
    openapi,
    output,
    reads,
    realtime,
    runs,
    signals,
    state,
)
from durable_endpoints_server.routes.answers import ApiError, refusal
from durable_endpoints_server.server import Server

# Looked through in this order: first what somebody waits for with a watch in hand.
_ROUTES = (
    events.routes,
    checkpoint.routes,
    output.routes,
    apps.routes,
    connect.routes,
    gql.routes,
    health.routes,
    openapi.routes,
    reads.routes,
    realtime.routes,
    runs.routes,
    signals.routes,
    state.routes,
)


def create_app(server: Server) -> Starlette:
    """The application that serves `server`, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    app = Starlette(
        routes=[route for routes in _ROUTES for route in routes(server)],
        middleware=[Middleware(Guard, settings=server.settings)],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _refused,
            EngineError: _unavailable,
        },
    )
    # A redirect to the path with a slash would go to the host that the request names.
    app.router.redirect_slashes = False
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error)


async def _unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return refusal(ApiError(503, error.explanation, "unavailable", {"Retry-After": "1"}))
