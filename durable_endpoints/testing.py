"""Testing durable endpoints: an engine in memory, whose clock stands still until you move it.

engine = VirtualEngine()
app.add_middleware(DurableEndpointsMiddleware, engine=engine)

async with engine.client(app) as client:
    answer = asyncio.create_task(client.get("/remind", follow_redirects=True))
    await engine.advance("24h")
    assert (await answer).status_code == 200
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import httpx
from starlette.types import ASGIApp

from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.engines.base import Session
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.errors import StorageError
from durable_endpoints.events import new_event
from durable_endpoints.protocol.durations import Duration, parse_duration
from durable_endpoints.protocol.ops import StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.sealing import Keyring
from durable_endpoints.settings import Settings
from durable_endpoints_server.clock import Alarm, SystemClock
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.store.base import Lane, Store, Ticket
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.waiters import Waiters

__all__ = ["AppTransport", "VirtualClock", "VirtualEngine"]

_EPOCH = 1_767_225_600_000
"""2026-01-01T00:00:00Z in epoch milliseconds: where virtual time begins."""
_SECRET = "a key for tests, and for nothing else"


class VirtualClock:
    """Time that passes when it is told to."""

    def __init__(self, start: int = _EPOCH) -> None:
        self._now = start
        self._alarms: list[tuple[int, int, _VirtualAlarm]] = []
        self._numbers = count()

    def now(self) -> int:
        return self._now

    def elapsed(self) -> int:
        return self._now

    def call_at(self, instant: int, callback: Callable[[], None]) -> Alarm:
        alarm = _VirtualAlarm(callback, asyncio.get_running_loop())
        heapq.heappush(self._alarms, (instant, next(self._numbers), alarm))
        if instant <= self._now:
            alarm.loop.call_soon(self._ring)
        return alarm

    def next_alarm(self) -> int | None:
        """The next instant at which something is to happen."""
        while self._alarms and self._alarms[0][2].is_cancelled:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def move_to(self, instant: int) -> None:
        """Let time pass until `instant`, and ring what was set for it."""
        self._now = max(self._now, instant)
        self._ring()

    def _ring(self) -> None:
        while (instant := self.next_alarm()) is not None and instant <= self._now:
            alarm = heapq.heappop(self._alarms)[2]
            alarm.is_cancelled = True
            if not alarm.loop.is_closed():
                alarm.callback()


class _VirtualAlarm:
    def __init__(self, callback: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self.callback = callback
        self.loop = loop
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class VirtualEngine(EmbeddedEngine):
    """The embedded engine with a store in memory and a clock of its own.

    `settings` are those of the middleware (`retry_base="1s"`, `max_steps=100` …), but for those of
    the database. Use one engine per test.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(Settings.load(settings, environ={}))
        self.clock = VirtualClock()
        self.store: Store = MemoryStore()
        self._keyring = Keyring([_SECRET], [_SECRET])

    def _open(self) -> None:
        if self._host is None:
            self._host = host = self._new_host(self.store, self.clock)
            # Clients are real, and so is the time for which they wait at `/wait`.
            host.waiters = Waiters(self.store, SystemClock())

    def register(self, new: NewRun) -> Session:
        # A request takes no virtual time, however long it takes on this machine.
        return super().register(new._replace(elapsed=0))

    @asynccontextmanager
    async def client(self, app: ASGIApp, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        """A client for `app`, and the engine running as long as it is open.

        `options` are those of `httpx.AsyncClient`. An exception that the application would only
        log is not raised in the test. The application's lifespan is not run.
        """
        options = {"base_url": "http://testserver", "timeout": 30, **options}
        try:
            self._users = 1
            await self.start()
            async with httpx.AsyncClient(transport=AppTransport(app), **options) as client:
                yield client
        finally:
            if self.is_running:
                await self.stop()

    async def advance(self, duration: Duration) -> None:
        """Let virtual time pass, alarm by alarm, and let whatever happens then happen."""
        await self.settle()
        end = self.clock.now() + parse_duration(duration)
        while (instant := self.clock.next_alarm()) is not None and instant <= end:
            self.clock.move_to(instant)
            await self.settle()
        self.clock.move_to(end)
        await self.settle()

    async def settle(self, patience: float = 5.0) -> None:
        """Return when nothing goes on any more: every run waits, or has ended.

        A run that does real input and output is waited for, up to `patience` seconds.
        """
        deadline = asyncio.get_running_loop().time() + patience
        quiet = 0
        while quiet < 3 and asyncio.get_running_loop().time() < deadline:
            for _ in range(60):
                await asyncio.sleep(0)
            host = self._host
            if host is None or host.is_quiet:
                quiet += 1
            else:
                quiet = 0
                await asyncio.sleep(0.001)

    async def send_event_now(self, name: str, data: Any = None, **options: Any) -> str:
        """Send an event, and let what it wakes run. That takes a millisecond of virtual time, so
        that a request which begins afterwards has missed it."""
        event = new_event(name, data, options.get("id"), options.get("ts"))
        sent = await self.send_event(event)
        await self.settle()
        self.clock.move_to(self.clock.now() + 1)
        return sent

    async def crash(self) -> None:
        """Lose the process: nothing is released or written any more. The next request, or the
        next `start`, is a new process on the same store."""
        if self._host is not None:
            host, self._host = self._host, None
            host.store = _Gone()
            await host.stop()

    async def run(self, run_id: str) -> Run:
        """A run as it stands in the store. Raises `KeyError` for an unknown one."""
        run = await self.store.run(run_id)
        if run is None:
            raise KeyError(run_id)
        return run

    async def memo(self, run_id: str) -> dict[str, StepRecord]:
        """What is remembered of a run's steps, by their names."""
        entry = await self.store.entry(run_id)
        if entry is None:
            raise KeyError(run_id)
        return {str(step.id): step for step in entry.memo}


class _Gone(MemoryStore):
    """The store as a process sees it that has crashed."""

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        raise StorageError("this process has crashed")
