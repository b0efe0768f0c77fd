from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from durable_endpoints import UsageError, endpoint, fetch_with_stream, step
from durable_endpoints.testing import VirtualEngine, standstill
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints.testing.shop import app

pytestmark = pytest.mark.anyio

HOUR = 3_600_000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "PATIENCE", 0.3)


async def test_finish_lets_only_as_much_time_pass_as_it_takes(engine: VirtualEngine) -> None:
    began = engine.clock.now()
    async with engine.client(app) as client:
        await client.post("/orders/5")
        assert (await engine.finish()).json()["shipped"] == "shipped"
    assert engine.clock.now() == began + HOUR


async def test_finish_says_what_a_run_waits_for(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        await client.post("/approval/1")
        with pytest.raises(TimeoutError, match=r"waits for wait_for_event 'approval'.* later than"):
            await engine.finish(within="1h")
        assert (await engine.finish()).json() == {"by": None}


async def test_finish_says_that_the_process_is_gone(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        await client.post("/orders/5")
        await engine.crash()
        with pytest.raises(TimeoutError, match=r"crashed: await engine\.restart\(\)"):
            await engine.finish()


async def test_the_answer_of_a_run_that_was_cancelled(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        await client.post("/orders/5")
        await engine.cancel((await engine.run()).id, "no")
        answer = await engine.finish()
    assert (answer.status_code, answer.json()["error"]) == (409, "cancelled")


async def test_a_client_that_waits_is_answered_at_once() -> None:
    engine = VirtualEngine(auto_advance=True)
    async with engine.client(app, follow_redirects=True) as client:
        answers = await asyncio.gather(*(client.post(f"/orders/{n}") for n in range(5)))
        assert [answer.json()["charged"] for answer in answers] == [
            f"charged {n}" for n in range(5)
        ]
        assert (await client.post("/approval/1")).json() == {"by": None}


async def test_time_does_not_jump_while_a_body_runs() -> None:
    engine = VirtualEngine(auto_advance=True)
    app = fast(engine)
    times: list[int] = []

    async def slow() -> None:
        times.append(engine.clock.now())
        await asyncio.sleep(0.05)
        times.append(engine.clock.now())

    @app.get("/")
    @endpoint
    async def handler() -> str:
        await asyncio.gather(step.run("slow", slow), step.sleep("nap", "1h"))
        await step.run("slow again", slow)
        return "done"

    async with engine.client(app, follow_redirects=True) as client:
        assert (await client.get("/")).json() == "done"
    began = times[0]
    assert times == [began, began, began + HOUR, began + HOUR]


async def test_time_stands_still_without_a_client_that_waits() -> None:
    engine = VirtualEngine(auto_advance=True)
    began = engine.clock.now()
    async with engine.client(app) as client:
        await client.post("/orders/5")
        await asyncio.sleep(0.05)
    assert engine.clock.now() == began


async def test_a_client_that_would_wait_for_ever_is_told(engine: VirtualEngine) -> None:
    async with engine.client(app, follow_redirects=True) as client:
        with pytest.raises(UsageError, match=r"waits for sleep 'cool down'.*engine\.advance"):
            await client.post("/orders/5")


async def test_a_stream_that_would_wait_for_ever_is_told(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        with pytest.raises(UsageError, match=r"waits for sleep 'think'.*engine\.advance"):
            await fetch_with_stream("/text", client=client)


def test_a_test_client_that_would_wait_for_ever_is_told() -> None:
    with (
        VirtualEngine().use(),
        pytest.raises(UsageError, match=r"waits for sleep 'cool down'.*engine\.advance"),
    ):
        TestClient(app).post("/orders/5")


async def test_a_client_that_waits_long_while_something_goes_on_is_not_disturbed(
    engine: VirtualEngine,
) -> None:
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        await step.sleep("nap", "1h")
        return await step.run("slow", asyncio.sleep, 0.6, "done")

    async with engine.client(app) as client:
        waiting = asyncio.create_task(client.get("/", follow_redirects=True))
        await engine.advance("1h")
        assert (await waiting).json() == "done"
