"""Streams under violence: connections cut at every byte, processes killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from durable_endpoints import fetch_with_stream
from durable_endpoints.client import Pacing, Transcript, fetch_with_stream_sync
from tests.chaos.cutting import CuttingProxy
from tests.chaos.process import Server
from tests.durable_endpoints.streams import SSE, Frame, Held, frames_of, read

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("DURABLE_TESTS_KILLS", "8"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, app="tests.chaos.stream_app:app") as server:
        yield server


class Truth:
    """What stands at each position, for all readers."""

    def __init__(self) -> None:
        self.frames: dict[tuple[str, str], Frame] = {}

    def check(self, run: str, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.id is not None and frame.event != "inngest.metadata":
                assert self.frames.setdefault((run, frame.id), frame) == frame


class Reader:
    """A client that does not give up: it repeats its request with the same key until it knows the
    run's URL, and then goes on there from the last frame it has whole."""

    def __init__(self, base: str, run: str, truth: Truth) -> None:
        self.run = run
        self.held = Held()
        self.connections = 0
        self._base = base
        self._url: str | None = None
        self._truth = truth

    async def read(self, client: httpx.AsyncClient, patience: float = 60) -> Held:
        with anyio.fail_after(patience):
            while self.held.response is None:
                try:
                    await self._connect(client)
                except httpx.TransportError:
                    await anyio.sleep(0.003)
        return self.held

    async def _connect(self, client: httpx.AsyncClient) -> None:
        headers = dict(SSE)
        if self._url is None:
            url = f"{self._base}/report/{self.run}"
            headers["idempotency-key"] = self.run
        else:
            url = f"{self._base}{self._url}"
        if self.held.last_id is not None:
            headers["last-event-id"] = self.held.last_id
        self.connections += 1
        rest = b""
        try:
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code == 503:
                    await anyio.sleep(0.02)
                    return
                assert response.status_code == 200, await response.aread()
                self._url = response.headers.get("durable-run-url", self._url)
                async for piece in response.aiter_raw():
                    rest = self._take(rest + piece)
        finally:
            self._take(rest)

    def _take(self, content: bytes) -> bytes:
        whole, end, rest = content.rpartition(b"\n\n")
        frames = frames_of(whole + end) if whole else []
        self._truth.check(self.run, frames)
        self.held.take(frames)
        return rest

    def check(self) -> None:
        """What was assembled is what was sent."""
        assert self.held.response["response"]["statusCode"] == 200, self.held.response
        texts = json.loads(self.held.response["response"]["body"])["texts"]
        assert self.held.committed == self.held.data
        by_step: dict[str | None, str] = {}
        for step, data, _ in self.held.chunks:
            by_step[step] = by_step.get(step, "") + data
        title, first, between, left, right, end = texts
        assert by_step.pop(None) == title + between + end
        assert sorted(by_step.values()) == sorted([first, left, right])


async def test_a_stream_is_cut_at_every_byte(server: Server) -> None:
    """The reader has what came up to there, and asks for the rest."""
    async with httpx.AsyncClient(timeout=20) as client:
        response = await client.get(f"{server.url}/short/r", headers=SSE)
        url = response.headers["durable-run-url"]
        await read(client, f"{server.url}{url}")  # to its end
    whole = await read_some(server, url, "0", None)
    truth = Held().take(frames_of(unchunked(whole)))
    assert (truth.text, truth.committed) == ("aé", ["a", "é"])
    for position in range(1, len(whole) + 1):
        held = Held()
        got = unchunked(await read_some(server, url, "0", position))
        cut, end, _ = got.rpartition(b"\n\n")
        held.take(frames_of(cut + end))
        if held.response is None:
            rest = unchunked(await read_some(server, url, held.last_id or "0", None))
            held.take(frames_of(rest))
        assert held.chunks == truth.chunks, position
        assert held.response == truth.response


async def read_some(server: Server, url: str, last_id: str, size: int | None) -> bytes:
    """The first `size` bytes of a body, and then the connection is reset; or all of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: text/event-stream\r\n"
    writer.write(f"{head}Last-Event-ID: {last_id}\r\n\r\n".encode())
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    try:
        return await reader.read() if size is None else await reader.readexactly(size)
    finally:
        writer.transport.abort()


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body (RFC 9112 §7.1) that may be cut off anywhere."""
    content = b""
    while b"\r\n" in body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        content += body[:length]
        body = body[length + 2 :]
    return content


