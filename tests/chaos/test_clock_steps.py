"""Clocks that are set while runs sleep, wait and are executed; and machines whose clocks differ."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from durable_endpoints_server.store.sqlite_inbox import leave_message
from tests.chaos.machine_clock import MachineClock
from tests.chaos.process import Server
from tests.chaos.server_app import LEASE

pytestmark = pytest.mark.anyio

_HOUR = 3_600
_SOON = 15.0
"""Seconds for what takes hardly any time, on a machine that is busy."""
_SECRET = "a key for tests, and for nothing else"


def send(server: Server, run: str, ahead: int) -> None:
    """An event, left by a program on the same machine."""
    at = time.time_ns() // 1_000_000 + ahead * 1_000
    event = {"id": f"go {run}", "name": "go", "data": {"run": run}}
    leave_message(server.database, at, "event", orjson.dumps(event))


async def answer(client: httpx.AsyncClient, response: httpx.Response, within: float) -> Any:
    """What the run answers that a redirect belongs to."""
    with anyio.fail_after(within):
        while response.status_code in (202, 303):
            location = response.headers.get("location", str(response.url))
            response = await client.get(response.url.join(location))
    assert response.status_code == 200, response.text
    return response.json()


async def nap_takes(client: httpx.AsyncClient, run: str, seconds: float) -> bool:
    """Whether a sleep lasts as long as it should."""
    began = time.monotonic()
    rested = await answer(client, await client.get(f"/nap/{run}?seconds={seconds}"), _SOON)
    return rested == f"rested {run}" and seconds <= time.monotonic() - began < seconds + _SOON


async def test_a_clock_that_is_set_back_keeps_nobody_waiting_and_loses_no_event(
    tmp_path: Path,
) -> None:
    clock = MachineClock(tmp_path)
    with Server(tmp_path, **clock.env) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            nap = await client.get("/nap/before?seconds=1.5")
            hears = await client.get("/wait-for/hears")
            later = await client.get("/wait-for/later")
            long = await client.get("/nap/long?seconds=4")
            began = time.monotonic()
            clock.set_to(-_HOUR)
            # What began before that: a sleep, and a wait for what comes now.
            assert await answer(client, nap, 1.5 * 1.1 + _SOON) == "rested before"
            send(server, "hears", -_HOUR)
            assert await answer(client, hears, _SOON) == {"run": "hears"}
            # What begins now, with events of its own.
            assert await nap_takes(client, "new", 0.2)
            work = await client.post("/work/new", content=b"x" * 10, follow_redirects=True)
            assert work.text == "new [10, 1, 2] True"
        assert "clock was set back by 3600 s" in server.log()
        # A process that is started now knows of the hour only from what was stored.
        server.kill()
        server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            send(server, "later", -_HOUR)
            assert await answer(client, later, _SOON) == {"run": "later"}
            assert await answer(client, long, 4 * 1.1 + _SOON) == "rested long"
            assert time.monotonic() - began >= 3.9  # and not early either
        assert set(server.counts().values()) == {1}


async def test_a_clock_that_is_set_forward_ends_what_is_due_then_and_nothing_else(
    tmp_path: Path,
) -> None:
    clock = MachineClock(tmp_path)
    with Server(tmp_path, app="tests.chaos.wakeful_app:app", **clock.env) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            short = await client.get("/nap/short?seconds=1800")
            far = await client.get("/nap/far?seconds=5400")
            timeout = await client.get("/wait-for/nobody")
            slow = asyncio.create_task(client.get("/slow/s?seconds=1"))
            while "s slow begins" not in server.lines():
                await anyio.sleep(0.02)
            clock.set_to(_HOUR)
            assert await nap_takes(client, "new", 0.2)
            assert await answer(client, short, _SOON) == "rested short"
            assert await answer(client, timeout, _SOON) is None
            assert await answer(client, await slow, _SOON) == "slow after"
            # It was a mistake, and is put right: nothing stands still until it is that late again.
            clock.set_to(0)
            assert await answer(client, await client.get("/nap/again?seconds=0.2"), _SOON)
            assert far.status_code == 303
        assert set(server.counts().values()) == {1}
        assert server.counts()["far after"] == 0


class Machines:
    """A server and two replicas of an application, on machines whose clocks are their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "server clock").mkdir()
        self.server_clock = MachineClock(folder / "server clock")
        (folder / "app clock").mkdir()
        self.app_clock = MachineClock(folder / "app clock")
        self.server = self._process(
            "server",
            "--factory",
            app="tests.chaos.server_app:server",
            alive="/health",
            SERVER_DATABASE=str(folder / "server.db"),
            **self.server_clock.env,
        )
        self.first, self.second = self._replica("first"), self._replica("second")
        self.all = (self.server, self.first, self.second)

    def _replica(self, name: str) -> Server:
        return self._process(
            name,
            DURABLE_ENDPOINTS_SERVER_URL=self.server.url,
            DURABLE_ENDPOINTS_SIGNING_KEY=_SECRET,
            DURABLE_ENDPOINTS_SEALING_KEY=_SECRET,
            **self.app_clock.env,
        )

    def _process(self, name: str, *options: str, **how: Any) -> Server:
        folder = self._folder / name
        folder.mkdir()
        process = Server(folder, *options, **{"JOURNAL": str(self._folder / "journal"), **how})
        process.journal = self._folder / "journal"
        return process


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path)
    machines.server_clock.set_to(_HOUR)
    machines.app_clock.set_to(-_HOUR)
    try:
        for process in machines.all:
            process.start(ready=False)
        for process in machines.all:
            process.wait_until_ready()
        yield machines
    finally:
        for process in machines.all:
            process.kill()


async def test_server_and_applications_need_not_agree_about_the_time(machines: Machines) -> None:
    """And no step of either clock takes a run away from who executes it, or leaves it with the
    dead."""
    first, second = machines.first, machines.second
    async with httpx.AsyncClient(timeout=30) as client:
        nap = await client.get(f"{first.url}/nap/apart?seconds=0.5")
        began = time.monotonic()
        assert await answer(client, nap, 0.5 * 1.1 + _SOON) == "rested apart"
        assert time.monotonic() - began >= 0.45
        work = await client.post(f"{first.url}/work/apart", content=b"12", follow_redirects=True)
        assert work.text == "apart [2, 1, 2] True"

        sleeping = await client.get(f"{first.url}/nap/across?seconds=2")
        alive = asyncio.create_task(client.get(f"{first.url}/slow/alive?seconds=3"))
        while "alive slow begins" not in first.lines():
            await anyio.sleep(0.02)
        for hours in (-2, 2, -2):  # with more than a lease between the first and the last
            machines.server_clock.set_to(hours * _HOUR)
            machines.app_clock.set_to(-hours * _HOUR)
            await anyio.sleep(LEASE / 1_000 * 0.6)
        assert (await alive).json() == "slow after"
        assert first.counts()["alive slow begins"] == 1  # by one process, once
        assert await answer(client, sleeping, 2 * 1.1 + _SOON) == "rested across"

        asking = asyncio.create_task(client.get(f"{first.url}/slow/dead?seconds=60"))
        while "dead slow begins" not in first.lines():
            await anyio.sleep(0.02)
        machines.server_clock.set_to(-3 * _HOUR)
        first.kill()
        with pytest.raises(httpx.TransportError):
            await asking
        with anyio.fail_after(LEASE / 1_000 + _SOON):
            while second.counts()["dead slow begins"] < 2:
                await anyio.sleep(0.02)
