"""Applications and the companion server as processes of their own, killed and stopped in turn."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.chaos.process import Server, persist
from tests.chaos.server_app import LEASE

pytestmark = pytest.mark.anyio

_SECRET = "a key for tests, and for nothing else"


class Fleet:
    """A server, and two replicas of one application."""

    def __init__(self, folder: Path, lease: int = LEASE) -> None:
        """`lease` is in milliseconds."""
        self._folder = folder
        self.server = self._process(
            "server",
            "--factory",
            app="tests.chaos.server_app:server",
            alive="/health",
            SERVER_DATABASE=str(folder / "server.db"),
            SERVER_LEASE=str(lease),
        )
        self.first = self.replica("first")
        self.second = self.replica("second")
        self._all = (self.server, self.first, self.second)

    def replica(self, name: str, *options: str) -> Server:
        return self._process(
            name,
            *options,
            DURABLE_ENDPOINTS_SERVER_URL=self.server.url,
            DURABLE_ENDPOINTS_SIGNING_KEY=_SECRET,
            DURABLE_ENDPOINTS_SEALING_KEY=_SECRET,
            DURABLE_ENDPOINTS_DRAIN_TIMEOUT="300ms",
            JOURNAL=str(self._folder / "journal"),
        )

    def _process(self, name: str, *options: str, **how: Any) -> Server:
        folder = self._folder / name
        folder.mkdir()
        process = Server(folder, *options, **how)
        process.journal = self._folder / "journal"
        return process

    def start(self) -> None:
        """What is not running."""
        started = [process for process in self._all if process.process is None]
        for process in started:
            process.start(ready=False)
        for process in started:
            process.wait_until_ready()

    def go_on(self) -> None:
        """Let what was stopped go on, in whichever line a test has failed."""
        for process in self._all:
            if process.process is not None:
                process.signal(signal.SIGCONT)

    def kill(self) -> None:
        for process in self._all:
            process.kill()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.kill()


@pytest.fixture
def fleet(processes: Fleet) -> Iterator[Fleet]:
    processes.start()
    yield processes
    processes.go_on()


@pytest.fixture
def patient_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """One whose server waits for a process on a busy machine, where a short lease would end, and
    what was under way would begin again."""
    fleet = Fleet(tmp_path, lease=60_000)
    fleet.start()
    yield fleet
    fleet.kill()


async def until_noted(server: Server, line: str, times: int = 1) -> None:
    with anyio.fail_after(30):
        while server.counts()[line] < times:
            await anyio.sleep(0.02)


async def test_what_a_killed_replica_did_goes_on_in_another_one_within_its_lease(
    fleet: Fleet,
) -> None:
    first, second = fleet.first, fleet.second
    async with httpx.AsyncClient(timeout=30) as client:
        asking = asyncio.create_task(client.get(f"{first.url}/slow/x?seconds=60"))
        await until_noted(first, "x slow begins")
        nap = await client.get(f"{first.url}/nap/y?seconds=0.1")
        first.kill()
        with pytest.raises(httpx.TransportError):
            await asking
        with anyio.fail_after(LEASE / 1_000 + 1 + 5):  # 5 s for a machine that is busy
            await until_noted(second, "x slow begins", 2)
        answer = await client.get(second.url + nap.headers["location"])
        assert answer.json() == "rested y"
        assert second.counts()["y before"] == 1


async def test_a_server_that_is_killed_and_started_again_loses_nothing(
    patient_fleet: Fleet,
) -> None:
    fleet, replica = patient_fleet, patient_fleet.first
    async with httpx.AsyncClient(timeout=30) as client:
        asking = [
            asyncio.create_task(persist(client, "POST", f"{replica.url}/work/{n}", f"key {n}"))
            for n in range(12)
        ]
        slow = asyncio.create_task(client.get(f"{replica.url}/slow/s?seconds=0.5"))
        for _ in range(2):
            await anyio.sleep(0.15)
            fleet.server.kill()
            await anyio.to_thread.run_sync(fleet.server.start)
        answers = await asyncio.gather(*asking)
        assert [answer.text for answer in answers] == [f"{n} [10, 1, 2] True" for n in range(12)]
        assert (await slow).json() == "slow after"
        done = {line: times for line, times in replica.counts().items() if line[0] in "s0123456789"}
        assert set(done.values()) == {1}  # nothing was done twice


async def test_a_replica_that_was_stopped_for_longer_than_its_lease_is_heard_no_more(
    fleet: Fleet,
) -> None:
    first, second = fleet.first, fleet.second
    async with httpx.AsyncClient(timeout=30) as client:
        asking = asyncio.create_task(client.get(f"{first.url}/slow/z?seconds=0.5"))
        await until_noted(first, "z slow begins")
        first.signal(signal.SIGSTOP)
        await until_noted(second, "z slow begins", 2)
        first.signal(signal.SIGCONT)
        response = await asking
        if response.status_code == 303:
            response = await client.get(second.url + response.headers["location"])
        assert response.json() == "slow after"
        assert second.counts()["z after"] == 1


@pytest.mark.parametrize("endpoint", ["freeze", "freeze-plain"])
async def test_a_replica_that_was_frozen_for_longer_than_its_lease_begins_no_body_in_hand(
    fleet: Fleet, endpoint: str
) -> None:
    first, second, name = fleet.first, fleet.second, f"{endpoint}-1"
    async with httpx.AsyncClient(timeout=30) as client:
        asking = asyncio.create_task(client.get(f"{first.url}/{endpoint}/{name}"))
        await until_noted(second, f"{name} after")  # which the second replica has done
        first.signal(signal.SIGCONT)
        response = await asking
        assert response.status_code == 303
        response = await client.get(second.url + response.headers["location"])
        assert response.json() == "thawed"
        assert [second.counts()[f"{name} {what}"] for what in ("before", "after")] == [1, 1]


async def test_a_blocked_event_loop_is_no_death(fleet: Fleet) -> None:
    first, second = fleet.first, fleet.second
    async with httpx.AsyncClient(timeout=30) as client:
        seconds = LEASE / 1_000 * 1.7
        response = await client.get(f"{first.url}/block/b?seconds={seconds}")
        assert response.json() == "b after"
        assert [second.counts()[line] for line in ("b block begins", "b after")] == [1, 1]


async def test_several_workers_of_one_application_share_its_runs(fleet: Fleet) -> None:
    with fleet.replica("workers", "--workers", "2") as replica:
        async with httpx.AsyncClient(timeout=30) as client:
            naps = [await client.get(f"{replica.url}/nap/w{n}?seconds=0.1") for n in range(6)]
            answers = [
                await client.get(replica.url + response.headers["location"]) for response in naps
            ]
            assert [answer.json() for answer in answers] == [f"rested w{n}" for n in range(6)]
            assert [replica.counts()[f"w{n} after"] for n in range(6)] == [1] * 6
        # The supervisor ends its workers only if it is asked to.
        await anyio.to_thread.run_sync(replica.terminate)


async def test_a_replica_that_is_terminated_hands_over_at_once(fleet: Fleet) -> None:
    first, second = fleet.first, fleet.second
    async with httpx.AsyncClient(timeout=30) as client:
        asking = asyncio.create_task(client.get(f"{first.url}/slow/t?seconds=60"))
        await until_noted(first, "t slow begins")
        first.signal(signal.SIGTERM)
        assert (await asking).status_code == 303
        await until_noted(second, "t slow begins", 2)
        assert await anyio.to_thread.run_sync(first.wait) in (0, -signal.SIGTERM)
