"""One pass through a handler: it interprets a program as the SDK executes a decorated function.

Stands for `execution.py`, `parking.py`, `bodies.py`, `opening.py`, `invoking.py` and `ending.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from durable_endpoints.protocol import ops
from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import (
    Alternative,
    NewEvent,
    StepDone,
    StepFailed,
    StepKind,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.engine.transitions import Command, Park, Release
from tests.simulation.model.details import (
    delay_of,
    has_instant,
    omits_request,
    omits_request_at_the_end,
    stamp_of,
)
from tests.simulation.model.live import Listener
from tests.simulation.model.loop import MS, Future, Task
from tests.simulation.programs import (
    Invoke,
    Node,
    Parallel,
    Program,
    Push,
    Send,
    Signal,
    Sleep,
    Step,
    Stumble,
    Wait,
    WaitAny,
)

if TYPE_CHECKING:
    from tests.simulation.model.app import App


class Session(Protocol):
    """An execution's hold on its run: `Live`, or one at the far end of a wire."""

    id: str
    memo: list[StepRecord]
    listener: Listener | None
    stop_reason: str

    @property
    def generation(self) -> int: ...
    def record(self, op: StepOp) -> StepRecord: ...
    def watch(self, step: StepRecord) -> None: ...
    def acknowledge(self) -> Future: ...
    def push(self, step: str, attempt: int, values: Sequence[bytes]) -> None: ...
    def suspend(self) -> Task: ...
    def leave(self, command: Command) -> Future: ...
    def abandon(self) -> None: ...


Reply = Callable[[str, object], None]
"""Answers the client whose request this is: what kind of answer, and what is in it."""


class _UnwoundError(Exception):
    """The execution has departed: nothing of the handler goes on."""


class _StepFailedError(Exception):
    """A step failed for good, and the handler did not catch that."""


def error_of(name: str) -> bytes:
    """How a failure of the node with this name is remembered."""
    return orjson.dumps({"error": name})


