"""What applications of other SDKs stream while they execute a run for us: each of their requests
sends its frames here, over a request of its own, and they go into the run's stream log.

So they are on disk before anybody gets them, whoever joins late gets all of them, after a restart
too, and what is committed or withdrawn is what the log says: a step's chunks are committed with its
result, and withdrawn if the application dies. What the application says of that is only a sign that
it has streamed everything about the step.

The frames and the outcome that they are about come over two connections, in any order. Whoever
executes a run therefore asks `settle` to wait for the frames, before it records the outcome: that
keeps the frames of an earlier request before those of a later one, and the run's response last.
Frames that come even later are not lost: they stand where they come, and are committed at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final
from weakref import WeakKeyDictionary, ref

from durable_endpoints.protocol.frames import verbatim_chunk
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind
from durable_endpoints_server.engine.streams import check_room
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.streams import Streams
from durable_endpoints_server.tee_frames import (
    Answer,
    Chunk,
    Frame,
    FrameReader,
    Metadata,
    Other,
    Outcome,
)

_GRACE: Final = 0.1
"""Seconds in which frames about an outcome may begin to come after it, if somebody reads them."""
_GRACE_FOR_STREAMERS: Final = 0.2
"""The same for a run that has streamed before."""
_GRACE_AT_END: Final = 1.0
"""The same for the response. An SDK that streams sends it every time, also if nobody reads."""
_GRACE_UNREAD: Final = 0.05
_PATIENCE: Final = 2.0
"""Seconds in which they come to their end, once they have begun."""


class Tees:
    """All streams that applications send us now."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._of: WeakKeyDictionary[LiveRun, _Tees] = WeakKeyDictionary()

    def open(self, live: LiveRun) -> Tee:
        """An application begins to stream for an execution. To be closed."""
        tees = self._of.setdefault(live, _Tees())
        tee = Tee(live, tees)
        tees.all.append(tee)
        tees.ring()
        return tee

    async def settle(self, live: LiveRun, steps: Collection[str], ends: bool) -> None:
        """Return once everything is in the log that is streamed about these steps, by hash, whose
        try has ended, and if the run `ends`, about its response; or if nothing more is to be
        expected. To be called right before the outcome is recorded: a response that was streamed
        is written together with it.
        """
        clock = asyncio.get_running_loop().time
        begun_at = clock()
        while (patience := self._patience(live, steps, ends)) > clock() - begun_at:
            await self._of.setdefault(live, _Tees()).news(patience - clock() + begun_at)
        tees = self._of.setdefault(live, _Tees())
        tees.settled.update(steps)
        for tee in list(tees.all):
            if ends or not tee.ended.isdisjoint(steps):
                tee.finish()
                tees.all.remove(tee)
                if ends:
                    tee.push_answer()

    def _patience(self, live: LiveRun, steps: Collection[str], ends: bool) -> float:
        """Seconds for which it is worth waiting, from the first look on."""
        tees = self._of.get(live)
        known = [] if tees is None else tees.all
        missing = set(steps).difference(*(tee.ended for tee in known))
        if not missing and (not ends or any(tee.answer is not None for tee in known)):
            return 0.0
        if any(tee.may_tell_of(missing) for tee in known):
            return _PATIENCE
        is_read, has_streamed = self._streams.is_read(live.id), known or live.stream_tail > 0
        if ends:
            return _GRACE_AT_END if is_read or has_streamed else _GRACE_UNREAD
        return _GRACE_FOR_STREAMERS if has_streamed else _GRACE if is_read else 0.0


class _Tees:
    """Those of one execution."""

    def __init__(self) -> None:
        self.all: list[Tee] = []
        self.settled: set[str] = set()
        """Steps of which a try has ended. One that is not open any more has no other."""
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def news(self, timeout: float) -> None:
        """Return when something has changed, or after `timeout` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=timeout)
        finally:
            self._waiting.discard(future)


class Tee:
    """The stream of one of the application's requests."""

    def __init__(self, live: LiveRun, tees: _Tees) -> None:
        self.ended: set[str] = set()
        """The steps whose try has ended, as it says."""
        self.answer: Answer | None = None
        self.finished = asyncio.Event()
        """Set when nothing more of it counts."""
        self._live = ref(live)
        self._tees = tees
        self._reader = FrameReader()
        self._metadata: Metadata | None = None
        self._attempts: dict[str, int | None] = {}
        """By step: which try of it this is. None for one that had ended before."""
        self._late: dict[str, list[bytes]] = {}
        """By such a step: what it has streamed."""
        self._late_size = 0
        """Bytes of that."""

    async def feed(self, piece: bytes) -> None:
        """Take more of it. Raises `ValueError` for what are no frames, and as `LiveRun.push`
        does."""
        for frame in self._reader.feed(piece):
            live = self._live()
            if live is None or self.finished.is_set():
                self.finish()
                return
            self._take(live, frame)
            if live.is_full:
                await live.room()

    def close(self) -> None:
        """Nothing more will come."""
        self.finish()

    def finish(self) -> None:
        """Nothing more of it counts."""
        self.finished.set()
        self._tees.ring()

    def may_tell_of(self, steps: Collection[str]) -> bool:
        """Whether it may still bring the end of one of these steps, or the run's response: each
        of the application's requests executes one step at the most."""
        own = self._attempts.keys() - {OUTSIDE}
        is_open = not (self.finished.is_set() or self.ended or self.answer is not None)
        return is_open and (not own or not own.isdisjoint(steps))

    def push_answer(self) -> None:
        """Stream the response. It is written with what is recorded next."""
        live = self._live()
        if live is not None and self.answer is not None:
            self._push_verbatim(live, "inngest.response", self.answer.data)

    def _take(self, live: LiveRun, frame: Frame) -> None:
        if isinstance(frame, Chunk):
            attempt = self._attempt(live, frame.step)
            if attempt is None:
                check_room(self._late_size, len(frame.value), live.policy)
                self._late_size += len(frame.value)
                self._late.setdefault(frame.step, []).append(frame.value)
            else:
                self._introduce(live)
                live.push(frame.step, attempt, [frame.value])
        elif isinstance(frame, Outcome):
            self.ended.add(frame.step)
            late = self._late.pop(frame.step, None)
            if late is not None and frame.is_commit:
                self._introduce(live)
                live.push_committed(frame.step, late)
            self._tees.ring()
        elif isinstance(frame, Answer):
            self.answer = frame
            self._tees.ring()
        elif isinstance(frame, Metadata):
            self._metadata = frame
        elif isinstance(frame, Other):
            self._push_verbatim(live, frame.event, frame.data)

    def _attempt(self, live: LiveRun, step: str) -> int | None:
        if step not in self._attempts:
            self._attempts[step] = self._find_attempt(live, step)
        return self._attempts[step]

    def _find_attempt(self, live: LiveRun, step: str) -> int | None:
        if step == OUTSIDE:
            return 0
        if (open_step := live.awaited(step)) is not None:
            return open_step.attempt + 1
        is_over = step in self._tees.settled or any(
            known.id.hash == step and known.is_final for known in live.memo
        )
        return None if is_over else 1

    def _introduce(self, live: LiveRun) -> None:
        metadata, self._metadata = self._metadata, None
        if metadata is not None:
            live.push(
                OUTSIDE, 0, [verbatim_chunk("inngest.metadata", metadata.data)], RecordKind.VERBATIM
            )

    def _push_verbatim(self, live: LiveRun, event: str, data: bytes) -> None:
        self._introduce(live)
        live.push(OUTSIDE, 0, [verbatim_chunk(event, data)], RecordKind.VERBATIM)
