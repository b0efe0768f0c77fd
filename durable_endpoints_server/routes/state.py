"""What an application is told when it is entered again: the steps that have ended, and the event
that began the run (Inngest SDK protocol, "memoized state")."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints_server.inngest import loose_json
from durable_endpoints_server.inngest.apps import is_called_back
from durable_endpoints_server.inngest.trigger import Trigger
from durable_endpoints_server.inngest.values import actions
from durable_endpoints_server.routes.answers import authorise
from durable_endpoints_server.routes.reading import no_run, run_id_of
from durable_endpoints_server.server import Server
from durable_endpoints_server.store.base import Entry


def routes(server: Server) -> list[BaseRoute]:
    async def entry_of(request: Request) -> Entry:
        authorise(server, request)
        run_id = run_id_of(request)
        entry = await server.host.store.entry(run_id)
        if entry is None or not is_called_back(entry.app):
            raise no_run(run_id)
        return entry

    async def read_actions(request: Request) -> Response:
        entry = await entry_of(request)
        return _json(actions(entry.memo))

    async def read_batch(request: Request) -> Response:
        entry = await entry_of(request)
        events = [Trigger.unpack(entry.request).event] if entry.request is not None else []
        return _json(loose_json.write(events))

    return [
        Route("/v0/runs/{run_id}/actions", read_actions),
        Route("/v0/runs/{run_id}/batch", read_batch),
    ]


def _json(text: bytes) -> Response:
    return Response(text, media_type="application/json")
