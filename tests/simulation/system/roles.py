"""The programs that run in simulated processes: an application, embedded or of a server, and the
server. Each can be killed, held back, or told to end, and is started again by its supervisor."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.engines.remote.dialing import LostConnectionError
from durable_endpoints.engines.remote.engine import RemoteEngine
from durable_endpoints.errors import EngineError
from durable_endpoints.sealing import Keyring
from durable_endpoints.settings import Settings
from durable_endpoints.testing.lifespan import running
from durable_endpoints_server.host import Host
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Store
from tests.simulation.programs import Scenario
from tests.simulation.system.disk import Disk, store_of
from tests.simulation.system.handlers import Witness, application
from tests.simulation.system.loop import Machine, Process, SimulatedLoop
from tests.simulation.system.network import Line, Network, Socket, delay

_SECRET = "a key for simulations, and for nothing else"
KEYRING = Keyring([_SECRET], [_SECRET])
LEASE = 120.0
"""Seconds for which an application may be silent."""
_KEPT = "30d"
_SELDOM = 86_400.0
"""Seconds between two looks of services that look now and then."""
_LONGEST_DRAIN = 15.0
"""Seconds after which whoever supervises a process that shall end kills it."""


class Role:
    """One program on one machine, in one process at a time."""

    def __init__(self, name: str, loop: SimulatedLoop, network: Network, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self.process: Process | None = None
        self.is_serving = False
        """Whether it takes connections."""
        self._loop = loop
        self._network = network
        self._random = network.random
        self._leaving = asyncio.Event()
        self._boots = 0

    def boot(self) -> None:
        """Start a new process, unless there is one."""
        if self.process is None:
            self._boots += 1
            self.process = Process(self._loop, f"{self.name} {self._boots}", self.machine)
            self.process.spawn(self._run(self.process))

    async def _run(self, process: Process) -> None:
        try:
            await self._live(process)
        except EngineError:
            pass  # it could not start, because of its disk
        self.kill(supervised(self._random))

    def kill(self, restart_after: float) -> None:
        """As SIGKILL: nothing is unwound. Its supervisor starts it again after some seconds."""
        process, self.process = self.process, None
        self.is_serving = False
        if process is not None:
            process.kill()
            self._network.died(process)
            self._loop.outside.call_later(restart_after, self.boot)

    def hold(self, seconds: float) -> None:
        """As SIGSTOP, and SIGCONT after some seconds."""
        process = self.process
        if process is not None and not process.is_held:
            process.hold()
            self._loop.outside.call_later(seconds, process.go_on)

    def terminate(self) -> None:
        """As SIGTERM, and a new process at once when it has ended."""
        process = self.process
        if process is not None and self.is_serving:
            self.is_serving = False
            process.spawn(self._end(process))
            self._loop.outside.call_later(_LONGEST_DRAIN, self._kill_if, process)

    def _kill_if(self, process: Process) -> None:
        if self.process is process:
            self.kill(0.1 * self._random.random())

    async def _live(self, process: Process) -> None:
        raise NotImplementedError

    async def _end(self, process: Process) -> None:
        raise NotImplementedError

    @property
    def host(self) -> Host | None:
        """The engine, if it is in this process."""
        return None


class App(Role):
    """An application."""

    def __init__(self, *where: Any, scenario: Scenario, witness: Witness) -> None:
        super().__init__(*where)
        self.app: Any = None
        self.engine: EmbeddedEngine | RemoteEngine
        self._scenario = scenario
        self._witness = witness

    def _new_engine(self, process: Process) -> EmbeddedEngine | RemoteEngine:
        raise NotImplementedError

    async def _live(self, process: Process) -> None:
        self._leaving = asyncio.Event()
        self.engine = self._new_engine(process)
        self.app = application(self._scenario, self.engine, self._witness)
        async with running(self.app):
            self.is_serving = True
            await self._leaving.wait()

    async def _end(self, process: Process) -> None:
        """As a server does: no new connections, those that are open end, then the lifespan."""
        for begin_drain in process.on_sigterm:
            begin_drain()
        while self._network.is_connected(process):
            await asyncio.sleep(0.05)
        self._leaving.set()


class EmbeddedApp(App):
    """An application with the engine in its process."""

    def __init__(self, *where: Any, disk: Disk, **options: Any) -> None:
        super().__init__(*where, **options)
        self.disk = disk

    def _new_engine(self, process: Process) -> EmbeddedEngine:
        return _Embedded(store_of(self.disk, process))

    @property
    def host(self) -> Host | None:
        if self.is_serving and isinstance(self.engine, _Embedded):
            return self.engine.host
        return None


class _Embedded(EmbeddedEngine):
    """The embedded engine on a simulated disk."""

    def __init__(self, store: Store) -> None:
        super().__init__(Settings.load({"retention": _KEPT, "event_retention": _KEPT}, environ={}))
        self._store = store

    def _open(self) -> None:
        self._host = self._new_host(self._store)
        self._keyring = KEYRING
        look_seldom(self._host)


class ConnectedApp(App):
    """An application of a server."""

    def __init__(self, *where: Any, server: CompanionServer, **options: Any) -> None:
        super().__init__(*where, **options)
        self._server = server

    def _new_engine(self, process: Process) -> RemoteEngine:
        given = {
            "server_url": "http://server",
            "signing_key": _SECRET,
            "sealing_key": _SECRET,
            "server_timeout": "1m",
        }

        async def dial() -> Line:
            return await self._server.connected(process)

        return RemoteEngine(Settings.load(given, environ={}), dial)


class CompanionServer(Role):
    """The server."""

    def __init__(self, *where: Any, disk: Disk) -> None:
        super().__init__(*where)
        self.disk = disk
        self.server: Server | None = None

    @property
    def host(self) -> Host | None:
        return self.server.host if self.server is not None and self.is_serving else None

    async def _live(self, process: Process) -> None:
        month = 30 * 86_400_000
        settings = ServerSettings(
            dev=True,
            retention=month,
            event_retention=month,
            lease=round(LEASE * 1_000),
            heartbeat=round(LEASE * 1_000 / 6),
        )
        self.server = Server(settings, store_of(self.disk, process))
        look_seldom(self.server.host)
        self._leaving = asyncio.Event()
        await self.server.start()
        self.is_serving = True
        await self._leaving.wait()
        await self.server.stop()

    async def _end(self, process: Process) -> None:
        assert self.server is not None
        self.server.begin_drain()
        await asyncio.sleep(0.1)
        self._leaving.set()

    async def connected(self, app: Process) -> Line:
        """A new connection from `app`. Raises `LostConnectionError`."""
        await asyncio.sleep(delay(self._random))
        process, server = self.process, self.server
        if process is None or server is None or not self.is_serving:
            raise LostConnectionError("connection refused")
        wire = self._network.wire(app, process)
        process.call_later(
            delay(self._random), lambda: process.spawn(server.hub.serve(Socket(wire.far)))
        )
        return Line(wire.near)


def look_seldom(host: Host) -> None:
    """Nobody leaves anything in the inbox here, and nothing gets too old."""
    host._inbox._interval = host._sweeper._interval = _SELDOM


def supervised(random: Random) -> float:
    """Seconds until a process that died is started again."""
    return random.choice((0.01, 0.1, 1.0, 5.0)) * (0.5 + random.random())
