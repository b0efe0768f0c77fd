"""The door is found wherever handler code runs, leaks nowhere, and says why it is not open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import (
    ConfigurationError,
    DurableEndpointsMiddleware,
    NestedStepError,
    NotInRunError,
    StepError,
    StepIdError,
    StepValueError,
    endpoint,
    send_event,
    step,
)
from durable_endpoints._context import current
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of, star

pytestmark = pytest.mark.anyio


class Dispatching(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


STACK = [
    Middleware(Dispatching),
    Middleware(GZipMiddleware),
    Middleware(CORSMiddleware, allow_origins=["*"]),
    Middleware(SessionMiddleware, secret_key="x"),
    Middleware(TrustedHostMiddleware),
]


async def async_star(request: Request) -> Response:
    return PlainTextResponse(await step.run("a", lambda: "ok"))


def sync_star(request: Request) -> Response:
    return PlainTextResponse(step.sync.run("a", lambda: "ok"))


class AsyncEndpoint(HTTPEndpoint):
    @endpoint
    async def get(self, request: Request) -> Response:
        return PlainTextResponse(await step.run("a", lambda: "ok"))


class SyncEndpoint(HTTPEndpoint):
    @endpoint
    def get(self, request: Request) -> Response:
        return PlainTextResponse(step.sync.run("a", lambda: "ok"))


async def async_fast() -> str:
    return await step.run("a", lambda: "ok")


def sync_fast() -> str:
    return step.sync.run("a", lambda: "ok")


def starlette_app(handler: Any) -> Any:
    return Starlette(routes=[Route("/x", handler)])


def fastapi_app(handler: Any) -> Any:
    app = FastAPI()
    app.get("/x")(endpoint(handler))
    return app


def with_router(handler: Any) -> Any:
    app, router = FastAPI(), APIRouter(prefix="/x")
    router.get("")(endpoint(handler))
    app.include_router(router)
    return app


def mounted(app: Any) -> Any:
    outer = FastAPI()
    outer.mount("/sub", app)
    return outer


APPS: dict[str, tuple[str, Any]] = {
    "starlette async": ("/x", lambda: starlette_app(endpoint(async_star))),
    "starlette sync": ("/x", lambda: starlette_app(endpoint(sync_star))),
    "class async": ("/x", lambda: starlette_app(AsyncEndpoint)),
    "class sync": ("/x", lambda: starlette_app(SyncEndpoint)),
    "fastapi async": ("/x", lambda: fastapi_app(async_fast)),
    "fastapi sync": ("/x", lambda: fastapi_app(sync_fast)),
    "router": ("/x", lambda: with_router(async_fast)),
    "mounted fastapi": ("/sub/x", lambda: mounted(fastapi_app(async_fast))),
    "mounted starlette": ("/sub/x", lambda: mounted(starlette_app(endpoint(sync_star)))),
}


@pytest.mark.parametrize("kind", APPS)
@pytest.mark.parametrize("others", ["none", "outside", "inside"])
async def test_everywhere(engine: VirtualEngine, kind: str, others: str) -> None:
    path, build = APPS[kind]
    app = build()
    if others == "inside":
        for middleware in STACK:
            app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)
    if others == "outside":
        for middleware in STACK:
            app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
    async with engine.client(app) as client:
        response = await client.get(path)
        assert response.status_code == 200, response.text
        assert "ok" in response.text
        run = await engine.run(run_id_of(response))
        assert run.function_id == f"GET {path}"
        assert run.steps == 1
    assert current.place is None


async def test_nested_middlewares_make_one_run(engine: VirtualEngine) -> None:
    inner_engine = VirtualEngine()
    inner = fast(inner_engine)

    @inner.get("/x")
    @endpoint
    async def handler() -> str:
        await step.sleep("nap", "1h")
        return "ok"

    outer = fast(engine)
    outer.mount("/sub", inner)
    async with engine.client(outer) as client:
        response = await client.get("/sub/x")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == "ok"
        assert not inner_engine.is_running


async def test_two_applications_of_one_process_keep_their_runs_apart(engine: VirtualEngine) -> None:
    def sub(name: str) -> Any:
        app = fast(engine)

        @app.get("/x")
        @endpoint
        async def handler() -> str:
            await step.sleep("nap", "1h")
            return name

        return app

    outer = Starlette(routes=[Mount("/a", sub("a")), Mount("/b", sub("b"))])
    async with engine.client(outer) as client:
        first, second = await client.get("/a/x"), await client.get("/b/x")
        assert first.headers["location"].startswith("/a/wait?")
        await engine.advance("1h")
        assert (await client.get(first.headers["location"])).json() == "a"
        assert (await client.get(second.headers["location"])).json() == "b"


# Where steps are not possible


async def test_a_step_in_a_dependency_is_an_error(engine: VirtualEngine) -> None:
    app = fast(engine)

    async def dependency() -> int:
        return await step.run("a", lambda: 1)

    @app.get("/")
    @endpoint
    async def handler(n: int = Depends(dependency)) -> int:
        return n

    async with engine.client(app) as client:
        assert (await client.get("/")).status_code == 500
    with pytest.raises(NotInRunError, match="remember"):
        current.place = _FakeDoor()
        try:
            await dependency()
        finally:
            current.place = None


class _FakeDoor:
    execution = None
    explanation = "in a dependency, use remember()"


async def test_an_undecorated_handler_says_so(engine: VirtualEngine) -> None:
    errors: list[str] = []

    async def handler(request: Request) -> Response:
        try:
            await step.run("a", lambda: 1)
        except NotInRunError as error:
            errors.append(str(error))
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
    assert "not decorated" in errors[0]


async def test_swapped_decorators_fail_loudly_and_are_warned_about(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    app = fast(engine)

    @endpoint
    @app.get("/")
    async def handler() -> int:
        return await step.run("a", lambda: 1)

    async with engine.client(app) as client:
        assert (await client.get("/")).status_code == 500
    assert "handler" in caplog.text
    assert f"{__file__}:" in caplog.text
    assert "directly above the `def`" in caplog.text


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_without_the_middleware_the_error_says_what_to_add(kind: str) -> None:
    import httpx

    app = FastAPI()
    if kind == "async":
        app.get("/")(endpoint(async_fast))
    else:
        app.get("/")(endpoint(sync_fast))
    with pytest.raises(ConfigurationError, match=r"app\.add_middleware"):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://a"
        ) as client:
            await client.get("/")


async def test_a_step_inside_a_step_is_an_error_not_a_hang(engine: VirtualEngine) -> None:
    errors: list[BaseException] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async def inner_task() -> None:
            await step.run("inner", lambda: 1)

        async def outer(how: str) -> None:
            try:
                if how == "task":
                    await asyncio.create_task(inner_task())
                elif how == "sleep":
                    await step.sleep("nap", "1s")
                else:
                    await inner_task()
            except NestedStepError as error:
                errors.append(error)

        for how in ("await", "task", "sleep"):
            await step.run(f"outer {how}", outer, how)
        await step.run("in a thread", lambda: step.sync.run("x", lambda: 1))
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler)) as client:
        response = await asyncio.wait_for(client.get("/"), 5)
        assert response.status_code == 500
    assert len(errors) == 3
    assert "inside the body of step 'outer await'" in str(errors[0])


async def test_the_same_name_at_the_same_time_is_an_error(engine: VirtualEngine) -> None:
    errors: list[BaseException] = []

    @endpoint
    async def handler(request: Request) -> Response:
        results = await asyncio.gather(
            *(step.run("same", asyncio.sleep, 0.01) for _ in range(2)), return_exceptions=True
        )
        errors.extend(result for result in results if isinstance(result, BaseException))
        values = await asyncio.gather(*(step.run(f"item-{n}", lambda n=n: n) for n in range(3)))
        return JSONResponse(values)

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).json() == [0, 1, 2]
    assert len(errors) == 1
    assert isinstance(errors[0], StepIdError)
    assert 'f"same-{i}"' in str(errors[0])


async def test_a_step_that_changes_its_kind_is_an_error(engine: VirtualEngine) -> None:
    errors: list[BaseException] = []

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        if not errors and not hasattr(handler, "seen"):
            handler.seen = True  # type: ignore[attr-defined]
            await step.run("x", lambda: 1)
            await step.sleep("nap", "1s")
        try:
            await step.sleep("x", "1s")
        except StepIdError as error:
            errors.append(error)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "1s")
    assert "'x' is a sleep here" in str(errors[0])
    assert "remembers 'x' as a run" in str(errors[0])


class Model:
    pass


def returns_model() -> Model:
    return Model()


def returns_json() -> dict[str, list[int | None]]:
    return {"a": [1, None]}


async def test_results_that_are_not_json_are_errors_with_the_place(engine: VirtualEngine) -> None:
    errors: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        for name, function in (
            ("value", lambda: {"a": [1, {2, 3}]}),
            ("nan", lambda: float("nan")),
            ("model", returns_model),
        ):
            try:
                await step.run(name, function)
            except StepValueError as error:
                errors.append(str(error))
        return JSONResponse(await step.run("json", returns_json))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.json() == {"a": [1, None]}
    assert "step 'value'" in errors[0]
    assert "$.a[1]" in errors[0]
    assert "'nan'" in errors[1]
    assert "'model': returns_model says it returns Model" in errors[2]


async def test_steps_in_the_wrong_colour_say_what_to_write(engine: VirtualEngine) -> None:
    app = fast(engine)
    errors: list[str] = []

    @app.get("/async")
    @endpoint
    async def asynchronous() -> str:
        try:
            step.sync.run("a", lambda: 1)
        except Exception as error:
            errors.append(str(error))
        return "ok"

    @app.get("/sync")
    @endpoint
    def synchronous() -> str:
        try:
            step.run("a", lambda: 1)  # type: ignore[unused-coroutine]
        except Exception as error:
            errors.append(str(error))
        try:
            step.sync.run("a", asyncio.sleep, 1)
        except Exception as error:
            errors.append(str(error))
        return "ok"

    async with engine.client(app) as client:
        assert (await client.get("/async")).status_code == 200
        assert (await client.get("/sync")).status_code == 200
    assert "await step.run('a')" in errors[0]
    assert "step.sync.run('a')" in errors[1]
    assert "coroutine function" in errors[2]


# Outside any request


async def test_outside_any_request_steps_are_calls() -> None:
    async def work(n: int) -> int:
        return n + 1

    def fail() -> None:
        raise ValueError("broken")

    assert await step.run("a", work, 1) == 2
    assert step.sync.run("a", lambda: 5) == 5
    await step.sleep("nap", "1ms")
    step.sync.sleep("nap", "1ms")
    for call in (lambda: step.run("f", fail),):
        with pytest.raises(StepError) as caught:
            await call()
        assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(StepError):
        step.sync.run("f", fail)
    with pytest.raises(NotInRunError):
        await step.wait_for_event("w", event="e", timeout="1s")


async def test_a_decorated_handler_can_be_called_in_a_test() -> None:
    handler = endpoint(async_fast)
    assert await handler() == "ok"
    assert endpoint(sync_fast)() == "ok"


async def test_a_decorated_handler_called_in_a_run_runs_inline(engine: VirtualEngine) -> None:
    app = fast(engine)

    @endpoint
    async def inner() -> str:
        return await step.run("inner", lambda: "in")

    @app.get("/")
    @endpoint
    async def outer() -> str:
        return await inner() + await step.run("outer", lambda: "out")

    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.json() == "inout"
        assert list(await engine.memo(run_id_of(response))) == ["inner", "outer"]


async def test_a_task_left_behind_finds_the_door_closed(engine: VirtualEngine) -> None:
    outcomes: list[str] = []
    gate = asyncio.Event()

    async def stray() -> None:
        await gate.wait()
        try:
            await step.run("late", lambda: 1)
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise

    tasks: list[asyncio.Task[None]] = []

    @endpoint
    async def handler(request: Request) -> Response:
        tasks.append(asyncio.create_task(stray()))
        if "nap" in request.query_params:
            await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
        await client.get("/?nap=1")
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes == ["NotInRunError", "CancelledError"]
    assert isinstance(results[1], asyncio.CancelledError)


async def test_a_task_that_outlives_its_request_is_not_in_the_next_one(
    engine: VirtualEngine,
) -> None:
    responses: list[int] = []

    async def handler_of_another_request(client: Any) -> None:
        response = await client.get("/other")
        responses.append(response.status_code)

    @endpoint
    async def starter(request: Request) -> Response:
        # The task inherits this request's context, but its own request has its own door.
        await asyncio.create_task(handler_of_another_request(request.app.state.client))
        await step.run("a", lambda: 1)
        return PlainTextResponse("ok")

    @endpoint
    async def other(request: Request) -> Response:
        return PlainTextResponse(await step.run("a", lambda: "other"))

    app = star(engine, Route("/", starter), Route("/other", other))
    async with engine.client(app) as client:
        app.state.client = client
        response = await client.get("/")
        assert response.status_code == 200
        assert (await engine.run(run_id_of(response))).steps == 1
    assert responses == [200]


async def test_threads_of_a_handler_share_its_run(engine: VirtualEngine) -> None:
    import contextvars

    @endpoint
    def handler(request: Request) -> Response:
        results: dict[int, int] = {}

        def work(n: int) -> None:
            results[n] = step.sync.run(f"work-{n}", lambda: n * n)

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work, n))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return JSONResponse(sorted(results.values()))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.json() == [0, 1, 4, 9]
        assert (await engine.run(run_id_of(response))).steps == 4


async def test_exit_code_of_dependencies_runs_with_the_door_closed(engine: VirtualEngine) -> None:
    app = fast(engine)
    errors: list[str] = []

    async def dependency() -> AsyncIterator[None]:
        yield
        try:
            await step.run("late", lambda: 1)
        except NotInRunError as error:
            errors.append(str(error))

    def sync_dependency() -> Iterator[None]:
        yield

    @app.get("/")
    @endpoint
    async def handler(
        a: None = Depends(dependency), b: None = Depends(sync_dependency)
    ) -> JSONResponse:
        return JSONResponse("ok", background=BackgroundTask(lambda: None))

    async with engine.client(app) as client:
        assert (await client.get("/")).json() == "ok"
        await anyio.sleep(0.02)
    assert len(errors) == 1


async def test_send_event_inside_a_request_goes_to_its_engine(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        async def body() -> str:
            return await send_event("from a step")

        await send_event("from a handler")
        await step.run("send", body)
        return PlainTextResponse("ok")

    async def undecorated(request: Request) -> Response:
        return PlainTextResponse(await send_event("from an undecorated handler"))

    app = star(engine, Route("/", handler), Route("/plain", undecorated))
    async with engine.client(app) as client:
        await client.get("/")
        await client.get("/plain")
        names = ["from a step", "from a handler", "from an undecorated handler"]
        for name in names:
            (event,) = await engine.store.unused_events("", name, 0, "", 10)
            assert event.name == name
