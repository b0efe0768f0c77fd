"""Two replicas of an application behind a load balancer, at a companion server, under load."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import anyio
import httpx
import pytest

from tests.chaos.balancing import LoadBalancer
from tests.chaos.process import Server, persist
from tests.chaos.test_companion import Fleet
from tests.chaos.test_companion import fleet as fleet
from tests.chaos.test_companion import processes as processes
from tests.chaos.test_kill import acknowledged

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("DURABLE_TESTS_ROUNDS", "1"))
KILLS = int(os.environ.get("DURABLE_TESTS_KILLS", "8")) // 2
CLIENTS = 4


@pytest.fixture
def balancer(fleet: Fleet) -> Iterator[LoadBalancer]:
    balancer = LoadBalancer(fleet.first, fleet.second)
    balancer.wait_until_ready()
    yield balancer
    balancer.kill()


Asking = Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]


class Load:
    """Clients that ask one thing after the other, until they are told to stop."""

    def __init__(self, balancer: LoadBalancer, name: str, ask: Asking) -> None:
        self._balancer = balancer
        self._name = name
        self._ask = ask
        self.is_over = False
        self.answered = 0

    async def run(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self._balancer.url, timeout=30) as client:
            count = 0
            while not self.is_over:
                run = f"{self._name}{number}-{count}"
                response = await self._ask(client, run)
                assert (response.status_code, response.text) == (200, f"{run} [10, 1, 2] True")
                count += 1
                self.answered += 1


async def ask_once(client: httpx.AsyncClient, run: str) -> httpx.Response:
    """As a client that follows redirects, and repeats nothing."""
    return await client.post(
        f"/work/{run}",
        headers={"idempotency-key": run},
        content=b"x" * 10,
        follow_redirects=True,
    )


async def persist_in(client: httpx.AsyncClient, run: str) -> httpx.Response:
    return await persist(client, "POST", f"/work/{run}", run)


async def test_a_rolling_restart_is_seen_by_no_client(fleet: Fleet, balancer: LoadBalancer) -> None:
    """Every request is answered, though nobody repeats one, and each body runs once."""
    load = Load(balancer, "rolling", ask_once)
    async with anyio.create_task_group() as group:
        for number in range(CLIENTS):
            group.start_soon(load.run, number)
        for _ in range(ROUNDS):
            for replica in (fleet.first, fleet.second):
                await anyio.sleep(0.5)
                await anyio.to_thread.run_sync(balancer.wait_for_both)
                await anyio.to_thread.run_sync(replica.terminate)
                await anyio.to_thread.run_sync(replica.start)
                await anyio.to_thread.run_sync(balancer.wait_for_both)
        load.is_over = True
    assert load.answered > CLIENTS
    repeated = {line: n for line, n in _counts(fleet, "rolling").items() if n > 1}
    assert not repeated


async def test_kills_in_turn_lose_nothing_and_repeat_nothing_that_was_kept(
    fleet: Fleet, balancer: LoadBalancer
) -> None:
    chance = random.Random(seed := random.randrange(10**6))
    fleet.server.database = fleet.server.folder.parent / "server.db"
    load = Load(balancer, "kills", persist_in)
    done: dict[str, set[str]] = {}
    async with anyio.create_task_group() as group:
        for number in range(CLIENTS):
            group.start_soon(load.run, number)
        for turn in range(KILLS):
            await anyio.sleep(chance.uniform(0.1, 0.6))
            victim = fleet.server if turn % 2 else chance.choice((fleet.first, fleet.second))
            victim.kill()
            before = len(fleet.server.lines())
            if victim is fleet.server:
                for run, steps in (await acknowledged(victim)).items():
                    done.setdefault(run, set()).update(steps)
            await anyio.to_thread.run_sync(victim.start)
            _check_nothing_ran_again(fleet.server.lines()[before:], done, seed)
        last = len(fleet.server.lines())
        load.is_over = True
    _check_nothing_ran_again(fleet.server.lines()[last:], done, seed)
    assert load.answered > KILLS
    fleet.server.kill()
    final = await acknowledged(fleet.server)
    for run, steps in done.items():
        assert steps <= final[run], f"{run} lost {steps - final[run]} (seed {seed})"


def _check_nothing_ran_again(lines: list[str], done: dict[str, set[str]], seed: int) -> None:
    for line in lines:
        run, _, name = line.partition(" ")
        assert name not in done.get(run, ()), f"{line} ran again (seed {seed})"


def _counts(fleet: Fleet, name: str) -> Counter[str]:
    server: Server = fleet.server
    return Counter(line for line in server.lines() if line.startswith(name))
