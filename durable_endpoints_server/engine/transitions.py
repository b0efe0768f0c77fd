"""Every rule about what may happen to a run. Whatever changes a run's state is in this file.

Theory of operation
-------------------

A run is RUNNING while one execution holds its lease. That execution is the only writer of the run:
it records its steps, and whatever else concerns the run (an event that arrives, a timer that
fires) is offered to it. When it ends, by a response, a failure, a suspension or a release, the
run leaves RUNNING in the same write.

While no execution runs, the engine is the writer: it resolves open steps. The first resolution
makes a WAITING run READY; a READY run is claimed by an execution with the next generation.

    register ──> RUNNING ──suspend──> WAITING ──resolve──> READY ──claim──> RUNNING …
                    │ └────release, interrupt──────────────> READY
                    │ └────interrupt, too often alone──────> PARKED ──retry──> READY
                    └──complete, fail──> COMPLETED, FAILED
    any state but a final one ──cancel──> CANCELLED, ──expire──> FAILED (timed_out)

`RULES` says what each command does, and in which states: `decide` refuses one that does not fit.
The state and the generation on which a decision was made are the fence of its write, so that a
decision made on an outdated state is refused by the store. The generation grows with every claim
and with every resolution while no execution runs, so of two decisions made on the same state only
one is written, and the other is made again. That is the whole of the concurrency control: no lock
protects a run.

Neither half of the fence would do alone. A claim and a resolution that were decided on the same
generation make the same next one; whoever lost holds a run that is RUNNING in its memory and READY
in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from durable_endpoints.protocol.errors import LimitError, LostRunError
from durable_endpoints.protocol.ops import (
    Invoke,
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
from durable_endpoints_server.engine.backoff import backoff
from durable_endpoints_server.engine.facts import (
    AttemptFailed,
    Change,
    ChildCreated,
    EventReceived,
    EventUsed,
    Fact,
    RunChanged,
    RunCreated,
    RunEnded,
    StepResolved,
    StepWritten,
    StreamSkipped,
    WaitOpened,
    states,
)
from durable_endpoints_server.engine.model import Event, Policy, Run, Status

STREAM_SKIP: Final = 1_000_000
"""Positions of a stream that are never used again after a loss of power: more than can have been
given out in the moment between a chunk's delivery and its arrival on the disk."""


class Suspend(NamedTuple):
    """Every branch of the handler waits: give up the lease until something is resolved."""


class Release(NamedTuple):
    """Give up the lease, and let the next execution begin at once: a shutdown, a lost client."""

    reason: str


class Park(NamedTuple):
    """The execution cannot go on until somebody mends something, and says so with `Retry`."""

    reason: str


class Claim(NamedTuple):
    """Start a new execution of a run that is ready."""

    owner: str
    lease_until: int | None


class Resolve(NamedTuple):
    """An open step is resolved: its time has come, or `value` is what it waited for.

    An invocation has no value here: whoever waits for it shall look what became of its child.
    """

    step: StepRecord
    value: bytes = b"null"
    event_id: str | None = None


class Interrupt(NamedTuple):
    """The execution vanished."""

    alone: bool
    """No other run was being executed beside it."""
    rebooted: bool = False
    """It may have taken its machine down with it, or been taken down by it: what it streamed last
    may be lost."""


class Expire(NamedTuple):
    """The run is older than its `max_runtime`."""


class Cancel(NamedTuple):
    """Somebody wants the run to end without a result."""

    reason: str


class Retry(NamedTuple):
    """Somebody wants a parked run to be tried again."""


Command = (
    StepOp
    | Suspend
    | Release
    | Park
    | Complete
    | Fail
    | Claim
    | Resolve
    | Interrupt
    | Expire
    | Cancel
    | Retry
)


class Decision(NamedTuple):
    """The run as it is once `change` is written."""

    run: Run
    change: Change


def register(new: NewRun, owner: str, lease_until: int | None, now: int) -> Decision:
    """A request was accepted: its run exists, and the request itself executes it."""
    began_at = now - new.elapsed
    run = Run(
        new.id,
        new.function_id,
        Status.RUNNING,
        1,  # generation
        owner,
        lease_until,
        began_at,
        None if new.max_runtime is None else began_at + new.max_runtime,
        None,  # ready_at
        None,  # ended_at
        "",  # reason
        0,  # interruptions
        0,  # lone_interruptions
        new.omit_request_body,
        None,  # parent_run
        None,  # parent_step
        0,  # depth
        0,  # steps
        0,  # memo_bytes
        0,  # last_order
    )
    return Decision(run, Change((RunCreated(run, new),), run.id))


