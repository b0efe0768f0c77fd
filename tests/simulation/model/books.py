"""What the checker remembers of each run, and what its columns must say because of that."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from durable_endpoints.protocol.ops import StepKind, StepRecord
from durable_endpoints.protocol.streams import RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    AttemptFailed,
    Change,
    ChildCreated,
    RunCreated,
    RunEnded,
    StreamSkipped,
)
from durable_endpoints_server.engine.model import Policy, Run, Status, Stream
from tests.simulation.model.details import omits_request, omits_request_at_the_end
from tests.simulation.programs import Program, walk

_REASONS: Final = {
    Status.RUNNING: {""},
    Status.WAITING: {""},
    Status.READY: {"", "interrupted", "released", "resolved", "retried"},
    Status.PARKED: {"broken", "interrupted_too_often"},
    Status.COMPLETED: {""},
    Status.FAILED: {"exception", "timed_out"},
    Status.CANCELLED: {"cancelled", "invocation_timed_out", "parent_ended"},
}
_CODES: Final = {"": 200, "exception": 500}
"""The status codes of the handlers' own answers, by the reason of the run's end."""


class ViolationError(AssertionError):
    """A promise was broken."""


def label_of(run_id: str) -> str:
    """The label of a run: ids are labels with a number behind the request's."""
    root, _, below = run_id.partition("/")
    label = root.partition("#")[0]
    return f"{label}/{below}" if below else label


class Loss(NamedTuple):
    """The process that executed a run is gone."""

    alone: bool | None
    """Whether no other run went with it; None if that is not certain."""
    rebooted: bool


class Ledger:
    """What the records of a run's stream log come to."""

    def __init__(self) -> None:
        self.open: dict[str, int] = {}
        """Where the chunks begin that are neither permanent nor withdrawn, by step."""
        self.outside = self.committed = 0
        """How many chunks there are of the handler's own, and how many of them are permanent."""
        self.size = 0
        self.is_wary = False
        """Whether a loss of power may have taken chunks that readers have."""

    def note(self, record: StreamRecord) -> None:
        """A record is about what the handler's own code has streamed."""
        if record.kind is RecordKind.COMMIT:
            self.committed = self.outside
        elif record.kind is RecordKind.ROLLBACK:
            self.outside = self.committed
        else:
            self.outside += record.length

    def follow(self, stream: Stream) -> None:
        """The log is what a loss of power has left of it."""
        self.open = dict(stream.open)
        self.outside, self.committed = stream.outside, stream.outside_committed
        self.size, self.is_wary = stream.size, stream.is_wary


class Books:
    """What must never change again, and what follows from it."""

    def __init__(self, run: Run, program: Program) -> None:
        self.run = run
        self.program = program
        self.nodes = {name: n for n in walk(program.nodes) if (name := getattr(n, "name", ""))}
        self.began: dict[str, int] = {}
        """When each step began first."""
        self.final: dict[str, StepRecord] = {}
        self.opened: dict[str, StepRecord] = {}
        self.orders: set[int] = set()
        self.used: dict[str, str] = {}
        """Events that were used, and the steps that they resolved first."""
        self.timed_out: dict[str, int] = {}
        """Waits that ended without an event, and their deadlines."""
        self.ended: RunEnded | None = None
        self.tail = 0
        self.ledger = Ledger()
        self.handed_over: int | None = None
        """Where its stream goes on for the client whose request has executed it first."""
        self.highest = 0
        """The last position of its stream that somebody may have seen."""
        self.shown: dict[int, tuple[object, ...]] = {}
        """What readers have got, by position."""
        self.tries: Counter[str] = Counter()
        self.failures: list[AttemptFailed] = []
        self.due: dict[str, int] = {}
        """When failed steps may be tried again."""
        self.loss: Loss | None = None
        self.parked_until = 0
        """When somebody last let it go on that stood still. Nothing falls due until then."""


def check_new(fact: RunCreated | ChildCreated, program: Program, owner: str) -> None:
    """What a run says when it is new. `owner` is the process that has written it."""
    run, new = fact.run, fact.new
    parent, _, step = run.id.rpartition("/")
    is_child = bool(parent)
    right = run._replace(
        status=Status.READY if is_child else Status.RUNNING,
        generation=0 if is_child else 1,
        owner="" if is_child else owner,
        lease_until=None,
        deadline=None if program.max_runtime is None else run.began_at + program.max_runtime,
        ready_at=run.began_at if is_child else None,
        ended_at=None,
        reason="",
        interruptions=0,
        lone_interruptions=0,
        omit_request_body=omits_request(program),
        parent_run=parent if is_child else None,
        parent_step=step if is_child else None,
        depth=run.id.count("/"),
    ).with_usage(0, 0, 0)
    if run != right or new.id != run.id or isinstance(fact, ChildCreated) != is_child:
        raise ViolationError(f"run {run.id} begins as {run}; right would be {right}")


