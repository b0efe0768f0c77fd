"""`endpoint_proxy()`: where a client waits for its run, and gets the handler's own response.

    GET {mount}?runId=…&token=…

blocks until the run has ended and answers with the handler's status, headers and body. While the
run goes on, it sends the client back to itself every 50 seconds, so that no proxy on the way loses
patience, and after eight times says 202.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from durable_endpoints import answers
from durable_endpoints.answers import problem, send_response
from durable_endpoints.door import SCOPE_KEY, Door, Outside
from durable_endpoints.engines.base import Engine, Outcome
from durable_endpoints.errors import EngineError
from durable_endpoints.protocol.messages import Headers

if TYPE_CHECKING:
    from durable_endpoints.application import Application

PATIENCE = 50_000
"""Milliseconds that one request waits."""
TURNS = 8
"""How often a client is sent back to wait again."""

_ENDED = ("completed", "failed", "cancelled", "parked")


class EndpointProxy:
    """An ASGI application, mounted in one with `DurableEndpointsMiddleware`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        place = scope.get(SCOPE_KEY)
        if not isinstance(place, Door | Outside):
            detail = (
                "endpoint_proxy() is mounted in an application without DurableEndpointsMiddleware: "
                "app.add_middleware(DurableEndpointsMiddleware)"
            )
            await send_response(problem(500, "middleware_missing", detail), scope, send)
            return
        await wait_for_run(place.application, scope, send)


def endpoint_proxy() -> EndpointProxy:
    """The application to mount where clients wait: `app.mount("/wait", endpoint_proxy())`.

    The asynchronous redirect goes there by itself. Answers GET and HEAD with the run's own
    response, or: 303 to itself, then 202, while the run goes on; 400 without `runId` and `token`;
    401 for a token that does not open the run; 404 for a run that is unknown or past retention;
    405; 409 for a cancelled run; 410 for a response that was not to be kept; 500 for one that
    failed without a response; 503 for a parked one; 504 for one that timed out; 507 for a response
    that was too large to keep.
    """
    return EndpointProxy()


async def wait_for_run(application: Application, scope: Scope, send: Send) -> None:
    """Answer one request."""
    cross_origin = _cross_origin(scope, application.settings.cors_origins)
    if scope["method"] == "OPTIONS":
        preflight = {
            "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": "*",
            "Access-Control-Max-Age": "86400",
        }
        await _send(Response(status_code=204, headers=preflight), scope, send, cross_origin)
        return
    if scope["method"] not in ("GET", "HEAD"):
        detail = "A run is waited for with GET."
        response = problem(405, "method_not_allowed", detail, {"Allow": "GET, HEAD, OPTIONS"})
        await _send(response, scope, send, cross_origin)
        return
    query = QueryParams(scope["query_string"])
    run_id, token = query.get("runId", ""), query.get("token", "")
    try:
        engine = await application.started_engine()
        refusal = _check(engine, run_id, token)
        if refusal is not None:
            await _send(refusal, scope, send, cross_origin)
            return
        outcome = await engine.outcome(run_id, PATIENCE)
    except EngineError as error:
        response = problem(503, "engine_unavailable", str(error), {"Retry-After": "1"})
        await _send(response, scope, send, cross_origin)
        return
    if outcome is not None and outcome.response is not None:
        await _send_outcome(outcome, engine, scope, send, cross_origin)
        return
    await _send(_answer(outcome, run_id, query), scope, send, cross_origin)


def _check(engine: Engine, run_id: str, token: str) -> Response | None:
    if not run_id or not token:
        detail = "Give runId and token, as the redirect did."
        return problem(400, "bad_request", detail)
    if not engine.verify_run(run_id, token):
        return problem(401, "bad_token", "The token does not open this run.")
    return None


def _answer(outcome: Outcome | None, run_id: str, query: QueryParams) -> Response:
    if outcome is None:
        detail = "There is no such run, or its retention is over."
        return problem(404, "unknown_run", detail, run_id=run_id)
    if outcome.status in _ENDED:
        return answers.outcome_problem(outcome)
    turn = query.get("turn", "0")
    turn_number = int(turn) if turn.isdecimal() and len(turn) < 4 else 0
    if turn_number < TURNS:
        again = {"runId": run_id, "token": query["token"], "turn": turn_number + 1}
        return answers.redirect(f"?{urlencode(again)}", run_id, "running")
    detail = "The run goes on. Ask again."
    headers = {**answers.durable_headers(run_id, "running"), "Retry-After": "1"}
    return problem(202, "running", detail, headers, run_id=run_id, status="running")


async def _send_outcome(
    outcome: Outcome, engine: Engine, scope: Scope, send: Send, cross_origin: Headers
) -> None:
    response = outcome.response
    assert response is not None
    own = {name.lower() for name, _ in response.headers}
    extra = [pair for pair in cross_origin if pair[0] not in own]
    await answers.send_stored(response, outcome.run_id, scope, send, extra)
    if outcome.until_delivered and scope["method"] != "HEAD":
        engine.delivered(outcome.run_id)


async def _send(response: Response, scope: Scope, send: Send, cross_origin: Headers) -> None:
    for name, value in cross_origin:
        response.headers[name.decode("latin-1")] = value.decode("latin-1")
    await send_response(response, scope, send)


def _cross_origin(scope: Scope, allowed: tuple[str, ...]) -> Headers:
    """CORS headers (WHATWG Fetch §3.3) for a request from another origin, if that is allowed."""
    origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
    if origin is None:
        return []
    if "*" in allowed:
        permitted = b"*"
    elif origin.decode("latin-1") in allowed:
        permitted = origin
    else:
        return []
    headers = [
        (b"access-control-allow-origin", permitted),
        (b"access-control-expose-headers", b"*"),
    ]
    return headers if permitted == b"*" else [*headers, (b"vary", b"origin")]
