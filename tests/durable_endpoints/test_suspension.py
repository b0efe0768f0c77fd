"""Handlers of many shapes are unwound when they must wait, and finish when they are resumed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Depends
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from durable_endpoints import endpoint, step
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of
from tests.durable_endpoints_server.helpers import until

LOOPS = ["asyncio", "uvloop", *(["eager"] if sys.version_info >= (3, 12) else [])]


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    options = {"uvloop": {"use_uvloop": True}, "eager": {"loop_factory": eager_loop}}
    return "asyncio", options.get(request.param, {"use_uvloop": False})


pytestmark = pytest.mark.anyio

log: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    log.clear()


async def quick(name: str) -> str:
    log[name] += 1
    return name


async def slow(name: str) -> str:
    await asyncio.sleep(0.03)
    log[name] += 1
    return name


# Each shape suspends on one sleep (or several) and returns "done".


async def plain() -> None:
    await step.run("a", quick, "a")
    await step.sleep("nap", "1h")


async def except_exception() -> None:
    try:
        await step.sleep("nap", "1h")
    except Exception:
        log["caught"] += 1


async def suppress() -> None:
    with contextlib.suppress(Exception):
        await step.sleep("nap", "1h")


async def finally_with_await() -> None:
    try:
        await step.sleep("nap", "1h")
    finally:
        await asyncio.sleep(0)
        log["finally"] += 1


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[None]:
    log["open"] += 1
    try:
        yield
    except BaseException:
        await asyncio.sleep(0)
        log["rollback"] += 1
        raise
    else:
        log["commit"] += 1


async def in_a_session() -> None:
    async with session():
        await step.sleep("nap", "1h")


async def gather_steps() -> None:
    await asyncio.gather(step.run("slow", slow, "slow"), step.sleep("nap", "1h"))


async def nested_gathers() -> None:
    await asyncio.gather(
        asyncio.gather(step.run("slow", slow, "slow"), step.sleep("n1", "1h")),
        asyncio.gather(step.sleep("n2", "30m"), step.run("quick", quick, "quick")),
    )


async def two_sleeps() -> None:
    await asyncio.gather(step.sleep("n1", "1h"), step.sleep("n2", "30m"))


async def gather_return_exceptions() -> None:
    results = await asyncio.gather(
        step.run("a", quick, "a"), step.sleep("nap", "1h"), return_exceptions=True
    )
    assert results == ["a", None], results


async def wait_all() -> None:
    tasks = [
        asyncio.ensure_future(step.run("a", quick, "a")),
        asyncio.ensure_future(step.sleep("nap", "1h")),
    ]
    done, _ = await asyncio.wait(tasks)
    assert [task.exception() for task in done] == [None, None]


async def gather_with_plain_io() -> None:
    async def io() -> None:
        await asyncio.sleep(0.05)
        log["io"] += 1

    await asyncio.gather(io(), step.sleep("nap", "1h"))


async def task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(step.run("slow", slow, "slow"))
        group.create_task(step.sleep("nap", "1h"))


async def task_group_except_star() -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step.sleep("nap", "1h"))
    except* ValueError:
        log["caught"] += 1


async def anyio_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(step.run, "slow", slow, "slow")
        group.start_soon(step.sleep, "nap", "1h")


async def timeout_around() -> None:
    async with asyncio.timeout(60):
        await step.sleep("nap", "1h")


async def wait_for_around() -> None:
    await asyncio.wait_for(step.sleep("nap", "1h"), 60)


async def fail_after_around() -> None:
    with anyio.fail_after(60):
        await step.sleep("nap", "1h")


async def shielded_scope() -> None:
    with anyio.CancelScope(shield=True):
        await step.sleep("nap", "1h")


async def shield_around() -> None:
    await asyncio.shield(step.sleep("nap", "1h"))


async def as_completed() -> None:
    for future in asyncio.as_completed([step.sleep("nap", "1h"), step.run("a", quick, "a")]):
        await future


async def a_task_awaited_later() -> None:
    task = asyncio.create_task(step.run("slow", slow, "slow"))
    await step.sleep("nap", "1h")
    await task


async def deep() -> None:
    async def level(n: int) -> None:
        if n == 0:
            await asyncio.gather(step.run("slow", slow, "slow"), step.sleep("nap", "1h"))
        else:
            await asyncio.gather(level(n - 1))

    await level(8)


async def groups_in_groups() -> None:
    async def level(n: int) -> None:
        async with asyncio.TaskGroup() as group:
            if n == 0:
                group.create_task(step.run("slow", slow, "slow"))
                group.create_task(step.sleep("nap", "1h"))
            else:
                group.create_task(level(n - 1))

    await level(6)


SHAPES = [
    plain,
    except_exception,
    suppress,
    finally_with_await,
    in_a_session,
    gather_steps,
    nested_gathers,
    two_sleeps,
    gather_return_exceptions,
    wait_all,
    gather_with_plain_io,
    task_group,
    task_group_except_star,
    anyio_group,
    timeout_around,
    wait_for_around,
    fail_after_around,
    shielded_scope,
    shield_around,
    as_completed,
    a_task_awaited_later,
    deep,
    groups_in_groups,
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
async def test_a_shape_suspends_and_finishes(
    engine: VirtualEngine, shape: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cancelling: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        task = asyncio.current_task()
        assert task is not None
        try:
            await shape()
        finally:
            log["unwound"] += 1
        cancelling.append(task.cancelling())
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303, response.text
        assert log["unwound"] == 1
        assert log["caught"] == 0
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert (answer.status_code, answer.text) == (200, "done")
    assert log["slow"] <= 1, "a step that had been checkpointed ran again"
    assert cancelling == [0]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    gc.collect()


async def test_a_slow_sibling_is_checkpointed_before_the_redirect(engine: VirtualEngine) -> None:
    for shape in (gather_steps, task_group, anyio_group, deep, groups_in_groups):
        log.clear()

        @endpoint
        async def handler(request: Request, shape: Any = shape) -> Response:
            await shape()
            return PlainTextResponse("done")

        async with engine.client(one(engine, handler)) as client:
            response = await client.get("/")
            assert response.status_code == 303
            memo = await engine.memo(run_id_of(response))
            assert memo["slow"].value == b'"slow"'
            assert log["slow"] == 1


async def test_a_body_that_runs_as_its_handler_fails_is_heard_out(engine: VirtualEngine) -> None:
    began: list[int] = []
    passes = 0

    async def slow() -> str:
        began.append(1)
        await asyncio.sleep(0.05)
        return "once"

    @endpoint
    async def handler(request: Request) -> Response:
        nonlocal passes
        passes += 1
        task = asyncio.ensure_future(step.run("slow", slow))
        await asyncio.sleep(0.01)
        if passes == 1:
            raise ValueError("not yet")
        return PlainTextResponse(await task)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "10s")
        assert answer.text == "once"
    assert (len(began), passes) == (1, 2)


async def test_a_plain_branch_beside_a_sleep_is_cancelled_and_done_again(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await gather_with_plain_io()
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await asyncio.sleep(0.1)
        assert log["io"] == 0
        await follow(engine, client, response.headers["location"], "1h")
        assert log["io"] == 1


async def test_a_race_is_won_by_the_same_branch_in_a_replay(engine: VirtualEngine) -> None:
    winners: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        tasks = {
            asyncio.create_task(step.run("b", slow, "b"), name="b"),
            asyncio.create_task(step.run("a", quick, "a"), name="a"),
        }
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winners.append(",".join(sorted(task.get_name() for task in done)))
        await asyncio.wait(tasks)
        await step.sleep("nap", "1h")
        return PlainTextResponse(winners[-1])

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "a"
    assert winners == ["a", "a"]


async def test_a_race_of_a_step_and_a_sleep(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        work = asyncio.create_task(step.run("work", slow, "work"))
        nap = asyncio.create_task(step.sleep("nap", "1h"))
        done, pending = await asyncio.wait({work, nap}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return PlainTextResponse("work" if work in done else "nap")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (200, "work")


async def test_memo_results_come_in_their_order_of_completion(engine: VirtualEngine) -> None:
    orders: list[list[str]] = []

    @endpoint
    async def handler(request: Request) -> Response:
        order: list[str] = []
        orders.append(order)

        async def wait_then_note(name: str, delay: float) -> None:
            async def body() -> str:
                await asyncio.sleep(delay)
                return name

            order.append(await step.run(name, body))

        await asyncio.gather(
            wait_then_note("third", 0.06),
            wait_then_note("first", 0.0),
            wait_then_note("second", 0.03),
        )
        await step.sleep("nap", "1h")
        return JSONResponse(order)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == ["first", "second", "third"]
    assert orders == [["first", "second", "third"]] * 2


async def test_a_step_in_a_task_that_nobody_awaits_does_not_hold_up_the_answer(
    engine: VirtualEngine,
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    @endpoint
    async def handler(request: Request) -> Response:
        tasks.append(asyncio.create_task(step.sleep("nap", "1h")))
        await asyncio.sleep(0)
        return PlainTextResponse("at once")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (200, "at once")
        await asyncio.sleep(0.01)
        assert tasks[0].cancelled()
        assert await engine.store.next_due() is None


# Dependencies


async def test_yield_dependencies_are_unwound(engine: VirtualEngine) -> None:
    app = fast(engine)

    async def async_dependency() -> AsyncIterator[str]:
        async with session():
            yield "s"

    def sync_dependency() -> Iterator[str]:
        try:
            yield "t"
        except BaseException:
            log["sync rollback"] += 1
            raise
        finally:
            log["sync exit"] += 1

    @app.get("/")
    @endpoint
    async def handler(s: str = Depends(async_dependency), t: str = Depends(sync_dependency)) -> str:
        await step.sleep("nap", "1h")
        return s + t

    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.status_code == 303
        assert (log["open"], log["rollback"], log["commit"]) == (1, 1, 0)
        assert (log["sync rollback"], log["sync exit"]) == (1, 1)
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == "st"
        # What follows a yield comes after the answer.
        await until(lambda: (log["commit"], log["sync exit"]) == (1, 2))
        assert log["rollback"] == 1


async def test_a_dependency_that_swallows_the_signal_changes_nothing(engine: VirtualEngine) -> None:
    app = fast(engine)

    async def swallowing() -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            log["swallowed"] += 1

    @app.get("/")
    @endpoint
    async def handler(_: None = Depends(swallowing)) -> str:
        await step.sleep("nap", "1h")
        return "done"

    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == "done"


# Middlewares


class CatchAll(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        try:
            response: Response = await call_next(request)
        except BaseException as error:
            log[type(error).__name__] += 1
            return PlainTextResponse("middleware's own 500", 500)
        response.headers["x-middleware"] = "1"
        log[f"status {response.status_code}"] += 1
        return response


@pytest.mark.parametrize("shape", [plain, gather_steps, anyio_group, task_group])
async def test_a_catch_all_middleware_inside_does_not_matter(
    engine: VirtualEngine, shape: Any
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await shape()
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler, inside=[Middleware(CatchAll)])) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert (answer.status_code, answer.text) == (200, "done")
        assert answer.headers["x-middleware"] == "1"


class Apologies(BaseHTTPMiddleware):
    """Its answer begins before it is complete."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        async def words() -> AsyncIterator[str]:
            yield "some"
            yield "thing"

        try:
            response: Response = await call_next(request)
        except BaseException:
            return StreamingResponse(words(), 500)
        return response


