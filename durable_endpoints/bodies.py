"""Trying the body of a step: remembered or run, then recorded, or retried.

The work is split where a plain handler changes threads: `enter` and `succeed` or `fail` run on the
event loop, the body in between runs wherever its caller is.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple

from durable_endpoints._context import place_here, stand_at
from durable_endpoints.calls import call, call_in_thread, fits_call, is_async
from durable_endpoints.coding import named
from durable_endpoints.errors import (
    CompensationError,
    ConfigurationError,
    FetchError,
    LimitError,
    NonRetriableError,
    RetryAfterError,
    StepError,
    StepIdError,
    StepValueError,
    UsageError,
)
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.hooks import Result, StepInfo, notify
from durable_endpoints.memo import MISTAKES, describe_mistake
from durable_endpoints.options import MAX_RETRIES
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.durations import Duration, parse_duration
from durable_endpoints.protocol.ops import (
    StepDone,
    StepFailed,
    StepKind,
    StepRecord,
    StepRetry,
)
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.values import NotJsonError
from durable_endpoints.results import JSON, Codec
from durable_endpoints.unwinding import CancelledInsideError

logger = logging.getLogger("durable_endpoints")


_MISUSE = re.compile(
    r"^(?:Step|SyncStep|Stream|SyncStream|StepRunner|SyncRunner|Log|Saga|RetryAfterError)\.\w+\(\) "
    r"|^(?:configure|progress|send_event|send_signal)\(\) "
    r"|^'(?:Step|SyncStep|Stream|SyncStream|Log|Saga)' object has no attribute"
)
"""What Python says of a call of ours that has the wrong arguments, or the wrong name."""


_MILLISECOND = timedelta(milliseconds=1)
_new = tuple.__new__
_RUN = StepKind.RUN


class NeedsNewExecutionError(Exception):
    """A body cannot be tried again in this execution, but in the next one it can."""


class NotBegunError(Exception):
    """The body has waited to begin for so long that another execution may have the run."""


class StepOptions(NamedTuple):
    """The settings of one step. None: the endpoint's, or no limit."""

    retries: int | None = None
    timeout: float | None = None
    """Seconds for one try."""


def step_options(retries: int | None, timeout: Duration | None) -> StepOptions:
    """Check the settings of one step. Raises `ConfigurationError`."""
    if retries is not None and (
        isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES
    ):
        raise ConfigurationError(
            f"retries={retries!r}: give a whole number from 0 to {MAX_RETRIES}; 3 means four tries"
        )
    seconds = None
    if timeout is not None:
        try:
            seconds = parse_duration(timeout) / 1_000
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"timeout: {error}") from None
        if not seconds:
            raise ConfigurationError("timeout must be longer than nothing")
    return StepOptions(retries, seconds)


def recall(execution: Execution, step: StepId, kind: StepKind) -> StepRecord | None:
    """What is remembered of a step that is being awaited. Raises `StepIdError` on a mismatch."""
    execution.calls.awaited(step)
    record = execution.memo.get(step.hash)
    if record is None:
        return None
    if not record.id.name:  # by an engine that keeps results under their hashes alone
        record = named(execution.session, record, step, kind)
        execution.memo.update(record)
        return record
    if record.kind != kind or record.id.name != step.name:
        raise StepIdError(
            f"step {str(step)!r} is a {kind} here, but an earlier execution of this run remembers "
            f"{str(record.id)!r} as a {record.kind}: a step must not change its kind while runs "
            "are under way; give the new one another name",
            where=execution.calls.where(step),
        )
    return record


async def begin(execution: Execution, step: StepId) -> None:
    """Note that a step is in use, until its name is discarded from `in_use`.

    Raises when it cannot be begun.
    """
    if not execution.is_open:
        await execution.refuse()
    _use(execution, step)


def _use(execution: Execution, step: StepId) -> None:
    if step.name in execution.in_use:
        raise StepIdError(
            f"step {step.name!r} is called again while it is still running: two steps at the same "
            f'time need names of their own, for instance f"{step.name}-{{i}}"',
            where=execution.calls.where(step),
        )
    execution.in_use.add(step.name)


async def first_attempt(execution: Execution, step: StepId, record: StepRecord | None) -> int:
    """Begin a step with a body: the number of the try that comes next, when its time has come."""
    if record is None and execution.is_open:
        return _begin_new(execution, step)
    await begin(execution, step)
    assert record is not None
    try:
        if record.due is not None:
            execution.session.watch(record)
            await execution.park(record)
        return record.attempt + 1
    except BaseException:
        execution.in_use.discard(step.name)
        raise


