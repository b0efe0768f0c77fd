"""What one execution streams, in memory: an Inngest server keeps no stream log."""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_right
from collections.abc import Iterable

from durable_endpoints.engines.inngest.watch import Watch
from durable_endpoints.errors import LimitError
from durable_endpoints.protocol.frames import record_frames
from durable_endpoints.protocol.streams import RecordKind, Silence, StreamRecord
from durable_endpoints_server.engine.facts import Fact
from durable_endpoints_server.engine.model import Policy
from durable_endpoints_server.engine.streams import (
    Chunk,
    append,
    check_room,
    follow,
    started,
    weight_of,
    withdraw,
)


class StreamLog:
    """The stream log of one execution. What is pushed may come from any thread."""

    def __init__(self, policy: Policy) -> None:
        self.stream = started(1)
        self.records: list[StreamRecord] = []
        self.is_closed = False
        """Whether nothing more will come."""
        self.used = asyncio.Event()
        """Set once anything was streamed."""
        self._policy = policy
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._readers: set[LogReader] = set()

    def push(self, step: str, attempt: int, values: list[bytes], kind: RecordKind) -> bool:
        """Add chunks. Whether they were taken. Raises `LimitError` for data that is too much; of
        progress and log lines, what is too much is left out."""
        if self.is_closed or not values:
            return False
        chunks = [Chunk(step, attempt, value, kind) for value in values]
        with self._lock:
            try:
                check_room(self.stream.size, weight_of(values), self._policy)
            except LimitError:
                if kind is RecordKind.DATA:
                    raise
                return False
            self.stream, records = append(self.stream, chunks)
            self.records += records
        self._loop.call_soon_threadsafe(self._use)
        return True

    def follow(self, facts: Iterable[Fact]) -> None:
        """Add what the log has to say about `facts`."""
        with self._lock:
            self.stream, records = follow(self.stream, facts)
            self.records += records
        self._tell()

    def withdraw(self, step: str) -> None:
        """A try was given up without an outcome."""
        with self._lock:
            self.stream, records = withdraw(self.stream, step)
            self.records += records
        self._tell()

    def close(self) -> None:
        """The execution has left its run."""
        self.is_closed = True
        self._tell()

    def reader(self) -> LogReader:
        """Read it from its beginning."""
        reader = LogReader(self)
        self._readers.add(reader)
        return reader

    def forget(self, reader: LogReader) -> None:
        self._readers.discard(reader)

    def after(self, position: int) -> list[StreamRecord]:
        """The records beyond a position."""
        first = bisect_right(self.records, position, key=lambda record: record.position)
        if first and self.records[first - 1].last > position:
            first -= 1
        return self.records[first:]

    def _use(self) -> None:
        self.used.set()
        self._tell()

    def _tell(self) -> None:
        for reader in self._readers:
            reader.look()


class LogReader:
    """A `StreamReader` of one execution's log."""

    def __init__(self, log: StreamLog) -> None:
        self.stops_at_outcome = False
        self.stays = False
        self.position = 0
        self._log = log
        self._watch = Watch()

    @property
    def id(self) -> str:
        """The position as the id of a frame."""
        return str(self.position)

    async def next(self, patience: int) -> bytes | Silence:
        """The next frames, as soon as there are any, or why there are none after `patience` ms."""
        return await self._watch.first(self._find, patience)

    def _find(self) -> bytes | Silence:
        frames = self._take()
        return Silence.OVER if not frames and self._log.is_closed else frames

    def poke(self) -> None:
        """Let `next` look once more and return."""
        self._watch.poke()

    def look(self) -> None:
        """Something has changed."""
        self._watch.look()

    def close(self) -> None:
        """Nothing more is read."""
        self._log.forget(self)

    def _take(self) -> bytes:
        pieces: list[bytes] = []
        for record in self._log.after(self.position):
            pieces.append(record_frames(record, self.position))
            self.position = record.last
            if self.stops_at_outcome and record.kind.is_end and record.step:
                self.stops_at_outcome = False
                break
        return b"".join(pieces)
