"""Streams beside everything else: middlewares, parallel steps, stores that fail, crashes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    StepValueError,
    endpoint,
    step,
    stream,
)
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.facts import Change, Streamed
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints.helpers import fast, one, run_id_of, star
from tests.durable_endpoints.sources import A, B, Flaky, seen, url_of, words
from tests.durable_endpoints.streams import SSE, Held, events_of, frames_of, read
from tests.durable_endpoints_server.helpers import FlakyStore, anything

pytestmark = pytest.mark.anyio


async def test_middlewares_around_and_inside(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        await step.run("a", lambda: stream.pipe(words("hello there")))
        return PlainTextResponse("x" * 2_000)

    app = star(engine, Route("/", handler), inside=[Middleware(GZipMiddleware)])
    app.add_middleware(GZipMiddleware)
    async with engine.client(app) as client:
        frames = await read(client, "/", **{"accept-encoding": "gzip"})
    assert Held().take(frames).text == "hello there"


async def test_compression_inside_does_not_reach_the_response_in_the_stream(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 5_000)

    app = star(engine, Route("/", handler), inside=[Middleware(GZipMiddleware)])
    async with engine.client(app) as client:
        answer = (await read(client, "/", **{"accept-encoding": "gzip"}))[-1].data["response"]
    assert answer["body"] == "x" * 5_000
    assert "content-encoding" not in answer["headers"]


async def test_responses_that_are_not_kept(engine: VirtualEngine) -> None:
    @endpoint(omit_response_body=True)
    async def secret(request: Request) -> PlainTextResponse:
        return PlainTextResponse("secret")

    @endpoint
    async def large(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 200)

    routes = [Route("/secret", secret), Route("/large", large)]
    async with engine.client(star(engine, *routes, max_response_body=100)) as client:
        response = await client.get("/secret", headers=SSE)
        end = frames_of(response.content)[-1].data
        assert (end["status"], end["response"]["body"]) == ("succeeded", "secret")
        await engine.settle()
        end = (await read(client, response.headers["durable-run-url"]))[-1].data
        assert (end["status"], end["response"]["statusCode"]) == ("failed", 410)
        response = await client.get("/large", headers=SSE)
        for answer in (
            response,
            await client.get(response.headers["durable-run-url"], headers=SSE),
        ):
            end = frames_of(answer.content)[-1].data
            assert (end["status"], end["response"]["statusCode"]) == ("failed", 507)


async def test_cancelling_a_busy_stream_gives_the_end_the_position_that_it_has(
    engine: VirtualEngine,
) -> None:
    @endpoint(cancellable=True)
    async def handler(request: Request) -> PlainTextResponse:
        async def hot() -> None:
            while True:
                for _ in range(50):
                    stream.push("x")
                await asyncio.sleep(0)

        await step.run("a", hot)
        return PlainTextResponse("never")

    async with (
        engine.client(one(engine, handler)) as client,
        client.stream("GET", "/", headers=SSE) as response,
    ):
        url, chunks = response.headers["durable-run-url"], response.aiter_bytes()
        content = await anext(chunks) + await anext(chunks)
        assert (await client.delete(url)).status_code == 200
        content += b"".join([chunk async for chunk in chunks])
        replayed = await read(client, url)
    live = frames_of(content)
    assert live[-1] == replayed[-1]
    ids = [int(frame.id) for frame in live if frame.id is not None]
    assert ids == list(range(len(ids)))


async def test_parallel_steps_stream_side_by_side(engine: VirtualEngine) -> None:
    flaky = Flaky()

    @endpoint
    async def handler(request: Request) -> JSONResponse:
        texts = await asyncio.gather(
            step.run("a", flaky.write), step.run("b", lambda: stream.pipe(words("x y z")))
        )
        return JSONResponse(texts)

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        following = asyncio.create_task(read(client, url_of(first)))
        await engine.advance("1m")
        held = Held().take(first).take(await following)
    by_step = {key: [d for s, d, _ in held.chunks if s == key] for key in (A, B)}
    assert "".join(by_step[A]) == "one two three four"
    assert "".join(by_step[B]) == "x y z"
    assert held.committed == held.data


async def test_a_request_to_a_store_that_fails_is_no_stream(engine: VirtualEngine) -> None:
    store = FlakyStore()
    store.fails = anything
    engine.store = store

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        stream.push("x")
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", headers=SSE)
        assert (response.status_code, response.json()["error"]) == (503, "engine_unavailable")


async def test_a_store_that_fails_in_the_middle_ends_the_stream_and_not_the_run(
    engine: VirtualEngine,
) -> None:
    store = FlakyStore()
    engine.store = store

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        first = await step.run("a", lambda: stream.pipe(words("one two")))
        second = await step.run("b", lambda: stream.pipe(words(" three four")))
        return PlainTextResponse(first + second)

    def second_step(change: Change) -> bool:
        return any(
            isinstance(fact, Streamed) and any(record.step == B for record in fact.records)
            for fact in change.facts
        )

    store.fails = second_step
    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        assert events_of(first) == ["metadata", "stream", "stream", "commit", "redirect_info"]
        store.fails = None
        held = Held().take(first).take(await asyncio.wait_for(read(client, url_of(first)), 5))
    assert held.text == "one two three four"
    assert held.response["response"]["body"] == held.text


async def test_events_of_the_engine_end_a_wait_in_a_stream(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        stream.push("asking")
        event = await step.wait_for_event("w", event="ok", timeout="1h")
        stream.push("told")
        return PlainTextResponse(str(event is not None))

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        assert events_of(first) == ["metadata", "stream", "commit", "redirect_info"]
        following = asyncio.create_task(read(client, url_of(first)))
        await asyncio.sleep(0.01)
        await engine.send_event("ok")
        frames = await following
    assert events_of(frames) == ["metadata", "stream", "commit", "response"]


async def test_the_process_may_die_between_two_chunks(engine: VirtualEngine) -> None:
    gate = asyncio.Event()
    tries = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        async def write() -> str:
            nonlocal tries
            tries += 1
            stream.push(f"try {tries}")
            if tries == 1:
                await gate.wait()
            return "ok"

        stream.push("outside")
        return PlainTextResponse(await step.run("a", write))

    app: Any = one(engine, handler)
    async with engine.client(app) as client:
        async with client.stream("GET", "/", headers=SSE) as response:
            url = response.headers["durable-run-url"]
            held, chunks = Held(), response.aiter_bytes()
            while len(held.data) < 2:
                held.take(frames_of(await anext(chunks)))
            await engine.crash()
        await engine.start()
        await engine.settle()
        rest = await read(client, url, **{"last-event-id": str(held.last_id)})
        assert events_of(rest)[1] == "rollback", "what was lost is withdrawn before all else"
        assert held.take(rest).data == ["outside", "try 2"]
        assert Held().take(await read(client, url)).data == held.data


async def test_the_machine_may_go_down_between_two_chunks(
    engine: VirtualEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has chunks that never reached the disk: they are withdrawn, and their positions
    are never used again."""
    gate = asyncio.Event()
    tries = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        async def write(name: str) -> str:
            nonlocal tries
            tries += 1
            stream.push(f"{name}{tries}.1")
            await asyncio.sleep(0.01)
            stream.push(f"{name}{tries}.2")
            if tries == 2:
                await gate.wait()
            return "ok"

        stream.push("outside")
        await step.run("a", write, "a")
        await step.run("b", write, "b")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        async with client.stream("GET", "/", headers=SSE) as response:
            url = response.headers["durable-run-url"]
            held, chunks = Held(), response.aiter_bytes()
            while "b2.2" not in held.data:
                held.take(frames_of(await anext(chunks)))
            await engine.crash()
        assert isinstance(engine.store, MemoryStore)
        row = engine.store._rows[run_id_of(response)]
        lost = [record for record in row.records if record.step == B]
        assert len(lost) == 2
        row.records = row.records[:-2]
        assert row.stream is not None
        row.stream = row.stream._replace(tail=row.records[-1].last, open={})
        monkeypatch.setattr("durable_endpoints_server.recovery.is_same_boot", lambda *_: False)
        await engine.start()
        await engine.settle()
        rest = await read(client, url, **{"last-event-id": str(held.last_id)})
        assert held.take(rest).data == ["outside", "a1.1", "a1.2", "b3.1", "b3.2"]
        assert held.committed == held.data
        assert int(rest[1].id or 0) > 1_000_000
        assert Held().take(await read(client, url)).data == held.data


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01, 0.03, 0.06])
async def test_a_request_that_is_cancelled_from_outside_ends_its_stream(seconds: float) -> None:
    """By a middleware that has no patience, wherever the execution is by then."""

    class Impatient:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            is_first = scope["path"] == "/" and "durable_endpoints" not in scope
            try:
                async with asyncio.timeout(seconds if is_first else None):
                    await self.app(scope, receive, send)
            except TimeoutError:
                pass

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        for name in "ab":
            await step.run(name, lambda: stream.pipe(words("some words")))
            await asyncio.sleep(0.01)
        return PlainTextResponse("done")

    class Slow(MemoryStore):
        def submit(self, change: Change, lane: Any = None) -> Any:
            return SlowTicket(super().submit(change, lane))

    class SlowTicket:
        def __init__(self, ticket: Any) -> None:
            self.ticket = ticket

        async def wait(self) -> None:
            await asyncio.sleep(0.01)
            await self.ticket.wait()

        def then(self, callback: Any) -> None:
            asyncio.get_running_loop().call_later(0.005, self.ticket.then, callback)

    engine = VirtualEngine()
    engine.store = Slow()
    app = star(engine, Route("/", handler))
    app.add_middleware(Impatient)
    async with engine.client(app) as client:
        async with asyncio.timeout(5):
            try:
                response = await client.get("/", headers=SSE)
            except httpx.RemoteProtocolError:
                assert seconds < 0.02, "nothing was sent"
                return
            held = Held().take(frames_of(response.content))
            if held.response is None:
                url = response.headers["durable-run-url"]
                held.take(await read(client, url, **{"last-event-id": held.last_id or "0"}))
        assert held.response["response"]["body"] == "done"
        assert held.text == "some wordssome words"


