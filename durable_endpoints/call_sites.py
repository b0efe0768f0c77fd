"""Where a handler called its steps, and which of the calls it never awaited.

A task of a `gather` has no way back to the code that made it, so an error about its step could not
name a line. So each call notes where it is, before there is any task.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any, TypeVar
from weakref import ref

from durable_endpoints.calls import StepCall
from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.places import CallSite, line_of, site_in, spell
from durable_endpoints.protocol.step_ids import StepId

logger = logging.getLogger("durable_endpoints")

T = TypeVar("T")


class _Call:
    """The call of one step."""

    __slots__ = ("gave", "is_awaited", "is_dropped", "site", "step")

    def __init__(self, step: StepId, site: CallSite | None) -> None:
        self.step = step
        self.site = site
        self.is_awaited = False
        self.is_dropped = False
        """Whether the statement that called has dropped at once what the call gave."""
        self.gave: ref[Any] | None = None
        """What it gave, until that is awaited."""

    def gone(self, _: ref[Any]) -> None:
        """What it gave is gone. If the statement that called is still at work, it was dropped."""
        frame, site = sys._getframe(1), self.site
        if site is not None and frame.f_code is site[0] and frame.f_lineno == line_of(site):
            self.is_dropped = True


class CallSites:
    """The calls of one execution, in order."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[str, _Call] = {}

    def called(self, step: StepId, by: FrameType) -> StepId:
        """A step is being called, in the frame `by` or in one further out."""
        self._calls[step[0]] = _Call(step, site_in(by))
        return step

    def gave(self, step: StepId, given: StepCall[T]) -> StepCall[T]:
        """The call of a step gives `given`, which is to be awaited."""
        call = self._calls[step[0]]
        call.gave = ref(given, call.gone)
        return given

    def has(self, step: StepId) -> bool:
        """Whether a step was called."""
        return step.hash in self._calls

    def steps(self) -> Iterable[StepId]:
        """The steps that were called, in order."""
        return (call.step for call in self._calls.values())

    def awaited(self, step: StepId) -> None:
        """What the call gave is being awaited."""
        call = self._calls.get(step[0])
        if call is not None:
            call.is_awaited, call.gave = True, None

    def where(self, step: StepId) -> str:
        """The line that called a step; empty if it is unknown."""
        call = self._calls.get(step.hash)
        return spell(call.site) if call is not None and call.site is not None else ""

    def check_awaited(self) -> None:
        """Raise `UsageError` for a step that was called, and that nobody has awaited by now.

        One that was cancelled before it could begin, with its task, is no mistake. Where that
        cannot be told from a call that was forgotten in a variable, it is only logged.
        """
        for call in self._calls.values():
            if call.is_awaited:
                continue
            # No variable holds what it gave here: with the error's traceback that would live on.
            if call.is_dropped or (call.gave is not None and _is_new(call.gave())):
                raise UsageError(
                    f"step {str(call.step)!r} was called but never awaited, so it has not run: "
                    "write `await` before it, or await the task or the gather that it was given "
                    "to, before the handler returns",
                    where=self.where(call.step),
                )
            if call.gave is None or call.gave() is None:
                logger.warning(
                    "step %r was called and has not run: nobody has awaited it, or its task was "
                    "cancelled before it began (at %s)",
                    str(call.step),
                    self.where(call.step),
                )


def _is_new(call: Any) -> bool:
    """Whether a coroutine has neither begun nor ended."""
    return inspect.iscoroutine(call) and inspect.getcoroutinestate(call) == inspect.CORO_CREATED
