"""Readers of streams for a process: it asks for the next frames, as often as it wants them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.errors import EngineError
from durable_endpoints.protocol.streams import Silence, StreamStart
from durable_endpoints.protocol.wire import Frame, WireError
from durable_endpoints_server.remote.questions import code_of
from durable_endpoints_server.stream_reader import Reader

if TYPE_CHECKING:
    from durable_endpoints_server.remote.connection import Connection

_MOST_READERS = 10_000


class Readers:
    """The readers of one connection, by their numbers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._readers: dict[int, RemoteReader] = {}

    def take(self, frame: Frame) -> None:
        """Take in a frame about a reader. Raises `WireError`."""
        number = wire.whole(frame[1] if len(frame) > 1 else None)
        if frame[0] == "read":
            self._open(number, frame)
            return
        reader = self._readers.get(number)
        if reader is None:
            if frame[0] == "next":
                raise WireError(f"there is no reader {number}")
        elif frame[0] == "next":
            _, _, patience, stops, stays = wire.array_of(frame, 5)
            reader.next(wire.whole(patience), wire.flag(stops), wire.flag(stays))
        elif frame[0] == "poke":
            reader.poke()
        else:
            del self._readers[number]
            reader.close()

    def _open(self, number: int, frame: Frame) -> None:
        _, _, run_id, packed, is_limited = wire.array_of(frame, 5)
        if number in self._readers or len(self._readers) >= _MOST_READERS:
            raise WireError(f"reader {number} is open, or {_MOST_READERS:,} are")
        start, run_id = wire.unpack_start(packed), wire.text(run_id)
        self._readers[number] = RemoteReader(
            self._connection, number, run_id, start, wire.flag(is_limited)
        )

    def close(self) -> None:
        """The connection is gone."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


class RemoteReader:
    """One reader."""

    def __init__(
        self,
        connection: Connection,
        number: int,
        run_id: str,
        start: StreamStart,
        is_limited: bool,
    ) -> None:
        """With `is_limited` it reads what the execution streams that the client's own request
        drives, and nothing of a later one."""
        self._connection = connection
        self._number = number
        self._run_id = run_id
        self._limit: int | None = None
        self._task: asyncio.Task[None] | None = None
        host = connection.hub.host
        live = host.live_run(run_id) if is_limited else None
        self._has_left = is_limited and live is None
        if live is not None:
            self._reader = live.read_stream(start)
        else:
            self._reader = Reader(host.streams, run_id, start, lambda: self._limit)

    def next(self, patience: int, stops_at_outcome: bool, stays: bool) -> None:
        """Answer with the next frames, or with why there are none after `patience` ms."""
        if self._task is not None and not self._task.done():
            raise WireError(f"reader {self._number} has not answered yet")
        self._reader.stops_at_outcome = stops_at_outcome
        self._reader.stays = stays
        tasks = self._connection.hub.host.tasks
        self._task = tasks.spawn(self._next(patience), f"read the stream of {self._run_id}")

    async def _next(self, patience: int) -> None:
        try:
            if self._has_left and self._limit is None:  # the log tells where
                stream = await self._connection.hub.host.store.stream(self._run_id)
                self._limit = None if stream is None else stream.handed_over
            found = await self._reader.next(patience)
        except EngineError as error:
            self._connection.send(["failed", self._number, code_of(error), error.explanation])
            return
        if isinstance(found, Silence):
            self._send("silence", found.name)
        else:
            async with self._connection.large():
                self._send("frames", found.decode())

    def _send(self, name: str, what: str) -> None:
        reader = self._reader
        state: list[Any] = [reader.position, reader.id, reader.stops_at_outcome]
        self._connection.send([name, self._number, what, *state])

    def poke(self) -> None:
        self._reader.poke()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._reader.close()
