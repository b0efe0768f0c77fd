"""What a session has said and the server has not confirmed: it is said again on the next link.

Everything is kept in the order in which it was said, because a chunk that was pushed before a step
ended belongs to it, and one that is pushed after it does not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from durable_endpoints.engines.remote.link import Saying
from durable_endpoints.protocol.streams import FRAME, RecordKind
from durable_endpoints.protocol.wire import Frame

_MANY = 512
"""Chunks that travel in one frame at the most."""

Try = tuple[str, int, RecordKind]
"""What chunks are counted by: the step's hash, its try, and their kind."""


class Chunks:
    """Chunks of one try that stand together. More of them may join until they are sent."""

    __slots__ = ("begin", "is_sent", "run_id", "size", "source", "values")

    def __init__(self, run_id: str, source: Try, begin: int) -> None:
        self.run_id = run_id
        self.source = source
        self.begin = begin
        """The ordinal of the first one."""
        self.values: list[str] = []
        self.size = 0
        self.is_sent = False

    def add(self, value: bytes) -> None:
        self.values.append(value.decode())
        self.size += len(value) + FRAME

    def replace_last(self, value: bytes) -> int:
        """Let the last one be `value` instead. Returns how much larger that is."""
        more = len(value) - len(self.values[-1].encode())
        self.values[-1] = value.decode()
        self.size += more
        return more

    @property
    def end(self) -> int:
        """The ordinal after the last one."""
        return self.begin + len(self.values)

    @property
    def frame(self) -> Frame:
        step, attempt, kind = self.source
        return ["push", self.run_id, step, attempt, int(kind), self.begin, self.values]


class Journal:
    """What is not confirmed of one session: frames whose third part is the number by which the
    server confirms them, and chunks between them. `push` is for any thread, the rest for the loop.
    """

    __slots__ = ("_entries", "_guard", "_ordinals", "chunks", "chunks_size")

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._entries: deque[Frame | Chunks] = deque()
        self._ordinals: dict[Try, int] = {}
        self.chunks = 0
        """How many chunks are not known to be written …"""
        self.chunks_size = 0
        """… and what they weigh."""

    def add(self, frame: Frame) -> None:
        """Note a frame with a number."""
        # Without the guard: chunks that are pushed in this very moment may stand on either side.
        self._entries.append(frame)

    def push(
        self, run_id: str, source: Try, values: list[bytes], replaces: bool
    ) -> tuple[Saying | None, int]:
        """Note chunks, and return what is to be said, None if they travel with others, and by how
        much the stream grows. With `replaces`, the last one that was not sent may go, if it is of
        the same source."""
        with self._guard:
            last = self._entries[-1] if self._entries else None
            if isinstance(last, Chunks) and last.source == source and not last.is_sent:
                if replaces and len(values) == 1:
                    more = last.replace_last(values[0])
                    self.chunks_size += more
                    return None, more
                if len(last.values) + len(values) <= _MANY:
                    return None, self._add(last, values)
            chunks = Chunks(run_id, source, self._ordinals.get(source, 0))
            more = self._add(chunks, values)
            self._entries.append(chunks)
        return lambda: self._send(chunks), more

    def _add(self, chunks: Chunks, values: list[bytes]) -> int:
        before = chunks.size
        for value in values:
            chunks.add(value)
        self.chunks += len(values)
        self.chunks_size += chunks.size - before
        self._ordinals[chunks.source] = chunks.end
        return chunks.size - before

    def _send(self, chunks: Chunks) -> Frame | None:
        with self._guard:
            if chunks.is_sent:
                return None  # with everything else, on a new link
            chunks.is_sent = True
            return chunks.frame

    def confirm(self, number: int) -> None:
        """Everything up to a number is on disk, the chunks in between too."""
        with self._guard:
            entries = self._entries
            while entries:
                first = entries[0]
                if isinstance(first, Chunks):
                    if not self._is_before(number):
                        break
                    self._drop(first)
                elif first[2] > number:
                    break
                entries.popleft()

    def _is_before(self, number: int) -> bool:
        """Whether the first entry, of chunks, was said before what has this number."""
        following = next((one for one in self._entries if not isinstance(one, Chunks)), None)
        return following is not None and following[2] <= number

    def written(self, counts: Mapping[Try, int]) -> None:
        """So many of the chunks of each source are written."""
        with self._guard:
            left: deque[Frame | Chunks] = deque()
            for entry in self._entries:
                if isinstance(entry, Chunks) and entry.end <= counts.get(entry.source, 0):
                    self._drop(entry)
                else:
                    left.append(entry)
            self._entries = left

    def _drop(self, chunks: Chunks) -> None:
        self.chunks -= len(chunks.values)
        self.chunks_size -= chunks.size

    def everything(self) -> list[Frame]:
        """All of it, to be said again in this order."""
        with self._guard:
            for entry in self._entries:
                if isinstance(entry, Chunks):
                    entry.is_sent = True
            return [one.frame if isinstance(one, Chunks) else one for one in self._entries]

    def clear(self) -> None:
        """Nothing of it is to be said again."""
        with self._guard:
            self._entries.clear()
            self.chunks = self.chunks_size = 0
