"""Streams through the whole SDK: what the requester gets, what others get at `/wait`."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Response
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    LimitError,
    NotInRunError,
    StepError,
    StepValueError,
    UsageError,
    endpoint,
    step,
    stream,
)
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.facts import Change, Streamed
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints.helpers import fast, one, run_id_of, star
from tests.durable_endpoints.streams import SSE, Frame, Held, events_of, frames_of, read
from tests.durable_endpoints_server.helpers import FlakyStore, anything

pytestmark = pytest.mark.anyio

A, B = hash_name("a"), hash_name("b")


async def words(text: str, fail_after: int | None = None) -> AsyncIterator[str]:
    for n, word in enumerate(text.split(" ")):
        if n == fail_after:
            raise RuntimeError("the provider went away")
        yield word if n == 0 else " " + word
        await asyncio.sleep(0)


class Flaky:
    """Writes a text; the first tries fail in the middle of it."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.tries = 0

    async def write(self) -> str:
        self.tries += 1
        fail_after = 2 if self.tries <= self.failures else None
        return await stream.pipe(words("one two three four", fail_after))


def url_of(frames: list[Frame]) -> str:
    return next(str(f.data["url"]) for f in frames if f.event == "inngest.redirect_info")


# The requester


async def test_a_run_that_ends_in_its_request_is_one_stream(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> JSONResponse:
        stream.push({"topic": request.query_params["topic"]})
        a = await step.run("a", lambda: stream.pipe(words("hello there")))
        b = await step.run("b", lambda: 7)
        return JSONResponse({"a": a, "b": b}, 201, {"x-own": "yes"})

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/?topic=x", headers=SSE)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"
        frames = frames_of(response.content)
    run_id = run_id_of(response)
    url = url_of(frames)
    assert url.startswith(f"http://testserver/wait?runId={run_id}&token=")
    assert url.endswith("&after=sync")
    assert response.headers["durable-run-url"] == url.removeprefix("http://testserver")[:-11]
    assert frames[:-1] == [
        Frame("0", "inngest.metadata", {"runId": run_id}),
        Frame("1", "inngest.stream", {"data": {"topic": "x"}}),
        Frame("2", "inngest.stream", {"data": "hello", "hashedStepId": A}),
        Frame("3", "inngest.stream", {"data": " there", "hashedStepId": A}),
        Frame("4", "inngest.commit", {"hashedStepId": None}),
        Frame("5", "inngest.commit", {"hashedStepId": A}),
        Frame(None, "inngest.redirect_info", {"runId": run_id, "url": url}),
        Frame("6", "inngest.commit", {"hashedStepId": B}),
    ]
    end = frames[-1]
    assert (end.id, end.event) == ("7", "inngest.response")
    assert end.data["status"] == "succeeded"
    assert list(end.data["response"]) == ["body", "statusCode", "headers"]
    assert json.loads(end.data["response"]["body"]) == {"a": "hello there", "b": 7}
    assert end.data["response"]["statusCode"] == 201
    assert end.data["response"]["headers"]["x-own"] == "yes"


async def test_the_head_and_the_first_frame_do_not_wait_for_the_handler(
    engine: VirtualEngine,
) -> None:
    gate = asyncio.Event()

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        await gate.wait()
        return PlainTextResponse("done")

    async with (
        engine.client(one(engine, handler)) as client,
        client.stream("GET", "/", headers=SSE) as response,
    ):
        chunks = response.aiter_bytes()
        assert events_of(frames_of(await anext(chunks))) == ["metadata"]
        gate.set()
        rest = b"".join([chunk async for chunk in chunks])
    assert events_of(frames_of(rest)) == ["response"]


async def test_a_failed_try_is_withdrawn_and_written_again(engine: VirtualEngine) -> None:
    flaky = Flaky()

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await step.run("a", flaky.write))

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        kinds = ["metadata", "stream", "stream", "rollback", "redirect_info"]
        assert events_of(first) == kinds
        after = asyncio.create_task(read(client, url_of(first)))
        await engine.advance("1m")
        second = await after
        assert events_of(second) == ["metadata", *["stream"] * 4, "commit", "response"]
        held = Held().take(first).take(second)
        assert held.text == "one two three four"
        assert held.response["response"]["body"] == "one two three four"
        # Who asks for all of it later is spared the first try.
        whole = Held().take(await read(client, url_of(first).removesuffix("&after=sync")))
        assert whole.text == held.text
        assert whole.seen.keys() <= held.seen.keys()


