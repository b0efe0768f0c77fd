"""Streams through the whole SDK: what the requester gets, and what handlers and steps stream."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import Depends, HTTPException, Response
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from durable_endpoints import (
    LimitError,
    NotInRunError,
    StepValueError,
    UsageError,
    endpoint,
    step,
    stream,
)
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, one, run_id_of, star
from tests.durable_endpoints.sources import A, B, Flaky, seen, url_of, words
from tests.durable_endpoints.streams import SSE, Frame, Held, events_of, frames_of, read

pytestmark = pytest.mark.anyio

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
        await seen()
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


async def test_what_a_handler_streams_while_it_is_unwound_is_not_heard(
    engine: VirtualEngine,
) -> None:
    passes = 0

    @endpoint
    async def handler(request: Request) -> PlainTextResponse:
        nonlocal passes
        passes += 1
        stream.push("before ")
        try:
            await step.sleep("nap", "1h")
        finally:
            stream.push(f"left in pass {passes} ")
        stream.push("after")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        location = (await client.get("/")).headers["location"]
        await engine.advance("1h")
        held = Held().take(await read(client, location))
    assert held.data == held.committed == ["before ", "left in pass 2 ", "after"]


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
            await seen()
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
        await asyncio.sleep(0.2)
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
            await asyncio.sleep(5 if tries == 1 else 0)
            return "ok"

        try:
            async with asyncio.timeout(0.2):
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
