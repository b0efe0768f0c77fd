"""The request goes in again as it came, and what refuses it is never the run's result."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from durable_endpoints import (
    ConfigurationError,
    DurableEndpointsMiddleware,
    StepValueError,
    endpoint,
    endpoint_proxy,
    remember,
    step,
)
from durable_endpoints.testing import AppTransport, VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of

pytestmark = pytest.mark.anyio


async def test_url_for_state_and_client_are_as_in_the_request(engine: VirtualEngine) -> None:
    sub = FastAPI()
    seen: list[Any] = []

    @sub.get("/top/{n}", name="top")
    @endpoint
    async def handler(request: Request, n: int) -> str:
        seen.append(
            (
                str(request.url_for("top", n=3)),
                str(request.base_url),
                request.client,
                request.scope["root_path"],
                request.scope["path"],
                request.scope["http_version"],
            )
        )
        await step.sleep("nap", "1h")
        return "ok"

    app = fast(engine)
    app.mount("/sub", sub)
    async with engine.client(app) as client:
        response = await client.get("/sub/top/5")
        await follow(engine, client, response.headers["location"], "1h")
    assert seen[0] == seen[1]
    assert seen[0][0] == "http://testserver/sub/top/3"


async def test_the_lifespan_state_is_the_living_one(engine: VirtualEngine) -> None:
    pools: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield {"pool": object()}

    @endpoint
    async def handler(request: Request) -> Response:
        pools.append(request.state.pool)
        request.state.own = len(pools)
        await step.sleep("nap", "50ms")
        return PlainTextResponse(str(request.state.own))

    app = Starlette(
        routes=[Route("/", handler), Mount("/wait", endpoint_proxy())],
        middleware=[Middleware(DurableEndpointsMiddleware, engine=_RealTime())],
        lifespan=lifespan,
    )

    def visit() -> str:
        with TestClient(app) as client:
            return client.get("/").text

    assert await asyncio.to_thread(visit) == "2"
    assert pools[0] is pools[1]


class _RealTime(VirtualEngine):
    """In memory, on the machine's clock."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        from durable_endpoints_server.clock import SystemClock

        self.clock = SystemClock()  # type: ignore[assignment]


def test_a_test_client_without_lifespan_has_a_new_loop_for_each_request() -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "20ms")
        return PlainTextResponse(await step.run("a", lambda: "awake"))

    client = TestClient(one(_RealTime(), handler))
    for _ in range(3):
        assert client.get("/").text == "awake"


@pytest.mark.embedded("a server does not move to another event loop when its own one ends")
def test_concurrent_test_clients_share_an_engine() -> None:
    from concurrent.futures import ThreadPoolExecutor

    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "20ms")
        return PlainTextResponse(await step.run("a", lambda: "awake"))

    app = one(_RealTime(), handler)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: TestClient(app).get("/").text, range(12)))
    assert answers == ["awake"] * 12


async def test_a_reentry_starts_in_an_empty_context(engine: VirtualEngine) -> None:
    leak: ContextVar[str] = ContextVar("leak", default="clean")
    seen: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        seen.append(leak.get())
        leak.set("dirty")
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "1h")
    assert seen == ["clean", "clean"]