async def test_a_reader_that_joins_meanwhile_sees_what_the_requester_sees(
    engine: VirtualEngine,
) -> None:
    gate = asyncio.Event()

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        async def write() -> str:
            stream.push("a")
            await gate.wait()
            stream.push("b")
            return "ab"

        return PlainTextResponse(await step.run("a", write))

    async with engine.client(one(engine, handler)) as client:
        async with client.stream("GET", "/", headers=SSE) as response:
            url = response.headers["durable-run-url"]
            lines = response.aiter_bytes()
            own = await anext(lines) + await anext(lines)
            others = [asyncio.create_task(read(client, url)) for _ in range(5)]
            await asyncio.sleep(0.02)
            gate.set()
            own += b"".join([chunk async for chunk in lines])
        frames = [f for f in frames_of(own) if f.event != "inngest.redirect_info"]
        for other in others:
            assert await other == frames


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_response_without_a_body(engine: VirtualEngine, status: int) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        return Response(status_code=status)

    async with engine.client(one(engine, handler)) as client:
        foreign = (await read(client, "/"))[-1].data["response"]
        assert (foreign["statusCode"], foreign["body"]) == (200, "")
        assert foreign["headers"]["durable-status"] == str(status)
        ours = (await read(client, "/", **{"durable-client": "test/1"}))[-1].data["response"]
        assert ours["statusCode"] == status
        assert "durable-status" not in ours["headers"]


