"""Disks that are full, read-only, broken or slow for a while, and at any moment of a workload.

SQLite gets its errors from a VFS around the real one, so each can come at the n-th operation; a
file system that is really full is in `test_storage.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import httpx
import pytest

from tests.chaos.disk.watching import Watcher, watched
from tests.chaos.disk.workload import (
    ORDERS,
    OTHERS,
    STEPS,
    TOLD,
    Seen,
    ask,
    expected,
    insist,
    kind_of,
    served,
)

pytestmark = pytest.mark.anyio

_RUNS = [*ORDERS, *(run for run in OTHERS if kind_of(run) not in TOLD)]


class Trouble(Watcher):
    """From the n-th operation of a kind on, all of that kind fail for a while."""

    syncs_for_real = False

    def __init__(self, error: Callable[[], Exception], at: int, seconds: float, sync: bool) -> None:
        self._error = error
        self._left = at
        self._seconds = seconds
        self._is_of_syncs = sync
        self._until = 0.0
        self.failures = 0

    @property
    def is_over(self) -> bool:
        return 0.0 < self._until < time.monotonic()

    def writes(self, file: Path, offset: int, data: bytes) -> None:
        if not self._is_of_syncs:
            self._count()

    def syncs(self, file: Path) -> None:
        if self._is_of_syncs:
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._until = time.monotonic() + self._seconds
        if self._left <= 0 and time.monotonic() < self._until:
            self.failures += 1
            raise self._error()


def full() -> Exception:
    return apsw.FullError("no space left on device")


def broken() -> Exception:
    return apsw.IOError("input/output error")


def read_only() -> Exception:
    return apsw.ReadOnlyError("read-only file system")


TROUBLES = {
    "full": (full, False, "the disk is full"),
    "read-only": (read_only, False, "it cannot be written"),
    "broken": (broken, False, "the disk reports an error"),
    "broken at a sync": (broken, True, "the disk reports an error"),
}


async def ask_again(client: httpx.AsyncClient, seen: Seen, run: str, refusals: list[str]) -> None:
    """A client that repeats its request, with its key, until it is not told 503."""
    while True:
        response = await client.post(f"/{kind_of(run)}/{run}", headers={"idempotency-key": run})
        if response.status_code != 503:
            seen.answer(run, response.text)
            return
        refusals.append(response.json()["detail"])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", TROUBLES)
async def test_a_disk_that_fails_at_any_moment_is_told_and_costs_nothing(
    tmp_path: Path, name: str
) -> None:
    """What was accepted goes on by itself once the disk works, and nothing that was acknowledged
    runs again."""
    error, is_of_syncs, says = TROUBLES[name]
    told = 0
    for at in (1, 6, 17) if is_of_syncs else (1, 25, 90, 160):
        folder = tmp_path / str(at)
        folder.mkdir()
        seen, refusals = Seen(), list[str]()
        trouble = Trouble(error, 2**31, 0.15, is_of_syncs)
        with watched(trouble):
            async with asyncio.timeout(20), served(folder / "runs.db", seen, "full") as client:
                trouble._left = at
                await asyncio.gather(*(ask_again(client, seen, run, refusals) for run in _RUNS))
        assert {answer.run: answer.text for answer in seen.answers} == {
            run: expected(run) for run in _RUNS
        }
        assert all(says in refusal for refusal in refusals), refusals
        assert trouble.failures > 0
        assert repeated(seen) == []
        told += len(refusals)
    assert told > 0


def repeated(seen: Seen) -> list[str]:
    """Bodies that began again after a later step of their run had begun."""
    reached: dict[str, int] = {}
    found: list[str] = []
    for body in seen.bodies:
        if kind_of(body.run) == "background":
            continue
        order = STEPS[kind_of(body.run)].index(body.step)
        if order < reached.get(body.run, 0):
            found.append(f"{body.run} {body.step}")
        reached[body.run] = max(order, reached.get(body.run, 0))
    return found


@pytest.mark.parametrize("name", TROUBLES)
async def test_a_process_that_ends_while_its_disk_fails_hands_over_all_the_same(
    tmp_path: Path, name: str
) -> None:
    error, is_of_syncs, _ = TROUBLES[name]
    trouble, seen = Trouble(error, 2**31, 60, is_of_syncs), Seen()
    with watched(trouble):
        async with served(tmp_path / "runs.db", seen, "full") as client:
            await ask(client, seen, "order-0")
            trouble._left = 1
        assert trouble.failures > 0
        trouble._left = 2**31
        async with asyncio.timeout(20), served(tmp_path / "runs.db", seen, "full") as client:
            await ask(client, seen, "order-0")
    assert [answer.text for answer in seen.answers] == [expected("order-0")] * 2
    assert len(seen.bodies) == 4


async def test_nothing_spins_while_a_disk_is_full(tmp_path: Path) -> None:
    seen, refusals = Seen(), list[str]()
    trouble = Trouble(full, 2**31, 1.0, sync=False)
    with watched(trouble):
        async with served(tmp_path / "runs.db", seen, "full") as client:
            sending = asyncio.create_task(insist("asking-0"))
            await asyncio.sleep(0)
            asking = asyncio.create_task(ask_again(client, seen, "family-0", refusals))
            while not seen.bodies:
                await asyncio.sleep(0.001)
            trouble._left = 1
            while not trouble.failures:
                await asyncio.sleep(0.001)
            for task in (sending, asking):
                task.cancel()
            await asyncio.gather(sending, asking, return_exceptions=True)
            spent, before = time.process_time(), trouble.failures
            await asyncio.sleep(0.8)
            assert time.process_time() - spent < 0.2  # for all that is done meanwhile, this too
            assert trouble.failures - before < 20


async def test_a_slow_sync_makes_writers_wait_and_nobody_else(tmp_path: Path) -> None:
    class Slow(Watcher):
        syncs_for_real = False
        seconds = 0.0

        def syncs(self, file: Path) -> None:
            time.sleep(self.seconds)

    slow, seen = Slow(), Seen()
    with watched(slow):
        async with served(tmp_path / "runs.db", seen, "full") as client:
            slow.seconds = 0.5
            longest = asyncio.create_task(longest_pause())
            began = time.monotonic()
            response = await client.post("/background/background-0")
            assert response.text == expected("background-0")
            assert time.monotonic() - began > slow.seconds  # it has waited for the disk
            slow.seconds = 0.0
            longest.cancel()
            assert await longest < 0.4  # and the event loop has not
    assert len(seen.bodies) == 4


async def longest_pause() -> float:
    """The longest time for which the event loop did nothing, until this is cancelled."""
    longest, last = 0.0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest
