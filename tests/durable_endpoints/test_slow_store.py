"""While the disk is slow, no body begins that builds on what is not on it."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from durable_endpoints import endpoint, remember, step
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, one
from tests.durable_endpoints_server.helpers import SlowStore, a_moment, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.embedded("the store is this process's"),
]


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def engine(store: SlowStore) -> VirtualEngine:
    engine = VirtualEngine()
    engine.store = store
    return engine


async def test_requests_with_one_key_that_come_together_do_the_work_once(
    engine: VirtualEngine, store: SlowStore
) -> None:
    """Neither finds the other's run, which is on its way to the disk."""
    began: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        return JSONResponse(await step.run("charge", began.append, "charged"))

    async with engine.client(one(engine, handler)) as client:
        store.holds = True
        headers = {"idempotency-key": "k"}
        asking = [asyncio.create_task(client.get("/", headers=headers)) for _ in range(3)]
        await until(lambda: len(store.held) == 3)
        await a_moment()
        assert began == []
        store.let_go()
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 3
    assert began == ["charged"]


async def test_a_body_waits_for_what_was_recorded_while_it_waited(
    engine: VirtualEngine, store: SlowStore
) -> None:
    began: list[str] = []
    gate = asyncio.Event()

    async def body(name: str) -> str:
        began.append(name)
        if name == "a":
            await until(lambda: "b" in began)
            store.holds = True
        elif name == "b":
            await gate.wait()
        return name

    async def in_turn() -> list[str]:
        return [await step.run(name, body, name) for name in ("a", "after a")]

    @endpoint
    async def handler(request: Request) -> Response:
        return JSONResponse(await asyncio.gather(in_turn(), step.run("b", body, "b")))

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await until(lambda: len(store.held) == 1)
        gate.set()
        await until(lambda: len(store.held) == 2)
        store.write(1)
        await a_moment()
        assert "after a" not in began
        store.let_go()
        assert (await asking).json() == [["a", "after a"], "b"]


async def test_no_body_begins_whose_run_was_taken_away_while_it_waited(
    engine: VirtualEngine, store: SlowStore
) -> None:
    began: list[str] = []

    async def body(name: str) -> None:
        began.append(name)
        store.holds = True

    @endpoint
    async def handler(request: Request) -> Response:
        for name in "ab":
            await step.run(name, body, name)
        return JSONResponse("never")

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await until(lambda: store.held)
        (live,) = engine.host.live.values()
        live._lost("lost")
        store.let_go()
        assert (await asking).status_code == 303
        assert began == ["a"]


async def test_a_body_waits_for_what_dependencies_have_remembered(
    engine: VirtualEngine, store: SlowStore
) -> None:
    began: list[str] = []
    app = fast(engine)

    @remember
    async def user() -> str:
        return "Ada"

    async def greet(name: str) -> None:
        began.append(name)

    @app.get("/")
    @endpoint
    async def handler(name: str = Depends(user)) -> None:
        await step.run("greet", greet, name)

    async with engine.client(app) as client:
        store.holds = True
        asking = asyncio.create_task(client.get("/"))
        await until(lambda: store.held)
        await a_moment()
        assert began == []
        store.let_go()
        assert (await asking).status_code == 200
    assert began == ["Ada"]
