"""Where a handler called its steps, and which of the calls it never awaited.

A task of a `gather` has no way back to the code that made it, so an error about its step could not
name a line. So each call notes where it is, before there is any task.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FrameType

from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.places import CallSite, site_in, spell
from durable_endpoints.protocol.step_ids import StepId


class CallSites:
    """The calls of one execution."""

    __slots__ = ("_sites", "_steps", "_unawaited")

    def __init__(self) -> None:
        self._sites: dict[str, CallSite | None] = {}
        self._steps: dict[str, StepId] = {}
        self._unawaited: dict[str, StepId] = {}

    def called(self, step: StepId, by: FrameType) -> StepId:
        """A step is being called, in the frame `by` or in one further out."""
        key = step[0]
        self._sites[key] = site_in(by)
        self._steps[key] = self._unawaited[key] = step
        return step

    def has(self, step: StepId) -> bool:
        """Whether a step was called."""
        return step.hash in self._steps

    def steps(self) -> Iterable[StepId]:
        """The steps that were called, in order."""
        return self._steps.values()

    def awaited(self, step: StepId) -> None:
        """What the call gave is being awaited."""
        self._unawaited.pop(step.hash, None)

    def where(self, step: StepId) -> str:
        """The line that called a step; empty if it is unknown."""
        site = self._sites.get(step.hash)
        return spell(site) if site is not None else ""

    def check_awaited(self) -> None:
        """Raise `UsageError` for a step that was called, and has not begun by now."""
        for step in self._unawaited.values():
            raise UsageError(
                f"step {str(step)!r} was called but never awaited, so it has not run: write "
                "`await` before it, or await the task or the gather that it was given to, before "
                "the handler returns",
                where=self.where(step),
            )