def check_run(
    books: Books, change: Change, after: Run, steps: list[StepRecord], owner: str, policy: Policy
) -> None:
    """What a run says after a change, by what it said before; `steps` are all that it has."""
    before, status = books.run, after.status
    right = after._replace(
        function_id=before.function_id,
        owner=owner if status is Status.RUNNING else "",
        lease_until=None,
        began_at=before.began_at,
        deadline=before.deadline,
        omit_request_body=_omits(books.program, after),
        parent_run=before.parent_run,
        parent_step=before.parent_step,
        depth=before.depth,
    )
    if status is not Status.CANCELLED:  # whoever cancels a run that stands still does not count
        right = right.with_usage(
            steps=sum(step.kind is not StepKind.HANDLER for step in steps),
            memo_bytes=sum(step.size for step in steps),
            last_order=max((step.order for step in steps), default=0),
        )
    if before.status is status is Status.READY:
        right = right._replace(ready_at=before.ready_at)
    if after != right:
        raise ViolationError(f"run {after.id} is {after}; right would be {right}")
    if (after.ready_at is not None) != (status is Status.READY):
        raise ViolationError(f"run {after.id}, {status.label}, is ready since {after.ready_at}")
    if (after.ended_at is not None) != status.is_final:
        raise ViolationError(f"run {after.id}, {status.label}, has ended at {after.ended_at}")
    if after.reason not in _REASONS[status]:
        raise ViolationError(f"run {after.id} is {status.label} because {after.reason!r}")
    _check_losses(books, change, after, policy)


def _omits(program: Program, after: Run) -> bool:
    is_own_end = after.status in (Status.COMPLETED, Status.FAILED) and after.reason in _CODES
    return omits_request(program) or (is_own_end and omits_request_at_the_end(program))


def _check_losses(books: Books, change: Change, after: Run, policy: Policy) -> None:
    """A run is parked when it has taken its process down too often, and no sooner."""
    before, loss = books.run, books.loss
    counts = after.interruptions, after.lone_interruptions
    right = {(before.interruptions, before.lone_interruptions)}
    if loss is not None and not after.status.is_final:
        right = {_counted(before, loss.alone is not False, policy)}
        if loss.alone is None:
            right.add(_counted(before, False, policy))
        is_parked = after.lone_interruptions >= policy.park_after
        wanted = (
            (Status.PARKED, "interrupted_too_often") if is_parked else (Status.READY, "interrupted")
        )
        if (after.status, after.reason) != wanted:
            raise ViolationError(f"run {after.id} has lost its process: {after}")
    elif after.status is Status.WAITING or after.reason == "retried":
        right = {(0, 0)}
    if counts not in right:
        raise ViolationError(
            f"run {after.id} was interrupted {counts[0]} times, and {counts[1]} times alone; right "
            f"would be {sorted(right)}"
        )
    has_skipped = any(isinstance(fact, StreamSkipped) for fact in change.facts)
    if has_skipped != (loss is not None and loss.rebooted and not after.status.is_final):
        raise ViolationError(
            f"the stream of {after.id} {'leaves positions' if has_skipped else 'goes on'} after "
            f"{'a loss of power' if loss is not None and loss.rebooted else 'no loss of power'}"
        )


def _counted(before: Run, alone: bool, policy: Policy) -> tuple[int, int]:
    """How often a run was interrupted, and how often alone, after one time more."""
    if before.interruptions < policy.quarantine_after:
        return before.interruptions + 1, before.lone_interruptions
    return before.interruptions, before.lone_interruptions + alone


def check_ended(run_id: str, ended: RunEnded, request: bytes | None) -> None:
    """What is kept of a run at its end."""
    run = ended.run
    code = _CODES.get(run.reason) if run.status is not Status.CANCELLED else None
    if ended.status_code != code or (ended.response is None) != (code is None):
        raise ViolationError(f"run {run_id} ended with {ended}")
    if ended.error != (ended.response if run.reason == "exception" else None):
        raise ViolationError(f"run {run_id} ended with {ended}")
    if ended.omitted or ended.until_delivered:
        raise ViolationError(f"the response of {run_id} is not kept: {ended}")
    if (request is None) != run.omit_request_body:
        raise ViolationError(f"the request of {run_id} is {request!r}: {run}")
