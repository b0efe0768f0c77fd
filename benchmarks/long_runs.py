"""What one step costs in a run of many, and what a remembered one costs in a replay."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from benchmarks import heap
from benchmarks.in_process import call, durable_app, location
from benchmarks.options import Options
from benchmarks.report import heading, spread, table
from durable_endpoints import endpoint, step
from durable_endpoints.options import Checkpoint

SIZES = (1_000, 10_000)


async def one(value: int) -> int:
    return value


def handler(times: list[float], size: int, checkpoint: Checkpoint) -> Route:
    """The first entry is the execution, the second, after the sleep, the replay."""

    @endpoint(checkpoint=checkpoint)
    async def many(request: Request) -> Response:
        began = time.perf_counter()
        for number in range(size):
            await step.run(f"step-{number}", one, number)
        times.append((time.perf_counter() - began) / size)
        await step.sleep("nap", "50ms")
        return PlainTextResponse("done")

    return Route("/", many)


async def measure_one(
    folder: Path, size: int, checkpoint: Checkpoint, rounds: int
) -> tuple[list[float], list[float]]:
    times: list[float] = []
    database = folder / f"long-{size}-{checkpoint}.db"
    async with durable_app(database, handler(times, size, checkpoint)) as app:
        for _ in range(rounds):
            heap.settle()
            path, query = location(await call(app, "/"))
            answer = await call(app, path, query)
            assert answer["body"] == b"done", answer
    return times[0::2], times[1::2]


def measure(folder: Path, options: Options) -> None:
    heading("Runs of many steps, in process")
    rows = []
    checkpoints: tuple[Checkpoint, ...] = ("each", "background")
    for checkpoint in checkpoints:
        for size in SIZES:
            executed, replayed = asyncio.run(measure_one(folder, size, checkpoint, options.rounds))
            rows.append(
                (
                    f"{size:,} steps, {checkpoint}",
                    spread([1e3 * seconds for seconds in executed], "{:.3f}"),
                    spread([1e6 * seconds for seconds in replayed], "{:.1f}"),
                )
            )
    table(("", "ms a step", "us a remembered step"), rows)
