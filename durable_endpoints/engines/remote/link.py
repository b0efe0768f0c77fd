"""The link of one event loop to a server: one connection, opened again whenever it breaks.

What is said within one turn of the event loop travels in one message. What is said while the link
is down is not kept here: whoever says something that must arrive says it again when the link is
`opened`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from durable_endpoints.engines.remote.dialing import Connection, Dial, LostConnectionError
from durable_endpoints.errors import ForeignServerError
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.wire import Frame, WireError

logger = logging.getLogger("durable_endpoints")

_FIRST_PAUSE = 0.05
_LAST_PAUSE = 1.0
"""Seconds between two attempts to connect, give or take a half."""
_LASTING = 5.0
"""Seconds after which a connection that is lost is opened again at once, as a first one is: a
server that says welcome and closes is not asked without end."""
_WELCOME = 10.0
"""Seconds in which a server says welcome."""
_FULL = 256 * 1024
"""Bytes of a message from which on the next frame begins another one."""
_AT_ONCE = 16
"""Frames that are heard in one turn of the event loop. A commit acknowledges many steps: what those
let go on is said, and the server is at it, while the next ones are heard here."""

Saying = Frame | Callable[[], Frame | None]
"""A frame, or what makes it when its turn has come; None if it is not needed any more."""


class Ends(Protocol):
    """Who speaks over a link."""

    def hello(self) -> dict[str, Any]:
        """What the first frame says of this process."""
        ...

    def opened(self, welcome: dict[str, Any]) -> None:
        """The link is up. What is said now is heard first."""
        ...

    def heard(self, frame: Frame) -> None:
        """The server has said something. Raises `WireError` for what cannot be understood."""
        ...

    def lost(self) -> None:
        """The link is down."""
        ...


class Link:
    """One event loop's link. All methods are for that loop, but for `say`."""

    def __init__(self, dial: Dial, ends: Ends, where: str = "") -> None:
        """`where` is the server's URL, for the log."""
        self.is_open = False
        self.trouble = "it was not asked yet"
        """Why the link is down."""
        self.is_foreign = False
        """Whether the server has told, before it ever said welcome, that it does not know this
        wire. (Later it is a proxy that says so, while the server behind it is away.)"""
        self._dial = dial
        self._ends = ends
        self._server = f"the server of durable endpoints {where}".rstrip()
        self._is_known_to_be_away = False
        self._loop = asyncio.get_running_loop()
        self._down_since = self._loop.time()
        self._outgoing: deque[Saying] = deque()
        self._has_news = asyncio.Event()
        self._is_noted = False
        self._guard = threading.Lock()
        self._tried: asyncio.Future[None] = self._loop.create_future()
        self._is_closing = False
        self._was_welcomed = False
        self._task = self._loop.create_task(self._run(), name="link to the server")

    @property
    def down_for(self) -> float:
        """Seconds since the link was lost; 0 while it is up."""
        return 0.0 if self.is_open else self._loop.time() - self._down_since

    async def tried(self, patience: float) -> None:
        """Return once the first attempt to connect has ended, in whatever way, or after `patience`
        seconds. Raises `ForeignServerError`."""
        await asyncio.wait([self._tried], timeout=patience)
        if self.is_foreign:
            raise ForeignServerError(self.trouble)

    def say(self, saying: Saying) -> None:
        """Send a frame soon. Nothing, while the link is down. From any thread."""
        if not self.is_open:
            return
        if asyncio._get_running_loop() is not self._loop:
            self._say_from_afar(saying)
            return
        # Without the guard: what `_has_more` decides is decided on this event loop too, and a
        # thread that says something meanwhile wakes `_speak` once more than needed at the worst.
        self._outgoing.append(saying)
        if not self._is_noted:
            self._is_noted = True
            self._has_news.set()

    def _say_from_afar(self, saying: Saying) -> None:
        with self._guard:
            self._outgoing.append(saying)
            if self._is_noted:
                return
            self._is_noted = True
        try:
            self._loop.call_soon_threadsafe(self._has_news.set)
        except RuntimeError:
            pass  # the loop is closed, and nobody is there to say it

    def say_along(self, frame: Frame) -> None:
        """Send a frame with the next one that is said. On this event loop."""
        if self.is_open:
            self._outgoing.append(frame)

    async def close(self) -> None:
        """Send what was said, and nothing more."""
        self._is_closing = True
        self._has_news.set()
        await asyncio.wait([self._task], timeout=2)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # The connection

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while not (self._is_closing or self.is_foreign):
                began = self._loop.time()
                if await self._connect_and_serve() and self._loop.time() - began >= _LASTING:
                    pause = _FIRST_PAUSE
                if not (self._is_closing or self.is_foreign):
                    await asyncio.sleep(pause * (0.5 + random.random()))
                    pause = min(pause * 2, _LAST_PAUSE)
        finally:
            self._note_tried()

    def _note_tried(self) -> None:
        if not self._tried.done():
            self._tried.set_result(None)

    async def _connect_and_serve(self) -> bool:
        """Serve one connection to its end. Whether there was one."""
        was_open = False
        connection: Connection | None = None
        try:
            connection = await self._dial()
            await connection.send(wire.encode([["hello", self._ends.hello()]]))
            rest = self._welcomed(await asyncio.wait_for(connection.receive(), _WELCOME))
            was_open = True
            for frame in rest:
                self._ends.heard(frame)
            await self._serve(connection)
        except ForeignServerError as error:
            if self._was_welcomed:
                self._note_trouble(error.explanation)
            else:
                self.is_foreign, self.trouble = True, error.explanation
                why = "%s is taken for one of Inngest: %s"
                logger.warning(why, self._server, self.trouble)
        except (LostConnectionError, TimeoutError) as error:
            self._note_trouble(str(error) or "it does not say welcome")
        except WireError as error:
            logger.error("the server says what cannot be understood: %s", error)
            self._note_trouble(f"it says what cannot be understood ({error})")
        except Exception as error:
            # Without a link nothing goes on here, and nobody else may go on with it: heartbeats
            # come from another thread.
            logger.exception("the link to the server failed, and is opened again")
            self._note_trouble(f"the link failed ({error!r})")
        finally:
            self.is_open = False
            if was_open:
                self._down_since = self._loop.time()
                self._ends.lost()
            self._note_tried()
            if connection is not None:
                await connection.close()
        return was_open

    def _note_trouble(self, trouble: str) -> None:
        if trouble != self.trouble and not self._is_closing:
            logger.warning("%s is away: %s", self._server, trouble)
            self._is_known_to_be_away = True
        self.trouble = trouble

    def _welcomed(self, message: bytes | str) -> list[Frame]:
        """Open the link, and return what else was said in the first message."""
        (name, *rest), *more = wire.decode(message)
        if name != "welcome" or not rest or not isinstance(rest[0], dict):
            raise WireError("no welcome")
        # Whoever has read that it is away reads that it is back.
        level = logging.WARNING if self._is_known_to_be_away else logging.INFO
        logger.log(level, "connected to %s", self._server)
        self._is_known_to_be_away = False
        self.trouble = ""
        with self._guard:
            self._outgoing.clear()
            self._is_noted = False
        self.is_open = self._was_welcomed = True
        self._ends.opened(rest[0])
        self._note_tried()
        return more

    async def _serve(self, connection: Connection) -> None:
        """Speak and listen, until either ends."""
        speaks = asyncio.ensure_future(self._speak(connection))
        listens = asyncio.ensure_future(self._listen(connection))
        try:
            await asyncio.wait({speaks, listens}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_open = False
            for task in (speaks, listens):
                task.cancel()
            ended = await asyncio.gather(speaks, listens, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _listen(self, connection: Connection) -> None:
        while True:
            for number, frame in enumerate(wire.decode(await connection.receive()), 1):
                self._ends.heard(frame)
                if not number % _AT_ONCE:
                    await asyncio.sleep(0)

    async def _speak(self, connection: Connection) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while message := self._next_message():
                await connection.send(message)
            if self._is_closing:
                return

    def _next_message(self) -> bytes:
        """What is to be said next; nothing, if that was all."""
        frames: list[bytes] = []
        size = 0
        outgoing = self._outgoing
        while size < _FULL and (outgoing or self._has_more()):
            saying = outgoing.popleft()
            frame = saying if isinstance(saying, list) else saying()
            if frame is not None:
                frames.append(encoded := wire.encode_frame(frame))
                size += len(encoded)
        return wire.join(frames) if frames else b""

    def _has_more(self) -> bool:
        """Whether something is to be said. If not, the next thing that is has to wake `_speak`."""
        with self._guard:
            self._is_noted = bool(self._outgoing)
            return self._is_noted
