"""A request leaves nothing behind that only the garbage collector can find."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from durable_endpoints import endpoint, step
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one

pytestmark = pytest.mark.anyio


@pytest.fixture
def uncollected() -> Iterator[list[object]]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


async def test_a_request_is_freed_when_it_is_over(
    engine: VirtualEngine, uncollected: list[object]
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await request.body()
        value = await step.run("a", lambda: 1) + await step.run("b", lambda: 2)
        return JSONResponse({"value": value})

    async with engine.client(one(engine, handler)) as client:
        await client.post("/", json={})
        gc.collect()
        uncollected.clear()
        for _ in range(5):
            await client.post("/", json={})
        await engine.settle()
        gc.collect()
    modules = {type(thing).__module__ for thing in uncollected}
    modules -= {"durable_endpoints.asgi_transport"}  # the client's side
    assert not [module for module in modules if module.startswith("durable_endpoints")]