def _begin_new(execution: Execution, step: StepId) -> int:
    """The same for a step of which nothing is remembered, in an execution that is open."""
    _use(execution, step)
    try:
        execution.count_step(step)
    except BaseException:
        execution.in_use.discard(step.name)
        raise
    return 1


async def start(execution: Execution, step: StepId, attempt: int) -> None:
    """Return when the body may run."""
    await execution.start_body(step)
    if execution.hooks:
        info = StepInfo(str(step), attempt)
        try:
            await notify([hook.before_step(execution.info, info) for hook in execution.hooks])
        except BaseException:
            execution.end_body()
            raise
        if not execution.session.is_sure:  # any more
            execution.end_body()
            await execution.start_body(step)


async def succeed(
    execution: Execution, step: StepId, attempt: int, value: Any, elapsed: int, codec: Codec
) -> Any:
    """The body returned: record that, and return what a replay will get.

    A value that cannot be kept is a failure of the step, and recorded as that: its body has run.
    Raises `StepValueError` or `LimitError` then.
    """
    execution.end_body()
    if execution.is_closed:
        await execution.refuse(has_run=True)
    try:
        encoded, decoded = codec.encode(value)
        execution.record(_new(StepDone, (step, _RUN, encoded, attempt, elapsed)))
    except NotJsonError as error:
        mistake = StepValueError(
            f"the result of step {str(step)!r} cannot be kept: {error}",
            where=execution.calls.where(step),
        )
        await _record_mistake(execution, step, attempt, mistake, elapsed)
        raise mistake from None
    except (LimitError, ConfigurationError) as error:
        await _record_mistake(execution, step, attempt, error, elapsed)
        raise
    execution.last_step = step
    if not execution.is_open:
        await execution.refuse(has_run=True)
    if execution.session.is_raced:
        await execution.in_order()
    if execution.hooks:
        await _after(execution, step, attempt, Result("completed"))
    return decoded


async def fail(
    execution: Execution,
    step: StepId,
    attempt: int,
    error: Exception,
    elapsed: int,
    options: StepOptions,
) -> int:
    """The body raised `error`: record that, and return the next try's number when its time has
    come.

    Raises `StepError` when there is none, and `error` itself when it is a mistake in the code.
    """
    final = is_final(error, attempt, _retries(execution, options))
    try:
        if execution.hooks:
            await _after(execution, step, attempt, Result("failed" if final else "retrying", error))
    finally:
        execution.end_body()  # not before: a run must not be suspended between hook and record
    if execution.is_closed or execution.departure is not None:
        await execution.refuse(has_run=True)
    if isinstance(error, MISTAKES):
        error.where = error.where or execution.calls.where(step)
        await _record_mistake(execution, step, attempt, error, elapsed)
        raise error
    description = failures.describe(error)
    encoded = description.encode()
    execution.last_step = step
    logger.warning(
        "run %s (%s), step %r: %s%s; try %d of %d",
        execution.info.run_id,
        execution.info.function_id,
        str(step),
        description,
        f" (at {description.at})" if description.at else "",
        attempt,
        attempt if final else _retries(execution, options) + 1,
    )
    if final:
        await _record_failure(execution, StepFailed(step, StepKind.RUN, encoded, attempt, elapsed))
        raise StepError(
            str(step),
            description.name,
            description.message,
            attempt,
            where=execution.calls.where(step),
            raised_at=description.at,
        ) from error
    delay = delay_of(error, execution.engine.now())
    op = StepRetry(step, StepKind.RUN, encoded, attempt, elapsed, delay)
    await execution.park(execution.record(op))
    return attempt + 1


async def _record_failure(execution: Execution, op: StepFailed) -> None:
    """Record that a step failed for good. Some engines tell the handler of that in another
    execution only."""
    record = execution.record(op)
    if not record.is_final:
        await execution.park(record)
    await execution.in_order()
    if not execution.is_open:
        await execution.refuse(has_run=True)


async def _record_mistake(
    execution: Execution, step: StepId, attempt: int, mistake: Exception, elapsed: int
) -> None:
    """A body has ended in a way that trying again cannot mend: it is not to run again."""
    encoded = describe_mistake(mistake).encode()
    execution.last_step = step
    try:
        await _record_failure(execution, StepFailed(step, StepKind.RUN, encoded, attempt, elapsed))
    except LimitError:  # not even that has room: the run ends with it
        execution.withdraw(step)


