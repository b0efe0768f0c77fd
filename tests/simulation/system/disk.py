"""The disk of one simulated machine, and the store as one process on that machine has it.

What is on disk is a real `MemoryStore`; what is submitted goes through the shipped `GroupCommit`,
whose thread is replaced by callbacks: a write, and later its end. Reads take time too, and see what
was written at one instant in it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any, cast

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.store.base import Lane, Store, Ticket
from durable_endpoints_server.store.group_commit import GroupCommit, WriteError
from durable_endpoints_server.store.memory import MemoryStore
from tests.simulation.system.loop import Process

_SYNC_WITHIN = 0.035
"""Seconds after which the thread of a `GroupCommit` would sync what is relaxed."""


class Disk:
    """Everything that was written, in order, and how much of it is synced."""

    def __init__(self, random: Random) -> None:
        self.store = MemoryStore()
        self.is_full = False
        """Whether it refuses whatever is written."""
        self.is_broken = False
        """Whether it can be neither written nor read."""
        self.on_written: Callable[[Change, bool], None] = lambda change, held: None
        """Told of each change, and whether its condition held."""
        self.on_acknowledged: Callable[[Change], None] = lambda change: None
        self.on_synced: Callable[[int], None] = lambda count: None
        """Told how many transactions survive the loss of power from now on."""
        self.random = random
        self._log: list[Sequence[Change]] = []
        self._synced = 0

    def write(self, changes: Sequence[Change]) -> list[int]:
        """Write changes in one transaction. Returns which of them are refused."""
        refused = []
        self._log.append(changes)
        for number, change in enumerate(changes):
            held = self.store.apply(change)
            if not held:
                refused.append(number)
            self.on_written(change, held)
        return refused

    @property
    def written(self) -> int:
        """How many transactions were written."""
        return len(self._log)

    def sync(self, count: int) -> None:
        """The first `count` transactions survive the loss of power from now on."""
        self._synced = max(self._synced, count)
        self.on_synced(self._synced)

    def lose_power(self) -> None:
        """Keep what is synced, and of the rest as much as the operating system happened to write,
        which SQLite's log takes in order."""
        kept = self.random.randint(self._synced, len(self._log))
        log, self._log = self._log[:kept], []
        self.store = MemoryStore()
        for changes in log:
            for change in changes:
                self.store.apply(change)
        self._log = log
        self.sync(kept)


class ProcessStore:
    """The store in one process. All reads of a store are here by `__getattr__`."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._commits = _Commits(disk, process)

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        return self._commits.submit(change, lane, change.is_relaxed)

    @property
    def is_healthy(self) -> bool:
        return self._commits.is_healthy

    async def close(self) -> None:
        await self._commits.closed()

    def __getattr__(self, name: str) -> Any:
        disk = self._disk

        async def read(*args: Any) -> Any:
            await asyncio.sleep(_delay(disk.random))
            if disk.is_broken:
                raise StorageError("the disk cannot be read")
            found = await getattr(disk.store, name)(*args)
            await asyncio.sleep(_delay(disk.random))
            return found

        return read


def store_of(disk: Disk, process: Process) -> Store:
    """The store as `process` has it."""
    return cast("Store", ProcessStore(disk, process))


class _Commits(GroupCommit[Change]):
    """Group commit whose thread is two callbacks a batch."""

    def __init__(self, disk: Disk, process: Process) -> None:
        thread = threading.Thread
        threading.Thread = _NoThread  # type: ignore[assignment, misc]
        try:
            super().__init__(self._write_to_disk, "simulated", self._sync_disk)
        finally:
            threading.Thread = thread  # type: ignore[misc]
        self._disk = disk
        self._process = process
        self._queue = self  # type: ignore[assignment]

    def put(self, batch: Any) -> None:
        """As the queue to the thread."""
        if batch is not None:
            self._process.call_later(_delay(self._disk.random), self._begin, batch)

    def _begin(self, batch: Any) -> None:
        self._commit(batch)
        delay = _delay(self._disk.random)
        self._process.call_later(delay, self._end, batch, self._disk.written)

    def _end(self, batch: Any, written: int) -> None:
        if not batch.is_relaxed:
            self._disk.sync(written)
        for ticket in batch.tickets:
            if ticket.failure is None:
                self._disk.on_acknowledged(ticket.change)
        following = self._finish(batch)
        if following is not None:
            self.put(following)
        elif self._unsynced_since is not None:
            self._process.call_later(_SYNC_WITHIN, self._sync_if_due)

    def _write_to_disk(self, changes: Sequence[Change], is_relaxed: bool) -> Collection[int]:
        if self._disk.is_full or self._disk.is_broken:
            raise WriteError(StorageError("the disk is full"), common=True)
        return self._disk.write(changes)

    def _sync_disk(self) -> None:
        self._disk.sync(self._disk.written)

    async def closed(self) -> None:
        """Write what was submitted, and take no more."""
        self._closed = True
        self._kick()
        while self._writing or self._open.tickets:
            await asyncio.sleep(0.001)
        self._sync_disk()


class _NoThread:
    def __init__(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        pass


def _delay(random: Random) -> float:
    """Seconds that the disk takes: nearly nothing, some, or a stall."""
    kind = random.random()
    if kind < 0.4:
        return 0.0001 * random.random()
    if kind < 0.97:
        return 0.004 * random.random()
    return 0.5 * random.random()
