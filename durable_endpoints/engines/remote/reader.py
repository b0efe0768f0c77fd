"""A reader of a run's stream at a server. It pulls: a slow one costs nothing but its own time."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from durable_endpoints.errors import EngineError
from durable_endpoints.protocol import wire
from durable_endpoints.protocol.streams import Silence, StreamStart
from durable_endpoints.protocol.wire import Frame, WireError

_GRACE = 2.0
"""Seconds that an answer may take beyond the patience that it was asked with."""


class Asks(Protocol):
    """A station, as far as it matters here."""

    is_releasing: bool

    @property
    def is_open(self) -> bool: ...

    @property
    def patience(self) -> float: ...

    def say(self, saying: Frame) -> None: ...

    def unavailable(self) -> EngineError: ...

    def close_reader(self, number: int) -> None: ...


class _Found(NamedTuple):
    """An answer to `next`."""

    what: bytes | Silence
    position: int
    id: str
    stops_at_outcome: bool


class RemoteReader:
    """A `StreamReader`, on the event loop of its station."""

    def __init__(
        self, station: Asks, number: int, run_id: str, start: StreamStart, limit: bool
    ) -> None:
        """With `limit`, it ends where the execution that the client's own request drives does."""
        self.stops_at_outcome = False
        self.stays = False
        self._station = station
        self._number = number
        self._run_id = run_id
        self._start = start
        self._limit = limit
        self._position = start.after
        self._id = _first_id(start)
        self._waiting: asyncio.Future[bytes | Silence] | None = None
        self._patience = 0
        self._is_poked = False
        self._is_asked = False
        """Whether the server owes an answer."""
        self._unread: _Found | None = None
        """What came when nobody waited for it any more."""

    @property
    def position(self) -> int:
        return self._position

    @property
    def id(self) -> str:
        return self._id

    async def next(self, patience: int) -> bytes | Silence:
        station = self._station
        if station.is_releasing and not self.stays:
            return Silence.ELSEWHERE
        if self._unread is not None:
            unread, self._unread = self._unread, None
            return self._taken(unread)
        loop = asyncio.get_running_loop()
        self._waiting, self._patience = loop.create_future(), patience
        if self._is_poked and not station.is_open:
            self._heard(Silence.YET)
        if not self._is_asked:
            station.say(self._next())
        seconds = patience / 1_000 + (_GRACE if station.is_open else station.patience)
        timer = loop.call_later(seconds, self._too_late)
        try:
            return await self._waiting
        finally:
            timer.cancel()
            self._waiting, self._is_poked = None, False

    def _next(self) -> Frame:
        self._is_asked = self._station.is_open
        return ["next", self._number, self._patience, self.stops_at_outcome, self.stays]

    def _too_late(self) -> None:
        """A server that is away for a moment is waited for; for a longer time, it is an error."""
        if self._waiting is not None and self._is_awaited:
            if self._station.is_open or self._station.patience > 0:
                self._heard(Silence.YET)
            else:
                self._waiting.set_exception(self._station.unavailable())

    def poke(self) -> None:
        self._is_poked = True
        if self._station.is_open:
            self._station.say(["poke", self._number])
        else:
            self._heard(Silence.YET)

    def close(self) -> None:
        self._station.close_reader(self._number)

    def release(self) -> None:
        """This process is about to end."""
        if not self.stays:
            self._heard(Silence.ELSEWHERE)

    # What the server says

    def found(self, what: bytes | Silence, position: int, id: str, stops_at_outcome: bool) -> None:
        """The answer to `next`."""
        if what is Silence.ELSEWHERE and not self._station.is_releasing:
            return  # it is the server that ends: the next one is asked
        self._is_asked = False
        found = _Found(what, position, id, stops_at_outcome)
        if self._is_awaited:
            self._heard(self._taken(found))
        elif isinstance(what, bytes):
            self._unread = found

    def _taken(self, found: _Found) -> bytes | Silence:
        self._position, self._id = found.position, found.id
        self.stops_at_outcome = found.stops_at_outcome
        return found.what

    def failed(self, error: Exception) -> None:
        """The server cannot read the stream."""
        self._is_asked = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def again(self) -> list[Frame]:
        """What to say on a new link, to go on where the last one broke."""
        self._is_asked, self._unread = False, None
        frames = [self.opening()]
        if self._is_awaited:
            frames.append(self._next())
        return frames

    @property
    def _is_awaited(self) -> bool:
        return self._waiting is not None and not self._waiting.done()

    def opening(self) -> Frame:
        """What begins it, where it stands."""
        start = wire.pack_start(self._here())
        return ["read", self._number, self._run_id, start, self._limit]

    def _here(self) -> StreamStart:
        start = self._start
        if not self._id:
            return start
        head, _, passed = self._id.partition(".")
        if passed:
            return StreamStart(int(head) - 1, int(passed), committed=True)
        return StreamStart(self._position, committed=start.committed)

    def _heard(self, what: bytes | Silence) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(what)


def _first_id(start: StreamStart) -> str:
    if start.skips_sync:
        return ""
    return f"{start.after + 1}.{start.passed}" if start.passed else str(start.after)


def silence(name: object) -> Silence:
    """A silence by its name. Raises `WireError`."""
    try:
        return Silence[str(name)]
    except KeyError:
        raise WireError(f"there is no silence {name!r}") from None
