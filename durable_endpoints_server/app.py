"""The server as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints_server.routes import events, health, realtime
from durable_endpoints_server.routes.answers import ApiError, refusal
from durable_endpoints_server.server import Server

logger = logging.getLogger("durable_endpoints")

_ROUTES = (health.routes, events.routes, realtime.routes)


def create_app(server: Server) -> Starlette:
    """The application that serves `server`, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    return Starlette(
        routes=[route for routes in _ROUTES for route in routes(server)],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _refused,
            EngineError: _unavailable,
            Exception: _failed,
        },
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error)


async def _unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return refusal(ApiError(503, error.explanation, "unavailable", {"Retry-After": "1"}))


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, so that it is logged; it says nothing of it.
    return refusal(ApiError(500, "The server failed, and has logged why.", "internal"))
