"""Chunks of a stream, counted at both ends of a wire: so none is lost, and none is kept twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.streams import RecordKind, StreamRecord
from durable_endpoints.protocol.wire import WireError

_KINDS: Final = (RecordKind.DATA, RecordKind.PROGRESS, RecordKind.LOG)


class Chunks(NamedTuple):
    """Chunks that are counted together."""

    step: str
    attempt: int
    kind: RecordKind


def chunks_of(step: Any, attempt: Any, kind: Any) -> Chunks:
    """From the parts of a frame. Raises `WireError`."""
    if kind not in _KINDS:
        raise WireError("chunks are data, progress or log lines")
    return Chunks(wire.text(step), wire.whole(attempt), RecordKind(kind))


def counted(records: Iterable[StreamRecord]) -> dict[Chunks, int]:
    """How many chunks of each kind there are among `records`."""
    counts: dict[Chunks, int] = {}
    for record in records:
        if not record.kind.is_end:
            key = Chunks(record.step, record.attempt, record.kind)
            counts[key] = counts.get(key, 0) + record.length
    return counts


class ChunkCounts:
    """What one execution has pushed, and what of that is written."""

    def __init__(self, known: Mapping[Chunks, int]) -> None:
        """`known` is what the log had of it when it was found again."""
        self._received = dict(known)
        self._written = dict(known)

    def new(self, key: Chunks, ordinal: int, values: list[Any]) -> list[bytes]:
        """Those of `values` that did not come before. `ordinal` counts those of their kind that
        were pushed before them. Raises `WireError`."""
        chunks = [wire.json_text(value) for value in values]
        if any(b"\n" in chunk for chunk in chunks):
            raise WireError("a chunk is JSON on one line")
        received = self._received.get(key, 0)
        if not 0 <= ordinal <= received:
            raise WireError(f"chunk {ordinal} follows {received} of its kind")
        found = chunks[received - ordinal :]
        self._received[key] = received + len(found)
        return found

    def wrote(self, records: Sequence[StreamRecord]) -> list[list[Any]]:
        """These records are written. Returns the counts that this changes."""
        added = counted(records)
        for key, count in added.items():
            self._written[key] = self._written.get(key, 0) + count
        return [self._told(key) for key in added]

    def all_written(self) -> list[list[Any]]:
        """How much is written of each kind."""
        return [self._told(key) for key in self._written]

    def _told(self, key: Chunks) -> list[Any]:
        return [key.step, key.attempt, int(key.kind), self._written[key]]
