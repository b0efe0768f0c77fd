"""What a reader of a stream gets to see."""

from __future__ import annotations

from typing import Any, NamedTuple


class Metadata(NamedTuple):
    """The stream has begun. Told once, however often the connection is made anew."""

    run_id: str


class Chunk(NamedTuple):
    """Something was pushed. It can still be withdrawn, until its step's commit."""

    data: Any
    """What the handler pushed: any JSON value, most often a text."""
    step: str | None
    """The hash of the step's id; None outside the steps."""
    position: str
    """Give it as `last_event_id` to go on behind this event."""


class Commit(NamedTuple):
    """The chunks of `step` since its last commit or rollback are permanent."""

    step: str | None
    position: str


class Rollback(NamedTuple):
    """The chunks of `step` since its last commit or rollback are withdrawn; a new try or a failure
    follows."""

    step: str | None
    position: str


class Progress(NamedTuple):
    """How far the work of a step, or of the handler, is: `step.progress`."""

    current: float
    total: float | None
    """None if it is not known."""
    message: str | None
    step: str | None
    position: str


class Log(NamedTuple):
    """A line that a step, or the handler, has written for its readers: `step.log`."""

    level: str
    """`debug`, `info`, `warning` or `error`."""
    message: str
    data: dict[str, Any]
    time: int
    """When, in epoch milliseconds."""
    step: str | None
    position: str


StreamEvent = Metadata | Chunk | Commit | Rollback | Progress | Log
