"""What has been streamed and not withdrawn, from the events of a stream. Pure."""

from __future__ import annotations

from durable_endpoints.client.events import Chunk, Commit, Rollback, StreamEvent


class Transcript:
    """Feed it every event; it keeps the chunks in their order. (Progress and log lines are none.)

    A commit or a rollback is about the chunks of its own step since that step's last one, wherever
    they stand: chunks of other steps between them stay as they are.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Chunk] = {}  # by number, in order
        self._open: dict[str | None, list[int]] = {}  # the numbers of a step's uncommitted chunks
        self._committed: set[int] = set()
        self._count = 0

    def feed(self, event: StreamEvent) -> None:
        """Take in one event."""
        if isinstance(event, Chunk):
            self._kept[self._count] = event
            self._open.setdefault(event.step, []).append(self._count)
            self._count += 1
        elif isinstance(event, Commit):
            self._committed.update(self._open.pop(event.step, ()))
        elif isinstance(event, Rollback):
            for number in self._open.pop(event.step, ()):
                del self._kept[number]

    @property
    def chunks(self) -> list[Chunk]:
        """All that was not withdrawn."""
        return list(self._kept.values())

    @property
    def committed_chunks(self) -> list[Chunk]:
        """All that is permanent."""
        return [chunk for number, chunk in self._kept.items() if number in self._committed]

    @property
    def text(self) -> str:
        """The chunks that are texts, put together."""
        return _text(self.chunks)

    @property
    def committed_text(self) -> str:
        """The permanent chunks that are texts, put together."""
        return _text(self.committed_chunks)


def _text(chunks: list[Chunk]) -> str:
    return "".join(chunk.data for chunk in chunks if isinstance(chunk.data, str))
