"""`Saga`: what a handler has done is undone when it fails later on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple, ParamSpec

from starlette.exceptions import HTTPException

from durable_endpoints._context import current
from durable_endpoints.bodies import is_final, run_step, step_options
from durable_endpoints.calls import call, fits_call, is_async, name_of
from durable_endpoints.errors import CompensationError, NonRetriableError, StepError, UsageError
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.failing import is_handled
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.durations import Duration
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.results import check_callable
from durable_endpoints.sync_step import on_loop, run_step_here
from durable_endpoints.where import here, name_step, on_event_loop

P = ParamSpec("P")


class _Compensation(NamedTuple):
    """One registered step that undoes something. Outside any request it is just a call."""

    name: str
    execution: Execution | None
    step: StepId | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Saga:
    """A block whose steps are undone when an error leaves it.

        async with Saga() as saga:
            flight = await step.run("book flight", book_flight, trip)
            saga.add_compensation("cancel flight", cancel_flight, flight)
            await step.run("charge", charge, trip)

    When an `Exception` leaves the block, what was registered runs as steps, the last one first:
    remembered, and tried again when it fails, like any step. Then the error goes on. In a plain
    `def` handler write `with Saga() as saga`.

    * A handler that fails is usually tried again with its memo kept. It would go on with what was
      undone, so an error that would be retried leaves the block as a `NonRetriableError`, with the
      original as its cause. A `StepError`, an `HTTPException`, whatever the application has an
      exception handler for, and errors that are never retried leave it as they are.
    * A compensation that fails for good does not keep the others from running. Then
      `CompensationError` leaves the block, whatever the original was: that is its cause.
    * Only an `Exception` undoes: a `return` of any response is a good end, and a cancellation may
      be that of a server that is stopped, whose run goes on elsewhere. So let a task group or a
      timeout be inside the block, not around it.
    * A wait inside the block undoes nothing. After a crash in the middle of undoing, the rest is
      undone; also if the handler's own code, which runs again, does not fail this time.
    * A run that is *cancelled*, or that has passed its `max_runtime`, is not executed any more, and
      so undoes nothing.

    `retries` and `timeout` are those of each compensation, as in `step.options`; the default is the
    endpoint's. Give more retries than usual to what must not fail.
    """

    def __init__(self, *, retries: int | None = None, timeout: Duration | None = None) -> None:
        self._options = step_options(retries, timeout)
        self._compensations: list[_Compensation] = []
        self._stage: Literal["new", "open", "blocking", "over"] = "new"
        self._execution: Execution | None = None
        self._has_undone = False
        self._was_undone = False
        """Whether an earlier execution of the run has begun to undo this block."""

    def add_compensation(
        self, id: str, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Register `fn(*args, **kwargs)` as the step `id`, which undoes something. Its result is
        dropped, and may be anything.

        Register it *after* the step that it undoes, where it needs that step's result: what has
        failed for good is then not undone. Register it *before* where a try that failed may have
        had its effect all the same (a timeout, a lost connection), or where steps run beside each
        other; then it must also work when there is nothing to undo. Steps whose bodies still run
        when the error leaves the block are heard out before anything is undone.

        Raises `UsageError` for what is no function, and outside the block.
        """
        if self._stage not in ("open", "blocking"):
            raise UsageError(
                f"saga.add_compensation({id!r}) is called outside the block of its saga: write "
                "`async with Saga() as saga:`, and register in there"
            )
        execution = here("saga.add_compensation", id)
        check_callable(id, fn)
        if self._stage == "blocking" and is_async(fn):
            raise UsageError(
                f"saga.add_compensation({id!r}): {fn!r} is a coroutine function, and this handler "
                "is a plain `def`; give a plain function"
            )
        if not fits_call(fn, args, kwargs):  # or it would be seen when it is too late
            raise UsageError(
                f"saga.add_compensation({id!r}): the arguments do not fit {name_of(fn)}; they "
                "follow the function, and retries and timeout stand in Saga(…)"
            )
        # The name is taken now: what is registered is the same in a replay, what is undone not yet.
        compensated = None if execution is None else name_step(execution, id)
        if execution is not None and compensated is not None:
            execution.calls.awaited(compensated)  # it is no mistake if it never runs
            self._was_undone |= execution.memo.get(compensated.hash) is not None
        self._compensations.append(
            _Compensation(id, execution, compensated, _without_result(fn), args, kwargs)
        )

    async def __aenter__(self) -> Saga:
        self._enter("open")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_to_be_undone(error):
            return
        if self._execution is not None:
            await self._execution.bodies_end()
        failed: dict[str, Exception] = {}
        while self._compensations:
            compensation = self._next()
            try:
                await self._run(compensation)
            except Exception as problem:
                failed[str(compensation.step or compensation.name)] = problem
        self._end(error, failed)

    def __enter__(self) -> Saga:
        if current.place is not None and on_event_loop():
            raise UsageError(
                "`with Saga()` would block the event loop: write `async with Saga()` in an "
                "`async def`"
            )
        self._enter("blocking")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_to_be_undone(error):
            return
        if self._execution is not None:
            on_loop(self._execution, Execution.bodies_end)
        failed: dict[str, Exception] = {}
        while self._compensations:
            compensation = self._next()
            try:
                self._run_here(compensation)
            except Exception as problem:
                failed[str(compensation.step or compensation.name)] = problem
        self._end(error, failed)

    def _enter(self, stage: Literal["open", "blocking"]) -> None:
        if self._stage != "new":
            raise UsageError("this saga has had its block: make a new Saga() for each")
        self._stage = stage
        if not isinstance(current.place, StepScope):  # where nothing can be registered
            self._execution = getattr(current.place, "execution", None)

    def _is_to_be_undone(self, error: BaseException | None) -> bool:
        """Whether the block has failed. What unwinds a handler that waits is no failure."""
        is_failure = self._was_undone if error is None else isinstance(error, Exception)
        if not is_failure:
            self._stage = "over"
        return is_failure

    def _next(self) -> _Compensation:
        self._has_undone = True
        return self._compensations.pop()

    async def _run(self, compensation: _Compensation) -> None:
        _, execution, step, function, args, kwargs = compensation
        if execution is None or step is None:
            await call(function, *args, **kwargs)
        else:
            await run_step(execution, step, self._options, function, args, kwargs)

    def _run_here(self, compensation: _Compensation) -> None:
        _, execution, step, function, args, kwargs = compensation
        if execution is None or step is None:
            function(*args, **kwargs)
        else:
            run_step_here(execution, step, self._options, function, args, kwargs)

    def _end(self, error: BaseException | None, failed: dict[str, Exception]) -> None:
        """Everything that can be undone is: say how the block has ended, unless `error` does."""
        self._stage = "over"
        if error is None:
            error = NonRetriableError(
                "an earlier execution of this run failed in this saga and began to undo it, so it "
                "was undone to its end, although this execution did not fail: let what may fail "
                "differently the next time be in a step"
            )
            if not failed:
                raise error
        if failed:
            raise CompensationError(failed) from error
        if self._has_undone and isinstance(error, Exception) and not _goes_on(error):
            said = f"{type(error).__name__}: {failures.message_of(error)}"
            message = f"{said} (what came before it was undone)"
            raise NonRetriableError(message) from error


def _goes_on(error: Exception) -> bool:
    """Whether no execution would come after this error, so that it may leave as it is."""
    if isinstance(error, StepError | HTTPException) or is_final(error, 0, 0):
        return True
    scope = getattr(current.place, "scope", None)
    return scope is not None and is_handled(scope, error)


def _without_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, for its effect only."""
    if is_async(function):

        @functools.wraps(function)
        async def compensate(*args: Any, **kwargs: Any) -> None:
            await function(*args, **kwargs)

        return compensate

    @functools.wraps(function)
    def compensate_blocking(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        # `lambda: cancel(1)` is a plain function that gives a coroutine.
        return _ended(made) if inspect.isawaitable(made) else None

    return compensate_blocking


async def _ended(made: Awaitable[Any]) -> None:
    await made
