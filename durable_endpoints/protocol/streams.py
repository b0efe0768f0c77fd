"""A run's stream log: what it is made of.

The log is a list of *records*. What one step pushes in one go is one record of several chunks, all
of one kind: data, progress, or lines of its log. The end of a step's try is a record of its own,
which makes the try's chunks permanent or withdraws them. Every chunk and every such end has a
position; positions count from 1, without gaps, and are the ids of the frames that readers get
(`frames.py`).
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

FRAME = 100
"""Bytes that a chunk weighs beside its own: what its frame adds to it."""
OUTSIDE = ""
"""Stands for the step where there is none: the handler's own code between its steps."""


class RecordKind(IntEnum):
    """What a record says. The numbers are stored."""

    DATA = 1
    COMMIT = 2
    """The step's chunks since its last end are permanent."""
    ROLLBACK = 3
    """The step's chunks since its last end are withdrawn."""
    PROGRESS = 4
    LOG = 5
    VERBATIM = 6
    """Frames of another SDK that are none of these, each as `["<event>",<data>]`. They are neither
    committed nor withdrawn."""

    @property
    def is_end(self) -> bool:
        """Whether it ends a try, rather than holding chunks of it."""
        return self in (RecordKind.COMMIT, RecordKind.ROLLBACK)


class Silence(Enum):
    """Why a reader gets no frames."""

    YET = "nothing came in time"
    OVER = "the run has ended, or is parked, and this was everything"
    ELSEWHERE = "this process is about to end: ask again, where the run goes on"


class StreamStart(NamedTuple):
    """What a reader wants."""

    after: int = 0
    """The last position it has."""
    passed: int = 0
    """How many of the chunks that are committed at the next position it has as well: only where
    it wants `committed` ones."""
    committed: bool = False
    """Only what is committed, where and when it is."""
    skips_sync: bool = False
    """Begin where the execution that the client's own request drove has left the log, once it
    has."""


class StreamRecord(NamedTuple):
    """One record of the log."""

    position: int
    """The position of its first chunk, or its own."""
    length: int
    """How many positions it takes."""
    kind: RecordKind
    step: str
    """The hash of the step's id, or `OUTSIDE`."""
    attempt: int
    """The try of the step that wrote it; 0 outside a step."""
    first: int
    """Where the chunks begin that a commit or a rollback is about: its own position if there are
    none, 0 if that is not known."""
    data: bytes
    """The chunks: JSON values, one on each line."""

    @property
    def last(self) -> int:
        """The position of its last chunk."""
        return self.position + self.length - 1

    @property
    def weight(self) -> int:
        """About as many bytes as its frames have."""
        return len(self.data) + FRAME * self.length

    def chunks(self) -> list[bytes]:
        """The chunks' JSON values."""
        return self.data.split(b"\n")
