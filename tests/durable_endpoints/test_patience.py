"""Clients that wait for an answer: nothing of them is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableEndpointsMiddleware, endpoint, step
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.testing.lifespan import running

pytestmark = pytest.mark.anyio


@pytest.mark.embedded("the engine of a file is stopped")
async def test_an_engine_that_has_stopped_is_not_asked_for_the_time(tmp_path: Path) -> None:
    app = FastAPI()
    app.add_middleware(
        DurableEndpointsMiddleware, database=str(tmp_path / "endpoints.db"), respond_within="50ms"
    )

    @app.get("/quick")
    @endpoint
    async def quick() -> int:
        return await step.run("one", lambda: 1)

    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, failure: failures.append(failure))
    async with (
        running(app),
        httpx.AsyncClient(transport=AppTransport(app), base_url="http://app") as client,
    ):
        assert (await client.get("/quick")).json() == 1
    await asyncio.sleep(0.1)
    assert failures == []
