"""Every rule about what a run's stream log says. Pure, like the rules of the run itself.

The log follows the facts. Whoever writes a decision about a run asks `follow` what the log has to
say about it, and writes both in one change: a step's chunks are permanent exactly if its result is,
and no crash can leave one without the other.

Chunks pushed by a step belong to one try of it, until the try's end commits them or rolls them
back. Chunks pushed outside a step are counted instead: a replay pushes them again, and those that
are in the log already are dropped. The next fact that reaches the disk commits them; a handler that
fails has those since then rolled back, and pushes them again when it is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from durable_endpoints.protocol.errors import LimitError
from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.streams import FRAME, OUTSIDE, RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    Change,
    Fact,
    RunChanged,
    RunEnded,
    StepWritten,
    Streamed,
)
from durable_endpoints_server.engine.model import Policy, Status, Stream

_MAX_RECORD = 64 * 1024
"""The weight of one record, unless a single chunk is heavier: what readers get in one piece."""
_WITH_OUTCOME = (StepKind.RUN, StepKind.SEND)
"""Steps whose outcome readers are told: those that run something."""


class Chunk(NamedTuple):
    """One pushed value, as JSON."""

    step: str
    attempt: int
    value: bytes
    kind: RecordKind = RecordKind.DATA


def weight_of(values: Sequence[bytes]) -> int:
    """What chunks count for, in bytes."""
    return sum(map(len, values)) + FRAME * len(values)


def check_room(used: int, weight: int, policy: Policy) -> None:
    """Raise `LimitError` if `weight` more is more than a run may stream."""
    if used + weight > policy.max_stream:
        raise LimitError(f"the run would stream more than {policy.max_stream:,} bytes (max_stream)")


def append(stream: Stream, chunks: Sequence[Chunk]) -> tuple[Stream, list[StreamRecord]]:
    """Put `chunks` at the end of the log: those of one try and one kind that stand together in one
    record."""
    log = _Log(stream)
    start = 0
    while start < len(chunks):
        step, attempt, _, kind = chunks[start]
        end, size = start, 0
        while end < len(chunks) and _is_alike(chunks[end], chunks[start]):
            size += len(chunks[end].value) + FRAME
            if size > _MAX_RECORD and end > start:
                break
            end += 1
        log.add(kind, step, attempt, [chunk.value for chunk in chunks[start:end]])
        start = end
    return log.stream, log.records


def append_committed(
    stream: Stream, step: str, values: list[bytes]
) -> tuple[Stream, list[StreamRecord]]:
    """Put chunks of a step at the end of the log whose result is on its way to the disk, or there:
    they are committed at once."""
    log = _Log(stream)
    log.add(RecordKind.DATA, step, 0, values)
    log.close(step, RecordKind.COMMIT, 0)
    return log.stream, log.records


def _is_alike(chunk: Chunk, other: Chunk) -> bool:
    return (chunk.step, chunk.attempt, chunk.kind) == (other.step, other.attempt, other.kind)


def follow(stream: Stream, facts: Iterable[Fact]) -> tuple[Stream, list[StreamRecord]]:
    """What the log has to say about `facts`, which one decision has made."""
    log = _Log(stream)
    for fact in facts:
        if isinstance(fact, StepWritten):
            _follow_step(log, fact.step)
        elif isinstance(fact, RunChanged):
            if fact.run.status is Status.RUNNING:
                _follow_claim(log)
            else:
                _follow_leave(log)
        elif isinstance(fact, RunEnded):
            log.close_all(commit_outside=fact.run.status is Status.COMPLETED)
    return log.stream, log.records


def with_stream(change: Change, stream: Stream) -> tuple[Change, tuple[StreamRecord, ...]]:
    """`change` with what the log has to say about it, and the records among that."""
    after, records = follow(stream, change.facts)
    if after is stream:
        return change, ()
    return change._replace(facts=(Streamed(tuple(records), after), *change.facts)), tuple(records)


def withdraw(stream: Stream, step: str) -> tuple[Stream, list[StreamRecord]]:
    """A try of a step was given up without an outcome: its chunks are withdrawn, if it has any."""
    log = _Log(stream)
    if step in stream.open:
        log.close(step, RecordKind.ROLLBACK, 0)
    return log.stream, log.records


def _follow_step(log: _Log, step: StepRecord) -> None:
    if step.kind is StepKind.HANDLER:
        if step.due is not None:
            log.close_outside(RecordKind.ROLLBACK)
        return
    if step.state is StepState.RETRYING and step.due is None:
        return  # its time has come: nothing new
    log.close_outside(RecordKind.COMMIT)
    if step.kind in _WITH_OUTCOME:
        done = step.state is StepState.DONE
        kind = RecordKind.COMMIT if done else RecordKind.ROLLBACK
        log.close(step.id.hash, kind, step.attempt)


def _follow_leave(log: _Log) -> None:
    log.close_all(commit_outside=True)
    if log.stream.handed_over is None:
        log.stream = log.stream._replace(handed_over=log.stream.tail)


def _follow_claim(log: _Log) -> None:
    """Whatever an execution that vanished had begun is withdrawn before anything else is said."""
    if log.stream.handed_over is None:
        log.stream = log.stream._replace(handed_over=log.stream.tail)
    for step in [step for step in log.stream.open if step != OUTSIDE]:
        log.close(step, RecordKind.ROLLBACK, 0)
    if log.stream.is_wary:
        log.close(OUTSIDE, RecordKind.ROLLBACK, 0)


class _Log:
    """The log while something is added to it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.records: list[StreamRecord] = []

    def add(self, kind: RecordKind, step: str, attempt: int, values: list[bytes]) -> None:
        if kind is RecordKind.VERBATIM:
            position, data = self.stream.tail + 1, b"\n".join(values)
            self._add(StreamRecord(position, len(values), kind, step, attempt, 0, data))
            return
        if self.stream.is_wary and step not in self.stream.open:
            self._end(step, RecordKind.ROLLBACK, attempt, 0)
        stream, data = self.stream, b"\n".join(values)
        position = stream.tail + 1
        self._add(StreamRecord(position, len(values), kind, step, attempt, 0, data))
        opened = stream.open
        if step not in opened:
            opened = {**opened, step: position}
        outside = stream.outside + (len(values) if step == OUTSIDE else 0)
        self.stream = self.stream._replace(open=opened, outside=outside)

    def close(self, step: str, kind: RecordKind, attempt: int) -> None:
        """A step's try has ended."""
        first = self.stream.open.get(step)
        if first is None:
            first = 0 if self.stream.is_wary else self.stream.tail + 1
            if not first and kind is RecordKind.COMMIT:
                self._end(step, RecordKind.ROLLBACK, attempt, 0)
                first = self.stream.tail + 1
        self._end(step, kind, attempt, first)

    def close_outside(self, kind: RecordKind) -> None:
        if OUTSIDE in self.stream.open:
            self.close(OUTSIDE, kind, 0)

    def close_all(self, commit_outside: bool) -> None:
        """Nothing stays open: what has not been committed by now is not."""
        self.close_outside(RecordKind.COMMIT if commit_outside else RecordKind.ROLLBACK)
        for step in list(self.stream.open):
            self.close(step, RecordKind.ROLLBACK, 0)

    def _end(self, step: str, kind: RecordKind, attempt: int, first: int) -> None:
        position = self.stream.tail + 1
        self._add(StreamRecord(position, 1, kind, step, attempt, first, b""))
        stream = self.stream
        if step in stream.open:
            opened = {other: at for other, at in stream.open.items() if other != step}
            stream = stream._replace(open=opened)
        if step == OUTSIDE and kind is RecordKind.COMMIT:
            stream = stream._replace(outside_committed=stream.outside)
        elif step == OUTSIDE:
            stream = stream._replace(outside=stream.outside_committed)
        self.stream = stream

    def _add(self, record: StreamRecord) -> None:
        self.records.append(record)
        stream = self.stream
        self.stream = stream._replace(tail=record.last, size=stream.size + record.weight)


def started(generation: int) -> Stream:
    """An empty log, of a run whose execution has this generation."""
    return Stream(handed_over=None if generation == 1 else 0)
