"""A session: one execution at the far end of a wire, and the run that this server holds for it.

Its frames are numbered, and taken strictly in order. What came before a connection broke is sent
again after it, and passed over here by its number; a session that was found again in the store,
after a new start of the server, knows from the store what of it is on disk (`repeats.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.errors import (
    EngineError,
    LimitError,
    LostRunError,
)
from durable_endpoints.protocol.ops import Invoke, StepOp, StepRecord, WaitForEvent
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints.protocol.wire import Frame, WireError
from durable_endpoints_server.engine.transitions import Command, Park, Release, Suspend
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.remote.acknowledging import reason_of
from durable_endpoints_server.remote.chunks import ChunkCounts, chunks_of
from durable_endpoints_server.remote.repeats import Repeats

if TYPE_CHECKING:
    from durable_endpoints_server.remote.process import RemoteProcess
    from durable_endpoints_server.store.base import Entry


class RemoteSession:
    """One execution's hold on a run, as seen from the server. It listens to the run."""

    def __init__(
        self,
        process: RemoteProcess,
        live: LiveRun,
        is_known: bool,
        taken: int = 0,
        repeats: Repeats | None = None,
    ) -> None:
        """`is_known` says that the process has the run already: nothing is handed over to it.
        `taken` is the number of the last frame that was taken and acknowledged; `repeats` knows
        what of the next ones was on disk before this server started."""
        self.process = process
        self.live = live
        self.connection = process.connection
        """The last connection on which the process has spoken of it."""
        self.has_begun = is_known
        """Whether the process has said that it has the run: frames before are about an earlier
        execution."""
        self.taken = taken
        self.is_over = False
        """Whether this execution has ended, in whatever way."""
        self.left = asyncio.Event()
        """Set then."""
        self._repeats = repeats if repeats is not None else Repeats()
        self._is_handed_over = is_known
        self._acked = taken if is_known else -1
        """Up to which frame everything is on disk; 0 stands for the claim."""
        self._due = 0, 0
        """What is to be acknowledged once the process was told what is written."""
        self._told = 0
        """How many resolved steps the process was told of, or will be once they are on disk."""
        self._may_have_missed = False
        """Whether some of them may be of no use to the execution that suspends: then another one
        follows at once, which costs little."""
        self._resolved: dict[str, StepRecord] = dict(self._repeats.resolved)
        """Steps that were resolved from outside, as they are now."""
        self._chunks = ChunkCounts(self._repeats.chunks)
        self._answers: dict[int, Frame] = {}
        """Answers about signals, by the numbers of the questions, as long as they may be lost."""
        self._backlog: list[Frame] | None = None
        """Frames that wait for the one before them."""
        self._is_leaving = False
        live.listener = self
        live.on_written = self.wrote

    @property
    def id(self) -> str:
        return self.live.id

    def send(self, name: str, *parts: Any) -> None:
        """Tell the process something about this run. What is lost, `resume` tells again."""
        self.process.send([name, self.id, *parts])

    # What the process says

    def take(self, frame: Frame) -> None:
        """Take in a frame. Raises `WireError`."""
        if self.is_over or not (self.has_begun or frame[0] == "begin"):
            return
        if self._backlog is not None:
            self._backlog.append(frame)
            return
        read = _READ.get(frame[0])
        if read is None:
            raise WireError(f"there is no frame {frame[0]!r} of a session")
        try:
            read(self, frame)
        except LostRunError:
            pass  # it is told that the run was taken from it
        except LimitError as error:
            self._pass_limit(error)

    def _is_new(self, frame: Frame) -> bool:
        """Whether a numbered frame is the next one, and not sent again."""
        number = number_of(frame)
        if number <= self.taken:
            if number in self._answers:
                self._answer_again(self._answers[number])
            return False
        if number != self.taken + 1:
            raise WireError(f"frame {number} of run {self.id} follows frame {self.taken}")
        self.taken = number
        return True

    def acknowledge_later(self) -> None:
        """Tell the process when what was taken until now is on disk."""
        hub = self.process.hub
        hub.acknowledger.add(self, self.taken, self.live, hub.host.tasks)

    def _begin(self, frame: Frame) -> None:
        _, _, generation = wire.array_of(frame, 3)
        if wire.whole(generation) > self.live.generation:
            raise WireError(f"run {self.id} is at generation {self.live.generation}")
        # An earlier one was taken back, while the process had just been given it: what it says of
        # that is passed over.
        self.has_begun = generation == self.live.generation

    def _register(self, frame: Frame) -> None:
        # The first one has made this session. To a new server it is said again, if the one that
        # wrote it was gone before it could say so.
        if self._is_new(frame):
            self.acknowledge_later()

    def _record(self, frame: Frame) -> None:
        op = self._own(wire.unpack_op(wire.array_of(frame, 4)[3]))
        if not self._is_new(frame):
            return
        if not self._repeats.knows(op):
            self._resolved.pop(op.step.hash, None)
            self.live.record(op)
        self.acknowledge_later()

    def _own(self, op: StepOp) -> StepOp:
        """What this run invokes belongs to the same application."""
        if isinstance(op, Invoke):
            return op._replace(child=op.child._replace(app=self.process.app, key=None))
        return op

    def _signal(self, frame: Frame) -> None:
        _, _, number, packed, replace = wire.array_of(frame, 5)
        op, replace = wire.unpack_op(packed), wire.flag(replace)
        if not isinstance(op, WaitForEvent):
            raise WireError("a signal is waited for as for an event")
        if not self._is_new(frame):
            return
        known = self._repeats.step(op.step.hash)
        if known is not None:
            self._answer_signal(number, known, None)
        else:
            self._meanwhile(self._open_signal(number, op, replace))

    async def _open_signal(self, number: int, op: WaitForEvent, replace: bool) -> None:
        opened = await self.live.open_signal(op, replace)
        if isinstance(opened, StepRecord):
            self._answer_signal(number, opened, None)
        else:
            self._answer_signal(number, None, opened.run_id)

    def _answer_signal(self, number: int, step: StepRecord | None, taken: str | None) -> None:
        packed = None if step is None else wire.pack_step(step)
        self._answers[number] = answer = ["signal", self.id, number, packed, taken]
        self.process.send(answer)
        self.acknowledge_later()

    def _answer_again(self, answer: Frame) -> None:
        """The wait may have ended since: that was said to a process which did not know of it."""
        self.process.send(answer)
        opened = None if answer[3] is None else wire.unpack_step(answer[3])
        if opened is not None and (step := self._resolved.get(opened.id.hash)) is not None:
            self._tell_resolved(step)

    def _meanwhile(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes a while, and let later frames wait for that."""
        self._backlog = []
        self.process.hub.host.tasks.spawn(self._do(work), f"frame {self.taken} of {self.id}")

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LimitError as error:
            self._pass_limit(error)
        except LostRunError:
            pass
        except EngineError as error:
            self.refuse(self.taken, error)
        finally:
            backlog, self._backlog = self._backlog or [], None
            try:
                for frame in backlog:
                    self.take(frame)
            except WireError as error:
                self.process.break_off(error)

    def _push(self, frame: Frame) -> None:
        _, _, step, attempt, kind, ordinal, values = wire.array_of(frame, 7)
        key = chunks_of(step, attempt, kind)
        if new := self._chunks.new(key, wire.whole(ordinal), wire.array(values)):
            self.live.push(key.step, key.attempt, new, key.kind)

    def _withdraw(self, frame: Frame) -> None:
        step = wire.text(wire.array_of(frame, 4)[3])
        if self._is_new(frame):
            self.live.withdraw(step)
            self.acknowledge_later()

    def _follow(self, frame: Frame) -> None:
        self.live.open_stream()

    def _watch(self, frame: Frame) -> None:
        step = self.live.awaited(wire.text(wire.array_of(frame, 3)[2]))
        if step is not None:
            self.live.watch(step)

    def _leave(self, frame: Frame) -> None:
        if not 4 <= len(frame) <= 5:
            raise WireError("how does the execution leave?")
        how, last = wire.text(frame[3]), frame[4] if len(frame) > 4 else None
        command: Command | None = None
        match how:
            case "suspend":
                missed = self._told > wire.whole(last) or self._may_have_missed
                command = Release("resolved") if missed else Suspend()
            case "release":
                command = Release(wire.text(last))
            case "park":
                command = Park(wire.text(last))
            case "end":
                command = wire.unpack_end(last)
            case "abandon":
                pass
            case _:
                raise WireError(f"an execution does not leave by {how!r}")
        if not self._is_new(frame):
            return
        self._is_leaving = True
        if command is None:
            self._meanwhile(self._abandon())
        elif isinstance(command, Suspend) and self.live.is_looking:
            self._meanwhile(self._suspend())
        else:
            self._leave_by(command)

    def _leave_by(self, command: Command) -> None:
        self.live.leave(command)
        self.acknowledge_later()

    async def _suspend(self) -> None:
        await self.live.suspend()
        self.acknowledge(self.taken, self.live.stream_tail)

    async def _abandon(self) -> None:
        await self.live.abandon()
        self.acknowledge(self.taken)

    def _pass_limit(self, error: LimitError) -> None:
        """The process counted otherwise; its next execution begins with the right numbers."""
        if not self.is_over:
            self.live.give_back(Release("limit"))
            self._close("refused", self.taken, "limit", error.explanation)

    # What the process is told

    def acknowledge(self, number: int, tail: int = 0) -> None:
        """Frames up to `number` are on disk, and the stream log up to the position `tail`: of that
        the process is told first."""
        if self.is_over or number <= self._acked:
            return
        if self.live.stream_written < tail:
            self._due = number, tail  # it is written, and `wrote` is about to be told
            return
        self._acked = number
        if self._is_leaving and number == self.taken:
            self._tell_tail()
            self._close("ack", number)
            return
        self.send("ack", number)

    def refuse(self, number: int, error: EngineError) -> None:
        """What was said up to `number` is not on disk, and never will be."""
        if self.is_over:
            return
        reason = reason_of(error)
        if reason == "storage":
            self.process.hub.host.tasks.spawn(self.live.abandon(), f"abandon {self.id}")
        self._close("refused", number, reason, error.explanation)

    def resolved(self, step: StepRecord) -> bool:
        if self._is_leaving or self.is_over:
            return False
        self._resolved[step.id.hash] = step
        if self._is_handed_over:
            self._tell_resolved(step)
        return True

    def _tell_resolved(self, step: StepRecord) -> None:
        """Once that is on disk: no body may begin on what a crash could still undo."""
        self._told += 1
        parts = wire.pack_step(step), self.taken
        self.live.ticket.then(lambda: self.send("resolved", *parts))

    def stopped(self, reason: str) -> None:
        if reason != "lost":
            self._tell_tail()
        self._close("stopped", reason)

    def wrote(self, records: Sequence[StreamRecord]) -> None:
        """These records of the stream log are written."""
        self.send("written", self.live.stream_written, self._chunks.wrote(records))
        (number, tail), self._due = self._due, (0, 0)
        self.acknowledge(number, tail)

    def _tell_tail(self) -> None:
        """All that this execution has streamed is on disk: where that ends, the last frame of its
        client's stream has to follow."""
        if self.live.stream is not None and not self.is_over:
            self.send("written", self.live.stream_tail, [])

    def release(self) -> None:
        """The process has nothing of this session: let another execution begin at once."""
        try:
            self.live.give_back(Release("released"))
        except LostRunError:
            return  # the process is about to be told why
        self._end()

    def _close(self, name: str, *parts: Any) -> None:
        if not self.is_over:
            self.send(name, *parts)
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self.left.set()
        self.live.listener = self.live.on_written = None
        self.process.lose(self)

    # Beginning, and beginning again

    async def start(self, entry: Entry) -> None:
        """Hand the run to the process. Bodies begin there once it is told that the claim, and what
        was resolved until now, is on disk."""
        async with self.process.large():
            await self.process.heard_out(self.id)
            if self.is_over:
                return  # the run has ended meanwhile, or its process has come back without it
            self.connection = self.process.connection
            self.process.send(["execute", self._execution(entry)])
            self._resolved.clear()
            self._is_handed_over = True
            self.acknowledge_later()

    def _execution(self, entry: Entry) -> dict[str, Any]:
        """What a process needs to execute the run."""
        live, stream = self.live, self.live.stream
        memo = [self._resolved.get(step.id.hash, step) for step in live.memo]
        return {
            "run": live.id,
            "generation": live.generation,
            "began_at": live.began_at,
            "depth": live.run.depth,
            "function_id": live.run.function_id,
            "request": wire.pack_bytes(entry.request or b""),
            "retries": entry.retries,
            "root_path": entry.root_path,
            "memo": [wire.pack_step(step) for step in memo],
            "stream": stream
            and {"tail": stream.tail, "size": stream.size, "outside": stream.outside},
        }

    def resume(self, acked: int, options: Mapping[str, Any]) -> None:
        """The process goes on over a new connection: tell it what it may have missed, and what of
        its frames need not be sent again. Raises `WireError`."""
        self._told = 0
        # What it was told before the break, and had no use for any more, is counted nowhere.
        self._may_have_missed = bool(self._resolved)
        self.connection = self.process.connection
        self.has_begun = True
        if options.get("follows"):
            self.live.open_stream()
        for answered in [answered for answered in self._answers if answered <= acked]:
            del self._answers[answered]
        if self._acked > acked:
            self.send("ack", self._acked)
        if counts := self._chunks.all_written():
            self.send("written", self.live.stream_written, counts)
        for item in wire.array(options.get("open", [])):
            key, is_woken = wire.array_of(item, 2)
            step = self._resolved.get(wire.text(key))
            if step is not None and (step.is_final or not wire.flag(is_woken)):
                self._tell_resolved(step)
        only = options.get("only")
        if only is not None and not self._is_leaving:
            self.take(["leave", self.id, self.taken + 1, *wire.array(only)])


def number_of(frame: Frame) -> int:
    """The number of a frame in its session. Raises `WireError`."""
    return wire.whole(frame[2] if len(frame) > 2 else None)


_READ: Final[dict[str, Callable[[RemoteSession, Frame], None]]] = {
    "begin": RemoteSession._begin,
    "register": RemoteSession._register,
    "record": RemoteSession._record,
    "signal": RemoteSession._signal,
    "push": RemoteSession._push,
    "withdraw": RemoteSession._withdraw,
    "follow": RemoteSession._follow,
    "watch": RemoteSession._watch,
    "leave": RemoteSession._leave,
}
FRAMES: Final = frozenset(_READ)
"""The names of frames that a session takes."""
