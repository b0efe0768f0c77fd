"""Runs as Inngest's REST API tells of them, and how they are cancelled there (`/v1/runs`)."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints.protocol import failures
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.ops import StepKind, StepRecord
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.inngest.apps import is_called_back
from durable_endpoints_server.routes.answers import ApiError, authorise, data
from durable_endpoints_server.routes.reading import (
    ENVIRONMENT_ID,
    endpoint_id,
    no_run,
    run_id_of,
    time_of,
)
from durable_endpoints_server.server import Server
from durable_endpoints_server.store.base import Ended, Entry

STATUSES: Final = {
    Status.COMPLETED: "Completed",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Cancelled",
}
"""Inngest's words for how a run stands; every other one is running."""


def routes(server: Server) -> list[BaseRoute]:
    store = server.host.store

    async def entry_of(request: Request) -> Entry:
        authorise(server, request)
        run_id = run_id_of(request)
        entry = await store.entry(run_id)
        if entry is None:
            raise no_run(run_id)
        return entry

    async def read_or_cancel(request: Request) -> Response:
        entry = await entry_of(request)
        if request.method == "DELETE":
            return await cancel(entry.run.id)
        told = told_of(entry)
        ended = await store.ended(entry.run.id)
        if ended is not None and ended.run.status.is_final and is_called_back(entry.app):
            told["output"] = output_of(ended)
        return data(told)

    async def cancel(run_id: str) -> Response:
        if not await server.host.cancel(run_id, "cancelled"):
            raise ApiError(409, f"Run {run_id} has ended already.", "ended")
        return Response()

    async def jobs(request: Request) -> Response:
        entry = await entry_of(request)
        due = [step for step in entry.memo if step.due is not None]
        due.sort(key=lambda step: step.due or 0)
        return data([_job(entry.run, step, place) for place, step in enumerate(due)])

    async def metadata(request: Request) -> Response:
        await entry_of(request)
        raise ApiError(
            422,
            "This server keeps no metadata of runs. What clients are to see, a step can stream.",
            "unsupported",
        )

    return [
        Route("/v1/runs/{run_id}", read_or_cancel, methods=["GET", "DELETE"]),
        Route("/v1/runs/{run_id}/jobs", jobs, methods=["GET"]),
        Route("/v1/runs/{run_id}/metadata", metadata, methods=["POST"]),
    ]


def output_of(ended: Ended) -> Any:
    """What a run of another SDK has given: its response's body, or its error. A response of our
    own SDK is sealed."""
    if ended.error is not None:
        failure = failures.decode(ended.error)
        return {"error": {"name": failure.name, "message": failure.message}}
    if ended.response is None:
        return None
    body = StoredResponse.unpack(ended.response).body
    try:
        return orjson.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def told_of(entry: Entry) -> dict[str, Any]:
    """How a run stands, but for its output."""
    run = entry.run
    return {
        "run_id": run.id,
        "run_started_at": time_of(run.began_at),
        "function_id": endpoint_id(entry.app, run.function_id),
        "function_version": 1,
        "environment_id": ENVIRONMENT_ID,
        "event_id": run.id,
        "status": STATUSES.get(run.status, "Running"),
        "ended_at": time_of(run.ended_at),
    }


def _job(run: Run, step: StepRecord, position: int) -> dict[str, Any]:
    return {
        "id": f"{run.id}:{step.id.hash}",
        "at": time_of(step.due),
        "position": position,
        "kind": "sleep" if step.kind is StepKind.SLEEP else "pause" if _is_wait(step) else "edge",
        "attempt": step.attempt,
    }


def _is_wait(step: StepRecord) -> bool:
    return step.kind in (StepKind.WAIT, StepKind.WAIT_ANY, StepKind.SIGNAL, StepKind.INVOKE)
