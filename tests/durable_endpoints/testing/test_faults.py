from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from durable_endpoints import StepError, UsageError, endpoint, remember, step
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints.testing import shop
from tests.durable_endpoints.testing.shop import app

pytestmark = pytest.mark.anyio

PATHS = ["/orders/5", "/plain/5"]
DONE = {"charged": "charged 5", "shipped": "shipped"}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    shop.ran.clear()


@pytest.mark.parametrize("path", PATHS)
async def test_a_step_fails_as_often_as_it_is_told(engine: VirtualEngine, path: str) -> None:
    engine.fail("charge", times=2, error=ConnectionError("card reader offline"))
    async with engine.client(app) as client:
        await client.post(path)
        assert shop.ran == []
        assert (await engine.finish()).json() == DONE
    assert [(attempt.number, attempt.error) for attempt in await engine.attempts("charge")] == [
        (1, "ConnectionError: card reader offline"),
        (2, "ConnectionError: card reader offline"),
        (3, None),
    ]


async def test_a_step_that_always_fails_fails_the_run(engine: VirtualEngine) -> None:
    engine.fail("charge", times=None, error=PermissionError)
    async with engine.client(app) as client:
        await client.post("/orders/5")
        assert (await engine.finish()).status_code == 500
    assert len(await engine.attempts("charge")) == 4
    assert (await engine.run()).status is Status.FAILED
    assert (await engine.values()) == {}


async def test_one_run_fails_and_the_other_does_not(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        await client.post("/orders/1")
        await client.post("/orders/2")
        first, second = engine.runs()
        engine.fail("ship", run_id=second.id)
        for run in (first, second):
            await engine.finish(run.id)
        assert len(await engine.attempts("ship", first.id)) == 1
        assert len(await engine.attempts("ship", second.id)) == 2


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_is_replaced(engine: VirtualEngine, path: str) -> None:
    async def cheap(amount: int) -> str:
        return f"half of {amount}"

    engine.replace("charge", with_=cheap)
    engine.replace("ship", returns="by boat")
    async with engine.client(app) as client:
        await client.post(path)
        assert (await engine.finish()).json() == {"charged": "half of 5", "shipped": "by boat"}
    assert shop.ran == []


async def test_a_failure_comes_before_the_replacement(engine: VirtualEngine) -> None:
    engine.replace("charge", with_=lambda amount: "free")
    engine.fail("charge")
    async with engine.client(app) as client:
        await client.post("/orders/5")
        assert (await engine.finish()).json()["charged"] == "free"
    assert len(await engine.attempts("charge")) == 2


async def test_uses_of_a_name_are_told_apart(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler() -> list[int]:
        return [await step.run("n", lambda: 0) for _ in range(3)]

    engine.replace("n", returns=1)
    engine.replace("n:1", returns=2)
    async with engine.client(app) as client:
        assert (await client.get("/")).json() == [1, 2, 1]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("when", "charges"), [("before", 1), ("after", 2), ("recorded", 1)], ids=str
)
async def test_a_crash_in_the_clients_own_request(
    engine: VirtualEngine, path: str, when: Any, charges: int
) -> None:
    engine.crash_at("charge", when)
    async with engine.client(app) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="it crashed"):
            await client.post(path)
        assert shop.ran == ["charge"] * (when != "before")
        assert list(await engine.memo()) == ["charge"] * (when == "recorded")
        assert not engine.is_running
        await engine.restart()
        assert list(await engine.memo()) == ["charge", "cool down"]
        assert (await engine.finish()).json() == DONE
    assert shop.ran.count("charge") == charges


@pytest.mark.parametrize("step_name", ["cool down", "ship"])
@pytest.mark.parametrize("when", ["before", "after", "recorded"])
async def test_a_crash_on_the_way(engine: VirtualEngine, step_name: str, when: Any) -> None:
    engine.crash_at(step_name, when)
    async with engine.client(app) as client:
        try:
            await client.post("/orders/5")
        except httpx.RemoteProtocolError:
            assert (step_name, when) == ("cool down", "before")
        await engine.advance("2h")
        assert not engine.is_running
        assert await engine.response() is None
        await engine.restart()
        await engine.advance("2h")
        answer = await engine.response()
        assert answer is not None
        assert answer.json() == DONE
    assert shop.ran.count("ship") == (2 if (step_name, when) == ("ship", "after") else 1)


async def test_the_next_request_is_a_new_process(engine: VirtualEngine) -> None:
    engine.crash_at("ship", "recorded")
    async with engine.client(app) as client:
        location = (await client.post("/orders/5")).headers["location"]
        waiting = asyncio.create_task(client.get(location))
        await engine.advance("1h")
        with pytest.raises(httpx.RemoteProtocolError):
            await waiting
        assert (await client.get(location)).json() == DONE
    assert shop.ran == ["charge", "ship"]


