"""What a process says again to a new server, and what that has on disk."""

from __future__ import annotations

import pytest

from durable_endpoints.protocol.ops import StepOp, StepRecord, StepState
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import register
from durable_endpoints_server.remote.repeats import Repeats, has_left
from tests.durable_endpoints_server.remote.fakes import done, failed, new_run, step_id

LEFT = [
    (Status.COMPLETED, "", "end", Complete(200, b"")),
    (Status.FAILED, "exception", "end", Fail("exception", None)),
    (Status.WAITING, "", "suspend", 0),
    (Status.READY, "resolved", "suspend", 0),
    (Status.READY, "released", "release", "released"),
    (Status.PARKED, "request_sealed", "park", "request_sealed"),
]


def run_of(status: Status, reason: str) -> Run:
    run = register(new_run("r"), "p1", None, 0).run
    return run._replace(status=status, reason=reason, generation=3)


@pytest.mark.parametrize(("status", "reason", "how", "detail"), LEFT)
def test_a_run_was_left_by_that_execution_and_in_that_way(
    status: Status, reason: str, how: str, detail: object
) -> None:
    run = run_of(status, reason)
    assert has_left(run, 3, how, detail)
    assert not has_left(run, 2, how, detail)
    others = [(one, other) for *_, one, other in LEFT if (one, other) != (how, detail)]
    assert not any(has_left(run, 3, *other) for other in others)


@pytest.mark.parametrize(
    ("state", "attempt", "op", "is_known"),
    [
        (StepState.DONE, 1, done("a"), True),
        (StepState.FAILED, 1, done("a"), True),
        (StepState.RETRYING, 1, failed("a", 1), True),
        (StepState.RETRYING, 1, failed("a", 2), False),
        (StepState.RETRYING, 1, done("a", attempt=2), False),
    ],
)
def test_what_is_on_disk_is_known(
    state: StepState, attempt: int, op: StepOp, is_known: bool
) -> None:
    step = StepRecord(step_id("a"), op.kind, state, attempt)  # type: ignore[union-attr]
    assert Repeats([step]).knows(op) == is_known
    assert not Repeats().knows(op)
