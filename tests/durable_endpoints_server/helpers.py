"""A host on a virtual clock, stores that fail when told to, and runs made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, RunEnded
from durable_endpoints_server.engine.model import Policy, Run, Status
from durable_endpoints_server.engine.transitions import Claim, Interrupt, decide
from durable_endpoints_server.host import Host, HostOptions
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry, Lane, RefusedError, Store, Ticket
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.store.sqlite import SqliteStore

POLICY = Policy()


def anything(change: Change) -> bool:
    return True


def an_end(change: Change) -> bool:
    """Whether a change ends a run."""
    return any(isinstance(fact, RunEnded) for fact in change.facts)


class FlakyStore(MemoryStore):
    """A store in memory that refuses what `fails` says, and can be away altogether."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[Change], bool] | None = None
        self.is_away = False
        self.refused: list[Change] = []
        self.questions = 0

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        broken = lane is not None and lane.failure is not None
        if not broken and (self.fails is None or not self.fails(change)):
            return super().submit(change, lane)
        self.refused.append(change)
        failure = StorageError("runs.db: the disk is full: free some space")
        if lane is not None:
            lane.failure = failure
        return _Failed(failure)

    @property
    def is_healthy(self) -> bool:
        return self.fails is None

    def _ask(self) -> None:
        self.questions += 1
        if self.is_away:
            raise StorageError("runs.db: the disk reports an error")

    async def in_status(
        self, status: Status, limit: int, without: Collection[str] = ()
    ) -> list[Run]:
        self._ask()
        return await super().in_status(status, limit, without)

    async def due_deadlines(self, now: int, limit: int) -> list[Run]:
        self._ask()
        return await super().due_deadlines(now, limit)

    async def entry(self, run_id: str) -> Entry | None:
        self._ask()
        return await super().entry(run_id)

    async def inbox(self, limit: int) -> list[Any]:
        self._ask()
        return await super().inbox(limit)

    async def is_sweepable(self, *instants: int) -> bool:
        self._ask()
        return await super().is_sweepable(*instants)


class _Failed:
    def __init__(self, failure: StorageError) -> None:
        self._failure = failure

    async def wait(self) -> None:
        raise self._failure

    def then(self, callback: Callable[[], None]) -> None:
        pass


class SlowStore(MemoryStore):
    """A store in memory that writes nothing while it `holds`."""

    holds = False

    def __init__(self) -> None:
        super().__init__()
        self.held: list[_Held] = []

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        if not self.holds:
            return super().submit(change, lane)
        self.held.append(_Held(change))
        return self.held[-1]

    def let_go(self) -> None:
        """Write what was submitted meanwhile, and hold no more."""
        self.holds = False
        self.write(len(self.held))

    def write(self, count: int) -> None:
        """Write the first of what was submitted meanwhile."""
        held_back, self.held = self.held[:count], self.held[count:]
        for held in held_back:
            if self.apply(held.change):
                held.written.set_result(None)
            else:
                held.written.set_exception(RefusedError())


class _Held:
    def __init__(self, change: Change) -> None:
        self.change = change
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        await asyncio.shield(self.written)

    def then(self, callback: Callable[[], None]) -> None:
        def call(written: asyncio.Future[None]) -> None:
            if written.exception() is None:
                callback()

        self.written.add_done_callback(call)


class Executions:
    """An executor that notes what it is given, and leaves each run as it is told to."""

    def __init__(self, leave: Callable[[LiveRun, Entry], Any]) -> None:
        self.began: list[str] = []
        self.running = 0
        self.most = 0
        self._leave = leave

    async def __call__(self, live: LiveRun, entry: Entry) -> None:
        self.began.append(live.id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._leave(live, entry)
        finally:
            self.running -= 1


@asynccontextmanager
async def serving(store: Store, clock: VirtualClock, **options: Any) -> AsyncIterator[Host]:
    """A host whose services run."""
    host = Host(store, HostOptions("me", **options), clock)
    await host.attach()
    try:
        yield host
    finally:
        await host.stop()


def new_run(run_id: str, **options: Any) -> NewRun:
    return NewRun(run_id, "GET /x", "v1", "GET", "/x", b"the request", **options)


async def until(condition: Callable[[], Any], patience: float = 5.0) -> None:
    """Return when `condition` holds."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.001)


async def a_moment() -> None:
    """Let everything go as far as it goes by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


def park(database: Path, run_id: str) -> None:
    """Do to a run that is ready or waits what its process's deaths would: it is parked."""

    async def work() -> None:
        store = SqliteStore(database)
        try:
            run = await store.run(run_id)
            assert run is not None
            run = run._replace(status=Status.READY) if run.status is Status.WAITING else run
            store._writer.execute(
                "update runs set status = 3, ready_at = 1 where id = ?", (run_id,)
            )
            while run.status is not Status.PARKED:
                for command in (Claim("they", None), Interrupt(alone=True)):
                    decision = decide(run, command, run.began_at, POLICY)
                    await store.submit(decision.change).wait()
                    run = decision.run
        finally:
            await store.close()

    asyncio.run(work())
