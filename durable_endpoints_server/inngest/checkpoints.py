"""The sync phase: what an application says about a request that it is serving.

Each checkpoint is answered once all of it is on disk, and may be repeated: what is known is passed
over, in every state of the run. One that asks for something new of a run that is not the
application's any more is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from durable_endpoints.protocol.errors import EngineError, LimitError, LostRunError
from durable_endpoints.protocol.ops import StepFailed, StepKind, StepRecord
from durable_endpoints.protocol.runs import Fail, NewRun
from durable_endpoints_server.clock import Alarm
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.host import Host
from durable_endpoints_server.inngest import SYNC_OWNER, ops, results
from durable_endpoints_server.inngest.apps import Apps, is_called_back
from durable_endpoints_server.inngest.backoff import Backoff
from durable_endpoints_server.inngest.commands import (
    Setting,
    command_of,
    complete_of,
    retry_of,
)
from durable_endpoints_server.inngest.ops import WireOp
from durable_endpoints_server.inngest.recording import record
from durable_endpoints_server.inngest.refusals import Refusal
from durable_endpoints_server.inngest.trigger import Trigger
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry

logger = logging.getLogger("durable_endpoints")

_IDLE: Final = 30_000
"""Milliseconds of silence after which a run is not held in memory any more."""


class Opening(NamedTuple):
    """A new run, as an application reports it."""

    run_id: str
    trigger: Trigger
    retries: int
    elapsed: int
    """How long ago its request began, in milliseconds."""
    key: str | None
    """The caller's idempotency key."""


