"""One re-entry: an execution that gives the server one answer.

The server's wire takes one operation, or the list of everything that was newly found. So at most
one body runs: that of the step that the server names, or of the only one there is to run. If there
are several, or something waits beside it, they are listed, and the server asks for each by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from durable_endpoints.engines.inngest import ops
from durable_endpoints.engines.inngest.mirror import Mirror
from durable_endpoints.engines.inngest.responses import Responses
from durable_endpoints.engines.inngest.session import SOON, unique
from durable_endpoints.errors import LostRunError
from durable_endpoints.protocol import checkpoints
from durable_endpoints.protocol.ops import (
    SendEvent,
    SignalTaken,
    Sleep,
    StepKind,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints_server.engine.model import Run

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine


class Answer(NamedTuple):
    """What the server is told."""

    status: int
    body: bytes
    may_retry: bool | None = None
    """Whether to ask again, where something failed."""
    retry_after: int | None = None
    """Seconds."""


class Orders(NamedTuple):
    """What the server wants of a re-entry."""

    target: str = ""
    """The hash of the one step to run; empty for any."""
    only_plans: bool = False
    """To run none, but to list them."""


class ReentrySession(Mirror):
    """A `Session` and a `Guide` of one re-entry."""

    def __init__(
        self, engine: InngestEngine, run: Run, memo: Sequence[StepRecord], orders: Orders
    ) -> None:
        super().__init__(engine, run, memo)
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.is_sent = asyncio.Event()
        """Set once the server has the answer, or will not get it."""
        self.was_lost = False
        """Whether it will not."""
        self.completion: bytes | None = None
        """The packed response, if the run ends with one."""
        self._engine = engine
        self._orders = orders
        self._responses = Responses(run.id, engine.keyring)
        self._done: ops.WireOp | None = None
        """The operation that this execution is about."""
        self._event: SendEvent | None = None
        self._retry_after: int | None = None
        self._found: list[ops.WireOp] = []
        """What it has found, and that waits."""
        self._bodies: dict[str, StepId] = {}
        """Bodies that wait to be chosen."""
        self._is_running = False

    # As a guide

    def runs(self, step: StepId) -> bool:
        """As `Guide.runs`."""
        if step.hash == self._orders.target and not self._is_running and self._done is None:
            self._is_running = True
            return True
        self._bodies[step.hash] = step
        return False

    def choose(self) -> StepRecord | None:
        """As `Guide.choose`."""
        orders = self._orders
        is_alone = len(self._bodies) == 1 and not self._found
        if (
            self._done is not None
            or self._is_running
            or orders.target
            or orders.only_plans
            or not is_alone
        ):
            return None
        self._is_running = True
        (step,) = self._bodies.values()
        return StepRecord(step, StepKind.RUN, StepState.RETRYING)

    @property
    def is_looking(self) -> bool:
        """As `Guide.is_looking`."""
        return bool(self._orders.target) and not self._is_running and not self.is_done

    @property
    def is_done(self) -> bool:
        """As `Guide.is_done`."""
        return self._done is not None

    # What the execution records

    def record(self, op: StepOp) -> StepRecord:
        """As `Session.record`."""
        step = self.decided(op)
        if self._done is not None:  # before the handler was reached: a dependency was remembered
            return step
        self._engine.tried(self.id, step)
        if isinstance(op, Sleep | WaitForEvent):
            self._found.append(ops.opened(op, step.due, self._engine.now()))
            return step
        if step.state is StepState.DONE:
            self._done = ops.done(step)
            self._event = op if isinstance(op, SendEvent) else None
        else:
            self._done = ops.failed(step, is_final=step.state is StepState.FAILED)
        if isinstance(op, StepRetry) and op.delay is not None:
            self._retry_after = max(1, -(-op.delay // 1_000))
        return step

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        """As `Session.open_signal`."""
        step = self.record(op)
        if replace:
            self._found[-1] = ops.replacing(self._found[-1])
        return step

    def watch(self, step: StepRecord) -> None:
        """As `Session.watch`: whatever is open, the server resolves."""

    async def acknowledge(self) -> None:
        """As `Session.acknowledge`: all that there is to acknowledge is what ends it."""

    # How the execution ends

    async def suspend(self) -> None:
        """Tell what was done, or what was found."""
        if self._done is not None:
            if self._event is not None:
                await self._engine.server.send(ops.event_of(self._event.event))
            await self._say(self._operation(self._done))
        elif self._orders.target and not self._is_running:
            await self._say(_not_found(self._orders.target, self._bodies.values()))
        else:
            planned = [ops.planned(step) for step in self._bodies.values()]
            operations = ops.in_group([*self._found, *planned])
            await self._say(Answer(206, orjson.dumps(operations)))

    async def release(self, reason: str) -> None:
        """Let the server ask again soon."""
        if self._done is not None:
            await self.suspend()
        elif self._orders.target:
            await self._say(problem(reason, "this execution was given up", retry_after=1))
        else:
            operation = ops.sleep(unique("handover"), SOON)
            await self._say(Answer(206, orjson.dumps([operation])))

    async def park(self, reason: str) -> None:
        """No run stands still here: the server asks again, as often as it does."""
        await self._say(problem(reason, f"the run cannot go on here: {reason}"))

    async def end(self, command: Complete | Fail) -> None:
        """As `Session.end`. Returns when the server has been told."""
        if self._done is not None:
            await self.suspend()
            raise LostRunError(f"run {self.id} goes on in another execution")
        if isinstance(command, Complete):
            operation = checkpoints.completion(self._responses.result(command))
            self.completion = command.response
            await self._say(Answer(206, orjson.dumps(operation)))
        else:
            step = self._responses.failed_handler(command, self._engine.now())
            self.completion = command.response
            await self._say(final(step))
        if self.was_lost:
            raise LostRunError(f"the server did not hear how run {self.id} ended")

    async def abandon(self) -> None:
        """Something at the server failed: it asks again."""
        self.tell(problem("unavailable", "this execution could not go on"))

    def tell(self, answer: Answer) -> None:
        """Answer, unless that was done."""
        if not self.answer.done():
            self.answer.set_result(answer)

    async def _say(self, answer: Answer) -> None:
        self.leave()
        self.tell(answer)
        await self.is_sent.wait()

    def _operation(self, operation: ops.WireOp) -> Answer:
        kind = operation["op"]
        may_retry = None if kind == "StepRun" else kind == "StepError"
        return Answer(206, orjson.dumps([operation]), may_retry, self._retry_after)


def final(step: StepRecord) -> Answer:
    """The run has failed: `step` is its handler."""
    return Answer(400, orjson.dumps(ops.error_of(step.error or b"{}")), may_retry=False)


def problem(name: str, message: str, retry_after: int | None = None) -> Answer:
    """This re-entry failed, and may be tried again."""
    body: dict[str, Any] = {"__serialized": True, "name": name, "message": message, "stack": ""}
    return Answer(500, orjson.dumps(body), may_retry=True, retry_after=retry_after)


def _not_found(target: str, bodies: Any) -> Answer:
    found = [{"id": step.hash, "name": step.name, "displayName": step.name} for step in bodies]
    body = {
        "error": "the step that was asked for was not found: has the handler changed?",
        "requestedStep": target,
        "foundSteps": sorted(found, key=lambda step: step["id"])[:25],
        "totalFoundSteps": len(found),
    }
    return Answer(500, orjson.dumps(body), may_retry=True)
