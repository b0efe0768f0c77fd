"""What one event loop of a process has at a server: its sessions, questions and readers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any, Protocol

from ulid import ULID

from durable_endpoints.engines.background import Background
from durable_endpoints.engines.remote import lease
from durable_endpoints.engines.remote.dialing import Dial
from durable_endpoints.engines.remote.lease import Lease
from durable_endpoints.engines.remote.link import Link
from durable_endpoints.engines.remote.overdue import Overdue
from durable_endpoints.engines.remote.questions import Questions, error_of
from durable_endpoints.engines.remote.reader import RemoteReader, silence
from durable_endpoints.engines.remote.session import RemoteSession
from durable_endpoints.errors import EngineClosedError, EngineError, StorageError
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import SignalTaken
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.streams import RecordKind, StreamStart
from durable_endpoints.protocol.wire import Frame, WireError
from durable_endpoints_server.engine.model import Policy, Stream
from durable_endpoints_server.engine.transitions import register

_VERSION = version("durable-endpoints")
_MOST_LEFT_BEHIND = 1_000
"""Sessions that were given up while the server was away, and that it is to be told of."""

logger = logging.getLogger("durable_endpoints")


class Home(Protocol):
    """The engine that a station belongs to."""

    policy: Policy

    @property
    def app_name(self) -> str: ...

    @property
    def server_url(self) -> str: ...

    @property
    def server_timeout(self) -> float:
        """Seconds."""
        ...

    @property
    def executors(self) -> dict[str, Any]:
        """What this process executes, as the server is told."""
        ...

    def now(self) -> int: ...

    def welcomed(self, welcome: dict[str, Any]) -> None: ...

    def execute(self, station: Station, claimed: dict[str, Any]) -> None:
        """The server has claimed a run for this process."""
        ...


class Station:
    """One event loop's. All methods are for that loop, but for `say`."""

    def __init__(self, home: Home, dial: Dial) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{ULID()}"
        """The name of this process at the server: no other one has it, or ever had."""
        self.lease = Lease()
        self.is_releasing = False
        self.is_held = False
        """Whether no new run shall begin for a moment, because one is executed alone."""
        self._home = home
        self._sessions: dict[str, RemoteSession] = {}
        self._left_behind: dict[str, RemoteSession] = {}
        self._readers: dict[int, RemoteReader] = {}
        self._numbers = itertools.count(1)
        """For questions and for readers."""
        self._questions = Questions(self._numbers)
        self._background = Background()
        self._beating: asyncio.TimerHandle | None = None
        self._greeted_at = 0.0
        self._heard: dict[str, Callable[..., None]] = {
            "ack": self._acknowledged,
            "refused": self._refused,
            "written": self._written,
            "resolved": self._resolved,
            "stopped": self._stopped,
            "signal": self._signal,
            "execute": self._execute,
            "frames": self._frames,
            "silence": self._silence,
            "answer": self._questions.answered,
            "failed": self._failed,
            "hold": self._hold,
            "heard": self._was_heard,
        }
        self.link = Link(dial, self, home.server_url)
        self.say = self.link.say
        self.say_along = self.link.say_along
        self.now = home.now
        self.overdue = Overdue(self.link, home.server_timeout, self.unavailable)
        """Who waits for something that the server says."""

    # For the engine

    @property
    def policy(self) -> Policy:
        """The server's limits."""
        return self._home.policy

    @property
    def is_open(self) -> bool:
        return self.link.is_open

    @property
    def patience(self) -> float:
        """Seconds for which something may wait for the server: none, if it was away for long."""
        return self.overdue.patience

    def unavailable(self) -> EngineError:
        """What to raise when that is over."""
        if self.link.is_open:
            return StorageError("the server that keeps the runs does not answer in time")
        trouble = self.link.trouble or "the link to it has ended"
        return StorageError(f"the server that keeps the runs is away: {trouble}")

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run in the background, and log what it raises."""
        return self._background.spawn(coroutine, name)

    async def ask(
        self, what: str, about: dict[str, Any], lasts: float = 0.0, is_releasable: bool = False
    ) -> Any:
        """Ask the server something that takes it up to `lasts` seconds.

        Raises `StorageError` if there is no answer, and `ReleasedError` if nobody shall wait for
        it any more.
        """
        patience = self.patience
        if not patience:
            raise self.unavailable()
        too_late = self.unavailable()
        return await self._questions.ask(
            self.link, what, about, lasts + patience, too_late, is_releasable
        )

    def tell(self, what: str, about: dict[str, Any]) -> None:
        """Ask something whose answer does not matter, and that may be lost."""
        self.say(["ask", next(self._numbers), what, about])

    def register(self, new: NewRun) -> RemoteSession:
        """Begin a run that is executed here."""
        run = register(new, self.name, None, self.now()).run
        session = RemoteSession(self, run, (), Stream())
        self._sessions[run.id] = session
        session.register(new)
        return session

    def adopt(self, session: RemoteSession) -> None:
        """Begin to execute a run that the server has claimed."""
        if (former := self._session(session.id)) is not None:
            former.stopped("lost")
        self._sessions[session.id] = session
        session.begin()

    def read(self, run_id: str, start: StreamStart, limit: bool = False) -> RemoteReader:
        """Begin to read the stream of a run."""
        number = next(self._numbers)
        reader = self._readers[number] = RemoteReader(self, number, run_id, start, limit)
        self.say(reader.opening())
        return reader

    def close_reader(self, number: int) -> None:
        """It reads no more."""
        if self._readers.pop(number, None) is not None:
            self.say(["close", number])

    def forget(self, session: RemoteSession) -> None:
        """The server has confirmed that the session is over, or has ended it."""
        for kept in (self._sessions, self._left_behind):
            if kept.get(session.id) is session:
                del kept[session.id]

    def leave_behind(self, session: RemoteSession) -> None:
        """Nobody waits for the session any more, but the server is to be told what it said."""
        if self._sessions.pop(session.id, None) is None:
            return
        self._left_behind[session.id] = session
        while len(self._left_behind) > _MOST_LEFT_BEHIND:
            del self._left_behind[next(iter(self._left_behind))]

    def executors_changed(self) -> None:
        """This process executes something else than before."""
        self.say(["executors", self._home.executors])

    def begin_drain(self) -> None:
        """Execute nothing new, and let go of whoever waits for a run."""
        self.is_releasing = True
        self.say(["drain"])
        self._questions.release()
        for reader in list(self._readers.values()):
            reader.release()

    async def close(self) -> None:
        """Say goodbye: what is still executed here goes on elsewhere."""
        await self._background.end()
        self.say(["bye"])
        await self.link.close()
        closed = EngineClosedError("this server is shutting down")
        for session in list(self._sessions.values()):
            session.fail(closed)

    # What the link says

    def hello(self) -> dict[str, Any]:
        self._greeted_at = lease.now()
        return {
            "process": self.name,
            "app": self._home.app_name,
            "sdk": _VERSION,
            "draining": self.is_releasing,
        }

    def opened(self, welcome: dict[str, Any]) -> None:
        try:
            self._home.welcomed(welcome)
            # A server of an earlier version does not say what it hears.
            says_so = wire.CONFIRMS in welcome["capabilities"]
            length = wire.whole(welcome["lease"]) / 1_000 if says_so else math.inf
            self.lease.begin(self._greeted_at, length)
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"a welcome that lacks something: {error}") from None
        self.is_held = False
        self._beat(wire.whole(welcome["heartbeat"]) / 1_000)
        for kept in (self._left_behind, self._sessions):
            for session in list(kept.values()):
                for frame in session.resume():
                    self.say(frame)
        self.say(["resumed"])
        if not self.is_releasing:
            self.say(["executors", self._home.executors])
        for frame in self._questions.again():
            self.say(frame)
        for reader in self._readers.values():
            for frame in reader.again():
                self.say(frame)

    def lost(self) -> None:
        """The link is down: whoever waits waits for the next one, as long as they may."""
        if self._beating is not None:
            self._beating.cancel()

    def _beat(self, interval: float) -> None:
        self.say(["beat", math.floor(lease.now() * 1_000)])
        self._beating = self.loop.call_later(interval, self._beat, interval)

    def heard(self, frame: Frame) -> None:
        name, *parts = frame
        hear = self._heard.get(name)
        if hear is None:
            raise WireError(f"there is no frame {name!r}")
        try:
            hear(*parts)
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"frame {name!r}: {error}") from error

    # Frames of sessions

    def _session(self, run_id: str) -> RemoteSession | None:
        return self._sessions.get(run_id) or self._left_behind.get(run_id)

    def _acknowledged(self, run_id: str, number: int) -> None:
        if (session := self._session(run_id)) is not None:
            session.confirmed(wire.whole(number))

    def _refused(self, run_id: str, number: int, reason: str, message: str) -> None:
        if (session := self._session(run_id)) is not None:
            session.refused(wire.text(reason), wire.text(message))

    def _written(self, run_id: str, position: int, counts: list[list[Any]]) -> None:
        if (session := self._session(run_id)) is not None:
            written = {
                (step, attempt, RecordKind(kind)): wire.whole(count)
                for step, attempt, kind, count in counts
            }
            session.written(wire.whole(position), written)

    def _resolved(self, run_id: str, step: Any, number: int) -> None:
        if (session := self._session(run_id)) is not None:
            session.resolved(wire.unpack_step(step), wire.whole(number))

    def _stopped(self, run_id: str, reason: str) -> None:
        if (session := self._session(run_id)) is not None:
            session.stopped(wire.text(reason))

    def _signal(self, run_id: str, number: int, step: Any, taken: str | None) -> None:
        if (session := self._session(run_id)) is not None:
            answer = SignalTaken(wire.text(taken)) if step is None else wire.unpack_step(step)
            session.signal_opened(number, answer)

    def _execute(self, claimed: dict[str, Any]) -> None:
        try:
            self._home.execute(self, claimed)
        except (KeyError, TypeError, ValueError) as error:
            # One run that a newer version has written, say, must not break the link of all others.
            run_id, generation = wire.text(claimed["run"]), wire.whole(claimed["generation"])
            logger.error(
                "run %s is parked: what the server keeps of it cannot be read here (%s). If a "
                "newer version of this package wrote it, `durable-endpoints runs retry %s` once "
                "only that one runs",
                *(run_id, error, run_id),
            )
            self.link.say(["begin", run_id, generation])
            self.link.say(["leave", run_id, 1, "park", "unreadable"])

    # Other frames

    def _frames(self, number: int, text: str, position: int, id: str, stops: bool) -> None:
        if (reader := self._readers.get(number)) is not None:
            reader.found(wire.text(text).encode(), wire.whole(position), wire.text(id), stops)

    def _silence(self, number: int, name: str, position: int, id: str, stops: bool) -> None:
        if (reader := self._readers.get(number)) is not None:
            reader.found(silence(name), wire.whole(position), wire.text(id), stops)

    def _failed(self, number: int, code: str, message: str) -> None:
        error = error_of(wire.text(code), wire.text(message))
        if (reader := self._readers.get(number)) is not None:
            reader.failed(error)
        else:
            self._questions.failed(number, error)

    def _was_heard(self, said_at: int) -> None:
        self.lease.renew(wire.whole(said_at) / 1_000)

    def _hold(self, is_held: bool) -> None:
        self.is_held = wire.flag(is_held)


def steady_now() -> int:
    """Milliseconds, rounded up, by a clock of this machine that nobody sets. It begins anywhere."""
    return math.ceil(time.monotonic() * 1_000)
