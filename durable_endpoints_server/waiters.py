"""Who is told when a run ends: at once, and on whichever event loop they wait."""

from __future__ import annotations

import asyncio

from durable_endpoints_server.clock import Clock
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import Ended, Store
from durable_endpoints_server.tasks import is_here

_BUSY = (Status.RUNNING, Status.READY)


class Waiters:
    """Blocks callers until a run has ended (or is parked), for a time."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[str, list[asyncio.Future[Ended | None]]] = {}
        self._holding_on: dict[str, list[asyncio.Future[Ended | None]]] = {}
        """Parents that stay as long as their child is busy."""
        self._released = False

    async def wait(self, run_id: str, timeout: int) -> Ended | None:
        """Return how the run stands: at its end, when it is parked, or after `timeout` ms.

        None for an unknown run.
        """
        loop = asyncio.get_running_loop()
        # Listen before looking, so that an end between the two is not missed.
        future: asyncio.Future[Ended | None] = loop.create_future()
        listeners = self._waiting.setdefault(run_id, [])
        listeners.append(future)
        alarm = None
        try:
            ended = await self._store.ended(run_id)
            if ended is None or is_settled(ended) or timeout <= 0 or self._released:
                return ended
            alarm = self._clock.call_at(self._clock.now() + timeout, lambda: _resolve(future, None))
            return await future or await self._store.ended(run_id)
        finally:
            if alarm is not None:
                alarm.cancel()
            listeners.remove(future)
            if not listeners:
                self._waiting.pop(run_id, None)

    async def until_idle(self, run_id: str) -> None:
        """Return when the run does nothing, nor is about to: it waits, is parked or has ended."""
        future: asyncio.Future[Ended | None] = asyncio.get_running_loop().create_future()
        listeners = self._holding_on.setdefault(run_id, [])
        listeners.append(future)
        try:
            run = await self._store.run(run_id)
            if not self._released and (run is None or run.status in _BUSY):
                await future
        finally:
            listeners.remove(future)
            if not listeners:
                self._holding_on.pop(run_id, None)

    def tell_idle(self, run_id: str) -> None:
        """The run does nothing any more, for now."""
        for future in tuple(self._holding_on.get(run_id, ())):
            _resolve(future, None)

    def wait_for(self, run_id: str) -> bool:
        """Whether anybody does."""
        return run_id in self._waiting

    def tell(self, ended: Ended) -> None:
        """The run has ended. Its record is on disk."""
        for future in tuple(self._waiting.get(ended.run.id, ())):
            _resolve(future, ended)

    def look_again(self, run_id: str) -> None:
        """Something has happened to the run that whoever waits has to see."""
        for future in tuple(self._waiting.get(run_id, ())):
            _resolve(future, None)

    def release_all(self) -> None:
        """Let everybody go, with the run as it stands, and keep nobody from now on: this process is
        about to end."""
        self._released = True
        for run_id in list(self._holding_on):
            self.tell_idle(run_id)
        for futures in list(self._waiting.values()):
            for future in tuple(futures):
                _resolve(future, None)


def is_settled(ended: Ended) -> bool:
    """Whether there is nothing more to wait for."""
    return ended.run.status.is_final or ended.run.status is Status.PARKED


def _resolve(future: asyncio.Future[Ended | None], ended: Ended | None) -> None:
    def resolve() -> None:
        if not future.done():
            future.set_result(ended)

    loop = future.get_loop()
    try:
        if is_here(loop):
            resolve()
        else:
            loop.call_soon_threadsafe(resolve)
    except RuntimeError:
        pass  # that loop is closed