def told_of_call(
    execution: Execution,
    step: StepId,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: Exception,
) -> Exception:
    """`error`, or what to say instead if the body did not run: it was given arguments that it does
    not take, and would not take the next time either."""
    if not isinstance(error, TypeError) or fits_call(body, args, kwargs):
        return error
    advice = "the arguments follow the function"
    if kwargs.keys() & set(StepOptions._fields):
        advice += f", and the settings of a step stand in step.options(…).run({step.name!r}, …)"
    mistake = UsageError(
        f"step {str(step)!r} has arguments that do not fit: {error}; {advice}",
        where=execution.calls.where(step),
    )
    mistake.__cause__ = error
    return mistake


def delay_of(error: BaseException, now: int) -> int | None:
    """The wait that a failure asks for, in milliseconds; None leaves it to the back-off."""
    if isinstance(error, FetchError):
        return None if error.retry_after is None else error.retry_after // _MILLISECOND
    return error.delay(now) if isinstance(error, RetryAfterError) else None


def is_final(error: BaseException, attempt: int, retries: int) -> bool:
    """Whether the `attempt`-th try, having failed with `error`, was the last one."""
    if isinstance(error, TypeError | AttributeError) and _MISUSE.search(str(error)):
        return True
    return isinstance(error, NonRetriableError | CompensationError | MISTAKES) or attempt > retries


async def run_step(
    execution: Execution,
    step: StepId,
    options: StepOptions,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    codec: Codec = JSON,
) -> Any:
    """A whole step, on the event loop."""
    record = recall(execution, step, _RUN)
    if record is not None and record.is_final:
        return await execution.take(record, codec)
    if record is None and execution.is_open:
        attempt = _begin_new(execution, step)
    else:
        attempt = await first_attempt(execution, step, record)
    try:
        while True:
            if execution.hooks:
                await start(execution, step, attempt)
            elif not execution.try_start():
                await execution.start_body(step)
            began = time.perf_counter_ns()
            try:
                value = await _run_body(execution, step, options, attempt, body, args, kwargs)
            except NotBegunError:
                execution.end_body()
            except NeedsNewExecutionError:
                execution.give_up_try(step)
                await execution.park_for_handover()
            except Exception as error:
                elapsed = (time.perf_counter_ns() - began) // 1_000
                told = told_of_call(execution, step, body, args, kwargs, error)
                attempt = await fail(execution, step, attempt, told, elapsed, options)
            except BaseException:
                execution.give_up_try(step)  # the handler, for one, may call the step again
                raise
            else:
                elapsed = (time.perf_counter_ns() - began) // 1_000
                return await succeed(execution, step, attempt, value, elapsed, codec)
    finally:
        execution.in_use.discard(step.name)


async def _run_body(
    execution: Execution,
    step: StepId,
    options: StepOptions,
    attempt: int,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    task = execution.enter_task()
    cancelled_before = task.cancelling()
    scope, place = StepScope(execution, step, attempt), place_here()
    stand_at(scope)
    try:
        if (script := execution.engine.script) is not None:
            body = script.body_of(execution.info.run_id, step, body)
        in_thread = not is_async(body)
        if in_thread:
            body, args = begin_here, (execution, body, *args)
        if execution.around.step:
            info, inner = (
                StepInfo(str(step), attempt),
                functools.partial(call, body, *args, **kwargs),
            )
            body, args, kwargs = execution.around.wrap_step(execution.info, info, inner), (), {}
            in_thread = False
        if options.timeout is not None:
            return await _within(options.timeout, step, call(body, *args, **kwargs))
        if in_thread:
            return await call_in_thread(body, *args, **kwargs)
        return await body(*args, **kwargs)
    except asyncio.CancelledError as error:
        if task.cancelling() > cancelled_before or execution.departure is not None:
            raise
        raise CancelledInsideError(f"step {str(step)!r}") from error
    finally:
        stand_at(place)
        scope.ended = True
        execution.leave_task(task)


def begin_here(execution: Execution, body: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a body in a thread, for which it may have waited long. Raises `NotBegunError`."""
    if not execution.session.is_sure:
        raise NotBegunError
    return body(*args, **kwargs)


async def _within(timeout: float, step: StepId, awaitable: Awaitable[Any]) -> Any:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"step {str(step)!r} took longer than {timeout:g} s") from None
        raise


async def _after(execution: Execution, step: StepId, attempt: int, result: Result) -> None:
    info = StepInfo(str(step), attempt)
    await notify([hook.after_step(execution.info, info, result) for hook in execution.hooks])


def _retries(execution: Execution, options: StepOptions) -> int:
    return execution.options.retries if options.retries is None else options.retries
