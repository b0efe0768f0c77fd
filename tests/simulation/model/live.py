"""One execution's hold on a run, and the stream log that it writes.

Stands for `live.py`, `live_alarms.py` and `live_stream.py`. Every command is decided on the run in
memory and submitted; nobody else decides about the run while this lasts, and the fence in the store
makes sure of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from durable_endpoints.protocol.errors import EngineError, LostRunError, StorageError
from durable_endpoints.protocol.ops import (
    FROM_OUTSIDE,
    Invoke,
    SendEvent,
    StepKind,
    StepOp,
    StepRecord,
    StepState,
)
from durable_endpoints.protocol.streams import OUTSIDE, StreamRecord
from durable_endpoints_server.engine.facts import (
    Change,
    ChildCreated,
    Fact,
    RunChanged,
    RunEnded,
    StepResolved,
    StepWritten,
    Streamed,
    states,
)
from durable_endpoints_server.engine.model import Run, Status, Stream
from durable_endpoints_server.engine.streams import Chunk, append, follow, started
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Command,
    Decision,
    Expire,
    Release,
    Resolve,
    Suspend,
    decide,
)
from durable_endpoints_server.store.base import Lane, RefusedError
from tests.simulation.model.loop import MS, Future, Task

if TYPE_CHECKING:
    from tests.simulation.model.engine import Engine

_RUNNING = states(Status.RUNNING)


class Listener(Protocol):
    """An execution, as its session sees it."""

    def resolved(self, step: StepRecord) -> bool: ...

    def stopped(self, reason: str) -> None: ...


class Live:
    """The session of an execution that runs in the engine's own process."""

    def __init__(
        self,
        engine: Engine,
        decision: Decision,
        memo: Sequence[StepRecord],
        stream: Stream | None,
    ) -> None:
        self.engine = engine
        self.run: Run = decision.run
        self.id = self.run.id
        self.memo = list(memo)
        self.listener: Listener | None = None
        self.stop_reason = ""
        self.was_refused = False
        self._left = False
        self._lane = Lane()
        self._missed = False
        self._looking = 0
        self._looked = Future()
        self._used: set[str] = set()
        self._alarms: dict[str, int] = {}
        self._stream = stream
        self._pending: list[Chunk] = []
        self._is_writing = False
        self._is_closed = False
        self._ended: dict[str, int] = {}
        self._replayed = 0
        self.open = {step.id.hash: step for step in memo if not step.is_final}
        self.ticket = self._write(decision.change)
        if self._stream is not None:
            self._replayed = self._stream.outside
        if self.run.deadline is not None:
            self._at("", self.run.deadline, self._expire)

    @property
    def generation(self) -> int:
        return self.run.generation

    # What the execution records

    def record(self, op: StepOp) -> StepRecord:
        """Record `op` and return the step as it now is. Raises `LostRunError`."""
        written, *more = self._apply(op)
        assert isinstance(written, StepWritten)
        step = written.step
        if step.is_final:
            self.open.pop(step.id.hash, None)
            if isinstance(op, SendEvent):
                self.engine.events.settle_once_written(op.event.id, self.ticket)
        else:
            self.open[step.id.hash] = step
            self.watch(step)
            if isinstance(op, Invoke):
                (created,) = more
                assert isinstance(created, ChildCreated)
                child = created.run
                self.when_written(lambda: self.engine.announce(child, None, None))
        return step

    def watch(self, step: StepRecord) -> None:
        """Let the open `step` be resolved while this execution still runs."""
        key = step.id.hash
        if step.due is not None and key not in self._alarms:
            self._at(key, step.due, self._due, key)
        if step.kind in (StepKind.WAIT, StepKind.WAIT_ANY):
            self._spawn(self._look_back(key))

    def acknowledge(self) -> Future:
        """Done when everything recorded so far is on disk. Fails with `LostRunError`, or
        `StorageError`."""
        return self._surely(self.ticket)

    def _surely(self, ticket: Future) -> Future:
        outcome = Future()

        def done(ticket: Future) -> None:
            if isinstance(ticket.error, RefusedError):
                self.was_refused = True
                self._lost("lost")
                outcome.set(None, LostRunError(f"run {self.id} is no longer this execution's"))
            else:
                outcome.set(None, ticket.error)

        ticket.then(done)
        return outcome

    def when_written(self, call: Callable[[], None]) -> None:
        """Call once the last change is on disk; never, if it does not get there."""

        def done(ticket: Future) -> None:
            if ticket.error is None:
                call()

        self.ticket.then(done)

    # How the execution ends

    def suspend(self) -> Task:
        """Nothing can go on before an open step is resolved."""
        while self._looking:
            self._looked = Future()
            yield self._looked
        yield self.leave(Release("resolved") if self._missed else Suspend())

    def leave(self, command: Command) -> Future:
        """End this execution by `command`. What this returns is as `acknowledge` has it."""
        try:
            fact = self._apply(command)[0]
        except LostRunError as error:
            refused = Future()
            refused.set(None, error)
            return refused
        self._announce(fact if isinstance(fact, RunEnded) else None)
        ticket = self._surely(self.ticket)
        self.forget()
        return ticket

    def abandon(self) -> None:
        """The store failed: let the run be given to a new execution once it works again."""
        self.forget()
        self.engine.recovery.rescue_soon(self.id)

    def _announce(self, ended: RunEnded | None) -> None:
        run, due = self.run, None
        if ended is None:
            due = min((s.due for s in self.open.values() if s.due is not None), default=None)
        self.when_written(lambda: self.engine.announce(run, ended, due))
        if ended is not None and any(s.kind is StepKind.INVOKE for s in self.open.values()):
            self.when_written(lambda: self.engine.children.abandoned(run.id))

    def forget(self) -> None:
        if self._left:
            return
        self._left = True
        for alarm in self._alarms.values():
            self.engine.clock.cancel(alarm)
        self._alarms.clear()
        self.engine.forget(self)
        self.listener = None

    def _lost(self, reason: str) -> None:
        listener, self.stop_reason = self.listener, reason
        self.forget()
        if listener is not None:
            listener.stopped(reason)

    # What others want of it

    def awaited(self, key: str) -> StepRecord | None:
        """The step, if it is open and this execution may still see it resolved."""
        if self._left or self.run.status is not Status.RUNNING:
            return None
        return self.open.get(key)

    def has_used(self, event_id: str) -> bool:
        return event_id in self._used

    def offer(self, key: str, value: bytes, event_id: str, again: bool) -> None:
        """Resolve an open step with an event; with `again`, although it resolved another one."""
        step = self.awaited(key)
        if step is not None and (again or event_id not in self._used):
            self._used.add(event_id)
            self.resolve(step, value, event_id)

    def wake(self, key: str) -> None:
        """The run that an open step has invoked has ended."""
        step = self.awaited(key)
        if step is not None and step.state is StepState.PENDING:
            self.resolve(step)

    def resolve(
        self, step: StepRecord, value: bytes = b"null", event_id: str | None = None
    ) -> None:
        fact = self._apply(Resolve(step, value, event_id))[0]
        assert isinstance(fact, StepWritten | StepResolved)
        if fact.step.is_final:
            del self.open[step.id.hash]
        else:
            self.open[step.id.hash] = fact.step
        if self.listener is None or not self.listener.resolved(fact.step):
            self._missed = True

    def stop(self, command: Cancel | Expire) -> Task:
        """End the run from outside. Raises `LostRunError` or `StorageError`."""
        fact = self._apply(command)[0]
        assert isinstance(fact, RunEnded)
        self._announce(fact)
        try:
            yield self.acknowledge()
        except StorageError:
            self._lost("lost")
            self.engine.recovery.rescue_soon(self.id)
            raise
        self._lost("timed_out" if isinstance(command, Expire) else "cancelled")

    @property
    def has_failed(self) -> bool:
        """Whether the store failed: nothing of this execution is written any more."""
        return self._lane.failure is not None

    def written(self) -> Task:
        """What was recorded so far is on disk, or known not to get there."""
        try:
            yield self.ticket
        except (RefusedError, StorageError):
            pass

    # Time

    def _at(self, key: str, instant: int, call: Callable[..., None], *args: object) -> None:
        engine = self.engine
        self._alarms[key] = engine.clock.call_at(engine.process, instant, call, *args)

    def _due(self, key: str) -> None:
        self._alarms.pop(key, None)
        step = self.awaited(key)
        if step is None:
            return
        if step.kind in FROM_OUTSIDE:
            self._spawn(self._time_out(key))
        elif step.state is StepState.PENDING or step.due is not None:
            self.resolve(step)

    def _time_out(self, key: str) -> Task:
        """What was received before the deadline goes first, however late it is looked at."""
        try:
            yield from self.engine.catch_up()
            yield self.acknowledge()
            yield from self.engine.events.look_back(self, key)
        except LostRunError:
            return
        except StorageError:
            self._at(key, self.engine.clock.now() + 1_000, self._due, key)
            return
        if (step := self.awaited(key)) is not None:
            self.resolve(step)

    def _expire(self) -> None:
        self._alarms.pop("", None)
        self._spawn(self._time_out_run())

    def _time_out_run(self) -> Task:
        try:
            yield from self.stop(Expire())
        except EngineError:
            pass

    def _look_back(self, key: str) -> Task:
        """Take an event that came before the wait was on disk."""
        try:
            yield self.acknowledge()
            yield from self.engine.events.look_back(self, key)
        except EngineError:
            pass

    def _spawn(self, task: Task) -> None:
        """Do something that a suspension waits for."""
        self._looking += 1
        self.engine.spawn(self._looking_at(task))

    def _looking_at(self, task: Task) -> Task:
        yield from task
        self._looking -= 1
        if not self._looking:
            self._looked.set()

    # Deciding and writing

    def _apply(self, command: Command) -> tuple[Fact, ...]:
        if self._left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        engine = self.engine
        chance = engine.loop.random.random()
        decision = decide(self.run, command, engine.clock.now(), engine.policy, chance)
        self.ticket = self._write(decision.change)
        self.run = decision.run
        return decision.change.facts

    def _write(self, change: Change) -> Future:
        if self._stream is not None:
            before = self._stream
            records = self._take()
            self._stream, more = follow(self._stream, change.facts)
            if self._stream is not before:
                written = Streamed((*records, *more), self._stream)
                change = change._replace(facts=(written, *change.facts))
            self._note_ends(change.facts)
        return self.engine.disk.submit(change, self._lane)

    # Streaming

    def push(self, step: str, attempt: int, values: Sequence[bytes]) -> None:
        """Stream chunks of one try of a step, or of none. A replay's are left out."""
        if self._left or self._is_closed:
            return
        if self._stream is None:
            self._stream = started(self.run.generation)
        if step == OUTSIDE and self._replayed:
            known = min(self._replayed, len(values))
            self._replayed -= known
            values = values[known:]
        self._pending += [Chunk(step, attempt, value) for value in values]
        if self._pending and not self._is_writing:
            self._is_writing = True
            self.engine.spawn(self._write_chunks())

    def _note_ends(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, StepWritten) and fact.step.state is not StepState.PENDING:
                self._ended[fact.step.id.hash] = fact.step.attempt
            elif isinstance(fact, RunEnded | RunChanged):
                self._is_closed = fact.run.status is not Status.RUNNING

    def _write_chunks(self) -> Task:
        yield self.engine.loop.latency(MS)
        while self._pending and not self._is_closed and not self._left:
            records = self._take()
            if records:
                assert self._stream is not None
                run, facts = self.run, (Streamed(tuple(records), self._stream),)
                change = Change(facts, run.id, run.generation, _RUNNING, is_relaxed=True)
                try:
                    yield self._surely(self.engine.disk.submit(change, self._lane))
                except EngineError:
                    break
        self._is_writing = False

    def _take(self) -> list[StreamRecord]:
        pending, self._pending = self._pending, []
        pending = [chunk for chunk in pending if chunk.attempt > self._ended.get(chunk.step, -1)]
        if not pending:
            return []
        assert self._stream is not None
        self._stream, records = append(self._stream, pending)
        return records
