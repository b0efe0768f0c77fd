"""What an execution tells the engine about its steps, and what the engine remembers of them.

These are values: an execution makes them, an engine of any kind (in process, or at the far end of
a wire) takes them. Times are UTC epoch milliseconds on the engine's clock, durations milliseconds,
`elapsed` is how long a body ran in microseconds, and data is JSON text.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.step_ids import StepId


class StepKind(StrEnum):
    """What asked for a step. A remembered step of another kind is a programming error."""

    RUN = "run"
    SLEEP = "sleep"
    WAIT = "wait_for_event"
    WAIT_ANY = "wait_for_any"
    SIGNAL = "wait_for_signal"
    SEND = "send_event"
    INVOKE = "invoke"
    REMEMBER = "remember"
    HANDLER = "handler"


FROM_OUTSIDE: Final = frozenset({StepKind.WAIT, StepKind.WAIT_ANY, StepKind.SIGNAL})
"""Waits that somebody else may end before their deadline, by an event or a signal."""


class StepState(IntEnum):
    """Where a step stands. The first two are open, the last two final: they never change again."""

    PENDING = 1
    """A sleep, a wait for an event, or an invocation: the engine resolves it."""
    RETRYING = 2
    """Its body failed and will be started again at `due`, or at once when `due` is None. An
    invocation: its child has ended, or its time is over, and the execution shall look."""
    DONE = 3
    FAILED = 4


class StepRecord(NamedTuple):
    """One step as the engine remembers it."""

    id: StepId
    kind: StepKind
    state: StepState
    attempt: int = 0
    """How many times the body was started and ended."""
    order: int = 0
    """The place in the run's order of completion, from 1; 0 while the step is open."""
    value: bytes | None = None
    error: bytes | None = None
    due: int | None = None
    began_at: int = 0
    ended_at: int | None = None

    @property
    def is_final(self) -> bool:
        return self.state >= StepState.DONE

    @property
    def size(self) -> int:
        """What it counts for among the run's remembered results, in bytes: an error that is not
        the last one is none of them."""
        return len(self.value or b"") + len(self.error or b"") if self.is_final else 0


class StepDone(NamedTuple):
    """A body returned `value`."""

    step: StepId
    kind: StepKind
    value: bytes
    attempt: int = 1
    elapsed: int = 0


class StepFailed(NamedTuple):
    """A body failed for good: the handler gets a `StepError`."""

    step: StepId
    kind: StepKind
    error: bytes
    attempt: int
    elapsed: int = 0


class StepRetry(NamedTuple):
    """A body failed and shall be tried again, after the engine's back-off or after `delay`."""

    step: StepId
    kind: StepKind
    error: bytes
    attempt: int
    elapsed: int = 0
    delay: int | None = None


class Sleep(NamedTuple):
    """Wait for `duration`, or until the instant `until`; exactly one of them is given."""

    step: StepId
    duration: int | None = None
    until: int | None = None


class Alternative(NamedTuple):
    """One event that would end a wait.

    `pairs` are equalities that must all hold: a path into the event, such as `data.order.id`, and
    the JSON text of the number, string or boolean that must stand there. `expression` is CEL over
    the event under the name `async`, or empty.
    """

    label: str
    event: str
    pairs: tuple[tuple[str, str], ...] = ()
    expression: str = ""


class WaitForEvent(NamedTuple):
    """Wait for the first of `alternatives`, for `timeout` at the most."""

    step: StepId
    kind: StepKind
    alternatives: tuple[Alternative, ...]
    timeout: int


class SignalTaken(NamedTuple):
    """Another run waits for a signal already, and only one may."""

    run_id: str


class NewEvent(NamedTuple):
    """An event on its way in. `id` deduplicates it within the events' retention."""

    id: str
    name: str
    data: bytes
    ts: int | None = None
    """When it happened, by its sender; deadlines go by the engine's receipt time instead."""


class SendEvent(NamedTuple):
    """An event sent from a run: kept together with the step, so it is sent exactly once."""

    step: StepId
    event: NewEvent
    value: bytes
    elapsed: int = 0


class Invoke(NamedTuple):
    """Begin another run, as a child of this one, and wait until it has ended, for `timeout` at the
    most. The engine wakes whoever waits; what came of the child they ask for themselves."""

    step: StepId
    child: NewRun
    timeout: int | None = None


StepOp = StepDone | StepFailed | StepRetry | Sleep | WaitForEvent | SendEvent | Invoke
