"""How fast waiting ends: an event until the handler goes on, a run's end until `/wait` answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from benchmarks import heap
from benchmarks.in_process import call, durable_app
from benchmarks.options import Options
from benchmarks.report import heading, percentile, table
from benchmarks.servers import Server
from durable_endpoints import endpoint, send_event, step

TURNS = 100
"""In each round."""


async def event_to_handler(folder: Path, turns: int) -> list[float]:
    """Milliseconds from the call of `send_event` to the line after the wait, in one process."""
    lags: list[float] = []
    sent_at = 0.0
    went = asyncio.Event()

    @endpoint
    async def waits(request: Request) -> Response:
        number = request.path_params["number"]
        await step.wait_for_event("go", event="go", match={"data.number": number}, timeout="1h")
        lags.append((time.perf_counter() - sent_at) * 1e3)
        went.set()
        return PlainTextResponse("went")

    async with durable_app(folder / "events.db", Route("/{number}", waits)) as app:
        heap.settle()
        for number in range(turns):
            assert (await call(app, f"/{number}"))["status"] == 303
            sent_at = time.perf_counter()
            await send_event("go", {"number": str(number)})
            await went.wait()
            went.clear()
    return lags


def end_to_answer(folder: Path, turns: int) -> list[float]:
    """Milliseconds from the handler's return, its commit included, to the answer of `/wait` at a
    client over HTTP."""
    lags: list[float] = []
    with (
        Server("each", folder) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client,
    ):
        for _ in range(turns):
            redirect = client.get("/nap")
            answer = client.get(redirect.headers["location"])
            lags.append((time.monotonic_ns() - int(answer.text)) / 1e6)
    return lags


def measure(folder: Path, options: Options) -> None:
    turns = TURNS * options.rounds
    heading("Waking up")
    rows = [
        (name, f"{percentile(lags, 50):.2f}", f"{percentile(lags, 95):.2f}")
        for name, lags in (
            ("event sent -> handler past its wait", asyncio.run(event_to_handler(folder, turns))),
            ("handler returns -> /wait answered over HTTP", end_to_answer(folder, turns)),
        )
    ]
    table(("", "p50 ms", "p95 ms"), rows)
