"""`endpoint_proxy()`: where a client waits for its run, and gets the handler's own response.

    GET {mount}?runId=…&token=…

blocks until the run has ended and answers with the handler's status, headers and body. While the
run goes on, it sends the client back to itself every 50 seconds, so that no proxy on the way loses
patience, and after eight times says 202. A client that accepts `text/event-stream` gets the run's
stream instead (`following.py`).

    DELETE {mount}?runId=…&token=…     cancels the run, if its endpoint allows that
    GET {mount}/client.js              the browser's client, an ES module
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import orjson
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from durable_endpoints import answers
from durable_endpoints.answers import problem, send_response
from durable_endpoints.client_module import CLIENT, client_module
from durable_endpoints.door import SCOPE_KEY, Door, Outside
from durable_endpoints.engines.base import Engine, Outcome
from durable_endpoints.errors import EngineError
from durable_endpoints.following import accepts_stream, follow
from durable_endpoints.protocol.messages import Headers
from durable_endpoints.protocol.tokens import Grant
from durable_endpoints.requests import header

if TYPE_CHECKING:
    from durable_endpoints.application import Application

PATIENCE = 50_000
"""Milliseconds that one request waits."""
TURNS = 8
"""How often a client is sent back to wait again."""

_UNTIL_REFUSED = 0.25
"""Seconds in which a server that is about to end stops to take connections: a client that is sent
away is to come back to another process, not to this one."""

_METHODS = ("GET", "HEAD", "DELETE", "OPTIONS")
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
        await wait_for_run(place.application, scope, receive, send)


def endpoint_proxy() -> EndpointProxy:
    """The application to mount where clients wait: `app.mount("/wait", endpoint_proxy())`.

    The asynchronous redirect goes there by itself. GET answers with the run's stream, if the client
    accepts `text/event-stream`, else, as HEAD, with the run's own response, or: 303 to itself, then
    202, while the run goes on; 400 without `runId` and `token`; 401 for a token that does not open
    the run; 404 for a run that is unknown or past retention; 405; 409 for a cancelled run; 410 for
    a response that was not to be kept; 500 for one that failed without a response; 503 for a parked
    one; 504 for one that timed out; 507 for a response that was too large to keep.

    DELETE cancels the run of a `cancellable` endpoint: 200; 403 if it is not; 409 if the run has
    ended. `client.js` below it is the browser's client.
    """
    return EndpointProxy()


async def wait_for_run(
    application: Application, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer one request."""
    cross_origin = _cross_origin(scope, application.settings.cors_origins)
    method = scope["method"]
    if method == "OPTIONS":
        preflight = {
            "Access-Control-Allow-Methods": ", ".join(_METHODS),
            "Access-Control-Allow-Headers": _allowed_headers(scope),
            "Access-Control-Max-Age": "86400",
        }
        await _send(Response(status_code=204, headers=preflight), scope, send, cross_origin)
        return
    if method not in _METHODS:
        detail = (
            "A run is waited for with GET, and cancelled with DELETE. "
            "(With curl -L, write -d '' in place of -X POST, which posts here too.)"
        )
        response = problem(405, "method_not_allowed", detail, {"Allow": ", ".join(_METHODS)})
        await _send(response, scope, send, cross_origin)
        return
    if scope["path"].endswith(CLIENT):
        await _send(client_module(scope), scope, send, cross_origin)
        return
    query = QueryParams(scope["query_string"])
    run_id, token = query.get("runId", ""), query.get("token", "")
    try:
        engine = await application.started_engine()
        grant = engine.verify_run(run_id, token) if run_id and token else None
        if grant is None:
            await _send(_refusal(run_id, token), scope, send, cross_origin)
        elif method == "DELETE":
            await _send(await _cancel(engine, run_id, grant), scope, send, cross_origin)
        elif method == "GET" and accepts_stream(scope["headers"]):
            await _stream(application, run_id, query, scope, receive, send, cross_origin)
        else:
            outcome = await engine.outcome(run_id, PATIENCE)
            if outcome is not None and outcome.response is not None:
                await _send_outcome(outcome, engine, scope, send, cross_origin)
            else:
                is_leaving = not engine.is_admitting
                if is_leaving:
                    await asyncio.sleep(_UNTIL_REFUSED)
                await _send(_answer(outcome, run_id, query, is_leaving), scope, send, cross_origin)
    except EngineError as error:
        response = problem(503, "engine_unavailable", error.explanation, {"Retry-After": "1"})
        await _send(response, scope, send, cross_origin)


async def _stream(
    application: Application,
    run_id: str,
    query: QueryParams,
    scope: Scope,
    receive: Receive,
    send: Send,
    cross_origin: Headers,
) -> None:
    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    outcome = await application.engine.outcome(run_id, 0)
    if outcome is None:
        instead: Response | None = _unknown(run_id)
    else:
        headers = scope["headers"]
        instead = await follow(application, outcome, headers, query, cross_origin, send, until_gone)
    if instead is not None:
        await _send(instead, scope, send, cross_origin)


async def _cancel(engine: Engine, run_id: str, grant: Grant) -> Response:
    if grant is not Grant.CANCEL:
        detail = "The endpoint does not let its clients cancel runs: @endpoint(cancellable=True)."
        return problem(403, "not_cancellable", detail, run_id=run_id)
    await engine.cancel(run_id, "cancelled by its client")
    outcome = await engine.outcome(run_id, 0)
    if outcome is None:
        return _unknown(run_id)
    headers = answers.durable_headers(run_id, outcome.status)
    if outcome.status != "cancelled":
        detail = f"The run has ended already: {outcome.status}."
        return problem(409, "run_ended", detail, headers, run_id=run_id, status=outcome.status)
    body = orjson.dumps({"run_id": run_id, "status": "cancelled"})
    return Response(body, 200, headers, "application/json")


def _refusal(run_id: str, token: str) -> Response:
    if not run_id or not token:
        detail = "Give runId and token, as the redirect did."
        return problem(400, "bad_request", detail)
    return problem(401, "bad_token", "The token does not open this run.")


def _unknown(run_id: str) -> Response:
    detail = "There is no such run, or its retention is over."
    return problem(404, "unknown_run", detail, run_id=run_id)


def _answer(outcome: Outcome | None, run_id: str, query: QueryParams, is_leaving: bool) -> Response:
    """What a client gets of a run that has no response. A turn that was cut short, because this
    process `is_leaving`, does not count."""
    if outcome is None:
        return _unknown(run_id)
    if outcome.status in _ENDED:
        return answers.outcome_problem(outcome)
    turn = query.get("turn", "0")
    turn_number = int(turn) if turn.isdecimal() and len(turn) < 4 else 0
    if turn_number < TURNS:
        next_turn = turn_number if is_leaving else turn_number + 1
        again = {"runId": run_id, "token": query["token"], "turn": next_turn}
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


def _allowed_headers(scope: Scope) -> str:
    """All that the client asks for. The wildcard would not cover `Authorization`."""
    return header(scope["headers"], b"access-control-request-headers") or "*"


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
