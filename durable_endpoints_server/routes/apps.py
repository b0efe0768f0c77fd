"""Applications that may be called back: whoever has a signing key names their origins."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints_server.inngest.refusals import MalformedError
from durable_endpoints_server.routes.answers import ApiError, authorise, data
from durable_endpoints_server.routes.bodies import read_json
from durable_endpoints_server.server import Server

_MAX_BODY: Final = 4_096


def routes(server: Server) -> list[BaseRoute]:
    apps = server.inngest.apps

    async def register_or_list(request: Request) -> Response:
        authorise(server, request)
        if request.method in ("GET", "HEAD"):
            return data({"origins": apps.origins})
        form = await read_json(request, _MAX_BODY)
        origin = form.get("origin") if isinstance(form, dict) else None
        try:
            return data({"origin": await apps.register(origin)})
        except MalformedError:
            raise ApiError(
                400, 'Give {"origin": "https://api.example.com"}.', "invalid_origin"
            ) from None

    return [Route("/v1/durable/apps", register_or_list, methods=["GET", "PUT", "POST"])]
