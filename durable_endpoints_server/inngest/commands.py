"""Ops of Inngest's SDKs as commands of the engine: see the table in this package's docstring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from durable_endpoints.protocol.events import SIGNAL, check_event_name, check_signal
from durable_endpoints.protocol.ops import (
    Alternative,
    SignalTaken,
    Sleep,
    StepDone,
    StepFailed,
    StepKind,
    StepOp,
    StepRetry,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete
from durable_endpoints_server.inngest import loose_json, ops, results
from durable_endpoints_server.inngest.conditions import condition
from durable_endpoints_server.inngest.ops import WireOp
from durable_endpoints_server.inngest.times import milliseconds
from durable_endpoints_server.inngest.trigger import Trigger


class Setting(NamedTuple):
    """What ops are read against."""

    trigger: Trigger
    retries: int
    max_wait: int
    """Milliseconds that a sleep or a wait may last."""
    now: int


class OpenSignal(NamedTuple):
    """A wait for a signal, for which one run at a time may wait."""

    wait: WaitForEvent
    replace: bool
    """Whether a run that waits already goes on without the signal."""


def command_of(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp | OpenSignal:
    """What a step's op asks of the engine. It ends the step's `attempt`-th try (from 1), which, if
    it is to be tried again, it is after `delay` milliseconds.

    What cannot be carried out fails the step, so that the handler sees why.
    """
    read = _READERS.get(op.code)
    if read is None:
        return _failed(op, attempt, "UnsupportedError", f"{_UNSUPPORTED} {op.code}")
    try:
        return read(op, attempt, delay, setting)
    except ValueError as error:
        return _failed(op, attempt, "ValueError", str(error))


def retry_of(
    op: WireOp, attempt: int, delay: int, setting: Setting, kind: StepKind = StepKind.RUN
) -> StepRetry | StepFailed:
    """What a failed try leads to: another one, or, when the tries are used up, the end."""
    error = results.error_of(op.error)
    if attempt > setting.retries:
        return StepFailed(op.step, kind, error, attempt, op.elapsed)
    return StepRetry(op.step, kind, error, attempt, op.elapsed, delay)


def complete_of(op: WireOp) -> Complete:
    """The end of a run, with its response."""
    data = op.data
    if op.code == ops.SYNC_RUN_COMPLETE and isinstance(data, dict):
        data = data.get("data")
    response = results.response_of(data)
    return Complete(response.status, response.pack())


def too_large(op: WireOp, attempt: int, problem: str) -> StepFailed:
    """What becomes of a result that passes a limit: the handler sees it as an error."""
    return _failed(op, attempt, "LimitError", problem)


def signal_taken(op: WireOp, taken: SignalTaken) -> StepFailed:
    """What becomes of a wait for a signal for which another run waits."""
    return _failed(
        op, 1, "SignalConflictError", f"run {taken.run_id} waits for signal {op.name!r} already"
    )


_UNSUPPORTED: Final = "unsupported: this server does not carry out the op"


def _done(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp:
    return StepDone(op.step, StepKind.RUN, loose_json.write(op.data), attempt, op.elapsed)


def _done_in_old_form(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp:
    is_wrapped = isinstance(op.data, dict) and op.data.keys() == {"data"}
    return _done(op._replace(data=op.data["data"]) if is_wrapped else op, attempt, delay, setting)


def _failed_once(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp:
    return retry_of(op, attempt, delay, setting)


def _failed_for_good(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp:
    error = results.error_of(op.error if op.error is not None else op.data)
    return StepFailed(op.step, StepKind.RUN, error, attempt, op.elapsed)


def _sleep(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp:
    wait = milliseconds(op.name or op.opts.get("duration"), setting.now)
    _check_wait("sleep", wait, setting)
    return Sleep(op.step, duration=wait)


def _wait_for_event(op: WireOp, attempt: int, delay: int, setting: Setting) -> StepOp:
    name = op.opts.get("event") or op.name
    check_event_name(name)
    expression = op.opts.get("if") or ""
    if not isinstance(expression, str):
        raise ValueError(f"if={expression!r:.100} is no expression")
    pairs, expression = condition(expression, setting.trigger)
    only = Alternative(str(name), str(name), pairs, expression)
    return WaitForEvent(op.step, StepKind.WAIT, (only,), _timeout(op, setting))


def _wait_for_signal(op: WireOp, attempt: int, delay: int, setting: Setting) -> OpenSignal:
    name = op.opts.get("signal") or op.name
    check_signal(name)
    only = Alternative("", SIGNAL + str(name))
    wait = WaitForEvent(op.step, StepKind.SIGNAL, (only,), _timeout(op, setting))
    return OpenSignal(wait, op.opts.get("conflict") == "replace")


def _timeout(op: WireOp, setting: Setting) -> int:
    """Of a wait; one without a timeout is over at once, as at Inngest's server."""
    given = op.opts.get("timeout")
    wait = milliseconds(given, setting.now) if given else 0
    _check_wait("wait", wait, setting)
    return wait


def _check_wait(what: str, wait: int, setting: Setting) -> None:
    if wait > setting.max_wait:
        most = setting.max_wait // 86_400_000
        raise ValueError(f"a {what} may last {most} days at the most: wait in several steps")


def _failed(op: WireOp, attempt: int, name: str, message: str) -> StepFailed:
    kind = _KINDS.get(op.code, StepKind.RUN)
    return StepFailed(op.step, kind, results.error(name, message), attempt, op.elapsed)


_Reader = Callable[[WireOp, int, int, Setting], StepOp | OpenSignal]

_READERS: Final[Mapping[str, _Reader]] = {
    ops.STEP_RUN: _done,
    ops.STEP: _done_in_old_form,
    ops.STEP_ERROR: _failed_once,
    ops.STEP_FAILED: _failed_for_good,
    ops.SLEEP: _sleep,
    ops.WAIT_FOR_EVENT: _wait_for_event,
    ops.WAIT_FOR_SIGNAL: _wait_for_signal,
}
_KINDS: Final[Mapping[str, StepKind]] = {
    ops.SLEEP: StepKind.SLEEP,
    ops.WAIT_FOR_EVENT: StepKind.WAIT,
    ops.WAIT_FOR_SIGNAL: StepKind.SIGNAL,
}
