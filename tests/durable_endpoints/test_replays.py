"""A handler that calls other steps in a replay than before is told of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from durable_endpoints import endpoint, step
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one

pytestmark = pytest.mark.anyio

numbers = count()


def work() -> int:
    return 1


async def random_name(request: Request) -> Response:
    await step.run(f"charge-{next(numbers)}", work)
    await step.sleep("pause", "1h")
    return JSONResponse("done")


def random_name_in_a_plain_handler(request: Request) -> Response:
    step.sync.run(f"charge-{next(numbers)}", work)
    step.sync.sleep("pause", "1h")
    return JSONResponse("done")


async def random_wait(request: Request) -> Response:
    await step.run("charge", work)
    await step.sleep(f"pause-{next(numbers)}", "1h")
    return JSONResponse("done")


async def same_each_time(request: Request) -> Response:
    first, second = await asyncio.gather(step.run("a", work), step.run("b", work))
    await step.sleep("pause", "1h")
    if first == second:
        await step.run("c", work)
    await step.wait_for_event("e", event="e", timeout="1h")
    return JSONResponse(await step.run("d", work))


async def plain_io_beside_steps(request: Request) -> Response:
    async def slow() -> None:
        await asyncio.sleep(0.05)
        await step.run("slow", work)

    async def waits() -> None:
        await step.sleep("first", "1h")
        await step.sleep("second", "1h")

    await asyncio.gather(slow(), waits())
    return JSONResponse("done")


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (random_name, "has finished 'charge-"),
        (random_name_in_a_plain_handler, "has finished 'charge-"),
        (random_wait, "has finished 'pause-"),
        (same_each_time, ""),
        (plain_io_beside_steps, ""),
    ],
)
async def test_who_calls_other_steps_is_told(
    engine: VirtualEngine,
    caplog: pytest.LogCaptureFixture,
    handler: Callable[..., Any],
    told: str,
) -> None:
    async with engine.client(one(engine, endpoint(handler))) as client:
        await client.get("/")
        await engine.advance("2h")
    warnings = [r.getMessage() for r in caplog.records if "which this one did not" in r.message]
    if not told:
        assert not warnings
        return
    assert told in warnings[0]
    assert "test_replays.py:" in warnings[0]
    assert "random value" in warnings[0]
