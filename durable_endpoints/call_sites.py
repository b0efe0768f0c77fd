"""Where a handler called its steps, and which of the calls it never awaited.

A task of a `gather` has no way back to the code that made it, so an error about its step could not
name a line. So each call notes where it is, before there is any task.
"""

from __future__ import annotations

import functools
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


class CallSites:
    """The calls of one execution."""

    __slots__ = ("_calls", "_dropped", "_sites", "_steps", "_unawaited")

    def __init__(self) -> None:
        self._sites: dict[str, CallSite | None] = {}
        self._steps: dict[str, StepId] = {}
        self._unawaited: dict[str, StepId] = {}
        self._calls: dict[str, ref[Any]] = {}
        """What each of these calls gave."""
        self._dropped: set[str] = set()
        """Those whose statement has dropped that at once."""

    def called(self, step: StepId, by: FrameType) -> StepId:
        """A step is being called, in the frame `by` or in one further out."""
        key = step[0]
        self._sites[key] = site_in(by)
        self._steps[key] = self._unawaited[key] = step
        return step

    def gave(self, step: StepId, call: StepCall[T]) -> StepCall[T]:
        """The call of a step gives `call`, which is to be awaited."""
        key = step[0]
        gone = functools.partial(_gone, self._dropped, key, self._sites[key])
        self._calls[key] = ref(call, gone)
        return call

    def has(self, step: StepId) -> bool:
        """Whether a step was called."""
        return step.hash in self._steps

    def steps(self) -> Iterable[StepId]:
        """The steps that were called, in order."""
        return self._steps.values()

    def awaited(self, step: StepId) -> None:
        """What the call gave is being awaited."""
        self._unawaited.pop(step[0], None)
        self._calls.pop(step[0], None)

    def where(self, step: StepId) -> str:
        """The line that called a step; empty if it is unknown."""
        site = self._sites.get(step.hash)
        return spell(site) if site is not None else ""

    def check_awaited(self) -> None:
        """Raise `UsageError` for a step that was called, and that nobody has awaited by now.

        One that was cancelled before it could begin, with its task, is no mistake. Where that
        cannot be told from a call that was forgotten in a variable, it is only logged.
        """
        for key, step in self._unawaited.items():
            # No variable holds the call here: with the error's traceback it would live on.
            if key in self._dropped or _is_new(self._call(key)):
                raise UsageError(
                    f"step {str(step)!r} was called but never awaited, so it has not run: write "
                    "`await` before it, or await the task or the gather that it was given to, "
                    "before the handler returns",
                    where=self.where(step),
                )
            if self._call(key) is None:
                logger.warning(
                    "step %r was called and has not run: nobody has awaited it, or its task was "
                    "cancelled before it began (at %s)",
                    str(step),
                    self.where(step),
                )

    def _call(self, key: str) -> Any:
        """What the call of a step gave, while anybody holds it."""
        return self._calls[key]() if key in self._calls else None


def _gone(dropped: set[str], key: str, site: CallSite | None, _: ref[Any]) -> None:
    """What a call gave is gone. If the statement that called is still at work, it was dropped."""
    frame = sys._getframe(1)
    if site is not None and frame.f_code is site[0] and frame.f_lineno == line_of(site):
        dropped.add(key)


def _is_new(call: Any) -> bool:
    """Whether a coroutine has neither begun nor ended."""
    return inspect.iscoroutine(call) and inspect.getcoroutinestate(call) == inspect.CORO_CREATED
