"""Steps that were called and never ran: forgotten ones are errors, cancelled ones are not."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import endpoint, step
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one

pytestmark = [
    pytest.mark.usefixtures("forgotten_coroutines_end_here"),
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


async def work() -> int:
    return 1


async def in_a_group_that_fails_at_once() -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step.run("a", work))
            raise ValueError
    except* ValueError:
        pass


async def in_a_group_of_anyio_that_is_cancelled() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: step.run("a", work))
        group.cancel_scope.cancel()


async def in_a_task_that_is_cancelled_at_once() -> None:
    task = asyncio.create_task(step.run("a", work))
    task.cancel()


async def in_a_task_that_is_cancelled_and_forgotten() -> None:
    task = asyncio.create_task(step.sleep("a", "1h"))
    task.cancel()
    await asyncio.sleep(0)
    del task


async def forgotten() -> None:
    step.run("a", work)


async def forgotten_over_several_lines() -> None:
    step.wait_for_event(
        "a",
        event="e",
        timeout="1h",
    )


async def forgotten_in_a_list() -> None:
    kept.append(step.run("a", work))


kept: list[Any] = []


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (in_a_group_that_fails_at_once, 200),
        (in_a_group_of_anyio_that_is_cancelled, 200),
        (in_a_task_that_is_cancelled_at_once, 200),
        (in_a_task_that_is_cancelled_and_forgotten, 200),
        (forgotten, 500),
        (forgotten_over_several_lines, 500),
        (forgotten_in_a_list, 500),
    ],
)
async def test_what_was_forgotten_is_told_from_what_was_cancelled(
    engine: VirtualEngine, code: Callable[[], Any], status: int
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await code()
        await asyncio.sleep(0)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).status_code == status
    kept.clear()
    gc.collect()  # here, where Python's own warning is expected


async def test_one_that_was_forgotten_in_a_variable_is_logged(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        value = step.run("a", work)  # noqa: F841
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
    assert "step 'a' was called" in caplog.text
    assert "test_not_awaited.py:" in caplog.text
    gc.collect()