async def test_binary_bodies_and_repeated_headers_are_not_lost(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        response = Response(b"\xff\x00\xfe", media_type="application/octet-stream")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async with engine.client(one(engine, handler)) as client:
        answer = (await read(client, "/"))[-1].data["response"]
    assert answer["bodyBase64"] == "/wD+"
    assert [n for n, _ in answer["headerList"]].count("set-cookie") == 2


async def test_an_http_exception_is_an_answer_and_an_escaped_one_a_failure(
    engine: VirtualEngine,
) -> None:
    app = fast(engine)

    @app.get("/conflict")
    @endpoint
    async def conflict() -> None:
        stream.push("x")
        raise HTTPException(409, "taken")

    @app.get("/boom")
    @endpoint(retries=0)
    async def boom() -> None:
        stream.push("x")
        raise RuntimeError("boom")

    async with engine.client(app) as client:
        frames = await read(client, "/conflict")
        assert events_of(frames) == ["metadata", "stream", "commit", "response"]
        assert frames[-1].data["status"] == "succeeded"
        assert frames[-1].data["response"]["statusCode"] == 409
        frames = await read(client, "/boom")
        assert events_of(frames) == ["metadata", "stream", "rollback", "response"]
        assert frames[-1].data["status"] == "failed"
        assert frames[-1].data["response"]["statusCode"] == 500


async def test_what_is_refused_before_the_handler_is_an_ordinary_answer(
    engine: VirtualEngine,
) -> None:
    app = fast(engine)

    async def nobody() -> None:
        raise HTTPException(401, "who are you?")

    @app.get("/private", dependencies=[Depends(nobody)])
    @endpoint
    async def private() -> None: ...

    @app.get("/typed/{number}")
    @endpoint
    async def typed(number: int) -> int:
        return number

    async with engine.client(app) as client:
        assert (await client.get("/private", headers=SSE)).status_code == 401
        assert (await client.get("/typed/x", headers=SSE)).status_code == 422
        assert (await client.get("/wait?runId=x&token=y", headers=SSE)).status_code == 401
        assert (await client.get("/nowhere", headers=SSE)).status_code == 404


async def test_who_does_not_ask_for_a_stream_gets_none(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/own")
    @endpoint(sse=False)
    async def own() -> StreamingResponse:
        await step.run("a", lambda: 1)
        return StreamingResponse(iter(["data: 1\n\n"]), media_type="text/event-stream")

    @app.api_route("/plain", methods=["GET", "HEAD"])
    @endpoint
    async def plain() -> str:
        stream.push("nobody reads it now")
        return "plain"

    async with engine.client(app) as client:
        response = await client.get("/own", headers=SSE)
        assert response.content == b"data: 1\n\n"
        for accept in (
            "*/*",
            "application/json",
            "text/event-stream;q=0",
            "text/event-streams",
            "text/*",
        ):
            answer = await client.get("/plain", headers={"accept": accept})
            assert answer.json() == "plain"
        assert (await client.head("/plain", headers=SSE)).headers["content-type"] == (
            "application/json"
        )
        for accept in (
            "text/event-stream",
            "application/json, TEXT/Event-Stream; q=0.5",
            "x/y,text/event-stream",
        ):
            answer = await client.get("/plain", headers={"accept": accept})
            assert events_of(frames_of(answer.content))[-1] == "response"


async def test_a_plain_request_is_streamed_for_whoever_follows_it(engine: VirtualEngine) -> None:
    flaky = Flaky()

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await step.run("a", flaky.write))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        await engine.advance("1m")
        held = Held().take(await read(client, response.headers["location"]))
        assert held.text == "one two three four"
        assert (await client.get(response.headers["location"])).text == held.text


# Outside steps


async def test_what_is_pushed_outside_steps_is_streamed_once(engine: VirtualEngine) -> None:
    passes = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        nonlocal passes
        passes += 1
        stream.push("first")
        await step.sleep("z1", "1s")
        stream.push("second")
        await step.run("a", lambda: 1)
        stream.push("third")
        await step.sleep("z2", "1s")
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        await engine.advance("5s")
        held = Held().take(await read(client, url_of(first).removesuffix("&after=sync")))
    assert passes == 3
    assert held.data == held.committed == ["first", "second", "third"]


async def test_a_handler_that_fails_pushes_again_what_was_not_permanent(
    engine: VirtualEngine,
) -> None:
    passes = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        nonlocal passes
        passes += 1
        stream.push("kept")
        await step.run("a", lambda: 1)
        stream.push(f"try {passes}")
        if passes == 1:
            raise RuntimeError("once")
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        assert events_of(first)[-2:] == ["stream", "rollback"]
        await engine.advance("1m")
        whole = await read(client, url_of(first).removesuffix("&after=sync"))
    assert Held().take(whole).data == ["kept", "try 2"]


async def test_a_pipe_outside_steps_is_a_step_of_its_own(engine: VirtualEngine) -> None:
    """A second pass may get the same text in other pieces, and would pay for it once more."""
    passes = 0

    async def pieces() -> AsyncIterator[str]:
        nonlocal passes
        passes += 1
        for piece in ("one ", "two", " three") if passes == 1 else ("one two ", "three"):
            yield piece
            await asyncio.sleep(0.01)

    flaky = Flaky()

    @endpoint
    async def handler(request: Request) -> JSONResponse:
        first, second = await asyncio.gather(
            stream.pipe(pieces()), step.run("a", flaky.write), return_exceptions=False
        )
        third = await stream.pipe(pieces)
        return JSONResponse([first, second, third])

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        await engine.advance("1m")
        whole = Held().take(await read(client, url_of(first).removesuffix("&after=sync")))
    texts = json.loads(whole.response["response"]["body"])
    assert texts == ["one two three", "one two three four", "one two three"]
    pipes = [
        d for s, d, _ in whole.chunks if s in (hash_name("stream.pipe"), hash_name("stream.pipe 2"))
    ]
    assert "".join(pipes) == "one two threeone two three"
    assert passes == 2


async def test_an_iterator_is_not_read_twice(engine: VirtualEngine) -> None:
    """What failed beside something that still runs is tried again when that has ended, in another
    execution, whose handler makes a new iterator. It costs no further try."""
    gate = asyncio.Event()
    passes = 0

    @endpoint(retries=1)
    async def handler(request: Request) -> JSONResponse:
        nonlocal passes
        passes += 1
        fails = 1 if passes == 1 else None
        return JSONResponse(
            await asyncio.gather(
                stream.pipe(words("a b c", fail_after=fails)), step.run("beside", gate.wait)
            )
        )

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/", follow_redirects=True))
        await asyncio.sleep(0.05)
        engine.clock.move_to(engine.clock.now() + 5_000)
        await asyncio.sleep(0.05)
        assert not asking.done()
        gate.set()
        assert (await asyncio.wait_for(asking, 5)).json() == ["a b c", True]
    assert passes == 2


async def test_pipes_outside_steps_may_run_side_by_side(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> JSONResponse:
        texts = await asyncio.gather(*(stream.pipe(words(text)) for text in ("a b", "c", "d e f")))
        await step.sleep("z", "1s")
        return JSONResponse(texts)

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        following = asyncio.create_task(read(client, url_of(first)))
        await engine.advance("1s")
        held = Held().take(first).take(await following)
    assert json.loads(held.response["response"]["body"]) == ["a b", "c", "d e f"]
    names = [hash_name(name) for name in ("stream.pipe", "stream.pipe 2", "stream.pipe 3")]
    assert {s for s, _, _ in held.chunks} == set(names)


async def test_a_step_that_is_cancelled_by_its_handler_has_its_chunks_withdrawn(
    engine: VirtualEngine,
) -> None:
    tries = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        async def write() -> str:
            nonlocal tries
            tries += 1
            stream.push(f"try {tries}")
            await asyncio.sleep(0.05 if tries == 1 else 0)
            return "ok"

        try:
            async with asyncio.timeout(0.02):
                await step.run("a", write)
        except TimeoutError:
            await step.run("a", write)
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        frames = await read(client, "/")
    assert Held().take(frames).data == ["try 2"]
    assert "rollback" in events_of(frames)


async def test_where_nothing_can_be_streamed(engine: VirtualEngine) -> None:
    assert stream.push(1) is None  # type: ignore[func-returns-value]
    assert await stream.pipe(words("outside any request")) == "outside any request"
    caught: list[str] = []

    async def dependency() -> None:
        with pytest.raises(NotInRunError, match="outside a run"):
            stream.push(1)

    app = fast(engine)

    def later() -> None:
        try:
            stream.push("too late")
        except NotInRunError as error:
            caught.append(str(error))

    @app.get("/late", dependencies=[Depends(dependency)])
    @endpoint
    async def late() -> Response:
        return PlainTextResponse("x", background=BackgroundTask(later))

    @app.get("/plain")
    async def plain() -> None:
        with pytest.raises(NotInRunError, match="not decorated"):
            stream.push(1)

    async with engine.client(app) as client:
        assert (await client.get("/late")).text == "x"
        assert (await client.get("/plain")).status_code == 200
        await asyncio.sleep(0.02)
    assert "after the response" in caught[0]


async def test_values_and_limits(engine: VirtualEngine) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> PlainTextResponse:
        with pytest.raises(StepValueError, match=r"stream.push.*\$\.a.*set"):
            stream.push({"a": {1}})
        stream.push(None)
        stream.push([1, 2.5, "ü\n\u2028"])
        with pytest.raises(LimitError, match="max_stream"):
            stream.push("x" * 2_000)
        return PlainTextResponse("x")

    engine = VirtualEngine(max_stream=1_000)
    async with engine.client(one(engine, handler)) as client:
        assert Held().take(await read(client, "/")).data == [None, [1, 2.5, "ü\n\u2028"]]


async def test_a_buffer_that_is_full_is_an_error_for_push_and_a_wait_for_pipe(
    engine: VirtualEngine,
) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> PlainTextResponse:
        with pytest.raises(LimitError, match=r"stream\.pipe"):
            for _ in range(20):
                stream.push("x" * 1_000_000)
        await asyncio.sleep(0.01)

        async def large() -> int:
            return len(await stream.pipe("y" * 1_000_000 for _ in range(20)))

        return PlainTextResponse(str(await step.run("a", large)))

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).text == "20000000"


# Steps in threads


async def test_plain_functions_stream_too(engine: VirtualEngine) -> None:
    def tokens() -> Iterator[str]:
        for n in range(2_000):
            yield f"{n} "

    @endpoint
    def handler(request: Request) -> PlainTextResponse:
        stream.push("begin")
        text = step.sync.run("a", lambda: stream.sync.pipe(tokens()))
        return PlainTextResponse(text)

    @endpoint
    async def mixed(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await step.run("a", lambda: stream.sync.pipe(tokens)))

    app = star(engine, Route("/sync", handler), Route("/mixed", mixed))
    expected = "".join(tokens())
    async with engine.client(app) as client:
        held = Held().take(await read(client, "/sync"))
        assert held.committed == ["begin", *tokens()]
        assert held.response["response"]["body"] == expected
        assert Held().take(await read(client, "/mixed")).text == expected


async def test_a_thread_that_outlives_its_try_is_not_heard(engine: VirtualEngine) -> None:
    tries: list[int] = []
    late: list[str] = []
    done = threading.Event()

    def slow() -> str:
        tries.append(1)
        number = len(tries)
        stream.push(f"try {number}")
        if number > 1:
            return "ok"
        time.sleep(0.2)
        try:
            stream.push("zombie")
        except NotInRunError as error:
            late.append(str(error))
        done.set()
        return "late"

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await step.options(timeout="50ms").run("a", slow))

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        await engine.advance("1m")
        assert await asyncio.get_running_loop().run_in_executor(None, done.wait, 5)
        held = Held().take(await read(client, url_of(first).removesuffix("&after=sync")))
    assert held.data == ["try 2"]
    assert "after the end of step 'a'" in late[0]


