"""From an ASGI scope to a stored request, and back into a scope for re-entry."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson
from starlette.types import Scope

from durable_endpoints.protocol.messages import Headers, StoredRequest

_NOT_REPLAYED = frozenset(
    {
        b"accept-encoding",  # middlewares inside would compress the stored answer for one client
        b"connection",
        b"content-length",  # set anew from the stored body
        b"expect",
        b"if-modified-since",  # the stored answer is the whole one
        b"if-none-match",
        b"if-range",
        b"keep-alive",
        b"range",
        b"transfer-encoding",
        b"upgrade",
    }
)


def store_request(scope: Scope, body: bytes) -> StoredRequest:
    """What of a request is kept. `scope` is a copy from before the application saw it."""
    headers: Headers = [pair for pair in scope["headers"] if pair[0] not in _NOT_REPLAYED]
    if body or any(name == b"content-length" for name, _ in scope["headers"]):
        headers.append((b"content-length", str(len(body)).encode()))
    path: str = scope["path"]
    return StoredRequest(
        scope["method"],
        scope.get("scheme", "http"),
        scope.get("http_version", "1.1"),
        path,
        scope.get("raw_path") or path.encode("utf-8", "surrogateescape"),
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        headers,
        _pair(scope.get("client")),
        _pair(scope.get("server")),
        body,
        scope.get("path_params", {}),
    )


def scope_of(request: StoredRequest, state: Mapping[str, Any]) -> Scope:
    """A new scope that says what the original one said. `state` is the application's own."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version,
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path,
        "root_path": request.root_path,
        "query_string": request.query_string,
        "headers": list(request.headers),
        "client": request.client,
        "server": request.server,
        "state": dict(state),
        "extensions": {},
        **({"path_params": dict(request.path_params)} if request.path_params else {}),
    }


def header(headers: Headers, name: bytes) -> str | None:
    """The value of the first header with this (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def printable(text: str) -> str:
    """The text without what no database could hold: paths may come with broken UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def fingerprint(request: StoredRequest, form: list[tuple[str, str, bytes]] | None) -> str:
    """A digest of what makes two requests the same: method, path, query, content type, body.

    A multipart body is compared by its parts, `form`: its boundary is different each time.
    """
    content_type = (header(request.headers, b"content-type") or "").strip()
    digest = sha256()
    if form is not None:
        content_type = content_type.partition(";")[0]
        parts = [[name, kind, sha256(data).hexdigest()] for name, kind, data in form]
        body = orjson.dumps(parts)
    else:
        body = request.body
    for part in (
        request.method.encode(),
        request.path.encode("utf-8", "surrogateescape"),
        request.query_string,
        content_type.encode("latin-1"),
        body,
    ):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _pair(address: Any) -> Any:
    return tuple(address) if address else None
