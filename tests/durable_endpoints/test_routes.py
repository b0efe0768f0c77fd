"""Warnings at the start: decorators in the wrong order, wherever the route is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router
from starlette.testclient import TestClient

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step
from durable_endpoints_server.cli import main

WARNING = "directly above the `def`, below the route's decorator"


def start(app: Any) -> None:
    """Start and stop an application, as a server does."""
    with TestClient(app):
        pass


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and WARNING in record.getMessage()
    ]


def fast(folder: Path) -> FastAPI:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, database=str(folder / "runs.db"))
    app.mount("/wait", endpoint_proxy())
    return app


def star(folder: Path, *routes: Any) -> Starlette:
    middleware = Middleware(DurableEndpointsMiddleware, database=str(folder / "runs.db"))
    return Starlette(routes=list(routes), middleware=[middleware])


def test_swapped_decorators_are_warned_about_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = fast(tmp_path)

    @endpoint
    @app.get("/swapped")
    async def swapped() -> int:
        return 1

    @app.get("/right")
    @endpoint
    async def right() -> int:
        return 1

    @app.get("/plain")
    async def plain() -> int:
        return 1

    start(app)
    (warning,) = warnings(caplog)
    assert "swapped" in warning
    assert f"{__file__}:" in warning


def test_swapped_decorators_with_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = fast(tmp_path)

    @endpoint(retries=5)
    @app.post("/swapped")
    def swapped() -> int:
        return 1

    start(app)
    assert len(warnings(caplog)) == 1


def included(app: FastAPI, router: APIRouter) -> None:
    app.include_router(router, prefix="/v1")


def included_twice_over(app: FastAPI, router: APIRouter) -> None:
    outer = APIRouter(prefix="/outer")
    outer.include_router(router, prefix="/{tenant}")
    app.include_router(outer)


def mounted(app: FastAPI, router: APIRouter) -> None:
    sub = FastAPI()
    sub.include_router(router)
    app.mount("/sub", sub)


@pytest.mark.parametrize("place", [included, included_twice_over, mounted])
def test_wherever_the_route_is(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: Callable[[FastAPI, APIRouter], None],
) -> None:
    app, router = fast(tmp_path), APIRouter()

    @endpoint
    @router.get("/swapped")
    async def swapped() -> int:
        return 1

    place(app, router)
    start(app)
    assert len(warnings(caplog)) == 1


def test_the_undecorated_function_on_a_route_of_starlette(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: Request) -> Response:
        return PlainTextResponse("x")

    route = Route("/{id:int}", handler)
    endpoint(handler)
    hosts = Host("{sub}.example", app=Router([Mount("/deep", routes=[route])]))
    start(star(tmp_path, hosts))
    assert len(warnings(caplog)) == 1


def test_right_orders_are_not_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Methods(HTTPEndpoint):
        @endpoint
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("x")

        async def post(self, request: Request) -> Response:
            return PlainTextResponse("x")

    async def handler(request: Request, who: str) -> Response:
        return PlainTextResponse(who)

    def plain(request: Request) -> Response:
        return PlainTextResponse("x")

    app = star(
        tmp_path,
        Route("/methods", Methods),
        Route("/partial", endpoint(partial(handler, who="ada"))),
        Route("/sync", endpoint(plain)),
        Route("/lambda", lambda request: PlainTextResponse("x")),
        Mount("/wait", endpoint_proxy()),
    )
    start(app)
    assert warnings(caplog) == []


def test_a_swapped_handler_that_has_steps_says_so_to_its_client_too(
    tmp_path: Path,
) -> None:
    """The warning is for the operator; without it, nothing would be durable silently."""
    app = fast(tmp_path)

    @endpoint
    @app.get("/")
    async def swapped() -> int:
        return await step.run("a", lambda: 1)

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 500


def test_a_decorated_function_in_two_places_keeps_both_ids(tmp_path: Path) -> None:
    app = fast(tmp_path)

    @app.get("/one/{n}")
    @app.get("/two/{n}")
    @endpoint
    async def both(n: int) -> int:
        return await step.run("a", lambda: n)

    with TestClient(app) as client:
        for path in ("/one/1", "/two/2"):
            assert client.get(path).json() == int(path[-1])
    listed = CliRunner().invoke(main, ["runs", "list", "--database", str(tmp_path / "runs.db")])
    assert "GET /one/{n}" in listed.output
    assert "GET /two/{n}" in listed.output