async def test_a_blocking_pipe_on_the_event_loop_is_refused(engine: VirtualEngine) -> None:
    @endpoint(retries=0)
    async def handler(request: Request) -> PlainTextResponse:
        with pytest.raises(UsageError, match="would block the event loop"):
            stream.sync.pipe(["x"])
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).text == "x"


# Sources


class Bytes(httpx.AsyncByteStream):
    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk

    async def aclose(self) -> None:
        self.closed = True


async def test_sources() -> None:
    async def split() -> AsyncIterator[bytes]:
        for byte in "häßlich 🙂".encode():
            yield bytes([byte])

    async def opened() -> AsyncIterator[str]:
        return words("a coroutine function")

    assert await stream.pipe("a text") == "a text"
    assert await stream.pipe(["a", b" list"]) == "a list"
    assert await stream.pipe(split()) == "häßlich 🙂"
    assert await stream.pipe(split) == "häßlich 🙂"
    assert await stream.pipe(opened) == "a coroutine function"
    assert await stream.pipe(opened()) == "a coroutine function"
    assert await stream.pipe(iter("abc")) == "abc"
    assert stream.sync.pipe(bytes([b]) for b in "häßlich".encode()) == "häßlich"
    for wrong in (7, None, [7], [{"a": 1}]):
        with pytest.raises(UsageError, match=r"stream\.pipe"):
            await stream.pipe(wrong)
    with pytest.raises(UsageError, match="await"):
        stream.sync.pipe(split())
    with pytest.raises(UnicodeDecodeError):
        await stream.pipe([b"cut in the middle: \xc3"])


