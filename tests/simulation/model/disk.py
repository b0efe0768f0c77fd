"""The store as a service: group commit over the shipped conditional writes.

Stands for `store/group_commit.py` and SQLite below it; what a change does is `MemoryStore.apply`,
which is shipped. Changes that are submitted while one batch is being written share the next one. A
batch is written as a whole, and then, a little later, acknowledged. A process that ends takes with
it what it has submitted and not yet written; a loss of power also takes relaxed changes that were
not synced.

A process that was only held still has what it had submitted, after another one has opened the disk
and taken its runs over. When it goes on, that is written too, if the store admits it: it must not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.engine.facts import Change, states
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import Lane, RefusedError
from durable_endpoints_server.store.memory import MemoryStore
from tests.simulation.model.loop import MS, Clock, Future, Loop, Process

T = TypeVar("T")

_SYNC_WITHIN = 30 * MS
_LATE: Final = 60_000
"""Milliseconds by which something may be late without a reason."""
_RUNNING: Final = states(Status.RUNNING)

LATE: Final = "late write"
"""A write of a process that was replaced, which the store has refused."""

Witness = Callable[[Change, bool], None]
"""Told what was written, and whether by a process that was replaced."""


def read(reading: Coroutine[Any, Any, T]) -> T:
    """What a read of the memory store returns, at once: it never waits."""
    try:
        reading.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the memory store waited")


class _Submitted(NamedTuple):
    change: Change
    lane: Lane | None
    ticket: Future


class Disk:
    """What outlasts processes."""

    def __init__(self, loop: Loop, clock: Clock, witness: Witness, seen: Counter[str]) -> None:
        """`seen` counts late writes."""
        self.clock = clock
        self.store = MemoryStore()
        self.is_full = False
        self.failed = 0
        """How many batches could not be written."""
        self.quiet_since = 0
        """When the last thing that went wrong here was over, in microseconds."""
        self.failing = 0
        """How many of the next batches cannot be written."""
        self.slowness = 0
        """Further microseconds that each write may take."""
        self.localized: Callable[[Change], Change] = lambda change: change
        """What is written of a change, where there are other partitions."""
        self.loop = loop
        self._witness = witness
        self._seen = seen
        self._server: Connection | None = None
        self._log: list[Change] = []
        """What was written, in order."""
        self._synced = 0
        """How much of that no loss of power can take."""

    def open(self, process: Process) -> Connection:
        """From now on this process serves the disk, and no earlier one."""
        self._server = Connection(self, process)
        return self._server

    @property
    def has_unsynced(self) -> bool:
        """Whether a loss of power would take something."""
        return self._synced < len(self._log)

    def lose_power(self) -> int:
        """Forget changes that were not synced, the last ones first. Returns how many."""
        kept = self.loop.random.randint(self._synced, len(self._log))
        lost = len(self._log) - kept
        if lost:
            del self._log[kept:]
            self.store = MemoryStore()
            for change in self._log:
                self.store.apply(change)
        self._synced = kept
        return lost

    def takes_batch(self) -> bool:
        """Whether the next batch can be written."""
        if not (self.failing or self.is_full):
            return True
        self.failing = max(0, self.failing - 1)
        self.failed += 1
        self.quiet_since = max(self.quiet_since, self.loop.now)
        return False

    def is_late(self, due: int) -> bool:
        """Whether what was due at an instant of engine time is late, and nothing excuses that."""
        is_quiet = self.loop.now - self.quiet_since > _LATE * MS
        return is_quiet and self.clock.now() - due > _LATE

    def write(self, submitted: _Submitted, connection: Connection) -> Exception | None:
        """Write a change, if its condition holds. Returns why not."""
        change, lane, _ = submitted
        is_replaced = connection is not self._server
        # One process at a time may claim runs. Two that claim on the same generation would have the
        # same next one, and the fence could not tell what they write after that.
        if is_replaced and (lane is None or change.states != _RUNNING):
            return StorageError("another process serves this disk")
        change = self.localized(change)
        if not self.store.apply(change):
            self._seen[LATE] += is_replaced
            return RefusedError()
        self._log.append(change)
        self._witness(change, is_replaced)
        return None

    def sync(self, length: int) -> None:
        """No loss of power can take the first `length` changes any more."""
        self._synced = max(self._synced, length)

    @property
    def length(self) -> int:
        """How many changes were written."""
        return len(self._log)


class Connection:
    """A process's way to the disk: what it has submitted, and not yet been told of."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._loop = disk.loop
        self._process = process
        self._open: list[_Submitted] = []
        self._is_writing = False

    @property
    def store(self) -> MemoryStore:
        """What is written by now, to read."""
        return self._disk.store

    def submit(self, change: Change, lane: Lane | None = None) -> Future:
        """Queue a change. What this returns is done once it is written, or fails as a ticket's
        `wait` does."""
        ticket = Future()
        self._open.append(_Submitted(change, lane, ticket))
        if not self._is_writing:
            self._is_writing = True
            self._loop.soon(self._process, self._begin)
        return ticket

    def _begin(self) -> None:
        delay = self._loop.latency(2 * MS + self._disk.slowness)
        self._loop.later(self._process, delay, self._write)

    def _write(self) -> None:
        disk = self._disk
        batch, self._open = self._open, []
        is_possible = disk.takes_batch()
        outcomes = [self._write_one(submitted, is_possible) for submitted in batch]
        if is_possible:
            if all(change.is_relaxed for change, *_ in batch):
                self._loop.later(self._process, _SYNC_WITHIN, disk.sync, disk.length)
            else:
                disk.sync(disk.length)
        acknowledging = self._loop.latency(MS)
        self._loop.later(self._process, acknowledging, self._finish, batch, outcomes)

    def _write_one(self, submitted: _Submitted, is_possible: bool) -> Exception | None:
        lane = submitted.lane
        if lane is not None and lane.failure is not None:
            return lane.failure
        failure: Exception | None
        if is_possible:
            failure = self._disk.write(submitted, self)
        else:
            failure = StorageError("the disk is full")
        if lane is not None and isinstance(failure, StorageError):
            lane.failure = failure
        return failure

    def _finish(self, batch: list[_Submitted], outcomes: list[Exception | None]) -> None:
        self._is_writing = bool(self._open)
        if self._is_writing:
            self._begin()
        for submitted, failure in zip(batch, outcomes, strict=True):
            submitted.ticket.set(None, failure)
