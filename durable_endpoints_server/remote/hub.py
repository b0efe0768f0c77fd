"""The hub: which processes of our SDK there are, and which of them executes a run.

Each process has one connection at a time, and a lease as long as it holds anything. A connection
that breaks ends nothing: the process comes back, and goes on with what it has. One that is silent
for its whole lease has its runs taken over, and whatever it says of them later is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints.protocol.runs import Fail
from durable_endpoints.protocol.wire import WireError
from durable_endpoints_server.dispatcher import Nobody, Place
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.engine.transitions import Interrupt, Release, in_quarantine
from durable_endpoints_server.host import Host
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.remote.acknowledging import Acknowledger
from durable_endpoints_server.remote.connection import Connection
from durable_endpoints_server.remote.isolation import Isolation, least_busy
from durable_endpoints_server.remote.leases import Leases
from durable_endpoints_server.remote.process import RemoteProcess
from durable_endpoints_server.remote.sessions import RemoteSession
from durable_endpoints_server.remote.transport import Transport
from durable_endpoints_server.store.base import Entry

logger = logging.getLogger("durable_endpoints")

_REMOTE = "remote"
"""Stands in the owner of a run between the boot of the server's machine and the process's name."""


@dataclass(frozen=True)
class HubOptions:
    """What connected processes are told. Times in milliseconds."""

    lease: int = 30_000
    """For how long a process may be silent."""
    heartbeat: int = 5_000
    """How often it says that it lives."""
    dev: bool = False


class Hub:
    """All processes of our SDK that a server knows. An `Executor` of it."""

    def __init__(self, host: Host, options: HubOptions) -> None:
        self.host = host
        self.options = options
        self.acknowledger = Acknowledger()
        self._leases = Leases(host.clock, options.lease, self._silent)
        self._isolation = Isolation(host.clock, self.look_again)
        self._processes: dict[str, RemoteProcess] = {}
        self._kept: dict[str, dict[str, Run]] = {}
        """Runs that were being executed when this server was started, by the process that did, as
        long as it has not come back."""
        self._connections: dict[Connection, None] = {}
        """In the order in which they were opened."""

    async def serve(self, end: Transport) -> None:
        """Serve a new connection until it ends."""
        connection = Connection(self, end)
        self._connections[connection] = None
        try:
            await connection.serve()
        finally:
            del self._connections[connection]

    def close(self) -> None:
        """The server is about to end: let processes go, to come back to the next one."""
        self._leases.close()
        for connection in list(self._connections):
            connection.close_soon(1012, "the server is shutting down")

    # Processes

    def welcome(self) -> dict[str, Any]:
        """What a process is told first."""
        return {
            "now": self.host.clock.now(),
            "lease": self.options.lease,
            "heartbeat": self.options.heartbeat,
            "policy": self.host.policy._asdict(),
            "capabilities": [wire.CONFIRMS],
            "server": version("durable-endpoints"),
            "dev": self.options.dev,
        }

    def join(self, connection: Connection, name: str, app: str) -> RemoteProcess:
        """A process is there, for the first time or again. Raises `WireError`."""
        process = self._processes.get(name)
        if process is None:
            process = RemoteProcess(self, name, app, self._kept.pop(name, {}))
            self._processes[name] = process
        elif process.app != app:
            raise WireError(f"process {name} is of another app")
        if (former := process.connection) is not None:
            process.disconnected()
            former.close_soon(1008, "the process has another connection")
        process.connection = connection
        self._leases.hear(name)
        if process.is_isolated:
            process.isolate(True)
        return process

    def leave(self, connection: Connection, process: RemoteProcess) -> None:
        """A connection has ended."""
        if process.connection is connection:
            process.disconnected()
            self._forget_if_idle(process)

    def hear(self, name: str) -> bool:
        """A process has said that it lives. Whether it has anything here."""
        if name not in self._processes and name not in self._kept:
            return False
        self._leases.hear(name)
        return True

    def has_ended(self, process: RemoteProcess) -> None:
        """One of its sessions is over."""
        if process.is_isolated and not process.sessions:
            self.look_again()
        if process.connection is None:
            self._forget_if_idle(process)

    def _forget_if_idle(self, process: RemoteProcess) -> None:
        if process.is_idle and self._processes.get(process.name) is process:
            del self._processes[process.name]
            self._leases.forget(process.name)

    def _silent(self, name: str) -> None:
        """Take over what a process had that was silent for too long."""
        process, kept = self._processes.pop(name, None), self._kept.pop(name, {})
        sessions: list[RemoteSession] = []
        if process is not None:
            kept |= process.kept
            process.kept = {}
            sessions = list(process.sessions.values())
        count = len(sessions) + len(kept)
        for session in sessions:
            try:
                session.live.interrupt(alone=count == 1)
            except LostRunError:
                pass  # it is just being cancelled
        self.give_up([(run, Interrupt(alone=count == 1)) for run in kept.values()])
        if process is not None and process.connection is not None:
            process.connection.close_soon(1008, "the lease of this process has ended")
            process.disconnected()
        if count:
            logger.warning(
                "process %s was silent for %g s: its %d runs go on elsewhere",
                *(name, self.options.lease / 1_000, count),
            )

    def give_up(self, lost: Sequence[tuple[Run, Interrupt | Release]]) -> None:
        """Runs that were kept for a process are to be executed elsewhere."""
        if lost:
            self.host.tasks.spawn(self._give_up(lost), f"give {len(lost)} runs to others")

    async def _give_up(self, lost: Sequence[tuple[Run, Interrupt | Release]]) -> None:
        try:
            await self.host.recovery.give_up(lost)
        except EngineError:
            for run, _ in lost:
                self.host.recovery.rescue_soon(run.id)

    # Names

    def owner_of(self, process: str) -> str:
        """The name of a process in the leases of its runs. It tells on which start of this
        machine they were written."""
        return f"{self._boot}/{_REMOTE}/{process}"

    @property
    def _boot(self) -> str:
        return self.host.owner.partition("/")[0]

    def key_of(self, app: str, key: str) -> str:
        """An idempotency key in the store: each application has its own."""
        return f"{app}\n{key}"

    # As an executor

    def keeps(self, run: Run) -> bool:
        """Whether a run that was being executed when this server was started may still be: its
        process has one whole lease to come back. Until that is over it may begin bodies, even if
        this machine was started anew: then what was streamed last may be lost, so the execution is
        as well, but its process has to hear of that first."""
        _, kind, name = (*run.owner.split("/", 2), "", "")[:3]
        if kind != _REMOTE:
            return False
        self._kept.setdefault(name, {})[run.id] = run
        self._leases.hear(name)
        return True

    def is_executing(self, run: Run) -> bool:
        """Whether one of the processes executes the run."""
        return run.owner.startswith(self.owner_of(""))

    def place(self, entry: Entry) -> Place | Nobody:
        """The process of the run's application that has the least to do."""
        serving = [
            process
            for process in self._processes.values()
            if process.serves(entry.app, entry.root_path)
        ]
        if not serving:
            return Nobody.HERE
        if in_quarantine(entry.run, self.host.policy):
            chosen = self._isolation.place(entry.run.id, serving)
        else:
            chosen = least_busy([process for process in serving if process.has_room])
        if chosen is None:
            return Nobody.FREE
        chosen.executing.add(entry.run.id)
        return Place(chosen.owner, partial(self._execute, chosen))

    def look_again(self) -> None:
        """More runs may have a place than before."""
        self.host.dispatcher.look_again()

    async def _execute(self, process: RemoteProcess, live: LiveRun, entry: Entry) -> None:
        """Let the process that the run was claimed for execute it. Returns when that has left the
        run, in whatever way."""
        try:
            if live.has_left:
                pass  # it was ended, or taken away, while the claim was being written
            elif not process.is_ready:
                await live.release("released")
            elif entry.request is None:
                await live.end(Fail("request_missing", None))
            else:
                await self._execute_in(process, live, entry)
        finally:
            process.executing.discard(live.id)
            self.host.dispatcher.make_room(process.app)
            self._isolation.end(live.id)

    async def _execute_in(self, process: RemoteProcess, live: LiveRun, entry: Entry) -> None:
        former = process.sessions.get(live.id)
        session = RemoteSession(process, live, is_known=False)
        process.add(session)
        if former is not None:
            await former.left.wait()
        await session.start(entry)
        await session.left.wait()
