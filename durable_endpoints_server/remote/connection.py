"""One connection of a process: its frames in order, and what it is told, in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.errors import EngineError, LimitError
from durable_endpoints.protocol.wire import Frame, WireError
from durable_endpoints_server.remote.process import RemoteProcess
from durable_endpoints_server.remote.questions import answer, code_of
from durable_endpoints_server.remote.readers import Readers
from durable_endpoints_server.remote.sessions import FRAMES as SESSION_FRAMES
from durable_endpoints_server.remote.transport import Transport, TransportClosedError

if TYPE_CHECKING:
    from durable_endpoints_server.remote.hub import Hub

logger = logging.getLogger("durable_endpoints")

_HELLO: Final = 10.0
"""Seconds within which a new connection says whose it is."""
_MESSAGE: Final = 1024 * 1024
"""Bytes of frames from which on what is to be said travels in one more message."""
_FULL: Final = 8 * 1024 * 1024
"""Bytes that wait for a peer to read them, from which on what is large waits to be said."""
_MOST_BYTES: Final = 256 * 1024 * 1024
"""The same, beyond which the peer is given up."""
_PATIENCE: Final = 120.0
"""Seconds within which a peer reads a message, or in the worst case twice as many."""
_FAREWELL: Final = 5.0
"""The same for the last ones, when the connection is closed here."""
_MOST_QUESTIONS: Final = 10_000
_LONGEST_NAME: Final = 200
_LONGEST_REASON: Final = 120
"""Bytes of the reason for closing a WebSocket are 123 at the most (RFC 6455 §5.5)."""
_READING: Final = ("read", "next", "poke", "close")


class Connection:
    """One connection, from its first message to its end."""

    def __init__(self, hub: Hub, end: Transport) -> None:
        self.hub = hub
        self.process: RemoteProcess | None = None
        self._end = end
        self._outbox: list[bytes] = []
        self._size = 0
        """Bytes in the outbox, or just being sent."""
        self._sent = 0
        """Messages that have left."""
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._large = asyncio.Lock()
        self._is_gone = False
        self._closing: tuple[int, str] | None = None
        self._readers = Readers(self)
        self._questions: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Take in what the process says, until the connection ends."""
        writer = asyncio.ensure_future(self._write())
        watcher = asyncio.ensure_future(self._watch(writer))
        try:
            async with asyncio.timeout(_HELLO):
                message = await self._end.receive()
            while True:
                self._take(message)
                message = await self._end.receive()
        except TransportClosedError:
            pass
        except TimeoutError:
            self.close_soon(1008, "a connection begins with hello")
        except WireError as error:
            self.close_soon(1008, str(error))
        except Exception:
            logger.exception("a connection failed")
            self.close_soon(1011, "the server failed, and has logged why")
        finally:
            self._disconnected()
            if self._closing is not None:
                await asyncio.wait({writer}, timeout=_FAREWELL)
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)

    # What the process says

    def _take(self, message: str | bytes) -> None:
        frames = wire.decode(message)
        if self.process is None:
            self._hello(frames.pop(0) if frames else [""])
        for frame in frames:
            if self.process is None or self.process.connection is not self:
                return  # it has said goodbye, or has another connection
            self._frame(self.process, frame)
        if self.process is not None:
            self.hub.hear(self.process.name)

    def _hello(self, frame: Frame) -> None:
        about = wire.array_of(frame, 2)[1]
        if frame[0] != "hello" or not isinstance(about, dict):
            raise WireError("a connection begins with hello")
        name, app = wire.text(about.get("process")), wire.text(about.get("app"))
        if not (0 < len(name) <= _LONGEST_NAME and 0 < len(app) <= _LONGEST_NAME):
            raise WireError(f"process and app have names of 1 to {_LONGEST_NAME} characters")
        if not (name.isprintable() and app.isprintable()):
            raise WireError("process and app have printable names")
        if "://" in app:  # which stands for one that is called back over HTTP
            raise WireError("the name of an app is not a URL")
        self.send(["welcome", self.hub.welcome()])
        self.process = self.hub.join(self, name, app)
        self.process.is_draining = bool(about.get("draining"))

    def _frame(self, process: RemoteProcess, frame: Frame) -> None:
        match frame[0]:
            case name if name in SESSION_FRAMES:
                process.take(frame)
            case "beat":
                if len(frame) > 1:
                    self.send(["heard", wire.whole(frame[1])])
            case "executors":
                self._executors(process, wire.array_of(frame, 2)[1])
            case "resumed":
                process.resumed()
                self.hub.look_again()
            case "drain":
                process.is_draining = True
            case "bye":
                self._bye(process)
            case "ask":
                self._ask(process, frame)
            case "forget":
                task = self._questions.pop(wire.whole(wire.array_of(frame, 2)[1]), None)
                if task is not None:
                    task.cancel()
            case name if name in _READING:
                self._readers.take(frame)
            case "resume":
                process.take(frame)
            case name:
                raise WireError(f"there is no frame {name[:40]!r}")

    def _executors(self, process: RemoteProcess, about: object) -> None:
        if not isinstance(about, dict):
            raise WireError("executors are told in an object")
        paths = [wire.text(path) for path in wire.array(about.get("root_paths"))]
        process.root_paths = frozenset(paths)
        process.is_default = wire.flag(about.get("default"))
        process.capacity = wire.whole(about.get("capacity"))
        self.hub.look_again()

    def _bye(self, process: RemoteProcess) -> None:
        process.is_draining = True  # else it may be given back what it has just let go
        for session in list(process.sessions.values()):
            session.release()
        process.release_kept()
        self.close_soon(1000, "goodbye")

    def _ask(self, process: RemoteProcess, frame: Frame) -> None:
        _, number, what, about = wire.array_of(frame, 4)
        if not isinstance(about, dict):
            raise WireError("a question is about an object")
        if wire.whole(number) in self._questions or len(self._questions) >= _MOST_QUESTIONS:
            raise WireError(f"question {number} is open, or {_MOST_QUESTIONS:,} are")
        asking = self._answer(process, number, wire.text(what), about)
        task = self.hub.host.tasks.spawn(asking, f"answer {what}")
        self._questions[number] = task

    async def _answer(
        self, process: RemoteProcess, number: int, what: str, about: dict[str, object]
    ) -> None:
        try:
            found = await answer(process, what, about)
        except (EngineError, LimitError) as error:
            self.send(["failed", number, code_of(error), error.explanation])
        except WireError as error:
            self.send(["failed", number, code_of(error), str(error)])
        except Exception:
            # Whoever asked shall not wait for ever; the task's end is logged.
            self.send(["failed", number, "storage", "the server failed, and has logged why"])
            raise
        else:
            async with self.large():
                self.send(["answer", number, found])
        finally:
            self._questions.pop(number, None)

    # What it is told

    def send(self, frame: Frame) -> None:
        """Say something; what one turn of the event loop says travels together."""
        if self._closing is not None:
            return
        data = wire.encode_frame(frame)
        self._outbox.append(data)
        self._size += len(data)
        if self._size > _MOST_BYTES:
            self.close_soon(1008, "the peer does not read what it is told")
        self._news.set()

    @asynccontextmanager
    async def large(self) -> AsyncIterator[None]:
        """Say what may be large within this: it begins when the peer has read most of what it was
        told, or is gone; one at a time."""
        async with self._large:
            while self._size > _FULL and not self._is_gone:
                self._has_room.clear()
                await self._has_room.wait()
            yield

    def close_soon(self, code: int, reason: str) -> None:
        """Close the connection once what was said has left."""
        if self._closing is None:
            self._closing = code, reason.encode()[:_LONGEST_REASON].decode("utf-8", "ignore")
            self._news.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._outbox:
                    message, size = self._next_message()
                    await self._end.send(message)
                    self._sent += 1
                    self._size -= size
                    self._has_room.set()
                if self._closing is not None:
                    await self._end.close(*self._closing)
                    return
        except TransportClosedError:
            pass

    async def _watch(self, writer: asyncio.Task[None]) -> None:
        """Give up a peer to which one message is being sent for too long: who lives, reads."""
        sent = -1
        while self._sent != sent or not self._size:
            sent = self._sent
            await asyncio.sleep(_PATIENCE)
        logger.warning("a process does not read what it is told: its connection is closed")
        writer.cancel()
        await self._end.close(1008, "the peer does not read what it is told")

    def _next_message(self) -> tuple[str, int]:
        count = size = 0
        while count < len(self._outbox) and (not count or size < _MESSAGE):
            size += len(self._outbox[count])
            count += 1
        frames, self._outbox = self._outbox[:count], self._outbox[count:]
        return wire.join(frames).decode(), size

    # The end

    def _disconnected(self) -> None:
        self._is_gone = True
        self._has_room.set()
        self._readers.close()
        for task in self._questions.values():
            task.cancel()
        if self.process is not None:
            self.hub.leave(self, self.process)
