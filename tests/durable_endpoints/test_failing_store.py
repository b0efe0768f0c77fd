"""A store that fails at the worst moments: the client hears of it, and no run is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from durable_endpoints import endpoint, step
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.settings import Settings
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.facts import Change, RunChanged, RunCreated, StepWritten
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import one, run_id_of
from tests.durable_endpoints_server.helpers import FlakyStore, an_end, anything, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def engine(store: FlakyStore) -> VirtualEngine:
    engine = VirtualEngine()
    engine.store = store
    return engine


class Counted:
    """A handler of two steps, and how often each body began."""

    def __init__(self) -> None:
        self.began: list[str] = []

    async def body(self, name: str) -> str:
        self.began.append(name)
        return name

    async def __call__(self, request: Request) -> Response:
        first = await step.run("first", self.body, "first")
        second = await step.run("second", self.body, "second")
        return PlainTextResponse(f"{first}, {second}")

    @property
    def handler(self) -> Any:
        async def handler(request: Request) -> Response:
            return await self(request)

        return endpoint(handler)


async def finished(engine: VirtualEngine, run_id: str) -> None:
    async with asyncio.timeout(5):
        while not (await engine.run(run_id)).status.is_final:
            await asyncio.sleep(0.005)


def refused(response: httpx.Response, reason: str = "full") -> None:
    assert response.status_code == 503
    problem = response.json()
    assert problem["error"] == "engine_unavailable"
    assert reason in problem["detail"]
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert "first, second" not in response.text


async def test_a_store_that_fails_at_the_completion(
    engine: VirtualEngine, store: FlakyStore
) -> None:
    """The client gets no answer that is not kept; the run ends by itself when the store works."""
    counted = Counted()
    store.fails = an_end
    async with engine.client(one(engine, counted.handler)) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        refused(response)
        run_id = run_id_of(response)
        assert response.headers["durable-run-status"] == "unavailable"
        assert response.headers["durable-step-executed"] == "second"
        assert (await engine.run(run_id)).status is not Status.COMPLETED
        store.fails = None
        await finished(engine, run_id)
        assert (await engine.run(run_id)).status is Status.COMPLETED
        repeated = await client.get("/", headers={"idempotency-key": "k"})
        assert (repeated.status_code, repeated.text) == (200, "first, second")
        assert run_id_of(repeated) == run_id
    assert counted.began == ["first", "second"]


async def test_a_store_that_goes_on_failing_is_asked_again_and_again(
    engine: VirtualEngine, store: FlakyStore
) -> None:
    counted = Counted()
    store.fails = an_end
    async with engine.client(one(engine, counted.handler)) as client:
        run_id = run_id_of(await client.get("/"))
        await until(lambda: len(store.refused) >= 3)
        store.fails = None
        await finished(engine, run_id)
    assert counted.began == ["first", "second"]


async def test_a_completion_that_fails_in_a_reentry(
    engine: VirtualEngine, store: FlakyStore
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("rested")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        store.fails = an_end
        waiting = asyncio.create_task(client.get(response.headers["location"]))
        engine.clock.move_to(engine.clock.now() + 3_600_000)
        await until(lambda: store.refused)
        assert not waiting.done()
        store.fails = None
        assert (await asyncio.wait_for(waiting, 5)).text == "rested"


async def test_a_stream_whose_completion_fails_is_cut_off(
    engine: VirtualEngine, store: FlakyStore
) -> None:
    """Its bytes are out, but not its end: the client knows that it has not the whole."""

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("first", lambda: 1)

        async def numbers() -> AsyncIterator[bytes]:
            for n in range(3):
                yield b"%d" % n

        return StreamingResponse(numbers())

    store.fails = an_end
    async with engine.client(one(engine, handler)) as client:
        received = b""
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("GET", "/") as response:
                async for chunk in response.aiter_raw():
                    received += chunk
        assert response.status_code == 200
        assert b"012".startswith(received)
        assert (await engine.run(run_id_of(response))).status is not Status.COMPLETED


async def test_a_failure_that_cannot_be_recorded(engine: VirtualEngine, store: FlakyStore) -> None:
    tries: list[int] = []

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        tries.append(1)
        raise ValueError("no ink")

    store.fails = an_end
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        refused(response)
        store.fails = None
        await finished(engine, run_id_of(response))
        run = await engine.run(run_id_of(response))
        assert (run.status, run.reason) == (Status.FAILED, "exception")
        assert (await client.get("/", headers={"idempotency-key": "k"})).status_code == 500


async def test_a_suspension_that_cannot_be_recorded(
    engine: VirtualEngine, store: FlakyStore
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("rested")

    def a_suspension(change: Change) -> bool:
        return any(
            isinstance(fact, RunChanged) and fact.run.status is Status.WAITING
            for fact in change.facts
        )

    store.fails = a_suspension
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        refused(response)
        store.fails = None
        async with asyncio.timeout(5):
            while (await engine.run(run_id_of(response))).status is not Status.WAITING:
                await asyncio.sleep(0.005)
        headers = {"idempotency-key": "k"}
        asking = client.get("/", headers=headers, follow_redirects=True)
        repeating = asyncio.create_task(asking)
        await engine.advance("1h")
        assert (await asyncio.wait_for(repeating, 5)).text == "rested"


async def test_a_step_that_cannot_be_recorded_stops_the_next(
    engine: VirtualEngine, store: FlakyStore
) -> None:
    counted = Counted()
    store.fails = lambda change: any(isinstance(fact, StepWritten) for fact in change.facts)
    async with engine.client(one(engine, counted.handler)) as client:
        response = await client.get("/")
        refused(response)
        assert response.headers["durable-step-executed"] == "first"
        assert counted.began == ["first"]
        store.fails = None
        await finished(engine, run_id_of(response))
    assert counted.began == ["first", "first", "second"]  # it was never acknowledged


@pytest.mark.parametrize(
    "is_new_to_it",
    [
        pytest.param(True, id="unnoticed"),
        pytest.param(
            False,
            id="known",
            marks=pytest.mark.embedded("whether a server's store is well, its answers tell"),
        ),
    ],
)
async def test_a_registration_that_fails_runs_nothing_twice_and_keeps_nothing(
    engine: VirtualEngine, store: FlakyStore, is_new_to_it: bool
) -> None:
    """At most the first body runs beside it, and then the client is told so."""
    counted = Counted()
    async with engine.client(one(engine, counted.handler)) as client:
        if is_new_to_it:
            # The engine was well a moment ago, so registration and first body overlap.
            store.fails = lambda change: isinstance(change.facts[0], RunCreated)
            store.__class__ = Unnoticed
        else:
            store.fails = anything
        response = await client.get("/")
        refused(response)
        assert counted.began == (["first"] if is_new_to_it else [])
        executed = response.headers.get("durable-step-executed")
        assert executed == ("first" if is_new_to_it else None)
        store.fails = None
        assert (await store.list_runs(list(Status), None, 10)).lines == []
        assert (await client.get("/")).text == "first, second"


class Unnoticed(FlakyStore):
    """Its failure is not known before the first write."""

    @property
    def is_healthy(self) -> bool:
        return True


async def test_a_503_of_ours_uses_no_key_up(engine: VirtualEngine, store: FlakyStore) -> None:
    counted = Counted()
    async with engine.client(one(engine, counted.handler)) as client:
        store.fails = anything
        refused(await client.get("/", headers={"idempotency-key": "k"}))
        assert counted.began == []
        store.fails = None
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert (response.status_code, response.text) == (200, "first, second")
    assert counted.began == ["first", "second"]


# The same on a real file


async def test_a_real_file_that_refuses_the_completion(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    counted = Counted()
    engine = EmbeddedEngine(Settings.load({"database": str(database)}, {}))
    app = one(engine, counted.handler)  # type: ignore[arg-type]
    transport = AppTransport(app)
    await engine.start(for_good=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://a", timeout=10) as client:
        assert (await client.get("/")).text == "first, second"
        other = apsw.Connection(str(database))
        other.set_busy_timeout(5_000)
        other.execute(
            "create trigger out_of_order before update of status on runs when new.status = 5 "
            "begin select raise(abort, 'out of order'); end"
        )
        headers = {"idempotency-key": "k"}
        response = await client.get("/", headers=headers)
        refused(response, "out of order")
        other.execute("drop trigger out_of_order")
        other.close()
        async with asyncio.timeout(10):
            while (await client.get("/", headers=headers)).status_code != 200:
                await asyncio.sleep(0.02)
        assert (await client.get("/", headers=headers)).text == "first, second"
    await engine.stop()
    assert counted.began == ["first", "second"] * 2
