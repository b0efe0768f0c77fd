"""The forms in which the server answers (Inngest REST API, "envelopes")."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from durable_endpoints_server.server import Server


class ApiError(HTTPException):
    """A refusal: its status, what happened and what to do, and a word for programs."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.code = code


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status, headers, "application/json")


def data(value: Any, status: int = 200, **metadata: Any) -> Response:
    """A successful answer: `{"data": …, "metadata": {"fetched_at", …}}`."""
    fetched_at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return as_json({"data": value, "metadata": {"fetched_at": fetched_at, **metadata}}, status)


def refusal(error: HTTPException) -> Response:
    """`{"error", "data": null, "status", "code"?}`."""
    form: dict[str, Any] = {"error": error.detail, "data": None, "status": error.status_code}
    if code := getattr(error, "code", ""):
        form["code"] = code
    return as_json(form, error.status_code, error.headers)


def authorise(server: Server, connection: HTTPConnection) -> None:
    """Raise `ApiError` 401 unless the caller shows a signing key."""
    if not server.keys.allows(connection):
        raise ApiError(
            401,
            "Authorization: Bearer with a signing key of this server is needed.",
            "unauthorized",
            {"WWW-Authenticate": "Bearer"},
        )
