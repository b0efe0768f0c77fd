"""The applications whose streams are measured, as factories for `uvicorn --factory`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cache

from fastapi import FastAPI
from starlette.responses import Response, StreamingResponse

from benchmarks.apps import frozen
from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step, stream
from durable_endpoints.protocol.frames import record_frames
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.protocol.streams import RecordKind, StreamRecord

TOKEN = " token"
WRITE = hash_name("write")


def frame(position: int) -> bytes:
    """The frame that a token gets."""
    record = StreamRecord(position, 1, RecordKind.DATA, WRITE, 1, 0, b'" token"')
    return record_frames(record)


async def slow_tokens() -> AsyncIterator[str]:
    """Two tokens, as a model gives them: some time apart."""
    yield TOKEN
    await asyncio.sleep(0.02)
    yield TOKEN


@cache
def all_frames(count: int) -> bytes:
    return b"".join(map(frame, range(1, count + 1)))


async def tokens(count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield TOKEN


def bare_stream() -> FastAPI:
    """The same frames from memory, without durability."""
    app = FastAPI(lifespan=frozen)

    @app.get("/tokens/{count}")
    async def stream_tokens(count: int) -> Response:
        async def frames() -> AsyncIterator[bytes]:
            number = 0
            async for _ in tokens(count):
                number += 1
                yield frame(number)

        return StreamingResponse(frames(), media_type="text/event-stream")

    @app.get("/slow")
    async def slow() -> Response:
        async def frames() -> AsyncIterator[bytes]:
            async for _ in slow_tokens():
                yield frame(1)

        return StreamingResponse(frames(), media_type="text/event-stream")

    @app.get("/bytes/{count}")
    async def send_bytes(count: int) -> Response:
        """All frames in pieces of 256 KiB: what the socket takes."""
        content = all_frames(count)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(content), 262_144):
                yield content[start : start + 262_144]

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


def durable_stream() -> FastAPI:
    app = FastAPI(lifespan=frozen)
    app.add_middleware(DurableEndpointsMiddleware)
    app.mount("/wait", endpoint_proxy())

    @app.get("/tokens/{count}")
    @endpoint
    async def stream_tokens(count: int) -> int:
        return len(await step.run("write", lambda: stream.pipe(tokens(count))))

    @app.get("/slow")
    @endpoint
    async def slow() -> int:
        return len(await step.run("write", lambda: stream.pipe(slow_tokens())))

    @app.get("/ticks/{count}/{interval}")
    @endpoint
    async def ticks(count: int, interval: float) -> None:
        """Streams the time, so that readers can tell how late they get it."""

        async def write() -> None:
            for _ in range(count):
                await asyncio.sleep(interval)
                stream.push(time.monotonic_ns())

        await step.run("write", write)

    return app