async def test_live_streams_are_cut_everywhere(server: Server) -> None:
    """Every connection is cut, after fewer bytes than a run has: from the first request on."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    truth = Truth()
    async with (
        CuttingProxy(server.port, lambda: chance.randrange(1, 1_500)) as proxy,
        httpx.AsyncClient(timeout=20) as client,
    ):
        for batch in range(6):
            readers = [Reader(proxy.url, f"r{batch}-{n}", truth) for n in range(8)]
            late = [Reader(proxy.url, f"r{batch}-{n}", truth) for n in range(8)]

            async def join(reader: Reader) -> None:
                await anyio.sleep(chance.random() * 0.1)
                await reader.read(client)

            await asyncio.gather(*(reader.read(client) for reader in readers), *map(join, late))
            for reader in [*readers, *late]:
                reader.check()
        assert proxy.cuts > 100, seed


async def test_kill_nine_in_the_middle_of_streams(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    truth = Truth()
    stopping = False
    finished = 0
    with Server(tmp_path, app="tests.chaos.stream_app:app", PAUSE="0.02") as server:

        async def ask(number: int) -> None:
            nonlocal finished
            count = 0
            async with httpx.AsyncClient(timeout=5) as client:
                while not stopping:
                    run = f"r{number}-{count}"
                    readers = [Reader(server.url, run, truth) for _ in range(2)]
                    await asyncio.gather(*(reader.read(client) for reader in readers))
                    for reader in readers:
                        reader.check()
                    finished += 1
                    count += 1

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(ask, number)
            for _ in range(KILLS // 2):
                await anyio.sleep(0.2 + chance.random() * 0.6)
                await anyio.to_thread.run_sync(server.kill)
                await anyio.to_thread.run_sync(server.start)
            stopping = True
        assert finished >= KILLS / 4, seed
        assert max(int(id) for _, id in truth.frames) < 1_000, "positions skip without a cause"


async def test_fetch_with_stream_through_cuts_and_a_crash(tmp_path: Path) -> None:
    """The library's own clients, both forms, through a proxy that cuts every connection."""
    chance = random.Random(random.randrange(10**6))
    pacing = Pacing(first_delay=0.01, longest_delay=0.2)
    transcripts = [Transcript() for _ in range(6)]
    with Server(tmp_path, app="tests.chaos.stream_app:app", PAUSE="0.02") as server:

        def blocking(url: str, transcript: Transcript) -> httpx.Response:
            feed = transcript.feed
            return fetch_with_stream_sync(
                url, on_data=feed, on_commit=feed, on_rollback=feed, pacing=pacing
            )

        async def ask(number: int, base: str) -> httpx.Response:
            url, transcript = f"{base}/report/r{number}", transcripts[number]
            if number % 2:
                return await anyio.to_thread.run_sync(blocking, url, transcript)
            feed = transcript.feed
            return await fetch_with_stream(
                url, on_data=feed, on_commit=feed, on_rollback=feed, pacing=pacing
            )

        async with CuttingProxy(server.port, lambda: chance.randrange(400, 3_000)) as proxy:
            asking = [asyncio.ensure_future(ask(n, proxy.url)) for n in range(len(transcripts))]
            await anyio.sleep(0.4)
            await anyio.to_thread.run_sync(server.kill)
            await anyio.to_thread.run_sync(server.start)
            with anyio.fail_after(60):
                answers = await asyncio.gather(*asking)
        assert proxy.cuts > len(answers)
    for answer, transcript in zip(answers, transcripts, strict=True):
        assert answer.status_code == 200
        expected = "".join(answer.json()["texts"])
        assert sorted(transcript.text) == sorted(expected)
        assert transcript.committed_text == transcript.text


async def test_sigterm_ends_streams_and_readers_go_on_elsewhere(tmp_path: Path) -> None:
    truth = Truth()
    with Server(tmp_path, app="tests.chaos.stream_app:app", PAUSE="0.1") as server:
        reader = Reader(server.url, "r", truth)
        other = Reader(server.url, "r", truth)
        async with httpx.AsyncClient(timeout=20) as client, anyio.create_task_group() as group:
            group.start_soon(reader.read, client)
            group.start_soon(other.read, client)
            await anyio.sleep(0.35)
            with anyio.fail_after(8):
                server.signal(signal.SIGTERM)
                await anyio.to_thread.run_sync(server.wait)
            await anyio.to_thread.run_sync(server.start)
        reader.check()
        other.check()
        assert reader.connections > 1


async def test_a_client_that_leaves_cuts_nothing_short(server: Server) -> None:
    async with httpx.AsyncClient(timeout=20) as client:
        async with client.stream("GET", f"{server.url}/report/r", headers=SSE) as response:
            url = response.headers["durable-run-url"]
            await anext(response.aiter_raw())
        answer = await client.get(f"{server.url}{url}", follow_redirects=True)
        held = Held().take(await read(client, f"{server.url}{url}"))
    assert "".join(answer.json()["texts"]) != ""
    assert sorted(held.text) == sorted("".join(answer.json()["texts"]))
