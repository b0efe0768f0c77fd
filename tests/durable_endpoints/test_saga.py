"""Sagas: what was done is undone when the block fails, last first, and only then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import (
    CompensationError,
    NestedStepError,
    NonRetriableError,
    NotInRunError,
    Saga,
    StepError,
    UsageError,
    endpoint,
    step,
)
from durable_endpoints.protocol import failures
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of

pytestmark = pytest.mark.anyio


class World:
    """What is booked, and everything that happened to it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def book(self, what: str) -> str:
        self.log.append(f"book {what}")
        return f"{what}-1"

    async def cancel(self, booking: str) -> object:
        self.log.append(f"cancel {booking}")
        return object()  # which no step could remember

    async def decline(self) -> None:
        self.log.append("decline")
        raise NonRetriableError("card declined")

    @property
    def undone(self) -> list[str]:
        return [line for line in self.log if line.startswith("cancel")]


class Declined(Exception):
    pass


def trip(
    world: World, failing: Callable[[], Awaitable[Any]], retries: int = 2
) -> Callable[[Request], Awaitable[Response]]:
    """A handler that books a flight and a hotel, and fails or not."""

    @endpoint(retries=retries)
    async def handler(request: Request) -> Response:
        async with Saga() as saga:
            flight = await step.run("flight", world.book, "flight")
            saga.add_compensation("cancel flight", world.cancel, flight)
            hotel = await step.run("hotel", world.book, "hotel")
            saga.add_compensation("cancel hotel", world.cancel, hotel)
            await failing()
        return PlainTextResponse("booked")

    return handler


UNDONE = ["cancel hotel-1", "cancel flight-1"]


async def failure_of(engine: VirtualEngine, response: httpx.Response) -> failures.Failure:
    ended = await engine.store.ended(run_id_of(response))
    assert ended is not None
    assert ended.run.status is Status.FAILED
    return failures.decode(ended.error or b"")


async def test_a_block_that_succeeds_undoes_nothing(engine: VirtualEngine) -> None:
    world = World()
    handler = trip(world, lambda: step.sleep("nap", "1h"))
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "booked"
    assert world.log == ["book flight", "book hotel"]


async def test_a_step_that_fails_for_good_undoes_what_came_before_it_last_first(
    engine: VirtualEngine,
) -> None:
    world = World()
    handler = trip(world, lambda: step.run("pay", world.decline))
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        assert response.status_code == 500
        assert world.log == ["book flight", "book hotel", "decline", *UNDONE]
        failure = await failure_of(engine, response)
        assert failure.name == "StepError"
        assert "card declined" in failure.message


async def test_a_failure_of_the_handler_itself_is_final_once_it_is_undone(
    engine: VirtualEngine,
) -> None:
    world = World()

    async def fail() -> None:
        world.log.append("fail")
        raise ValueError("no such card")

    async with engine.client(one(engine, trip(world, fail))) as client:
        response = await client.post("/")
        assert response.status_code == 500
        await engine.advance("1d")
        failure = await failure_of(engine, response)
    assert world.log == ["book flight", "book hotel", "fail", *UNDONE]
    assert failure.name == "NonRetriableError"
    assert "ValueError: no such card" in failure.message
    assert failure.cause is not None
    assert failure.cause.name == "ValueError"


async def test_a_failure_before_anything_was_done_is_retried_as_ever(
    engine: VirtualEngine,
) -> None:
    tries: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async with Saga():
            tries.append(1)
            if len(tries) == 1:
                raise ValueError("not yet")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.text == "done"


async def test_what_is_an_answer_stays_one(engine: VirtualEngine) -> None:
    world = World()
    app: FastAPI = fast(engine)

    @app.exception_handler(Declined)
    async def say_so(request: Request, error: Declined) -> Response:
        return PlainTextResponse("declined", 402)

    @app.get("/{how}")
    @endpoint
    async def handler(how: str) -> None:
        async with Saga() as saga:
            saga.add_compensation("undo", world.cancel, how)
            raise Declined if how == "own" else HTTPException(409, "sold out")

    async with engine.client(app) as client:
        assert (await client.get("/own")).status_code == 402
        assert (await client.get("/http")).status_code == 409
    assert world.log == ["cancel own", "cancel http"]


async def test_a_step_that_is_tried_again_later_undoes_nothing_meanwhile(
    engine: VirtualEngine,
) -> None:
    world = World()

    async def offline() -> None:
        world.log.append("pay")
        raise ConnectionError("offline")

    handler = trip(world, lambda: step.run("pay", offline))
    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        assert response.status_code == 303
        assert not world.undone
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.status_code == 500
    assert world.log == ["book flight", "book hotel", "pay", "pay", "pay", *UNDONE]


