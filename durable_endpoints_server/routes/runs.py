"""`/v1/durable/runs…`, `/v1/durable/requests`: what the command line asks a server for."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints_server import report
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.listing import newest_runs
from durable_endpoints_server.routes.answers import ApiError, authorise, data
from durable_endpoints_server.server import Server

_MOST = 10_000
"""Lines of a listing."""
_PATIENCE = 5.0
"""Seconds in which runs are looked for that a filter passes."""


def routes(server: Server) -> list[BaseRoute]:
    """Routes that need a signing key."""
    store = server.host.store

    async def list_runs(request: Request) -> Response:
        authorise(server, request)
        query = request.query_params
        wanted = [_status(label) for label in query.getlist("status")] or list(Status)
        page = await newest_runs(
            store, wanted, query.get("function"), _limit(request), query.get("before"), _PATIENCE
        )
        return data([report.summary(line) for line in page.lines], next=page.next)

    async def show(request: Request) -> Response:
        authorise(server, request)
        run_id = request.path_params["run_id"]
        full = await report.run_in_full(store, run_id)
        if full is None:
            raise _unknown(run_id)
        return data(full)

    async def stream(request: Request) -> Response:
        authorise(server, request)
        run_id = request.path_params["run_id"]
        lines = await report.stream_of_run(store, run_id)
        if lines is None:
            raise _unknown(run_id)
        return data(lines)

    async def retry(request: Request) -> Response:
        authorise(server, request)
        run_id = request.path_params["run_id"]
        if not await server.host.retry(run_id):
            status = await _status_of(run_id)
            raise ApiError(409, f"Run {run_id} is {status}: only a parked run can be retried.")
        return data({"status": await _status_of(run_id)})

    async def cancel(request: Request) -> Response:
        authorise(server, request)
        run_id = request.path_params["run_id"]
        if not await server.host.cancel(run_id, "cancelled"):
            status = await _status_of(run_id)
            raise ApiError(409, f"Run {run_id} has ended already ({status}).")
        return data({"status": await _status_of(run_id)})

    async def requests(request: Request) -> Response:
        authorise(server, request)
        return data([report.request(line) for line in await store.requests(_limit(request))])

    async def _status_of(run_id: str) -> str:
        run = await store.run(run_id)
        if run is None:
            raise _unknown(run_id)
        return run.status.label

    one = "/v1/durable/runs/{run_id}"
    return [
        Route("/v1/durable/runs", list_runs),
        Route(one, show),
        Route(f"{one}/stream", stream),
        Route(f"{one}/retry", retry, methods=["POST"]),
        Route(f"{one}/cancel", cancel, methods=["POST"]),
        Route("/v1/durable/requests", requests),
    ]


def _unknown(run_id: str) -> ApiError:
    return ApiError(404, f"There is no run {run_id}.", "unknown_run")


def _status(label: str) -> Status:
    for status in Status:
        if status.label == label:
            return status
    known = ", ".join(status.label for status in Status)
    raise ApiError(400, f"status={label!r}: there are {known}.")


def _limit(request: Request) -> int:
    written = request.query_params.get("limit", "20")
    if not (written.isascii() and written.isdecimal() and 0 < int(written[:9]) <= _MOST):
        raise ApiError(400, f"limit={written!r}: give a whole number from 1 to {_MOST}.")
    return int(written)
