"""The rules of the stream log."""

from __future__ import annotations

import pytest

from durable_endpoints.protocol.errors import LimitError
from durable_endpoints.protocol.ops import StepDone, StepFailed, StepKind, StepRetry
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId, hash_name
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import StreamSkipped
from durable_endpoints_server.engine.model import Policy, Run, Stream
from durable_endpoints_server.engine.streams import (
    Chunk,
    append,
    append_committed,
    check_room,
    follow,
    started,
    withdraw,
)
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Claim,
    Command,
    Interrupt,
    Release,
    Resolve,
    Suspend,
    decide,
    register,
)

POLICY = Policy()
DATA, COMMIT, ROLLBACK = RecordKind.DATA, RecordKind.COMMIT, RecordKind.ROLLBACK
A, B = StepId(hash_name("a"), "a", 0), StepId(hash_name("b"), "b", 0)


class Log:
    """A run and its log, decision by decision."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.run: Run = register(NewRun("r", "f", "", "GET", "/", b""), "me", None, 0).run
        self.stream = stream if stream is not None else started(1)
        self.records: list[StreamRecord] = []

    def push(self, step: StepId | None, *values: bytes, attempt: int = 1) -> list[StreamRecord]:
        key = OUTSIDE if step is None else step.hash
        self.stream, records = append(self.stream, [Chunk(key, attempt, v) for v in values])
        self.records += records
        return records

    def report(self, step: StepId | None, kind: RecordKind, value: bytes) -> None:
        key = OUTSIDE if step is None else step.hash
        self.stream, records = append(self.stream, [Chunk(key, 1, value, kind)])
        self.records += records

    def do(self, command: Command) -> list[tuple[RecordKind, str, int]]:
        decision = decide(self.run, command, 0, POLICY)
        self.run = decision.run
        self.stream, records = follow(self.stream, decision.change.facts)
        self.records += records
        return [(record.kind, record.step, record.first) for record in records]


def done(step: StepId, attempt: int = 1) -> StepDone:
    return StepDone(step, StepKind.RUN, b"1", attempt)


def test_chunks_of_one_try_are_one_record_and_every_chunk_has_a_position() -> None:
    log = Log()
    log.push(A, b"1", b"2", b"3")
    log.push(A, b"4")
    log.do(done(A))
    found = [(r.position, r.last, r.kind, r.data) for r in log.records]
    assert found == [(1, 3, DATA, b"1\n2\n3"), (4, 4, DATA, b"4"), (5, 5, COMMIT, b"")]
    assert (log.stream.tail, log.stream.size, log.stream.open) == (5, 506, {})
    assert log.records[-1].first == 1


def test_chunks_of_several_steps_keep_their_order() -> None:
    chunks = [Chunk("a", 1, b"1"), Chunk("b", 1, b"2"), Chunk("a", 1, b"3"), Chunk("a", 2, b"4")]
    stream, records = append(started(1), chunks)
    assert [(r.position, r.step, r.attempt) for r in records] == [
        (1, "a", 1),
        (2, "b", 1),
        (3, "a", 1),
        (4, "a", 2),
    ]
    assert stream.open == {"a": 1, "b": 2}


def test_progress_and_log_lines_are_chunks_in_records_of_their_own() -> None:
    log = Log()
    chunks = [
        Chunk(A.hash, 1, b"1"),
        Chunk(A.hash, 1, b"2", RecordKind.PROGRESS),
        Chunk(A.hash, 1, b"3", RecordKind.LOG),
        Chunk(A.hash, 1, b"4", RecordKind.LOG),
        Chunk(A.hash, 1, b"5"),
    ]
    log.stream, records = append(log.stream, chunks)
    assert [(record.position, record.length, record.kind) for record in records] == [
        (1, 1, DATA),
        (2, 1, RecordKind.PROGRESS),
        (3, 2, RecordKind.LOG),
        (5, 1, DATA),
    ]
    assert log.do(done(A)) == [(COMMIT, A.hash, 1)]


@pytest.mark.parametrize("kind", [RecordKind.PROGRESS, RecordKind.LOG])
def test_what_is_reported_has_the_fate_of_what_is_streamed(kind: RecordKind) -> None:
    log = Log()
    log.report(None, kind, b"1")
    log.report(A, kind, b"2")
    assert log.stream.outside == 1
    retry = StepRetry(A, StepKind.RUN, b"{}", 1, 0, 5)
    assert log.do(retry) == [(COMMIT, OUTSIDE, 1), (ROLLBACK, A.hash, 2)]
    assert (log.stream.outside_committed, dict(log.stream.open)) == (1, {})


def test_a_record_is_of_limited_size_but_for_one_large_chunk() -> None:
    large = b"1" * 100_000
    small = b"2" * 40_000
    _, records = append(started(1), [Chunk("a", 1, v) for v in (small, small, large, small)])
    assert [r.length for r in records] == [1, 1, 1, 1]
    _, records = append(started(1), [Chunk("a", 1, b"3" * 10_000)] * 7)
    assert [r.length for r in records] == [6, 1]


def test_a_step_that_ends_has_its_chunks_committed_or_rolled_back() -> None:
    log = Log()
    log.push(A, b"1")
    assert log.do(StepRetry(A, StepKind.RUN, b"{}", 1)) == [(ROLLBACK, A.hash, 1)]
    log.push(A, b"2", attempt=2)
    assert log.do(done(A, 2)) == [(COMMIT, A.hash, 3)]
    log.push(B, b"3")
    assert log.do(StepFailed(B, StepKind.RUN, b"{}", 1)) == [(ROLLBACK, B.hash, 5)]


def test_a_step_without_chunks_is_told_too() -> None:
    assert Log().do(done(A)) == [(COMMIT, A.hash, 1)]
    assert Log().do(StepFailed(A, StepKind.RUN, b"{}", 1)) == [(ROLLBACK, A.hash, 1)]


def test_a_retry_that_is_due_is_nothing_new() -> None:
    log = Log()
    log.do(StepRetry(A, StepKind.RUN, b"{}", 1))
    retrying = decide(log.run, StepRetry(A, StepKind.RUN, b"{}", 1), 0, POLICY).change.facts[0]
    assert log.do(Resolve(retrying.step)) == []  # type: ignore[union-attr]


def test_chunks_outside_steps_are_committed_with_the_next_fact() -> None:
    log = Log()
    log.push(None, b"1", b"2", attempt=0)
    assert log.do(done(A)) == [(COMMIT, OUTSIDE, 1), (COMMIT, A.hash, 4)]
    assert (log.stream.outside, log.stream.outside_committed) == (2, 2)
    log.push(None, b"3", attempt=0)
    assert log.do(Suspend()) == [(COMMIT, OUTSIDE, 5)]
    assert log.stream.outside_committed == 3


def test_a_handler_that_fails_has_those_since_then_rolled_back() -> None:
    log = Log()
    log.push(None, b"1", attempt=0)
    log.do(done(A))
    log.push(None, b"2", b"3", attempt=0)
    assert log.stream.outside == 3
    retry = StepRetry(HANDLER_STEP, StepKind.HANDLER, b"{}", 1)
    assert log.do(retry) == [(ROLLBACK, OUTSIDE, 4)]
    assert (log.stream.outside, log.stream.outside_committed) == (1, 1)
    assert log.do(Suspend()) == []


def test_an_end_leaves_nothing_open() -> None:
    for command, outside in (
        (Complete(200, None), COMMIT),
        (Fail("exception", None), ROLLBACK),
        (Cancel("x"), ROLLBACK),
    ):
        log = Log()
        log.push(None, b"1", attempt=0)
        log.push(A, b"2")
        assert log.do(command) == [(outside, OUTSIDE, 1), (ROLLBACK, A.hash, 2)]
        assert log.stream.open == {}


def test_where_the_first_execution_left_is_noted_once() -> None:
    log = Log()
    log.push(A, b"1")
    log.do(done(A))
    assert log.stream.handed_over is None
    log.do(Release("released"))
    assert log.stream.handed_over == 2
    log.do(Claim("me", None))
    log.push(B, b"2")
    log.do(Suspend())
    assert log.stream.handed_over == 2


def test_what_a_lost_execution_had_begun_is_withdrawn_first() -> None:
    log = Log()
    log.push(None, b"0", attempt=0)
    log.push(A, b"1")
    log.push(B, b"2")
    log.run = decide(log.run, Interrupt(alone=False), 0, POLICY).run
    assert log.do(Claim("me", None)) == [(ROLLBACK, A.hash, 2), (ROLLBACK, B.hash, 3)]
    assert log.stream.handed_over == 3
    assert log.stream.outside == 1, "what was pushed outside steps is not pushed again"


def test_after_a_loss_of_power_every_step_begins_with_a_rollback() -> None:
    """Readers may hold chunks that are in no log any more."""
    run = register(NewRun("r", "f", "", "GET", "/", b""), "me", None, 0).run
    facts = decide(run, Interrupt(alone=False, rebooted=True), 0, POLICY).change.facts
    assert StreamSkipped(1_000_000) in facts
    assert StreamSkipped(1_000_000) not in decide(run, Interrupt(False), 0, POLICY).change.facts

    log = Log(started(1)._replace(tail=1_000_005, outside=3, outside_committed=1, is_wary=True))
    log.run = decide(log.run, Interrupt(alone=False), 0, POLICY).run
    assert log.do(Claim("me", None)) == [(ROLLBACK, OUTSIDE, 0)]
    assert log.stream.outside == 1, "what was not committed is pushed again"
    kinds = [(r.kind, r.first) for r in log.push(A, b"1", b"2")]
    assert kinds == [(ROLLBACK, 0), (DATA, 0)]
    assert log.push(A, b"3")[0].kind is DATA
    assert log.do(done(A)) == [(COMMIT, A.hash, 1_000_008)]
    assert log.do(done(B)) == [(ROLLBACK, B.hash, 0), (COMMIT, B.hash, 1_000_013)]


def test_a_run_streams_no_more_than_it_may() -> None:
    check_room(10, 5, POLICY._replace(max_stream=15))
    with pytest.raises(LimitError, match="max_stream"):
        check_room(10, 6, POLICY._replace(max_stream=15))


def test_a_try_without_an_outcome_is_withdrawn() -> None:
    log = Log()
    log.push(A, b"1", b"2")
    log.push(B, b"3")
    stream, records = withdraw(log.stream, A.hash)
    assert [(r.kind, r.step, r.first) for r in records] == [(ROLLBACK, A.hash, 1)]
    assert dict(stream.open) == {B.hash: 3}
    assert withdraw(stream, A.hash) == (stream, [])


def test_chunks_that_come_after_their_steps_result_are_committed_at_once() -> None:
    stream, records = append_committed(started(1), A.hash, [b"1", b"2"])
    assert [(r.kind, r.position, r.first) for r in records] == [(DATA, 1, 0), (COMMIT, 3, 1)]
    assert dict(stream.open) == {}


def test_a_log_that_a_later_execution_begins_has_nothing_of_the_first() -> None:
    """Where its client goes on, who has read what the first one streamed: at the beginning."""
    assert started(1).handed_over is None
    assert started(3).handed_over == 0
