"""Frames arrive as they were sent, and nothing else arrives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import (
    Alternative,
    Invoke,
    NewEvent,
    SendEvent,
    Sleep,
    StepDone,
    StepFailed,
    StepKind,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.streams import StreamStart

STEP = StepId("a" * 40, "grüße", 1)
RUN = NewRun(
    "01J", "POST /x", "v1", "POST", "/x", b"\x00\xff sealed", labels=b'{"a": 1.0}', key="k"
)

OPS: list[StepOp] = [
    StepDone(STEP, StepKind.RUN, b'{"n": 1.0, "big": 12345678901234567890}', 2, 17),
    StepFailed(STEP, StepKind.RUN, b'{"name":"E"}', 4, 1),
    StepRetry(STEP, StepKind.HANDLER, b'{"name":"E"}', 1, 5, 250),
    Sleep(STEP, duration=1_000),
    Sleep(STEP, until=2_000_000_000_000),
    WaitForEvent(STEP, StepKind.WAIT, (Alternative("", "e", (("data.id", "7"),), "a == b"),), 9),
    SendEvent(STEP, NewEvent("id", "name", b'{"x": null}', 5), b'"id"', 3),
    Invoke(STEP, RUN, 60_000),
]


def through(part: Any) -> Any:
    """A part of a frame, as it is at the other end."""
    return wire.decode(wire.encode([["frame", part]]))[0][1]


@pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)
def test_an_operation_arrives_byte_for_byte(op: StepOp) -> None:
    assert wire.unpack_op(through(wire.pack_op(op))) == op


@pytest.mark.parametrize(
    "step",
    [
        StepRecord(STEP, StepKind.RUN, StepState.DONE, 1, 3, b'"v"', None, None, 10, 20),
        StepRecord(STEP, StepKind.SLEEP, StepState.PENDING, due=99),
    ],
)
def test_a_step_arrives(step: StepRecord) -> None:
    assert wire.unpack_step(through(wire.pack_step(step))) == step


@pytest.mark.parametrize(
    "end",
    [
        Complete(201, b"\xffsealed", "", True, False),
        Fail("exception", b"{}", 500, b"r", False, True),
    ],
)
def test_an_end_arrives(end: Complete | Fail) -> None:
    assert wire.unpack_end(through(wire.pack_end(end))) == end


def test_a_new_run_and_a_start_arrive() -> None:
    assert wire.unpack_new_run(through(wire.pack_new_run(RUN))) == RUN
    start = StreamStart(5, 2, True, False)
    assert wire.unpack_start(through(wire.pack_start(start))) == start


@pytest.mark.parametrize("message", [b"", b"{", b"{}", b"[1]", b"[[]]", b"[[1]]", b"\xff"])
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=14,
)
READERS = [
    wire.unpack_op,
    wire.unpack_step,
    wire.unpack_new_run,
    wire.unpack_end,
    wire.unpack_start,
    wire.unpack_event,
    wire.unpack_id,
]


@given(st.sampled_from(READERS), JSON)
def test_junk_is_refused_and_nothing_else_happens(read: Any, junk: Any) -> None:
    try:
        read(junk)
    except wire.WireError:
        pass


@given(st.sampled_from(OPS), st.integers(0, 6), JSON)
def test_an_operation_with_a_wrong_part_is_refused_or_well_formed(
    op: StepOp, at: int, junk: Any
) -> None:
    packed = wire.pack_op(op)
    packed[at % len(packed)] = junk
    try:
        read = wire.unpack_op(packed)
    except wire.WireError:
        return
    assert wire.pack_op(read) == packed