class Checkpoints:
    """Begins runs, and records what their applications say while they serve the request."""

    def __init__(self, host: Host, apps: Apps, backoff: Backoff) -> None:
        self._host = host
        self._apps = apps
        self._backoff = backoff
        self._held: dict[str, _Held] = {}
        self._turns: dict[str, _Turn] = {}

    async def begin(self, opening: Opening, wire_ops: Sequence[WireOp]) -> None:
        """Begin a run, with the steps that it has made so far; or see that this is a repeat.

        Raises `Refusal` and `EngineError`.
        """
        async with self._turn(opening.run_id):
            run = await self._host.store.run(opening.run_id)
            if run is None:
                await self._register(opening, wire_ops)
                return
            await self._check_same(run, opening)
            await self._go_on(opening.run_id, wire_ops)

    async def record(self, run_id: str, wire_ops: Sequence[WireOp]) -> None:
        """Record what has happened in a run. Raises `Refusal` and `EngineError`."""
        async with self._turn(run_id):
            await self._go_on(run_id, wire_ops)

    async def _register(self, opening: Opening, wire_ops: Sequence[WireOp]) -> None:
        trigger = opening.trigger
        self._check_origin(trigger.origin, wire_ops)
        new = NewRun(
            id=opening.run_id,
            function_id=trigger.function_id,
            version="",
            method=trigger.method,
            path=trigger.path,
            request=trigger.pack(),
            app=trigger.origin,
            retries=opening.retries,
            elapsed=opening.elapsed,
            key=opening.key,
        )
        live = self._host.register(new, SYNC_OWNER)
        try:
            await self._apply(_Held(live, trigger, opening.retries, set()), wire_ops)
        except LostRunError:
            holder = await self._host.store.key_holder(opening.key) if opening.key else None
            if holder is None:
                raise
            raise Refusal(
                409,
                f"Run already exists: its idempotency key is that of run {holder.run_id}.",
                "run_exists",
                {"run_id": holder.run_id},
            ) from None

    def _check_origin(self, origin: str, wire_ops: Sequence[WireOp]) -> None:
        """A run whose application may not be called back must end in this very checkpoint."""
        if self._apps.allows(origin) or any(op.is_end for op in wire_ops):
            return
        logger.warning("a run of %s was refused: that origin is not trusted", origin)
        raise Refusal(
            403,
            f"The application at {origin} may not be called back by this server: start it with "
            f"--app-origin {origin}, or register the origin with a signing key (PUT "
            "/v1/durable/apps).",
            "origin_not_trusted",
        )

    async def _check_same(self, run: Run, opening: Opening) -> None:
        entry = await self._host.store.entry(run.id)
        trigger = opening.trigger
        same = trigger.origin, trigger.function_id
        if entry is None or (entry.app, entry.run.function_id) != same:
            raise Refusal(409, f"Run already exists: {run.id} is another endpoint's.", "run_exists")

    async def _go_on(self, run_id: str, wire_ops: Sequence[WireOp]) -> None:
        held = self._held.get(run_id)
        if held is None or self._host.live_run(run_id) is not held.live:
            entry = await self._host.store.entry(run_id)
            if entry is None or not is_called_back(entry.app):
                raise Refusal(404, f"There is no run {run_id}.", "not_found")
            if not is_in_sync_phase(entry.run):
                _check_repeat(entry, wire_ops)
                return
            held = self._hold(entry)
        await self._apply(held, wire_ops)

    def _hold(self, entry: Entry) -> _Held:
        assert entry.request is not None
        trigger = Trigger.unpack(entry.request)
        known = {step.id.hash for step in entry.memo}
        return _Held(self._host.resume(entry), trigger, entry.retries, known)

    async def _apply(self, held: _Held, wire_ops: Sequence[WireOp]) -> None:
        """Record ops, and leave the run if they say so. Returns when that is on disk."""
        live = held.live
        self._held[live.id] = held
        try:
            await self._record_all(held, wire_ops)
        except LimitError as error:
            raise Refusal(413, error.explanation, "too_large") from None
        except LostRunError:
            run = await self._host.store.run(live.id)
            if run is None:
                raise
            raise _moved_on(run) from None
        except EngineError:
            live.drop()  # what is on disk is found again by the next checkpoint
            raise
        finally:
            self._rest(held)

    async def _record_all(self, held: _Held, wire_ops: Sequence[WireOp]) -> None:
        live, policy = held.live, self._host.policy
        setting = Setting(held.trigger, held.retries, policy.max_wait, self._host.clock.now())
        waits = enters = False
        for op in wire_ops:
            if op.step.hash in held.known:
                continue
            if op.is_end:
                await live.end(complete_of(op))
                return
            if op.code in (ops.STEP_PLANNED, ops.DISCOVERY_REQUEST):
                enters = True
                continue
            step = await self._record(held, op, setting)
            if step is None:
                return
            waits = waits or not step.is_final
            enters = enters or (step.is_final and not op.is_done)
        if enters:
            await live.release("async")
        elif waits:
            await live.suspend()
        else:
            await live.acknowledge()

    async def _record(self, held: _Held, op: WireOp, setting: Setting) -> StepRecord | None:
        """Record one op, and return the step as it is then. None if that was the end of the run."""
        live, delay = held.live, self._backoff.after_request()
        if op.is_of_handler:
            failure = retry_of(op, 1, delay, setting, StepKind.HANDLER)
            if op.code != ops.STEP_ERROR or isinstance(failure, StepFailed):
                await live.end(Fail("exception", failure.error))
                return None
            step = live.record(failure)
        else:
            step = await record(live, op, command_of(op, 1, delay, setting))
        held.known.add(op.step.hash)
        return step

    # How long a run is held

    @asynccontextmanager
    async def _turn(self, run_id: str) -> AsyncIterator[None]:
        """One checkpoint of a run at a time: a repeat waits until the first one is on disk."""
        turn = self._turns.setdefault(run_id, _Turn())
        turn.takers += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.takers -= 1
            if not turn.takers:
                self._turns.pop(run_id, None)

    def _rest(self, held: _Held) -> None:
        """Nothing more is known to come: after a while of silence the run is not held any more."""
        run_id, clock = held.live.id, self._host.clock
        if held.alarm is not None:
            held.alarm.cancel()
        if self._host.live_run(run_id) is not held.live:
            self._held.pop(run_id, None)
            return
        held.alarm = clock.call_at(clock.now() + _IDLE, lambda: self._let_go(held))

    def _let_go(self, held: _Held) -> None:
        run_id = held.live.id
        if run_id not in self._turns and self._held.pop(run_id, None) is held:
            held.live.drop()

    # Silence

    async def give_up(self, silent_since: int) -> int:
        """End the runs in their sync phase of which nothing was heard since that instant: their
        application has died, or never says how they have failed. Returns how many they were."""
        store = self._host.store
        given_up = 0
        for run_id in await store.running_since(SYNC_OWNER, silent_since):
            async with self._turn(run_id):
                entry = await store.entry(run_id)
                if entry is None or not is_in_sync_phase(entry.run):
                    continue
                last = max((step.ended_at or 0 for step in entry.memo), default=0)
                if last <= silent_since:
                    await self._abandon(entry)
                    given_up += 1
        return given_up

    async def _abandon(self, entry: Entry) -> None:
        held = self._held.get(entry.run.id)
        live = held.live if held is not None else self._host.resume(entry)
        message = "the application has not said for a long time how the request goes on"
        try:
            await live.end(Fail("abandoned", results.error("AbandonedError", message)))
        except LostRunError:
            pass  # it ended in this very moment
        if held is not None:
            self._rest(held)


class _Held:
    """A run in its sync phase, as it is held in memory."""

    def __init__(self, live: LiveRun, trigger: Trigger, retries: int, known: set[str]) -> None:
        self.live = live
        self.trigger = trigger
        self.retries = retries
        self.known = known
        """The steps that are recorded, by hash."""
        self.alarm: Alarm | None = None


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.takers = 0


def is_in_sync_phase(run: Run) -> bool:
    """Whether the application executes the run, in the client's own request."""
    return run.status is Status.RUNNING and run.owner == SYNC_OWNER


def _check_repeat(entry: Entry, wire_ops: Sequence[WireOp]) -> None:
    """Raise `Refusal` if an op asks for something new of a run that has left its sync phase."""
    run, known = entry.run, {step.id.hash for step in entry.memo}
    for op in wire_ops:
        is_known = (
            op.step.hash in known
            or op.code in (ops.STEP_PLANNED, ops.DISCOVERY_REQUEST)
            or (op.is_end and run.status is Status.COMPLETED)
            or (op.is_of_handler and not op.is_end and run.status is Status.FAILED)
        )
        if not is_known:
            raise _moved_on(run)


def _moved_on(run: Run) -> Refusal:
    how = run.status.label
    return Refusal(
        409,
        f"Run {run.id} is not executed by this request any more: it is {how}. Nothing more of it "
        "is recorded from here.",
        "moved_on",
        {"run_id": run.id, "status": how},
    )
