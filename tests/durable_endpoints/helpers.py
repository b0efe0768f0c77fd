"""Small applications, and what tests ask about their runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route

from durable_endpoints import DurableEndpointsMiddleware, endpoint_proxy
from durable_endpoints.testing import VirtualEngine


def fast(engine: VirtualEngine | None, **options: Any) -> FastAPI:
    """A FastAPI application with the middleware and a proxy. Without an engine, it uses the one
    that is in use."""
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, engine=engine, **options)
    app.mount("/wait", endpoint_proxy())
    return app


def star(
    engine: VirtualEngine,
    *routes: BaseRoute,
    inside: list[Middleware] | None = None,
    **options: Any,
) -> Starlette:
    """A Starlette application with the middleware, then `inside`, and a proxy."""
    return Starlette(
        routes=[*routes, Mount("/wait", endpoint_proxy())],
        middleware=[
            Middleware(DurableEndpointsMiddleware, engine=engine, **options),
            *(inside or []),
        ],
    )


def one(engine: VirtualEngine, handler: Callable[..., Any], **options: Any) -> Starlette:
    """An application with one handler at `/`, for every method."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return star(engine, Route("/", handler, methods=methods), **options)


def run_id_of(response: httpx.Response) -> str:
    return str(response.headers["durable-run-id"])


def headers_of(response: httpx.Response) -> list[tuple[str, str]]:
    """The header multiset, less what an answer of a run may add."""
    ignored = ("date", "server", "connection", "transfer-encoding", "keep-alive")
    return sorted(
        (name, value)
        for name, value in response.headers.multi_items()
        if name not in ignored and not name.startswith("durable-")
    )


def assert_same(response: httpx.Response, expected: httpx.Response) -> None:
    """Whether two clients got the same response: status, headers, body."""
    assert response.status_code == expected.status_code
    assert headers_of(response) == headers_of(expected)
    assert response.content == expected.content


async def follow(
    engine: VirtualEngine, client: httpx.AsyncClient, location: str, after: str
) -> httpx.Response:
    """Wait at `location` while virtual time passes."""
    waiting = asyncio.create_task(client.get(location, follow_redirects=True))
    await engine.advance(after)
    return await asyncio.wait_for(waiting, 10)