async def test_a_compensation_is_tried_again_and_runs_once(engine: VirtualEngine) -> None:
    world = World()

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        async with Saga(retries=1) as saga:

            async def flaky() -> None:
                await world.cancel("flaky")
                if len(world.undone) == 2:
                    raise ConnectionError("offline")

            saga.add_compensation("first", world.cancel, "first")
            saga.add_compensation("flaky", flaky)
            saga.add_compensation("last", world.cancel, "last")
            await step.run("pay", world.decline)
        return PlainTextResponse("")

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.status_code == 500
    assert world.undone == ["cancel last", "cancel flaky", "cancel flaky", "cancel first"]


async def test_a_compensation_that_fails_for_good_is_told_and_the_others_run(
    engine: VirtualEngine,
) -> None:
    world = World()
    caught: list[CompensationError] = []

    async def refuse(booking: str) -> None:
        raise NonRetriableError(f"{booking} cannot be cancelled")

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            async with Saga() as saga:
                saga.add_compensation("cancel flight", world.cancel, "flight")
                saga.add_compensation("cancel hotel", refuse, "hotel")
                saga.add_compensation("cancel car", refuse, "car")
                raise HTTPException(409)
        except CompensationError as error:
            caught.append(error)
            raise

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        assert response.status_code == 500
        await engine.advance("1d")
        failure = await failure_of(engine, response)
    [error] = caught  # it is not tried again
    assert world.undone == ["cancel flight"]
    assert isinstance(error.__cause__, HTTPException)
    assert list(error.failed) == ["cancel car", "cancel hotel"]
    assert isinstance(error.failed["cancel hotel"], StepError)
    assert "'cancel hotel': NonRetriableError: hotel cannot be cancelled" in failure.message
    assert "by hand" in failure.message


@pytest.mark.parametrize("when", ["before", "recorded"])
@pytest.mark.parametrize("lost", ["cancel hotel", "cancel flight"])
async def test_what_a_crash_left_undone_is_undone_by_the_next_process(
    engine: VirtualEngine, lost: str, when: Any
) -> None:
    world = World()

    @endpoint
    async def handler(request: Request) -> Response:
        async with Saga() as saga:
            for name in ("cancel flight", "cancel hotel"):
                await step.run(f"before {name}", world.book, name)
                saga.add_compensation(name, world.log.append, name)
            await step.run("pay", world.decline)
        return PlainTextResponse("")

    engine.crash_at(lost, when)
    async with engine.client(one(engine, handler), reconnects=True) as client:
        assert (await client.post("/")).status_code == 500
    assert world.log.count("decline") == 1
    assert world.undone == ["cancel hotel", "cancel flight"]


async def test_undoing_that_has_begun_is_finished_even_if_the_handler_gets_through_then(
    engine: VirtualEngine,
) -> None:
    """Its own code, between the steps, has failed only once."""
    world = World()
    passes: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async with Saga() as saga:
            saga.add_compensation("cancel flight", world.cancel, "flight")
            saga.add_compensation("cancel hotel", hesitant, "hotel")
            passes.append(1)
            if len(passes) == 1:
                raise ValueError("once")
        return PlainTextResponse("booked")

    async def hesitant(booking: str) -> None:
        await world.cancel(booking)
        if len(world.undone) == 1:
            raise ConnectionError("offline")

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.status_code == 500
        failure = await failure_of(engine, response)
    assert "an earlier execution of this run failed in this saga" in failure.message
    assert world.undone == ["cancel hotel", "cancel hotel", "cancel flight"]


async def test_a_step_beside_the_one_that_failed_is_heard_out_and_undone(
    engine: VirtualEngine,
) -> None:
    world = World()

    async def slowly(what: str) -> str:
        await asyncio.sleep(0.05)
        return await world.book(what)

    @endpoint
    async def handler(request: Request) -> Response:
        async with Saga() as saga:

            async def hotel() -> None:
                booking = await step.run("hotel", slowly, "hotel")
                saga.add_compensation("cancel hotel", world.cancel, booking)

            await asyncio.gather(hotel(), step.run("pay", world.decline))
        return PlainTextResponse("")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.post("/")).status_code == 500
    assert world.log == ["decline", "book hotel", "cancel hotel-1"]


async def test_sagas_nest_and_repeat(engine: VirtualEngine) -> None:
    world = World()

    @endpoint
    async def handler(request: Request) -> Response:
        attempts = 0
        async with Saga() as outer:
            outer.add_compensation("undo", world.cancel, "outer")
            for attempts in (1, 2, 3):
                try:
                    async with Saga() as inner:
                        inner.add_compensation("undo", world.cancel, f"inner {attempts}")
                        if attempts < 3:
                            await step.run("pay", world.decline)
                except StepError:
                    await step.sleep("again", "1m")
        return JSONResponse(attempts)

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == 3
    assert world.undone == ["cancel inner 1", "cancel inner 2"]


async def test_a_plain_handler_undoes_too(engine: VirtualEngine) -> None:
    world = World()
    threads: set[str] = set()

    def cancel(booking: str) -> object:
        threads.add(threading.current_thread().name)
        world.log.append(f"cancel {booking}")
        if world.log.count(f"cancel {booking}") == 1:
            raise ConnectionError("offline")
        return object()

    def decline() -> None:
        raise NonRetriableError("declined")

    @endpoint
    def handler(request: Request) -> Response:
        with Saga() as saga:
            saga.add_compensation("cancel flight", cancel, "flight")
            step.sync.sleep("nap", "1h")
            step.sync.run("pay", decline)
        return PlainTextResponse("")

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.status_code == 500
        assert (await failure_of(engine, response)).name == "StepError"
    assert world.undone == ["cancel flight", "cancel flight"]
    assert "MainThread" not in threads


