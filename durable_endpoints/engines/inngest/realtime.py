"""Streams at an Inngest server: what a re-entry streams goes there, and readers get it from there.

Its server passes on what comes, and keeps nothing. So a reader gets what is streamed while it is
there, and always the end of the run, for which it asks beside.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from durable_endpoints.engines.base import Outcome
from durable_endpoints.engines.inngest.channel import publish, subscribe
from durable_endpoints.engines.inngest.log import LogReader, StreamLog
from durable_endpoints.engines.inngest.watch import Watch
from durable_endpoints.errors import EngineError
from durable_endpoints.protocol.frames import metadata_frame
from durable_endpoints.protocol.streams import Silence, StreamStart

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine

_MOST = 900_000
"""Bytes of one request: a server takes a megabyte."""
_MOST_UNREAD = 8 * 1024 * 1024
"""Bytes that wait for a reader whose client is slow, from which on no more are taken."""
_TURN = 30_000
"""Milliseconds for which a reader asks for the end of its run at a time."""
_AGAIN = 1.0
_IDS = re.compile(rb"^id: \d+\n", re.MULTILINE)
"""Positions in the log of one execution, which say nothing in the stream of all of them."""
_DROPPED = (b"event: inngest.metadata", b"event: inngest.response", b":")
"""Frames of the server's stream that a reader's own stream has already, or makes itself."""


class Tee:
    """Sends what one re-entry streams, while it does."""

    def __init__(self, engine: InngestEngine, run_id: str, log: StreamLog) -> None:
        self._engine = engine
        self._run_id = run_id
        self._reader: LogReader = log.reader()
        self._sending = engine.spawn(self._send(), f"stream of {run_id}")

    async def finish(self) -> None:
        """Return when everything is sent. The log is closed."""
        await asyncio.shield(self._sending)

    async def _send(self) -> None:
        try:
            while isinstance(first := await self._reader.next(_TURN), bytes) or (
                first is Silence.YET
            ):
                if isinstance(first, bytes):
                    await publish(self._engine, self._run_id, self._frames(first))
        finally:
            self._reader.close()

    async def _frames(self, frames: bytes) -> AsyncIterator[bytes]:
        """What one request sends: whole frames, and no more than it may."""
        yield metadata_frame(self._run_id, "")
        size = 0
        while True:
            size += len(frames)
            yield _IDS.sub(b"", frames)
            if size > _MOST:
                return
            while (found := await self._reader.next(_TURN)) is Silence.YET:
                pass
            if isinstance(found, Silence):
                return
            frames = found


class RealtimeReader:
    """A `StreamReader` of a run that the server drives."""

    def __init__(self, engine: InngestEngine, run_id: str, start: StreamStart) -> None:
        self.stops_at_outcome = self.stays = False
        self.position = start.after
        self._engine = engine
        self._run_id = run_id
        self._frames: list[bytes] = []
        self._unread = 0
        self._has_room = asyncio.Event()
        self._is_over = False
        self._watch = Watch()
        log = engine.log_of(run_id)
        self._here = None if log is None or start.skips_sync else log.reader()
        """What is streamed in this process, as long as the run is executed here."""
        if self._here is not None:
            self._here.position = start.after
        self._listening = engine.spawn(self._listen(), f"read the stream of {run_id}")
        self._waiting = engine.spawn(self._wait(), f"wait for {run_id}")

    @property
    def id(self) -> str:
        """The server numbers no frames."""
        return str(self.position) if self._here is not None else ""

    async def next(self, patience: int) -> bytes | Silence:
        """The next frames, as soon as there are any, or why there are none after `patience` ms."""
        if self._here is not None:
            found = await self._here.next(patience)
            self.position = self._here.position
            if found is not Silence.OVER:
                return found
            self._here.close()
            self._here = None
        return await self._watch.first(self._find, patience)

    def _find(self) -> bytes | Silence:
        if self._frames:
            frames, self._frames, self._unread = self._frames, [], 0
            self._has_room.set()
            return b"".join(frames)
        if self._is_over:
            return Silence.OVER
        return Silence.ELSEWHERE if self._engine.is_draining and not self.stays else b""

    def poke(self) -> None:
        """Let `next` look once more and return."""
        self._watch.poke()
        if self._here is not None:
            self._here.poke()

    def close(self) -> None:
        """Nothing more is read."""
        self._listening.cancel()
        self._waiting.cancel()
        if self._here is not None:
            self._here.close()

    async def _listen(self) -> None:
        """Take what the server passes on."""
        rest = b""
        async for piece in subscribe(self._engine, self._run_id):
            *frames, rest = (rest + piece).split(b"\n\n")
            self._frames += [frame + b"\n\n" for frame in frames if not _is_dropped(frame)]
            self._unread += len(piece)
            self._watch.look()
            while self._unread > _MOST_UNREAD:
                self._has_room.clear()
                await self._has_room.wait()

    async def _wait(self) -> None:
        """Notice the end of the run, which the server's stream may not tell."""
        while not self._is_over:
            outcome: Outcome | None = None
            try:
                outcome = await self._engine.outcome(self._run_id, _TURN)
            except EngineError:
                await asyncio.sleep(_AGAIN)
                continue
            if outcome is None or outcome.is_final:
                await asyncio.sleep(0.05)  # the last frames may be on their way
                self._is_over = True
            elif self._engine.is_draining:
                break
        self._watch.look()


def _is_dropped(frame: bytes) -> bool:
    return not frame.strip() or any(line.startswith(_DROPPED) for line in frame.split(b"\n", 2)[:2])
