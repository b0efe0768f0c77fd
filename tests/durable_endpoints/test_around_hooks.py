from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import Hook, StepError, endpoint, step
from durable_endpoints.hooks import Call, Result, RunInfo, StepInfo
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import follow, one

pytestmark = pytest.mark.anyio

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Layer(Hook):
    """Writes down what happens inside it, and sets the context variable."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name = name
        self.lines = lines

    async def around_run(self, run: RunInfo, call: Call) -> Any:
        return await self._around("run", call)

    async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
        return await self._around(f"{step.name} {step.attempt}", call)

    async def _around(self, what: str, call: Call) -> Any:
        self.lines.append(f"{self.name}> {what}")
        token = tenant.set(self.name)
        try:
            return await call()
        except BaseException as error:
            self.lines.append(f"{self.name}! {type(error).__name__}")
            raise
        finally:
            tenant.reset(token)
            self.lines.append(f"<{self.name} {what}")


async def test_the_first_hook_is_the_outermost(engine: VirtualEngine) -> None:
    lines: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        value = await step.run("a", lambda: tenant.get())
        return PlainTextResponse(f"{value} {tenant.get()}")

    hooks = [Layer("outer", lines), Layer("inner", lines)]
    async with engine.client(one(engine, handler, hooks=hooks)) as client:
        assert (await client.get("/")).text == "inner inner"
    assert lines == [
        "outer> run",
        "inner> run",
        "outer> a 1",
        "inner> a 1",
        "<inner a 1",
        "<outer a 1",
        "<inner run",
        "<outer run",
    ]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_suspension_passes_through_and_every_execution_is_wrapped(
    engine: VirtualEngine, kind: str
) -> None:
    lines: list[str] = []

    @endpoint
    async def asynchronous(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse(tenant.get())

    @endpoint
    def plain(request: Request) -> Response:
        step.sync.sleep("nap", "1h")
        return PlainTextResponse(tenant.get())

    handler = asynchronous if kind == "async" else plain
    async with engine.client(one(engine, handler, hooks=[Layer("it", lines)])) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.text == "it"
    assert lines == ["it> run", "it! Suspended", "<it run", "it> run", "<it run"]


async def test_what_around_step_raises_is_the_failure_of_the_try(engine: VirtualEngine) -> None:
    class Turnstile(Hook):
        async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
            if step.attempt == 1:
                raise PermissionError("not yet")
            return await call()

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(await step.run("a", lambda: "in"))

    async with engine.client(one(engine, handler, hooks=[Turnstile()])) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.text == "in"
        run_id = response.headers["durable-run-id"]
        assert [b"not yet" in failed.error for failed in await engine.store.attempts(run_id)] == [
            True
        ]


async def test_what_around_hooks_return_is_the_result(engine: VirtualEngine) -> None:
    class Replacing(Hook):
        async def around_run(self, run: RunInfo, call: Call) -> Any:
            response = await call()
            response.headers["x-hook"] = "was here"
            return response

        async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
            return "cached" if step.name == "expensive" else await call()

    ran: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        value = await step.run("expensive", lambda: ran.append("expensive"))
        return PlainTextResponse(str(value) + await step.run("cheap", lambda: "!"))

    async with engine.client(one(engine, handler, hooks=[Replacing()])) as client:
        response = await client.get("/")
    assert (response.text, response.headers["x-hook"], ran) == ("cached!", "was here", [])


async def test_an_exception_of_around_run_is_the_handlers(engine: VirtualEngine) -> None:
    class Limit(Hook):
        async def around_run(self, run: RunInfo, call: Call) -> Any:
            async with asyncio.timeout(0.02):
                return await call()

    results: list[Result] = []

    class Diary(Hook):
        async def after_run(self, run: RunInfo, result: Result) -> None:
            results.append(result)

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        await asyncio.sleep(10)
        return PlainTextResponse("late")

    async with engine.client(one(engine, handler, hooks=[Limit(), Diary()])) as client:
        assert (await client.get("/")).status_code == 500
        await engine.settle()
    assert [(result.outcome, type(result.error)) for result in results] == [
        ("failed", TimeoutError)
    ]


async def test_a_plain_handler_runs_inside_its_hooks(engine: VirtualEngine) -> None:
    lines: list[str] = []

    @endpoint
    def handler(request: Request) -> Response:
        a = step.sync.run("a", tenant.get)
        b = step.sync.options(timeout="5s").run("b", tenant.get)
        return PlainTextResponse(f"{a} {b} {tenant.get()}")

    async with engine.client(one(engine, handler, hooks=[Layer("it", lines)])) as client:
        assert (await client.get("/")).text == "it it it"
    assert lines == ["it> run", "it> a 1", "<it a 1", "it> b 1", "<it b 1", "<it run"]


async def test_a_plain_handler_that_its_hook_abandons_has_no_steps_any_more(
    engine: VirtualEngine,
) -> None:
    class Limit(Hook):
        async def around_run(self, run: RunInfo, call: Call) -> Any:
            async with asyncio.timeout(0.02):
                return await call()

    ran: list[str] = []
    refused: list[BaseException] = []

    @endpoint(retries=0)
    def handler(request: Request) -> Response:
        time.sleep(0.1)
        try:
            step.sync.run("late", lambda: ran.append("late"))
        except BaseException as error:
            refused.append(error)
            raise
        return PlainTextResponse("late")

    async with engine.client(one(engine, handler, hooks=[Limit()])) as client:
        assert (await client.get("/")).status_code == 500
        while not refused:
            await asyncio.sleep(0.01)
    assert ran == []
    assert "NotInRunError" in repr(refused)


async def test_a_hook_that_swallows_the_suspension_changes_nothing(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Swallowing(Hook):
        async def around_run(self, run: RunInfo, call: Call) -> Any:
            try:
                return await call()
            except BaseException:
                return PlainTextResponse("swallowed")

    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("slept")

    async with engine.client(one(engine, handler, hooks=[Swallowing()])) as client:
        response = await client.get("/")
        assert response.status_code == 303
        assert (await follow(engine, client, response.headers["location"], "2h")).text == "slept"
    assert "caught the signal" in caplog.text


async def test_steps_of_a_gather_have_a_layer_each(engine: VirtualEngine) -> None:
    lock = asyncio.Lock()
    inside = 0

    class OneAtATime(Hook):
        async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
            async with lock:
                return await call()

    async def alone() -> int:
        nonlocal inside
        inside += 1
        await asyncio.sleep(0.001)
        inside -= 1
        return inside

    @endpoint
    async def handler(request: Request) -> Response:
        found = await asyncio.gather(*(step.run(f"s {n}", alone) for n in range(5)))
        return PlainTextResponse(str(found))

    async with engine.client(one(engine, handler, hooks=[OneAtATime()])) as client:
        assert (await client.get("/")).text == "[0, 0, 0, 0, 0]"


async def test_a_steps_timeout_is_for_its_hooks_too(engine: VirtualEngine) -> None:
    class Slow(Hook):
        async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
            await asyncio.sleep(10)

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await step.options(timeout="10ms", retries=0).run("a", lambda: 1)
        except StepError as error:
            return PlainTextResponse(str(error.__cause__))
        return PlainTextResponse("in time")

    async with engine.client(one(engine, handler, hooks=[Slow()])) as client:
        assert "took longer than 0.01 s" in (await client.get("/")).text
