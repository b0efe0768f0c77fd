"""Group commit: changes from many requests travel to the disk together.

Changes submitted in one turn of the event loop form a batch. One thread writes one batch at a
time; what is submitted meanwhile is the next batch. Nobody is acknowledged before the disk is, but
for relaxed changes: those are when they are written, and the disk follows within milliseconds.

Nothing here belongs to one event loop: every waiter is woken on the loop it waits on, so a store
outlives the loops of a test client that makes a new one for each request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from durable_endpoints.protocol.errors import EngineClosedError, StorageError
from durable_endpoints_server.store.base import Lane, RefusedError

logger = logging.getLogger("durable_endpoints")


class WriteError(Exception):
    """A batch could not be written. `common` says that any other batch would fail likewise."""

    def __init__(self, cause: StorageError, common: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.common = common


_SYNC_WITHIN = 0.03
"""Seconds after which what was written in a relaxed way is brought to the disk."""
_SYNC_AGAIN = 1.0
"""Seconds until that is tried again, if it fails."""
_HEALTHY = 5.0
"""Seconds for which a success says something about the next write."""

T = TypeVar("T")

Write = Callable[[Sequence[T], bool], Collection[int]]
"""Writes changes in order, atomically, and returns the positions of those whose fence failed. The
second argument says whether they may stay in the operating system's memory for now."""


class GroupCommit(Generic[T]):
    """Queues changes, in whatever form the store writes them, and writes them in groups on a
    thread of its own."""

    def __init__(self, write: Write[T], name: str, sync: Callable[[], None] = lambda: None) -> None:
        """`sync` brings to the disk what was written in a relaxed way."""
        self._write = write
        self._sync = sync
        self._unsynced_since: float | None = None
        self._lock = threading.Lock()
        self._open: _Batch[T] = _Batch(self._lock)
        self._writing = False
        self._kicker: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._last_success = time.monotonic()
        self._queue: SimpleQueue[_Batch[T] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, change: T, lane: Lane | None, is_relaxed: bool = False) -> CommitTicket[T]:
        """Add `change` to the next batch. Must be called on a running event loop."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("the store is closed")
            batch = self._open
            ticket = CommitTicket(batch, change, lane)
            batch.tickets.append(ticket)
            if not is_relaxed:
                batch.is_relaxed = False
            if not self._writing and (self._kicker is None or self._kicker.is_closed()):
                # The batch is everything that this turn of the loop submits.
                self._kicker = asyncio.get_running_loop()
                self._kicker.call_soon(self._kick)
        return ticket

    @property
    def is_healthy(self) -> bool:
        """Whether the last batch was written, and that not long ago."""
        return time.monotonic() - self._last_success < _HEALTHY

    def close(self) -> None:
        """Write what was submitted, then end the thread. Blocks until both are done."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._kick()
        self._queue.put(None)
        self._thread.join()

    def _kick(self) -> None:
        with self._lock:
            self._kicker = None
            batch = self._next_batch()
        if batch is not None:
            self._queue.put(batch)

    def _next_batch(self) -> _Batch[T] | None:
        if self._writing or not self._open.tickets:
            return None
        batch, self._open = self._open, _Batch(self._lock)
        self._writing = True
        return batch

    def _work(self) -> None:
        while (batch := self._next_from_queue()) is not None:
            next_batch: _Batch[T] | None = batch
            while next_batch is not None:
                self._commit(next_batch)
                next_batch = self._finish(next_batch)
                self._sync_if_due()
        self._sync_if_due(0.0)

    def _next_from_queue(self) -> _Batch[T] | None:
        while self._unsynced_since is not None:
            left = self._unsynced_since + _SYNC_WITHIN - time.monotonic()
            try:
                return self._queue.get(timeout=max(0.0, left))
            except Empty:
                self._sync_if_due()
        return self._queue.get()

    def _sync_if_due(self, within: float = _SYNC_WITHIN) -> None:
        since = self._unsynced_since
        if since is None or time.monotonic() - since < within:
            return
        try:
            self._sync()
        except OSError as error:
            # The next durable batch meets the same error on the database's own descriptor.
            logger.error("what was streamed could not be brought to the disk: %s", error)
            self._last_success = -_HEALTHY
            self._unsynced_since = time.monotonic() + _SYNC_AGAIN
        else:
            self._unsynced_since = None

    def _commit(self, batch: _Batch[T]) -> None:
        """Write a batch, without the changes of lanes that failed before."""
        if tickets := [ticket for ticket in batch.tickets if not ticket.fails_with_its_lane()]:
            self._write_tickets(tickets, batch.is_relaxed)

    def _write_tickets(self, tickets: list[CommitTicket[T]], is_relaxed: bool) -> None:
        try:
            refused = self._write([ticket.change for ticket in tickets], is_relaxed)
        except WriteError as error:
            self._fail(tickets, is_relaxed, error.cause, error.common)
        except BaseException as error:
            # A value that no database holds, for instance.
            cause = StorageError(f"the store failed: {error!r}")
            self._fail(tickets, is_relaxed, cause, common=False)
        else:
            for index in refused:
                tickets[index].failure = RefusedError()
            self._last_success = time.monotonic()
            if not is_relaxed:
                self._unsynced_since = None
            elif self._unsynced_since is None:
                self._unsynced_since = self._last_success

    def _fail(
        self, tickets: list[CommitTicket[T]], is_relaxed: bool, cause: StorageError, common: bool
    ) -> None:
        if common or len(tickets) == 1:
            for ticket in tickets:
                ticket.fail(cause)
            if common:
                self._last_success = -_HEALTHY
            return
        # One change is at fault, and the others must not suffer for it.
        for ticket in tickets:
            if not ticket.fails_with_its_lane():
                self._write_tickets([ticket], is_relaxed)

    def _finish(self, batch: _Batch[T]) -> _Batch[T] | None:
        """Tell everybody, once per event loop, and take the next batch."""
        with self._lock:
            batch.is_finished = True
            waiting, batch.waiting = batch.waiting, {}
            batch.tickets = []  # which refer to the batch: no garbage that refers to itself
            self._writing = False
            next_batch = self._next_batch()
        for loop, waiters in waiting.items():
            try:
                loop.call_soon_threadsafe(_wake, waiters)
            except RuntimeError:
                pass  # that loop is closed, and nobody waits on it any more
        return next_batch


