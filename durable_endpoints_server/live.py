"""A run while it is executed in this process: the one writer of its facts."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from durable_endpoints.protocol.errors import EngineError, LostRunError, StorageError
from durable_endpoints.protocol.ops import (
    Invoke,
    SendEvent,
    SignalTaken,
    Sleep,
    StepDone,
    StepKind,
    StepOp,
    StepRecord,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, Listener
from durable_endpoints.protocol.streams import RecordKind, StreamRecord, StreamStart
from durable_endpoints_server.engine.facts import (
    Change,
    ChildCreated,
    Fact,
    RunEnded,
    StepResolved,
    StepWritten,
)
from durable_endpoints_server.engine.model import Policy, Run, Status, Stream
from durable_endpoints_server.engine.streams import started
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Command,
    Decision,
    Expire,
    Interrupt,
    Park,
    Release,
    Resolve,
    Suspend,
    decide,
)
from durable_endpoints_server.live_alarms import Alarms
from durable_endpoints_server.live_stream import LiveStream
from durable_endpoints_server.store.base import Lane, RefusedError, Ticket
from durable_endpoints_server.stream_reader import Reader
from durable_endpoints_server.tasks import on_loop

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host


_opening_streams = threading.Lock()
_DONE, _SEND = StepState.DONE, StepKind.SEND
_FROM_THE_BEGINNING = StreamStart()


class LiveRun:
    """One execution and its lease.

    All methods are for the event loop on which the execution runs; `offer` and `stop` may be
    awaited from any, and `push` is for any thread. Each command is decided on the state in memory,
    which is exact, because nobody else writes the run while this execution holds the lease; the
    fence in the store makes sure of it.
    """

    __slots__ = (
        "__weakref__",
        "_alarms",
        "_host",
        "_is_remote",
        "_lane",
        "_left",
        "_missed",
        "_open",
        "_stream",
        "_tasks",
        "_ticket",
        "_used_events",
        "id",
        "listener",
        "loop",
        "memo",
        "on_written",
        "run",
        "stop_reason",
        "was_refused",
    )

    def __init__(
        self,
        host: Host,
        decision: Decision,
        memo: Sequence[StepRecord],
        stream: Stream | None = None,
        is_remote: bool = False,
    ) -> None:
        """`stream` is the state of the run's stream log, if it has one. `is_remote` says that the
        execution is at the far end of a wire, and counts its chunks itself."""
        self.run: Run = decision.run
        self.id = self.run.id
        self.memo = memo
        self.listener: Listener | None = None
        self.on_written: Callable[[Sequence[StreamRecord]], None] | None = None
        """Told which records of the stream log are written, in order."""
        self.stop_reason = ""
        """Why the run was taken from this execution; empty while it was not."""
        self._host = host
        self.loop = asyncio.get_running_loop()
        self._lane = Lane()
        self._is_remote = is_remote
        self._stream = None if stream is None else self._live_stream(stream)
        self._left = False
        self._ticket: Ticket = self._write(decision.change)
        if self._stream is not None:
            if not is_remote:
                self._stream.replay()
            self._ticket.then(lambda: host.streams.look_again(decision.run.id))
        self._open: dict[str, StepRecord] = {}
        for step in memo:
            if not step.is_final:
                self._open[step.id.hash] = step
        self._alarms: Alarms | None = None
        self._tasks: set[asyncio.Task[None]] | None = None
        self._missed = False
        self.was_refused = False
        """Whether a write was refused: somebody else has changed the run."""
        self._used_events: frozenset[str] = frozenset()
        if self.run.deadline is not None:
            self._alarms = Alarms(host)
            self._alarms.set_deadline(self, self.run.deadline)

    def _live_stream(self, stream: Stream) -> LiveStream:
        return LiveStream(self, self._host.streams, stream, self._is_remote)

    @property
    def generation(self) -> int:
        """The fencing number of this execution."""
        return self.run.generation

    @property
    def began_at(self) -> int:
        """When the original request came."""
        return self.run.began_at

    # What the execution records

    def record(self, op: StepOp) -> StepRecord:
        """Record `op` and return the step as it now is. `acknowledge` says when that is on disk.

        Raises `LostRunError` when the run is no longer this execution's, `LimitError` when `op`
        passes a limit; then nothing was recorded.
        """
        if type(op) is StepDone:
            fact = self._apply(op)[0]
            assert type(fact) is StepWritten
            if self._open:
                self._open.pop(fact.step.id.hash, None)
            return fact.step
        if isinstance(op, Sleep) and op.until is not None:
            op = op._replace(until=self._host.clock.of_machine(op.until))
        written, *more = self._apply(op)
        assert isinstance(written, StepWritten)
        step = written.step
        key = step.id.hash
        if step.state >= _DONE:
            self._open.pop(key, None)
            if step.kind is _SEND:
                self._settle_soon(op)
        else:
            self._open[key] = step
            self.watch(step)
            if isinstance(op, Invoke):
                self._announce_child(*more)
        return step

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        """Record a wait for a signal, for which no other one may wait: who does is told, or, with
        `replace`, waits no longer."""
        return await self._host.signals.open(self, op, replace)

    def watch(self, step: StepRecord) -> None:
        """Let the open `step` be resolved while this execution still runs, and tell the listener.

        To be called again for a step that an earlier execution opened.
        """
        if step.due is not None:
            if self._alarms is None:
                self._alarms = Alarms(self._host)
            self._alarms.set_due(self, step.id.hash, step.due)
        if step.kind in (StepKind.WAIT, StepKind.WAIT_ANY):
            self.spawn(self._look_up(step.id.hash), f"look up events for {self.id}")

    @property
    def ticket(self) -> Ticket:
        """The last change of this execution, for `until_written`."""
        return self._ticket

    is_raced = False
    """Whatever ends in this run ends here, in one order."""

    async def in_order(self) -> None:
        """Return once the step recorded last has its place in the order of completion."""

    is_sure = True
    """In one process, what takes a run away says so at once."""

    async def make_sure(self) -> None:
        """As `Session.make_sure`."""

    def acknowledge(self) -> Coroutine[Any, Any, None]:
        """Return once everything recorded so far is on disk.

        Raises `LostRunError` or `StorageError`: then some of it is not, and never will be.
        """
        return self.until_written(self._ticket)

    async def until_written(self, ticket: Ticket) -> None:
        """Return once one change of this execution is written. Raises as `acknowledge` does."""
        try:
            await ticket.wait()
        except RefusedError:
            self.was_refused = True
            self._lost("lost")
            raise LostRunError(f"run {self.id} is no longer this execution's") from None

    # What it streams

    def open_stream(self) -> None:
        """Keep a stream log from now on, and not only from the first chunk: a client follows."""
        if self._stream is None:
            self._stream = self._live_stream(started(self.run.generation))

    def push(
        self, step: str, attempt: int, values: list[bytes], kind: RecordKind = RecordKind.DATA
    ) -> bool:
        """Stream chunks, JSON values, of one try of a step, or of none. From any thread. Whether
        they are new, and no replay of what an earlier execution has streamed.

        Raises `LimitError` when they are too much, `LostRunError` when the run is no longer this
        execution's.
        """
        if self._left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        if self._stream is None:
            with _opening_streams:
                self.open_stream()
        assert self._stream is not None
        return self._stream.push(step, attempt, values, kind)

    def push_committed(self, step: str, values: list[bytes]) -> None:
        """Stream chunks of a step that is done already, which came late. On the event loop of the
        execution. Raises as `push` does."""
        if self._left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        self.open_stream()
        assert self._stream is not None
        self._stream.push_committed(step, values)

    def withdraw(self, step: str) -> None:
        """A try of a step was given up without an outcome: what it has streamed is withdrawn."""
        if self._stream is not None and not self._left:
            self._stream.withdraw(step)

    @property
    def is_full(self) -> bool:
        """Whether a producer that can wait should, for `room`."""
        return self._stream is not None and self._stream.is_full

    async def room(self) -> None:
        """Return when more chunks may come."""
        if self._stream is not None:
            await self._stream.room()

    @property
    def stream_tail(self) -> int:
        """The last position in the stream log."""
        return 0 if self._stream is None else self._stream.stream.tail

    @property
    def stream_written(self) -> int:
        """The last of these positions that is known to be written."""
        return 0 if self._stream is None else self._stream.written

    @property
    def stream(self) -> Stream | None:
        """The state of the run's stream log, if it has one."""
        return None if self._stream is None else self._stream.stream

    def read_stream(self, start: StreamStart = _FROM_THE_BEGINNING) -> Reader:
        """Read what this execution streams, and no later one."""
        self.open_stream()
        assert self._stream is not None
        stream = self._stream
        return Reader(self._host.streams, self.id, start, limit=lambda: stream.stream.handed_over)

    def submit(self, change: Change) -> Ticket:
        """Queue a change in this execution's lane."""
        return self._host.store.submit(change, self._lane)

    @property
    def policy(self) -> Policy:
        return self._host.policy

    # How the execution ends

    @property
    def has_left(self) -> bool:
        """Whether this execution is over, or its run was taken from it."""
        return self._left

    @property
    def is_looking(self) -> bool:
        """Whether something is under way that may still resolve a step: `suspend` waits for it."""
        return bool(self._tasks)

    async def suspend(self) -> None:
        """Nothing can go on before an open step is resolved. Returns when that is on disk."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._missed:
            await self.release("resolved")
        else:
            await self._leave(Suspend())

    async def release(self, reason: str) -> None:
        """Give the run back: another execution shall begin at once."""
        await self._leave(Release(reason))

    async def park(self, reason: str) -> None:
        """Let the run stand still until somebody retries it."""
        await self._leave(Park(reason))

    async def end(self, command: Complete | Fail) -> None:
        """End the run. Returns when that, and every step before it, is on disk."""
        await self._leave(command)

    async def abandon(self) -> None:
        """The store failed: let the engine give the run to a new execution once it works again."""
        self._forget()
        self._host.recovery.rescue_soon(self.id)

    def drop(self) -> None:
        """Hold the run no longer in memory, and change nothing: it is executed elsewhere, and
        `Host.resume` holds it again."""
        self._forget()

    def leave(self, command: Command) -> Ticket:
        """End this execution by `command`; what this returns says when that is on disk."""
        fact = self._apply(command)[0]
        self._announce(fact if isinstance(fact, RunEnded) else None)
        self._forget()
        return self._ticket

    def give_back(self, command: Command) -> None:
        """End this execution by `command`, with nobody to see that it gets to the disk: if it does
        not, another one begins once the store works."""
        self._host.tasks.spawn(self._see_to(self.leave(command)), f"give back {self.id}")

    async def _see_to(self, ticket: Ticket) -> None:
        try:
            await ticket.wait()
        except RefusedError:
            pass  # the run has gone on without it
        except StorageError:
            self._host.recovery.rescue_soon(self.id)

    async def _leave(self, command: Command) -> None:
        await self.until_written(self.leave(command))

    def interrupt(self, alone: bool) -> None:
        """The execution has vanished: give the run to another one, and tell this one, should it
        only have been silent. `alone`: nothing else was executed beside it."""
        listener = self.listener
        self.give_back(Interrupt(alone))
        if self.run.status is Status.PARKED:
            self._host.recovery.tell_parked(self.run)
        self.stop_reason = "lost"
        if listener is not None:
            listener.stopped("lost")

    def _announce(self, ended: RunEnded | None) -> None:
        run, host, due, still_open = self.run, self._host, None, self._open.values()
        if still_open and ended is None:
            due = min((s.due for s in still_open if s.due is not None), default=None)
        self._ticket.then(partial(host.announce, run, ended, due))
        if still_open and ended is not None and any(s.kind is StepKind.INVOKE for s in still_open):
            self._ticket.then(partial(host.children.abandoned, run.id))

    def _announce_child(self, created: Fact) -> None:
        assert isinstance(created, ChildCreated)
        self._ticket.then(partial(self._host.announce, created.run, None, None))

    # What others want of a run that is being executed

    async def offer(self, key: str, value: bytes, event_id: str, again: bool) -> bool:
        """Resolve an open step with an event. False if this execution has left the run.

        With `again`, the event may resolve a step although it resolved another one of this run.
        """
        return await on_loop(self.loop, self._offer(key, value, event_id, again))

    async def _offer(self, key: str, value: bytes, event_id: str, again: bool) -> bool:
        step = self.awaited(key)
        if step is not None and (again or event_id not in self._used_events):
            self._used_events |= {event_id}
            self.resolve(step, value, event_id)
        return not self._left

    async def take(self, key: str, value: bytes) -> bool:
        """Resolve an open step. Whether it was open, and that it is resolved is on disk.

        Raises `StorageError` if that is not known.
        """
        return await on_loop(self.loop, self._take(key, value))

    async def _take(self, key: str, value: bytes) -> bool:
        if (step := self.awaited(key)) is None:
            return False
        self.resolve(step, value)
        try:
            await self.acknowledge()
        except LostRunError:
            return False
        return True

    async def wake(self, key: str) -> None:
        """The run that an open step has invoked has ended: let the execution look."""
        await on_loop(self.loop, self._wake(key))

    async def _wake(self, key: str) -> None:
        step = self.awaited(key)
        if step is not None and step.state is StepState.PENDING:
            self.resolve(step)

    def awaited(self, key: str) -> StepRecord | None:
        """The step, if it is open and this execution may still see it resolved."""
        if self._left or self.run.status is not Status.RUNNING:
            return None
        return self._open.get(key)

    def has_used(self, event_id: str) -> bool:
        """Whether the event has resolved something in this execution."""
        return event_id in self._used_events

    async def stop(self, command: Cancel | Expire) -> None:
        """End the run from outside, and stop the execution once that is on disk.

        Raises `LostRunError` if the run has ended, or is no longer this execution's, and
        `StorageError`; then the run goes on elsewhere.
        """
        await on_loop(self.loop, self._stop(command))

    async def _stop(self, command: Cancel | Expire) -> None:
        fact = self._apply(command)[0]
        assert isinstance(fact, RunEnded)
        self._announce(fact)
        try:
            await self.acknowledge()
        except StorageError:
            self._lost("lost")
            self._host.recovery.rescue_soon(self.id)
            raise
        self._lost("timed_out" if isinstance(command, Expire) else "cancelled")

    async def written(self) -> None:
        """Return once what was recorded so far is on disk, or is known not to get there."""
        try:
            await self._ticket.wait()
        except (RefusedError, StorageError):
            pass

    @property
    def has_failed(self) -> bool:
        """Whether the store failed: nothing of this execution is written any more. It leaves its
        run once it notices, and the next one looks for itself what it was to be told."""
        return self._lane.failure is not None

    @property
    def is_stranded(self) -> bool:
        """Whether its event loop is closed, so that it can neither go on nor leave."""
        return self.loop.is_closed()

    def resolve(
        self, step: StepRecord, value: bytes = b"null", event_id: str | None = None
    ) -> None:
        """Resolve a step that is `awaited`, and tell the listener."""
        fact = self._apply(Resolve(step, value, event_id))[0]
        assert isinstance(fact, StepWritten | StepResolved)
        resolved = fact.step
        if resolved.is_final:
            del self._open[resolved.id.hash]
        else:
            self._open[resolved.id.hash] = resolved
        if self.listener is None or not self.listener.resolved(resolved):
            self._missed = True

    def _settle_soon(self, op: StepOp) -> None:
        assert isinstance(op, SendEvent)
        self._host.events.settle_once_written(op.event.id, self._ticket)

    async def look_back(self, key: str) -> None:
        """Take an event that came before the wait was on disk. Raises `EngineError`."""
        await self.acknowledge()
        await self._host.events.look_back(self, key)

    async def _look_up(self, key: str) -> None:
        try:
            await self.look_back(key)
        except EngineError:
            pass  # the execution meets the same failure, and ends with it

    def _apply(self, command: Command) -> tuple[Fact, ...]:
        """Decide, queue the write, and return the facts of it."""
        if self._left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        now = self._host.clock.now()
        decision = decide(self.run, command, now, self._host.policy, random.random())
        self._ticket = self._write(decision.change)
        self.run = decision.run
        return decision.change.facts

    def _write(self, change: Change) -> Ticket:
        """Queue what a decision wants written, with what the stream log has to say about it."""
        stream = self._stream
        if stream is None:
            return self._host.store.submit(change, self._lane)
        facts, records = stream.join(change.facts)
        ticket = self.submit(change._replace(facts=facts))
        if records:
            stream.announce(ticket, records)
        return ticket

    def _lost(self, reason: str) -> None:
        listener = self.listener
        self.stop_reason = reason
        self._forget()
        if listener is not None:
            listener.stopped(reason)

    def _forget(self) -> None:
        if self._left:
            return
        self._left = True
        if self._alarms is not None:
            self._alarms.cancel()
        self._host.forget(self)
        self.listener = None

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something that this execution does not leave behind when it suspends."""
        task = self._host.tasks.spawn(coroutine, name)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
