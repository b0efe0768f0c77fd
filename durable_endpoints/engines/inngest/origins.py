"""Where a server calls an application back, and what it is shown of a request."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from durable_endpoints.protocol.checkpoints import RunEvent
from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.requests import header

SHOWN = 256 * 1024
"""Bytes of a body that the server is shown, and so at the most of one that it calls back with: its
events may not be much larger."""


def event_of(request: StoredRequest, public_url: str | None) -> RunEvent:
    """The request as the server is told of it. Its own body and credentials are kept sealed beside
    the run: what is called back is only the place.

    Without a `public_url`, the place is where this process listens: `Host` is what a client says.
    """
    raw_path = request.raw_path or quote(request.path).encode()
    path = raw_path.decode("latin-1")
    if public_url is not None:
        parts = urlsplit(public_url)
        domain, prefix = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        if prefix and not path.startswith(prefix + "/"):
            path = prefix + path
    else:
        host, port = request.server or ("localhost", None)
        shown = f"[{host}]" if ":" in host else host
        domain = f"{request.scheme}://{shown}:{port}" if port else f"{request.scheme}://{shown}"
    forwarded = header(request.headers, b"x-forwarded-for")
    return RunEvent(
        domain=domain,
        path=path,
        # To a HEAD request there is no answer that could say anything.
        method="GET" if request.method == "HEAD" else request.method,
        query_params=request.query_string.decode("latin-1"),
        content_type=header(request.headers, b"content-type") or "",
        ip=forwarded or header(request.headers, b"x-real-ip") or "",
        body=request.body if len(request.body) <= SHOWN else b"",
    )
