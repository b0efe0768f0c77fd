"""Answers that pages of any origin may read: those that a token, or a key in the path, opens."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

OPEN = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
"""The headers of such an answer (Fetch, "CORS protocol")."""


def preflight(request: Request, methods: str) -> Response:
    """The answer to a browser that asks whether it may."""
    headers = {
        **OPEN,
        "Access-Control-Allow-Methods": methods,
        "Access-Control-Allow-Headers": request.headers.get("access-control-request-headers", "*"),
        "Access-Control-Max-Age": "86400",
    }
    return Response(status_code=204, headers=headers)
