"""What the middleware and `/wait` say themselves, where it is not the handler's own response.

Every such answer carries the run's id and status, and is neither cached nor sent on as a referrer,
because its URL may hold a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import orjson
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from durable_endpoints.calls import call_here
from durable_endpoints.capture import RUN_ID_HEADER
from durable_endpoints.engines.base import Outcome
from durable_endpoints.options import RedirectUrl
from durable_endpoints.protocol.messages import Headers, StoredResponse

RUN_STATUS = "Durable-Run-Status"
STEP_EXECUTED = "Durable-Step-Executed"

_URL = "%:/?#[]@!$&'()*+,;=~"
"""What stays as it is in a URL that somebody else wrote; all but ASCII is encoded."""

_PARKED = {
    "interrupted_too_often": "it took its process down repeatedly",
    "request_sealed": "no configured key opens its stored request; give the one that it was sealed "
    "with as DURABLE_ENDPOINTS_SEALING_KEY_FALLBACK",
    "undecodable": "a hook could not decode what its steps have left: the log says why",
}
_PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def durable_headers(run_id: str, status: str) -> dict[str, str]:
    """The headers of every answer about a run that is not the handler's."""
    return {"Durable-Run-Id": run_id, RUN_STATUS: status, **_PRIVATE}


def problem(
    status_code: int, error: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """A JSON error: `error` is a stable word, `detail` says what to do."""
    body = orjson.dumps({"error": error, "detail": detail, **more})
    all_headers = {**_PRIVATE, **(headers or {})}
    return Response(body, status_code, all_headers, "application/json")


def redirect(url: str, run_id: str, status: str) -> Response:
    """303: the client shall GET `url`, whatever its own method was (RFC 9110 §15.4.4)."""
    return Response(status_code=303, headers={"Location": url, **durable_headers(run_id, status)})


def token_answer(url: str, run_id: str, token: str) -> Response:
    """What a client that asked for a token gets (as Inngest's, and the URL for convenience)."""
    body = orjson.dumps({"run_id": run_id, "token": token, "url": url})
    return Response(body, 200, durable_headers(run_id, "running"), "application/json")


async def redirect_url(
    setting: RedirectUrl | None,
    run_id: str,
    token: str,
    proxy_path: str,
    root_path: str,
    public_url: str | None,
) -> str:
    """Where a client can wait for its run.

    A path stays a path, so that the client resolves it against the URL by which it came, and no
    `Host` header has a say in it. `root_path` is the prefix that a proxy took off.
    """
    if setting is not None and not isinstance(setting, str):
        made = await call_here(setting, run_id, token)
        if not isinstance(made, str) or not made:
            raise TypeError(f"async_redirect_url gave {made!r}, not a URL")
        return quote(made, safe=_URL)
    url = setting if setting is not None else proxy_path
    if "://" not in url:
        prefix = public_url if public_url is not None else root_path
        url = url if public_url is None and _is_below(url, root_path) else prefix + url
    parts = urlsplit(url)
    query = urlencode({"runId": run_id, "token": token})
    whole = parts._replace(query=f"{parts.query}&{query}" if parts.query else query)
    return quote(urlunsplit(whole), safe=_URL)


def origin_of(scope: Scope, public_url: str | None) -> str:
    """Scheme and host by which the client of a request came: for its own answer only, since a
    client can put what it likes into `Host`."""
    if public_url is not None:
        parts = urlsplit(public_url)
        return f"{parts.scheme}://{parts.netloc}"
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    server = scope.get("server") or ("localhost", None)
    fallback = f"{server[0]}:{server[1]}" if server[1] else str(server[0])
    return f"{scope.get('scheme', 'http')}://{quote(host.decode('latin-1'), safe=_URL) or fallback}"


def stream_headers(url: str) -> Headers:
    """What the head of a stream says beside the usual: where the run can be followed. A script of
    another origin may read that, if it may read the answer at all (WHATWG Fetch §3.3.6)."""
    exposed = b"durable-run-id, durable-run-url"
    return [
        (b"durable-run-url", url.encode("latin-1")),
        (b"access-control-expose-headers", exposed),
    ]


def outcome_problem(outcome: Outcome) -> Response:
    """The answer for a run that has ended, or stands, without a response of its handler's."""
    run_id, headers = outcome.run_id, durable_headers(outcome.run_id, outcome.status)
    if outcome.status == "cancelled":
        return problem(409, "cancelled", "The run was cancelled.", headers, run_id=run_id)
    if outcome.status == "parked":
        detail = (
            f"The run is parked: {_PARKED.get(outcome.reason, outcome.reason)}. "
            f"`durable-endpoints runs retry {run_id}` tries it again."
        )
        return problem(503, "parked", detail, headers, run_id=run_id, reason=outcome.reason)
    if outcome.omitted == "too_large":
        detail = "The response was larger than what is kept (max_response_body)."
        return problem(507, "response_too_large", detail, headers, run_id=run_id)
    if outcome.omitted:
        detail = "The response was delivered once and, as the endpoint wants it, not kept."
        return problem(410, "response_not_kept", detail, headers, run_id=run_id)
    if outcome.reason == "timed_out":
        detail = "The run took longer than the endpoint's max_runtime."
        return problem(504, "timed_out", detail, headers, run_id=run_id)
    detail = outcome.error or "The run failed without a response."
    return problem(500, "run_failed", detail, headers, run_id=run_id, reason=outcome.reason)


async def send_stored(
    response: StoredResponse, run_id: str, scope: Scope, send: Send, extra: Headers | None = None
) -> None:
    """Send a kept response as it was, with the run's id beside it."""
    headers = [*response.headers, (RUN_ID_HEADER, run_id.encode()), *(extra or [])]
    if scope["method"] != "HEAD" and not response.body and response.status not in (204, 304):
        # The answer to a HEAD request names the length of a body that was never made.
        headers = [pair for pair in headers if pair[0] != b"content-length" or pair[1] == b"0"]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = b"" if scope["method"] == "HEAD" else response.body
    await send({"type": "http.response.body", "body": body, "more_body": False})


def with_whole_location(response: StoredResponse, path: str) -> StoredResponse:
    """Resolve a relative `Location` against the request's own path, because the client will read
    it at another one (RFC 9110 §10.2.2)."""
    base = "/" + quote(path.encode("utf-8", "surrogateescape")).lstrip("/")
    headers = [
        (name, urljoin(base, value.decode("latin-1")).encode("latin-1"))
        if name.lower() == b"location"
        else (name, value)
        for name, value in response.headers
    ]
    return response._replace(headers=headers)


def with_durable_headers(response: Response, run_id: str, status: str) -> Response:
    """Add what every answer of ours carries to one that the user made."""
    for name, value in durable_headers(run_id, status).items():
        response.headers.setdefault(name, value)
    return response


async def send_response(response: Response, scope: Scope, send: Send) -> None:
    """Send one of ours; it hears nothing of the request."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    await response(scope, receive, send)


def _is_below(url: str, root_path: str) -> bool:
    return not root_path or url == root_path or url.startswith(root_path + "/")
