"""`step.invoke`: another endpoint of the application, as a run of its own.

The child is executed by the engine, as any run is that has no client. What came of it is remembered
as the result of the parent's step, so the parent does not need the child's record any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from durable_endpoints._context import current
from durable_endpoints.bodies import begin, recall
from durable_endpoints.child_request import ChildRequest, Params, request_to
from durable_endpoints.engines.base import Outcome
from durable_endpoints.errors import ConfigurationError, EngineError, LimitError
from durable_endpoints.execution import Execution
from durable_endpoints.ids import child_run_id
from durable_endpoints.memo import describe_mistake, rebuild
from durable_endpoints.protocol.durations import Duration, parse_duration
from durable_endpoints.protocol.failures import Failure
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.ops import (
    Invoke,
    StepDone,
    StepFailed,
    StepKind,
    StepRecord,
    StepState,
)
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.values import NotJsonError
from durable_endpoints.requests import printable
from durable_endpoints.where import checked, name_step

if TYPE_CHECKING:
    from durable_endpoints.child_answer import AnswerCodec

_TIMED_OUT = "invocation_timed_out"
"""Why a child is cancelled that took longer than its parent waits."""
_BEGINNING = 200
"""Characters of an error's body that the message of a `StepError` shows."""


class Invocation(NamedTuple):
    """A call of `step.invoke`, checked."""

    step: StepId
    call: ChildRequest
    answers: AnswerCodec
    timeout: int | None


def prepare(
    execution: Execution,
    id: str,
    endpoint: Callable[..., Any],
    params: Params | None,
    json: Any,
    headers: Mapping[str, str] | None,
    method: str | None,
    timeout: Duration | None,
) -> Invocation:
    """Check a call and find its endpoint. To be called where the handler calls.

    Raises `UsageError` that says what is wrong.
    """
    from durable_endpoints.child_answer import answers_of

    milliseconds = None if timeout is None else checked(parse_duration, id, timeout)
    call = request_to(current.place, id, endpoint, params, json, headers, method)
    answers = answers_of(id, call.endpoint)
    return Invocation(name_step(execution, id), call, answers, milliseconds)


async def invoke(execution: Execution, invocation: Invocation) -> Any:
    """Run the endpoint, and return what it answered.

    Raises `StepError` if it failed, or answered with an error status.
    """
    step, call, answers, timeout = invocation
    record = recall(execution, step, StepKind.INVOKE)
    if record is not None and record.is_final:
        return await execution.take(record, answers)
    await begin(execution, step)
    child = child_run_id(execution.info.run_id, step.hash)
    try:
        if record is None:
            op = Invoke(step, _new_run(execution, child, call), timeout)
            record = await _wait(execution, execution.record(op), child)
        else:
            execution.session.watch(record)
        outcome = await _outcome(execution, record, child)
        answer = _remember(execution, invocation, outcome)
        await execution.in_order()
        return answer
    finally:
        execution.in_use.discard(step.name)


def _new_run(execution: Execution, child: str, call: ChildRequest) -> NewRun:
    request, options = call.request, call.options
    return NewRun(
        child,
        call.function_id,
        call.version,
        request.method,
        printable(request.path),
        execution.engine.pack_request(child, request),
        call.root_path,
        options.retries,
        options.max_runtime,
        options.omit_request_body,
    )


async def _outcome(execution: Execution, record: StepRecord, child: str) -> Outcome | None:
    """How the child ended; None if its record is not kept any more.

    A parent is woken when its child has ended, and when its own time is over. So a child that has
    not ended then is late. It is cancelled, and only then is anything remembered of that: should
    the process end in between, the child's record tells.
    """
    engine = execution.engine
    # The parent's time may be over before the child is on disk, where it is looked for.
    await execution.ask(execution.session.acknowledge())
    while True:
        outcome = await execution.ask(engine.outcome(child, 0))
        if outcome is None or outcome.is_final:
            return outcome
        known = execution.memo.get(record.id.hash)
        if known is not None and known.state is StepState.RETRYING:
            record = known  # it was woken while nobody waited
        if record.state is StepState.RETRYING:
            await execution.ask(engine.cancel(child, _TIMED_OUT))
        else:
            record = await _wait(execution, record, child)


async def _wait(execution: Execution, record: StepRecord, child: str) -> StepRecord:
    """Wait until the engine wakes the step.

    A client that is being answered is let wait as long as its child is busy: a quick one then
    costs it no redirect. A re-entry gives way at once, to leave its place to its children.
    """
    if not (patience := execution.patience):
        return await execution.park(record)
    engine, let_go = execution.engine, execution.hold_on()

    async def hold_on() -> None:
        try:
            await execution.session.acknowledge()
            await engine.until_idle(child)
        except EngineError:
            pass  # the execution meets the same failure as it departs
        finally:
            let_go()

    holding = engine.spawn(hold_on(), f"wait for {child}")
    cancel_timer = engine.call_later(patience, let_go)
    try:
        return await execution.park(record)
    finally:
        holding.cancel()
        cancel_timer()
        let_go()


def _remember(execution: Execution, invocation: Invocation, outcome: Outcome | None) -> Any:
    """Record what came of the child, and return or raise what a replay will."""
    step, call, answers, timeout = invocation
    answer = outcome.response if outcome is not None else None
    failure = _failure(call, outcome, timeout)
    if failure is None and answer is not None:
        try:
            text, value = answers.encode(answer)
            execution.record(StepDone(step, StepKind.INVOKE, text))
            return value
        except NotJsonError as error:
            failure = _invoke_error(
                f"{call} answered {answer.status}, but not with what {call.endpoint.name} is "
                f"annotated to return: {error}: {_beginning(answer)}"
            )
        except (LimitError, ConfigurationError) as error:
            failure = describe_mistake(error)
    assert failure is not None
    failed = execution.record(StepFailed(step, StepKind.INVOKE, failure.encode(), attempt=1))
    raise rebuild(failed, execution.calls.where(step))


def _failure(call: ChildRequest, outcome: Outcome | None, timeout: int | None) -> Failure | None:
    """Why a child that has ended gives no result; None if it does."""
    if outcome is None:
        return _invoke_error(f"the record of {call} is not kept any more (retention)")
    if outcome.status == "cancelled":
        if outcome.reason == _TIMED_OUT:
            seconds = f" of {timeout / 1_000:g} s" if timeout is not None else ""
            return Failure("TimeoutError", f"{call} took longer than the timeout{seconds}")
        return _invoke_error(f"{call} was cancelled ({outcome.reason})")
    if outcome.reason == "timed_out":
        return Failure("TimeoutError", f"{call} took longer than its max_runtime")
    if outcome.status == "failed":
        return _invoke_error(f"{call} failed: {outcome.error or outcome.reason}")
    answer = outcome.response
    if answer is None:
        is_too_large = outcome.omitted == "too_large"
        what = "is larger than what is kept (max_response_body)" if is_too_large else "is gone"
        return _invoke_error(f"the answer of {call} {what}")
    if answer.status >= 400:
        return _invoke_error(f"{call} answered {answer.status}: {_beginning(answer)}")
    return None


def _invoke_error(message: str) -> Failure:
    return Failure("InvokeError", message)


def _beginning(answer: StoredResponse) -> str:
    from durable_endpoints.child_answer import text_of

    text = printable(text_of(answer))
    return text if len(text) <= _BEGINNING else f"{text[:_BEGINNING]}…"