@pytest.mark.embedded("a connection does not move to the event loop of the next request")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("with_lifespan", [True, False])
@pytest.mark.parametrize("when", ["before", "after", "recorded"])
def test_a_test_client_is_sent_to_wait_when_the_process_is_lost(
    path: str, with_lifespan: bool, when: Any
) -> None:
    with VirtualEngine() as engine:
        client = TestClient(app, follow_redirects=False)
        if with_lifespan:
            client.__enter__()
        engine.crash_at("charge", when)
        response = client.post(path)
        assert response.status_code == 303
        engine.sync.restart()
        engine.sync.advance("1h")
        assert client.get(response.headers["location"]).json() == DONE
        if with_lifespan:
            client.__exit__(None, None, None)


async def test_parallel_steps_are_lost_together(engine: VirtualEngine) -> None:
    app = fast(engine)
    ran: list[str] = []

    async def body(name: str) -> str:
        ran.append(name)
        await asyncio.sleep(0.001 if name == "quick" else 0.2)
        ran.append(f"{name} to its end")
        return name

    @app.get("/")
    @endpoint
    async def handler() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step.run(name, body, name)) for name in ("quick", "slow")]
        return [task.result() for task in tasks]

    engine.crash_at("quick", "recorded")
    async with engine.client(app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")
        await asyncio.sleep(0.03)
        assert ran == ["quick", "slow", "quick to its end"]
        await engine.restart()
        assert (await engine.finish()).json() == ["quick", "slow"]
    assert ran.count("quick") == 1


async def test_nothing_runs_in_a_process_that_is_lost(engine: VirtualEngine) -> None:
    """Not even the next step, whose body would have begun in the same turn of the event loop."""
    app = fast(engine)
    ran: list[str] = []

    @app.get("/")
    @endpoint
    async def handler() -> str:
        try:
            for name in ("a", "b", "c"):
                await step.run(name, ran.append, name)
        except Exception:
            ran.append("an exception")
        return "done"

    engine.crash_at("b", "recorded")
    async with engine.client(app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")
        assert ran == ["a", "b"]
        await engine.restart()
        assert (await engine.finish()).json() == "done"
    assert ran == ["a", "b", "c"]


async def test_every_client_in_flight_loses_its_connection(engine: VirtualEngine) -> None:
    app: FastAPI = fast(engine)

    @app.get("/plain")
    async def plain() -> None:
        await asyncio.sleep(10)

    @app.get("/durable")
    @endpoint
    async def durable() -> None:
        await step.run("long", asyncio.sleep, 10)

    async with engine.client(app) as client:
        flights = [asyncio.create_task(client.get(path)) for path in ("/plain", "/durable")]
        await asyncio.sleep(0.01)
        await engine.crash()
        outcomes = await asyncio.gather(*flights, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [httpx.RemoteProtocolError] * 2


async def test_a_crash_at_an_event(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        engine.crash_at("approval", "after")
        await client.post("/approval/1")
        with pytest.raises(Exception, match="crashed"):
            await engine.send_event("approved", {"id": 1, "by": "her"})
        await engine.restart()
        await engine.send_event("approved", {"id": 1, "by": "her"})
        assert (await engine.finish()).json() == {"by": "her"}


async def test_a_crash_at_a_remembered_dependency(engine: VirtualEngine) -> None:
    from fastapi import Depends

    app = fast(engine)
    asked: list[int] = []

    def user() -> str:
        asked.append(1)
        return "her"

    @app.get("/")
    @endpoint
    async def handler(user: str = Depends(remember(user))) -> str:
        await step.sleep("nap", "1h")
        return user

    async with engine.client(app) as client:
        await client.get("/")
        name = next(iter(await engine.values()))
    again = VirtualEngine()
    again.crash_at(name, "recorded")
    app = fast(again)
    app.get("/")(handler)
    async with again.client(app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")
        await again.restart()
        assert (await again.finish()).json() == "her"


async def test_a_supervised_process_comes_back_by_itself() -> None:
    engine = VirtualEngine(supervised=True)
    engine.crash_at("charge", "recorded")
    async with engine.client(app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/orders/5")
        assert (await engine.finish()).json() == DONE


@pytest.mark.parametrize(
    "wrong",
    [
        lambda engine: engine.fail(""),
        lambda engine: engine.fail("a", times=0),
        lambda engine: engine.fail("a", error="no exception"),
        lambda engine: engine.fail("a", error=StepError),
        lambda engine: engine.replace("a"),
        lambda engine: engine.replace("a", returns=1, with_=print),
        lambda engine: engine.crash_at("a", "in the middle"),
    ],
)
async def test_wrong_scripts_are_refused(engine: VirtualEngine, wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong(engine)


async def test_a_step_that_never_came_is_told() -> None:
    async def misspell(engine: VirtualEngine) -> None:
        async with engine.client(app) as client:
            engine.fail("chrge")
            engine.crash_at("x")
            await client.post("/orders/7")
            await engine.finish()

    with pytest.warns(UserWarning, match=r"fail\('chrge'\), crash_at\('x'\) never .*'charge'"):
        await misspell(VirtualEngine())
