"""`/health`: the process lives. `/ready`: its store answers."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints_server.routes.answers import ApiError, as_json
from durable_endpoints_server.server import Server

logger = logging.getLogger("durable_endpoints")


def routes(server: Server) -> list[BaseRoute]:
    async def health(request: Request) -> Response:
        return as_json({"status": "ok"})

    async def ready(request: Request) -> Response:
        try:
            await server.host.store.next_due()
        except EngineError as error:
            # Who asks needs no key, and should not learn where the database is.
            logger.warning("the server is not ready: %s", error.explanation)
            raise ApiError(503, "The store does not answer.", "not_ready") from None
        if server.host.draining:
            raise ApiError(503, "The server is shutting down.", "not_ready")
        return as_json({"status": "ready"})

    return [Route("/health", health), Route("/ready", ready)]
