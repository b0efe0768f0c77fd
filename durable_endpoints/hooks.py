"""Hooks: code that runs before and after a run's executions and its steps."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from typing import Literal, NamedTuple

logger = logging.getLogger("durable_endpoints")


class RunInfo(NamedTuple):
    """The run as hooks see it."""

    run_id: str
    function_id: str
    generation: int
    """Which execution this is: it grows with each."""
    reentry: bool
    """Whether the engine re-entered the endpoint; False in the client's own request."""


class StepInfo(NamedTuple):
    """A step whose body runs as hooks see it."""

    name: str
    attempt: int
    """From 1."""


class Result(NamedTuple):
    """How an execution or a try of a step ended."""

    outcome: Literal["completed", "failed", "suspended", "lost", "retrying"]
    error: BaseException | None = None


class Hook:
    """Override what you need. All methods may do I/O; an exception in one is logged, and the run
    goes on. Steps that are remembered run no hook: their bodies do not run either."""

    async def before_run(self, run: RunInfo) -> None:
        """An execution begins: the handler is about to be called."""

    async def after_run(self, run: RunInfo, result: Result) -> None:
        """An execution ended. `completed` and `failed` are final, after the other two comes
        another execution, here or elsewhere."""

    async def before_step(self, run: RunInfo, step: StepInfo) -> None:
        """The body of a step is about to run."""

    async def after_step(self, run: RunInfo, step: StepInfo, result: Result) -> None:
        """The body of a step has ended: `completed`, `failed` or `retrying`."""


async def notify(calls: Sequence[Awaitable[None]]) -> None:
    """Run hooks one after the other; what they raise is logged."""
    for call in calls:
        try:
            await call
        except Exception:
            logger.exception("a hook failed")