class Execution:
    """One execution of one run."""

    def __init__(self, app: App, session: Session, program: Program, inherited: int) -> None:
        """`inherited` is how much the session has on its way to the disk that must be there before
        a body begins."""
        self.app = app
        self.session = session
        self.departure = ""
        self.reply: Reply | None = None
        self.is_over = Future()
        """Done when this execution has left its run, and that is on disk or refused."""
        self._program = program
        self._memo = {step.id.hash: step for step in session.memo}
        self._active = 1
        """Branches of the handler that do not wait for a step."""
        self._parked: dict[str, Future] = {}
        self._wants_handover = False
        self._inherited = self._recorded = inherited
        self._acknowledged = 0
        self._results: list[str] = []
        """Steps that have ended in this execution by themselves."""
        session.listener = self
        if session.stop_reason:
            self.stopped(session.stop_reason)
        else:
            app.spawn(self._handle())

    # What the session says

    def resolved(self, step: StepRecord) -> bool:
        if self.departure:
            return False
        self._memo[step.id.hash] = step
        parked = self._parked.pop(step.id.hash, None)
        if parked is not None:
            self._active += 1
            parked.set(step)
        return True

    def stopped(self, reason: str) -> None:
        self._depart("lost" if reason == "lost" else "stopped")

    # The handler

    def _handle(self) -> Task:
        omits = omits_request_at_the_end(self._program)
        try:
            values = yield from self._nodes(self._program.nodes)
            self._check()
            self.departure = "closed"
            command: Complete | Fail = Complete(200, orjson.dumps(values), omit_request_body=omits)
        except _UnwoundError:
            return
        except _StepFailedError as failed:
            self.departure = "closed"
            error = error_of(str(failed))
            command = Fail("exception", error, 500, error, omit_request_body=omits)
        try:
            yield self.session.leave(command)
        except EngineError as error:
            self.departure = ""
            self._break_off(error)
            return
        self._answer("response", command.response)
        self.is_over.set()

    def _nodes(self, nodes: Sequence[Node]) -> Task:
        values: list[Any] = []
        for node in nodes:
            value = yield from _INTERPRET[type(node)](self, node)
            values.append(value)
        return values

    def _parallel(self, node: Parallel) -> Task:
        values: list[Any] = [None] * len(node.branches)
        joined = Future()
        left = len(node.branches)

        def branch(number: int, nodes: Sequence[Node]) -> Task:
            nonlocal left
            try:
                values[number] = yield from self._nodes(nodes)
                self._check()
            except _UnwoundError:
                return
            left -= 1
            if left:
                self._active -= 1
                self._settle()
            else:
                joined.set()

        self._active += left - 1
        for number, nodes in enumerate(node.branches):
            self.app.spawn(branch(number, nodes))
        yield joined
        return values

    def _step(self, node: Step) -> Task:
        step, retries = StepId(node.name, node.name, 0), self._program.retries
        record = self._memo.get(node.name)
        while record is None or not record.is_final:
            if record is not None and record.due is not None:
                self.session.watch(record)
                record = yield from self._park(record)
            attempt = 1 if record is None else record.attempt + 1
            yield from self._may_begin()
            yield from self._body(node, attempt)
            elapsed = node.takes * MS
            error = error_of(node.name)
            if attempt > node.failures and not node.is_fatal:
                value = b"%d" % node.value
                op: StepOp = StepDone(step, StepKind.RUN, value, attempt, elapsed)
            elif node.is_fatal or attempt > retries:
                op = StepFailed(step, StepKind.RUN, error, attempt, elapsed)
            else:
                op = StepRetry(step, StepKind.RUN, error, attempt, elapsed, delay_of(node))
            record = self._record(op)
        return self._outcome(node.name, record, node.is_caught)

    def _body(self, node: Step, attempt: int) -> Task:
        app, session = self.app, self.session
        kept = () if self._program.is_background else self._results
        app.checker.body_begins(session.id, session.generation, node.name, kept)
        app.say(f"run {session.id} generation {session.generation}: {node.name} try {attempt}")
        pause = node.takes * MS // (len(node.chunks) + 1)
        for chunk in node.chunks:
            session.push(node.name, attempt, [orjson.dumps(chunk)])
            yield pause
        yield pause
        self._check()

    def _outcome(self, name: str, record: StepRecord, is_caught: bool) -> Any:
        if record.state is StepState.DONE:
            return orjson.loads(record.value or b"null")
        if not is_caught:
            raise _StepFailedError(name)
        return {"error": name}

    def _sleep(self, node: Sleep) -> Task:
        step, now = StepId(node.name, node.name, 0), self.app.engine.clock.now()
        if has_instant(node):
            yield from self._open(ops.Sleep(step, until=now + node.duration))
        else:
            yield from self._open(ops.Sleep(step, node.duration))

    def _wait(self, node: Wait) -> Task:
        got = yield from self._wait_for(node.name, StepKind.WAIT, (node.event,), node)
        return None if got is None else got["data"]["number"]

    def _wait_any(self, node: WaitAny) -> Task:
        got = yield from self._wait_for(node.name, StepKind.WAIT_ANY, node.events, node)
        return None if got is None else [got["name"], got["event"]["data"]["number"]]

    def _wait_for(
        self, name: str, kind: StepKind, events: Sequence[str], node: Wait | WaitAny
    ) -> Task:
        pairs = () if node.key is None else (("data.key", node.key),)
        alternatives = tuple(Alternative(event, event, pairs) for event in events)
        op = WaitForEvent(StepId(name, name, 0), kind, alternatives, node.timeout)
        return (yield from self._open(op))

    def _signal(self, node: Signal) -> Task:
        step, name = StepId(node.name, node.name, 0), SIGNAL + node.signal
        alternatives = (Alternative(name, name),)
        return (
            yield from self._open(WaitForEvent(step, StepKind.SIGNAL, alternatives, node.timeout))
        )

    def _open(self, op: ops.Sleep | WaitForEvent) -> Task:
        """Wait for something that others resolve."""
        self._check()
        record = self._memo.get(op.step.hash)
        if record is None:
            record = self._record(op)
        elif not record.is_final:
            self.session.watch(record)
        if not record.is_final:
            record = yield from self._park(record)
        return orjson.loads(record.value or b"null")

    def _send(self, node: Send) -> Task:
        if node.name in self._memo:
            return
        step, session = StepId(node.name, node.name, 0), self.session
        yield from self._may_begin()
        data = orjson.dumps({"key": node.key, "number": node.number})
        event = NewEvent(f"{session.id}:{node.name}", node.event, data, stamp_of(node))
        self._record(ops.SendEvent(step, event, b"null", node.number * MS))

    def _invoke(self, node: Invoke) -> Task:
        step, session = StepId(node.name, node.name, 0), self.session
        record = self._memo.get(node.name)
        if record is not None and record.is_final:
            return self._outcome(node.name, record, node.is_caught)
        child = f"{session.id}/{node.name}"
        if record is None:
            new = NewRun(
                child,
                "child",
                "",
                "POST",
                "/",
                b"",
                retries=node.program.retries,
                max_runtime=node.program.max_runtime,
                omit_request_body=omits_request(node.program),
            )
            record = yield from self._park(self._record(ops.Invoke(step, new, node.timeout)))
        else:
            session.watch(record)
        yield from self._acknowledge()
        while True:
            ended = yield from self._ask(self.app.outcome(child))
            if ended is None or ended.run.status.is_final:
                break
            record = self._memo[node.name]
            if record.state is StepState.RETRYING:
                yield from self._ask(self.app.cancel(child, "invocation_timed_out"))
            else:
                record = yield from self._park(record)
        if ended is not None and ended.run.status is Status.COMPLETED:
            op: StepOp = StepDone(step, StepKind.INVOKE, ended.response or b"null")
        else:
            op = StepFailed(step, StepKind.INVOKE, error_of(node.name), 1)
        return self._outcome(node.name, self._record(op), node.is_caught)

    def _push(self, node: Push) -> Task:
        for chunk in node.chunks:
            self.session.push("", 0, [orjson.dumps(chunk)])
            yield self.app.loop.latency(20 * MS)
            self._check()

    def _stumble(self, node: Stumble) -> Task:
        """The handler raises: it is tried again later, from its top."""
        record = self._memo.get(HANDLER_STEP.hash)
        attempt = 1 if record is None else record.attempt + 1
        if attempt <= node.times:
            self._check()
            self._record(StepRetry(HANDLER_STEP, StepKind.HANDLER, error_of("complete"), attempt))
            self._depart("waiting")
            raise _UnwoundError
        yield 0

    # Steps

    def _record(self, op: StepOp) -> StepRecord:
        self._check()
        try:
            record = self.session.record(op)
        except EngineError as error:
            raise self._break_off(error) from None
        self._recorded += 1
        self._memo[op.step.hash] = record
        if record.is_final:
            self._results.append(op.step.hash)
        return record

    def _may_begin(self) -> Task:
        """A body may begin: what came before it is on disk, and the process is to live on."""
        self._check()
        if self.app.is_draining:
            self._wants_handover = True
            self._active -= 1
            self._settle()
            yield Future()
        while self._acknowledged < self._required:
            yield from self._acknowledge()

    @property
    def _required(self) -> int:
        """How much of what was recorded must be on disk before the next body begins."""
        return self._inherited if self._program.is_background else self._recorded

    def _acknowledge(self) -> Task:
        recorded, results = self._recorded, tuple(self._results)
        try:
            yield self.session.acknowledge()
        except EngineError as error:
            raise self._break_off(error) from None
        self.app.checker.was_told(self.session.id, results)
        self._acknowledged = max(self._acknowledged, recorded)
        self._check()

    def _ask(self, question: Task) -> Task:
        try:
            answer = yield from question
        except EngineError as error:
            raise self._break_off(error) from None
        self._check()
        return answer

    def _park(self, record: StepRecord) -> Task:
        """Wait until `record` is resolved; if nothing goes on meanwhile, give way."""
        self._check()
        parked = self._parked[record.id.hash] = Future()
        self._active -= 1
        self._settle()
        resolved = yield parked
        self._check()
        return resolved

    def _settle(self) -> None:
        if not self._active:
            self.app.later(self.app.loop.latency(MS), self._depart_if_idle)

    def _depart_if_idle(self) -> None:
        if not self._active and not self.departure:
            self._depart("handover" if self._wants_handover else "waiting")

    def _check(self) -> None:
        if self.departure:
            raise _UnwoundError

    # Departing

    def _break_off(self, error: EngineError) -> _UnwoundError:
        self._depart("lost" if isinstance(error, LostRunError) else "broken")
        return _UnwoundError()

    def _depart(self, departure: str) -> None:
        if not self.departure:
            self.departure = departure
            self.app.spawn(self._leave())

    def park(self) -> None:
        """Something is missing that the handler needs: let the run stand still."""
        if not self.departure:
            self.departure = "parked"
            self.app.spawn(self._leave())

    def _leave(self) -> Task:
        try:
            if self.departure == "waiting":
                yield from self.session.suspend()
            elif self.departure == "handover":
                yield self.session.leave(Release("released"))
            elif self.departure == "parked":
                yield self.session.leave(Park("broken"))
        except LostRunError:
            self.departure = "lost"
        except EngineError:
            self.departure = "broken"
        if self.departure == "broken":
            self.session.abandon()
            self._answer("unavailable", None)
        else:
            self._answer("later", None)
        self.is_over.set()

    def _answer(self, kind: str, content: object) -> None:
        if self.reply is not None:
            self.reply(kind, content)
            self.reply = None


_INTERPRET: dict[type, Callable[[Any, Any], Task]] = {
    Step: Execution._step,
    Sleep: Execution._sleep,
    Wait: Execution._wait,
    WaitAny: Execution._wait_any,
    Signal: Execution._signal,
    Send: Execution._send,
    Invoke: Execution._invoke,
    Parallel: Execution._parallel,
    Push: Execution._push,
    Stumble: Execution._stumble,
}
