"""What readers of stream logs share: the news, and what was written last, ready as frames.

Nothing is kept for a run that nobody reads, and what is kept of others is bounded: a reader that
falls behind reads the log itself (`stream_reader.py`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from durable_endpoints.protocol.frames import record_frames
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.store.base import Store

_KEPT = 512 * 1024
"""Bytes of frames that are kept for readers who keep up with a stream."""


class Streams:
    """All streams that are read in this process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_released = False
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()

    def publish(self, run_id: str, records: Sequence[StreamRecord]) -> None:
        """These records are written."""
        channel = self._channels.get(run_id)
        if channel is not None:
            channel.publish(records)

    def look_again(self, run_id: str) -> None:
        """Something else about the run is written that readers may have to see: its end."""
        channel = self._channels.get(run_id)
        if channel is not None:
            channel.look_again()

    def release_all(self) -> None:
        """Let every reader go, to ask again elsewhere: this process is about to end."""
        self.is_released = True
        for channel in list(self._channels.values()):
            channel.look_again()

    def is_read(self, run_id: str) -> bool:
        """Whether somebody reads the run's stream in this process."""
        return run_id in self._channels

    def enter(self, run_id: str) -> Channel:
        """One more reader."""
        with self._lock:
            channel = self._channels.setdefault(run_id, Channel())
            channel.readers += 1
            return channel

    def leave(self, run_id: str, channel: Channel) -> None:
        """One less."""
        with self._lock:
            channel.readers -= 1
            if not channel.readers and self._channels.get(run_id) is channel:
                del self._channels[run_id]
                channel.clear()


class Kept(NamedTuple):
    """A record as readers get it."""

    record: StreamRecord
    frames: bytes


class Channel:
    """What the readers of one run in this process share."""

    def __init__(self) -> None:
        self.readers = 0
        self.looks = 0
        """Grows whenever the store may have to be asked."""
        self._kept: deque[Kept] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def publish(self, records: Sequence[StreamRecord]) -> None:
        with self._lock:
            for record in records:
                kept = Kept(record, record_frames(record))
                self._kept.append(kept)
                self._size += len(kept.frames)
            while self._size > _KEPT and len(self._kept) > 1:
                self._size -= len(self._kept.popleft().frames)
        self._wake()

    def clear(self) -> None:
        """Nobody reads any more."""
        with self._lock:
            self._kept.clear()

    def look_again(self) -> None:
        """Something may have happened that only the store tells."""
        self.looks += 1
        self._wake()

    def after(self, position: int) -> Sequence[Kept] | None:
        """Everything that was published beyond `position`; None if not all of it is kept."""
        with self._lock:
            if not self._kept or (newest := self._kept[-1]).record.last <= position:
                return ()
            if newest.record.position == position + 1:
                return (newest,)
            if self._kept[0].record.position > position + 1:
                return None
            found: list[Kept] = []
            for kept in reversed(self._kept):
                if kept.record.last <= position:
                    break
                found.append(kept)
            return found[::-1]

    def listener(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Resolved at the next `publish` or `look_again`. To be given back to `forget`."""
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.add(future)
        return future

    def forget(self, future: asyncio.Future[None]) -> None:
        self._waiting.discard(future)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for future in waiting:
            if future.get_loop() is here:
                resolve(future)
            else:
                try:
                    future.get_loop().call_soon_threadsafe(resolve, future)
                except RuntimeError:
                    pass  # that loop is closed


def resolve(future: asyncio.Future[None]) -> None:
    """Wake whoever awaits it, unless somebody has."""
    if not future.done():
        future.set_result(None)
