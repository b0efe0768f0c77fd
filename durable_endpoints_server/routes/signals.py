"""`POST /v1/signals`: gives a signal to the run that waits for it (Inngest signals API)."""

from __future__ import annotations

from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints.protocol.events import MAX_DATA, check_signal
from durable_endpoints_server.routes.answers import ApiError, authorise, data
from durable_endpoints_server.routes.bodies import read_json
from durable_endpoints_server.server import Server

_MAX_BODY: Final = MAX_DATA + 8 * 1024


def routes(server: Server) -> list[BaseRoute]:
    async def send(request: Request) -> Response:
        authorise(server, request)
        form = await read_json(request, _MAX_BODY)
        if not isinstance(form, dict) or "signal" not in form:
            raise ApiError(400, 'Give {"signal": <name>, "data": …}.', "invalid_body")
        name = form["signal"]
        try:
            value = orjson.dumps(form.get("data"))
            check_signal(name, value)
        except (ValueError, TypeError) as error:
            raise ApiError(400, f"No signal was sent: {error}.", "invalid_body") from None
        run_id = await server.host.signals.deliver(name, value)
        if run_id is None:
            raise ApiError(404, f"No run waits for the signal {name!r}.", "not_found")
        return data({"run_id": run_id})

    return [Route("/v1/signals", send, methods=["POST"])]
