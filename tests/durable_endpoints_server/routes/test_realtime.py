"""Streams of runs that other SDKs execute, on their way in and out, and topics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from durable_endpoints.ids import new_run_id
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.failures import Failure
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.ops import StepDone, StepKind, StepRetry
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server import tees
from durable_endpoints_server.app import create_app
from durable_endpoints_server.engine.transitions import Claim, decide
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.realtime import Listener, Topic, run_token, topics_token
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints_server.remote.ends import memory_pair
from tests.durable_endpoints_server.remote.fakes import register
from tests.durable_endpoints_server.routes.serving import serving

pytestmark = pytest.mark.anyio

A, B = hash_name("a"), hash_name("b")
PATIENCE = 5.0


def frame(event: str, data: Any) -> bytes:
    """As JavaScript writes it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f"event: {event}\ndata: {text}\n\n".encode()


def chunk(value: Any, step: str = A) -> bytes:
    return frame("inngest.stream", {"data": value, **({"hashedStepId": step} if step else {})})


def commit(step: str | None = A) -> bytes:
    return frame("inngest.commit", {"hashedStepId": step})


def rollback(step: str = A) -> bytes:
    return frame("inngest.rollback", {"hashedStepId": step})


def answer(body: str = '"done"', status: int = 200, word: str = "succeeded") -> bytes:
    headers = {"content-type": "application/json"}
    response = {"body": body, "statusCode": status, "headers": headers}
    return frame("inngest.response", {"status": word, "response": response})


def metadata(live: LiveRun) -> bytes:
    return frame("inngest.metadata", {"runId": live.id})


def begin(server: Server) -> LiveRun:
    """A run whose requests this test plays."""
    new = NewRun(new_run_id(), "GET /x", "", "GET", "/x", b"", app="http://localhost:3000")
    return server.host.register(new)


def done(live: LiveRun, step: str = A) -> None:
    live.record(StepDone(StepId(step, "a", 0), StepKind.RUN, b"1"))


def failed(live: LiveRun, attempt: int) -> None:
    error = Failure("Error", "boom").encode()
    live.record(StepRetry(StepId(A, "a", 0), StepKind.RUN, error, attempt, delay=0))


async def complete(live: LiveRun) -> None:
    headers = [(b"content-type", b"application/json")]
    await live.end(Complete(200, StoredResponse(200, headers, b'"\\"done\\""').pack()))


async def arrived(live: LiveRun, position: int) -> None:
    """Wait until the stream log has so much."""
    async with asyncio.timeout(PATIENCE):
        while live.stream_tail < position:
            await asyncio.sleep(0.005)


