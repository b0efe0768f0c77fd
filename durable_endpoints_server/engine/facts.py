"""Facts: what a decision says must be written, and the fence under which it may be.

A `Change` is atomic and conditional: all its facts are written, or, when the run is no longer at
the generation and in one of the states that the decision assumed, none of them is.
"""

from __future__ import annotations

from typing import NamedTuple

from durable_endpoints.protocol.ops import Alternative, StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.engine.model import Event, Run, Status, Stream


class RunCreated(NamedTuple):
    """The run exists. Refused when its id, or its idempotency key, is taken."""

    run: Run
    new: NewRun


class ChildCreated(NamedTuple):
    """The run has invoked another one, which is ready. Written under the fence of the parent."""

    run: Run
    new: NewRun


class RunChanged(NamedTuple):
    """The run's own columns are now these."""

    run: Run


class RunEnded(NamedTuple):
    """The run reached its one terminal state: its waits and timers are gone with it."""

    run: Run
    status_code: int | None = None
    response: bytes | None = None
    """The packed response, sealed by whoever sent it; opaque here."""
    error: bytes | None = None
    omitted: str = ""
    """Why there is no response although there was one: `too_large`, `not_kept`; or empty."""
    until_delivered: bool = False
    """The response goes once somebody has it, or after an hour."""


class StepWritten(NamedTuple):
    """A step is now this, unless it is final already: the first final write wins."""

    step: StepRecord


class StepResolved(NamedTuple):
    """An open step is now this, and its waits are gone."""

    step: StepRecord


class Streamed(NamedTuple):
    """The run's stream log has these records more, and is now in this state."""

    records: tuple[StreamRecord, ...]
    stream: Stream


class StreamSkipped(NamedTuple):
    """The machine went down while the run was executed: chunks that readers have may not be in the
    log any more. Its next position is so much greater that none of theirs is used again."""

    positions: int


class WaitOpened(NamedTuple):
    """One alternative of an open wait."""

    step: StepId
    alternative: Alternative
    deadline: int


class AttemptFailed(NamedTuple):
    """A try of a step failed: kept for whoever looks at the run later."""

    step: StepId
    attempt: int
    began_at: int
    ended_at: int
    error: bytes


class EventReceived(NamedTuple):
    """An event arrived. Refused when its id was received before.

    `settled` says that every wait it matches is resolved in the same change, or by a live
    execution; an unsettled event is matched again after a restart.
    """

    event: Event
    settled: bool
    one_of_many: bool = False
    """It came with others, and must not keep them out: if its id is known, it is passed over."""


class EventUsed(NamedTuple):
    """The event resolved a wait of this run and will not resolve a later one of it."""

    event_id: str


class EventSettled(NamedTuple):
    """Every wait that an event matched when it arrived is resolved."""

    event_id: str


class ResponseDelivered(NamedTuple):
    """A response that is kept only until delivered was delivered: it is gone."""

    run_id: str


class InboxTaken(NamedTuple):
    """A message that another process left was carried out."""

    id: int


class RequestSeen(NamedTuple):
    """One HTTP request of an application that tracks them all (no headers, no bodies)."""

    at: int
    method: str
    route: str
    status: int
    elapsed: int
    """Microseconds."""
    run_id: str | None


class OriginTrusted(NamedTuple):
    """Applications at this origin may be called back."""

    origin: str
    at: int


class Sweep(NamedTuple):
    """What is past its retention goes: at most `limit` of each kind, and of runs, each of which may
    have thousands of steps and a large response, at most `runs`."""

    runs_before: int
    """Runs that ended before, with all they left, and tracked requests."""
    events_before: int
    responses_before: int
    """Responses kept only until delivered, of runs that ended before and nobody asked for."""
    limit: int
    runs: int


Fact = (
    RunCreated
    | ChildCreated
    | RunChanged
    | RunEnded
    | StepWritten
    | StepResolved
    | Streamed
    | StreamSkipped
    | WaitOpened
    | AttemptFailed
    | EventReceived
    | EventUsed
    | EventSettled
    | ResponseDelivered
    | InboxTaken
    | RequestSeen
    | OriginTrusted
    | Sweep
)


def states(*statuses: Status) -> int:
    """A set of states, one bit each."""
    bits = 0
    for status in statuses:
        bits |= 1 << status
    return bits


class Change(NamedTuple):
    """Facts to be written together, if the fence holds: if the run is at this generation, and in
    one of these states. Without a generation there is no fence, and perhaps no run."""

    facts: tuple[Fact, ...]
    run_id: str = ""
    generation: int | None = None
    states: int = 0
    is_relaxed: bool = False
    """Whether it counts as written once no crash of the process can undo it, though a loss of power
    within the next moments could."""

    def admits(self, run: Run) -> bool:
        """Whether the fence holds for `run`."""
        return run.generation == self.generation and bool(self.states >> run.status & 1)
