"""What of a session the store has: recognised when its process says it again to a new server."""

from __future__ import annotations

from collections.abc import Sequence

from durable_endpoints.protocol.ops import (
    StepDone,
    StepFailed,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
)
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.remote.chunks import counted


class Repeats:
    """What the store had of a session when it was found again; nothing, for a new one."""

    def __init__(
        self, memo: Sequence[StepRecord] = (), records: Sequence[StreamRecord] = ()
    ) -> None:
        """`memo` is the run's, `records` what this execution has added to its stream log."""
        self._memo = {step.id.hash: step for step in memo}
        self.chunks = counted(records)
        """How many chunks of each kind the log has of this execution."""

    @property
    def resolved(self) -> dict[str, StepRecord]:
        """Steps that may have been resolved without the process having heard of it."""
        return {key: step for key, step in self._memo.items() if step.is_final or is_woken(step)}

    def step(self, key: str) -> StepRecord | None:
        """The step with this hash, if the store had it."""
        return self._memo.get(key)

    def knows(self, op: StepOp) -> bool:
        """Whether the store had `op` already."""
        step = self._memo.get(op.step.hash)
        if step is None:
            return False
        if step.is_final or not isinstance(op, StepDone | StepFailed | StepRetry):
            return True
        return isinstance(op, StepRetry) and step.attempt >= op.attempt


def is_woken(step: StepRecord) -> bool:
    """Whether the execution shall look at the step again, at once."""
    return step.state is StepState.RETRYING and step.due is None


def has_left(run: Run, generation: int, how: str, detail: object) -> bool:
    """Whether a run was left by the execution `generation` in the way that it says again."""
    if run.generation != generation:
        return False
    if isinstance(detail, Complete):
        return run.status is Status.COMPLETED
    if isinstance(detail, Fail):
        return run.status is Status.FAILED and run.reason == detail.reason
    if how == "suspend":
        return run.status is Status.WAITING or (
            run.status is Status.READY and run.reason == "resolved"
        )
    if how == "release":
        return run.status is Status.READY and run.reason == detail
    return how == "park" and run.status is Status.PARKED and run.reason == detail