class Request:
    """One of the application's requests, which streams: httpx would not look at an answer before it
    has sent everything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, *frames: bytes) -> None:
        for piece in frames:
            self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0.02)

    async def end(self) -> tuple[int, str]:
        self._writer.write(b"0\r\n\r\n")
        return await self.answer()

    async def answer(self) -> tuple[int, str]:
        """The status, and what it says was wrong."""
        async with asyncio.timeout(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            body = orjson.loads(await self._reader.readexactly(length))
        return int(head.split()[1]), body.get("error", "")


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, run_id: str) -> AsyncIterator[Request]:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    path = f"/v1/realtime/publish/tee?channel={run_id}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    try:
        yield Request(reader, writer)
    finally:
        writer.close()
        await asyncio.sleep(0.01)


class Reading:
    """A client of a run's stream, without ids and comments."""

    def __init__(self, server: Server, client: httpx.AsyncClient, run_id: str, after: str) -> None:
        self.url = f"/v1/realtime/sse?token={run_token(server.keys, run_id)}"
        self.seen, self.last_id = b"", ""
        self._after, self._client = after, client
        self._changed = asyncio.Event()
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> bytes:
        headers = {"last-event-id": self._after} if self._after else {}
        async with self._client.stream("GET", self.url, headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["access-control-allow-origin"] == "*"
            async for line in response.aiter_lines():
                self.begun.set()  # by a comment
                if line.startswith("id: "):
                    self.last_id = line[4:]
                elif line and not line.startswith(":"):
                    self.seen += f"{line}\n".encode()
                    if line.startswith("data: "):
                        self.seen += b"\n"
                    self._changed.set()
        return self.seen

    async def until(self, *frames: bytes) -> None:
        """Wait until it has exactly these."""
        async with asyncio.timeout(PATIENCE):
            while self.seen != b"".join(frames):
                await self._changed.wait()
                self._changed.clear()

    async def whole(self) -> bytes:
        return await asyncio.wait_for(self.task, PATIENCE)


@asynccontextmanager
async def reading(
    server: Server, client: httpx.AsyncClient, live: LiveRun, after: str = ""
) -> AsyncIterator[Reading]:
    reader = Reading(server, client, live.id, after)
    try:
        await asyncio.wait_for(reader.begun.wait(), PATIENCE)
        yield reader
    finally:
        reader.task.cancel()
        with suppress(asyncio.CancelledError):
            await reader.task


async def test_a_stream_is_told_live_and_again_to_who_comes_late_and_ends_with_the_response(
    tmp_path: Path,
) -> None:
    path = tmp_path / "server.db"
    async with serving(SqliteStore(path)) as (server, client):
        live = begin(server)
        await live.acknowledge()
        async with reading(server, client, live) as reader:
            async with streaming(client, live.id) as request:
                await request.send(metadata(live), chunk("héllo")[:20], chunk("héllo")[20:])
                await reader.until(metadata(live), chunk("héllo"))
                await request.send(chunk({"n": [1.5, None]}), commit())
                await server.tees.settle(live, [A], ends=False)
                assert commit() not in reader.seen  # it is not on disk yet
                done(live)
                first = [metadata(live), chunk("héllo"), chunk({"n": [1.5, None]}), commit()]
                await reader.until(*first)
                # It was left open, and is let go all the same.
                assert await request.answer() == (200, "")
            async with streaming(client, live.id) as request:
                await request.send(metadata(live), answer())
                assert await request.end() == (200, "")
                await server.tees.settle(live, [], ends=True)
                await complete(live)
            expected = b"".join([*first, metadata(live), answer()])
            assert await reader.whole() == expected
        async with reading(server, client, live) as late:
            assert await late.whole() == expected
    async with serving(SqliteStore(path)) as (server, client):
        async with reading(server, client, live) as after_a_restart:
            assert await after_a_restart.whole() == expected
        async with reading(server, client, live, after="3") as resumed:
            assert await resumed.whole() == b"".join([commit(), metadata(live), answer()])


async def test_frames_that_a_request_sends_late_stand_before_those_of_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tees, "_GRACE", PATIENCE)  # however busy this machine is
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        await live.acknowledge()
        async with reading(server, client, live) as reader:
            # The reply is here, and what the request has streamed is still on its way.
            settling = asyncio.create_task(server.tees.settle(live, [A], ends=False))
            await asyncio.sleep(0.01)
            async with streaming(client, live.id) as request:
                await request.send(metadata(live), chunk(1))
                assert not settling.done()
                await request.send(chunk(2), commit())
                await asyncio.wait_for(settling, PATIENCE)
            done(live)
            async with streaming(client, live.id) as request:
                await request.send(chunk(3, B), commit(B))
                await server.tees.settle(live, [B], ends=False)
            done(live, B)
            await reader.until(metadata(live), chunk(1), chunk(2), commit(), chunk(3, B), commit(B))


async def test_what_comes_after_its_step_has_ended_is_not_lost() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        await server.tees.settle(live, [A], ends=False)
        done(live)
        await live.acknowledge()
        async with reading(server, client, live) as reader, streaming(client, live.id) as request:
            await request.send(chunk("la"), chunk("te"), chunk("new", B))
            await reader.until(chunk("new", B))
            await request.send(commit())
            await reader.until(chunk("new", B), chunk("la"), chunk("te"), commit())
        async with streaming(client, live.id) as request:
            await request.send(chunk("withdrawn"), rollback(), chunk("x", ""))
            async with reading(server, client, live) as reader:
                shown = [chunk("new", B), chunk("la"), chunk("te"), commit(), chunk("x", "")]
                await reader.until(*shown)


async def test_failed_tries_are_withdrawn_and_stay_in_the_stream() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        for attempt in (1, 2):
            async with streaming(client, live.id) as request:
                await request.send(chunk(attempt), rollback())
                await arrived(live, 2 * attempt - 1)
                await server.tees.settle(live, [A], ends=False)
            failed(live, attempt)
        await live.acknowledge()
        async with reading(server, client, live) as reader:
            await reader.until(chunk(1), rollback(), chunk(2), rollback())


async def test_what_an_application_that_died_has_streamed_is_withdrawn() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        async with reading(server, client, live) as reader:
            async with streaming(client, live.id) as request:
                await request.send(chunk("lost"))
                await reader.until(chunk("lost"))
            await live.release("lost")
            await reader.until(chunk("lost"), rollback())


async def test_steps_that_stream_nothing_leave_nothing_in_a_stream() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        async with streaming(client, live.id) as request:
            await request.send(chunk(1), commit())
            await arrived(live, 1)
            await server.tees.settle(live, [A], ends=False)
        done(live)
        done(live, B)
        await live.acknowledge()
        async with reading(server, client, live) as reader:
            await reader.until(chunk(1), commit())


