"""Where the calling code stands: in a run, inside a step, beside a run, or outside any request."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from durable_endpoints._context import place_here
from durable_endpoints.calls import name_of
from durable_endpoints.errors import NestedStepError, NotInRunError, StepIdError, UsageError
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.protocol.step_ids import MAX_NAME_LENGTH, StepId
from durable_endpoints.requests import printable


def here(what: str, id: str) -> Execution | None:
    """The execution in which the calling code stands, or None outside any request.

    Raises `NotInRunError` or `NestedStepError` where the step `id`, a `what`, cannot be, and
    `StepIdError` if that is no name.
    """
    if not isinstance(id, str) or not 0 < len(id) <= MAX_NAME_LENGTH:
        raise StepIdError(_bad_name(what, id))
    place = place_here()
    if place is None:
        return None
    if isinstance(place, StepScope):
        state = "after" if place.ended else "inside"
        raise NestedStepError(
            f"{what}({id!r}) is called {state} the body of step {str(place.step)!r}: a step is the "
            "unit that is remembered, so it cannot contain another; call one after the other, or "
            "call the inner function directly"
        )
    execution: Execution | None = place.execution
    if execution is None:
        raise NotInRunError(f"{what}({id!r}) is called outside a run: {place.explanation}")
    return execution


def here_on_loop(what: str, id: str) -> Execution | None:
    """The same for a step that is awaited. Raises `UsageError` where it cannot be."""
    execution = here(what, id)
    if execution is not None and not execution.runs_here:
        place = "a plain `def` handler" if execution.is_in_thread else "a thread"
        if id.startswith("stream.pipe"):  # the step that it makes
            what, given = "stream.pipe", "…"
        else:
            given = repr(id)
        blocking = what.replace(".", ".sync.", 1)
        raise UsageError(
            f"{what}({given}) is called in {place}, which cannot await it: write "
            f"{blocking}({given}) there, or call it in an `async def` handler"
        )
    return execution


def here_in_thread(what: str, id: str) -> Execution | None:
    """The same for a step that blocks. Raises `UsageError` where that would block everybody."""
    execution = here(what, id)
    if execution is not None and on_event_loop():
        raise UsageError(
            f"{what}({id!r}) would block the event loop: write "
            f"`await {what.replace('step.sync.', 'step.', 1)}({id!r})` in an `async def`"
        )
    return execution


def run_here(what: str) -> Execution:
    """The execution in which the calling code stands, inside a step's body too.

    Raises `NotInRunError` where there is none.
    """
    place = place_here()
    execution: Execution | None = None if place is None else place.execution
    if execution is None:
        why = "there is no request" if place is None else place.explanation
        raise NotInRunError(f"{what} is asked for outside a run: {why}")
    return execution


def name_step(execution: Execution, name: str) -> StepId:
    """The id of a step that is being called."""
    if not name.isascii() and printable(name) != name:
        raise StepIdError(f"the step id {name!r} is not valid Unicode")
    return execution.calls.called(execution.ids.next(name), sys._getframe(2))


def checked(parse: Callable[[Any], int], id: str, value: Any) -> int:
    """A duration or an instant that the step `id` was given. Raises `UsageError`."""
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"step {id!r}: {error}") from None


def required(execution: Execution | None, what: str, id: str) -> Execution:
    """The execution of a call that means nothing without one."""
    if execution is None:
        raise NotInRunError(f"{what}({id!r}) is called outside a request: nothing would wake it")
    return execution


def on_event_loop() -> bool:
    """Whether this thread runs an event loop at this moment."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _bad_name(what: str, id: Any) -> str:
    """What to say to something that is no name of a step."""
    if callable(id):
        name = name_of(id).rpartition(".")[2]
        return f'{what} was given no name: the name of the step comes first, {what}("{name}", …)'
    if isinstance(id, str):
        given = f"one of {len(id):,} letters" if id else "an empty one"
    else:
        given = f"{id!r}: the name of the step comes first, {what}(f'item-{{n}}', …)"
    return f"{what}: a step's id is a text of 1 to {MAX_NAME_LENGTH} letters, not {given}"
