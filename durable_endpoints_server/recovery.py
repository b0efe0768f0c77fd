"""Recovery: what an earlier process, or a failed write, left behind goes on.

The process that owns the dispatcher role knows that every run that is RUNNING in the store, and
not in its own hands, lost its execution, unless it is executed elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import (
    Interrupt,
    Release,
    decide,
    skip_positions,
)
from durable_endpoints_server.owner import is_same_boot
from durable_endpoints_server.store.base import Ticket, is_written, with_exact_usage
from durable_endpoints_server.tasks import Bell

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

_PAGE = 500
_FIRST_RETRY = 0.2
_LAST_RETRY = 10.0


class Recovery:
    """Gives lost runs back to the dispatcher."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stranded: set[str] = set()
        self._asked_to_settle = self._settled = 0
        self.is_failing = False
        """Whether the store failed when it was last asked."""
        self._bell = Bell()

    async def interrupt_lost_runs(self) -> int:
        """Make every run whose execution is gone ready again, or park it. Returns how many."""
        running = await self._host.store.in_status(Status.RUNNING, 2**31)
        kept: list[Run] = []
        lost: list[Run] = []
        for run in running:
            if self._host.live_run(run.id) is None:
                (kept if self._host.is_executed_elsewhere(run) else lost).append(run)
        alone = len(lost) == 1
        await self._skip_positions(kept)
        await self.give_up([(run, self._loss(alone)) for run in lost])
        return len(lost)

    async def give_up(self, lost: Sequence[tuple[Run, Interrupt | Release]]) -> None:
        """Give runs that nobody executes any more to new executions, or park them."""
        host = self._host
        now = host.clock.now()
        for start in range(0, len(lost), _PAGE):
            written: list[tuple[Run, Ticket]] = []
            for run, loss in lost[start : start + _PAGE]:
                decision = decide(run, self._told_of_reboot(run, loss), now, host.policy)
                written.append((decision.run, host.store.submit(decision.change)))
            for run, ticket in written:
                if not await is_written(ticket):
                    continue  # it ended while it was being looked at
                host.announce(run, None, None)
                if run.status is Status.PARKED:
                    self.tell_parked(run)

    async def _skip_positions(self, kept: Sequence[Run]) -> None:
        """See to it that nothing said of runs that are executed elsewhere has a position in their
        stream log which readers know, and the disk has lost together with this machine: whatever
        becomes of them while their processes are still waited for."""
        submitted = [
            self._host.store.submit(skip_positions(run))
            for run in kept
            # Owners of other SDKs' runs name no start of a machine.
            if "/" in run.owner and not is_same_boot(run.owner, self._host.owner)
        ]
        for ticket in submitted:
            await is_written(ticket)

    def tell_parked(self, run: Run) -> None:
        """Log that a run stands still, and what can be done."""
        logger.error(
            "run %s (%s) took the process down %d times while it ran alone: parked. "
            "`durable-endpoints runs retry %s` tries it again",
            *(run.id, run.function_id, run.lone_interruptions, run.id),
        )

    def _loss(self, alone: bool) -> Interrupt | Release:
        """What happens to a run whose execution went with its process. Where handlers run
        elsewhere, none of them can have been the reason."""
        return Interrupt(alone) if self._host.executes_runs else Release("interrupted")

    def _told_of_reboot(self, run: Run, loss: Interrupt | Release) -> Interrupt | Release:
        """How a run is lost, if that may have been together with this machine."""
        here = self._host.owner
        if run.owner == here or is_same_boot(run.owner, here):
            return loss
        return Interrupt(isinstance(loss, Interrupt) and loss.alone, rebooted=True)

    def rescue_soon(self, run_id: str) -> None:
        """The execution of a run stopped because the store failed: release it once it works."""
        self._stranded.add(run_id)
        self._bell.ring()

    def will_rescue(self, run_id: str) -> bool:
        """Whether the run stands still until the store works again."""
        return run_id in self._stranded

    @property
    def is_behind(self) -> bool:
        """Whether there are events that may not have resolved what they resolve, or ends of runs
        that may not have had their consequences."""
        return self._settled < self._asked_to_settle

    def settle_soon(self) -> None:
        """There may be events that are not matched, and ended runs whose parents and children do
        not know, from before the start, or because the store failed: do it once it works."""
        self._asked_to_settle += 1
        self._bell.ring()

    async def run(self) -> None:
        """Serve until cancelled."""
        self._bell.listen()
        while True:
            await self._bell.wait()
            if self.is_behind:
                await self._try_again()
            pause = _FIRST_RETRY
            while self._stranded or self.is_behind:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_RETRY)
                await self._try_again()

    async def _try_again(self) -> None:
        self.is_failing = False
        try:
            for run_id in list(self._stranded):
                await self._rescue(run_id)
                self._stranded.discard(run_id)
            asked = self._asked_to_settle
            if self.is_behind:
                await self._host.events.settle_all()
                await self._host.children.settle_all()
                self._settled = asked
        except EngineError as error:
            self.is_failing = True
            logger.warning("the store still fails: %s", error)

    async def _rescue(self, run_id: str) -> None:
        run = await self._host.store.run(run_id)
        if run is None or self._host.live_run(run_id) is not None:
            return
        if run.status is Status.READY:
            self._host.announce(run, None, None)
            return
        if run.status is not Status.RUNNING:
            return
        entry = await self._host.store.entry(run_id)
        assert entry is not None
        try:
            decision = decide(
                with_exact_usage(entry.run, entry.memo),
                self._told_of_reboot(run, Release("interrupted")),
                self._host.clock.now(),
                self._host.policy,
            )
        except LostRunError:
            return
        if await is_written(self._host.store.submit(decision.change)):
            self._host.announce(decision.run, None, None)
