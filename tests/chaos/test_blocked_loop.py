"""An event loop that is blocked for long: no death, and nothing is done twice.

`BLOCKED_FOR=60 pytest tests/chaos/test_blocked_loop.py` blocks it for a minute.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio
import httpx
import pytest

from tests.chaos.process import Server
from tests.chaos.server_app import LEASE
from tests.chaos.test_companion import Fleet, until_noted

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("companion")]

_BLOCKED = float(os.environ.get("BLOCKED_FOR", LEASE / 1_000 * 1.5))
"""Seconds."""
_PATIENCE = 30.0 + 2 * _BLOCKED


async def followed(client: httpx.AsyncClient, response: httpx.Response) -> httpx.Response:
    with anyio.fail_after(_PATIENCE):
        while response.status_code in (202, 303):
            location = response.headers.get("location", str(response.url))
            response = await client.get(response.url.join(location))
    return response


async def test_a_blocked_application_goes_on_where_it_was(tmp_path: Path) -> None:
    """Sleeps that were over meanwhile end after it, and requests that came are answered."""
    with Server(tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=_PATIENCE) as client:
            nap = await client.get(f"/nap/meanwhile?seconds={_BLOCKED / 2}")
            blocking = asyncio.create_task(client.get(f"/block/b?seconds={_BLOCKED}"))
            await until_noted(server, "b block begins")
            coming = asyncio.create_task(client.post("/quick/coming"))
            assert (await followed(client, await blocking)).json() == "b after"
            assert (await coming).status_code == 200
            assert (await followed(client, nap)).json() == "rested meanwhile"
        assert set(server.counts().values()) == {1}
        assert "lost their execution" not in server.log()


async def test_a_blocked_application_keeps_its_runs_although_its_link_was_lost(
    tmp_path: Path,
) -> None:
    """Its heartbeats come from a thread. The server is even another one than before."""
    fleet = Fleet(tmp_path)
    patient = {"DURABLE_ENDPOINTS_SERVER_TIMEOUT": "60s"}  # a new server takes its time to start
    for replica in (fleet.first, fleet.second):
        replica._env |= patient
    first, second = fleet.first, fleet.second
    try:
        fleet.start()
        async with httpx.AsyncClient(timeout=_PATIENCE) as client:
            nap = await client.get(f"{first.url}/nap/other?seconds=0.1")
            blocking = asyncio.create_task(client.get(f"{first.url}/block/l?seconds={_BLOCKED}"))
            await until_noted(first, "l block begins")
            fleet.server.kill()
            await anyio.to_thread.run_sync(fleet.server.start)
            assert (await followed(client, await blocking)).json() == "l after"
            assert (await followed(client, nap)).json() == "rested other"
            # Nothing that the blocked process executed was given to the other one.
            assert [second.counts()[line] for line in ("l block begins", "l after")] == [1, 1]
    finally:
        fleet.kill()
