"""What the application itself would answer to an exception that nobody handled."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import Message, Receive, Scope, Send

from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.messages import Headers, StoredResponse

logger = logging.getLogger("durable_endpoints")

_PLAIN = (b"content-type", b"text/plain; charset=utf-8")


def is_handled(scope: Scope, error: Exception) -> bool:
    """Whether the application has a handler of its own for this kind of exception, or status."""
    by_class, by_status = scope.get("starlette.exception_handlers", ({}, {}))
    if isinstance(error, HTTPException) and error.status_code in by_status:
        return True
    return any(kind in by_class for kind in type(error).__mro__)


async def error_response(scope: Scope, error: Exception) -> StoredResponse:
    """The response of the application's handler for 500 or `Exception`, or the plain one.

    Never the debug page, even in debug mode: it shows source code and variables, and this response
    is kept.
    """

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    handlers: dict[Any, Any] = getattr(scope.get("app"), "exception_handlers", {})
    handler = handlers.get(500) or handlers.get(Exception)
    messages: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        messages.append(message)

    try:
        await ServerErrorMiddleware(fail, handler=handler, debug=False)(scope, receive, send)
    except Exception as raised:
        if raised is not error:
            logger.error("the application's handler for errors failed itself", exc_info=raised)
            return StoredResponse(500, [_PLAIN], b"Internal Server Error")
    start = messages[0]
    headers: Headers = [(bytes(k), bytes(v)) for k, v in start.get("headers", [])]
    return StoredResponse(
        start["status"], headers, b"".join(message.get("body", b"") for message in messages[1:])
    )


def explained(error: Exception, returned: type | None, function_id: str) -> Exception:
    """Starlette calls what a handler returns. If that is data, of the type `returned`, no other try
    will help."""
    if returned is None or str(error) != f"{returned.__name__!r} object is not callable":
        return error
    mistake = UsageError(
        f"the handler of {function_id} returned a {returned.__name__}, where Starlette wants a "
        "Response: return JSONResponse(…), for instance (FastAPI's routes make one themselves)",
        where="",
    )
    mistake.__cause__ = error
    return mistake
