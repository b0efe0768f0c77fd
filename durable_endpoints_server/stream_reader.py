"""A reader of a run's stream log: from any position, to the certain end.

A reader pulls: it asks for what comes after its position. If it keeps up, that is in memory; else
it is read from the log until the reader has caught up. So a slow one costs nothing but its own
time, and none can miss anything: it listens before it looks.

Who joins late is spared what was withdrawn before. Who has a part of a withdrawn try already is
told that it is withdrawn.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

from durable_endpoints.protocol.frames import committed_frames, record_frames
from durable_endpoints.protocol.streams import RecordKind, Silence, StreamRecord, StreamStart
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import NO_RECORDS, Rollback, StreamPage
from durable_endpoints_server.streams import Kept, Streams, resolve

_PAGE = 1024 * 1024
"""What is read from the log in one go: about as many bytes of frames."""


class Reader:
    """One reader of one run, on one event loop, until it is closed."""

    def __init__(
        self,
        streams: Streams,
        run_id: str,
        start: StreamStart,
        limit: Callable[[], int | None] = lambda: None,
        is_verbatim: bool = False,
    ) -> None:
        """`limit` tells the last position that it may have, once that is known. A verbatim reader
        gets what was withdrawn before it came as well, and no end of a try without chunks: the
        frames that another SDK has sent, whenever it joins."""
        self.stops_at_outcome = False
        """Whether the next frames shall end with the first commit or rollback of a step among
        them. It is reset then."""
        self.stays = False
        """Whether it goes on while this process drains."""
        self._streams = streams
        self._run_id = run_id
        self._position, self._passed = start.after, start.passed
        self._began_at = start.after
        self._committed = start.committed
        self._skips_sync = start.skips_sync
        self._limit = limit
        self._channel = streams.enter(run_id)
        self._looks = -1
        """The channel's, when the log was last read to its end."""
        self._is_verbatim = is_verbatim
        self._spared = _Spared((), 0) if is_verbatim else None
        """What was withdrawn between its position and the moment when it joined."""
        self._commit: _Commit | None = None
        """The commit whose chunks it is being told."""
        self._waiting: asyncio.Future[None] | None = None
        self._is_poked = self._is_over = False
        self.was_poked = False
        """Whether `next` has last returned because of `poke`."""

    @property
    def position(self) -> int:
        """The last position that it has whole."""
        return self._position

    @property
    def id(self) -> str:
        """The position as the id of a frame; empty while it is not known."""
        if self._skips_sync:
            return ""
        return f"{self._position + 1}.{self._passed}" if self._passed else str(self._position)

    async def next(self, patience: int) -> bytes | Silence:
        """The next frames, as soon as there are any, or why there are none after `patience` ms."""
        if frames := self._in_memory():
            return frames
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience / 1_000
        while True:
            # Listen before looking, so that nothing is missed between the two.
            self._waiting = waiting = self._channel.listener(loop)
            timer = None
            try:
                if self._streams.is_released and not self.stays:
                    return Silence.ELSEWHERE
                if not self._is_up_to_date and (frames := await self._look()):
                    return frames
                if self._is_over:
                    return Silence.OVER
                if self._is_poked or loop.time() >= deadline:
                    self.was_poked, self._is_poked = self._is_poked, False
                    return Silence.YET
                timer = loop.call_at(deadline, resolve, waiting)
                await waiting
            finally:
                self._waiting = None
                self._channel.forget(waiting)
                if timer is not None:
                    timer.cancel()
            if frames := self._in_memory():
                return frames

    def poke(self) -> None:
        """Let `next` look once more and return."""
        self._is_poked = True
        if self._waiting is not None:
            resolve(self._waiting)

    def close(self) -> None:
        """Nothing more is read."""
        self._streams.leave(self._run_id, self._channel)

    # Looking

    @property
    def _is_up_to_date(self) -> bool:
        """Whether there is nothing that it has not seen, neither in memory nor in the log."""
        if self._is_at_limit:
            return True
        if self._looks != self._channel.looks or self._commit is not None:
            return False
        if self._skips_sync:
            return True
        kept = self._channel.after(self._position)
        return kept is not None and not kept

    @property
    def _is_at_limit(self) -> bool:
        limit = self._limit()
        return limit is not None and self._position >= limit

    def _in_memory(self) -> bytes:
        """What is kept in memory beyond the position, for a reader that keeps up."""
        if self._spared is None or self._commit is not None:
            return b""
        kept = self._channel.after(self._position)
        return self._frames(kept) if kept else b""

    async def _look(self) -> bytes:
        """What there is beyond the position; notes whether nothing more will come."""
        while not self._is_at_limit:
            if self._commit is not None:
                return await self._committed_chunks(self._commit)
            if frames := self._in_memory():
                return frames
            if self._commit is not None:
                continue
            looks, store = self._channel.looks, self._streams.store
            if self._spared is None:
                head = await store.stream_page(self._run_id, NO_RECORDS, 1)
                if head is None or not await self._join(head):
                    self._looks, self._is_over = looks, head is None
                    return b""
            page = await store.stream_page(self._run_id, self._position, _PAGE)
            if page is None or not page.records:
                self._looks = looks
                self._is_over = page is None or _is_over(page.status)
                return b""
            if frames := self._frames([Kept(record, b"") for record in page.records]):
                return frames
        return b""

    async def _join(self, head: StreamPage) -> bool:
        """Find out where the reader begins, and what it is spared. False if that is not known."""
        if self._skips_sync:
            if head.handed_over is None and not head.status.is_final:
                return False
            self._skips_sync = False
            begin = head.tail if head.handed_over is None else head.handed_over
            self._position = self._began_at = begin
        found = [] if self._committed else await self._streams.store.rollbacks(self._run_id)
        self._spared = _Spared(
            [rollback for rollback in found if self._position < rollback.position <= head.tail],
            self._began_at,
        )
        return True

    def _frames(self, kept: Sequence[Kept]) -> bytes:
        pieces: list[bytes] = []
        limit = self._limit()
        for record, frames in kept:
            if record.last <= self._position:
                continue
            if limit is not None and record.position > limit:
                break
            if self._committed:
                if record.kind is RecordKind.COMMIT:
                    self._commit = _Commit(record, record.first, 1)
                    break
            elif self._is_verbatim and record.kind.is_end and record.first == record.position:
                pass
            elif self._spared is None or record not in self._spared:
                is_whole = bool(frames) and self._position < record.position
                pieces.append(frames if is_whole else record_frames(record, self._position))
            self._position = record.last
            if self.stops_at_outcome and record.kind.is_end and record.step:
                self.stops_at_outcome = False
                break
        return b"".join(pieces)

    async def _committed_chunks(self, commit: _Commit) -> bytes:
        """Some of the chunks that a commit is about, or in the end its own frame."""
        record, at, number = commit
        while True:
            found = await self._streams.store.step_chunks(
                self._run_id, record.step, at, record.position, _PAGE
            )
            if not found:
                self._commit, self._passed, self._position = None, 0, record.position
                return record_frames(record)
            pieces = []
            for chunks in found:
                pieces.append(committed_frames(chunks, record.position, number, self._passed))
                number += chunks.length
            at = found[-1].last + 1
            self._passed = max(self._passed, number - 1)
            self._commit = _Commit(record, at, number)
            if frames := b"".join(pieces):
                return frames


def _is_over(status: Status) -> bool:
    return status.is_final or status is Status.PARKED


class _Spared:
    """What a reader need not get, because it was withdrawn before it came, and the withdrawals of
    what it never had."""

    def __init__(self, rollbacks: Sequence[Rollback], began_at: int) -> None:
        self._needless = {rollback.position for rollback in rollbacks if rollback.first > began_at}
        self._firsts: dict[str, list[int]] = {}
        self._ends: dict[str, list[int]] = {}
        for position, step, first in rollbacks:
            if first:  # else it is about chunks that are in no log any more
                self._firsts.setdefault(step, []).append(first)
                self._ends.setdefault(step, []).append(position)

    def __contains__(self, record: StreamRecord) -> bool:
        if record.kind.is_end:
            return record.position in self._needless
        firsts = self._firsts.get(record.step)
        if firsts is None:
            return False
        # A step's tries follow each other: the last one that begins before is the only candidate.
        place = bisect(firsts, record.position) - 1
        return place >= 0 and record.position < self._ends[record.step][place]


class _Commit(NamedTuple):
    record: StreamRecord
    at: int
    """Where the chunks begin that are still to be told."""
    number: int
    """The number of the first of them among all that are committed here."""
