"""The browser's client, as a file that an application serves beside `/wait`."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.responses import Response
from starlette.types import Scope

from durable_endpoints.answers import problem

CLIENT = "/client.js"
"""Where, below the mount, the browser's client is."""


def client_module(scope: Scope) -> Response:
    """The answer to a request for it."""
    body, tag = _client_js()
    headers = {"ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if scope["method"] == "DELETE":
        return problem(405, "method_not_allowed", "This is a file.", {"Allow": "GET, HEAD"})
    if any(name == b"if-none-match" and tag.encode() in value for name, value in scope["headers"]):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, "text/javascript")


@cache
def _client_js() -> tuple[bytes, str]:
    body = (files("durable_endpoints.browser") / "client.js").read_bytes()
    return body, f'"{sha256(body).hexdigest()[:32]}"'
