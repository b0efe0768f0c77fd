"""Other work than three steps: many steps and their replay, an event, a thousand sleepers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import httpx2

from benchmarks.report import heading, percentile, spread, table

OURS = ("each", "each, server")
STEPS = 1_000
EVENTS = 10
"""In each round."""
SLEEPERS = 1_000
_FEW = 50
"""How many are put to sleep at once; so many show how long it takes."""
_SPARE = 2
"""How many times as long as all should need they have until the first is due."""
_PATIENCE = 120
"""Seconds after which who is still not awake is not waited for."""


class Worker(Protocol):
    """An application that does the work, and how it is asked."""

    name: str

    async def steps(self, client: httpx2.AsyncClient, count: int) -> tuple[float, float]:
        """Seconds a step of a run of many, and of its replay."""
        ...

    async def begin(self, client: httpx2.AsyncClient, name: str) -> asyncio.Task[int]:
        """Start a run that waits for an event; the task gives the instant at which it went on."""
        ...

    async def send(self, client: httpx2.AsyncClient, name: str) -> None: ...

    async def sleep(self, client: httpx2.AsyncClient, until: float) -> None:
        """Start a run that sleeps until an instant of Unix time, in seconds."""
        ...

    async def lags(self, client: httpx2.AsyncClient) -> list[float]:
        """How many milliseconds late those were that have gone on, in that order."""
        ...


class Ours:
    def __init__(self, name: str, url: str) -> None:
        self.name, self._url = name, url
        self._followed: set[asyncio.Task[httpx2.Response]] = set()

    async def steps(self, client: httpx2.AsyncClient, count: int) -> tuple[float, float]:
        answer = await client.get(f"{self._url}/replayed/{count}", follow_redirects=True)
        executed, replayed = answer.json()
        return executed, replayed

    async def begin(self, client: httpx2.AsyncClient, name: str) -> asyncio.Task[int]:
        redirect = await client.get(f"{self._url}/waits/{name}")

        async def answered() -> int:
            return int((await client.get(self._url + redirect.headers["location"])).text)

        return asyncio.create_task(answered())

    async def send(self, client: httpx2.AsyncClient, name: str) -> None:
        (await client.post(f"{self._url}/go/{name}")).raise_for_status()

    async def sleep(self, client: httpx2.AsyncClient, until: float) -> None:
        assert (await client.get(f"{self._url}/nap/{until}")).status_code == 303

    async def lags(self, client: httpx2.AsyncClient) -> list[float]:
        found: list[float] = (await client.get(f"{self._url}/lags")).json()
        return found


class Dbos:
    def __init__(self, name: str, url: str) -> None:
        self.name, self._url = name, url

    async def steps(self, client: httpx2.AsyncClient, count: int) -> tuple[float, float]:
        found = (await client.post(f"{self._url}/steps/{count}")).json()
        return found["executed"], found["replayed"]

    async def begin(self, client: httpx2.AsyncClient, name: str) -> asyncio.Task[int]:
        async def answered() -> int:
            return int((await client.post(f"{self._url}/wait/{name}")).text)

        task = asyncio.create_task(answered())
        await asyncio.sleep(0.2)
        return task

    async def send(self, client: httpx2.AsyncClient, name: str) -> None:
        (await client.post(f"{self._url}/go/{name}")).raise_for_status()

    async def sleep(self, client: httpx2.AsyncClient, until: float) -> None:
        (await client.post(f"{self._url}/nap/{until}")).raise_for_status()

    async def lags(self, client: httpx2.AsyncClient) -> list[float]:
        found: list[float] = (await client.post(f"{self._url}/lags")).json()
        return found


class Restate:
    def __init__(self, name: str, url: str) -> None:
        self.name, self._url = name, url

    async def steps(self, client: httpx2.AsyncClient, count: int) -> tuple[float, float]:
        found = (await client.post(f"{self._url}/bench/steps", json=count)).json()
        return found["executed"], found["replayed"]

    async def begin(self, client: httpx2.AsyncClient, name: str) -> asyncio.Task[int]:
        (await client.post(f"{self._url}/waits/{name}/wait/send")).raise_for_status()

        async def answered() -> int:
            return int((await client.get(f"{self._url}/restate/workflow/waits/{name}/attach")).text)

        task = asyncio.create_task(answered())
        await asyncio.sleep(0.2)
        return task

    async def send(self, client: httpx2.AsyncClient, name: str) -> None:
        (await client.post(f"{self._url}/waits/{name}/go")).raise_for_status()

    async def sleep(self, client: httpx2.AsyncClient, until: float) -> None:
        (await client.post(f"{self._url}/bench/nap/send", json=until)).raise_for_status()

    async def lags(self, client: httpx2.AsyncClient) -> list[float]:
        found: list[float] = (await client.post(f"{self._url}/bench/told_lags")).json()
        return found


async def measure(workers: Sequence[Worker], rounds: int) -> None:
    async with httpx2.AsyncClient(timeout=300) as client:
        await _steps(client, workers, rounds)
        await _events(client, workers, rounds)
        await _sleepers(client, workers)


async def _steps(client: httpx2.AsyncClient, workers: Sequence[Worker], rounds: int) -> None:
    executed: dict[str, list[float]] = defaultdict(list)
    replayed: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for worker in workers:
            first, again = await worker.steps(client, STEPS)
            executed[worker.name].append(1e3 * first)
            replayed[worker.name].append(1e6 * again)
    heading(f"A run of {STEPS:,} steps, over HTTP")
    table(
        ("", "ms a step", "us a remembered step"),
        [
            (name, spread(executed[name], "{:.3f}"), spread(replayed[name], "{:.1f}"))
            for name in executed
        ],
    )


async def _events(client: httpx2.AsyncClient, workers: Sequence[Worker], rounds: int) -> None:
    lags: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for worker in workers:
            for turn in range(EVENTS):
                name = f"event-{number}-{turn}"
                waiting = await worker.begin(client, name)
                sent_at = time.monotonic_ns()
                await worker.send(client, name)
                lags[worker.name].append((await waiting - sent_at) / 1e6)
    heading("An event is sent over HTTP, until the handler is past its wait")
    table(("", "p50 ms", "p95 ms"), [(name, *_percentiles(lags[name], 50, 95)) for name in lags])


async def _sleepers(client: httpx2.AsyncClient, workers: Sequence[Worker]) -> None:
    """In one round. Each gets as long to put all to sleep as it needs: the first due one must not
    be due before the last one sleeps."""
    rows = []
    for worker in workers:
        began = time.time()
        await _put_to_sleep(client, worker, [began + 1] * _FEW)
        lead = (time.time() - began) / _FEW * SLEEPERS * _SPARE + 1
        known = len(await _awake(client, worker, _FEW, began + _PATIENCE))
        first = time.time() + lead
        dues = [first + number / SLEEPERS for number in range(SLEEPERS)]
        await _put_to_sleep(client, worker, dues)
        asleep = first - time.time()
        lags = (await _awake(client, worker, known + SLEEPERS, first + _PATIENCE))[known:]
        cells = _percentiles(lags, 50, 95, 100) if lags and asleep > 0 else ["", "", ""]
        rows.append((worker.name, *cells, f"{len(lags):,}", f"{asleep:.1f}"))
    heading(f"{SLEEPERS:,} sleeping runs due within a second: lag in ms")
    table(("", "p50", "p95", "max", "awake", "s asleep before"), rows)
    print("There is no lag where the first was due before the last one slept.")


async def _put_to_sleep(client: httpx2.AsyncClient, worker: Worker, dues: Sequence[float]) -> None:
    for at in range(0, len(dues), _FEW):
        await asyncio.gather(*(worker.sleep(client, until) for until in dues[at : at + _FEW]))


async def _awake(
    client: httpx2.AsyncClient, worker: Worker, count: int, deadline: float
) -> list[float]:
    """The lags, once there are `count`, or at `deadline`."""
    lags: list[float] = []
    while len(lags) < count and time.time() < deadline:
        await asyncio.sleep(1)
        lags = await worker.lags(client)
    return lags


def _percentiles(values: Sequence[float], *percents: int) -> list[str]:
    return [f"{percentile(values, percent):.1f}" for percent in percents]
