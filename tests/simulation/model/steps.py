"""What must be said of each try of a step, and when the next one may be."""

from __future__ import annotations

from typing import Final

import orjson

from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints_server.engine.facts import AttemptFailed, Change
from durable_endpoints_server.engine.model import Policy
from tests.simulation.model.books import Books, ViolationError
from tests.simulation.model.details import delay_of
from tests.simulation.programs import Invoke, Send, Signal, Sleep, Step, Wait, WaitAny

_KINDS: Final = {
    Step: StepKind.RUN,
    Sleep: StepKind.SLEEP,
    Wait: StepKind.WAIT,
    WaitAny: StepKind.WAIT_ANY,
    Signal: StepKind.SIGNAL,
    Send: StepKind.SEND,
    Invoke: StepKind.INVOKE,
}
_ROUNDING = 2
"""Milliseconds by which a delay may differ from what is computed here."""


def check_opened(books: Books, step: StepRecord, now: int) -> None:
    """What is said of a step that waits for something."""
    node = books.nodes[step.id.name]
    lasts: int | None = None
    if isinstance(node, Sleep):
        lasts = node.duration
    elif isinstance(node, Wait | WaitAny | Signal | Invoke):
        lasts = node.timeout
    due = None if lasts is None else step.began_at + lasts
    if step.due != due:
        raise ViolationError(f"{step.id} from {step.began_at} ends at {step.due}, not at {due}")
    if not books.run.began_at <= step.began_at <= now:
        raise ViolationError(f"{step.id} began at {step.began_at}, and it is {now}")


def check_kind(books: Books, step: StepRecord) -> None:
    """A step is of the kind that the handler has called."""
    node = books.nodes.get(step.id.name)
    kind = StepKind.HANDLER if node is None else _KINDS[type(node)]
    if step.kind is not kind:
        raise ViolationError(f"{step.id} is a {step.kind.value}, not a {kind.value}")


def check_again(books: Books, step: StepRecord, now: int) -> None:
    """The time has come to try a step again, or to look what became of an invoked run."""
    key = step.id.hash
    if step.state is not StepState.RETRYING or step.error != _error(step):
        raise ViolationError(f"{step.id} is to go on as {step}")
    if step.kind is not StepKind.INVOKE and books.due.pop(key, now + 1) > now:
        raise ViolationError(f"{step.id} is tried again before its time: it is {now}")


def _error(step: StepRecord) -> bytes | None:
    if step.kind is StepKind.INVOKE and step.state is not StepState.FAILED:
        return None
    return orjson.dumps({"error": step.id.name})


def check_failure(books: Books, change: Change, step: StepRecord, policy: Policy) -> None:
    """A try has failed: what is said of it, and when the next one is, if there is to be one."""
    node, name = books.nodes.get(step.id.name), str(step.id)
    took = node.takes if isinstance(node, Step) else 0
    ended_at = step.began_at + took
    failure = AttemptFailed(step.id, step.attempt, step.began_at, ended_at, _error(step) or b"")
    if failure not in change.facts or step.error != failure.error:
        raise ViolationError(f"{name} has failed as {step}, which is told as {change.facts}")
    books.failures.append(failure)
    if step.state is StepState.FAILED:
        return
    assert step.due is not None
    books.due[step.id.hash] = step.due
    least = most = delay_of(node) if isinstance(node, Step) else None
    if least is None:
        wait = min(policy.retry_base * policy.retry_factor ** (step.attempt - 1), policy.retry_cap)
        least = int((1 - policy.retry_jitter) * wait) - _ROUNDING
        most = int((1 + policy.retry_jitter) * wait) + _ROUNDING
    if not least <= step.due - ended_at <= (most or 0):
        raise ViolationError(
            f"{name} has failed {step.attempt} times, at last at {ended_at}, and is due at "
            f"{step.due}"
        )


def check_end(books: Books, said: StepRecord, kept: StepRecord) -> None:
    """What is said of a step that has ended: by its last try (`said`), and as a whole (`kept`)."""
    node, name = books.nodes[kept.id.name], str(kept.id)
    is_done = kept.state is StepState.DONE
    if (kept.value is not None) != is_done or (kept.error is not None) == is_done:
        raise ViolationError(f"{name} is {kept}")
    if kept.due is not None or kept.ended_at is None:
        raise ViolationError(f"{name} has ended as {kept}")
    took = node.takes if isinstance(node, Step) else node.number if isinstance(node, Send) else None
    if took is not None and kept.ended_at - said.began_at != took:
        raise ViolationError(f"{name} took {kept.ended_at - said.began_at} ms, not {took}")
    if kept.kind is StepKind.RUN and kept.attempt != books.tries[kept.id.hash]:
        raise ViolationError(f"{name} ended by try {kept.attempt}: {books.tries[kept.id.hash]}")
