"""Runs that other runs have invoked: the end of a child wakes its parent, and that of a parent ends
its children.

Both are written, and then acted upon. What a crash leaves undone in between is found in the store:
an open step whose child has ended, a child whose parent has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints.protocol.ops import StepState
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import Resolve, decide
from durable_endpoints_server.store.base import Invocation, is_written

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

_PARENT_ENDED = "parent_ended"
"""Why a child is cancelled whose parent has ended."""
_PATIENCE = 60.0
"""Seconds to wait for a parent whose execution is gone to be idle in the store."""
_PAUSE = 0.01
"""Seconds before a parent that is just being changed is looked at again."""


class Children:
    """Wakes parents, and ends children."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._at_work: set[object] = set()
        self._telling: dict[str, asyncio.Event] = {}
        """Children that have ended, by their ids, whose parents do not know that yet."""

    @property
    def is_busy(self) -> bool:
        """Whether some run's end has not had all its consequences."""
        return bool(self._at_work)

    def restart(self) -> None:
        """Whatever was under way on an event loop before this one went with it."""
        self._at_work.clear()
        self._telling.clear()

    def ended(self, child: Run) -> None:
        """A run has ended that another one has invoked."""
        assert child.parent_run is not None
        assert child.parent_step is not None
        told = self._telling[child.id] = asyncio.Event()
        waking = self._tell(child.id, told, self._wake(child.parent_run, child.parent_step))
        self._begin(waking, f"wake {child.parent_run}")

    async def until_told(self, child_id: str) -> None:
        """Return once the parent of a run that has just ended knows that, and it is on disk."""
        if (told := self._telling.get(child_id)) is not None:
            await told.wait()

    async def _tell(
        self, child_id: str, told: asyncio.Event, waking: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await waking
        finally:
            told.set()
            if self._telling.get(child_id) is told:
                del self._telling[child_id]

    def abandoned(self, run_id: str) -> None:
        """A run has ended that may have children which have not."""
        self._begin(self._end_children(run_id), f"end the children of {run_id}")

    async def end(self, run_id: str) -> None:
        """Let the children of a run that has ended not outlive it: whoever was told that it has
        ended may rely on nothing of it being begun any more. Returns when that is on disk, or has
        to wait for the store to work again."""
        await self._or_later(self._end_children(run_id))

    async def settle_all(self) -> None:
        """Do what is still to be done for runs that have ended: after a start, or a failed read or
        write."""
        store = self._host.store
        await asyncio.gather(
            *(self._wake(run.id, step.id.hash) for run, step in await store.settled_invocations())
        )
        await self._cancel(await store.orphans())

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        token = object()
        self._at_work.add(token)
        self._host.spawn_at_home(self._do(work, token), name)

    async def _do(self, work: Coroutine[Any, Any, None], token: object) -> None:
        try:
            await self._or_later(work)
        finally:
            self._at_work.discard(token)

    async def _or_later(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EngineError as error:
            logger.error("what follows from the end of a run has to wait: %s", error)
            self._host.recovery.settle_soon()

    async def _end_children(self, run_id: str) -> None:
        await self._cancel(await self._host.store.children(run_id))

    async def _cancel(self, children: list[Run]) -> None:
        unfinished = [run.id for run in children if not run.status.is_final]
        await asyncio.gather(*(self._host.cancel(id, _PARENT_ENDED) for id in unfinished))

    async def _wake(self, run_id: str, step: str) -> None:
        """Let the parent look at its child, whose end is on disk."""
        host = self._host
        give_up_at = time.monotonic() + _PATIENCE
        while True:
            if (live := host.live_run(run_id)) is not None:
                await live.wake(step)
                await live.written()
                if live.has_failed:
                    return  # its next execution looks by itself
            found = await host.store.invocation(run_id, step)
            if found is None or found.step.state is not StepState.PENDING:
                return
            if found.run.status is Status.PARKED or found.run.status.is_final:
                return  # the same, if there is one
            if host.live_run(run_id) is None:
                if found.run.status is not Status.RUNNING:
                    if await self._wake_idle(found):
                        return
                    continue
                if host.recovery.will_rescue(run_id):
                    return  # the same
            if time.monotonic() > give_up_at:
                host.recovery.settle_soon()
                return
            await asyncio.sleep(_PAUSE)

    async def _wake_idle(self, found: Invocation) -> bool:
        """False if somebody else has changed the parent first."""
        host = self._host
        decision = decide(found.run, Resolve(found.step), host.clock.now(), host.policy)
        if not await is_written(host.store.submit(decision.change)):
            return False
        host.announce(decision.run, None, None)
        return True