async def test_nobody_waits_for_streams_of_a_run_that_nobody_follows() -> None:
    async with serving(MemoryStore()) as (server, _):
        live = begin(server)
        begun_at = asyncio.get_running_loop().time()
        await server.tees.settle(live, [A], ends=False)
        assert asyncio.get_running_loop().time() - begun_at < 0.02


async def test_a_response_is_not_told_before_it_is_on_disk() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        async with reading(server, client, live) as reader:
            async with streaming(client, live.id) as request:
                await request.send(metadata(live), answer())
                await request.end()
            # The application dies before it has said so over the other connection.
            await live.release("lost")
            run = await server.host.store.run(live.id)
            assert run is not None
            again = server.host.adopt(decide(run, Claim("x", None), 0, server.host.policy), ())
            async with streaming(client, live.id) as request:
                await request.send(answer('"other"'))
                await server.tees.settle(again, [], ends=True)
                await complete(again)
            assert await reader.whole() == answer('"other"')


ENDS: dict[str, tuple[Callable[[Server, LiveRun], Any], bytes]] = {
    "completed": (
        lambda server, live: complete(live),
        answer('"\\"done\\""'),
    ),
    "failed": (
        lambda server, live: live.end(Fail("failed", Failure("Error", "boom").encode())),
        answer('"boom"', 500, "failed"),
    ),
    "cancelled": (
        lambda server, live: server.host.cancel(live.id, "cancelled"),
        answer('"The run was cancelled."', 409, "failed"),
    ),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_ends_with_a_response_even_if_none_was_streamed(end: str) -> None:
    act, expected = ENDS[end]
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        async with reading(server, client, live) as reader:
            await act(server, live)
            assert await reader.whole() == expected


async def refusal(client: httpx.AsyncClient, run_id: str, *frames: bytes) -> tuple[int, str]:
    async with streaming(client, run_id) as request:
        await request.send(*frames)
        return await request.end()


async def test_what_is_no_stream_is_refused() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        await live.acknowledge()
        for bad in (
            b"event: inngest.stream\ndata: {\n\n",
            frame("inngest.stream", {"hashedStepId": A}),
            frame("inngest.stream", {"data": 1, "hashedStepId": "a"}),
            frame("inngest.commit", [1]),
            frame("inngest.response", {"status": "succeeded", "response": {"body": 1}}),
            frame("a b", 1),
            b"data: 1\n\n",
            b"event: x\ndata: " + b"1" * 1_100_000,
        ):
            status, error = await refusal(client, live.id, bad)
            assert (status, "refused" in error) == (400, True), bad[:50]
        assert (await refusal(client, "nothing"))[0] == 404
        assert (await refusal(client, new_run_id()))[0] == 404
        assert (await client.post("/v1/realtime/publish/tee")).status_code == 400
        await live.suspend()
        assert (await refusal(client, live.id))[0] == 409


async def test_more_than_a_run_may_stream_is_refused() -> None:
    async with serving(MemoryStore()) as (server, client):
        server.host.policy = server.host.policy._replace(max_stream=1_000)
        live = begin(server)
        await live.acknowledge()
        status, error = await refusal(client, live.id, *[chunk("x" * 500)] * 3)
        assert (status, "max_stream" in error) == (413, True)
        await server.tees.settle(live, [B], ends=False)
        status, error = await refusal(client, live.id, *[chunk("x" * 500, B)] * 3)
        assert (status, "max_stream" in error) == (413, True)


async def test_nobody_else_streams_into_a_run_that_a_process_of_our_sdk_executes() -> None:
    async with serving(MemoryStore()) as (server, client):
        near, far = memory_pair()
        serve = asyncio.create_task(server.hub.serve(near))
        run_id = new_run_id()
        hello: wire.Frame = ["hello", {"process": "p1", "app": "shop"}]
        await far.send(wire.encode([hello, ["resumed"], register(run_id)]).decode())
        while server.host.live_run(run_id) is None:
            await asyncio.sleep(0.001)
        assert (await refusal(client, run_id, chunk("x", "")))[0] == 404
        page = await server.host.store.stream_page(run_id, 0, 1_000)
        assert page is None or page.records == []
        await far.close()
        await serve


async def test_half_a_character_as_javascript_sends_it_does_no_harm() -> None:
    async with serving(MemoryStore()) as (server, client):
        live = begin(server)
        async with streaming(client, live.id) as request:
            await request.send(b'event: inngest.stream\ndata: {"data":"a\\ud83d"}\n\n')
            async with reading(server, client, live) as reader:
                await reader.until(chunk("a?", ""))


KEYS = ServerSettings(signing_keys=("signkey-prod-ab12",))
BEARER = {"Authorization": "Bearer signkey-prod-ab12"}


async def test_a_stream_is_refused_to_strangers_before_any_of_it_is_read() -> None:
    async with serving(MemoryStore(), KEYS) as (server, client):
        live = begin(server)
        async with streaming(client, live.id) as request:
            assert (await request.answer())[0] == 401
        other = run_token(server.keys, new_run_id()).partition(".")[2]
        expired = topics_token(server.keys, [Topic("c", "t")], server.host.clock.now())
        for bad in ("", "x", f"{live.id}.{other}", f"{live.id}.", "~W10.x", expired, "é.é"):
            answered = await client.get("/v1/realtime/sse", params={"token": bad})
            assert answered.status_code == 401, bad
        unknown = run_token(server.keys, new_run_id())
        assert (await client.get(f"/v1/realtime/sse?token={unknown}")).status_code == 404
        head = await client.head(f"/v1/realtime/sse?token={run_token(server.keys, live.id)}")
        assert head.status_code == 200
        assert (await client.options("/v1/realtime/sse")).status_code == 204


async def test_a_token_of_a_run_is_given_to_who_has_a_key() -> None:
    async with serving(MemoryStore(), KEYS) as (server, client):
        live = begin(server)
        await complete(live)
        wanted = [{"channel": live.id, "name": "$stream", "kind": "run"}]
        assert (await client.post("/v1/realtime/token", json=wanted)).status_code == 401
        given = await client.post("/v1/realtime/token", json=wanted, headers=BEARER)
        assert given.status_code == 201
        own = server.host.register(NewRun(new_run_id(), "x", "", "GET", "/x", b"", app="shop"))
        await own.acknowledge()
        wanted[0]["channel"] = own.id
        sealed = await client.post("/v1/realtime/token", json=wanted, headers=BEARER)
        assert sealed.status_code == 422
        headers = {"Authorization": f"Bearer {given.json()['jwt']}"}
        stream = await client.get("/v1/realtime/sse", headers=headers)
        assert b"inngest.response" in stream.content


def test_messages_of_a_topic_reach_those_who_listen() -> None:
    server = Server(ServerSettings(dev=True), MemoryStore())
    with TestClient(create_app(server)) as client:
        topics = [{"channel": "chat", "name": name, "kind": "run"} for name in ("a", "b")]
        jwt = client.post("/v1/realtime/token", json=topics).json()["jwt"]
        with client.websocket_connect(f"/v1/realtime/connect?token={jwt}") as socket:
            url = "/v1/realtime/publish?channel=chat"
            assert client.post(f"{url}&topic=b&topic=c&run_id=r", json={"n": 1}).status_code == 200
            assert client.post(f"{url}&topic=a", content="text").status_code == 200
            first, second = (orjson.loads(socket.receive_text()) for _ in range(2))
            # The test client cancels whoever has not noticed yet that it is gone.
            socket.close(1000)
            until = time.monotonic() + PATIENCE
            while server.topics.publish(Topic("chat", "a"), b"{}") and time.monotonic() < until:
                time.sleep(0.01)
        assert (first["topic"], first["data"], first["run_id"]) == ("b", {"n": 1}, "r")
        assert (first["kind"], second["topic"], second["data"]) == ("data", "a", "text")
        assert client.post(url, json=1).status_code == 400
        for bad in ([], [{"channel": "c"}], {}, [{"channel": 1, "name": "x"}]):
            assert client.post("/v1/realtime/token", json=bad).status_code == 400
        path = "/v1/realtime/connect?token=x"
        with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(path):
            pass
        assert refused.value.code == 1008


async def test_messages_of_a_topic_come_as_events_too() -> None:
    async with serving(MemoryStore()) as (server, client):
        token = topics_token(server.keys, [Topic("c", "t")], 2**50)
        async with client.stream("GET", f"/v1/realtime/sse?token={token}") as response:
            lines = response.aiter_lines()
            assert await anext(lines) == ":"
            await client.post("/v1/realtime/publish?channel=c&topic=t", json="x")
            assert await anext(lines) == ""
            line = await anext(lines)
        assert orjson.loads(line.removeprefix("data: "))["data"] == "x"


def test_a_listener_that_does_not_keep_up_is_let_go_and_holds_no_memory() -> None:
    for messages in ([b"x" * 1_000_000] * 9, [b"x"] * 1_001):
        listener = Listener()
        for message in messages:
            assert not listener.is_released
            listener.add(message)
        assert listener.is_released
        assert asyncio.run(listener.next(0.01)) == []