def decide(run: Run, command: Command, now: int, policy: Policy, chance: float = 0.5) -> Decision:
    """Return what `command` makes of `run` at the time `now`.

    `chance` is a random number in [0, 1), drawn by the caller, for the spread of retries. Raises
    `LostRunError` when the run's state does not allow the command, and `LimitError` when the
    command would pass a limit of `policy`.
    """
    allowed, rule = RULES[type(command)]
    if not allowed >> run.status & 1:
        name = type(command).__name__
        raise LostRunError(f"run {run.id} is {run.status.label}: {name} is not possible")
    after, facts = rule(run, command, now, policy, chance)
    change = _new(Change, (facts, run.id, run.generation, 1 << run.status, False))
    return _new(Decision, (after, change))


def resolve_all(run: Run, resolutions: Sequence[Resolve], now: int, policy: Policy) -> Decision:
    """Return what several resolutions make of a run that nobody executes: all of them, or, if the
    run has changed, none. Raises as `decide` does.

    Each by itself would not do: somebody else may have resolved something in the place of the first
    one, and made the very generation on which the second one relies.
    """
    after = run
    facts: list[Fact] = []
    for resolution in resolutions:
        after, change = decide(after, resolution, now, policy)
        facts += [fact for fact in change.facts if not isinstance(fact, RunChanged)]
    whole = Change((*facts, RunChanged(after)), run.id, run.generation, states(run.status))
    return Decision(after, whole)


def claim_at_once(resolved: Decision, claim: Claim, now: int, policy: Policy) -> Decision:
    """What `resolve_all` has made of a run, and its claim, in one change: a claim by itself would
    hold as well on what somebody else has resolved meanwhile."""
    after, _ = decide(resolved.run, claim, now, policy)
    facts = [fact for fact in resolved.change.facts if not isinstance(fact, RunChanged)]
    return Decision(after, resolved.change._replace(facts=(*facts, RunChanged(after))))


def skip_positions(run: Run) -> Change:
    """What keeps positions of a run's stream log from being used again that readers may know, and
    a loss of power has taken from the disk, while the run stays as it is."""
    return Change((StreamSkipped(STREAM_SKIP),), run.id, run.generation, states(run.status))


_new = tuple.__new__
"""Makes a named tuple of all its fields, in a third of the time that its own constructor takes:
for what every step makes."""
_DONE, _INVOKE = StepState.DONE, StepKind.INVOKE
"""Python looks a member of an enumeration up in a slow way each time."""

# Each rule returns the run as it will be, and the facts that make it so.
_Outcome = tuple[Run, tuple[Fact, ...]]


def _step_done(run: Run, op: StepDone, now: int, policy: Policy, chance: float) -> _Outcome:
    id, kind, value, attempt, elapsed = op
    after = _account(run, op, value, policy)
    began_at = now - elapsed // 1_000
    fields = id, kind, _DONE, attempt, after[-1], value, None, None, began_at, now
    return after, (_new(StepWritten, (_new(StepRecord, fields),)),)


