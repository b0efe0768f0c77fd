"""What `stream.pipe` can read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from durable_endpoints import (
    StepError,
    UsageError,
    endpoint,
    step,
    stream,
)
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one
from tests.durable_endpoints.sources import words
from tests.durable_endpoints.streams import Held, read

pytestmark = pytest.mark.anyio


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
            await step.options(timeout="1s").run("a", lambda: stream.pipe(source()))
        except StepError:
            return PlainTextResponse("timed out")
        return PlainTextResponse("?")

    async with engine.client(one(engine, handler)) as client:
        held = Held().take(await read(client, "/"))
        assert (held.data, held.response["response"]["body"]) == ([], "timed out")
    assert closed == ["closed"]