async def test_the_last_frame_is_the_same_for_all(engine: VirtualEngine) -> None:
    @endpoint
    async def elsewhere(request: Request) -> Response:
        return Response(status_code=303, headers={"location": "next"})

    async with engine.client(star(engine, Route("/r/x", elsewhere))) as client:
        own = await client.get("/r/x", headers=SSE)
        others = await read(client, own.headers["durable-run-url"])
    assert frames_of(own.content)[-1] == others[-1]
    assert others[-1].data["response"]["headers"]["location"] == "/r/next"


async def test_a_result_that_cannot_be_kept_has_its_chunks_withdrawn_at_once(
    engine: VirtualEngine,
) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> PlainTextResponse:
        async def bad() -> Any:
            stream.push("from a")
            await seen()
            return {1}

        with pytest.raises(StepValueError):
            await step.run("a", bad)
        await step.run("b", lambda: stream.push("from b"))
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        frames = await read(client, "/")
    kinds = events_of(frames)
    assert kinds[1:5] == ["stream", "rollback", "redirect_info", "stream"]
    assert Held().take(frames).data == ["from b"]


async def test_a_loss_of_power_may_take_the_whole_log(
    engine: VirtualEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    tries = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        async def write() -> str:
            nonlocal tries
            tries += 1
            stream.push(f"try {tries}")
            await asyncio.sleep(0.01)
            if tries == 1:
                await gate.wait()
            return "ok"

        return PlainTextResponse(await step.run("a", write))

    async with engine.client(one(engine, handler)) as client:
        async with client.stream("GET", "/", headers=SSE) as response:
            held, chunks = Held(), response.aiter_bytes()
            while not held.data:
                held.take(frames_of(await anext(chunks)))
            await engine.crash()
        assert isinstance(engine.store, MemoryStore)
        row = engine.store._rows[run_id_of(response)]
        row.records, row.stream = [], None
        monkeypatch.setattr("durable_endpoints_server.recovery.is_same_boot", lambda *_: False)
        await engine.start()
        await engine.settle()
        rest = await read(
            client, response.headers["durable-run-url"], **{"last-event-id": str(held.last_id)}
        )
    assert held.take(rest).data == held.committed == ["try 2"]


async def test_the_browsers_client_is_at_the_mount(engine: VirtualEngine) -> None:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, engine=engine)

    @app.get("/x")
    @endpoint
    async def handler() -> str:
        return "x"

    async with engine.client(fast(engine)) as client:
        found = await client.get("/wait/client.js", headers={"origin": "http://elsewhere"})
        assert found.headers["content-type"] == "text/javascript; charset=utf-8"
        assert found.headers["access-control-allow-origin"] == "*"
        assert b"export" in found.content
        tag = {"if-none-match": found.headers["etag"]}
        assert (await client.get("/wait/client.js", headers=tag)).status_code == 304
        assert (await client.head("/wait/client.js")).content == b""
        assert (await client.delete("/wait/client.js")).status_code == 405
    async with engine.client(app) as client:
        assert (await client.get("/.durable/wait/client.js")).content == found.content


def test_fastapi_is_told_nothing_new() -> None:
    """`sse` and `cancellable` leave the handler as it is."""
    app = FastAPI()

    @app.get("/x")
    @endpoint(sse=False, cancellable=True)
    async def handler(n: int) -> int:
        return n

    assert app.openapi()["paths"]["/x"]["get"]["parameters"][0]["name"] == "n"