async def test_a_plain_handler_hears_of_a_compensation_that_failed(engine: VirtualEngine) -> None:
    @endpoint(retries=0)
    def handler(request: Request) -> Response:
        with Saga() as saga:
            saga.add_compensation("undo", int, "x")
            raise ValueError("oh")
        return PlainTextResponse("")

    async with engine.client(one(engine, handler)) as client:
        failure = await failure_of(engine, await client.post("/"))
    assert failure.name == "CompensationError"
    assert "'undo': ValueError: invalid literal" in failure.message


async def test_a_timeout_inside_the_block_undoes_and_a_return_does_not(
    engine: VirtualEngine,
) -> None:
    world = World()

    @endpoint
    async def handler(request: Request) -> Response:
        async with Saga() as saga:
            saga.add_compensation("cancel flight", world.cancel, "flight")
            if "return" in request.query_params:
                return PlainTextResponse("sold out", 409)
            async with asyncio.timeout(0.02):
                await step.run("search", asyncio.sleep, 60)
        return PlainTextResponse("")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/?return")).status_code == 409
        assert not world.undone
        failure = await failure_of(engine, await client.get("/"))
    assert failure.name == "NonRetriableError"
    assert failure.message.startswith("TimeoutError")
    assert world.undone == ["cancel flight"]


async def test_a_run_that_has_no_step_left_says_what_is_not_undone() -> None:
    engine, world = VirtualEngine(max_steps=2), World()

    @endpoint
    async def handler(request: Request) -> Response:
        async with Saga() as saga:
            saga.add_compensation("cancel a", world.cancel, "a")
            saga.add_compensation("cancel b", world.cancel, "b")
            await step.run("pay", world.decline)
        return PlainTextResponse("")

    async with engine.client(one(engine, handler)) as client:
        failure = await failure_of(engine, await client.get("/"))
    assert failure.name == "CompensationError"
    assert "'cancel a': LimitError" in failure.message
    assert world.undone == ["cancel b"]


async def test_outside_a_request_it_calls_what_was_registered() -> None:
    world = World()
    with pytest.raises(NonRetriableError, match="ValueError: oh") as caught:
        async with Saga() as saga:
            saga.add_compensation("a", world.cancel, "a")
            saga.add_compensation("b", lambda: world.cancel("b"))
            raise ValueError("oh")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(HTTPException), Saga() as blocking:
        blocking.add_compensation("c", world.log.append, "cancel c")
        raise HTTPException(409)
    assert world.undone == ["cancel b", "cancel a", "cancel c"]


async def test_cancellation_undoes_nothing() -> None:
    world = World()

    async def handler() -> None:
        async with Saga() as saga:
            saga.add_compensation("a", world.cancel, "a")
            await asyncio.sleep(60)

    task = asyncio.create_task(handler())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not world.undone


async def test_mistakes_are_told_where_they_are_made(engine: VirtualEngine) -> None:
    world = World()

    async def inside() -> None:
        async with Saga() as saga:
            saga.add_compensation("x", world.cancel, "x")

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        saga = Saga()
        with pytest.raises(UsageError, match="outside the block"):
            saga.add_compensation("x", world.cancel, "x")
        async with saga:
            with pytest.raises(UsageError, match="pass the function itself"):
                saga.add_compensation("x", world.cancel("x"))  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="a step's id is a text"):
                saga.add_compensation("", world.cancel, "x")
        with pytest.raises(UsageError, match="outside the block"):
            saga.add_compensation("x", world.cancel, "x")
        with pytest.raises(UsageError, match=r"make a new Saga\(\)"):
            await saga.__aenter__()
        with pytest.raises(UsageError, match="`async with Saga"):
            Saga().__enter__()
        try:
            await step.run("nested", inside)
        except NestedStepError as error:
            assert "saga.add_compensation('x')" in str(error)
            return PlainTextResponse("told")
        return PlainTextResponse("not told")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).text == "told"


async def test_where_no_run_is_there_is_no_saga(engine: VirtualEngine) -> None:
    async def undecorated(request: Request) -> Response:
        async with Saga() as saga:
            with pytest.raises(NotInRunError, match="outside a run"):
                saga.add_compensation("x", print)
        return PlainTextResponse("told")

    @endpoint
    def plain(request: Request) -> Response:
        async def cancel() -> None: ...

        with Saga() as saga, pytest.raises(UsageError, match="is a plain `def`"):
            saga.add_compensation("x", cancel)
        return PlainTextResponse("told")

    for handler in (undecorated, plain):
        async with engine.client(one(engine, handler)) as client:
            assert (await client.get("/")).text == "told"
