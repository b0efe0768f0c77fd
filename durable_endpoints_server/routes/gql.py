"""The two questions that Inngest's test harness asks a development server by GraphQL, how a run
stands and what came of it (`POST /v0/gql`), and what a server says of itself (`GET /dev`)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.inngest.apps import is_called_back
from durable_endpoints_server.routes.answers import ApiError, as_json, authorise
from durable_endpoints_server.routes.bodies import read_json
from durable_endpoints_server.routes.reading import is_ulid
from durable_endpoints_server.routes.reads import STATUSES, output_of
from durable_endpoints_server.server import Server
from durable_endpoints_server.store.base import Ended

_MAX_BODY: Final = 64 * 1024
_OUTPUT: Final = "runTraceSpanOutputByID("
_RUN: Final = "run(runID:"


def routes(server: Server) -> list[BaseRoute]:
    async def ask(request: Request) -> Response:
        authorise(server, request)
        query, run_id = _question(await read_json(request, _MAX_BODY))
        ended = await server.host.store.ended(run_id) if is_ulid(run_id) else None
        if _OUTPUT in query:
            entry = None if ended is None else await server.host.store.entry(run_id)
            is_told = entry is not None and is_called_back(entry.app)
            answer = _output(ended) if ended is not None and is_told else None
            return as_json({"data": {"runTraceSpanOutputByID": answer}})
        return as_json({"data": {"run": None if ended is None else _run(ended)}})

    async def about(request: Request) -> Response:
        authorise(server, request)
        return as_json(
            {
                "version": version("durable-endpoints"),
                "authed": False,
                "startOpts": {"autodiscover": False, "poll": False, "urls": []},
                "functions": [],
                "handlers": [],
                "isSingleNodeService": not server.settings.dev,
                "isMissingSigningKey": not server.keys.signing,
                "isMissingEventKeys": not server.settings.event_keys,
            }
        )

    return [Route("/v0/gql", ask, methods=["POST"]), Route("/dev", about, methods=["GET"])]


def _question(form: Any) -> tuple[str, str]:
    """The query, and the run that it is about: its first variable, for the run's output has the
    id of the run."""
    query = form.get("query") if isinstance(form, dict) else None
    variables = form.get("variables") if isinstance(form, dict) else None
    if not isinstance(query, str) or (_OUTPUT not in query and _RUN not in query):
        raise ApiError(
            400,
            f"This server knows two GraphQL queries, `{_RUN} …)` and `{_OUTPUT}outputID: …)`. "
            "Everything else is told by its REST API: see /openapi.json.",
            "unsupported",
        )
    given = next(iter(variables.values()), None) if isinstance(variables, dict) else None
    if not isinstance(given, str):
        raise ApiError(400, "Give the id as the query's only variable.", "invalid_body")
    return query, given


def _run(ended: Ended) -> dict[str, Any]:
    run = ended.run
    status = STATUSES.get(run.status, "Running").upper()
    output = run.id if run.status in (Status.COMPLETED, Status.FAILED) else None
    trace: dict[str, Any] = {
        "name": run.function_id,
        "spanID": run.id,
        "stepID": None,
        "status": status,
        "outputID": output,
        "metadata": [],
        "childrenSpans": [],
    }
    return {"status": status, "trace": trace}


def _output(ended: Ended) -> dict[str, Any]:
    output = output_of(ended)
    if ended.run.status is Status.FAILED:
        error = output["error"] if output else {"name": "RunError", "message": ended.run.reason}
        return {"data": None, "error": error}
    return {"data": orjson.dumps(output).decode(), "error": None}