def _step_failed(run: Run, op: StepFailed, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _account(run, op, op.error, policy)
    began_at = now - op.elapsed // 1_000
    step = StepRecord(
        id=op.step,
        kind=op.kind,
        state=StepState.FAILED,
        attempt=op.attempt,
        order=after.last_order,
        error=op.error,
        began_at=began_at,
        ended_at=now,
    )
    attempt = AttemptFailed(op.step, op.attempt, began_at, now, op.error)
    return after, (StepWritten(step), attempt)


def _step_retry(run: Run, op: StepRetry, now: int, policy: Policy, chance: float) -> _Outcome:
    delay = op.delay if op.delay is not None else backoff(op.attempt, policy, chance)
    _check_wait(delay, policy)
    began_at = now - op.elapsed // 1_000
    step = StepRecord(
        id=op.step,
        kind=op.kind,
        state=StepState.RETRYING,
        attempt=op.attempt,
        error=op.error,
        due=now + delay,
        began_at=began_at,
    )
    is_new = op.attempt == 1 and op.kind is not StepKind.HANDLER
    after = _count(run, policy) if is_new else run
    return after, (
        StepWritten(step),
        AttemptFailed(op.step, op.attempt, began_at, now, op.error),
    )


def _sleep(run: Run, op: Sleep, now: int, policy: Policy, chance: float) -> _Outcome:
    due = op.until if op.until is not None else now + (op.duration or 0)
    _check_wait(due - now, policy)
    step = StepRecord(op.step, StepKind.SLEEP, StepState.PENDING, due=due, began_at=now)
    return _count(run, policy), (StepWritten(step),)


def _wait(run: Run, op: WaitForEvent, now: int, policy: Policy, chance: float) -> _Outcome:
    _check_wait(op.timeout, policy)
    deadline = now + op.timeout
    step = StepRecord(op.step, op.kind, StepState.PENDING, due=deadline, began_at=now)
    waits = [WaitOpened(op.step, alternative, deadline) for alternative in op.alternatives]
    return _count(run, policy), (StepWritten(step), *waits)


def _send_event(run: Run, op: SendEvent, now: int, policy: Policy, chance: float) -> _Outcome:
    """The event is kept in the same change as the step, unsettled: it is matched afterwards."""
    done = StepDone(op.step, StepKind.SEND, op.value, elapsed=op.elapsed)
    after, facts = _step_done(run, done, now, policy, chance)
    event = op.event
    ts = event.ts if event.ts is not None else now
    received = EventReceived(Event(event.id, event.name, event.data, ts, now), settled=False)
    return after, (*facts, received)


def _invoke(run: Run, op: Invoke, now: int, policy: Policy, chance: float) -> _Outcome:
    """The child is created together with the step that waits for it: neither is without the
    other. It is as a run that was registered, but nobody executes it yet."""
    if run.depth >= policy.max_depth:
        raise LimitError(
            f"run {run.id} would be the {policy.max_depth + 1}th that is invoked by the one above "
            "it: does an endpoint invoke itself without an end?"
        )
    due = None
    if op.timeout is not None:
        _check_wait(op.timeout, policy)
        due = now + op.timeout
    step = StepRecord(op.step, StepKind.INVOKE, StepState.PENDING, due=due, began_at=now)
    child = register(op.child, "", None, now).run._replace(
        status=Status.READY,
        generation=0,
        ready_at=now,
        parent_run=run.id,
        parent_step=op.step.hash,
        depth=run.depth + 1,
    )
    return _count(run, policy), (StepWritten(step), ChildCreated(child, op.child))


def _suspend(run: Run, op: Suspend, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _leave(run, Status.WAITING, "")._replace(interruptions=0, lone_interruptions=0)
    return after, (RunChanged(after),)


def _release(run: Run, op: Release, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _leave(run, Status.READY, op.reason)._replace(ready_at=now)
    return after, (RunChanged(after),)


def _park(run: Run, op: Park, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _leave(run, Status.PARKED, op.reason)
    return after, (RunChanged(after),)


def _complete(run: Run, op: Complete, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _end(run, Status.COMPLETED, "", now, op.omit_request_body)
    ended = RunEnded(after, op.status_code, op.response, None, op.omitted, op.until_delivered)
    return after, (ended,)


def _fail(run: Run, op: Fail, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _end(run, Status.FAILED, op.reason, now, op.omit_request_body)
    ended = RunEnded(after, op.status_code, op.response, op.error, "", op.until_delivered)
    return after, (ended,)


def _expire(run: Run, op: Expire, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _end(run, Status.FAILED, "timed_out", now)
    return after, (RunEnded(after),)


def _cancel(run: Run, op: Cancel, now: int, policy: Policy, chance: float) -> _Outcome:
    after = _end(run, Status.CANCELLED, op.reason, now)
    return after, (RunEnded(after),)


def _claim(run: Run, op: Claim, now: int, policy: Policy, chance: float) -> _Outcome:
    after = run._replace(
        status=Status.RUNNING,
        generation=run.generation + 1,
        owner=op.owner,
        lease_until=op.lease_until,
        ready_at=None,
        reason="",
    )
    return after, (RunChanged(after),)


def _resolve(run: Run, op: Resolve, now: int, policy: Policy, chance: float) -> _Outcome:
    """A live execution goes on with the value; a run that waits becomes ready, and one that is
    parked stays so, and has the value when it is retried."""
    if op.step.is_final:
        raise LostRunError(f"step {op.step.id} of run {run.id} is resolved already")
    facts: tuple[Fact, ...]
    if op.step.state is StepState.RETRYING or op.step.kind is StepKind.INVOKE:
        after = run
        facts = (StepWritten(op.step._replace(state=StepState.RETRYING, due=None)),)
    else:
        after = run._replace(
            last_order=run.last_order + 1, memo_bytes=run.memo_bytes + len(op.value)
        )
        step = op.step._replace(
            state=StepState.DONE, order=after.last_order, value=op.value, due=None, ended_at=now
        )
        facts = (StepResolved(step),)
        if op.event_id is not None:
            facts = (*facts, EventUsed(op.event_id))
    if run.status is not Status.RUNNING:
        after = after._replace(generation=run.generation + 1)
        if run.status is not Status.PARKED:
            ready_at = run.ready_at if run.ready_at is not None else now
            after = after._replace(status=Status.READY, ready_at=ready_at)
        facts = (*facts, RunChanged(after))
    return after, facts


def _interrupt(run: Run, op: Interrupt, now: int, policy: Policy, chance: float) -> _Outcome:
    """Count what may be the run's own fault, and park it once that is beyond doubt.

    A crash takes every running run with it, and most of them are innocent. So after a few
    interruptions a run is executed alone, and only what happens there is held against it.
    """
    interruptions, lone = run.interruptions, run.lone_interruptions
    if not in_quarantine(run, policy):
        interruptions += 1
    elif op.alone:
        lone += 1
    if lone >= policy.park_after:
        after = _leave(run, Status.PARKED, "interrupted_too_often")
    else:
        after = _leave(run, Status.READY, "interrupted")._replace(ready_at=now)
    after = after._replace(interruptions=interruptions, lone_interruptions=lone)
    if op.rebooted:
        return after, (StreamSkipped(STREAM_SKIP), RunChanged(after))
    return after, (RunChanged(after),)


def _retry(run: Run, op: Retry, now: int, policy: Policy, chance: float) -> _Outcome:
    after = run._replace(
        status=Status.READY, ready_at=now, reason="retried", interruptions=0, lone_interruptions=0
    )
    return after, (RunChanged(after),)


class Rule(NamedTuple):
    """What a command does, and in which states it may."""

    allowed: int
    """A set of states, one bit each: see `states`."""
    apply: Callable[[Run, Any, int, Policy, float], _Outcome]


_RUNNING = states(Status.RUNNING)
_NOT_FINAL = states(Status.RUNNING, Status.WAITING, Status.READY, Status.PARKED)

RULES: Final[Mapping[type, Rule]] = {
    StepDone: Rule(_RUNNING, _step_done),
    StepFailed: Rule(_RUNNING, _step_failed),
    StepRetry: Rule(_RUNNING, _step_retry),
    Sleep: Rule(_RUNNING, _sleep),
    WaitForEvent: Rule(_RUNNING, _wait),
    SendEvent: Rule(_RUNNING, _send_event),
    Invoke: Rule(_RUNNING, _invoke),
    Suspend: Rule(_RUNNING, _suspend),
    Release: Rule(_RUNNING, _release),
    Park: Rule(_RUNNING, _park),
    Complete: Rule(_RUNNING, _complete),
    Fail: Rule(_RUNNING, _fail),
    Interrupt: Rule(_RUNNING, _interrupt),
    Claim: Rule(states(Status.READY), _claim),
    Resolve: Rule(_NOT_FINAL, _resolve),
    Expire: Rule(_NOT_FINAL, _expire),
    Cancel: Rule(_NOT_FINAL, _cancel),
    Retry: Rule(states(Status.PARKED), _retry),
}


def in_quarantine(run: Run, policy: Policy) -> bool:
    """Whether the run must be executed with no other run beside it."""
    return run.interruptions >= policy.quarantine_after


def _leave(run: Run, status: Status, reason: str) -> Run:
    return run._replace(status=status, owner="", lease_until=None, reason=reason)


def _end(run: Run, status: Status, reason: str, now: int, omit_request: bool = False) -> Run:
    return run._replace(
        status=status,
        owner="",
        lease_until=None,
        reason=reason,
        ready_at=None,
        ended_at=now,
        omit_request_body=run.omit_request_body or omit_request,
    )


def _count(run: Run, policy: Policy) -> Run:
    """One more step, unless that is too many."""
    if run.steps >= policy.max_steps:
        raise LimitError(f"the run has {run.steps} steps, the most there may be (max_steps)")
    return run._replace(steps=run.steps + 1)


def _account(run: Run, op: StepDone | StepFailed, data: bytes, policy: Policy) -> Run:
    """One more remembered result, unless it or all of them together are too large."""
    size = len(data)
    steps, memo_bytes, last_order = run[-3:]
    if size > policy.max_result:
        raise LimitError(
            f"the result has {size:,} bytes, more than the {policy.max_result:,} of one step "
            "(max_result): store it elsewhere and return a reference"
        )
    memo_bytes += size
    if memo_bytes > policy.max_memo:
        raise LimitError(
            f"the run's results would have more than {policy.max_memo:,} bytes (max_memo)"
        )
    # Nothing was recorded of the step before. An invocation was counted as it began.
    if op.attempt == 1 and op.kind is not _INVOKE:
        if steps >= policy.max_steps:
            raise LimitError(f"the run has {steps} steps, the most there may be (max_steps)")
        steps += 1
    return run.with_usage(steps, memo_bytes, last_order + 1)


def _check_wait(wait: int, policy: Policy) -> None:
    if wait > policy.max_wait:
        raise LimitError(
            f"{_days(wait)} are more than a wait may last: {_days(policy.max_wait)}. Wait in "
            "several steps"
        )


def _days(milliseconds: int) -> str:
    return f"{milliseconds / 86_400_000:,.1f} days"
