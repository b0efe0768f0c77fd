"""Middlewares that give up on a request lose no run, and nobody invents an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import follow, run_id_of

pytestmark = pytest.mark.anyio


class Impatient:
    """Answers 504 itself when the application takes too long with one of the first requests."""

    patience = 0.05
    times = 1

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/wait") or not self.times:
            await self.app(scope, receive, send)
            return
        self.times -= 1
        has_begun = False

        async def observe(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await asyncio.wait_for(self.app(scope, receive, observe), self.patience)
        except TimeoutError:
            if not has_begun:
                await PlainTextResponse("too late", 504)(scope, receive, send)


class ImpatientTwice(Impatient):
    """Impatient with the request and with its re-entry."""

    times = 2


class ImpatientBase(BaseHTTPMiddleware):
    """The same with Starlette's base class."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        if "idempotency-key" in request.headers:
            return await call_next(request)
        try:
            return await asyncio.wait_for(call_next(request), 0.05)
        except TimeoutError:
            return PlainTextResponse("too late", 504)


class Handler:
    """Two steps with something slow in one place."""

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.began: list[str] = []
        self.ended: list[str] = []

    async def _pause(self, where: str) -> None:
        if where == self.slow:
            await asyncio.sleep(0.15)

    async def _body(self, name: str) -> str:
        self.began.append(name)
        await self._pause(f"in {name}")
        self.ended.append(name)
        return name

    async def handle(self, request: Request) -> Response:
        first = await step.run("first", self._body, "first")
        await self._pause("between")
        second = await step.run("second", self._body, "second")
        await self._pause("at the end")
        return PlainTextResponse(f"{first}, {second}")


ANSWER = "first, second"
SLOW = ["in first", "between", "in second", "at the end"]


def application(
    engine: VirtualEngine, handler: Handler, outside: Any = None, inside: Any = None
) -> Starlette:
    middleware = [Middleware(DurableEndpointsMiddleware, engine=engine)]
    if outside is not None:
        middleware.insert(0, Middleware(outside))
    if inside is not None:
        middleware.append(Middleware(inside))
    route = Route("/", endpoint(handler.handle), methods=["GET", "POST"])
    return Starlette(routes=[route, Mount("/wait", endpoint_proxy())], middleware=middleware)


async def ended(engine: VirtualEngine, run_id: str) -> Status:
    async with asyncio.timeout(5):
        while not (status := (await engine.run(run_id)).status).is_final:
            await asyncio.sleep(0.005)
    return status


async def only_run(engine: VirtualEngine) -> str:
    (line,) = (await engine.store.list_runs(list(Status), None, 10)).lines
    return line.run.id


@pytest.mark.parametrize("slow", SLOW)
async def test_a_timeout_outside_hands_the_run_over(engine: VirtualEngine, slow: str) -> None:
    """The client is told where its answer will be, and that is what the run comes to."""
    handler = Handler(slow)
    app = application(engine, handler, outside=Impatient)
    async with engine.client(app) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert response.status_code == 303
        assert response.headers["durable-run-status"] == "running"
        answer = await asyncio.wait_for(client.get(response.headers["location"]), 5)
        assert (answer.status_code, answer.text) == (200, "first, second")
        repeated = await client.get("/", headers={"idempotency-key": "k"})
        assert (repeated.status_code, repeated.text) == (200, "first, second")
        assert run_id_of(repeated) == run_id_of(response)
    assert handler.ended == ["first", "second"]  # no result that was kept is made again
    assert handler.began.count("second") <= 2