async def test_an_http_response_is_a_source() -> None:
    request = httpx.Request("GET", "http://x/")
    body = Bytes("é".encode()[:1], "é".encode()[1:], b"!")
    assert await stream.pipe(httpx.Response(200, stream=body, request=request)) == "é!"
    latin = {"content-type": "text/plain; charset=latin-1"}
    body = Bytes("é".encode("latin-1"))
    response = httpx.Response(200, headers=latin, stream=body, request=request)
    assert await stream.pipe(response) == "é"
    assert await stream.pipe(httpx.Response(200, text="read already", request=request)) == (
        "read already"
    )
    with pytest.raises(httpx.HTTPStatusError):
        await stream.pipe(httpx.Response(500, stream=Bytes(b"sorry"), request=request))


async def test_a_source_is_closed_when_its_step_is_not_finished(engine: VirtualEngine) -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "x"
            await asyncio.sleep(60)
        finally:
            closed.append("closed")

    @endpoint(retries=0)
    async def handler(request: Request) -> PlainTextResponse:
        try:
            await step.options(timeout="20ms").run("a", lambda: stream.pipe(source()))
        except StepError:
            return PlainTextResponse("timed out")
        return PlainTextResponse("?")

    async with engine.client(one(engine, handler)) as client:
        held = Held().take(await read(client, "/"))
        assert (held.data, held.response["response"]["body"]) == ([], "timed out")
    assert closed == ["closed"]


