"""The dispatcher: gives runs that are ready a new execution, some at a time.

A run in quarantine is executed with nothing beside it: the dispatcher waits for a quiet moment,
starts no other run meanwhile, and asks new requests to wait a little.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import (
    Claim,
    Decision,
    claim_at_once,
    decide,
    in_quarantine,
)
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry, Ticket
from durable_endpoints_server.tasks import Bell, is_here

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

Executor = Callable[[LiveRun, Entry], Awaitable[None]]
"""Executes a run that was claimed, and returns when this execution has left it."""

CanExecute = Callable[[Entry], bool]
"""Whether an application is there that a run belongs to."""


class Place(NamedTuple):
    """Where a run is executed."""

    owner: str
    """The name of the process, in the run's lease."""
    executor: Executor


class Nobody(Enum):
    """Why a run is not executed now."""

    HERE = "no process is there of the application that it belongs to"
    FREE = "all of them have enough to do"


class _Claimed(NamedTuple):
    """A run that is claimed by a write which is under way."""

    live: LiveRun
    entry: Entry
    place: Place


Placement = Callable[[Entry], Place | Nobody]
"""Finds a place for a run."""


_Line = tuple[str, str]
"""The application and the root path of runs that wait for the same processes."""

_PAGE = 1_000
_AFTER_FAILURE = 1.0
"""Seconds until a store that could not be read is asked again."""
_RESCAN = 10.0
"""Seconds after which the store is asked for ready runs, even if nobody called."""
_PATIENCE = 60.0
"""Seconds that a run in quarantine waits for a quiet moment before it goes on without one."""
_ADMISSION = 5.0
"""Seconds that a new request is held back at the most while a run is executed alone."""