async def test_a_timeout_around_the_whole_application(engine: VirtualEngine) -> None:
    """It is not part of the application, so a re-entry does not pass it."""
    handler = Handler("between")
    app = application(engine, handler)
    async with engine.client(Impatient(app)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await asyncio.wait_for(client.get(response.headers["location"]), 5)
        assert answer.text == "first, second"


@pytest.mark.parametrize("slow", SLOW)
async def test_a_timeout_inside_is_the_applications_own_answer(
    engine: VirtualEngine, slow: str
) -> None:
    """As it would be without us; and like any answer it is kept."""
    handler = Handler(slow)
    app = application(engine, handler, inside=Impatient)
    async with engine.client(app) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert (response.status_code, response.text) == (504, "too late")
        assert await ended(engine, run_id_of(response)) is Status.COMPLETED
        repeated = await client.get("/", headers={"idempotency-key": "k"})
        assert (repeated.status_code, repeated.text) == (504, "too late")
        assert engine.host.live == {}


@pytest.mark.parametrize("slow", SLOW)
async def test_a_base_http_middleware_outside_answers_for_itself(
    engine: VirtualEngine, slow: str
) -> None:
    """It only stops listening: the run goes on in the same execution, and its answer is kept."""
    handler = Handler(slow)
    app = application(engine, handler, outside=ImpatientBase)
    async with engine.client(app) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (504, "too late")
        assert "durable-run-id" not in response.headers
        run_id = await only_run(engine)
        assert await ended(engine, run_id) is Status.COMPLETED
        outcome = await engine.outcome(run_id, 0)
        assert outcome is not None
        assert outcome.response is not None
        assert outcome.response.body == b"first, second"
    assert handler.began == ["first", "second"]


async def test_a_cancellation_in_a_reentry_is_tried_again(engine: VirtualEngine) -> None:
    """A middleware that is impatient with the re-entry, too, does not end the run."""
    handler = Handler("between")
    app = application(engine, handler, outside=ImpatientTwice)
    async with engine.client(app) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert response.status_code == 303
        assert (await follow(engine, client, response.headers["location"], "5s")).text == ANSWER
    assert handler.ended == ["first", "second"]


async def test_a_middleware_that_never_lets_a_reentry_end(engine: VirtualEngine) -> None:
    """The budget of retries ends it, or it would go round for ever."""

    class Always(Impatient):
        times = 10**9

    handler = Handler("in first")
    async with engine.client(application(engine, handler, outside=Always)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.status_code == 500
        run = await engine.run(run_id_of(response))
        assert (run.status, run.reason) == (Status.FAILED, "exception")
    assert handler.began == ["first"] * 5


async def test_a_cancellation_while_it_waits_to_suspend(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        async def slow() -> int:
            await asyncio.sleep(0.15)
            return 1

        async with asyncio.TaskGroup() as group:
            group.create_task(step.sleep("nap", "1h"))
            group.create_task(step.run("slow", slow))
        return PlainTextResponse("rested")

    app = Starlette(
        routes=[Route("/", handler), Mount("/wait", endpoint_proxy())],
        middleware=[Middleware(Impatient), Middleware(DurableEndpointsMiddleware, engine=engine)],
    )
    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.status_code == 303
        waiting = asyncio.create_task(
            client.get(response.headers["location"], follow_redirects=True)
        )
        await asyncio.sleep(0.3)
        await engine.advance("1h")
        assert (await asyncio.wait_for(waiting, 5)).text == "rested"


async def test_a_client_of_the_test_transport_that_is_cancelled(engine: VirtualEngine) -> None:
    """The request goes away with its task; the run does not."""
    handler = Handler("between")
    async with engine.client(application(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait([asking])
        assert await ended(engine, await only_run(engine)) is Status.COMPLETED
    assert handler.began == ["first", "second"]


async def test_a_handler_that_raises_a_cancellation_of_its_own_is_tried_again(
    engine: VirtualEngine,
) -> None:
    """Nobody cancelled it: it awaited something that somebody else cancelled."""
    times: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("first", lambda: 1)
        times.append(1)
        if len(times) == 1:
            raise asyncio.CancelledError
        return PlainTextResponse("done")

    app = Starlette(
        routes=[Route("/", handler), Mount("/wait", endpoint_proxy())],
        middleware=[Middleware(DurableEndpointsMiddleware, engine=engine)],
    )
    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.status_code == 303
        assert (await follow(engine, client, response.headers["location"], "5s")).text == "done"
    assert len(times) == 2


async def test_nothing_is_left_pending(engine: VirtualEngine) -> None:
    handler = Handler("in second")
    app = application(engine, handler, outside=Impatient)
    async with engine.client(app) as client:
        response = await client.get("/")
        await client.get(response.headers["location"])
        await engine.settle()
        assert engine.host.live == {}
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@pytest.mark.parametrize("is_plain", [False, True])
async def test_a_run_that_is_cancelled_on_the_way_to_its_handler_begins_no_body(
    engine: VirtualEngine, is_plain: bool
) -> None:
    """A dependency, a middleware: a re-entry may take its time before it is in the handler."""
    entered: list[str] = []
    on_the_way, go_on = asyncio.Event(), asyncio.Event()

    async def waits(request: Request) -> Response:
        entered.append("handler")
        await step.sleep("nap", "1h")
        await step.run("work", entered.append, "work")
        return PlainTextResponse("done")

    def waits_plain(request: Request) -> Response:
        entered.append("handler")
        step.sync.sleep("nap", "1h")
        step.sync.run("work", entered.append, "work")
        return PlainTextResponse("done")

    class Slow:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("durable_endpoints", {}).get("reentry"):
                on_the_way.set()
                await go_on.wait()
            await self.app(scope, receive, send)

    app = Starlette(
        routes=[Route("/", endpoint(waits_plain if is_plain else waits), methods=["POST"])],
        middleware=[
            Middleware(DurableEndpointsMiddleware, engine=engine),
            Middleware(Slow),
        ],
    )
    async with engine.client(app) as client:
        response = await client.post("/")
        passing = asyncio.create_task(engine.advance("1h"))
        await asyncio.wait_for(on_the_way.wait(), 5)
        assert await engine.cancel(run_id_of(response), "by hand")
        go_on.set()
        await passing
        assert entered == ["handler"]
        assert (await engine.run()).status is Status.CANCELLED
        assert engine.is_quiet
