"""One execution of a run by re-entry: request after request into its application, until only time
or an event can help, or the run has ended.

There is at most one *discovery* under way, which finds out what comes next, and beside it a call
for each step that is run by its id. Whatever ends a step asks for the next discovery; that waits
until the calls under way have ended, because the handler most often waits for all of them, unless
they race.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from durable_endpoints.protocol.errors import LimitError, LostRunError, StorageError
from durable_endpoints.protocol.ops import (
    FROM_OUTSIDE,
    StepFailed,
    StepKind,
    StepRecord,
    StepRetry,
    StepState,
)
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId, hash_name
from durable_endpoints_server.host import Host
from durable_endpoints_server.inngest import ops, results
from durable_endpoints_server.inngest.backoff import Backoff
from durable_endpoints_server.inngest.caller import Call, Caller
from durable_endpoints_server.inngest.commands import (
    Setting,
    command_of,
    complete_of,
    too_large,
)
from durable_endpoints_server.inngest.ops import WireOp
from durable_endpoints_server.inngest.recording import record
from durable_endpoints_server.inngest.replies import Answered, Lost, Ops, Reply, Threw
from durable_endpoints_server.inngest.trigger import Trigger
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry
from durable_endpoints_server.tees import Tees

logger = logging.getLogger("durable_endpoints")

_LOST_NAME: Final = "durable:unreachable"
_LOST_STEP: Final = StepId(hash_name(_LOST_NAME), _LOST_NAME, 0)
"""Under this reserved step it is counted how often in a row the application was not reached."""
_MOST_LOST: Final = 100
"""With Inngest's table, that takes a week."""


class Means(NamedTuple):
    """What executions work with."""

    host: Host
    caller: Caller
    backoff: Backoff
    tees: Tees


