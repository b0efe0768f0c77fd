"""Streams, as they are produced and as they are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import httpx

from durable_endpoints import fetch_with_stream, stream
from durable_endpoints.client import (
    Chunk,
    Commit,
    DurableStream,
    DurableStreamSync,
    Log,
    Metadata,
    Progress,
    Rollback,
    Transcript,
    cancel_run,
    fetch_with_stream_sync,
    open_stream,
    open_stream_sync,
)


async def words() -> AsyncIterator[str]:
    yield "a"


def blocking_words() -> Iterator[bytes]:
    yield b"a"


async def produce(client: httpx.AsyncClient) -> None:
    assert_type(stream.push({"anything": ["that", "is", 1, None]}), None)
    assert_type(await stream.pipe(words()), str)
    assert_type(await stream.pipe(words), str)
    assert_type(await stream.pipe(blocking_words()), str)
    assert_type(await stream.pipe("a text"), str)
    async with client.stream("GET", "https://example.org") as response:
        assert_type(await stream.pipe(response), str)
    assert_type(stream.sync.pipe(blocking_words()), str)


async def read() -> None:
    texts: list[str] = []
    response = await fetch_with_stream(
        "https://example.org/report",
        method="POST",
        json={"topic": "whales"},
        idempotency_key="7",
        give_up_after=60,
        on_data=lambda chunk: texts.append(chunk.data),
        on_rollback=lambda rollback: texts.clear(),
        on_progress=lambda progress: print(progress.current),
    )
    assert_type(response, httpx.Response)
    async with open_stream("https://example.org/report", client=httpx.AsyncClient()) as events:
        assert_type(events, DurableStream)
        transcript = Transcript()
        async for event in events:
            transcript.feed(event)
            match event:
                case Chunk(data=data, step=step):
                    assert_type(data, Any)
                    assert_type(step, str | None)
                case Commit() | Rollback() | Metadata():
                    assert_type(event, Commit | Rollback | Metadata)
                case Progress(current=current):
                    assert_type(current, float)
                case Log(message=message):
                    assert_type(message, str)
        assert_type(events.response, httpx.Response)
    assert_type(transcript.text, str)
    assert_type(transcript.committed_text, str)
    assert_type(await cancel_run("https://example.org/wait?runId=1&token=2"), httpx.Response)


def read_blocking() -> None:
    assert_type(
        fetch_with_stream_sync("https://example.org", client=httpx.Client()), httpx.Response
    )
    with open_stream_sync("https://example.org", params={"a": 1}) as events:
        assert_type(events, DurableStreamSync)
        for event in events:
            print(event.position if isinstance(event, Chunk) else event)
