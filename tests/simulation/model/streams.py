"""What a run's stream log must say, and what a reader makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import orjson

from durable_endpoints.protocol.ops import StepKind, StepState
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    Change,
    RunChanged,
    RunEnded,
    StepWritten,
    Streamed,
    StreamSkipped,
)
from durable_endpoints_server.engine.model import Run, Status, Stream
from tests.simulation.model.books import Books, ViolationError
from tests.simulation.programs import Send, Step

_TELLING: Final = (StepKind.RUN, StepKind.SEND)
"""Kinds of steps of which readers are told how each try ended."""


class View:
    """What somebody has who does what a stream says: those chunks of a step are permanent that were
    not withdrawn before its next commit."""

    def __init__(self) -> None:
        self.permanent: dict[str, str] = {OUTSIDE: ""}
        self.open: dict[str, str] = {}

    def take(self, records: Iterable[StreamRecord]) -> None:
        """The next records of the log."""
        for record in records:
            if record.kind is RecordKind.DATA:
                said = "".join(orjson.loads(chunk) for chunk in record.chunks())
                self.open[record.step] = self.open.get(record.step, "") + said
            elif record.kind.is_end:
                said = self.open.pop(record.step, "")
                if record.kind is RecordKind.COMMIT and said:
                    self.permanent[record.step] = self.permanent.get(record.step, "") + said


def check_log(books: Books, change: Change, stream: Stream) -> None:
    """What a change adds to the log, and how that then stands. To be asked before the change is
    noted in the books."""
    said = [r for fact in change.facts if isinstance(fact, Streamed) for r in fact.records]
    ledger = books.ledger
    if any(isinstance(fact, StreamSkipped) for fact in change.facts):
        ledger.is_wary = True
    _check_records(books, said)
    found = dict(stream.open), stream.outside, stream.outside_committed, stream.size
    right = ledger.open, ledger.outside, ledger.committed, ledger.size
    if found != right or stream.is_wary != ledger.is_wary:
        raise ViolationError(f"the log of {change.run_id} is {stream}; right would be {right}")
    records = [record for record in said if record.kind.is_end]
    for fact in change.facts:
        if isinstance(fact, StepWritten):
            _check_step(books, fact, records, stream)
        elif isinstance(fact, RunChanged):
            _check_run(books.run, fact.run, records, stream)
        elif isinstance(fact, RunEnded):
            _check_end(fact.run, records)
    _check_handed_over(books, change, stream)
    for record in records:
        if record.step and not isinstance(books.nodes[record.step], Step | Send):
            raise ViolationError(f"readers of {change.run_id} are told of {record}")


def _check_records(books: Books, records: Sequence[StreamRecord]) -> None:
    """Each end says from where on it counts: from the first chunk of its try. After a loss of power
    nobody knows what readers have: whatever begins then is preceded by a word about that."""
    ledger = books.ledger
    withdrawn: str | None = None
    """The step of the record before, if that one has withdrawn something."""
    for record in records:
        step, is_end = record.step, record.kind.is_end
        is_first = step not in ledger.open and record.kind is not RecordKind.ROLLBACK
        if ledger.is_wary and is_first and withdrawn != step:
            raise ViolationError(f"{record} of {books.run.id} follows what nobody has withdrawn")
        if is_end:
            is_whole = ledger.is_wary and record.kind is RecordKind.ROLLBACK
            first = ledger.open.pop(step, 0 if is_whole else record.position)
            if record.first != first:
                raise ViolationError(f"{record} of {books.run.id} counts from {first}")
        elif step not in ledger.open:
            ledger.open[step] = record.position
        if step == OUTSIDE:
            ledger.note(record)
        ledger.size += record.weight
        withdrawn = step if record.kind is RecordKind.ROLLBACK else None


def _check_step(
    books: Books, fact: StepWritten, records: list[StreamRecord], stream: Stream
) -> None:
    step = fact.step
    if step.state is StepState.RETRYING and step.due is None:
        if any(r.step == step.id.hash or r.kind is RecordKind.COMMIT for r in records):
            raise ViolationError(f"{step.id} is to be tried again, and readers are told {records}")
        return
    if step.kind is StepKind.HANDLER:
        if OUTSIDE in stream.open or any(r.kind is RecordKind.COMMIT for r in records):
            raise ViolationError(f"the handler failed, and readers are told {records}")
    elif step.kind in _TELLING:
        is_done = step.state is StepState.DONE
        wanted = RecordKind.COMMIT if is_done else RecordKind.ROLLBACK
        last = [record for record in records if record.step == step.id.hash][-1:]
        if not last or last[0].kind is not wanted or last[0].attempt != step.attempt:
            raise ViolationError(f"{step.id} is {step}, and readers are told {records}")
    if step.kind is not StepKind.HANDLER and OUTSIDE in stream.open:
        raise ViolationError(f"{step.id} is written, and what the handler streamed before is not")


def _check_run(before: Run, after: Run, records: list[StreamRecord], stream: Stream) -> None:
    own = [record.kind for record in records if record.step == OUTSIDE]
    if after.status is Status.RUNNING:
        still_open = stream.open.keys() - ({OUTSIDE} if not stream.is_wary else set())
        is_told = RecordKind.ROLLBACK in own or not stream.is_wary
        if still_open or RecordKind.COMMIT in own or not is_told:
            raise ViolationError(f"run {after.id} goes on, and its log has {stream}, {records}")
    elif _is_left(before, after) and (stream.open or RecordKind.ROLLBACK in own[-1:]):
        raise ViolationError(f"run {after.id} was left, and its log has {stream}, {records}")


def _check_end(run: Run, records: list[StreamRecord]) -> None:
    own = [record.kind for record in records if record.step == OUTSIDE]
    if run.status is not Status.COMPLETED and RecordKind.COMMIT in own:
        raise ViolationError(f"run {run.id} is {run.status.label}, and readers are told {records}")


def _is_left(before: Run, after: Run) -> bool:
    """Whether an execution has left its run by itself: not one that is gone."""
    is_over = before.status is Status.RUNNING and after.status is not Status.RUNNING
    return is_over and after.reason not in ("interrupted", "interrupted_too_often")


def _check_handed_over(books: Books, change: Change, stream: Stream) -> None:
    """Where a client goes on that has read what its own request streamed: where that was left."""
    run, tail = books.run, books.tail
    must_be = run.generation > 1 and any(isinstance(fact, Streamed) for fact in change.facts)
    for fact in change.facts:
        if isinstance(fact, RunChanged):
            must_be = fact.run.status is Status.RUNNING or _is_left(run, fact.run)
            is_first = run.generation == 1
            tail = stream.tail if is_first and _is_left(run, fact.run) else tail
        elif isinstance(fact, RunEnded):
            # Somebody may end it who has not gone on with it.
            must_be = must_be and stream.handed_over is not None
    right = books.handed_over if books.handed_over is not None else tail if must_be else None
    if stream.handed_over != right:
        raise ViolationError(
            f"what the request of {run.id} streamed ends at {right}, not at {stream.handed_over}"
        )
    books.handed_over = right


def text_of(records: Iterable[StreamRecord]) -> Mapping[str, str]:
    """The permanent text of a whole log, by step. Raises `ViolationError` if something in it is
    neither permanent nor withdrawn."""
    view = View()
    view.take(records)
    if view.open:
        raise ViolationError(f"chunks of {sorted(view.open)} are neither")
    return view.permanent
