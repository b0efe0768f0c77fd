"""Streams at `/wait`: resumed, joined late, cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from durable_endpoints import (
    StepError,
    endpoint,
    step,
    stream,
)
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints.helpers import one, run_id_of
from tests.durable_endpoints.sources import Flaky, url_of, words
from tests.durable_endpoints.streams import SSE, Frame, Held, events_of, frames_of, read

pytestmark = pytest.mark.anyio


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
    # Where it can be followed is told before the end, or not any more.
    events = [event for event in events_of(frames) if event != "redirect_info"]
    assert events == ["metadata", "stream", "rollback", "response"]
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
