"""A run in the process that its request came to: its steps are executed here, and checkpointed.

As long as this execution lasts, the server is not told of anything that it would act upon. What
waits (a sleep, a retry, an event) is told when nothing else goes on: from then on the server drives
the run. A step that failed for good is told then, too, because the server answers it by re-entry.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from durable_endpoints.engines.inngest import ops
from durable_endpoints.engines.inngest.mirror import Mirror
from durable_endpoints.engines.inngest.outbox import Outbox
from durable_endpoints.engines.inngest.responses import Responses
from durable_endpoints.errors import StorageError
from durable_endpoints.protocol import checkpoints
from durable_endpoints.protocol.checkpoints import RunEvent
from durable_endpoints.protocol.ops import (
    FROM_OUTSIDE,
    SendEvent,
    SignalTaken,
    Sleep,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server.engine.transitions import Resolve, register

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine

SERVERS_OWN_PAUSE = 5_000
"""Milliseconds after which an Inngest server tries a step again that failed in a checkpoint: it
takes no wish there."""
SOON = 1_000


class FirstSession(Mirror):
    """A `Session` of a run's first execution."""

    def __init__(self, engine: InngestEngine, new: NewRun, event: RunEvent, request: bytes) -> None:
        decision = register(new, "here", None, engine.now())
        super().__init__(engine, decision.run, ())
        self._engine = engine
        self._outbox = Outbox(engine, new.id, event, new.retries, request)
        self._responses = Responses(new.id, engine.keyring)
        self._open: dict[str, tuple[StepOp, StepRecord, bool]] = {}
        """Steps that are not resolved: how they were opened, and whether they end another wait."""
        self._failures: list[StepRecord] = []
        """Steps that have failed for good."""
        self._timers: dict[str, Callable[[], None]] = {}
        self._missed = False
        """Whether something was resolved that the execution has not seen."""
        if self._run.deadline is not None:
            delay = self._run.deadline - engine.now()
            self._timers[""] = engine.call_later(delay, self._expire)

    # What the execution records

    def record(self, op: StepOp) -> StepRecord:
        """As `Session.record`."""
        step = self.decided(op)
        self._engine.tried(self.id, step)
        if step.state is StepState.DONE:
            self._open.pop(step.id.hash, None)
            self._outbox.add(ops.done(step), op if isinstance(op, SendEvent) else None)
        elif step.state is StepState.FAILED:
            # The handler hears of it in a re-entry. Until nothing else goes on, it waits.
            self._failures.append(step)
            return step._replace(state=StepState.PENDING)
        else:
            self._open[step.id.hash] = op, step, False
            self.watch(step)
        return step

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        """As `Session.open_signal`: a conflict shows when the server has been told."""
        step = self.decided(op)
        self._open[step.id.hash] = op, step, replace
        return step

    @property
    def is_known(self) -> bool:
        """Whether the server was told of the run."""
        return self._outbox.run is not None

    def watch(self, step: StepRecord) -> None:
        """Sleeps and pauses are over here, if they are before anything else has to wait."""
        if step.due is not None and step.kind not in FROM_OUTSIDE:
            delay = max(0, step.due - self._engine.now())
            key = step.id.hash
            self._timers[key] = self._engine.call_later(delay, lambda: self._resolve(key))

    def _resolve(self, key: str) -> None:
        if self._has_left or key not in self._open:
            return
        op, step, replace = self._open[key]
        resolved = self.decided(Resolve(step))
        if resolved.is_final:
            del self._open[key]
            self._outbox.add(ops.done(resolved))
        else:
            self._open[key] = op, resolved, replace
        if self.listener is None or not self.listener.resolved(resolved):
            self._missed = True

    async def acknowledge(self) -> None:
        """As `Session.acknowledge`."""
        await self._outbox.flush()

    # How the execution ends

    async def suspend(self) -> None:
        """From here on the server drives the run."""
        if self._missed or not (self._open or self._failures):
            await self.release("resolved")
        else:
            await self._hand_over(self._waiting())

    async def release(self, reason: str) -> None:
        """Let the server re-enter the run at once. What is open is opened again then."""
        await self._hand_over([ops.sleep(unique("handover"), SOON)])

    async def park(self, reason: str) -> None:
        """No run stands still here: it is tried again."""
        await self.release(reason)

    async def end(self, command: Complete | Fail) -> None:
        """As `Session.end`."""
        self._stop_timers()
        if isinstance(command, Complete):
            result = self._responses.result(command)
            await self._outbox.end(checkpoints.completion(result))
        else:
            # The run fails by a re-entry that finds this, so that the server calls it failed.
            step = self._responses.failed_handler(command, self._engine.now())
            self._outbox.keep_request()
            await self._outbox.tell([ops.failed(step, is_final=True)])
        self._leave()

    async def abandon(self) -> None:
        """The server did not answer. It re-enters what it was told of; of the rest it knows
        nothing."""
        self._leave()

    def renounce(self) -> None:
        """The request goes on without its run, of which the server knows nothing."""
        self._leave()

    def stop(self, reason: str) -> None:
        """The run was ended from outside."""
        listener = self.listener
        self.stop_reason = reason
        self._leave()
        if listener is not None:
            listener.stopped(reason)

    def _expire(self) -> None:
        if not self._has_left:
            self._engine.spawn(self._end_late(), f"end {self.id}, which took too long")

    async def _end_late(self) -> None:
        listener = self.listener
        try:
            await self.end(Fail("timed_out", None))
        except StorageError:
            return  # the execution meets the same failure
        self.stop_reason = "timed_out"
        if listener is not None:
            listener.stopped("timed_out")

    async def _hand_over(self, operations: list[ops.WireOp]) -> None:
        self._stop_timers()
        self._outbox.keep_request()
        await self._outbox.tell(operations)
        self._leave()

    def _waiting(self) -> list[ops.WireOp]:
        """What the server shall do now."""
        if self._failures:
            # It answers each of these by a re-entry, which finds again whatever is open beside.
            return [ops.failed(step, is_final=True) for step in self._failures]
        now = self._engine.now()
        waiting = []
        for op, step, replace in self._open.values():
            if isinstance(op, Sleep | WaitForEvent):
                opened = ops.opened(op, step.due, now)
                waiting.append(ops.replacing(opened) if replace else opened)
            elif isinstance(op, StepRetry) and (op.delay or 0) > SERVERS_OWN_PAUSE:
                waiting.append(ops.sleep(unique("retry"), (step.due or now) - now))
            else:
                waiting.append(ops.failed(step, is_final=False))
        return ops.in_group(waiting)

    def _stop_timers(self) -> None:
        for cancel in self._timers.values():
            cancel()
        self._timers.clear()

    def _leave(self) -> None:
        self._stop_timers()
        self._engine.left(self)
        self.leave()


def unique(name: str) -> StepId:
    """A step of this engine's own, by which the server re-enters a run."""
    name = f"durable:{name}:{secrets.token_hex(8)}"
    return StepId(hash_name(name), name, 0)
