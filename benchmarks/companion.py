"""A companion server's own numbers: how fast it wakes who waits, and how many steps it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import orjson
from ulid import ULID

from benchmarks.options import Options
from benchmarks.report import heading, percentile, spread, table
from benchmarks.servers import EVENT_KEY, SIGNING_KEY, Companion, Server
from durable_endpoints import CheckpointClient
from durable_endpoints.protocol.checkpoints import ApiResult, RunEvent, completion
from durable_endpoints.protocol.step_ids import hash_name

TURNS = 50
"""In each round."""
RUNS = 64
STEPS = 50
EVENT = RunEvent("http://127.0.0.1:9", "/x")


def measure(folder: Path, options: Options) -> None:
    with ExitStack() as stack:
        companion = Companion(folder)
        stack.enter_context(companion)
        server = Server("each", folder, companion=companion)
        stack.enter_context(server)
        asyncio.run(_measure(companion, server, options.rounds))


async def _measure(companion: Companion, server: Server, rounds: int) -> None:
    turns = TURNS * rounds
    async with httpx2.AsyncClient(timeout=60) as client:
        rows = [
            (name, f"{percentile(lags, 50):.2f}", f"{percentile(lags, 95):.2f}")
            for name, lags in (
                ("event sent to /e -> handler past its wait", await woken(client, server, turns)),
                ("handler returns -> /wait answered", await answered(client, server, turns)),
                (
                    "last checkpoint sent -> /output answered",
                    await output(companion, turns),
                ),
            )
        ]
        heading("Waking up, with a companion server")
        table(("", "p50 ms", "p95 ms"), rows)

        rates = []
        works: dict[str, Callable[[], Coroutine[Any, Any, float]]] = {
            "our SDK, one connection": lambda: steps_of_ours(client, server),
            "Inngest's checkpoints, a request each": lambda: steps_over_http(companion),
        }
        for name, work in works.items():
            await work()
            before = companion.cpu_seconds()
            found = [await work() for _ in range(rounds)]
            spent = (companion.cpu_seconds() - before) / (rounds * RUNS * STEPS)
            rates.append((name, spread(found, "{:.0f}"), f"{spent * 1e6:.0f}"))
        heading(f"Steps on disk per second, {RUNS} runs at once")
        table(("", "steps/s", "CPU us of the server"), rates)


async def woken(client: httpx2.AsyncClient, server: Server, turns: int) -> list[float]:
    """Milliseconds from the sending of an event over HTTP to the line after the wait. The sender
    is no library: one takes as long to send a request as the server to have it on disk."""
    assert server.companion is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.companion.port)
    lags: list[float] = []
    for number in range(turns):
        redirect = await client.get(f"{server.url}/waits/{number}")
        answer = asyncio.create_task(client.get(server.url + redirect.headers["location"]))
        await asyncio.sleep(0.02)
        event = {"name": "go", "data": {"number": str(number)}}
        sent_at = time.monotonic_ns()
        await _post(reader, writer, f"/e/{EVENT_KEY}", event)
        lags.append((int((await answer).text) - sent_at) / 1e6)
    writer.close()
    return lags


async def answered(client: httpx2.AsyncClient, server: Server, turns: int) -> list[float]:
    """Milliseconds from the handler's return, its commit included, to the answer of `/wait`. Who
    waits is no library either."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lags: list[float] = []
    for _ in range(turns):
        redirect = await client.get(f"{server.url}/nap")
        answer = await _ask(reader, writer, "GET", redirect.headers["location"])
        lags.append((time.monotonic_ns() - int(answer)) / 1e6)
    writer.close()
    return lags


async def output(companion: Companion, turns: int) -> list[float]:
    """Milliseconds from the sending of a run's end to the answer of who waits at `/output`."""
    lags: list[float] = []
    asking, waiting = [await asyncio.open_connection("127.0.0.1", companion.port) for _ in range(2)]
    async with CheckpointClient(companion.url, signing_key=SIGNING_KEY) as reporting:
        for _ in range(turns):
            run = await reporting.new_run(str(ULID()), EVENT, [_step("a")])
            url = f"/v1/http/runs/{run.run_id}/output?token={run.token}"
            answer = asyncio.create_task(_ask(*waiting, "GET", url))
            await asyncio.sleep(0.02)
            steps = [completion(ApiResult(200, {}, b"done"))]
            last = {"run_id": run.run_id, "steps": steps, "ts": 0}
            sent_at = time.perf_counter()
            end = asyncio.create_task(_post(*asking, f"/v1/checkpoint/{run.run_id}/steps", last))
            assert await answer == b"done"
            lags.append((time.perf_counter() - sent_at) * 1e3)
            await end
    for _, writer in (asking, waiting):
        writer.close()
    return lags


async def steps_of_ours(client: httpx2.AsyncClient, server: Server) -> float:
    began = time.perf_counter()
    url = f"{server.url}/steps/{STEPS}"
    answers = await asyncio.gather(*(client.get(url) for _ in range(RUNS)))
    assert all(answer.text == str(STEPS) for answer in answers)
    return RUNS * STEPS / (time.perf_counter() - began)


async def steps_over_http(companion: Companion) -> float:
    """With clients that cost less than any of the libraries."""

    async def run() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", companion.port)
        run_id = str(ULID())
        event = EVENT.as_json()
        first = {"run_id": run_id, "event": event, "steps": [_step("0")], "retries": 3, "ts": 0}
        await _post(reader, writer, "/v1/checkpoint", first)
        for number in range(1, STEPS):
            step = {"run_id": run_id, "steps": [_step(str(number))], "ts": 0}
            await _post(reader, writer, f"/v1/checkpoint/{run_id}/steps", step)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(RUNS)))
    return RUNS * STEPS / (time.perf_counter() - began)


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, value: Any
) -> None:
    await _ask(reader, writer, "POST", path, orjson.dumps(value))


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    path: str,
    body: bytes = b"",
) -> bytes:
    """The body of the answer."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {SIGNING_KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length))


def _step(name: str) -> dict[str, Any]:
    return {"op": "StepRun", "id": hash_name(name), "name": name, "data": 1}