class Dispatcher:
    """Claims ready runs and executes them, at most `capacity` at once, and if it `isolates`, those
    in quarantine alone."""

    def __init__(self, host: Host, capacity: int, isolates: bool = True) -> None:
        self._host = host
        self._capacity = capacity
        self._isolates = isolates
        self._place: Placement | None = None
        self._queue: deque[str] = deque()
        self._queued: set[str] = set()
        self._quarantine: deque[str] = deque()
        self._unclaimed: set[str] = set()
        """Runs for which nobody was here."""
        self._held: dict[_Line, deque[str]] = {}
        """Runs for which nobody was free. They count as queued."""
        self._called: dict[str, str] = {}
        """Runs that were held, and for which room was made, with their application: one that does
        not take it leaves it to the next."""
        self._stuck: set[str] = set()
        """Applications with runs of either kind."""
        self._more = False
        self._running = 0
        self._bell = Bell()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where `run` serves."""
        self.alone = False
        """Whether a run in quarantine is being executed, or waits for its quiet moment."""

    def set_executor(self, executor: Executor, can_execute: CanExecute) -> None:
        """Runs may be executed in this process from now on, those that `can_execute` knows."""
        here = Place(self._host.owner, executor)
        self.place_by(lambda entry: here if can_execute(entry) else Nobody.HERE)

    def place_by(self, placement: Placement) -> None:
        """Runs may be executed from now on, where `placement` says."""
        self._place = placement
        self.look_again()

    def look_again(self) -> None:
        """There may be a place for runs that had none."""
        self._unclaimed.clear()
        for held in self._held.values():
            self._queue.extend(held)
        self._held.clear()
        self._stuck.clear()
        self._more = True
        self.nudge()

    def make_room(self, app: str) -> None:
        """One more run of an application may be executed than before."""
        for line in [line for line in self._held if line[0] == app]:
            held = self._held[line]
            run_id = held.popleft()
            self._called[run_id] = app
            self._queue.appendleft(run_id)
            if not held:
                del self._held[line]
                self._more = True  # more of them may be in the store than are held
            self.nudge()

    def wake(self, run: Run) -> None:
        """`run` is ready."""
        if run.id in self._queued:
            return
        if len(self._queue) + len(self._quarantine) >= _PAGE:
            self._more = True  # it stays in the store, and is fetched when there is room
        else:
            self._queued.add(run.id)
            quarantine = self._isolates and in_quarantine(run, self._host.policy)
            (self._quarantine if quarantine else self._queue).append(run.id)
        if is_here(self._loop):
            self._start_queued()
        if self._queue or self._quarantine or self._more:
            self.nudge()

    def claim(self, entry: Entry, resolved: Decision) -> Ticket | None:
        """Submit what makes a run ready, and its claim with it, and execute it once that is on
        disk. `entry` is as it is then. None, and nothing of it, if others go first or it has no
        place."""
        goes_first = self._may_start and is_here(self._loop) and not (self._queue or self.alone)
        is_quiet = not self._isolates or not (
            self._quarantine or in_quarantine(entry.run, self._host.policy)
        )
        if not (goes_first and is_quiet and self._running < self._capacity):
            return None
        assert self._place is not None
        place = self._place(entry)
        if isinstance(place, Nobody):
            return None
        host, run_id, claim = self._host, entry.run.id, Claim(place.owner, None)
        decision = claim_at_once(resolved, claim, host.clock.now(), host.policy)
        live = host.adopt(decision, entry.memo, entry.stream)
        self._running += 1
        claimed = _Claimed(live, entry, place)
        host.tasks.spawn(self._execute(run_id, claimed), f"execute {run_id}")
        return live.ticket

    @property
    def is_busy(self) -> bool:
        """Whether there is something to start, or being executed."""
        return bool(self._running or self._queued)

    def nudge(self) -> None:
        """Look again: there is something to start, or room to start it."""
        self._bell.ring()

    async def admit(self) -> None:
        """Hold a new request back while a run is executed alone, but not for long."""
        for _ in range(round(_ADMISSION / 0.05)):
            if not self.alone:
                return
            await asyncio.sleep(0.05)

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        self._bell.listen()
        # Whatever was under way on an event loop before this one went with it.
        self._queue.clear()
        self._quarantine.clear()
        self._queued.clear()
        self._held.clear()
        self._called.clear()
        self._stuck.clear()
        self._running, self.alone = 0, False
        self._loop = loop
        while True:
            # Wakes are immediate; looking into the store now and then is the safety net.
            self._more = True
            rescan = loop.call_later(_RESCAN, self._bell.ring)
            while rescan.when() > loop.time():
                if self._may_start:
                    await self._start_what_fits()
                await self._bell.wait()

    @property
    def _may_start(self) -> bool:
        return self._place is not None and not self._host.draining

    async def _start_what_fits(self) -> None:
        if self._more and not self._queue:
            await self._fetch()
        self._start_queued()
        if self._quarantine and not self._queue and not self.alone:
            self.alone = True
            self._host.tasks.spawn(
                self._run_alone(self._quarantine.popleft()), "execute a run in quarantine"
            )

    def _start_queued(self) -> None:
        while self._may_start and self._queue and self._running < self._capacity and not self.alone:
            self._start(self._queue.popleft())

    async def _fetch(self) -> None:
        self._more = False  # who wants another look while the store is asked gets one
        try:
            full = [app for (app, _), held in self._held.items() if len(held) >= _PAGE]
            new, may_be_more = await self._fetch_without(full)
            if not new and may_be_more:
                # A page of runs that have no place must not hide those of other applications.
                new, may_be_more = await self._fetch_without(self._stuck)
        except EngineError as error:
            self._more = True
            logger.error("runs that are ready could not be read: %s", error)
            asyncio.get_running_loop().call_later(_AFTER_FAILURE, self.nudge)
            return
        if new and may_be_more:
            self._more = True
        for run in new:
            self.wake(run)

    async def _fetch_without(self, apps: Collection[str]) -> tuple[list[Run], bool]:
        """Runs that are not known here, and whether there may be more."""
        ready = await self._host.store.in_status(Status.READY, _PAGE, apps)
        new = [
            run
            for run in ready
            if run.id not in self._unclaimed
            and run.id not in self._queued
            and self._host.live_run(run.id) is None
        ]
        return new, len(ready) == _PAGE

    def _start(self, run_id: str) -> None:
        self._running += 1
        self._host.tasks.spawn(self._execute(run_id), f"execute {run_id}")

    async def _run_alone(self, run_id: str) -> None:
        try:
            for _ in range(round(_PATIENCE / 0.05)):
                if not self._host.live and not self._running:
                    break
                await asyncio.sleep(0.05)
            self._running += 1
            await self._execute(run_id)
        finally:
            self.alone = False
            self.nudge()

    async def _execute(self, run_id: str, claimed: _Claimed | None = None) -> None:
        find_place = self._place
        assert find_place is not None
        # From here on a new wake counts: it may be about a change that this read does not see.
        self._queued.discard(run_id)
        leaves_room = self._called.pop(run_id, None)
        try:
            if claimed is not None and not await self._execute_claimed(claimed):
                return
            while (entry := await self._host.store.entry(run_id)) is not None:
                if self._host.draining or self._host.live_run(run_id) is not None:
                    return
                if entry.run.status is not Status.READY:
                    return
                place, leaves_room = find_place(entry), None
                if isinstance(place, Nobody):
                    self._put_off(entry, place)
                    return
                live = self._claim(entry, place.owner)
                if (entry.run.ready_at or 0) <= self._host.attached_at:
                    # It may have ended the last process. Should it end this one before its first
                    # body begins, that has to be on disk.
                    await live.written()
                await place.executor(live, entry)
                if not live.was_refused:
                    return
        except EngineError as error:
            logger.error("run %s could not be executed: %s", run_id, error)
            self._host.recovery.rescue_soon(run_id)
        finally:
            self._running -= 1
            if leaves_room is not None:
                self.make_room(leaves_room)
            self.nudge()

    async def _execute_claimed(self, claimed: _Claimed) -> bool:
        """Execute a run that was claimed ahead. Whether somebody else was faster, so that it has to
        be looked at again."""
        live, entry, place = claimed
        try:
            await live.acknowledge()  # else its handler might see what never comes to be
        except LostRunError:
            pass
        except EngineError:
            await live.abandon()
        await place.executor(live, entry)
        return live.was_refused

    def _put_off(self, entry: Entry, why: Nobody) -> None:
        run_id = entry.run.id
        if entry.app not in self._stuck:
            self._stuck.add(entry.app)
            self._more = True  # its runs may have hidden others
        if why is Nobody.HERE:
            self._unclaimed.add(run_id)
            return
        held = self._held.setdefault((entry.app, entry.root_path), deque())
        if run_id not in self._queued and len(held) < _PAGE:
            self._queued.add(run_id)
            held.append(run_id)

    def _claim(self, entry: Entry, owner: str) -> LiveRun:
        """Take the lease. No new step body starts before that is written."""
        host = self._host
        decision = decide(entry.run, Claim(owner, None), host.clock.now(), host.policy)
        return host.adopt(decision, entry.memo, entry.stream)
