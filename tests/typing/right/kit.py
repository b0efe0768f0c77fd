"""The kit for tests of applications."""

from __future__ import annotations

from typing import Any, assert_type

import httpx
from fastapi import FastAPI
from starlette.testclient import TestClient

from durable_endpoints import DurableEndpointsMiddleware
from durable_endpoints.client import Transcript
from durable_endpoints.testing import Attempt, VirtualEngine, survives_crashes

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)


async def asynchronous() -> None:
    engine = VirtualEngine(retry_base="1s", max_steps=100)
    async with engine.client(app, lifespan=True) as client:
        assert_type(client, httpx.AsyncClient)
        assert_type(await engine.advance("24h"), None)
        assert_type(await engine.settle(), None)
        assert_type(await engine.finish(within="30d"), httpx.Response)
        assert_type(await engine.values(), dict[str, Any])
        assert_type(await engine.attempts("charge"), list[Attempt])
        assert_type(await engine.stream(), Transcript)
        assert_type(await engine.response(), httpx.Response | None)
        assert_type(await engine.send_event("paid", {"id": 7}), str)
        assert_type(await engine.crash(), None)
        assert_type(await engine.restart(), None)


def blocking(durable_engine: VirtualEngine) -> None:
    with VirtualEngine(auto_advance=True) as engine, TestClient(app):
        assert_type(engine, VirtualEngine)
        engine.fail("charge", times=2, error=ConnectionError("offline"))
        engine.replace("charge", returns={"paid": True})
        engine.replace("charge", with_=lambda order: order)
        engine.crash_at("charge", "recorded")
        assert_type(engine.sync.advance("24h"), None)
        assert_type(engine.sync.finish(), httpx.Response)
        assert_type(engine.sync.values(), dict[str, Any])


async def scenario(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/orders")


async def crashes() -> None:
    await survives_crashes(app, scenario)
