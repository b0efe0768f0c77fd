"""Checkpoints: what an application with one of Inngest's SDKs says about the requests that it is
serving (Inngest checkpoint API). The routes exist below two prefixes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from ulid import ULID

from durable_endpoints_server.inngest import loose_json
from durable_endpoints_server.inngest.checkpoints import Opening
from durable_endpoints_server.inngest.ops import read_ops
from durable_endpoints_server.inngest.refusals import MalformedError, Refusal
from durable_endpoints_server.inngest.trigger import Trigger, read_trigger
from durable_endpoints_server.realtime import run_token
from durable_endpoints_server.routes.answers import ApiError, as_json, authorise, data
from durable_endpoints_server.routes.bodies import read_body
from durable_endpoints_server.routes.reading import (
    application_id,
    checked_run_id,
    endpoint_id,
    run_id_of,
)
from durable_endpoints_server.server import Server

PREFIXES: Final = ("/v1/checkpoint", "/v1/http/runs")
MAX_CHECKPOINT: Final = 32 * 1024 * 1024
"""Bytes of one checkpoint: as many as all results of a run together may have."""
_RETRIES: Final = 3
_MOST_RETRIES: Final = 20
_MOST_ELAPSED: Final = 86_400_000
_MAX_KEY: Final = 512

_Handler = Callable[[Request], Awaitable[Response]]


def routes(server: Server) -> list[BaseRoute]:
    runs = server.inngest

    async def begin(request: Request) -> Response:
        authorise(server, request)
        form = await _read_form(request)
        run_id = checked_run_id(form.get("run_id"))
        sdk = request.headers.get("x-inngest-sdk", "")
        trigger = read_trigger(form.get("event"), event_id=run_id, sdk=sdk)
        opening = Opening(
            run_id=run_id,
            trigger=trigger,
            retries=_retries(form.get("retries")),
            elapsed=_elapsed(run_id, form.get("ts")),
            key=_key(form.get("idempotency"), trigger),
        )
        try:
            await runs.checkpoints.begin(opening, read_ops(form.get("steps")))
        except Refusal as error:
            # A repeated key's run is told to its caller, who holds a signing key.
            holder = error.data.get("run_id") if isinstance(error.data, dict) else None
            if error.code == "run_exists" and holder is not None:
                error.data = {**_ids(trigger), **_tokens(server, holder), "run_id": holder}
            raise
        return data({"run_id": run_id, **_ids(trigger), **_tokens(server, run_id)})

    async def steps(request: Request) -> Response:
        authorise(server, request)
        run_id = run_id_of(request)
        form = await _read_form(request)
        await runs.checkpoints.record(run_id, read_ops(form.get("steps")))
        return Response()

    async def within_reentry(request: Request) -> Response:
        authorise(server, request)
        run_id = run_id_of(request)
        form = await _read_form(request)
        generation = form.get("generation_id")
        if not isinstance(generation, int):
            raise MalformedError("generation_id: the number that the re-entry came with is missing")
        await runs.reentries.checkpoint(run_id, generation, read_ops(form.get("steps")))
        return Response()

    found: list[BaseRoute] = []
    for prefix in PREFIXES:
        found += [
            Route(prefix, _refusing(begin), methods=["POST"]),
            Route(prefix + "/{run_id}/steps", _refusing(steps), methods=["POST"]),
            Route(prefix + "/{run_id}/async", _refusing(within_reentry), methods=["POST"]),
        ]
    return found


def _refusing(handler: _Handler) -> _Handler:
    """Let a refusal be answered in the wire's form."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as error:
            if error.data is None:
                raise ApiError(error.status, error.message, error.code) from None
            form = {"error": error.message, "data": error.data, "status": error.status}
            return as_json({**form, "code": error.code}, error.status)

    return answer


async def _read_form(request: Request) -> dict[str, Any]:
    body = await read_body(request, MAX_CHECKPOINT)
    try:
        form = loose_json.read(body)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", "invalid_body") from None
    if not isinstance(form, dict):
        raise ApiError(400, "The body is not a JSON object.", "invalid_body")
    return form


def _retries(value: Any) -> int:
    """How often a step is tried again; three times where the SDK does not say."""
    if value is None:
        return _RETRIES
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedError(f"retries: give a number from 0 to {_MOST_RETRIES}")
    return _RETRIES if value < 0 else min(value, _MOST_RETRIES)


def _elapsed(run_id: str, ts: Any) -> int:
    """How long ago the request began, in milliseconds: run id and `ts` are of the same clock."""
    if not isinstance(ts, int) or isinstance(ts, bool):
        return 0
    began_at = ULID.from_str(run_id).milliseconds
    return min(max(ts - began_at, 0), _MOST_ELAPSED)


def _key(value: Any, trigger: Trigger) -> str | None:
    """An idempotency key, unique within its endpoint."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _MAX_KEY:
        raise MalformedError(f"idempotency: give a text of at most {_MAX_KEY} letters")
    whole = "\0".join((trigger.origin, trigger.function_id, value))
    return f"inngest {sha256(whole.encode('utf-8', 'replace')).hexdigest()}"


def _ids(trigger: Trigger) -> dict[str, str]:
    """The ids of application and endpoint."""
    endpoint = endpoint_id(trigger.origin, trigger.function_id)
    return {"app_id": str(application_id(trigger.origin)), "fn_id": endpoint}


def _tokens(server: Server, run_id: str) -> Mapping[str, str]:
    return {
        "token": server.keys.sign_run("output", run_id),
        "realtime_token": run_token(server.keys, run_id),
    }
