"""A process of our SDK: what it serves, what it executes, and the connection that it has now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.wire import Frame, WireError
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.engine.transitions import Release
from durable_endpoints_server.remote.resuming import Resumption
from durable_endpoints_server.remote.sessions import FRAMES, RemoteSession, number_of

if TYPE_CHECKING:
    from durable_endpoints_server.remote.connection import Connection
    from durable_endpoints_server.remote.hub import Hub

MOST_SESSIONS = 10_000
"""Executions that one process may have at once."""
_MOST_RUN_ID = 64


class RemoteProcess:
    """One process, from its first connection until it says goodbye or was silent for too long."""

    def __init__(self, hub: Hub, name: str, app: str, kept: dict[str, Run]) -> None:
        """`kept` are runs that it executed when this server was started: it may still."""
        self.hub = hub
        self.name = name
        self.app = app
        self.owner = hub.owner_of(name)
        self.kept = kept
        self.connection: Connection | None = None
        self.is_ready = False
        """Whether it has told over this connection what it goes on with."""
        self.is_draining = False
        self.is_isolated = False
        """Whether it gets nothing more, because of a run that shall be alone in it."""
        self.root_paths: frozenset[str] = frozenset()
        self.is_default = False
        """Whether it executes what began at other root paths, too."""
        self.capacity = 0
        self.executing: set[str] = set()
        """Runs that this server has given it to execute."""
        self.sessions: dict[str, RemoteSession] = {}
        self.resuming: dict[str, Resumption] = {}
        """Sessions that are just being looked up in the store."""

    @property
    def is_idle(self) -> bool:
        """Whether it executes nothing that could be lost."""
        return not (self.sessions or self.kept or self.resuming)

    def serves(self, app: str, root_path: str) -> bool:
        """Whether it can execute a run of this application."""
        return (
            self.app == app
            and self.is_ready
            and not self.is_draining
            and self.capacity > 0
            and (self.is_default or root_path in self.root_paths)
        )

    @property
    def has_room(self) -> bool:
        """Whether it may be given one more run."""
        return len(self.executing) < self.capacity and not self.is_isolated

    def isolate(self, isolate: bool) -> None:
        """Ask it to begin nothing new, or to go on as always."""
        self.is_isolated = isolate
        self.send(["hold", isolate])

    def send(self, frame: Frame) -> None:
        """Say something to it, if it can be reached."""
        if self.connection is not None:
            self.connection.send(frame)

    @asynccontextmanager
    async def large(self) -> AsyncIterator[None]:
        """Say what may be large within this."""
        if self.connection is None:
            yield
        else:
            async with self.connection.large():
                yield

    def break_off(self, error: WireError) -> None:
        """It has broken the rules of the wire."""
        if self.connection is not None:
            self.connection.close_soon(1008, str(error))

    # Sessions

    def add(self, session: RemoteSession) -> None:
        self.sessions[session.id] = session

    def lose(self, session: RemoteSession) -> None:
        """The session is over."""
        if self.sessions.get(session.id) is session:
            del self.sessions[session.id]
            self.hub.has_ended(self)

    def take(self, frame: Frame) -> None:
        """Take in a frame that is about a session. Raises `WireError`."""
        name, run_id = frame[0], wire.text(frame[1]) if len(frame) > 1 else ""
        resuming = self.resuming.get(run_id)
        session = self.sessions.get(run_id)
        if name == "resume":
            self._resume(run_id, frame)
        elif resuming is not None:
            resuming.take(frame)
        elif session is not None:
            session.take(frame)
        elif name == "register":
            self._register(run_id, frame)
        elif name in FRAMES:
            self._refuse(frame)

    def _register(self, run_id: str, frame: Frame) -> None:
        _, _, number, packed = wire.array_of(frame, 4)
        new = wire.unpack_new_run(packed)
        if new.id != run_id or number != 1 or not 0 < len(run_id) <= _MOST_RUN_ID:
            raise WireError("a run is registered by its id, in the first frame of its session")
        host = self.hub.host
        if host.live_run(run_id) is not None:
            self._refuse(frame)
            return
        if len(self.sessions) >= MOST_SESSIONS:
            message = f"this process has {MOST_SESSIONS:,} runs at once, the most there may be"
            self.send(["refused", run_id, 1, "limit", message])
            return
        key = None if new.key is None else self.hub.key_of(self.app, new.key)
        live = host.register(new._replace(app=self.app, key=key), self.owner)
        session = RemoteSession(self, live, is_known=True)
        session.taken = 1
        self.add(session)
        session.acknowledge_later()

    def _refuse(self, frame: Frame) -> None:
        """Whoever says something of a run that it does not have is told so, if it asks."""
        if frame[0] in ("register", "record", "signal", "withdraw", "leave"):
            message = f"run {frame[1]} is no longer this execution's"
            self.send(["refused", frame[1], number_of(frame), "lost", message])

    # Coming back

    def _resume(self, run_id: str, frame: Frame) -> None:
        _, _, generation, acked, options = wire.array_of(frame, 5)
        if not isinstance(options, dict) or run_id in self.resuming:
            raise WireError("a session is resumed once, with an object of options")
        session = self.sessions.get(run_id)
        if session is not None and session.live.generation == wire.whole(generation):
            session.resume(wire.whole(acked), options)
            return
        resumption = Resumption(self, run_id, wire.whole(generation), wire.whole(acked), options)
        self.resuming[run_id] = resumption
        resumption.task = self.hub.host.tasks.spawn(resumption.run(), f"resume {run_id}")

    async def heard_out(self, run_id: str) -> None:
        """Return when no earlier execution of the run is being looked up. What that one says, and
        is told, would else be taken for the next one's."""
        while (resuming := self.resuming.get(run_id)) is not None:
            await resuming.ended()

    def resumed(self) -> None:
        """It has told what it goes on with: the rest never reached it, or is forgotten there."""
        self.is_ready = True
        for session in list(self.sessions.values()):
            if session.connection is not self.connection:
                session.release()
        self.release_kept()

    def release_kept(self) -> None:
        """Let other executions of what it has not come back for begin at once."""
        lost = [self.kept.pop(run_id) for run_id in self.kept.keys() - self.resuming.keys()]
        self.hub.give_up([(run, Release("released")) for run in lost])

    def disconnected(self) -> None:
        """Nothing reaches it for now."""
        self.connection = None
        self.is_ready = False
        for resumption in self.resuming.values():
            resumption.cancel()
        self.resuming.clear()
