"""`VirtualEngine` over the wire: the application is that of a server, and what a test looks into is
the server. Both are in this process, and share the clock of the test.

A crash loses both, as that of a machine on which both run: so a test sees what it does with an
embedded engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Unpack

from durable_endpoints import testing
from durable_endpoints.engines.base import Executor, KeyHolder, Outcome, Session, StreamReader
from durable_endpoints.engines.remote.engine import RemoteEngine
from durable_endpoints.engines.remote.station import Station
from durable_endpoints.errors import EngineError, StorageError
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.streams import StreamStart
from durable_endpoints.settings import SettingsArguments
from durable_endpoints.testing.engine import _SECRET, VirtualEngine
from durable_endpoints.testing.standstill import WatchedReader
from durable_endpoints.unkept import UnkeptSession
from durable_endpoints_server.dispatcher import Nobody
from durable_endpoints_server.host import Host
from durable_endpoints_server.remote.hub import Hub, HubOptions
from tests.wire.pipes import ApplicationEnd, Line

_URL = "http://localhost:8288"
"""Of a server that nobody asks."""


class WireEngine(VirtualEngine):
    """An engine for one test, in which everything goes over the wire."""

    def __init__(
        self,
        *,
        auto_advance: bool = False,
        supervised: bool = False,
        **settings: Unpack[SettingsArguments],
    ) -> None:
        super().__init__(auto_advance=auto_advance, supervised=supervised, **settings)
        self._server: _Server | None = None
        self.application = _Application(self)

    # Lifecycle

    async def start(self, for_good: bool = False) -> None:
        if self._host is None:
            await asyncio.get_running_loop().run_in_executor(None, self._open)
        try:
            await self.serve()
        except BaseException:
            if not self._users:
                await self.stop()
            raise
        if for_good:
            self._users += 1
        self.application.executes_for(self)
        await self.application.start()

    async def serve(self) -> _Server:
        """The server, on an event loop that lives."""
        if self.host.loop is not None and self.host.loop.is_closed():
            self.host.dispatcher.place_by(lambda entry: Nobody.HERE)  # all connections went with it
        await self.host.attach()
        if self._server is None or not self._server.is_of(self.host):
            self._server = _Server(self.host)
        return self._server

    async def stop(self) -> None:
        if self._users <= 1 and self._host is not None:
            await self.application.stop()
        await super().stop()

    def begin_drain(self) -> None:
        self.application.begin_drain()
        super().begin_drain()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        if not self.application.is_running:
            return super().spawn(coroutine, name)
        return self.application.spawn(coroutine, name)

    def _lose(self) -> None:
        host = self._host
        if host is not None and (asyncio._get_running_loop() is not None or host.loop is None):
            former, self.application = self.application, _Application(self)
            former.vanish()
            self._change(former.cleared_away())
        super()._lose()

    @property
    def is_running(self) -> bool:
        """Whether a request on this event loop finds everything that it needs."""
        return super().is_running and self.application.is_here

    @property
    def is_quiet(self) -> bool:
        server = self._server
        is_silent = server is None or server.is_silent
        return super().is_quiet and is_silent and self.application.is_quiet

    # As an engine

    @property
    def is_healthy(self) -> bool:
        return self.application.is_healthy

    @property
    def max_steps(self) -> int:
        return self.application.max_steps

    @property
    def max_result(self) -> int:
        return self.application.max_result

    def add_executor(self, root_path: str, executor: Executor, is_whole: bool) -> None:
        self.application.add_executor(root_path, executor, is_whole)

    @property
    def is_admitting(self) -> bool:
        return self.application.is_admitting

    async def admit(self) -> None:
        await self.application.admit()

    def register(self, new: NewRun) -> Session:
        return self.application.register(new._replace(elapsed=0))

    def proceed_without(self, session: Session | None, error: EngineError) -> UnkeptSession | None:
        return self.application.proceed_without(session, error)

    async def key_holder(self, key: str) -> KeyHolder | None:
        return await self.application.key_holder(key)

    async def outcome(self, run_id: str, timeout: int) -> Outcome | None:
        asking = self.application.outcome(run_id, timeout)
        return await (asking if timeout <= 0 else self._watch.over(run_id, asking))

    def read_stream(self, run_id: str, start: StreamStart) -> StreamReader:
        return WatchedReader(self.application.read_stream(run_id, start), run_id, self._watch)

    async def stream_tail(self, run_id: str) -> int:
        return await self.application.stream_tail(run_id)

    async def until_idle(self, run_id: str) -> None:
        await self.application.until_idle(run_id)

    async def cancel(self, run_id: str, reason: str) -> bool:
        return await self.application.cancel(run_id, reason)

    def delivered(self, run_id: str) -> None:
        self.application.delivered(run_id)

    async def _publish(self, event: NewEvent) -> str:
        return await self._deliver(lambda: self.application.send_event(event))

    async def _signal(self, name: str, data: bytes) -> bool:
        return await self._deliver(lambda: self.application.send_signal(name, data))

    def track(self, method: str, route: str, status: int, elapsed: int, run_id: str | None) -> None:
        self.application.track(method, route, status, elapsed, run_id)

    async def dial(self) -> ApplicationEnd:
        """Open a connection to the server."""
        if self._host is None:
            await asyncio.Event().wait()  # one that has crashed answers nobody
        server = await self.serve()
        return server.connected()


def use_wire() -> None:
    """Let whoever imports `VirtualEngine` from now on get this one."""
    testing.VirtualEngine = testing.engine.VirtualEngine = WireEngine  # type: ignore[misc]


class _Application(RemoteEngine):
    """The application's side of the wire."""

    def __init__(self, engine: WireEngine) -> None:
        keys = {"signing_key": _SECRET, "sealing_key": _SECRET}
        super().__init__(replace(engine._settings, server_url=_URL, **keys), engine.dial)
        self._engine = engine

    def executes_for(self, engine: WireEngine) -> None:
        """The applications of the processes before are those of this one."""
        self._executors, self._default = engine._executors, engine._default

    def now(self) -> int:
        return self._engine.clock.now()

    def call_later(self, delay: int, callback: Callable[[], None]) -> Callable[[], None]:
        return self._engine.call_later(delay, callback)

    def add_executor(self, root_path: str, executor: Executor, is_whole: bool) -> None:
        super().add_executor(root_path, executor, is_whole)
        # The next process executes the same.
        self._engine._default = self._default

    @property
    def is_here(self) -> bool:
        """Whether it is connected from this event loop, if this is one."""
        return asyncio._get_running_loop() in (None, *self._stations)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being executed, or on its way."""
        return all(
            not station._sessions and not station.link._outgoing
            for loop, station in self._stations.items()
            if not loop.is_closed()
        )

    def vanish(self) -> None:
        """Let this process be lost: what it executes is unwound, and nothing is said any more."""
        for loop, station in self._stations.items():
            if loop is asyncio.get_running_loop():
                _vanish(station)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_vanish, station)

    async def cleared_away(self) -> None:
        """End what is left of it on this event loop."""
        station = self._stations.pop(asyncio.get_running_loop(), None)
        if station is not None:
            await station.close()


def _vanish(station: Station) -> None:
    station.link._is_closing = True
    station.link.is_open = False
    station.is_releasing = True
    for session in list(station._sessions.values()):
        session.stopped("lost")
    for number in list(station._questions._asked):
        station._questions.failed(number, StorageError("this process has crashed"))


class _Server:
    """The server's side, on one event loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._hub = Hub(host, HubOptions())
        # Time passes in leaps here, in which nobody can say that he lives.
        self._hub._leases.hear = lambda process: None  # type: ignore[method-assign]
        self._lines: list[Line] = []
        host.dispatcher.place_by(self._hub.place)

    def is_of(self, host: Host) -> bool:
        return self._host is host and self._loop is host.loop

    @property
    def is_silent(self) -> bool:
        return all(line.is_idle for line in self._lines)

    def connected(self) -> ApplicationEnd:
        """The application's end of a new connection."""
        line = Line(asyncio.get_running_loop(), self._loop)
        self._lines = [open for open in self._lines if not open.to_server.is_closed]
        self._lines.append(line)
        self._host.spawn_at_home(self._hub.serve(line.server), "serve a connection")
        return line.application
