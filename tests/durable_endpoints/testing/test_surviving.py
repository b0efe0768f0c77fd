from __future__ import annotations

import asyncio
import random
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, Request, Response

from durable_endpoints import Saga, endpoint, remember, send_event, send_signal, step
from durable_endpoints.encryption import StepEncryption
from durable_endpoints.testing import VirtualEngine, survives_crashes
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints.testing import shop
from tests.durable_endpoints.testing.shop import app

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fresh() -> None:
    shop.ran.clear()


@pytest.mark.parametrize("path", ["/orders/5", "/plain/5"])
async def test_a_sound_endpoint_survives(path: str) -> None:
    plays = 0

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        nonlocal plays
        plays += 1
        return await client.post(path, follow_redirects=True)

    response = await survives_crashes(app, scenario)
    assert response.json() == {"charged": "charged 5", "shipped": "shipped"}
    assert plays == 1 + 3 * 3
    # Once more in the two crashes after a body.
    assert shop.ran.count("charge") == plays + 1


async def test_a_scenario_may_send_events_and_leave_the_end_to_the_engine() -> None:
    async def scenario(client: httpx.AsyncClient) -> str:
        response = await client.post("/approval/7")
        assert response.status_code == 303
        await send_event("approved", {"id": 7, "by": "her"})
        return "sent"

    assert await survives_crashes(app, scenario) == "sent"


async def test_a_scenario_may_send_signals() -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        response = await client.get("/signalled")
        await send_signal("go", "now")
        return await client.get(response.headers["location"], follow_redirects=True)

    assert (await survives_crashes(app, scenario)).json() == "now"


async def test_the_ids_of_runs_and_events_may_differ() -> None:
    app = fast(None)

    @app.get("/")
    @endpoint
    async def handler(request: Request) -> Response:
        found = await step.wait_for_any("which", ["a", "b"], timeout="1h")
        assert found is not None
        return Response(found[0], headers={"x-found": found[1].id})

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        response = await client.get("/")
        await send_event("b")
        answer = await client.get(response.headers["location"], follow_redirects=True)
        return httpx.Response(answer.status_code, text=answer.headers["durable-run-id"])

    await survives_crashes(app, scenario)


async def test_plays_with_the_applications_lifespan() -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/greeting", follow_redirects=True)

    response = await survives_crashes(app, scenario, lifespan=True, whens=["recorded"])
    assert response.json() == "hello"


async def test_a_body_that_counts_is_found_out(engine: VirtualEngine) -> None:
    made: list[int] = []
    app = fast(None)

    def take_number() -> int:
        made.append(1)
        return len(made)

    @app.get("/")
    @endpoint
    async def handler() -> dict[str, int]:
        return {"number": await step.run("take number", take_number)}

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        made.clear()
        return await client.get("/", follow_redirects=True)

    with pytest.raises(AssertionError) as failure:
        await survives_crashes(app, scenario)
    message = str(failure.value)
    assert "a crash after 'take number':" in message
    assert "'take number': 2 instead of 1" in message
    assert 'answers 200 {"number":2} instead of 200 {"number":1}' in message
    assert "a crash before" not in message
    assert "a crash when" not in message
    assert "idempotent" in message


async def test_what_lies_between_steps_is_found_out() -> None:
    app = fast(None)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        drawn = random.random()  # belongs into a step
        await step.run("work", lambda: None)
        return str(await step.run("say", lambda: drawn))

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/", follow_redirects=True)

    with pytest.raises(AssertionError, match=r"'say': 0\.\d+ instead of 0\.\d+"):
        await survives_crashes(app, scenario)


async def test_steps_may_be_prepared_and_ignored(engine: VirtualEngine) -> None:
    app = fast(None)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        await step.run("random", random.random)
        return await step.run("ask", lambda: "nobody")

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/", follow_redirects=True)

    def prepare(engine: VirtualEngine) -> None:
        engine.fail("ask", times=2)
        engine.replace("ask", returns="somebody")

    response = await survives_crashes(app, scenario, prepare=prepare, ignore=["random"])
    assert response.json() == "somebody"