async def test_an_answer_that_begins_while_the_handler_is_unwound_is_not_heard(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler, inside=[Middleware(Apologies)])) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (303, "")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert (answer.status_code, answer.text) == (200, "done")


async def test_a_middleware_outside_sees_an_ordinary_redirect(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("done")

    app = one(engine, handler)
    app.add_middleware(CatchAll)
    async with engine.client(app) as client:
        response = await client.get("/")
        assert response.status_code == 303
        assert log["status 303"] == 1
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "done"


# Swallowed signals


async def swallow_base_exception() -> str:
    try:
        await step.sleep("nap", "1h")
    except BaseException:
        log["swallowed"] += 1
    return "did not wait"


async def swallow_cancellation_of_a_gather() -> str:
    try:
        await asyncio.gather(step.sleep("nap", "1h"), step.sleep("other", "1h"))
    except asyncio.CancelledError:
        log["swallowed"] += 1
    return "did not wait"


async def swallow_and_raise_something_else() -> str:
    try:
        await step.sleep("nap", "1h")
    except BaseException:
        log["swallowed"] += 1
        raise ValueError("instead") from None
    return "waited"


async def swallow_and_go_on_with_steps() -> str:
    try:
        await step.sleep("nap", "1h")
    except BaseException:
        log["swallowed"] += 1
    await step.run("after", quick, "after")
    return "waited"


@pytest.mark.parametrize(
    "shape",
    [
        swallow_base_exception,
        swallow_cancellation_of_a_gather,
        swallow_and_raise_something_else,
        swallow_and_go_on_with_steps,
    ],
)
async def test_swallowing_the_signal_changes_nothing_and_is_reported(
    engine: VirtualEngine, shape: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        return PlainTextResponse(f"{await shape()}, {log['swallowed']} swallowed")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        assert log["after"] == 0
        await follow(engine, client, response.headers["location"], "1h")
        # The second pass did not have to wait, so it swallowed nothing.
        assert log["swallowed"] == 1
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    if shape is not swallow_and_go_on_with_steps:  # there, the next step unwinds it after all
        assert len(errors) == 1
        assert "caught the signal that unwinds it" in errors[0]
        if shape is not swallow_cancellation_of_a_gather:
            assert f"in {shape.__qualname__} ({__file__}:" in errors[0]


async def test_a_handler_that_could_not_unwind_in_a_process_that_stood_still_is_waited_for(
    engine: VirtualEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("durable_endpoints.ending._UNWIND_GRACE", 0.05)

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await step.sleep("nap", "1h")
        finally:
            time.sleep(0.7)
            await asyncio.sleep(0.01)
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await asyncio.wait_for(client.get("/"), 5)
        assert response.status_code == 303
        assert "does not give way" not in caplog.text


async def test_a_handler_that_will_not_end_is_left_behind(
    engine: VirtualEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("durable_endpoints.ending._UNWIND_GRACE", 0.05)
    gate = asyncio.Event()

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await step.sleep("nap", "1h")
        except BaseException:
            await gate.wait()
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await asyncio.wait_for(client.get("/"), 5)
        assert response.status_code == 303
        assert "does not give way" in caplog.text
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.text == "done"
        gate.set()


async def test_no_task_is_left_pending(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await nested_gathers()
        await shield_around()
        return PlainTextResponse("done")

    before = asyncio.all_tasks()
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "3h")
        assert answer.text == "done"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_suspended_clients_may_ask_with_any_method(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        body = await request.body()
        await step.sleep("nap", "1h")
        return PlainTextResponse(f"{request.method} {body.decode()}")

    async with engine.client(one(engine, handler)) as client:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            response: httpx.Response = await client.request(method, "/", content=b"x")
            assert response.status_code == 303
            answer = await follow(engine, client, response.headers["location"], "1h")
            assert answer.text == f"{method} x"
