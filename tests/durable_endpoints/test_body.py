"""Request bodies: recorded whole however the handler reads them, and bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from durable_endpoints import endpoint, step
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import follow, one, run_id_of, star

pytestmark = pytest.mark.anyio

BODY = bytes(range(256)) * 1_200


async def read_all(request: Request) -> int:
    return len(await request.body())


async def read_stream(request: Request) -> int:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return size


async def read_half(request: Request) -> int:
    async for chunk in request.stream():
        return len(chunk)
    return 0


async def read_nothing(request: Request) -> int:
    return 0


class Chunked:
    """Sends a request in chunks, and notes what the application sends."""

    def __init__(self, app: Any, chunks: list[bytes], **scope: Any) -> None:
        self.app = app
        self.chunks = list(chunks)
        self.reads = 0
        self.leaves = False
        self.sent: list[dict[str, Any]] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [(b"host", b"a"), (b"transfer-encoding", b"chunked")],
            "scheme": "http",
            "server": ("a", 80),
            "client": None,
            "state": {},
            "http_version": "1.1",
            **scope,
        }

    async def receive(self) -> dict[str, Any]:
        self.reads += 1
        if self.chunks:
            await asyncio.sleep(0)
            chunk = self.chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks)}
        if self.leaves:
            return {"type": "http.disconnect"}
        await asyncio.sleep(60)
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def run(self) -> int:
        await self.app(self.scope, self.receive, self.send)
        return int(self.sent[0]["status"])


@pytest.mark.parametrize("read", [read_all, read_stream, read_half, read_nothing])
async def test_the_body_is_kept_whole_however_it_is_read(engine: VirtualEngine, read: Any) -> None:
    sizes: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        sizes.append(await read(request))
        await step.sleep("nap", "1h")
        return PlainTextResponse(str(await read_all(request) if read is read_nothing else 0))

    app = one(engine, handler)
    async with engine.client(app) as client:
        chunks = [BODY[n : n + 100_000] for n in range(0, len(BODY), 100_000)]
        sender = Chunked(app, chunks)
        assert await sender.run() == 303
        headers = dict(sender.sent[0]["headers"])
        answer = await follow(engine, client, headers[b"location"].decode(), "1h")
        if read is read_nothing:
            assert answer.text == str(len(BODY))
        if read in (read_all, read_stream):
            assert sizes == [len(BODY)] * 2


async def test_a_body_over_the_limit_is_413(engine: VirtualEngine) -> None:
    ran: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        ran.append(1)
        return PlainTextResponse("ok")

    app = one(engine, handler, max_request_body=1_000)
    async with engine.client(app) as client:
        assert (await client.post("/", content=b"x" * 1_000)).status_code == 200
        response = await client.post("/", content=b"x" * 1_001)
        assert response.status_code == 413
        assert "max_request_body" in response.text
        assert await Chunked(app, [b"x" * 600] * 10).run() == 413
        assert len((await engine.store.list_runs(list(Status), None, 10)).lines) == 1
    assert ran == [1]


async def test_a_client_that_leaves_while_uploading_makes_no_run_and_no_noise(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        raise AssertionError

    app = one(engine, handler)
    async with engine.client(app):
        sender = Chunked(app, [b"x", b"y"])
        sender.leaves = True
        original = sender.receive

        async def receive() -> Any:
            message = await original()
            return {**message, "more_body": True} if message["type"] == "http.request" else message

        with caplog.at_level("INFO", logger="durable_endpoints"):
            await app(sender.scope, receive, sender.send)
        assert sender.sent == []
        assert [record.getMessage() for record in caplog.records] == [
            "a client left before its request to '/' was there"
        ]
        assert (await engine.store.list_runs(list(Status), None, 10)).lines == []


async def test_undecorated_uploads_are_not_read_by_us(engine: VirtualEngine) -> None:
    async def plain(request: Request) -> Response:
        return PlainTextResponse("not reading")

    @endpoint
    async def durable(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = star(
        engine,
        Route("/plain", plain, methods=["POST"]),
        Route("/durable", durable, methods=["POST"]),
    )
    async with engine.client(app):
        sender = Chunked(app, [b"x"] * 5, path="/plain", raw_path=b"/plain")
        assert await sender.run() == 200
        assert sender.reads == 0


async def test_a_refused_upload_is_not_asked_for(engine: VirtualEngine) -> None:
    """With `Expect: 100-continue` the server says 100 at the first read; a refusal has none."""
    from fastapi import Depends, HTTPException

    from tests.durable_endpoints.helpers import fast

    app = fast(engine)

    def refuse() -> None:
        raise HTTPException(401)

    @app.post("/")
    @endpoint
    async def handler(_: None = Depends(refuse)) -> str:
        return "never"

    async with engine.client(app):
        sender = Chunked(app, [b"x"] * 5)
        assert await sender.run() == 401
        assert sender.reads == 0


async def test_a_disconnect_is_hidden_from_a_run(engine: VirtualEngine) -> None:
    gate = asyncio.Event()
    seen: list[bool] = []

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("slow", gate.wait)
        seen.append(await request.is_disconnected())
        return PlainTextResponse("ok")

    async def plain(request: Request) -> Response:
        seen.append(await request.is_disconnected())
        return PlainTextResponse("ok")

    app = star(engine, Route("/", handler, methods=["POST"]), Route("/p", plain, methods=["POST"]))
    async with engine.client(app):
        sender = Chunked(app, [b"x"])
        sender.leaves = True
        running = asyncio.create_task(sender.run())
        await asyncio.sleep(0.02)
        gate.set()
        assert await asyncio.wait_for(running, 5) == 200
        sender = Chunked(app, [], path="/p", raw_path=b"/p")
        sender.leaves = True
        await sender.run()
    assert seen == [False, True]


async def test_the_length_is_that_of_the_stored_body(engine: VirtualEngine) -> None:
    lengths: list[str | None] = []

    @endpoint
    async def handler(request: Request) -> Response:
        lengths.append(request.headers.get("content-length"))
        assert "transfer-encoding" not in request.headers or len(lengths) == 1
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    app = one(engine, handler)
    async with engine.client(app) as client:
        sender = Chunked(app, [b"abc", b"de"])
        await sender.run()
        await engine.advance("1h")
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "1h")
        run = await engine.run(run_id_of(response))
        assert run.status is Status.COMPLETED
    assert lengths == [None, "5", None, None]
