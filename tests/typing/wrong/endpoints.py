"""Each marked line is an error for both checkers."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints import (
    DurableEndpointsMiddleware,
    Hook,
    RetryAfterError,
    configure,
    endpoint,
    endpoint_app,
    fetch_with_stream,
    remember,
    send_event,
)
from durable_endpoints.client import Transcript
from durable_endpoints.testing import VirtualEngine


async def handler(request: Request) -> Response:
    return Response()


async def to_a_page(run_id: str) -> Response:
    return Response()


def options() -> None:
    endpoint("report")  # error
    endpoint(retry=3)(handler)  # error
    endpoint(retries="3")(handler)  # error
    endpoint(async_response="tokn")(handler)  # error
    endpoint(async_response=to_a_page)(handler)  # error
    endpoint(checkpoint="all")(handler)  # error
    endpoint(sse="no")(handler)  # error
    configure(retries="3")  # error
    configure(max_runtime="1h")  # error
    endpoint_app(handler, retry=3)  # error
    endpoint_app(handler, hooks=Hook())  # error
    VirtualEngine(auto=True)  # error
    endpoint(handler)(7)  # error
    remember(handler)("not a request")  # error


app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware, databse="x.db")  # error
app.add_middleware(DurableEndpointsMiddleware, retries="3")  # error
app.add_middleware(DurableEndpointsMiddleware, hooks=Hook())  # error
app.add_middleware(DurableEndpointsMiddleware, synchronous="sometimes")  # error


async def others() -> None:
    send_event({"id": 7})  # error
    await send_event("paid", {"id": 7}, "7")  # error
    await fetch_with_stream("https://example.org", on_chunk=print)  # error
    await fetch_with_stream("https://example.org", on_data=lambda: None)  # error
    Transcript().feed("text")  # error
    raise RetryAfterError("slow down", None)  # error


def tests(engine: VirtualEngine) -> None:
    engine.crash_at("charge", "sometimes")  # error
    engine.fail("charge", error="offline")  # error
    engine.sync.advance(None)  # error
