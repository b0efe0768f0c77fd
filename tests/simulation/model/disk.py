"""The store as a service: group commit over the shipped conditional writes.

Stands for `store/group_commit.py` and SQLite below it; what a change does is `MemoryStore.apply`,
which is shipped. Changes that are submitted while one batch is being written share the next one. A
batch is written as a whole, and then, a little later, acknowledged. A process that ends takes with
it what it has submitted and not yet written; a loss of power also takes relaxed changes that were
not synced.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.store.base import Lane, RefusedError
from durable_endpoints_server.store.memory import MemoryStore
from tests.simulation.model.loop import MS, Future, Loop, Process

T = TypeVar("T")

_SYNC_WITHIN = 30 * MS

Witness = Callable[[Change], Callable[[], None]]
"""Told what is about to be written, and then called when it is."""


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

    def __init__(self, loop: Loop, process: Process, witness: Witness) -> None:
        self.store = MemoryStore()
        self.is_full = False
        self.slowness = 0
        """Further microseconds that each write may take."""
        self._loop = loop
        self._process = process
        self._witness = witness
        self.localized: Callable[[Change], Change] = lambda change: change
        """What is written of a change, where there are other partitions."""
        self._open: list[_Submitted] = []
        self._is_writing = False
        self._log: list[Change] = []
        """What was written, in order."""
        self._synced = 0
        """How much of that no loss of power can take."""

    def submit(self, change: Change, lane: Lane | None = None) -> Future:
        """Queue a change. What this returns is done once it is written, or fails as a ticket's
        `wait` does."""
        ticket = Future()
        self._open.append(_Submitted(change, lane, ticket))
        if not self._is_writing:
            self._is_writing = True
            self._loop.soon(self._process, self._begin)
        return ticket

    def serve(self, process: Process) -> None:
        """Another process has opened it: what an earlier one had not written is gone."""
        self._process = process
        self._open, self._is_writing = [], False

    @property
    def has_unsynced(self) -> bool:
        """Whether a loss of power would take something."""
        return self._synced < len(self._log)

    def lose_power(self) -> int:
        """Forget changes that were not synced, the last ones first. Returns how many."""
        kept = self._loop.random.randint(self._synced, len(self._log))
        lost = len(self._log) - kept
        if lost:
            del self._log[kept:]
            self.store = MemoryStore()
            for change in self._log:
                self.store.apply(change)
        self._synced = kept
        return lost

    def _begin(self) -> None:
        delay = self._loop.latency(2 * MS + self.slowness)
        self._loop.later(self._process, delay, self._write)

    def _write(self) -> None:
        batch, self._open = self._open, []
        outcomes = [self._write_one(submitted) for submitted in batch]
        if not self.is_full:
            if all(change.is_relaxed for change, *_ in batch):
                self._loop.later(self._process, _SYNC_WITHIN, self._sync, len(self._log))
            else:
                self._synced = len(self._log)
        acknowledging = self._loop.latency(MS)
        self._loop.later(self._process, acknowledging, self._finish, batch, outcomes)

    def _write_one(self, submitted: _Submitted) -> Exception | None:
        change, lane, _ = submitted
        change = self.localized(change)
        if lane is not None and lane.failure is not None:
            return lane.failure
        if self.is_full:
            failure = StorageError("the disk is full")
            if lane is not None:
                lane.failure = failure
            return failure
        is_written = self._witness(change)
        if not self.store.apply(change):
            return RefusedError()
        self._log.append(change)
        is_written()
        return None

    def _sync(self, length: int) -> None:
        self._synced = max(self._synced, length)

    def _finish(self, batch: list[_Submitted], outcomes: list[Exception | None]) -> None:
        self._is_writing = bool(self._open)
        if self._is_writing:
            self._begin()
        for submitted, failure in zip(batch, outcomes, strict=True):
            submitted.ticket.set(None, failure)
