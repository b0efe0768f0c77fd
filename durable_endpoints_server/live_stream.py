"""A run's stream log while the run is executed: chunks go to the disk in batches, and then out.

A chunk is written before any reader gets it, in a relaxed way: on disk within some 50 ms. What is
pushed while one batch is under way is the next batch, so a fast producer makes larger batches, not
more of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING
from weakref import ref

from durable_endpoints.protocol.errors import EngineError, LimitError
from durable_endpoints.protocol.ops import StepState
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    Change,
    Fact,
    RunChanged,
    RunEnded,
    StepWritten,
    Streamed,
    states,
)
from durable_endpoints_server.engine.model import Status, Stream
from durable_endpoints_server.engine.streams import (
    Chunk,
    append,
    append_committed,
    check_room,
    follow,
    weight_of,
    withdraw,
)
from durable_endpoints_server.store.base import Ticket

if TYPE_CHECKING:
    from durable_endpoints_server.live import LiveRun
    from durable_endpoints_server.streams import Streams

_FULL = 256 * 1024
"""Bytes that wait to be written, from which on a producer that can wait does."""
_MANY = 1_000
"""The same in chunks."""
_MOST = 8 * 1024 * 1024
"""Bytes that wait to be written at the most: a producer that cannot wait gets an error."""
_PLENTY = 100
"""Chunks that wait to be written, from which on new progress of a step replaces its last."""
_RUNNING = states(Status.RUNNING)

logger = logging.getLogger("durable_endpoints")


class LiveStream:
    """The producing end of one run's stream log, as long as one execution lasts."""

    def __init__(
        self, live: LiveRun, streams: Streams, stream: Stream, is_counted: bool = False
    ) -> None:
        """`is_counted`: the producer counts its chunks, so that it can say after a break which of
        them it sends again. Then every one is written: what is not to be, it does not send."""
        self.stream = stream
        self._is_counted = is_counted
        self._run_id, self._policy = live.id, live.policy
        # It is the execution that has this, and goes with its request; a cycle would outlive that.
        self._live = ref(live)
        self._streams = streams
        self._lock = threading.Lock()
        self._loop = live.loop
        self._pending: list[Chunk] = []
        self._pending_size = 0
        self._ended: dict[str, int] = {}
        """The last try of each step that has ended: what it still pushes does not count."""
        self._replayed = 0
        """Chunks pushed outside steps by earlier executions: this one pushes them again first."""
        self.written = stream.tail
        """The last position that is known to be written."""
        self._is_closed = False
        self._is_woken = False
        self._has_left_out = False
        self._writing: asyncio.Task[None] | None = None

    def replay(self) -> None:
        """The execution's handler is about to run, from its top."""
        self._replayed = self.stream.outside

    def push(
        self, step: str, attempt: int, values: list[bytes], kind: RecordKind = RecordKind.DATA
    ) -> bool:
        """Add chunks, JSON values, of one try of a step. From any thread. Whether they are new,
        and no replay of what an earlier execution has pushed.

        Raises `LimitError` when data is more than a run may stream, or more than can wait. No
        work shall fail because it reports on itself: of progress and log lines, what is too much
        is left out, with one warning, and progress that nobody could follow is skipped.
        """
        with self._lock:
            if step == OUTSIDE and self._replayed and kind is not RecordKind.VERBATIM:
                known = min(self._replayed, len(values))
                self._replayed -= known
                values = values[known:]
            if not values or self._is_closed:
                return False
            chunks = [Chunk(step, attempt, value, kind) for value in values]
            try:
                self._add(chunks)
            except LimitError as error:
                if kind is RecordKind.DATA or self._is_counted:
                    raise
                self._leave_out(error)
                return True
            if self._is_woken:
                return True
            self._is_woken = True
        self._wake_soon()
        return True

    def _add(self, chunks: list[Chunk]) -> None:
        pending = self._pending
        is_plenty = len(pending) >= _PLENTY and not self._is_counted
        if is_plenty and _replaces(chunks, pending[-1]):
            self._pending_size -= weight_of([pending.pop().value])
        size = weight_of([chunk.value for chunk in chunks])
        check_room(self.stream.size + self._pending_size, size, self._policy)
        if self._pending_size + size > _MOST and pending:
            raise LimitError(
                f"more than {_MOST:,} bytes of chunks wait to be written (each counts 100 more "
                "than it has): let the handler wait for the disk, with `await stream.pipe(…)` "
                "rather than `stream.push(…)`"
            )
        pending += chunks
        self._pending_size += size

    def _leave_out(self, error: LimitError) -> None:
        if not self._has_left_out:
            self._has_left_out = True
            logger.warning(
                "run %s: readers of its stream miss progress or log lines from here on: %s",
                self._run_id,
                error,
            )

    def _wake_soon(self) -> None:
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        (self._loop.call_soon if on_loop else self._loop.call_soon_threadsafe)(self._wake)

    @property
    def is_full(self) -> bool:
        """Whether a producer that can wait should, for `room`."""
        return self._pending_size > _FULL or len(self._pending) > _MANY

    async def room(self) -> None:
        """Return when more chunks may come, or none will be written any more."""
        while self.is_full and not self._is_closed:
            if self._writing is None:
                self._wake()
            assert self._writing is not None
            await asyncio.shield(self._writing)

    def join(self, facts: tuple[Fact, ...]) -> tuple[tuple[Fact, ...], tuple[StreamRecord, ...]]:
        """Let what was pushed so far, and what the log has to say about `facts`, be written in one
        change with them. Returns the facts of the change, and the records among them, for
        `announce`."""
        before = self.stream
        records = self._take()
        self.stream, more = follow(self.stream, facts)
        records += more
        for fact in facts:
            if isinstance(fact, StepWritten) and fact.step.state is not StepState.PENDING:
                self._ended[fact.step.id.hash] = fact.step.attempt
            elif isinstance(fact, RunEnded | RunChanged):
                # Nothing that comes now is written, and so it must not take a position either.
                self._is_closed = fact.run.status is not Status.RUNNING
        if self.stream is before:
            return facts, ()
        return (Streamed(tuple(records), self.stream), *facts), tuple(records)

    def withdraw(self, step: str) -> None:
        """A try of a step was given up without an outcome: withdraw its chunks."""
        live = self._live()
        if self._is_closed or live is None:
            return
        pushed = self._take()
        self.stream, withdrawn = withdraw(self.stream, step)
        if records := (*pushed, *withdrawn):
            self.announce(self._submit(live, records), records)

    def push_committed(self, step: str, values: list[bytes]) -> None:
        """Add chunks of a step that is done already. Raises `LimitError` as `push` does."""
        live = self._live()
        if self._is_closed or live is None:
            return
        check_room(self.stream.size + self._pending_size, weight_of(values), self._policy)
        pushed = self._take()
        self.stream, added = append_committed(self.stream, step, values)
        records = (*pushed, *added)
        self.announce(self._submit(live, records), records)

    def announce(self, ticket: Ticket, records: tuple[StreamRecord, ...]) -> None:
        """Give `records` to readers once they are written."""
        ticket.then(lambda: self._publish(records))

    def _publish(self, records: tuple[StreamRecord, ...]) -> None:
        self.written = records[-1].last
        self._streams.publish(self._run_id, records)
        live = self._live()
        if live is not None and live.on_written is not None:
            live.on_written(records)

    def _wake(self) -> None:
        live = self._live()
        if self._writing is None and not self._is_closed and live is not None:
            self._writing = live.spawn(self._write(live), f"stream of {self._run_id}")

    async def _write(self, live: LiveRun) -> None:
        try:
            while self._pending and not self._is_closed:
                records = tuple(self._take())
                if not records:
                    break
                ticket = self._submit(live, records)
                self.announce(ticket, records)
                await live.until_written(ticket)
        except EngineError:
            pass  # the execution meets the same failure, and ends with it
        finally:
            self._writing = None

    def _submit(self, live: LiveRun, records: tuple[StreamRecord, ...]) -> Ticket:
        run, facts = live.run, (Streamed(records, self.stream),)
        return live.submit(Change(facts, run.id, run.generation, _RUNNING, is_relaxed=True))

    def _take(self) -> list[StreamRecord]:
        with self._lock:
            pending, self._pending, self._pending_size = self._pending, [], 0
            self._is_woken = False
        if not pending:
            return []
        if self._ended and not self._is_counted:
            pending = [
                chunk for chunk in pending if chunk.attempt > self._ended.get(chunk.step, -1)
            ]
        self.stream, records = append(self.stream, pending)
        return records


def _replaces(chunks: list[Chunk], last: Chunk) -> bool:
    """Whether `chunks` are progress of the same try as `last`. Outside steps each one is counted,
    so that a replay knows which of them are in the log already."""
    return (
        len(chunks) == 1
        and last.kind is RecordKind.PROGRESS
        and chunks[0][:2] == last[:2]
        and chunks[0].kind is last.kind
        and last.step != OUTSIDE
    )
