"""The script of a test: which steps fail, what is done instead of them, and where it crashes."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from durable_endpoints.calls import call, is_async
from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.unwinding import Suspended
from durable_endpoints_server.engine.facts import Change, StepResolved, StepWritten

When = Literal["before", "after", "recorded"]
WHENS: tuple[When, ...] = ("before", "after", "recorded")

_AT_ONCE = (StepKind.RUN, StepKind.SEND, StepKind.REMEMBER)
"""Steps of which nothing is written before there is an outcome."""


@dataclass
class _Cue:
    """What shall happen at a step, in one run or in all."""

    step: str
    run_id: str | None
    was_met: bool = field(default=False, kw_only=True)

    def fits(self, run_id: str, step: StepId) -> bool:
        """A bare name is for all uses of the name in a run, `name:1` for the second."""
        fits = self.run_id in (None, run_id) and self.step in (step.name, str(step))
        self.was_met |= fits
        return fits


@dataclass
class _Failure(_Cue):
    error: Exception
    times: int | None


@dataclass
class _Replacement(_Cue):
    make: Callable[[bool], Callable[..., Any]]
    """Makes a coroutine function, or a plain one."""


@dataclass
class _Crash(_Cue):
    when: When


class Script:
    """What shall happen at which steps. `lose` takes the process away, on the running loop or,
    from a worker thread, on the engine's."""

    def __init__(self, lose: Callable[[], None]) -> None:
        self._lose = lose
        self._failures: list[_Failure] = []
        self._replacements: list[_Replacement] = []
        self._crashes: list[_Crash] = []
        self._unmet: list[tuple[str, _Cue]] = []
        """What was written, as it was, and not told of yet."""
        self._bodies: dict[str, None] = {}
        """Names of steps whose bodies were to run."""

    # Writing it

    def fail(
        self,
        step: str,
        times: int | None,
        error: Exception | type[Exception] | None,
        run_id: str | None,
    ) -> None:
        """See `VirtualEngine.fail`."""
        if times is not None and times < 1:
            raise UsageError(f"fail({step!r}, times={times}): give 1 or more, or None for always")
        if error is None:
            error = RuntimeError(f"step {step!r} fails here because the test wants it to")
        failure = _Failure(_name(step), run_id, _made(step, error), times)
        self._failures.append(failure)
        self._unmet.append((f"fail({step!r})", failure))

    def replace(
        self, step: str, returns: Any, function: Callable[..., Any] | None, run_id: str | None
    ) -> None:
        """See `VirtualEngine.replace`. The newest one counts."""
        if (returns is ...) == (function is None):
            raise UsageError(f"replace({step!r}): give either returns=… or with_=function")
        make = partial(_returning, returns) if function is None else partial(_in_colour, function)
        replacement = _Replacement(_name(step), run_id, make)
        self._replacements.insert(0, replacement)
        self._unmet.append((f"replace({step!r})", replacement))

    def crash_at(self, step: str, when: When, run_id: str | None) -> None:
        """See `VirtualEngine.crash_at`."""
        if when not in WHENS:
            raise UsageError(
                f'crash_at({step!r}, when={when!r}): give "before" its body, "after" its body, or '
                '"recorded"'
            )
        crash = _Crash(_name(step), run_id, when)
        self._crashes.append(crash)
        self._unmet.append((f"crash_at({step!r})", crash))

    def check_met(self) -> None:
        """Warn of what never happened: a test that relies on it tests something else."""
        unmet = [written for written, cue in self._unmet if not cue.was_met]
        self._unmet.clear()
        if unmet:
            names = ", ".join(map(repr, self._bodies)) or "none"
            warnings.warn(
                f"{', '.join(unmet)} never happened: no step of that name came. The steps whose "
                f"bodies ran: {names}",
                stacklevel=2,
            )

    # Playing it

    def body_of(self, run_id: str, step: StepId, body: Callable[..., Any]) -> Callable[..., Any]:
        """What is called instead of the `body` of a step: a plain function for a plain one."""
        self._bodies[step.name] = None
        if self._takes_crash(run_id, step, ("before",)):
            return self._dying(is_async(body))
        for failure in self._failures:
            if failure.fits(run_id, step):
                if failure.times is not None:
                    failure.times -= 1
                    if not failure.times:
                        self._failures.remove(failure)
                return _raising(failure.error, is_async(body))
        for replacement in self._replacements:
            if replacement.fits(run_id, step):
                return replacement.make(is_async(body))
        return body

    def crashes_in(self, change: Change) -> When | None:
        """Whether the process is lost while `change` is written, and if so, whether it is on disk
        then (`recorded`)."""
        if not self._crashes:
            return None
        for fact in change.facts:
            if isinstance(fact, StepWritten | StepResolved):
                for when in _moments(fact.step):
                    if self._takes_crash(change.run_id, fact.step.id, (when,)):
                        return when
        return None

    def _takes_crash(self, run_id: str, step: StepId, whens: tuple[When, ...]) -> bool:
        for crash in self._crashes:
            if crash.when in whens and crash.fits(run_id, step):
                self._crashes.remove(crash)
                return True
        return False

    def _dying(self, asynchronous: bool) -> Callable[..., Any]:
        def die(*args: Any, **kwargs: Any) -> Any:
            self._lose()
            raise Suspended

        async def die_on_loop(*args: Any, **kwargs: Any) -> Any:
            die()

        return die_on_loop if asynchronous else die


def _name(step: str) -> str:
    if not isinstance(step, str) or not step:
        raise UsageError(f"{step!r} is no name of a step: give what step.run was given")
    return step


def _made(step: str, error: Exception | type[Exception]) -> Exception:
    made: Any = error
    if isinstance(error, type):
        try:
            made = error()
        except TypeError as mistake:
            raise UsageError(f"fail({step!r}, error={error.__name__}): {mistake}") from None
    if not isinstance(made, Exception):
        raise UsageError(f"fail({step!r}, error={error!r}): give an exception")
    return made


def _moments(step: StepRecord) -> tuple[When, ...]:
    """What is true while this state of a step is being written."""
    if step.kind is StepKind.HANDLER:
        return ()
    if step.is_final or step.kind is StepKind.RUN:
        opens = step.kind in _AT_ONCE and step.kind is not StepKind.RUN
        return WHENS if opens else ("after", "recorded")
    return ("before",) if step.state is StepState.PENDING else ()


def _raising(error: Exception, asynchronous: bool) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error.with_traceback(None)

    async def fail_on_loop(*args: Any, **kwargs: Any) -> Any:
        fail()

    return fail_on_loop if asynchronous else fail


def _returning(value: Any, asynchronous: bool) -> Callable[..., Any]:
    def give(*args: Any, **kwargs: Any) -> Any:
        return value

    async def give_on_loop(*args: Any, **kwargs: Any) -> Any:
        return value

    return give_on_loop if asynchronous else give


def _in_colour(function: Callable[..., Any], asynchronous: bool) -> Callable[..., Any]:
    """`function` as a coroutine function, or as one that blocks, whatever it is."""

    async def on_loop(*args: Any, **kwargs: Any) -> Any:
        return await call(function, *args, **kwargs)

    def blocking(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(on_loop(*args, **kwargs))

    if asynchronous == is_async(function):
        return function
    return on_loop if asynchronous else blocking
