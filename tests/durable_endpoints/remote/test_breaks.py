"""Connections that break and servers that are killed, at whatever moment: nothing is lost, and
nothing is done twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import httpx
import pytest

from durable_endpoints import endpoint, step, stream
from durable_endpoints.testing import looking
from tests.durable_endpoints.remote.served import Companion, process

pytestmark = pytest.mark.anyio

RUNS = 8


async def ask(client: httpx.AsyncClient, run: int) -> httpx.Response:
    """As a client that does not give up."""
    headers = {"idempotency-key": f"key {run}"}
    response = await client.post(f"/work/{run}", headers=headers)
    while response.status_code in (202, 303):
        response = await client.get(response.headers["location"])
    return response


@pytest.mark.parametrize("kills", [False, True], ids=["connections", "servers"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_breaks_each_body_runs_once(seed: int, kills: bool) -> None:
    chance, counts = random.Random(seed), Counter[str]()
    companion = Companion()
    await companion.start()

    async def body(name: str, value: Any) -> Any:
        counts[name] += 1
        await asyncio.sleep(chance.random() * 0.01)
        return value

    async def write(run: int) -> None:
        counts[f"{run} write"] += 1
        for n in range(4):
            stream.push([run, n])
            await asyncio.sleep(chance.random() * 0.01)

    async def fail_once(run: int) -> None:
        counts[f"{run} fail"] += 1
        if counts[f"{run} fail"] == 1:
            raise ValueError("not yet")

    async def breaking() -> None:
        for _ in range(5 if kills else 30):
            await asyncio.sleep(chance.random() * (0.2 if kills else 0.03))
            if kills:
                await companion.stop()
                await companion.start()
            else:
                companion.cut()

    async with process(companion, retry_base="10ms", server_timeout="20s") as (app, client, _):

        @app.post("/work/{run}")
        @endpoint
        async def work(run: int) -> list[Any]:
            left, right = await asyncio.gather(
                step.run("left", body, f"{run} left", 1), step.run("right", body, f"{run} right", 2)
            )
            await step.sleep("nap", "5ms")
            sent = await step.send_event("ask", "asked", {"run": run})
            event = await step.wait_for_event(
                "hear", event="asked", match={"data.run": run}, timeout="1m"
            )
            await step.run("write", write, run)
            stream.push("outside")
            await step.run("fail", fail_once, run)
            return [left, right, event is not None and event.id == sent]

        breaks = asyncio.create_task(breaking())
        answers = await asyncio.gather(*(ask(client, run) for run in range(RUNS)))
        breaks.cancel()
        await asyncio.gather(breaks, return_exceptions=True)
    assert [answer.json() for answer in answers] == [[1, 2, True]] * RUNS
    assert {times for name, times in counts.items() if not name.endswith("fail")} == {1}
    assert {times for name, times in counts.items() if name.endswith("fail")} == {2}
    for run in companion.store.begun():
        transcript = await looking.transcript_of(companion.store, run.id)
        assert len(transcript.chunks) == 5
        assert transcript.chunks[-1].data == "outside"
