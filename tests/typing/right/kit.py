"""The kit for tests of applications."""

from __future__ import annotations

from typing import assert_type

import httpx
from fastapi import FastAPI

from durable_endpoints import DurableEndpointsMiddleware
from durable_endpoints.testing import VirtualEngine


async def test_an_application() -> None:
    engine = VirtualEngine(retry_base="1s", max_steps=100)
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)
    async with engine.client(app) as client:
        assert_type(client, httpx.AsyncClient)
        assert_type(await engine.advance("24h"), None)
        assert_type(await engine.settle(), None)
        assert_type(await engine.crash(), None)
