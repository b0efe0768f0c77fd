from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from durable_endpoints import UsageError, endpoint, fetch_with_stream, send_event, send_signal
from durable_endpoints.step import step
from durable_endpoints.testing import UnknownRunError, VirtualEngine
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints.testing import shop
from tests.durable_endpoints.testing.shop import app


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be written to disk."""
    shop.ran.clear()
    shop.started.clear()
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/orders/5", "/plain/5"])
async def test_an_application_as_it_is(path: str) -> None:
    engine = VirtualEngine()
    async with engine.client(app) as client:
        response = await client.post(path)
        assert response.status_code == 303
        await engine.advance("1h")
        answer = await client.get(response.headers["location"])
        assert answer.json() == {"charged": "charged 5", "shipped": "shipped"}
    assert shop.started == []


@pytest.mark.anyio
async def test_the_next_test_has_an_engine_of_its_own() -> None:
    for _ in range(2):
        engine = VirtualEngine()
        async with engine.client(app) as client:
            await client.post("/orders/5")
            assert len(engine.runs()) == 1
            assert (await engine.finish()).status_code == 200


@pytest.mark.anyio
async def test_what_a_server_would_log_is_logged(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    app = fast(None)

    @app.get("/broken")
    @endpoint(retries=0)
    async def broken() -> None:
        raise LookupError("why it is a 500")

    async with engine.client(app) as client:
        assert (await client.get("/broken")).status_code == 500
    [record] = caplog.records
    assert record.exc_info is not None
    assert "why it is a 500" in str(record.exc_info[1])


@pytest.mark.anyio
async def test_an_engine_may_have_one_client_after_the_other(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        await client.post("/orders/5")
    async with engine.client(app):
        assert (await engine.finish()).json()["shipped"] == "shipped"


@pytest.mark.anyio
async def test_a_client_with_the_applications_lifespan(engine: VirtualEngine) -> None:
    async with engine.client(app, lifespan=True) as client:
        assert shop.started == ["up"]
        await client.get("/greeting")
        assert (await engine.finish()).json() == "hello"
    assert shop.started == ["up", "down"]


@pytest.mark.anyio
async def test_a_test_that_fails_shuts_its_application_down(engine: VirtualEngine) -> None:
    with pytest.raises(ZeroDivisionError):
        async with engine.client(app, lifespan=True):
            raise ZeroDivisionError
    assert shop.started == ["up", "down"]


@pytest.mark.anyio
async def test_a_lifespan_that_fails_is_raised(engine: VirtualEngine) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with engine.client(broken, lifespan=True):
            pass


@pytest.mark.parametrize("with_lifespan", [True, False])
@pytest.mark.parametrize("path", ["/orders/5", "/plain/5"])
def test_a_test_client(path: str, with_lifespan: bool) -> None:
    engine = VirtualEngine()
    with engine.use():
        client = TestClient(app, follow_redirects=False)
        if with_lifespan:
            client.__enter__()
        location = client.post(path).headers["location"]
        assert engine.sync.values() == {"charge": "charged 5"}
        engine.sync.advance("1h")
        assert engine.sync.values() == {
            "charge": "charged 5",
            "cool down": None,
            "ship": "shipped",
        }
        assert client.get(location).json()["shipped"] == "shipped"
        assert engine.sync.finish().json()["shipped"] == "shipped"
        if with_lifespan:
            client.__exit__(None, None, None)
    assert shop.started == (["up", "down"] if with_lifespan else [])


@pytest.mark.parametrize("with_lifespan", [True, False])
def test_a_test_client_that_follows_redirects(with_lifespan: bool) -> None:
    with VirtualEngine(auto_advance=True):
        client = TestClient(app)
        if with_lifespan:
            with client:
                answer = client.get("/greeting")
        else:
            answer = client.get("/greeting")
    assert answer.json() == ("hello" if with_lifespan else "none")


def test_an_engine_in_use_while_plain_code_runs_its_own_event_loop() -> None:
    async def use_it() -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post("/orders/5")
            await engine.advance("1h")
            answer = await client.get(response.headers["location"])
            return str(answer.json()["shipped"])

    with VirtualEngine() as engine:
        assert asyncio.run(use_it()) == "shipped"
        assert engine.sync.values()["ship"] == "shipped"


@pytest.mark.anyio
async def test_the_test_may_stand_on_another_event_loop(engine: VirtualEngine) -> None:
    with engine.use(), TestClient(app, follow_redirects=False) as client:
        await asyncio.to_thread(client.post, "/orders/5")
        await engine.advance("1h")
        assert (await engine.finish()).json()["shipped"] == "shipped"


@pytest.mark.anyio
async def test_the_innermost_engine_counts() -> None:
    outer, inner = VirtualEngine(), VirtualEngine()
    with outer.use():
        async with inner.client(app) as client:
            await client.post("/orders/1")
        async with outer.client(app) as client:
            await client.post("/orders/2")
            await client.post("/orders/3")
    assert (len(outer.runs()), len(inner.runs())) == (2, 1)


def test_a_started_application_keeps_its_engine() -> None:
    early, late = VirtualEngine(), VirtualEngine()
    with early.use(), TestClient(app, follow_redirects=False) as client:
        with late.use():
            client.post("/orders/1")
        with pytest.raises(UnknownRunError, match="before the application starts"):
            late.sync.memo()
    assert len(early.runs()) == 1
    with late.use():
        TestClient(app, follow_redirects=False).post("/orders/1")
    assert len(late.runs()) == 1


@pytest.mark.anyio
async def test_events_reach_the_engine_in_use(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        for id in (1, 2):
            await client.post(f"/approval/{id}")
        first, second = engine.runs()
        await engine.send_event("approved", {"id": 1, "by": "her"})
        assert (await engine.finish(first.id)).json() == {"by": "her"}
        assert await engine.response(second.id) is None
        await send_event("approved", {"id": 2, "by": "him"})
        await engine.settle()
        answer = await engine.response(second.id)
        assert answer is not None
        assert answer.json() == {"by": "him"}


@pytest.mark.parametrize("with_lifespan", [True, False])
def test_events_from_plain_code_reach_the_engine_in_use(with_lifespan: bool) -> None:
    with VirtualEngine() as engine:
        client = TestClient(app, follow_redirects=False)
        if with_lifespan:
            client.__enter__()
        for id in (1, 2, 3):
            client.post(f"/approval/{id}")
        engine.sync.send_event("approved", {"id": 1, "by": "her"})
        asyncio.run(_send())
        step.sync.send_event("tell", "approved", {"id": 3, "by": "them"})
        engine.sync.settle()
        answers = [engine.sync.response(run.id) for run in engine.runs()]
        if with_lifespan:
            client.__exit__(None, None, None)
    assert [answer and answer.json()["by"] for answer in answers] == ["her", "him", "them"]


async def _send() -> None:
    await send_event("approved", {"id": 2, "by": "him"})


@pytest.mark.anyio
async def test_signals_reach_the_engine_in_use(engine: VirtualEngine) -> None:
    async with engine.client(app) as client:
        assert await engine.send_signal("go") is False
        await client.get("/signalled")
        assert await engine.send_signal("go", {"by": "her"}) is True
        assert (await engine.finish()).json() == {"by": "her"}
        await client.get("/signalled")
        assert await send_signal("go", {"by": "him"}) is True
        assert (await engine.finish(engine.runs()[1].id)).json() == {"by": "him"}


@pytest.mark.parametrize("with_lifespan", [True, False])
def test_signals_from_plain_code_reach_the_engine_in_use(with_lifespan: bool) -> None:
    with VirtualEngine() as engine:
        client = TestClient(app, follow_redirects=False)
        if with_lifespan:
            client.__enter__()
        client.get("/signalled")
        assert engine.sync.send_signal("go", {"by": "her"}) is True
        assert engine.sync.finish().json() == {"by": "her"}
        if with_lifespan:
            client.__exit__(None, None, None)


@pytest.mark.anyio
async def test_blocking_methods_refuse_an_event_loop(engine: VirtualEngine) -> None:
    with pytest.raises(UsageError, match=r"await engine\.advance\(\)"):
        engine.sync.advance("1h")


@pytest.mark.anyio
async def test_streams_of_an_engine_that_advances_by_itself() -> None:
    engine = VirtualEngine(auto_advance=True)
    chunks: list[Any] = []
    async with engine.client(app) as client:
        response = await fetch_with_stream(
            "/text", client=client, on_data=lambda chunk: chunks.append(chunk.data)
        )
        assert response.json() == " or not"
    assert "".join(chunks) == "to be or not"