async def test_parallel_reentries_do_not_meet(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/{n}")
    @endpoint
    async def handler(request: Request, n: int) -> dict[str, Any]:
        await step.sleep("nap", "1h")
        before = await step.run("before", lambda: n)
        await asyncio.sleep(0.001)
        return {"n": n, "before": before, "path": request.url.path}

    async with engine.client(app) as client:
        responses = [await client.get(f"/{n}") for n in range(60)]
        await engine.advance("1h")
        for n, response in enumerate(responses):
            answer = await client.get(response.headers["location"])
            assert answer.json() == {"n": n, "before": n, "path": f"/{n}"}


async def test_executions_are_limited(engine: VirtualEngine) -> None:
    engine = VirtualEngine(max_executions=3)
    running, most = 0, 0

    @endpoint
    async def handler(request: Request) -> Response:
        nonlocal running, most
        await step.sleep("nap", "1h")
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        responses = [await client.get("/") for _ in range(20)]
        await engine.advance("1h")
        for response in responses:
            assert (await client.get(response.headers["location"])).text == "ok"
    assert most == 3


# Refusals


def expiring(engine: VirtualEngine, dependency: Any, **options: Any) -> FastAPI:
    app = fast(engine)

    @app.get("/")
    @endpoint(**options)
    async def handler(user: str = Depends(dependency)) -> str:
        await step.sleep("nap", "1h")
        return user

    return app


async def test_a_login_that_expired_is_not_the_result(engine: VirtualEngine) -> None:
    asked: list[int] = []

    def current_user(request: Request) -> str:
        asked.append(1)
        if len(asked) > 1:
            raise HTTPException(401, "expired")
        return "ada"

    async with engine.client(expiring(engine, current_user, retries=2)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.status_code == 500
        problem = answer.json()
        assert problem["error"] == "run_failed"
        assert problem["reason"] == "refused_before_handler"
        assert problem["run_id"] == run_id_of(response)
        assert "401" in problem["detail"]
        assert "remember()" in problem["detail"]
    assert len(asked) == 1 + 3


async def test_a_refusal_that_passes_is_survived(engine: VirtualEngine) -> None:
    asked: list[int] = []

    def flaky(request: Request) -> str:
        asked.append(1)
        if len(asked) == 2:
            raise ConnectionError("the user database is away")
        return "ada"

    async with engine.client(expiring(engine, flaky)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.json() == "ada"


async def test_authentication_can_go_by_the_time_of_the_request(engine: VirtualEngine) -> None:
    began = engine.clock.now()

    def current_user(request: Request) -> str:
        reentry = request.scope.get("durable_endpoints")
        now = reentry["started_at"] if reentry else engine.clock.now()
        if now > began + 60_000:
            raise HTTPException(401)
        return f"ada, {reentry is not None and reentry['reentry']}"

    async with engine.client(expiring(engine, current_user)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == "ada, True"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_remembered_dependency_is_asked_once(engine: VirtualEngine, is_async: bool) -> None:
    asked: list[int] = []

    def current_user(request: Request) -> dict[str, Any]:
        asked.append(1)
        return {"name": request.headers["x-user"], "n": len(asked)}

    async def current_user_async(request: Request) -> dict[str, Any]:
        return current_user(request)

    app = fast(engine)
    dependency = remember(current_user_async if is_async else current_user)

    @app.get("/")
    @endpoint
    async def handler(user: dict[str, Any] = Depends(dependency)) -> dict[str, Any]:
        await step.sleep("nap", "1h")
        await step.sleep("again", "1h")
        return user

    @app.get("/plain")
    async def plain(user: dict[str, Any] = Depends(dependency)) -> dict[str, Any]:
        return user

    async with engine.client(app) as client:
        response = await client.get("/", headers={"x-user": "ada"})
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.json() == {"name": "ada", "n": 1}
        assert (await client.get("/plain", headers={"x-user": "bob"})).json()["n"] == 2
    assert len(asked) == 2


async def test_what_cannot_be_remembered(engine: VirtualEngine) -> None:
    def generator() -> Any:
        yield 1

    def model() -> VirtualEngine:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="yield"):
        remember(generator)
    with pytest.raises(StepValueError, match=VirtualEngine.__name__):
        remember(model)
    assert remember(lambda: 5)() == 5
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler(value: Any = Depends(remember(lambda: {1, 2}))) -> str:
        return "never"

    async with engine.client(app) as client:
        assert (await client.get("/")).status_code == 500


async def test_an_outer_middleware_that_refuses_a_reentry(engine: VirtualEngine) -> None:
    refusing = False

    @endpoint(retries=1)
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if refusing and scope["type"] == "http" and scope["path"] == "/":
                await PlainTextResponse("no", 403)(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    app = one(engine, handler)
    app.add_middleware(Guard)
    async with engine.client(app) as client:
        passing, failing = await client.get("/"), await client.get("/")
        await engine.advance("59m")
        refusing = True
        await engine.advance("1m")
        refusing = False
        await engine.advance("1m")
        for response in (passing, failing):
            answer = await client.get(response.headers["location"])
            assert answer.text == "ok"
        response = await client.get("/")
        await engine.advance("59m")
        refusing = True
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert "403" in answer.json()["detail"]


async def test_a_route_that_is_gone(engine: VirtualEngine) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    app = one(engine, handler)
    async with engine.client(app) as client:
        response = await client.get("/")
        del app.router.routes[0]
        answer = await follow(engine, client, response.headers["location"], "10h")
        assert answer.json()["reason"] == "refused_before_handler"
        assert "404" in answer.json()["detail"]
        assert "DURABLE_ENDPOINTS_APP" in answer.json()["detail"]  # or the route is another's


async def test_the_middleware_wrapped_around_the_application(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return JSONResponse(str(request.url))

    inner = Starlette(routes=[Route("/x/{n}", handler), Mount("/wait", endpoint_proxy())])
    wrapped = DurableEndpointsMiddleware(inner, engine=engine)
    for app, prefix in (
        (wrapped, ""),
        (Starlette(routes=[Mount("/p", wrapped)]), "/p"),
        (Starlette(routes=[Mount("/q", app=inner, middleware=[_middleware(engine)])]), "/q"),
    ):
        engine._executors.clear()
        wrapped._application.routes = None
        wrapped._application._root_paths.clear()
        wrapped._application._started_on = None
        async with engine.client(app) as client:
            response = await client.get(f"{prefix}/x/5")
            assert response.status_code == 303, response.text
            assert response.headers["location"].startswith(f"{prefix}/wait?")
            assert (await engine.run(run_id_of(response))).function_id == "GET /x/{n}"
            answer = await follow(engine, client, response.headers["location"], "1h")
            assert answer.json() == f"http://testserver{prefix}/x/5"


def _middleware(engine: VirtualEngine) -> Middleware:
    return Middleware(DurableEndpointsMiddleware, engine=engine)


async def test_exceptions_in_a_reentry_are_logged(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        raise ValueError("in the second pass")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.status_code == 500
    assert "in the second pass" in caplog.text
    assert run_id_of(response) in caplog.text


# Crashes, in virtual time


async def test_whatever_a_crash_interrupts_goes_on(engine: VirtualEngine) -> None:
    calls: dict[str, int] = {}
    gate = asyncio.Event()

    @endpoint
    async def handler(request: Request) -> Response:
        async def count(name: str) -> str:
            calls[name] = calls.get(name, 0) + 1
            return name

        async def hang() -> str:
            if not gate.is_set():
                await asyncio.sleep(60)
            return "done"

        kind = request.query_params["kind"]
        await step.run("first", count, f"{kind} first")
        if kind == "running":
            await step.run("hang", hang)
        elif kind == "sleeping":
            await step.sleep("nap", "1h")
        elif kind == "waiting":
            await step.wait_for_event("w", event="go", timeout="1h")
        elif kind == "retrying":
            await step.run("flaky", flaky)
        return PlainTextResponse(await step.run("last", count, f"{kind} last"))

    tries: list[int] = []

    def flaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError

    async with engine.client(one(engine, handler)) as client:
        headers = {"idempotency-key": "running"}
        running = asyncio.create_task(client.get("/?kind=running", headers=headers))
        locations = {}
        for kind in ("sleeping", "waiting", "retrying"):
            locations[kind] = (await client.get(f"/?kind={kind}")).headers["location"]
        await asyncio.sleep(0.05)
        await engine.crash()
        running.cancel()
        gate.set()
        await engine.start()
        await engine.settle()
        answer = await client.get("/?kind=running", headers=headers)
        assert answer.text == "running last"
        await engine.send_event("go")
        await engine.advance("1h")
        for kind, location in locations.items():
            assert (await client.get(location)).text == f"{kind} last"
    assert set(calls.values()) == {1}


@pytest.mark.parametrize(("when", "runs"), [("before", 1), ("after", 2), ("recorded", 1)], ids=str)
@pytest.mark.parametrize("at", range(4))
async def test_a_crash_loses_only_the_body_that_ran(
    engine: VirtualEngine, at: int, when: Any, runs: int
) -> None:
    """What was acknowledged never runs again."""
    calls: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        for n in range(4):
            await step.run(f"s{n}", calls.append, n)
        return PlainTextResponse("ok")

    engine.crash_at(f"s{at}", when)
    async with engine.client(one(engine, handler), reconnects=True) as client:
        assert (await client.get("/")).text == "ok"
    assert calls == sorted([*range(4), *[at] * (runs - 1)])


async def test_a_poison_run_is_parked_and_can_be_retried(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    poison = True
    began: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1s")
        began.append(1)
        if poison:
            await asyncio.sleep(60)  # until the process dies
        return PlainTextResponse("cured")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        run_id = run_id_of(response)
        await engine.settle()
        engine.clock.move_to(engine.clock.now() + 1_000)
        for crash in range(1, 7):
            while len(began) < crash:
                await asyncio.sleep(0.01)
            await engine.crash()
            await engine.start()
        await engine.settle()
        assert (await engine.run(run_id)).status is Status.PARKED
        answer = await client.get(response.headers["location"])
        assert (answer.status_code, answer.json()["error"]) == (503, "parked")
        assert f"runs retry {run_id}" in answer.json()["detail"]
        assert answer.headers["durable-run-status"] == "parked"
        assert f"runs retry {run_id}" in caplog.text
        poison = False
        assert await engine.host.retry(run_id)
        await engine.settle()
        assert (await client.get(response.headers["location"])).text == "cured"


async def test_a_run_in_quarantine_is_executed_alone(engine: VirtualEngine) -> None:
    beside: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1s")
        if "poison" in request.query_params:
            if len(beside) < 4:
                beside.append(len(engine.host.live))
                await asyncio.sleep(60)
            beside.append(len(engine.host.live))
        await asyncio.sleep(0.01)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        poison = await client.get("/?poison=1")
        others = [await client.get("/") for _ in range(5)]
        await engine.settle()
        engine.clock.move_to(engine.clock.now() + 1_000)
        for crash in range(1, 5):
            while len(beside) < crash:
                await asyncio.sleep(0.01)
            await engine.crash()
            await engine.start()
        for response in (poison, *others):
            assert (await client.get(response.headers["location"])).text == "ok"
    assert beside[3:] == [1, 1]


async def test_a_reentry_with_a_background_task_logs_no_error(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("x", background=BackgroundTask(asyncio.sleep, 0.05))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert (await follow(engine, client, response.headers["location"], "1h")).text == "x"
        await asyncio.sleep(0.1)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_application_can_be_used_again_after_its_end(tmp_path: Path) -> None:
    """As tests do: with its lifespan, and then without."""

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(await step.run("a", lambda: "done"))

    app = Starlette(
        routes=[Route("/", handler), Mount("/wait", endpoint_proxy())],
        middleware=[Middleware(DurableEndpointsMiddleware, database=str(tmp_path / "runs.db"))],
    )
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/", follow_redirects=False).text == "done"
        assert TestClient(app).get("/", follow_redirects=False).text == "done"
    with TestClient(app):
        pass  # so that its engine does not run on, for other tests to find


async def test_of_two_applications_on_one_engine_the_last_one_goes_on(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """As in tests that make an application each; and whoever does so by mistake is told."""

    def make(name: str) -> Any:
        @endpoint
        async def handler(request: Request) -> Response:
            await step.sleep("z", "1s")
            return PlainTextResponse(name)

        return one(engine, handler)

    for name in ("first", "second"):
        app = make(name)
        async with httpx.AsyncClient(
            transport=AppTransport(app), base_url="http://testserver", timeout=10
        ) as client:
            location = (await client.get("/")).headers["location"]
            await engine.advance("1s")
            assert (await client.get(location)).text == name
    assert "two applications of this process " in caplog.text
    await engine.stop()
