"""Hooks: code that runs before, after and around a run's executions and its steps."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

logger = logging.getLogger("durable_endpoints")

Call = Callable[[], Awaitable[Any]]
"""What an around hook wraps: to be called without arguments, and awaited."""


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


class StepData(NamedTuple):
    """What a hook encodes or decodes."""

    run_id: str
    step: str
    """The step's name, or which other part of the run it is."""
    kind: Literal["result", "error"]


class Hook:
    """Override what you need. Steps that are remembered run no hook: their bodies do not run
    either.

    `before_…` and `after_…` look on: an exception in one is logged, and the run goes on. `around_…`
    take part: they hold a span open, set a context variable, bound the time or take a lock. Of
    several hooks the first is the outermost, and its `before_…` is called first. `encode` and
    `decode` change step data on its way to the engine and back; they are plain functions, which the
    event loop waits for, so let them do no I/O.
    """

    async def before_run(self, run: RunInfo) -> None:
        """An execution begins: the handler is about to be called."""

    async def after_run(self, run: RunInfo, result: Result) -> None:
        """An execution ended. `completed` and `failed` are final, after the other two comes
        another execution, here or elsewhere."""

    async def before_step(self, run: RunInfo, step: StepInfo) -> None:
        """The body of a step is about to run."""

    async def after_step(self, run: RunInfo, step: StepInfo, result: Result) -> None:
        """The body of a step has ended: `completed`, `failed` or `retrying`."""

    async def around_run(self, run: RunInfo, call: Call) -> Any:
        """Execute the handler by `await call()`, and return what it returned.

        It counts as a part of the handler: what it returns is the handler's result, what it raises
        is the handler's exception. When the run must wait, `call` raises a `BaseException` that is
        no `Exception`: let it pass, and clean up in `finally`. A plain `def` handler runs in a
        worker thread meanwhile, with the context variables that are set here.
        """
        return await call()

    async def around_step(self, run: RunInfo, step: StepInfo, call: Call) -> Any:
        """Run the body of a step by `await call()`, and return what it returned.

        It counts as a part of the body: what it returns is the step's result, what it raises fails
        this try, and the step's timeout is for both. A plain function runs in a worker thread,
        with the context variables that are set here.
        """
        return await call()

    def encode(self, where: StepData, data: bytes) -> bytes:
        """Return `data`, the JSON text of a step's result or error, as the engine shall hold it:
        JSON text again. Called on the event loop. An exception here fails the run, for nothing
        leaves the application that should have been encoded."""
        return data

    def decode(self, where: StepData, data: bytes) -> bytes:
        """Undo `encode`; of several hooks, the last one first. What was not encoded by this hook
        comes here too, and is returned as it is. An exception parks the run, until somebody has
        mended the cause and says `durable-endpoints runs retry`."""
        return data


class Around(NamedTuple):
    """The hooks that wrap something, so that nothing is paid where there are none."""

    run: tuple[Hook, ...] = ()
    step: tuple[Hook, ...] = ()

    @classmethod
    def among(cls, hooks: Sequence[Hook]) -> Around:
        """Those of `hooks` that override `around_run`, and `around_step`."""
        return cls(
            tuple(hook for hook in hooks if overrides(hook, "around_run")),
            tuple(hook for hook in hooks if overrides(hook, "around_step")),
        )

    def wrap_run(self, run: RunInfo, call: Call) -> Call:
        """`call` inside the hooks."""
        for hook in reversed(self.run):
            call = _watched(functools.partial(hook.around_run, run), call)
        return call

    def wrap_step(self, run: RunInfo, step: StepInfo, call: Call) -> Call:
        """`call` inside the hooks."""
        for hook in reversed(self.step):
            call = _watched(functools.partial(hook.around_step, run, step), call)
        return call


NOTHING_AROUND = Around()


def _watched(around: functools.partial[Coroutine[Any, Any, Any]], call: Call) -> Call:
    """`around` called with `call`, and told of if it forgets to return what that returned."""

    async def watched() -> Any:
        made: Any = None

        async def watched_call() -> Any:
            nonlocal made
            made = await call()
            return made

        result = await around(watched_call)
        if result is None and made is not None:
            _tell_of_lost_result(getattr(around.func, "__qualname__", repr(around.func)))
        return result

    return watched


@functools.cache
def _tell_of_lost_result(name: str) -> None:
    # Once in a process: it may be meant.
    logger.warning(
        "the hook %s returned None in place of what `await call()` gave, which is lost: write "
        "`return await call()`",
        name,
    )


def mistake_in(hook: Hook) -> str | None:
    """What is wrong with the methods of a hook, and what to do; None if nothing can be seen."""
    known = [name for name in vars(Hook) if not name.startswith("_")]
    kind = type(hook).__name__
    for name in dir(type(hook)):
        is_meant = name.startswith(("before_", "after_", "around_")) and name not in known
        if is_meant and (close := get_close_matches(name, known, 1, cutoff=0.8)):
            return f"{kind}.{name} is never called: did you mean {close[0]}?"
    for name in known:
        if not overrides(hook, name):
            continue
        is_async = inspect.iscoroutinefunction(inspect.unwrap(getattr(hook, name)))
        if is_async and name in ("encode", "decode"):
            return f"{kind}.{name} is called on the event loop and not awaited: write a plain `def`"
        if not is_async and name.startswith(("before_", "after_")):
            return f"{kind}.{name} is awaited: write `async def {name}`"
    return None


def overrides(hook: Hook, name: str) -> bool:
    """Whether a hook has a method `name` of its own."""
    return getattr(getattr(hook, name), "__func__", None) is not getattr(Hook, name)


async def notify(calls: Sequence[Awaitable[None]]) -> None:
    """Run hooks one after the other; what they raise is logged."""
    for call in calls:
        try:
            await call
        except Exception:
            name = getattr(call, "__qualname__", "a hook")
            logger.exception("the hook %s failed; the run goes on", name)
