"""The decorator keeps what it decorates; options and settings have their types."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    Hook,
    StepEncryption,
    configure,
    endpoint,
    endpoint_app,
    endpoint_proxy,
    remember,
    send_event,
)
from durable_endpoints.hooks import Result, RunInfo, StepInfo


class Order(BaseModel):
    id: int


class User(BaseModel):
    name: str


async def current_user(token: str) -> User:
    return User(name=token)


def plan(user: User) -> str:
    return user.name


app = FastAPI()
app.mount("/wait", endpoint_proxy())


@app.post("/orders/{shop}")
@endpoint(retries=5, respond_within="10s", max_runtime=timedelta(days=2), checkpoint="background")
async def create(
    shop: str,
    order: Order,
    user: Annotated[User, Depends(remember(current_user))],
) -> Order:
    configure(retries=0, omit_response_body=True)
    await send_event("order/created", {"id": order.id}, id="7")
    return order


@endpoint
def plain(order: Order, *, fast: bool = False) -> Order:
    return order


@endpoint()
async def bare(request: Request) -> Response:
    return PlainTextResponse("ok")


class Resource(HTTPEndpoint):
    @endpoint
    async def get(self, request: Request) -> JSONResponse:
        return JSONResponse({})


async def signatures_are_kept() -> None:
    assert_type(plain(Order(id=1), fast=True), Order)
    assert_type(await create("shop", Order(id=1), User(name="a")), Order)
    remembered = remember(plan)
    assert_type(remembered(User(name="a")), str)
    assert_type(await remember(current_user)("token"), User)
    assert_type(await send_event("order/paid", id="7", ts=1_700_000_000_000), str)


async def to_a_page(request: Request, run_id: str, token: str) -> Response:
    return PlainTextResponse(run_id, 202)


async def by_key(request: Request) -> str | None:
    return request.headers.get("x-delivery")


def answers() -> None:
    endpoint(async_response="token")(create)
    endpoint(async_response=to_a_page, idempotency_key=by_key)(create)
    endpoint(async_response=lambda request, run_id, token: Response())(create)
    endpoint(async_redirect_url=lambda run_id, token: f"/runs/{run_id}")(create)
    endpoint(idempotency_scope=lambda request: "everybody", sse=False, cancellable=True)(create)


class Timing(Hook):
    async def before_run(self, run: RunInfo) -> None:
        assert_type(run.run_id, str)
        assert_type(run.reentry, bool)

    async def after_step(self, run: RunInfo, step: StepInfo, result: Result) -> None:
        assert_type(step.attempt, int)
        assert_type(result.error, BaseException | None)

    async def around_step(
        self, run: RunInfo, step: StepInfo, call: Callable[[], Awaitable[Any]]
    ) -> Any:
        return await call()


app.add_middleware(
    DurableEndpointsMiddleware,
    database="sqlite:///runs.db",
    hooks=[Timing(), StepEncryption("0123456789" * 4)],
    retries=2,
    retention="30d",
    retry_factor=1.5,
    cors_origins=["https://example.org"],
    synchronous="normal",
    track_all_endpoints=True,
)
starlette_app = Starlette(
    routes=[Route("/", bare), Route("/resource", Resource), Mount("/wait", endpoint_proxy())],
    middleware=[Middleware(DurableEndpointsMiddleware, public_url="https://example.org/api")],
)
assert_type(endpoint_app(bare, path="/only", methods=["POST"]), Starlette)
