"""What the code costs without disk and sockets: a durable request, and one that passes through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from benchmarks import heap
from benchmarks.in_process import call, running
from benchmarks.options import Options
from benchmarks.report import heading, spread, table
from durable_endpoints import DurableEndpointsMiddleware, endpoint, step
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.store.base import Lane, Ticket
from durable_endpoints_server.store.memory import MemoryStore

REQUESTS = 2_000


class NoStore(MemoryStore):
    """Forgets everything at once: what is left is what a run costs in the SDK and the core."""

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        return _DONE


class _Done:
    async def wait(self) -> None:
        pass

    def then(self, callback: Callable[[], None]) -> None:
        callback()


_DONE = _Done()


async def increase(value: int) -> int:
    return value + 1


async def plain(request: Request) -> Response:
    value = (await request.json())["number"]
    for _ in range(3):
        value = await increase(value)
    return JSONResponse({"value": value})


@endpoint
async def durable(request: Request) -> Response:
    value = (await request.json())["number"]
    for number in range(3):
        value = await step.run(f"step-{number}", increase, value)
    return JSONResponse({"value": value})


async def microseconds(app: ASGIApp, path: str) -> float:
    heap.settle()
    began = time.perf_counter()
    for _ in range(REQUESTS):
        await call(app, path, body=b'{"number": 41}')
    return (time.perf_counter() - began) / REQUESTS * 1e6


async def measure_all(rounds: int) -> None:
    bare = Starlette(routes=[Route("/plain", plain, methods=["POST"])])
    routes = [
        Route("/plain", plain, methods=["POST"]),
        Route("/durable", durable, methods=["POST"]),
    ]
    measured: dict[str, list[float]] = {"bare": [], "passes through": [], "three steps": []}
    for _ in range(rounds):
        engine = VirtualEngine()
        engine.store = NoStore()
        middleware = Middleware(DurableEndpointsMiddleware, engine=engine)
        app = Starlette(routes=routes, middleware=[middleware])
        async with running(app):
            measured["bare"].append(await microseconds(bare, "/plain"))
            measured["passes through"].append(await microseconds(app, "/plain"))
            measured["three steps"].append(await microseconds(app, "/durable"))
    added = [
        (
            name,
            spread(values, "{:.1f}"),
            spread(
                [mine - his for mine, his in zip(values, measured["bare"], strict=True)], "{:.1f}"
            ),
        )
        for name, values in measured.items()
    ]
    heading("Without disk and sockets: no store at all, Starlette called in process")
    table(("", "us a request", "more than bare"), added)


def measure(folder: Path, options: Options) -> None:
    asyncio.run(measure_all(options.rounds))
