"""The decorator leaves a handler's face as it was, and refuses what cannot be durable."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import APIRouter, Body, Cookie, Depends, FastAPI, File, Form, Header, Query, UploadFile
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.routing import Host, Mount, Route, Router

from durable_endpoints import ConfigurationError, configure, endpoint, endpoint_app, step
from durable_endpoints.errors import NotInRunError
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, follow, run_id_of, star

if TYPE_CHECKING:
    from decimal import Decimal  # noqa: F401

pytestmark = pytest.mark.anyio


class Item(BaseModel):
    """An item."""

    name: str


def user(x_user: str = Header(default="nobody")) -> str:
    return x_user


async def h1(n: int, q: str = "x") -> Item:
    """Docs of one."""
    return Item(name=q)


def h2(item: Item, who: Annotated[str, Depends(user)], c: str = Cookie(default="")) -> list[Item]:
    return [item]


async def h3(a: Annotated[int, Query(ge=1)], b: str = Body(embed=True)) -> dict[str, Any]:
    return {}


async def h4(f: UploadFile = File(), a: str = Form()) -> None: ...


async def h5(request: Request, *, deep: dict[str, list[Item]] | None = None) -> PlainTextResponse:
    return PlainTextResponse("")


class Methods:
    async def m(self, n: int) -> int:
        return n

    @classmethod
    async def c(cls, n: int) -> int:
        return n

    @staticmethod
    def s(n: int) -> int:
        return n


def corpus(decorate: Any) -> FastAPI:
    app = FastAPI()
    things = Methods()
    app.get("/1/{n}", tags=["t"])(decorate(h1))
    app.post("/2", status_code=201)(decorate(h2))
    app.put("/3", response_model=None)(decorate(h3))
    app.patch("/4")(decorate(h4))
    app.delete("/5")(decorate(h5))
    app.get("/6/{n}")(decorate(things.m))
    app.get("/7/{n}")(decorate(Methods.c))
    app.get("/8/{n}")(decorate(Methods.s))
    return app


def test_openapi_is_the_same() -> None:
    assert corpus(endpoint).openapi() == corpus(lambda handler: handler).openapi()
    assert corpus(endpoint(retries=1)).openapi() == corpus(lambda handler: handler).openapi()


@pytest.mark.parametrize("handler", [h1, h2, h3, h4, h5, Methods().m])
def test_the_signature_is_the_same(handler: Any) -> None:
    decorated = endpoint(handler)
    assert inspect.signature(decorated) == inspect.signature(handler)
    assert decorated.__name__ == handler.__name__
    assert decorated.__doc__ == handler.__doc__
    assert inspect.iscoroutinefunction(decorated) == inspect.iscoroutinefunction(handler)


async def test_partials_keep_a_name(engine: VirtualEngine) -> None:
    async def base(n: int, extra: str) -> str:
        return f"{n}{extra}"

    app = fast(engine)
    handler = endpoint(functools.partial(base, extra="!"))
    assert handler.__name__ == "base"
    app.get("/{n}")(handler)
    async with engine.client(app) as client:
        assert (await client.get("/5")).json() == "5!"


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


class Class(HTTPEndpoint):
    pass


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (generator, "is a generator"),
        (async_generator, "is a generator"),
        (Class, "decorate its methods"),
        (staticmethod(h1), "below @staticmethod"),
        (classmethod(h1), "below @classmethod"),
        (endpoint(h1), "twice"),
        (5, "decorates a handler"),
    ],
)
def test_what_cannot_be_durable_is_refused(handler: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        endpoint(handler)


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"retries": 21},
        {"retries": 1.5},
        {"retries": True},
        {"async_response": "later"},
        {"async_redirect_url": "wait"},
        {"checkpoint": "never"},
        {"omit_request_body": "yes"},
        {"respond_within": "soon"},
        {"respond_within": 0},
        {"max_runtime": -5},
        {"function_id": ""},
        {"idempotency_scope": "user"},
        {"unknown": 1},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        endpoint(**options)


async def test_configure_is_checked(engine: VirtualEngine) -> None:
    errors: list[str] = []
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        for changes in ({"function_id": "x"}, {"max_runtime": "1h"}, {"retries": 99}):
            try:
                configure(**changes)  # type: ignore[arg-type]
            except ConfigurationError as error:
                errors.append(str(error))
        return "ok"

    async with engine.client(app) as client:
        await client.get("/")
    assert len(errors) == 3
    with pytest.raises(NotInRunError):
        configure(retries=1)


# Function ids


async def test_function_ids(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    @endpoint
    async def fast_handler(tenant: str, i: int) -> str:
        return "ok"

    @endpoint(function_id="by-name")
    async def named(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    class Resource(HTTPEndpoint):
        @endpoint
        async def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

        @endpoint
        async def post(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

    sub = FastAPI()
    sub.get("/s/{i}")(fast_handler)
    v1 = APIRouter(prefix="/v1/{tenant}")
    v1.get("/x/{i}")(fast_handler)
    outer = APIRouter(prefix="/outer")
    outer.include_router(v1)
    app = fast(engine)
    app.include_router(outer)
    app.include_router(v1)
    app.mount("/sub/{tenant}", sub)
    app.router.routes += [
        Route("/one/{n:int}", handler, methods=["GET", "PUT"]),
        Route("/two/{n:path}", handler),
        Route("/named/{n}", named),
        Route("/class/{n}", Resource),
        Mount("/m/{a}", routes=[Mount("/n", routes=[Route("/{b}", handler)])]),
        Host("api.example", Router([Route("/hosted/{n}", handler)])),
    ]
    async with engine.client(app) as client:
        for method, url, expected in (
            ("GET", "/outer/v1/t/x/1", "GET /outer/v1/{tenant}/x/{i}"),
            ("GET", "/v1/t/x/1", "GET /v1/{tenant}/x/{i}"),
            ("GET", "/sub/org/s/1", "GET /sub/{tenant}/s/{i}"),
            ("GET", "/one/5", "GET /one/{n}"),
            ("PUT", "/one/5", "PUT /one/{n}"),
            ("HEAD", "/one/5", "HEAD /one/{n}"),
            ("GET", "/two/a/b/c", "GET /two/{n}"),
            ("GET", "/named/5", "by-name"),
            ("GET", "/class/5", "GET /class/{n}"),
            ("POST", "/class/5", "POST /class/{n}"),
            ("GET", "/m/1/n/2", "GET /m/{a}/n/{b}"),
            ("GET", "http://api.example/hosted/5", "GET /hosted/{n}"),
        ):
            if "sub" in url:
                continue  # see the next test: its handler takes other parameters
            response = await client.request(method, url)
            assert response.status_code == 200, (url, response.text)
            assert (await engine.run(run_id_of(response))).function_id == expected


async def test_function_ids_behind_a_prefix(engine: VirtualEngine) -> None:
    from durable_endpoints.asgi_transport import AppTransport

    sub = FastAPI()

    @sub.get("/s/{i}")
    @endpoint
    async def handler(i: int) -> str:
        await step.sleep("nap", "1h")
        return f"{i}"

    app = fast(engine)
    app.mount("/sub/{org}", sub)
    async with engine.client(app) as client:
        import httpx

        transport = AppTransport(app, root_path="/api")
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as prefixed:
            response = await prefixed.get("/api/sub/o/s/5")
            assert response.status_code == 303
            assert (await engine.run(run_id_of(response))).function_id == "GET /sub/{org}/s/{i}"
            assert response.headers["location"].startswith("/api/wait?runId=")
            await engine.advance("1h")
            assert (await prefixed.get(response.headers["location"])).json() == "5"
        response = await client.get("/sub/o/s/6")
        assert response.headers["location"].startswith("/wait?runId=")


async def test_public_url(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    app = star(engine, Route("/", handler), public_url="https://api.example/v1/")
    async with engine.client(app) as client:
        response = await client.get("/", headers={"host": "evil.example"})
        assert response.headers["location"].startswith("https://api.example/v1/wait?runId=")


async def test_routes_added_after_the_start(engine: VirtualEngine) -> None:
    app = fast(engine)
    async with engine.client(app) as client:
        assert (await client.post("/late", content=b"x" * 100_000)).status_code == 404

        @app.post("/late")
        @endpoint
        async def late(request: Request) -> int:
            await step.sleep("nap", "1h")
            return len(await request.body())

        response = await client.post("/late", content=b"x" * 100_000)
        assert (await engine.run(run_id_of(response))).function_id == "POST /late"
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == 100_000


async def test_a_route_that_the_table_cannot_see_is_a_clear_error(engine: VirtualEngine) -> None:
    errors: list[BaseException] = []

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    class Opaque:
        def __init__(self, app: Any) -> None:
            self._hidden = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self._hidden(scope, receive, send)
            except ConfigurationError as error:
                errors.append(error)
                raise

    app = star(engine, Mount("/opaque", Opaque(Router([Route("/x", handler)]))))
    async with engine.client(app) as client:
        assert (await client.get("/opaque/x")).status_code == 500
    assert "endpoint_app()" in str(errors[0])


async def test_endpoint_app(engine: VirtualEngine) -> None:
    async def handler(request: Request) -> PlainTextResponse:
        await step.sleep("nap", "1h")
        return PlainTextResponse(f"{request.method} {request.url.path}")

    app = endpoint_app(handler, engine=engine)
    async with engine.client(app) as client:
        response = await client.put("/any/path")
        assert response.headers["location"].startswith("/wait?")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "PUT /any/path"
    options: dict[str, Any] = {"path": "/only", "methods": ["POST"], "retries": 0}
    app = endpoint_app(endpoint(handler), engine=engine, **options)
    async with engine.client(app) as client:
        assert (await client.get("/only")).status_code == 405
        assert (await client.post("/other")).status_code == 404
        assert (await client.post("/only")).status_code == 303