class CommitTicket(Generic[T]):
    """One change in one batch."""

    __slots__ = ("_batch", "_lane", "change", "failure")

    def __init__(self, batch: _Batch[T], change: T, lane: Lane | None) -> None:
        self._batch = batch
        self._lane = lane
        self.change = change
        self.failure: Exception | None = None

    async def wait(self) -> None:
        if not self._batch.is_finished:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            if self._enlist(loop, future):
                await future
                return
        if self.failure is not None:
            raise self.failure

    def then(self, callback: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if not self._enlist(loop, callback) and self.failure is None:
            loop.call_soon(callback)

    def fail(self, error: Exception) -> None:
        """It could not be written, and so nothing may be that comes after it in its lane."""
        self.failure = error
        if self._lane is not None:
            self._lane.failure = error

    def fails_with_its_lane(self) -> bool:
        """Whether its lane has failed before it; then so does this one."""
        if self._lane is None or self._lane.failure is None:
            return False
        self.failure = self._lane.failure
        return True

    def _enlist(self, loop: asyncio.AbstractEventLoop, target: _Target) -> bool:
        batch = self._batch
        with batch.lock:
            if batch.is_finished:
                return False
            waiters = batch.waiting.get(loop)
            if waiters is None:
                waiters = batch.waiting[loop] = []
            waiters.append((target, self))
            return True


_Target = asyncio.Future[None] | Callable[[], None]
_Waiters = list[tuple[_Target, CommitTicket[Any]]]
"""Who waits on one event loop, and for which change of the batch."""


class _Batch(Generic[T]):
    __slots__ = ("is_finished", "is_relaxed", "lock", "tickets", "waiting")

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.tickets: list[CommitTicket[T]] = []
        self.is_relaxed = True
        self.waiting: dict[asyncio.AbstractEventLoop, _Waiters] = {}
        self.is_finished = False


def _wake(waiters: _Waiters) -> None:
    """Resolve what waits on this loop; a waiter that was cancelled meanwhile is passed over."""
    for target, ticket in waiters:
        failure = ticket.failure
        if isinstance(target, asyncio.Future):
            if target.done():
                continue
            if failure is None:
                target.set_result(None)
            else:
                target.set_exception(failure)
        elif failure is None:
            target()
