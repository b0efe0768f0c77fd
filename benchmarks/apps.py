"""The applications that are measured: one handler, with and without durability.

Each is a factory for `uvicorn --factory benchmarks.apps:each`. All of them calm the garbage
collector after their start, as docs/performance.md recommends.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from benchmarks import heap
from benchmarks.far_floor import FarFloor
from benchmarks.floor import Floor, three_steps
from durable_endpoints import (
    DurableEndpointsMiddleware,
    endpoint,
    endpoint_proxy,
    send_event,
    step,
)
from durable_endpoints.options import Checkpoint

BODY = b'{"number": 41}'
ANSWER = b'{"value":44}'


class Order(BaseModel):
    number: int


def increase(value: int) -> int:
    return value + 1


async def increase_async(value: int) -> int:
    return value + 1


@asynccontextmanager
async def frozen(app: FastAPI) -> AsyncIterator[None]:
    heap.settle()
    yield


def bare() -> FastAPI:
    """No durability at all: three calls."""
    app = FastAPI(lifespan=frozen)

    @app.post("/run")
    async def run(order: Order) -> dict[str, int]:
        value = order.number
        for _ in range(3):
            value = await increase_async(value)
        return {"value": value}

    return app


def floor() -> FastAPI:
    """The same commits with no SDK, in this process or by a server."""
    url = os.environ.get("DURABLE_ENDPOINTS_SERVER_URL")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if url is None:
            app.state.floor = Floor(os.environ["DURABLE_ENDPOINTS_DATABASE"])
        else:
            app.state.floor = await FarFloor.connect(int(url.rpartition(":")[2]))
        async with frozen(app):
            yield
        app.state.floor.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/run")
    async def run(order: Order, request: Request) -> dict[str, int]:
        return await three_steps(app.state.floor, await request.body(), order.number)

    return app


def each() -> FastAPI:
    """Every step on disk before the next begins."""
    return _durable("each")


def background() -> FastAPI:
    """All steps on disk before the answer leaves."""
    return _durable("background")


def _durable(checkpoint: Checkpoint) -> FastAPI:
    app = FastAPI(lifespan=frozen)
    app.add_middleware(DurableEndpointsMiddleware, checkpoint=checkpoint)
    entries: dict[str, list[float]] = {}
    lags: list[float] = []
    app.mount("/wait", endpoint_proxy())

    @app.post("/run")
    @endpoint
    async def run(order: Order) -> dict[str, int]:
        value = order.number
        for number in range(3):
            value = await step.run(f"step-{number}", increase_async, value)
        return {"value": value}

    @app.get("/steps/{count}")
    @endpoint
    async def steps(count: int) -> Response:
        value = 0
        for number in range(count):
            value = await step.run(f"step-{number}", increase_async, value)
        return PlainTextResponse(str(value))

    @app.get("/replayed/{count}")
    @endpoint
    async def replayed(count: int) -> list[float]:
        """Answers with the seconds a step took in the execution, and in the replay."""
        times = entries.setdefault(step.run_id, [])
        began = time.perf_counter()
        for number in range(count):
            await step.run(f"step-{number}", increase_async, number)
        times.append((time.perf_counter() - began) / count)
        await step.sleep("nap", "50ms")
        return times

    @app.get("/waits/{number}")
    @endpoint
    async def waits(number: str) -> Response:
        """Answers with the instant at which it had its event."""
        await step.wait_for_event("go", event="go", match={"data.number": number}, timeout="1h")
        return PlainTextResponse(str(time.monotonic_ns()))

    @app.get("/nap")
    @endpoint
    async def nap() -> Response:
        """Answers with the instant at which it ended, for who waits at `/wait`."""
        await step.sleep("nap", "30ms")
        return PlainTextResponse(str(time.monotonic_ns()))

    @app.post("/go/{number}")
    async def go(number: str) -> None:
        await send_event("go", {"number": number})

    @app.get("/nap/{until}")
    @endpoint
    async def nap_until(until: float) -> None:
        await step.sleep_until("nap", datetime.fromtimestamp(until, UTC))
        lags.append((time.time() - until) * 1e3)

    @app.get("/lags")
    async def told_lags() -> list[float]:
        return lags

    return app
