"""Where the calling code stands: in a run, inside a step, beside a run, or outside any request."""

from __future__ import annotations

import asyncio

from durable_endpoints._context import current
from durable_endpoints.errors import NestedStepError, NotInRunError, StepIdError, UsageError
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.protocol.step_ids import MAX_NAME_LENGTH, StepId


def here(what: str) -> Execution | None:
    """The execution in which the calling code stands, or None outside any request.

    Raises `NotInRunError` or `NestedStepError` where `what` cannot be done.
    """
    place = current.place
    if place is None:
        return None
    if isinstance(place, StepScope):
        state = "after" if place.ended else "inside"
        raise NestedStepError(
            f"{what} is called {state} the body of step {str(place.step)!r}: a step is the unit "
            "that is remembered, so it cannot contain another; call one after the other, or call "
            "the inner function directly"
        )
    execution: Execution | None = place.execution
    if execution is None:
        raise NotInRunError(f"{what} is called outside a run: {place.explanation}")
    return execution


def name_step(execution: Execution, name: str) -> StepId:
    """The id of a step that is being called."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise StepIdError(f"a step's id is a text of 1 to {MAX_NAME_LENGTH} letters, not {name!r}")
    return execution.ids.next(name)


def required(execution: Execution | None, what: str) -> Execution:
    """The execution of a call that means nothing without one."""
    if execution is None:
        raise NotInRunError(f"{what} is called outside a request: nothing would ever wake it")
    return execution


def on_event_loop() -> bool:
    """Whether this thread runs an event loop at this moment."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def expect_event_loop(what: str) -> None:
    """Raise `UsageError` when an awaitable step is called where it cannot be awaited."""
    if not on_event_loop():
        raise UsageError(
            f"{what} is called in a plain `def` handler, which cannot await it: write "
            f"{what.replace('step.', 'step.sync.', 1)} there, or make the handler `async def`"
        )


def expect_thread(what: str) -> None:
    """Raise `UsageError` when a blocking step is called where it would block the event loop."""
    if on_event_loop():
        raise UsageError(
            f"{what} would block the event loop: write "
            f"`await {what.replace('step.sync.', 'step.', 1)}` in an `async def`"
        )
