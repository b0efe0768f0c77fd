"""Timers: sleeps, retries, timeouts of waits and deadlines of runs that nobody executes.

A timer is a row (`steps.due`, `runs.deadline`), not an object: a million sleepers cost disk, not
memory. This service knows one number, the earliest instant, and asks the store who is due then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.ops import FROM_OUTSIDE, StepKind
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import Expire, Resolve, resolve_all
from durable_endpoints_server.store.base import DueStep, Ticket, is_written
from durable_endpoints_server.tasks import Bell

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

_PAGE = 100
"""Rows that are fired in one commit: about as many as are executed at once. Where thousands are due
together, the first of them go on while the next are fired."""
_AFTER_FAILURE = 1_000
"""Milliseconds until the store is asked again after it failed."""


class Timers:
    """Fires what is due, in batches: all that is due together is resolved in one commit."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._next: int | None = None
        self._bell = Bell()

    def arm(self, due: int) -> None:
        """Something will be due at `due`."""
        if self._next is None or due < self._next:
            self._bell.ring()

    async def run(self) -> None:
        """Serve until cancelled."""
        self._bell.listen()
        while True:
            # Whatever is armed while the store is being asked must ring.
            self._next = None
            due = await self._fire_what_is_due()
            alarm = self._host.clock.call_at(due, self._bell.ring) if due is not None else None
            self._next = due
            try:
                await self._bell.wait()
            finally:
                if alarm is not None:
                    alarm.cancel()

    async def _fire_what_is_due(self) -> int | None:
        """Fire, and return the next instant at which there will be something to do."""
        try:
            while True:
                now = self._host.clock.elapsed()
                expired = await self._host.store.due_deadlines(now, _PAGE)
                await self._expire(expired)
                due = await self._host.store.due_steps(now, _PAGE)
                others = [step for step in due if step.step.kind not in FROM_OUTSIDE]
                if len(others) < len(due):
                    await self._resolve(others)
                    # What was received before the deadline beats the timeout.
                    await self._host.catch_up()
                    due = await self._host.store.due_steps(now, _PAGE)
                await self._resolve(due)
                if not expired and not due:
                    return await self._host.store.next_due()
        except StorageError as error:
            logger.error("timers stand still: %s", error)
            return self._host.clock.now() + _AFTER_FAILURE

    async def _expire(self, runs: list[Run]) -> None:
        await asyncio.gather(*(self._host.command_idle(run, Expire()) for run in runs))

    async def _resolve(self, due: list[DueStep]) -> None:
        kept = await self._look_back(due)
        now = self._host.clock.now()
        runs = {run.id: run for run, _ in due}
        resolutions: dict[str, list[Resolve]] = {}
        for run, step in due:
            resolution = kept.get((run.id, step.id.hash), Resolve(step))
            resolutions.setdefault(run.id, []).append(resolution)
        written: list[tuple[Run, Ticket]] = []
        for run_id, all_of_it in resolutions.items():
            after, change = resolve_all(runs[run_id], all_of_it, now, self._host.policy)
            written.append((after, self._host.store.submit(change)))
        for after, ticket in written:
            if await is_written(ticket):  # else its timers are looked at again
                self._host.announce(after, None, None)

    async def _look_back(self, due: list[DueStep]) -> dict[tuple[str, str], Resolve]:
        """What waits get that time out, of events that came before them. A run that suspended has
        looked back; one that is ready may have lost its execution before that."""
        found: dict[tuple[str, str], Resolve] = {}
        used: dict[str, set[str]] = {}
        for run, step in due:
            if run.status is Status.READY and step.kind in (StepKind.WAIT, StepKind.WAIT_ANY):
                taken = used.setdefault(run.id, set())
                kept = await self._host.events.kept_for(run, step, taken.__contains__)
                if kept is not None:
                    found[run.id, step.id.hash] = Resolve(step, *kept)
                    taken.add(kept[1])
        return found