async def test_encrypted_values_are_compared_decrypted(engine: VirtualEngine) -> None:
    hooks = [StepEncryption("a key of at least thirty-two characters")]
    app = fast(None, hooks=hooks)
    drawn = iter(range(1_000))

    @app.get("/")
    @endpoint
    async def handler(sound: bool) -> None:
        await step.run("work", lambda: "done" if sound else next(drawn))

    def asks(sound: bool) -> Any:
        return lambda client: client.get(f"/?sound={sound}", follow_redirects=True)

    await survives_crashes(app, asks(True), hooks=hooks)
    with pytest.raises(AssertionError, match=r"'work': 1 instead of 0"):
        await survives_crashes(app, asks(False), hooks=hooks)
    with pytest.raises(AssertionError, match=r"(?s)__ENCRYPTED__.*given as `hooks`"):
        await survives_crashes(app, asks(True))


async def test_a_scenario_that_fails_after_every_crash_is_not_told_for_each() -> None:
    app = fast(None)
    plays = 0

    @app.get("/")
    @endpoint
    async def handler() -> None:
        for name in "abcdef":
            await step.run(name, lambda: None)

    async def scenario(client: httpx.AsyncClient) -> int:
        nonlocal plays
        plays += 1
        await client.get("/", follow_redirects=True)
        return plays

    with pytest.raises(AssertionError) as failure:
        await survives_crashes(app, scenario)
    assert str(failure.value).count("a crash") == 10
    assert "… and 8 more" in str(failure.value)


def _ada() -> str:
    return "Ada"


async def test_nothing_runs_in_a_process_that_was_lost_as_the_run_began(
    engine: VirtualEngine,
) -> None:
    app = fast(None)
    ran: list[str] = []

    async def work() -> None:
        ran.append("work")

    @app.get("/")
    @endpoint
    async def handler(user: Annotated[str, Depends(remember(_ada))]) -> str:
        await step.run("work", work)
        return user

    async def scenario(client: httpx.AsyncClient) -> None:
        ran.clear()
        await client.get("/", headers={"Idempotency-Key": "1"}, follow_redirects=True)
        assert ran == ["work"]

    await survives_crashes(app, scenario, whens=["before", "recorded"])


async def test_a_scenario_that_fails_after_a_crash_is_told(engine: VirtualEngine) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post("/orders/5", follow_redirects=True)
        assert shop.ran.count("charge") == 1, "charged twice"

    def prepare(engine: VirtualEngine) -> None:
        shop.ran.clear()

    with pytest.raises(AssertionError, match=r"a crash after 'charge':\n.*charged twice"):
        await survives_crashes(app, scenario, prepare=prepare)


async def test_a_scenario_that_fails_undisturbed_raises_what_it_raises() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await survives_crashes(app, scenario)


async def test_parallel_steps_and_compensation_survive() -> None:
    app = fast(None, retry_base="1s")

    async def book(what: str) -> str:
        await asyncio.sleep(0.001)
        return f"{what} booked"

    async def pay() -> None:
        raise PermissionError("no money")

    async def cancel(what: str) -> str:
        return f"{what} cancelled"

    @app.post("/trips")
    @endpoint(retries=1)
    async def trip() -> dict[str, Any]:
        async with Saga() as saga:
            saga.add_compensation("cancel flight", cancel, "flight")
            saga.add_compensation("cancel hotel", cancel, "hotel")
            await asyncio.gather(
                step.run("book flight", book, "flight"), step.run("book hotel", book, "hotel")
            )
            await step.run("pay", pay)
        return {}

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/trips", follow_redirects=True)

    response = await survives_crashes(app, scenario)
    assert response.status_code == 500
