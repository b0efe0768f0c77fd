"""Signals: each is for the one run that waits for it now, and nothing is kept of it otherwise.

A wait for a signal is a wait for an event whose name no event can have. Whoever sends one is told
whether a run has taken it; so whatever is on its way (a wait to the disk, an execution out of its
run) is waited for before anything is said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import SignalTaken, StepRecord, WaitForEvent
from durable_endpoints_server.engine.model import Event, Match, Status
from durable_endpoints_server.engine.transitions import Resolve, decide
from durable_endpoints_server.store.base import is_written

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host
    from durable_endpoints_server.live import LiveRun

_PATIENCE = 60.0
"""Seconds to wait for a run whose execution is gone to be idle in the store."""
_PAUSE = 0.01
"""Seconds before a run that is just being changed is looked at again."""


class Reservation:
    """The right to be the next to wait for a signal. To be given back."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id


class Signals:
    """Sends signals, and sees to it that one run at a time waits for each."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reserved: dict[str, Reservation] = {}
        """By the name of the event: who is about to wait, until that is on disk."""
        self._sending: set[object] = set()

    @property
    def is_busy(self) -> bool:
        """Whether some signal is on its way."""
        return bool(self._sending)

    def restart(self) -> None:
        """Whatever was under way on an event loop before this one went with it."""
        self._reserved.clear()
        self._sending.clear()

    async def catch_up(self) -> None:
        """Return once every signal that was sent until now has been taken, or not."""
        waiting = set(self._sending)
        while waiting & self._sending:  # noqa: ASYNC110 (waited for on any event loop)
            await asyncio.sleep(_PAUSE)

    # Sending

    async def send(self, name: str, data: bytes) -> bool:
        """Give the signal to the run that waits for it: whether there is one. See `deliver`."""
        return await self.deliver(name, data) is not None

    async def deliver(self, name: str, data: bytes) -> str | None:
        """Give the signal to the run that waits for it. Returns that one's id once it is on disk,
        and None if no run waits. A caller that gives up does not stop it.

        Raises `StorageError` if neither can be said.
        """
        received_at = self._host.clock.now()
        return await self._host.at_home(self._send(name, data, received_at))

    async def _send(self, name: str, data: bytes, received_at: int) -> str | None:
        head = orjson.dumps({"name": name, "ts": received_at})
        value = head[:-1] + b',"data":' + data + b"}"
        giving = self._give(SIGNAL + name, value, received_at)
        return await asyncio.shield(self._host.tasks.spawn(giving, f"send signal {name}"))

    async def _give(self, event: str, value: bytes, received_at: int) -> str | None:
        with self._noted():
            give_up_at = time.monotonic() + _PATIENCE
            while True:
                while event in self._reserved:  # noqa: ASYNC110 (on any event loop)
                    await asyncio.sleep(_PAUSE)
                waiter = await self._waiter(event, received_at)
                if waiter is None:
                    return None
                if await self._resolve(waiter, value):
                    return waiter.run.id
                if time.monotonic() > give_up_at:
                    raise StorageError(f"run {waiter.run.id}, which waits for it, is stuck")

    @contextmanager
    def _noted(self) -> Iterator[None]:
        token = object()
        self._sending.add(token)
        try:
            yield
        finally:
            self._sending.discard(token)

    # Waiting

    async def open(
        self, live: LiveRun, op: WaitForEvent, replace: bool
    ) -> StepRecord | SignalTaken:
        """Record a wait for a signal in an execution, unless another run waits for it, which is not
        to be replaced: then that one is told.

        Raises as `LiveRun.record` does, and `StorageError`.
        """
        event = op.alternatives[0].event
        reservation = await self._reserve(event, live.id, replace)
        if isinstance(reservation, SignalTaken):
            return reservation
        try:
            step = live.record(op)
        except BaseException:
            self._release(event, reservation)
            raise
        live.spawn(self._release_once_written(event, reservation, live), f"wait for {event}")
        return step

    async def _release_once_written(
        self, event: str, reservation: Reservation, live: LiveRun
    ) -> None:
        try:
            await live.written()
        finally:
            self._release(event, reservation)

    async def _reserve(self, event: str, run_id: str, replace: bool) -> Reservation | SignalTaken:
        """Let a run be the one that waits for `event`. Whoever waited before goes on without the
        signal, if the run shall `replace` it; else it stays, and is told."""
        mine = Reservation(run_id)
        while (other := self._reserved.setdefault(event, mine)) is not mine:
            if not replace:
                return SignalTaken(other.run_id)
            await asyncio.sleep(_PAUSE)
        try:
            taken = await self._make_room(event, replace)
        except BaseException:
            self._release(event, mine)
            raise
        if taken is not None:
            self._release(event, mine)
            return taken
        return mine

    def _release(self, event: str, reservation: Reservation) -> None:
        """The wait is on disk, or will not be."""
        if self._reserved.get(event) is reservation:
            del self._reserved[event]

    async def _make_room(self, event: str, replace: bool) -> SignalTaken | None:
        while (waiter := await self._waiter(event, self._host.clock.now())) is not None:
            if replace:
                await self._resolve(waiter, b"null")
                continue
            live = self._host.live_run(waiter.run.id)
            if live is None or live.has_failed or live.awaited(waiter.step.id.hash):
                return SignalTaken(waiter.run.id)
            await live.written()  # it has been resolved, which is on its way to the disk
            await asyncio.sleep(_PAUSE)
        return None

    async def _waiter(self, event: str, now: int) -> Match | None:
        """The wait on disk that `event` would end at the instant `now`."""
        found = await self._host.store.arrival(Event("", event, b"null", now, now))
        return next((match for match in found.matches if match.wait.deadline > now), None)

    async def _resolve(self, waiter: Match, value: bytes) -> bool:
        """Whether the wait has got `value`, and that is on disk. If not, look again."""
        host, run = self._host, waiter.run
        live = host.live_run(run.id)
        if live is not None:
            if await live.take(waiter.step.id.hash, value):
                return True
            await live.written()
            if live.has_failed:
                raise StorageError(f"run {run.id}, which waits for it, could not be written")
        elif run.status is not Status.RUNNING:
            command = Resolve(waiter.step, value)
            decision = decide(run, command, host.clock.now(), host.policy)
            if not await is_written(host.store.submit(decision.change)):
                return False
            host.announce(decision.run, None, None)
            return True
        elif host.recovery.will_rescue(run.id):
            raise StorageError(f"run {run.id}, which waits for it, could not be written")
        await asyncio.sleep(_PAUSE)
        return False
