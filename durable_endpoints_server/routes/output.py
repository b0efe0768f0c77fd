"""`…/{run_id}/output?token=`: what a run of Inngest's SDKs has answered, as soon as it has.

Whoever asks before is kept waiting, in turns: a redirect to the same place keeps proxies from
closing a connection in which nothing happens. After a while the answer is 202: ask again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from durable_endpoints.protocol import failures
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.routes.answers import ApiError, as_json
from durable_endpoints_server.routes.checkpoint import PREFIXES
from durable_endpoints_server.routes.cross_origin import OPEN, preflight
from durable_endpoints_server.routes.reading import run_id_of
from durable_endpoints_server.server import Server
from durable_endpoints_server.store.base import Ended

_TURN: Final = 50_000
"""Milliseconds of waiting in one request: proxies have patience for a minute."""
_TURNS: Final = 16
"""Fewer redirects than `fetch` follows (20)."""
_NO_BODY: Final = (204, 205, 304)
_STATUSES: Final = {"timed_out": 504, "unreachable": 504}


def routes(server: Server) -> list[BaseRoute]:
    async def output(request: Request) -> Response:
        if request.method == "OPTIONS":
            return preflight(request, "GET, HEAD")
        run_id = run_id_of(request)
        token = request.query_params.get("token", "")
        if not server.keys.opens_run("output", run_id, token):
            raise ApiError(401, "The token does not open this run.", "unauthorized", OPEN)
        ended = await _wait(server, request, run_id)
        if ended is None:
            raise ApiError(404, f"There is no run {run_id}, or no more.", "not_found", OPEN)
        if ended.run.status is Status.COMPLETED and ended.response is not None:
            return _response(StoredResponse.unpack(ended.response))
        if ended.run.status.is_final or ended.run.status is Status.PARKED:
            return _without_response(ended)
        return _not_yet(request, ended, token)

    methods = ["GET", "HEAD", "OPTIONS"]
    return [Route(prefix + "/{run_id}/output", output, methods=methods) for prefix in PREFIXES]


async def _wait(server: Server, request: Request, run_id: str) -> Ended | None:
    """How the run stands at its end, or after a turn. Raises `ClientDisconnect` once nobody waits:
    who only connects and leaves again must not use up what there is room for."""
    waiting = asyncio.ensure_future(server.host.waiters.wait(run_id, _TURN))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        waiting.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(stored: StoredResponse) -> Response:
    """The handler's own status, headers and bytes."""
    response = Response(None if stored.status in _NO_BODY else stored.body, stored.status)
    own = {name for name, _ in stored.headers}
    opening = [(name.lower().encode(), value.encode()) for name, value in OPEN.items()]
    length = [(name, value) for name, value in response.raw_headers if name == b"content-length"]
    response.raw_headers = [
        *stored.headers,
        *(header for header in opening if header[0] not in own),
        *length,
    ]
    return response


def _without_response(ended: Ended) -> Response:
    """Why there is none."""
    run = ended.run
    status = 500
    if run.status is Status.CANCELLED:
        status = 409
    elif run.status is Status.PARKED:
        status = 503
    elif run.status is Status.COMPLETED:
        status = 507
    elif run.reason in _STATUSES:
        status = _STATUSES[run.reason]
    error: dict[str, Any] = {"name": "RunError", "message": run.reason or run.status.label}
    if ended.error is not None:
        failure = failures.decode(ended.error)
        error = {"name": failure.name, "message": failure.message}
    reason = {"reason": run.reason} if run.reason else {}
    return as_json(
        {"error": error, "status": run.status.label, **reason, "run_id": run.id},
        status,
        _about(ended),
    )


def _not_yet(request: Request, ended: Ended, token: str) -> Response:
    given = request.query_params.get("turn", "")
    turn = int(given) if given.isascii() and given.isdecimal() and len(given) < 3 else 0
    if turn + 1 < _TURNS:
        query = urlencode({"token": token, "turn": turn + 1})
        headers = {**_about(ended), "Location": f"{request.url.path}?{query}"}
        return Response(status_code=303, headers=headers)
    message = "The run has not ended yet: ask again."
    form = {"status": "running", "run_id": ended.run.id, "message": message}
    return as_json(form, 202, {**_about(ended), "Retry-After": "1"})


def _about(ended: Ended) -> dict[str, str]:
    """The headers of an answer that is not the handler's."""
    run = ended.run
    is_open = not (run.status.is_final or run.status is Status.PARKED)
    return {
        **OPEN,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Durable-Run-Id": run.id,
        "Durable-Run-Status": "running" if is_open else run.status.label,
    }