# /wait


@pytest.fixture
async def finished(engine: VirtualEngine) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client, and where a run is followed that has ended after a retry."""
    flaky = Flaky()

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        stream.push("title")
        return PlainTextResponse(await step.run("a", flaky.write))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await engine.advance("1m")
        yield client, response.headers["location"]


async def test_a_stream_is_resumed_at_every_position(
    finished: tuple[httpx.AsyncClient, str],
) -> None:
    client, url = finished
    whole = await read(client, url, **{"last-event-id": "0"})
    last = int(whole[-1].id or 0)
    for position in range(last):
        rest = await read(client, url, **{"last-event-id": str(position)})
        assert rest[0] == Frame(str(position), "inngest.metadata", whole[0].data)
        assert rest == await read(client, f"{url}&from={position}")
        ids = [int(f.id or 0) for f in rest[1:]]
        assert ids == sorted(ids)
        assert all(n > position for n in ids)
        before = [f for f in whole if f.event != "inngest.metadata" and int(f.id or 0) <= position]
        assert Held().take(before).take(rest).text == "titleone two three four"
    # The header is what the client really has; the query may be from an old link.
    assert await read(client, f"{url}&from=3", **{"last-event-id": "5"}) == (
        await read(client, f"{url}&from=5")
    )


async def test_who_has_the_end_is_told_to_stop(finished: tuple[httpx.AsyncClient, str]) -> None:
    client, url = finished
    last = (await read(client, url))[-1].id
    response = await client.get(url, headers={**SSE, "last-event-id": str(last)})
    assert response.status_code == 204


async def test_who_has_all_but_the_end_is_told_the_end(engine: VirtualEngine) -> None:
    """Also when the last thing in the log is a rollback that it could be spared."""

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        def fail() -> None:
            raise ValueError("no")

        await step.run("a", lambda: stream.push("x"))
        try:
            await step.options(retries=0).run("b", fail)
        except StepError:
            return PlainTextResponse("fallback")
        return PlainTextResponse("?")

    async with engine.client(one(engine, handler)) as client:
        first = await client.get("/", headers=SSE)
        url = first.headers["durable-run-url"]
        last = int(frames_of(first.content)[-1].id or 0)
        for position in range(last):
            rest = await read(client, url, **{"last-event-id": str(position)})
            assert rest[-1].event == "inngest.response", position
        for beyond, status in ((last, 204), (last + 1, 400), (999_999, 400)):
            response = await client.get(url, headers={**SSE, "last-event-id": str(beyond)})
            assert response.status_code == status


async def test_an_event_source_that_reconnects_to_the_endpoint_begins_no_new_run(
    engine: VirtualEngine,
) -> None:
    runs = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        nonlocal runs
        runs += 1
        stream.push("x")
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        assert Held().take(await read(client, "/")).text == "x"
        response = await client.get("/", headers={**SSE, "last-event-id": "1"})
        assert (response.status_code, response.json()["error"]) == (400, "bad_request")
        assert "Durable-Run-Url" in response.json()["detail"]
    assert runs == 1


async def test_the_end_of_a_run_that_is_only_parked_takes_no_position(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        await step.run("a", lambda: stream.push("x"))
        await step.sleep("z", "1h")
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        first = await client.get("/", headers=SSE)
        run_id, url = run_id_of(first), first.headers["durable-run-url"]
        assert isinstance(engine.store, MemoryStore)
        row = engine.store._rows[run_id]
        row.run = row.run._replace(status=Status.PARKED, reason="request_sealed")
        frames = await read(client, url)
        assert (frames[-1].id, frames[-1].data["response"]["statusCode"]) == (None, 503)
        assert frames[-1].data["status"] == "failed"
        assert await engine.host.retry(run_id)
        following = asyncio.create_task(read(client, url, **{"last-event-id": "2"}))
        await asyncio.sleep(0.01)
        await engine.advance("1h")
        assert (await following)[-1].data["response"]["body"] == "x"


async def test_a_run_that_is_cancelled_after_a_crash_withdraws_what_was_open(
    engine: VirtualEngine,
) -> None:
    gate = asyncio.Event()

    @endpoint(cancellable=True)
    async def handler(request: Request) -> PlainTextResponse:
        async def write() -> None:
            stream.push("half")
            await gate.wait()

        await step.run("a", write)
        return PlainTextResponse("x")

    app: Any = one(engine, handler)
    async with engine.client(app) as client:
        async with client.stream("GET", "/", headers=SSE) as response:
            run_id = run_id_of(response)
            held, chunks = Held(), response.aiter_bytes()
            while not held.data:
                held.take(frames_of(await anext(chunks)))
            await engine.crash()
        engine._executors.clear()  # nobody executes it yet
        await engine.start()
        assert await engine.cancel(run_id, "by a test")
        assert isinstance(engine.store, MemoryStore)
        kinds = [record.kind.name for record in engine.store._rows[run_id].records]
        assert kinds == ["DATA", "ROLLBACK"]


async def test_only_what_is_committed(finished: tuple[httpx.AsyncClient, str]) -> None:
    client, url = finished
    frames = await read(client, f"{url}&view=committed")
    assert "rollback" not in events_of(frames)
    assert Held().take(frames).text == "titleone two three four"
    for n, frame in enumerate(frames[:-1]):
        rest = await read(client, f"{url}&view=committed", **{"last-event-id": str(frame.id)})
        assert rest[1:] == frames[n + 1 :]


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("&from=-1", {}),
        ("&from=x", {}),
        ("&from=1.2", {}),
        ("&from=9999999999999999", {}),
        ("&from=1\n", {}),
        ("&view=both", {}),
        ("", {"last-event-id": "x"}),
        ("", {"last-event-id": "²"}),
        ("", {"last-event-id": ""}),
    ],
)
async def test_a_position_that_is_none_is_refused(
    finished: tuple[httpx.AsyncClient, str], query: str, headers: dict[str, str]
) -> None:
    client, url = finished
    encoded = {name: value.encode("utf-8") for name, value in headers.items()}
    response = await client.get(url + query.replace("\n", "%0A"), headers={**SSE, **encoded})  # type: ignore[dict-item]
    if headers == {"last-event-id": ""}:
        assert response.status_code == 200  # EventSource never sends it, and it names nothing
    else:
        assert (response.status_code, response.json()["error"]) == (400, "bad_request")


async def test_a_run_that_ends_without_a_response_ends_its_stream_all_the_same(
    engine: VirtualEngine,
) -> None:
    @endpoint(max_runtime="10s", cancellable=True)
    async def handler(request: Request) -> PlainTextResponse:
        await step.run("a", lambda: stream.pipe(words("some words")))
        await step.sleep("z", "1h")
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        following = asyncio.create_task(read(client, url_of(first)))
        await engine.advance("20s")
        end = (await following)[-1].data
        assert (end["status"], end["response"]["statusCode"]) == ("failed", 504)
        assert json.loads(end["response"]["body"])["error"] == "timed_out"

        first = await read(client, "/")
        following = asyncio.create_task(read(client, url_of(first)))
        await asyncio.sleep(0.01)
        url = url_of(first).removesuffix("&after=sync")
        assert (await client.delete(url)).json()["status"] == "cancelled"
        end = (await following)[-1].data
        assert (end["status"], end["response"]["statusCode"]) == ("failed", 409)
        assert (await client.delete(url)).status_code == 200  # as often as one likes


async def test_stopping_a_run_while_its_own_client_reads_it(engine: VirtualEngine) -> None:
    @endpoint(cancellable=True)
    async def handler(request: Request) -> PlainTextResponse:
        async def write() -> str:
            stream.push("begun")
            await asyncio.sleep(60)
            return ""

        return PlainTextResponse(await step.run("a", write))

    async with (
        engine.client(one(engine, handler)) as client,
        client.stream("GET", "/", headers=SSE) as response,
    ):
        chunks = response.aiter_bytes()
        begun = await anext(chunks) + await anext(chunks)
        answer = await client.delete(response.headers["durable-run-url"])
        assert answer.status_code == 200
        frames = frames_of(begun + b"".join([chunk async for chunk in chunks]))
    assert events_of(frames) == ["metadata", "stream", "rollback", "redirect_info", "response"]
    assert frames[-1].data["response"]["statusCode"] == 409


async def test_cancelling_is_for_endpoints_that_allow_it(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        await step.sleep("z", "1h")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        location = (await client.get("/")).headers["location"]
        answer = await client.delete(location)
        assert (answer.status_code, answer.json()["error"]) == (403, "not_cancellable")
        await engine.advance("1h")
        assert (await client.get(location)).text == "done"

    @endpoint(cancellable=True)
    async def quick(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    engine = VirtualEngine()
    async with engine.client(one(engine, quick)) as client:
        url = (await client.get("/", headers=SSE)).headers["durable-run-url"]
        answer = await client.delete(url)
        assert (answer.status_code, answer.json()["error"]) == (409, "run_ended")
        assert (await client.delete(url.replace("token=", "token=x"))).status_code == 401


async def test_a_repeat_of_a_key_joins_the_stream(engine: VirtualEngine) -> None:
    gate = asyncio.Event()
    tries = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        nonlocal tries
        tries += 1
        stream.push("a")
        await gate.wait()
        stream.push("b")
        return PlainTextResponse("ab")

    async with engine.client(one(engine, handler)) as client:
        key = {"idempotency-key": "k"}
        first = asyncio.create_task(read(client, "/", **key))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(read(client, "/", **key))
        await asyncio.sleep(0.02)
        gate.set()
        assert Held().take(await first).text == Held().take(await second).text == "ab"
        third = await client.get("/", headers={**SSE, **key})
        assert third.headers["durable-run-url"].startswith("/wait?runId=")
        assert frames_of(third.content) == await second
        resumed = await read(client, "/", **key, **{"last-event-id": "1"})
        assert Held().take(resumed).text == "b"
        answer = await client.get("/", headers={**SSE, **key, "last-event-id": "x"})
        assert answer.status_code == 400
    assert tries == 1


async def test_heartbeats(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        await asyncio.sleep(0.2)
        await step.sleep("z", "1h")
        return PlainTextResponse("x")

    app = one(engine, handler, heartbeat="50ms")
    async with engine.client(app) as client:
        response = await client.get("/", headers=SSE)
        assert response.content.count(b": keep-alive\n\n") in range(2, 5)
        following = asyncio.create_task(
            client.get(response.headers["durable-run-url"], headers=SSE)
        )
        await asyncio.sleep(0.2)
        await engine.advance("1h")
        content = (await following).content
        assert content.count(b": keep-alive\n\n") >= 2
        assert events_of(frames_of(content)) == ["metadata", "response"]


# What stands around


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
        await engine.send_event_now("ok")
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
        def bad() -> Any:
            stream.push("from a")
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
