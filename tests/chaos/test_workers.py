"""Several worker processes on one file: one serves it, the others say why they cannot."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import anyio
import httpx
import pytest

from tests.chaos.process import Server

pytestmark = pytest.mark.anyio


async def until_logged(server: Server, text: str, patience: float = 20) -> None:
    deadline = time.monotonic() + patience
    while text not in server.log():
        assert time.monotonic() < deadline, server.log()
        await anyio.sleep(0.05)


async def test_of_two_workers_one_serves_and_the_other_is_refused_by_name(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2", DURABLE_ENDPOINTS_DRAIN_TIMEOUT="100ms") as server:
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                # Meanwhile every request is served, for only one worker listens.
                for n in range(20):
                    assert (await client.post(f"/quick/{n}")).status_code == 200
                sleeping = [await client.get(f"/nap/{n}?seconds=0.2") for n in range(5)]
                answers = await asyncio.gather(
                    *(client.get(response.headers["location"]) for response in sleeping)
                )
                assert [answer.json() for answer in answers] == [f"rested {n}" for n in range(5)]
                await until_logged(server, "run a single worker")
                owner = (tmp_path / "endpoints.db.owner").read_text("utf-8").split(" on ")[0]
                assert (await client.post("/quick/after")).status_code == 200
        finally:
            # The supervisor ends its workers only if it is asked to.
            server.signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(server.wait)
        log = server.log()
        refusal = re.search(r"(\S+) is served by another process \((pid \d+) on \S+\), .*", log)
        assert refusal is not None, log
        assert refusal[1] == str(server.database)
        assert refusal[2] == owner
        assert "run a single worker" in refusal[0]
        assert "DURABLE_ENDPOINTS_DATABASE" in refusal[0]
        assert set(server.counts().values()) == {1}  # nothing was executed by two
