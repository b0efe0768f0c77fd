"""Waiting for a run's end: told at once, let go in time, on whichever event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from durable_endpoints.protocol.runs import Complete
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.clock import SystemClock
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import Command, Interrupt, decide, register
from durable_endpoints_server.store.base import Ended
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.waiters import Waiters, is_settled
from tests.durable_endpoints_server.helpers import POLICY, new_run, until

pytestmark = pytest.mark.anyio

LONG = 3_600_000


class SlowToLook(MemoryStore):
    """A store in which something may happen just after it was looked into."""

    when_looked_at: Callable[[], Awaitable[None]] | None = None

    async def ended(self, run_id: str) -> Ended | None:
        seen = await super().ended(run_id)
        if self.when_looked_at is not None:
            happen, self.when_looked_at = self.when_looked_at, None
            await happen()
        return seen


class Watched:
    """A run in a store, and whoever waits for it."""

    def __init__(self) -> None:
        self.store = SlowToLook()
        self.clock = VirtualClock()
        self.waiters = Waiters(self.store, self.clock)
        decision = register(new_run("r"), "me", None, self.clock.now())
        self.store.apply(decision.change)
        self.run: Run = decision.run

    def do(self, command: Command) -> None:
        decision = decide(self.run, command, self.clock.now(), POLICY)
        assert self.store.apply(decision.change)
        self.run = decision.run

    async def end(self) -> Ended:
        self.do(Complete(200, b"the response"))
        ended = await self.store.ended("r")
        assert ended is not None
        return ended

    def wait(self, timeout: int = LONG) -> asyncio.Task[Ended | None]:
        return asyncio.create_task(self.waiters.wait("r", timeout))


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_an_unknown_run_is_none_at_once(watched: Watched) -> None:
    assert await asyncio.wait_for(watched.waiters.wait("nobody", LONG), 1) is None


async def test_a_run_that_has_ended_is_not_waited_for(watched: Watched) -> None:
    ended = await watched.end()
    assert await asyncio.wait_for(watched.waiters.wait("r", LONG), 1) == ended
    assert watched.clock.next_alarm() is None


async def test_nobody_holds_on_for_a_run_that_does_nothing(watched: Watched) -> None:
    await watched.end()
    await asyncio.wait_for(watched.waiters.until_idle("r"), 1)


async def test_nobody_is_kept_who_comes_after_all_were_let_go(watched: Watched) -> None:
    watched.waiters.release_all()
    ended = await asyncio.wait_for(watched.waiters.wait("r", LONG), 1)
    assert ended is not None
    assert ended.run.status is Status.RUNNING
    await asyncio.wait_for(watched.waiters.until_idle("r"), 1)


async def test_a_parked_run_is_not_waited_for(watched: Watched) -> None:
    watched.run = watched.run._replace(interruptions=3, lone_interruptions=2)
    watched.do(Interrupt(alone=True))
    ended = await asyncio.wait_for(watched.waiters.wait("r", LONG), 1)
    assert ended is not None
    assert ended.run.status is Status.PARKED
    assert is_settled(ended)


async def test_no_patience_is_a_look(watched: Watched) -> None:
    ended = await asyncio.wait_for(watched.waiters.wait("r", 0), 1)
    assert ended is not None
    assert ended.run.status is Status.RUNNING
    assert not is_settled(ended)


async def test_everybody_is_told_of_the_end(watched: Watched) -> None:
    waiting = [watched.wait() for _ in range(5)]
    await asyncio.sleep(0.01)
    ended = await watched.end()
    watched.waiters.tell(ended)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [ended] * 5
    assert watched.clock.next_alarm() is None  # nobody's patience is timed any more
    watched.waiters.tell(ended)  # to nobody


async def test_others_are_not_told(watched: Watched) -> None:
    waiting = watched.wait()
    await asyncio.sleep(0.01)
    ended = await watched.end()
    watched.waiters.tell(ended._replace(run=ended.run._replace(id="another")))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    watched.waiters.tell(ended)
    assert await waiting == ended


async def test_patience_ends_with_the_run_as_it_stands(watched: Watched) -> None:
    waiting = watched.wait(timeout=1_000)
    await asyncio.sleep(0.01)
    watched.clock.move_to(watched.clock.now() + 999)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    watched.clock.move_to(watched.clock.now() + 1)
    ended = await asyncio.wait_for(waiting, 1)
    assert ended is not None
    assert ended.run.status is Status.RUNNING


async def test_an_end_that_nobody_tells_of_is_seen_when_patience_ends(watched: Watched) -> None:
    waiting = watched.wait(timeout=1_000)
    await asyncio.sleep(0.01)
    ended = await watched.end()
    watched.clock.move_to(watched.clock.now() + 1_000)
    assert await asyncio.wait_for(waiting, 1) == ended


async def test_an_end_between_looking_and_waiting_is_not_missed(watched: Watched) -> None:
    async def end() -> None:
        watched.waiters.tell(await watched.end())

    watched.store.when_looked_at = end
    ended = await asyncio.wait_for(watched.waiters.wait("r", LONG), 1)
    assert ended is not None
    assert ended.run.status is Status.COMPLETED


async def test_who_gives_up_leaves_nothing_behind(watched: Watched) -> None:
    waiting = watched.wait()
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert watched.clock.next_alarm() is None
    watched.waiters.tell(await watched.end())


async def test_all_can_be_let_go(watched: Watched) -> None:
    waiting = [watched.wait() for _ in range(3)]
    await asyncio.sleep(0.01)
    watched.waiters.release_all()
    for ended in await asyncio.wait_for(asyncio.gather(*waiting), 1):
        assert ended is not None
        assert ended.run.status is Status.RUNNING


async def test_a_waiter_on_another_loop_is_told_too(watched: Watched) -> None:
    watched.waiters = Waiters(watched.store, SystemClock())
    told: list[Ended | None] = []

    def wait_elsewhere() -> None:
        told.append(asyncio.run(watched.waiters.wait("r", 10_000)))

    thread = threading.Thread(target=wait_elsewhere)
    thread.start()
    await until(lambda: watched.waiters._waiting.get("r"))
    ended = await watched.end()
    watched.waiters.tell(ended)
    await asyncio.to_thread(thread.join, 5)
    assert told == [ended]


def test_a_loop_that_is_gone_stops_nobody_from_being_told(watched: Watched) -> None:
    loop = asyncio.new_event_loop()
    left_behind = loop.create_task(watched.waiters.wait("r", LONG))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    async def tell() -> None:
        here = watched.wait()
        await asyncio.sleep(0.01)
        ended = await watched.end()
        watched.waiters.tell(ended)
        assert await asyncio.wait_for(here, 1) == ended

    asyncio.run(tell())
    left_behind._log_destroy_pending = False  # type: ignore[attr-defined]
