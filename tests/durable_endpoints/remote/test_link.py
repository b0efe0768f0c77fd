"""The link of an application to a server: what it says, and says again when a connection broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import endpoint, step, stream
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.engines.remote.dialing import LostConnectionError
from durable_endpoints.engines.remote.engine import RemoteEngine
from durable_endpoints.errors import ForeignServerError
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.settings import Settings
from tests.durable_endpoints.helpers import fast
from tests.durable_endpoints.remote.peer import Peer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(
    peer: Peer, tmp_path: Any, **settings: Any
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    given = {
        "server_url": "http://127.0.0.1:1",
        "signing_key": "a key for tests, and for nothing else",
        "sealing_key": "a key for tests, and for nothing else",
        "server_timeout": 1,
        **settings,
    }
    engine = RemoteEngine(Settings.load(given, {}), peer)
    app = fast(None)
    app.user_middleware[0].kwargs["engine"] = engine
    await engine.start(for_good=True)
    transport = AppTransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield app, client
    finally:
        await engine.stop()


async def answer_all(peer: Peer) -> None:
    """Acknowledge whatever has a number, as a server with a quick disk does."""
    while True:
        await peer.news.wait()
        while peer.heard:
            name, *parts = peer.heard.popleft()
            if name in ("register", "record", "leave", "withdraw"):
                peer.say("ack", parts[0], parts[1])
        peer.news.clear()


async def test_a_request_is_a_run_at_the_server(tmp_path: Any) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):

        @app.post("/double/{n}")
        @endpoint
        async def double(n: int) -> int:
            return await step.run("double", lambda: n * 2)

        asking = asyncio.create_task(client.post("/double/4"))
        hello = await peer.hear("hello")
        assert hello[0]["app"] == "default"
        run, number, new = await peer.hear("register")
        assert (number, new[1]) == (1, "POST /double/{n}")
        assert await peer.hear("record") == [run, 2, ["done", *_step("double"), "8", 1, _any]]
        _, number, how, end = await peer.hear("leave")
        assert (number, how, end[:2]) == (3, "end", ["complete", 200])
        assert not asking.done()
        peer.say("ack", run, 3)
        assert (await asking).json() == 8


async def test_what_one_turn_says_travels_in_one_message(tmp_path: Any) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> str:
            async def a() -> str:
                return "b"

            return await step.run("a", a)

        await peer.hear("executors")
        asking = asyncio.create_task(client.get("/"))
        run = (await peer.hear("register"))[0]
        await peer.hear("leave")
        peer.say("ack", run, 3)
        await asking
        told = [[frame[0] for frame in message] for message in peer.messages]
        assert any(message[-3:] == ["register", "record", "leave"] for message in told)


async def test_what_was_not_acknowledged_is_said_again_on_a_new_connection(tmp_path: Any) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> str:
            first = await step.run("a", lambda: "1")
            return first + await step.run("b", lambda: "2")

        asking = asyncio.create_task(client.get("/"))
        run = (await peer.hear("record"))[0]
        peer.say("ack", run, 2)
        b = await peer.hear("record")
        peer.cut()
        assert (await peer.hear("resume"))[:3] == [run, 1, 2]
        assert await peer.hear("record") == b
        peer.say("ack", run, 3)
        _, number, *_ = await peer.hear("leave")
        peer.say("ack", run, number)
        assert (await asking).json() == "12"
        assert [frame for frame in peer.heard if frame[0] == "register"] == []


async def test_an_acknowledgement_is_about_what_was_said_before_and_nothing_else(
    tmp_path: Any,
) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> list[int]:
            return await asyncio.gather(*(step.run(f"{n}", lambda: 7) for n in range(2)))

        asking = asyncio.create_task(client.get("/"))
        run, first, *_ = await peer.hear("record")
        second = await peer.hear("record")
        leave = await peer.hear("leave")
        peer.say("ack", run, first)
        await asyncio.sleep(0.05)
        peer.cut()
        assert (await peer.hear("resume"))[:3] == [run, 1, first]
        assert await peer.hear("record") == second
        assert await peer.hear("leave") == leave
        peer.say("ack", run, leave[1] - 1)
        await asyncio.sleep(0.05)
        assert not asking.done()
        peer.say("ack", run, leave[1])
        assert (await asking).json() == [7, 7]


async def test_chunks_that_are_not_written_are_pushed_again(tmp_path: Any) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> None:
            async def write() -> None:
                for n in range(3):
                    stream.push(n)
                    await asyncio.sleep(0.02)

            await step.run("write", write)

        asking = asyncio.create_task(client.get("/"))
        run, step_hash, attempt, kind, ordinal, values = await peer.hear("push")
        assert (attempt, kind, ordinal, values) == (1, 1, 0, ["0"])
        second = await peer.hear("push")
        assert second[4:] == [1, ["1"]]
        peer.say("written", run, 1, [[step_hash, 1, 1, 1]])
        third = await peer.hear("push")
        peer.cut()
        assert (await peer.hear("resume"))[:3] == [run, 1, 0]
        await peer.hear("register")
        assert [await peer.hear("push"), await peer.hear("push")] == [second, third]
        number = (await peer.hear("leave"))[1]
        peer.say("ack", run, number)
        assert (await asking).status_code == 200


async def test_a_suspension_is_said_again_with_what_was_seen_on_the_new_connection(
    tmp_path: Any,
) -> None:
    """Else the server would take a step that it has just told, and that nobody saw, for seen."""
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):
        told = asyncio.Event()

        @app.get("/")
        @endpoint
        async def handle() -> None:
            await asyncio.gather(step.sleep("short", "1s"), step.run("hold on", told.wait))
            await step.sleep("long", "1h")

        asking = asyncio.create_task(client.get("/"))
        run, number, _ = await peer.hear("record")
        peer.say("ack", run, number)
        peer.say("resolved", run, _slept("short"), number)
        await asyncio.sleep(0.05)
        told.set()
        for _ in ("hold on", "long"):
            peer.say("ack", run, (await peer.hear("record"))[1])
        assert (await peer.hear("leave"))[2:] == ["suspend", 1]
        peer.cut()
        assert len((await peer.hear("resume"))[3]["open"]) == 1
        _, number, *how = await peer.hear("leave")
        assert how == ["suspend", 0]
        peer.say("ack", run, number)
        assert (await asking).status_code == 303


@pytest.mark.parametrize("apart", [True, False], ids=["told after it", "told in it"])
async def test_a_signal_may_come_with_the_answer_that_its_wait_is_open(
    tmp_path: Any, apart: bool
) -> None:
    """Before whoever opened the wait could run on: nobody else would tell it."""
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> Any:
            signal = await step.wait_for_signal("go", signal="go", timeout="1h")
            later = await step.wait_for_signal("more", signal="more", timeout="5ms")
            return [signal and signal.data, await step.run("b", lambda: 2), later]

        asking = asyncio.create_task(client.get("/"))
        for name, value in (("go", b'{"name":"go","data":1,"ts":1}'), ("more", b"null")):
            run, number, _, _ = await peer.hear("signal")
            opened = _waited(name, StepState.PENDING, None)
            resolved = _waited(name, StepState.DONE, value)
            peer.say("signal", run, number, opened if apart else resolved, None)
            peer.say("ack", run, number)
            if apart:
                peer.say("resolved", run, resolved, number)
        assert (await peer.hear("record"))[2][0] == "done"
        _, number, how, _ = await peer.hear("leave")
        assert how == "end"
        peer.say("ack", run, number)
        assert (await asking).json() == [1, 2, None]


async def test_a_run_that_another_execution_has_is_given_up(tmp_path: Any) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, client):
        ran: list[str] = []

        @app.get("/")
        @endpoint
        async def handle() -> str:
            await step.run("a", lambda: ran.append("a"))
            await step.run("b", lambda: ran.append("b"))
            return "never"

        asking = asyncio.create_task(client.get("/", follow_redirects=False))
        run = (await peer.hear("record"))[0]
        peer.say("refused", run, 2, "lost", "")
        response = await asking
        assert response.status_code == 303
        assert f"runId={run}" in response.headers["location"]
        assert ran == ["a"]


async def test_a_proxy_that_knows_no_server_for_a_while_does_not_end_the_link(
    tmp_path: Any,
) -> None:
    peer = Peer()
    async with connected(peer, tmp_path, server_timeout=5) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> str:
            return await step.run("a", lambda: "b")

        await peer.hear("executors")
        peer.trouble = ForeignServerError("the server answers 404")
        peer.cut()
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.1)
        peer.trouble = None
        answering = asyncio.create_task(answer_all(peer))
        assert (await asking).json() == "b"
        answering.cancel()


async def test_a_link_that_fails_in_this_process_is_opened_again(tmp_path: Any) -> None:
    peer = Peer()
    async with connected(peer, tmp_path) as (app, _):

        def fail(*_: Any) -> None:
            raise RuntimeError("a mistake of ours")

        app.user_middleware[0].kwargs["engine"].execute = fail
        await peer.hear("executors")
        peer.say("execute", {})
        assert (await peer.hear("hello"))[0]["app"] == "default"


async def test_a_run_that_cannot_be_read_is_parked_and_disturbs_no_other(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    async with connected(peer, tmp_path):
        await peer.hear("executors")
        claimed = {"run": "01J", "generation": 3, "began_at": 0, "depth": 0, "function_id": "GET /"}
        peer.say("execute", {**claimed, "memo": [["from", "the", "future"]]})
        assert await peer.hear("begin") == ["01J", 3]
        assert await peer.hear("leave") == ["01J", 1, "park", "unreadable"]
    assert any("run 01J is parked" in message for message in caplog.messages)


async def test_no_body_begins_before_the_claim_is_on_disk(tmp_path: Any) -> None:
    peer, began = Peer(), asyncio.Event()
    async with connected(peer, tmp_path) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> None:
            await step.run("body", began.set)

        asking = asyncio.create_task(client.get("/"))
        run, _, new = await peer.hear("register")
        peer.say("refused", run, 1, "lost", "it is another's")
        await asking
        began.clear()
        told = {"run": run, "generation": 2, "began_at": 0, "depth": 0, "function_id": new[1]}
        rest = {"memo": [], "request": new[5], "retries": 3, "root_path": "", "stream": None}
        peer.say("execute", {**told, **rest})
        await asyncio.sleep(0.1)
        assert not began.is_set()
        peer.say("ack", run, 0)
        assert await peer.hear("begin") == [run, 2]
        assert (await peer.hear("record"))[:2] == [run, 1]


async def test_a_server_that_is_away_is_waited_for(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    peer.trouble = LostConnectionError("refused")
    async with connected(peer, tmp_path, server_timeout=5) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> str:
            return await step.run("a", lambda: "b")

        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.1)
        peer.trouble = None
        answering = asyncio.create_task(answer_all(peer))
        assert (await asking).json() == "b"
        answering.cancel()
    away, back = [line for line in caplog.messages if "http://127.0.0.1:1" in line]
    assert away.endswith("http://127.0.0.1:1 is away: refused")
    assert back.startswith("connected to ")


async def test_no_heartbeat_keeps_the_runs_of_a_process_without_a_link(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than a lease: it could not tell what becomes of them."""
    peer = Peer()
    async with connected(peer, tmp_path) as (app, _):
        engine: Any = app.user_middleware[0].kwargs["engine"]
        (name,) = engine._names()
        peer.trouble = LostConnectionError("no WebSocket passes here")
        peer.cut()
        await asyncio.sleep(0.05)
        assert engine._names() == [name]  # it may come back
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 29)
        assert engine._names() == [name]
        monkeypatch.setattr(loop, "time", lambda: now + 31)
        assert engine._names() == []
        monkeypatch.undo()


async def test_a_server_that_stays_away_is_a_503_and_no_run_begins_later(tmp_path: Any) -> None:
    peer = Peer()
    peer.trouble = LostConnectionError("connection refused")
    async with connected(peer, tmp_path, server_timeout=0.2) as (app, client):

        @app.get("/")
        @endpoint
        async def handle() -> str:
            return await step.run("a", lambda: "b")

        response = await client.get("/")
        assert response.status_code == 503
        assert "connection refused" in response.json()["detail"]
        assert response.headers["retry-after"] == "1"
        peer.trouble = None
        run, generation, confirmed, state = await peer.hear("resume")
        assert (generation, confirmed, state["only"]) == (1, 0, ["abandon"])
        peer.say("refused", run, 0, "lost", "")
        await peer.hear("executors")
        assert not [frame for message in peer.messages for frame in message if "register" in frame]


async def test_an_endpoint_that_proceeds_answers_without_a_run_and_says_so(tmp_path: Any) -> None:
    peer = Peer()
    peer.trouble = LostConnectionError("connection refused")
    async with connected(peer, tmp_path, server_timeout=0.2) as (app, client):

        @app.get("/work")
        @endpoint(on_unavailable="proceed")
        async def work() -> str:
            return await step.run("a", lambda: "b")

        @app.get("/wait-a-while")
        @endpoint(on_unavailable="proceed")
        async def sleep() -> None:
            await step.sleep("s", "1h")

        response = await client.get("/work")
        assert (response.status_code, response.json()) == (200, "b")
        assert "connection refused" in response.headers["durable-degraded"]
        assert "durable-run-id" not in response.headers
        assert (await client.get("/wait-a-while")).status_code == 503
        keyed = await client.get("/work", headers={"Idempotency-Key": "k"})
        assert keyed.status_code == 503
        peer.trouble = None
        [_, _, _, state] = await peer.hear("resume")
        assert state["only"][0] == "end"


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


_any: Any = _Any()


def _slept(name: str) -> list[Any]:
    step = StepId(hash_name(name), name, 0)
    return wire.pack_step(StepRecord(step, StepKind.SLEEP, StepState.DONE, order=1, value=b"null"))


def _waited(name: str, state: StepState, value: bytes | None) -> list[Any]:
    step, order = StepId(hash_name(name), name, 0), 1 if state is StepState.DONE else 0
    return wire.pack_step(StepRecord(step, StepKind.SIGNAL, state, order=order, value=value))


def _step(name: str) -> list[Any]:
    return [[_any, name, 0], "run"]
