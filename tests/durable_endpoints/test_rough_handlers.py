"""Handlers that do what handlers should not: the run, its client and the server bear it."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import RetryAfterError, endpoint, step
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of, star

pytestmark = pytest.mark.anyio


async def spin(request: Request) -> Response:
    while True:
        try:
            await step.sleep("nap", "1h")
            return PlainTextResponse("rested")
        except BaseException:
            pass


async def spin_around_a_gather(request: Request) -> Response:
    while True:
        try:
            await asyncio.gather(step.sleep("nap", "1h"), step.sleep("other", "30m"))
            return PlainTextResponse("rested")
        except BaseException:
            pass


async def spin_around_plain_waiting(request: Request) -> Response:
    while True:
        try:
            await step.sleep("nap", "1h")
            return PlainTextResponse("rested")
        except BaseException:
            try:
                await asyncio.sleep(3_600)
            except BaseException:
                await asyncio.sleep(3_600)


@pytest.mark.parametrize("handler", [spin, spin_around_a_gather, spin_around_plain_waiting])
async def test_a_handler_that_swallows_its_unwinding_for_ever_is_given_up(
    engine: VirtualEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    handler: Callable[[Request], Awaitable[Response]],
) -> None:
    monkeypatch.setattr("durable_endpoints.ending._UNWIND_GRACE", 0.2)
    async with engine.client(one(engine, endpoint(handler))) as client:
        response = await asyncio.wait_for(client.get("/"), 5)
        assert response.status_code == 303
        assert "does not give way" in caplog.text
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "rested"
        gc.collect()
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not [name for name in names if name.startswith("request")]


async def test_a_plain_handler_that_does_so_keeps_only_its_own_thread(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    passes: list[int] = []
    over = False

    @endpoint
    def handler(request: Request) -> Response:
        passes.append(1)
        while True:
            try:
                step.sync.sleep("nap", "1h")
                return PlainTextResponse("rested")
            except BaseException:
                if over:
                    return PlainTextResponse("never heard")

    async with engine.client(one(engine, handler)) as client:
        response = await asyncio.wait_for(client.get("/"), 5)
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "rested"
        over = True
    assert len(passes) == 2


async def cancelled_from_inside() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def test_a_cancellation_from_inside_the_handler_is_a_failure_like_any_other(
    engine: VirtualEngine,
) -> None:
    passes: list[int] = []

    @endpoint(retries=2)
    async def handler(request: Request) -> Response:
        passes.append(1)
        await cancelled_from_inside()
        raise AssertionError("unreachable")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.status_code == 500
    assert len(passes) == 3


async def test_a_cancellation_from_inside_a_step_is_a_failed_try(engine: VirtualEngine) -> None:
    tries: list[int] = []

    async def body() -> str:
        tries.append(1)
        if len(tries) == 1:
            await cancelled_from_inside()
        return "second"

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(await step.run("a", body))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "second"
    assert len(tries) == 2


async def test_a_middleware_without_patience_cannot_make_a_run_go_round_for_ever(
    engine: VirtualEngine,
) -> None:
    passes: list[int] = []

    class Impatient:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            task = asyncio.ensure_future(self.app(scope, receive, send))
            await asyncio.wait([task], timeout=0.05)
            task.cancel()
            await asyncio.wait([task])

    @endpoint(retries=2)
    async def handler(request: Request) -> Response:
        passes.append(1)
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    app = star(engine, Route("/", handler))
    app.user_middleware.insert(0, Middleware(Impatient))
    async with engine.client(app) as client:
        await client.get("/")
        await engine.settle()
        for _ in range(20):
            await asyncio.sleep(0.06)
            await engine.advance("1h")
        (run,) = (await engine.store.list_runs(list(Status), None, 5)).lines
        assert run.run.status is Status.FAILED
    assert len(passes) <= 4


@pytest.mark.parametrize("when", ["soon", -1, "500d"])
async def test_a_wrong_retry_after_ends_the_run_with_its_reason(
    engine: VirtualEngine, when: Any
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        raise RetryAfterError("busy", when)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 500
        (line,) = (await engine.store.list_runs(list(Status), None, 5)).lines
        assert line.run.status is Status.FAILED


async def test_tries_of_the_handler_are_no_steps_against_the_limit() -> None:
    engine = VirtualEngine(max_steps=2)
    passes: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("a", lambda: 1)
        passes.append(1)
        if len(passes) == 1:
            raise ValueError
        await step.run("b", lambda: 2)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "ok"


async def test_a_handler_for_errors_that_fails_itself_is_replaced_by_the_plain_answer(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        raise ValueError

    async def render(request: Request, error: Exception) -> Response:
        raise KeyError("broken handler")

    app = one(engine, handler)
    app.add_exception_handler(500, render)
    async with engine.client(app) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        again = await client.get("/wait", params=await params(engine, response))
        assert (again.status_code, again.text) == (500, "Internal Server Error")
    assert "broken handler" in caplog.text


async def params(engine: VirtualEngine, response: Any) -> dict[str, str]:
    run_id = run_id_of(response)
    return {"runId": run_id, "token": engine.sign_run(run_id)}


async def test_a_final_failure_in_a_reentry_is_not_taken_for_a_refusal(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        raise ValueError("the handler's own")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.status_code == 500
        await engine.settle()
    assert "refused" not in caplog.text
    assert "no longer this execution's" not in caplog.text


async def test_background_tasks_and_middlewares_may_go_on_after_a_reentry(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    done = asyncio.Event()

    async def later() -> None:
        await asyncio.sleep(0.05)
        done.set()

    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok", background=BackgroundTask(later))

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    outside = star(engine, Route("/", handler))
    outside.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    async with engine.client(outside) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "ok"
        await asyncio.wait_for(done.wait(), 5)
        await engine.settle()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_exceptions_in_a_mounted_application_are_tried_again(engine: VirtualEngine) -> None:
    sub = FastAPI(debug=True)
    passes: list[int] = []

    @sub.get("/work")
    @endpoint(retries=1)
    async def work(ok: bool = False) -> str:
        secret = "hunter2"
        passes.append(1)
        await step.sleep("nap", "1h")
        if ok and len(passes) > 2:
            return "ok"
        raise ValueError(secret[:0])

    app = fast(engine)
    app.mount("/sub", sub)
    async with engine.client(app) as client:
        response = await client.get("/sub/work?ok=true")
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.json() == "ok"
        response = await client.get("/sub/work")
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.status_code == 500
        assert "hunter2" not in answer.text


async def test_steps_beside_a_failure_are_heard_out(engine: VirtualEngine) -> None:
    running, most, begun = 0, 0, 0

    async def charge() -> str:
        nonlocal running, most, begun
        running += 1
        begun += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1
        return "charged"

    passes: list[int] = []

    async def lookup() -> None:
        passes.append(1)
        await asyncio.sleep(0.01)
        if len(passes) == 1:
            raise ValueError

    @endpoint
    async def handler(request: Request) -> Response:
        charged, _ = await asyncio.gather(step.run("charge", charge), lookup())
        return PlainTextResponse(charged)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "charged"
    assert (begun, most) == (1, 1)


async def test_a_step_that_outlives_the_response_ends_without_noise(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    stray: list[asyncio.Task[Any]] = []

    @endpoint
    async def handler(request: Request) -> Response:
        stray.append(asyncio.create_task(step.run("slow", asyncio.sleep, 0.05)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).text == "ok"
        await asyncio.wait(stray)
    assert stray[0].cancelled()


async def test_a_relative_location_on_a_path_in_any_script(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return RedirectResponse("next", 303)

    async with engine.client(star(engine, Route("/größe/日本/{x}", handler))) as client:
        response = await client.get("/größe/日本/1")
        waiting = asyncio.create_task(client.get(response.headers["location"]))
        await engine.advance("1h")
        location = (await waiting).headers["location"]
        assert location == "/gr%C3%B6%C3%9Fe/%E6%97%A5%E6%9C%AC/next"


async def test_steps_in_a_thread_that_an_async_handler_started(engine: VirtualEngine) -> None:
    def work() -> str:
        first = step.sync.run("a", lambda: "a")
        step.sync.sleep("nap", "1h")
        return first + step.sync.run("b", lambda: "b")

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(await asyncio.to_thread(work))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "ab"


async def test_a_plain_handler_that_outlives_its_run_is_not_accused(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint(max_runtime="1s")
    def handler(request: Request) -> Response:
        step.sync.run("a", lambda: 1)
        time.sleep(0.3)
        return PlainTextResponse("late")

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.1)
        engine.clock.move_to(engine.clock.now() + 2_000)
        assert (await asking).status_code == 504
    assert "caught the signal" not in caplog.text


async def test_mounts_with_parameters_get_their_own_requests_again(engine: VirtualEngine) -> None:
    def tenant(name: str) -> FastAPI:
        app = fast(engine)

        @app.get("/" + name)
        @endpoint
        async def handler(request: Request) -> list[str]:
            await step.sleep("nap", "1h")
            return [name, request.path_params.get("x", "")]

        return app

    root = FastAPI()
    root.mount("/a", tenant("one"))
    root.mount("/b", tenant("two"))
    root.mount("/t/{x}", tenant("three"))
    async with engine.client(root) as client:
        for path, expected in (
            ("/a/one", ["one", ""]),
            ("/b/two", ["two", ""]),
            ("/t/q/three", ["three", "q"]),
            ("/t/z/three", ["three", "z"]),
        ):
            response = await client.get(path)
            answer = await follow(engine, client, response.headers["location"], "1h")
            assert answer.json() == expected


async def test_a_run_is_never_handed_to_another_application() -> None:
    engine = VirtualEngine()

    def tenant(name: str) -> FastAPI:
        app = fast(engine)

        @app.get("/work")
        @endpoint
        async def handler() -> str:
            await step.sleep("nap", "1h")
            return name

        return app

    async with engine.client(FastAPI(routes=[Mount("/b", tenant("old b"))])) as client:
        response = await client.get("/b/work")
    engine._executors.clear()  # as in a new process, in which nobody has asked for /b yet
    root = FastAPI(routes=[Mount("/a", tenant("a")), Mount("/b", tenant("b"))])
    async with engine.client(root) as client:
        await client.get("/a/work")
        await engine.advance("2h")
        waiting = asyncio.create_task(client.get(response.headers["location"]))
        await engine.settle()
        await client.get("/b/work")
        await engine.advance("20s")
        assert (await asyncio.wait_for(waiting, 5)).json() == "b"
