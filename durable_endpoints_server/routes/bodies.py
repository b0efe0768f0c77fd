"""Request bodies, read up to a limit."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from durable_endpoints_server.routes.answers import ApiError


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Raises `ApiError` 413 when it is longer than `most` bytes, as soon as that
    is known."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdecimal() and int(announced[:20]) > most:
        raise _too_large(most)
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise _too_large(most)
            pieces.append(piece)
    except ClientDisconnect:
        raise ApiError(400, "The request ended before its body did.", "incomplete") from None
    return b"".join(pieces)


async def read_json(request: Request, most: int) -> Any:
    """The body as JSON. Raises `ApiError` 413, or 400 if it is none."""
    body = await read_body(request, most)
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", "invalid_body") from None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body is larger than {most:,} bytes.", "too_large")
