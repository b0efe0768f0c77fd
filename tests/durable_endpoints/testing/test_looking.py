from __future__ import annotations

import httpx
import pytest

from durable_endpoints import endpoint, step, stream
from durable_endpoints.testing import UnknownRunError, VirtualEngine
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints.testing.shop import app

pytestmark = pytest.mark.anyio


async def test_runs_come_in_the_order_in_which_they_began(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        await client.post("/orders/1")
        await client.post("/approval/1")
        await client.post("/orders/2")
    assert [run.function_id for run in engine.runs()] == [
        "POST /orders/{amount}",
        "POST /approval/{id}",
        "POST /orders/{amount}",
    ]


async def test_without_an_id_the_only_run_is_meant(engine: VirtualEngine) -> None:
    with pytest.raises(UnknownRunError, match="no run has begun"):
        await engine.memo()
    async with engine.client(app) as client:
        await client.post("/orders/1")
        assert (await engine.values()) == {"charge": "charged 1"}
        await client.post("/orders/2")
        first, second = engine.runs()
        with pytest.raises(KeyError, match=rf"2 runs.*\n  {first.id} .* waiting\n  {second.id}"):
            await engine.values()
        assert (await engine.values(second.id)) == {"charge": "charged 2"}
        for look in (engine.memo, engine.stream, engine.response, engine.finish, engine.run):
            with pytest.raises(KeyError, match=rf"no run 'x'.*\n  {first.id}"):
                await look("x")


async def test_everything_can_be_looked_at_after_the_client_has_gone(
    engine: VirtualEngine,
) -> None:
    async with engine.client(app) as client:
        direct = await client.get("/text")
        assert await engine.response() is None
        await engine.advance("5m")
        through_wait = await client.get(direct.headers["location"])
    kept = await engine.response()
    assert isinstance(kept, httpx.Response)
    assert (kept.status_code, kept.json()) == (200, " or not")
    assert sorted(kept.headers.raw) == sorted(through_wait.headers.raw)
    assert str(kept.request.url) == "http://testserver/text"
    transcript = await engine.stream()
    assert transcript.committed_text == "to be or not"
    assert [attempt.error for attempt in await engine.attempts()] == [None]


async def test_a_stream_is_put_together_as_a_client_would(engine: VirtualEngine) -> None:
    app = fast(engine)

    async def write() -> None:
        for word in ("a", "b"):
            stream.push(word)
        tries = len(await engine.attempts("write"))
        if tries == 0:
            raise ConnectionError

    @app.get("/")
    @endpoint
    async def handler() -> str:
        stream.push("before ")
        await step.run("write", write)
        return "done"

    async with engine.client(app) as client:
        await client.get("/")
        assert (await engine.stream()).text == "before "
        await engine.finish()
    transcript = await engine.stream()
    assert transcript.committed_text == transcript.text == "before ab"
