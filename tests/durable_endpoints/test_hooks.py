from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from durable_endpoints import Hook, StepError, endpoint, step
from durable_endpoints.hooks import Result, RunInfo, StepInfo
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import follow, one, run_id_of, star

pytestmark = pytest.mark.anyio


class Diary(Hook):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.runs: set[tuple[str, str]] = set()

    async def before_run(self, run: RunInfo) -> None:
        self.runs.add((run.run_id, run.function_id))
        self.lines.append(f"run {run.generation}{' again' if run.reentry else ''}")

    async def after_run(self, run: RunInfo, result: Result) -> None:
        error = f" {type(result.error).__name__}" if result.error else ""
        self.lines.append(f"{result.outcome}{error}")

    async def before_step(self, run: RunInfo, step: StepInfo) -> None:
        self.lines.append(f"> {step.name} {step.attempt}")

    async def after_step(self, run: RunInfo, step: StepInfo, result: Result) -> None:
        error = f" {type(result.error).__name__}" if result.error else ""
        self.lines.append(f"< {step.name} {result.outcome}{error}")


async def test_hooks_see_executions_and_bodies(engine: VirtualEngine) -> None:
    diary = Diary()
    engine.fail("flaky", error=ValueError)
    engine.fail("fail", error=KeyError)

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("a", lambda: 1)
        await step.run("flaky", lambda: 2)
        try:
            await step.options(retries=0).run("fail", lambda: 3)
        except StepError:
            pass
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler, hooks=[diary])) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "2h")
        await engine.settle()
        assert diary.runs == {(run_id_of(response), "GET /")}
    assert diary.lines == [
        "run 1",
        "> a 1",
        "< a completed",
        "> flaky 1",
        "< flaky retrying ValueError",
        "suspended",
        "run 3 again",
        "> flaky 2",
        "< flaky completed",
        "> fail 1",
        "< fail failed KeyError",
        "suspended",
        "run 5 again",
        "completed",
    ]


async def test_plain_handlers_have_hooks_too(engine: VirtualEngine) -> None:
    diary = Diary()

    @endpoint(retries=0)
    def handler(request: Request) -> Response:
        step.sync.run("a", lambda: 1)
        raise ValueError

    async with engine.client(one(engine, handler, hooks=[diary])) as client:
        assert (await client.get("/")).status_code == 500
        await engine.settle()
    assert diary.lines == ["run 1", "> a 1", "< a completed", "failed ValueError"]


async def test_a_hook_that_fails_is_logged_and_nothing_else(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Hook):
        async def before_step(self, run: RunInfo, step: StepInfo) -> None:
            raise RuntimeError("broken hook")

    diary = Diary()

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(await step.run("a", lambda: "ok"))

    async with engine.client(one(engine, handler, hooks=[Broken(), diary])) as client:
        assert (await client.get("/")).text == "ok"
    assert "broken hook" in caplog.text
    assert "> a 1" in diary.lines


async def test_tracking_all_endpoints(engine: VirtualEngine) -> None:
    @endpoint
    async def durable(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def plain(request: Request) -> Response:
        return PlainTextResponse("ok", 201)

    async def broken(request: Request) -> Response:
        raise ValueError

    routes = [Route("/d/{n}", durable), Route("/p/{n}", plain), Route("/b", broken)]
    app = star(engine, *routes, track_all_endpoints=True)
    async with engine.client(app) as client:
        response = await client.get("/d/1")
        await client.get("/p/1?secret=1", headers={"authorization": "secret"})
        await client.get("/b")
        await client.get("/nowhere")
        await engine.settle()
        seen: list[Any] = list(await engine.store.requests(10))
    assert [(line.method, line.route, line.status) for line in reversed(seen)] == [
        ("GET", "/d/{n}", 200),
        ("GET", "/p/{n}", 201),
        ("GET", "/b", 500),
        ("GET", "/nowhere", 404),
    ]
    assert seen[-1].run_id == run_id_of(response)
    assert seen[0].run_id is None
    assert all(line.elapsed > 0 for line in seen)


async def test_nothing_is_tracked_unless_wanted(engine: VirtualEngine) -> None:
    async with engine.client(star(engine)) as client:
        await client.get("/")
        assert await engine.store.requests(10) == []
