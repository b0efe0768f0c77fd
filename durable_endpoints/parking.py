"""When nothing in an execution can go on: what runs, what waits, and for how long nothing happened.

Bodies that run are counted. Whatever must wait *parks*: on a future, under the id of what it waits
for. When nothing runs and something is parked, the execution shall depart; but the code that goes
on after a result needs some turns of the event loop until it begins its next step, so first that
many turns must go by in which nothing happens.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol

from durable_endpoints.memo import PATIENCE, Memo
from durable_endpoints.protocol.ops import StepRecord

_MAIN_PATIENCE = 4
"""Turns to wait before departing when the handler itself waits: time for a task that it has just
created to begin its step."""


class Parked(NamedTuple):
    """Something that waits."""

    future: asyncio.Future[StepRecord]
    task: asyncio.Task[Any] | None
    is_direct: bool
    """Whether the handler itself waits here, rather than a task that it started."""
    for_handover: bool
    """Whether this is a new step that a server about to end does not start any more."""


class MayDepart(Protocol):
    """An execution, as far as it matters here. It is handed in with each call, and not kept: the
    two would keep each other alive."""

    memo: Memo

    @property
    def has_handler_ended(self) -> bool: ...

    def nothing_goes_on(self, handover: bool) -> None:
        """Everything waits, or (`handover`) would begin something new as the server ends."""
        ...


class Parking:
    """What runs and what waits in one execution, on one event loop."""

    __slots__ = ("_activity", "_loop", "_parked", "running")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.running = 0
        """How many bodies run."""
        self._loop = loop
        self._activity = 0
        """Grows with everything that happens."""
        self._parked: dict[str, Parked] = {}

    def begin(self) -> None:
        """Something runs from now on."""
        self.running += 1
        self._activity += 1

    def end(self, execution: MayDepart) -> None:
        """It runs no longer."""
        self.running -= 1
        if self._parked:
            self.stir(execution)

    def stir(self, execution: MayDepart) -> None:
        """Something went on: whoever is parked may not be all there is."""
        if self._parked:
            self._activity += 1
            self._settle(execution, PATIENCE)

    async def park(
        self,
        execution: MayDepart,
        key: str,
        main: asyncio.Task[Any] | None,
        in_thread: bool,
        for_handover: bool = False,
    ) -> StepRecord:
        """Wait for what has the id `key`. `main` is the handler's task, unless that is
        `in_thread`."""
        task = asyncio.current_task()
        future: asyncio.Future[StepRecord] = self._loop.create_future()
        key = key or f"handover {id(future)}"
        self._parked[key] = Parked(future, task, in_thread or task is main, for_handover)
        self._activity += 1
        self._settle(execution, _MAIN_PATIENCE if task is main else PATIENCE)
        try:
            return await future
        finally:
            del self._parked[key]

    def resolve(self, step: StepRecord) -> bool:
        """Let whoever waits for `step` go on. False if nobody does."""
        parked = self._parked.get(step.id.hash)
        if parked is None:
            return False
        if not parked.future.done():
            parked.future.set_result(step)
        return True

    @property
    def waiting(self) -> list[Parked]:
        """What waits, and has not been told to go on."""
        return [parked for parked in self._parked.values() if not parked.future.done()]

    @property
    def tasks(self) -> set[asyncio.Task[Any] | None]:
        """The tasks that are parked."""
        return {parked.task for parked in self._parked.values()}

    def _settle(self, execution: MayDepart, turns: int) -> None:
        self._loop.call_soon(self._check, execution, self._activity, turns)

    def _check(self, execution: MayDepart, activity: int, turns: int) -> None:
        """Depart once nothing has happened for some turns, nothing runs, and something waits."""
        if activity != self._activity or self.running or execution.has_handler_ended:
            return
        if turns or execution.memo.is_handing_out:
            self._loop.call_soon(self._check, execution, activity, max(turns - 1, 0))
            return
        if waiting := self.waiting:
            execution.nothing_goes_on(any(parked.for_handover for parked in waiting))
