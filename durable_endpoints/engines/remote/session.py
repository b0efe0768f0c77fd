"""One execution's hold on a run that a server keeps.

What the execution records is decided here at once, on a copy of the run, by the rules by which the
server decides it again: so a step returns without waiting for the network, and what passes a limit
is refused where it is called. What the server writes is what counts. The copy never holds more than
the server allows; that the server may know more (a wait that an event has ended) is told in time,
before the execution can leave the run: see `suspend`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from durable_endpoints.engines.base import StreamReader
from durable_endpoints.engines.remote import lease
from durable_endpoints.engines.remote.journal import Journal, Try
from durable_endpoints.engines.remote.pushing import Pushing
from durable_endpoints.errors import EngineError, LostRunError, StorageError
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import (
    SignalTaken,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, Listener, NewRun
from durable_endpoints.protocol.streams import RecordKind, StreamStart
from durable_endpoints.protocol.wire import Frame
from durable_endpoints_server.engine.backoff import backoff
from durable_endpoints_server.engine.facts import StepWritten
from durable_endpoints_server.engine.model import Run, Stream
from durable_endpoints_server.engine.transitions import decide

if TYPE_CHECKING:
    from durable_endpoints.engines.remote.station import Station

_STOPPED = ("cancelled", "timed_out")
_APART = 6
"""Turns of the event loop between two steps that end, so that whoever waits for the first of them
sees it alone: as between two results of a memo."""


class _Waiter(NamedTuple):
    """Somebody who waits until the server has confirmed everything up to a number."""

    number: int
    future: asyncio.Future[None]


class RemoteSession:
    """A `Session` at a server. For the event loop of its station, but for `push`."""

    def __init__(
        self, station: Station, run: Run, memo: Sequence[StepRecord], stream: Stream
    ) -> None:
        """`stream` is the state of the run's stream as earlier executions have left it."""
        self.id = run.id
        self.generation = run.generation
        self.began_at = run.began_at
        self.memo = memo
        self.listener: Listener | None = None
        self.stop_reason = ""
        self._station = station
        self._run = run
        self._journal = Journal()
        self._pushing = Pushing(run.id, self._journal, station, stream.outside, stream.size)
        self._base = stream.tail
        self._number = self._confirmed = 0
        """The last frame that was said, and the last one that is on disk with all before it."""
        self._waiters: list[_Waiter] = []
        self._open = {step.id.hash: step for step in memo if not step.is_final}
        self._signals: dict[int, asyncio.Future[StepRecord | SignalTaken]] = {}
        self._follows = False
        self._seen = 0
        """Steps that were resolved, and that the execution has taken, since the link was opened."""
        self._unplaced: list[int] = []
        """What was recorded, by its numbers, whose place in the order of completion is awaited."""
        self._held: deque[tuple[StepRecord, int]] = deque()
        """Steps that the server resolved after one of those."""
        self._failure: EngineError | None = None
        self._has_left = False
        self._lease = station.lease
        self._held_at = station.lease.since
        """When this execution was certain to have the run."""
        self._instead: Frame | None = None
        """What is to become of a run of which nothing was confirmed, and that was given up."""

    # What the execution records

    def register(self, new: NewRun) -> None:
        """Begin the run: the first thing that is said."""
        self._say("register", wire.pack_new_run(new))

    def begin(self) -> None:
        """Begin to execute a run that the server has claimed. That is not on disk yet: no body
        begins before it is."""
        self._confirmed = -1
        # Whatever is said of the run next is soon enough: it says which execution is meant.
        self._station.say_along(["begin", self.id, self.generation])

    def record(self, op: StepOp) -> StepRecord:
        if isinstance(op, StepRetry):
            op = self._with_delay(op)
        step = self._decide(op)
        self._say("record", wire.pack_op(op))
        self._note(step)
        if step.state is not StepState.PENDING:
            self._pushing.ended(step.id.hash, step.attempt)
        return step

    def _decide(self, op: StepOp) -> StepRecord:
        self._check()
        station = self._station
        decision = decide(self._run, op, station.now(), station.policy)
        self._run = decision.run
        fact = decision.change.facts[0]
        assert isinstance(fact, StepWritten)
        return fact.step

    def _with_delay(self, op: StepRetry) -> StepRetry:
        """The application's own back-off, where the error names no time."""
        if op.delay is None:
            return op._replace(delay=backoff(op.attempt, self._station.policy, random.random()))
        return op

    def _note(self, step: StepRecord) -> None:
        if step.is_final:
            self._open.pop(step.id.hash, None)
        else:
            self._open[step.id.hash] = step

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        self._check()
        before = self._run
        self._decide(op)
        self._run = before  # until the server says that the run waits
        answer: asyncio.Future[StepRecord | SignalTaken] = (
            asyncio.get_running_loop().create_future()
        )
        number = self._say("signal", wire.pack_op(op), replace)
        self._signals[number] = answer
        self._station.overdue.watch(answer)
        try:
            return await answer
        finally:
            self._signals.pop(number, None)

    def watch(self, step: StepRecord) -> None:
        self._station.say(["watch", self.id, step.id.hash])

    @property
    def is_raced(self) -> bool:
        return bool(self._open) and any(
            step.state is StepState.PENDING for step in self._open.values()
        )

    async def in_order(self) -> None:
        number = self._number
        self._unplaced.append(number)
        try:
            await self.acknowledge()
        finally:
            self._unplaced.remove(number)
            self._tell_held_in(_APART)

    def _tell_held_in(self, turns: int) -> None:
        if not self._held:
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._tell_held_in, turns - 1)
            return
        step, number = self._held[0]
        if not any(unplaced <= number for unplaced in self._unplaced):
            self._held.popleft()
            self._tell(step)
            self._tell_held_in(_APART)

    async def acknowledge(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._confirmed >= self._number:
            return
        future: asyncio.Future[None] = self._station.loop.create_future()
        self._waiters.append(_Waiter(self._number, future))
        self._station.overdue.watch(future)
        await future

    @property
    def is_sure(self) -> bool:
        return self._lease.covers(self._held_at)

    async def make_sure(self) -> None:
        self._check()
        asked_at = lease.now()
        about = {"run": self.id, "generation": self.generation}
        if not await self._station.ask("holds", about):
            self.stopped("lost")
        self._check()
        self._lease.renew(asked_at)
        self._held_at = asked_at

    # What it streams

    def push(
        self, step: str, attempt: int, values: list[bytes], kind: RecordKind = RecordKind.DATA
    ) -> bool:
        if self._has_left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        return self._pushing.push(step, attempt, values, kind)

    def withdraw(self, step: str) -> None:
        if self._pushing.has_begun and not self._has_left:
            self._say("withdraw", step)

    @property
    def is_full(self) -> bool:
        return self._pushing.is_full

    async def room(self) -> None:
        await self._pushing.room()

    @property
    def stream_tail(self) -> int:
        return self._pushing.position

    @property
    def stream_written(self) -> int:
        return self._pushing.position

    def read_stream(self) -> StreamReader:
        self._follows = True
        self._station.say(["follow", self.id])
        return self._station.read(self.id, StreamStart(), limit=True)

    # How the execution ends

    async def suspend(self) -> None:
        """End this execution until an open step is resolved. If one has been that this execution
        has not seen, the server lets another one begin at once."""
        await self._leave("suspend", self._seen)

    async def release(self, reason: str) -> None:
        await self._leave("release", reason)

    async def park(self, reason: str) -> None:
        await self._leave("park", reason)

    async def end(self, command: Complete | Fail) -> None:
        await self._leave("end", wire.pack_end(command))

    async def _leave(self, *how: Any) -> None:
        self._check()
        self._say("leave", *how)
        self._close()
        await self.acknowledge()

    async def abandon(self) -> None:
        """Let another execution begin. What was recorded, an end of the run too, is not taken back
        by that: it is sent as soon as the server can be reached."""
        self._give_up("abandon")

    def renounce(self) -> None:
        """The request goes on without its run, which was not registered for all that is known. If
        it is at the server all the same, it ends."""
        self._give_up("end", wire.pack_end(Fail("went_on_without_engine", None)))

    def _give_up(self, *how: Any) -> None:
        if self._has_left or isinstance(self._failure, LostRunError):
            self._close()
            return
        if self.generation == 1 and self._confirmed < 1:
            self._instead = list(how)
        self._say("leave", *how)
        if self._instead is not None:
            self._journal.clear()  # the request too, which is large
        self._close()
        self._station.leave_behind(self)

    def _close(self) -> None:
        """Nothing more is recorded, nor heard."""
        self._has_left = True
        self._pushing.close()
        self.listener = None

    # What the server says

    def confirmed(self, number: int) -> None:
        """Everything up to a number is on disk."""
        self._confirmed = max(self._confirmed, number)
        self._journal.confirm(number)
        self._pushing.look()
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            if waiter.number > number:
                self._waiters.append(waiter)
            elif not waiter.future.done():
                waiter.future.set_result(None)
        if self._has_left and (self._confirmed >= self._number or self._instead is not None):
            self._station.forget(self)

    def refused(self, reason: str, message: str) -> None:
        """Something that was said is not written, and nothing that comes after it."""
        if reason == "lost" or reason in _STOPPED:
            self.stopped(reason)
            return
        self.fail(StorageError(message))

    def fail(self, error: EngineError) -> None:
        """Nothing that was said and is not confirmed will be."""
        self._failure = error
        self._pushing.close()
        self._fail_all()
        self._station.forget(self)

    def stopped(self, reason: str) -> None:
        """The run is not this execution's any more."""
        listener = self.listener
        self.stop_reason = reason
        self.fail(LostRunError(f"run {self.id} is no longer this execution's"))
        self._close()
        if listener is not None:
            listener.stopped(reason)

    def resolved(self, step: StepRecord, number: int) -> None:
        """An open step is now this. The server decided that after the frame with this number, and
        before the next one."""
        run = self._run
        self._run = run.with_usage(
            run.steps, run.memo_bytes + len(step.value or b""), max(run.last_order, step.order)
        )
        if self._held or any(unplaced <= number for unplaced in self._unplaced):
            self._held.append((step, number))
        else:
            self._tell(step)

    def _tell(self, step: StepRecord) -> None:
        # What the execution does not take stays open here, so that the server tells it again.
        if self.listener is not None and self.listener.resolved(step):
            self._seen += 1
            self._note(step)

    def signal_opened(self, number: int, answer: StepRecord | SignalTaken) -> None:
        """What came of a wait for a signal."""
        future = self._signals.get(number)
        if future is None or future.done():
            return
        if isinstance(answer, StepRecord):
            self._run = self._run._replace(steps=self._run.steps + 1)
            self._note(answer)
        future.set_result(answer)

    def written(self, position: int, counts: dict[Try, int]) -> None:
        """What was streamed is written up to a position."""
        self._pushing.written(position, counts)

    def resume(self) -> list[Frame]:
        """What to say on a new link, to go on where the last one broke."""
        self._seen = 0
        self._held.clear()
        state: dict[str, Any] = {
            "open": [[key, _is_woken(step)] for key, step in self._open.items()],
            "base": self._base,
            "follows": self._follows,
            "leaving": self._has_left,
        }
        if self._instead is not None:
            # Its client was told that there is no run: if there is none, let none begin later.
            return [["resume", self.id, self.generation, 0, {**state, "only": self._instead}]]
        frames = self._journal.everything()
        for frame in frames:
            if frame[0] == "leave" and frame[3] == "suspend":
                frame[4] = self._seen  # since now, as the server counts
        return [["resume", self.id, self.generation, self._confirmed, state], *frames]

    # Inside

    def _say(self, name: str, *parts: Any) -> int:
        self._number += 1
        frame = [name, self.id, self._number, *parts]
        self._journal.add(frame)
        self._station.say(frame)
        return self._number

    def _check(self) -> None:
        if self._has_left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        if self._failure is not None:
            raise self._failure

    def _fail_all(self) -> None:
        assert self._failure is not None
        futures = [waiter.future for waiter in self._waiters] + list(self._signals.values())
        self._waiters = []
        for future in futures:
            _fail(future, self._failure)


def _is_woken(step: StepRecord) -> bool:
    """Whether an open step waits for its execution alone."""
    return step.state is StepState.RETRYING and step.due is None


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