class Execution:
    """Executes a run that was claimed. It is the run's listener."""

    def __init__(self, means: Means, live: LiveRun, entry: Entry) -> None:
        assert entry.request is not None
        self._host, self._caller, self._backoff, self._tees = means
        self._live = live
        self._trigger = Trigger.unpack(entry.request)
        self._retries = entry.retries
        self._memo = {step.id.hash: step for step in entry.memo}
        self._calls: dict[asyncio.Task[Reply], _Target] = {}
        self._planned: dict[str, StepId] = {}
        """Steps that are to be run by their ids, as soon as they may."""
        self._must_discover = True
        self._is_racing = False
        self._is_leaving = False
        self._is_draining = False
        self._stopped = False
        self._bell = asyncio.Event()

    @property
    def generation(self) -> int:
        """The fencing number of this execution."""
        return self._live.generation

    async def run(self) -> None:
        """Execute the run until this execution has left it. Raises `EngineError`."""
        live = self._live
        live.listener = self
        for step in tuple(self._memo.values()):
            if not step.is_final and (step.due is not None or step.kind in FROM_OUTSIDE):
                live.watch(step)
        try:
            while not self._stopped:
                await live.acknowledge()  # what a request is to see is on disk before it
                self._start_calls()
                if not self._calls:
                    await self._leave()
                    return
                for target, reply in await self._replies():
                    if self._stopped or await self._take(target, reply):
                        return
        except LostRunError:
            logger.info("run %s is no longer executed by this request", live.id)
        except LimitError as error:
            failure = results.error("LimitError", error.explanation)
            await self._end(Fail("exception", failure))
        except StorageError:
            await live.abandon()
            raise
        except asyncio.CancelledError:
            if not (self._stopped or self._is_leaving):
                await self._release()
            raise
        finally:
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    def drain(self) -> None:
        """Begin no call any more, and release the run when those under way have ended."""
        self._is_draining = True
        self._bell.set()

    async def checkpoint(self, wire_ops: Sequence[WireOp]) -> None:
        """Record steps that the application has made within a call. Raises `EngineError`."""
        await self._record_all(wire_ops)
        await self._live.acknowledge()

    # The run's listener

    def resolved(self, step: StepRecord) -> bool:
        if self._is_leaving or self._stopped:
            return False
        self._memo[step.id.hash] = step
        if step.id.hash not in self._planned:
            self._must_discover = True
        self._bell.set()
        return True

    def stopped(self, reason: str) -> None:
        self._stopped = True
        self._bell.set()

    # Calls

    def _start_calls(self) -> None:
        if self._is_draining:
            return
        for key, step in tuple(self._planned.items()):
            known = self._memo.get(key)
            if known is None or known.due is None:
                del self._planned[key]
                self._start(step)
        is_discovering = any(target.step is None for target in self._calls.values())
        may_discover = not self._calls or (self._is_racing and not is_discovering)
        if self._must_discover and may_discover:
            self._must_discover = False
            self._start(None)

    def _start(self, step: StepId | None) -> None:
        live = self._live
        call = Call(
            run_id=live.id,
            generation=live.generation,
            trigger=self._trigger,
            step=None if step is None else step.hash,
            plans_only=step is None and self._has_others(),
        )
        now = self._host.clock.now()
        task = asyncio.create_task(self._caller.call(call, now), name=f"re-enter {live.id}")
        self._calls[task] = _Target(step, now)

    def _has_others(self) -> bool:
        """Whether a step is under way, or waits for its next try: a discovery that finds it as the
        only one must not run it."""
        return bool(self._calls) or any(
            step.state is StepState.RETRYING and step.due is not None and _is_own(step)
            for step in self._memo.values()
        )

    async def _replies(self) -> list[tuple[_Target, Reply]]:
        """The replies that are there, as soon as there is one or something was resolved."""
        rings = asyncio.ensure_future(self._bell.wait())
        try:
            await asyncio.wait([*self._calls, rings], return_when=asyncio.FIRST_COMPLETED)
        finally:
            rings.cancel()
        self._bell.clear()
        done = [task for task in self._calls if task.done()]
        return [(self._calls.pop(task), task.result()) for task in done]

    # Replies

    async def _take(self, target: _Target, reply: Reply) -> bool:
        """Do what a reply says. Whether that was the end of this execution."""
        if isinstance(reply, Ops):
            return await self._take_ops(reply)
        if isinstance(reply, Answered):
            await self._tees.settle(self._live, (), ends=True)
            return await self._end(Complete(reply.response.status, reply.response.pack()))
        elapsed = (self._host.clock.now() - target.since) * 1_000
        if isinstance(reply, Lost):
            return await self._not_reached(reply, elapsed)
        if reply.is_final:
            await self._tees.settle(self._live, (), ends=True)
            return await self._end(Fail("exception", reply.error))
        return await self._failed(target.step or HANDLER_STEP, reply, elapsed)

    async def _take_ops(self, reply: Ops) -> bool:
        tried = {op.step.hash for op in reply.ops if op.is_of_body and not op.is_of_handler}
        ends = any(op.is_end for op in reply.ops)
        if tried or ends:
            await self._tees.settle(self._live, tried, ends)
        for op in reply.ops:
            if op.is_end:
                return await self._end(complete_of(op))
            if op.is_of_handler:
                is_final = op.code == ops.STEP_FAILED
                threw = Threw(results.error_of(op.error), is_final, reply.delay)
                return await self._take(_Target(None, self._host.clock.now()), threw)
        await self._record_all(reply.ops, reply.delay)
        return False

    async def _record_all(self, wire_ops: Sequence[WireOp], delay: int | None = None) -> None:
        for op in wire_ops:
            known = self._memo.get(op.step.hash)
            if op.code == ops.DISCOVERY_REQUEST:
                self._must_discover = True
            elif known is not None and known.is_final:
                continue
            elif op.code == ops.STEP_PLANNED:
                self._plan(op)
            elif known is None or known.state is StepState.RETRYING:
                await self._record(op, 1 if known is None else known.attempt + 1, delay)

    def _plan(self, op: WireOp) -> None:
        self._is_racing = self._is_racing or op.is_racing
        if all(target.step != op.step for target in self._calls.values()):
            self._planned[op.step.hash] = op.step

    async def _record(self, op: WireOp, attempt: int, delay: int | None) -> None:
        """Record a step that a call has found or run."""
        live = self._live
        setting = Setting(
            self._trigger, self._retries, self._host.policy.max_wait, self._host.clock.now()
        )
        delay = self._backoff.after(attempt) if delay is None else delay
        command = command_of(op, attempt, delay, setting)
        try:
            step = await record(live, op, command)
        except LimitError as error:
            step = live.record(too_large(op, attempt, error.explanation))
        self._note(step)

    def _note(self, step: StepRecord) -> None:
        self._memo[step.id.hash] = step
        if step.is_final:
            self._must_discover = True
        elif step.state is StepState.RETRYING and _is_own(step):
            self._planned[step.id.hash] = step.id

    async def _failed(self, step: StepId, threw: Threw, elapsed: int) -> bool:
        """A try of the handler, or of a step that was called by its id, came to nothing. Whether
        that was the end of this execution."""
        attempt = self._tries(step) + 1
        is_handler = step == HANDLER_STEP
        kind = StepKind.HANDLER if is_handler else StepKind.RUN
        if attempt <= self._retries:
            delay = self._backoff.after(attempt) if threw.delay is None else threw.delay
            op = StepRetry(step, kind, threw.error, attempt, elapsed, delay)
            self._note(self._live.record(op))
        elif is_handler:
            return await self._end(Fail("exception", threw.error))
        else:
            self._note(self._live.record(StepFailed(step, kind, threw.error, attempt, elapsed)))
        return False

    async def _not_reached(self, lost: Lost, elapsed: int) -> bool:
        """Ask again later, for a long time. Whether that time is over."""
        known = self._memo.get(_LOST_STEP.hash)
        if known is not None and known.due is not None:
            return False  # several calls were lost together
        attempt = self._tries(_LOST_STEP) + 1
        problem = f"the application at {self._trigger.origin} did not answer: {lost.reason}"
        if attempt & (attempt - 1) == 0:  # the first time, the second, the fourth …
            logger.warning("run %s: %s", self._live.id, problem)
        error = results.error("UnreachableError", problem)
        if attempt > _MOST_LOST:
            return await self._end(Fail("unreachable", error))
        delay = self._backoff.after(attempt)
        op = StepRetry(_LOST_STEP, StepKind.HANDLER, error, attempt, elapsed, delay)
        self._note(self._live.record(op))
        return False

    def _tries(self, step: StepId) -> int:
        """How often a step was tried. What is no step of the application's own is counted anew
        when one of those has ended since."""
        known = self._memo.get(step.hash)
        if known is None or _is_own(known):
            return 0 if known is None else known.attempt
        progress = max((other.ended_at or 0 for other in self._memo.values()), default=0)
        return known.attempt if known.began_at >= progress else 0

    # Leaving

    async def _end(self, command: Complete | Fail) -> bool:
        self._is_leaving = True
        await self._live.end(command)
        return True

    async def _leave(self) -> None:
        """Nothing is under way: wait for what is open."""
        if self._is_draining:
            await self._release()
            return
        if not any(map(_is_awaited, self._memo.values())):
            problem = "the application asked for nothing, though it has not returned"
            threw = Threw(results.error("ReplyError", problem), is_final=False)
            if await self._failed(HANDLER_STEP, threw, 0):
                return
        self._is_leaving = True
        await self._live.suspend()

    async def _release(self) -> None:
        """Let another execution go on at once: this server ends."""
        self._is_leaving = True
        await self._live.release("released")


class _Target(NamedTuple):
    """What a call is for."""

    step: StepId | None
    """The step that it runs; None for a discovery."""
    since: int


def _is_own(step: StepRecord) -> bool:
    """Whether it is a step that the application knows of."""
    return step.kind is not StepKind.HANDLER


def _is_awaited(step: StepRecord) -> bool:
    """Whether time or somebody else will resolve it."""
    return step.state is StepState.PENDING or (
        step.state is StepState.RETRYING and step.due is not None
    )
