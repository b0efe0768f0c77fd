"""`remember`: a dependency whose value the run keeps, so that a re-entry does not ask for it again.

Dependencies run before the handler is reached, on every pass. One that looks up the current user
from a token would refuse a re-entry that comes after the token has expired; remembered, it is
asked once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from durable_endpoints._context import current
from durable_endpoints.calls import is_async, name_of
from durable_endpoints.coding import named
from durable_endpoints.door import Door
from durable_endpoints.errors import ConfigurationError, StepIdError, StepValueError
from durable_endpoints.protocol.ops import StepKind, StepRecord
from durable_endpoints.protocol.step_ids import StepId, StepIds
from durable_endpoints.protocol.values import NotJsonError
from durable_endpoints.results import Codec, Unresolved, codec_of, fits

P = ParamSpec("P")
T = TypeVar("T")


class Remembered(NamedTuple):
    """A value that becomes part of the run if the request becomes one."""

    step: StepId
    encoded: bytes


def remember(dependency: Callable[P, T]) -> Callable[P, T]:
    """Return `dependency` with its value remembered by the run: `Depends(remember(current_user))`.

    `dependency` is a function or a coroutine function; what it returns is kept like the result of a
    step: a JSON value, or what its annotation says. Generator
    dependencies hold something open and cannot be remembered. In a request that does not become a
    run nothing is kept. What it depends on itself is still asked on each pass, unless it is
    remembered too.

    Raises `ConfigurationError` for what cannot be remembered.
    """
    if inspect.isgeneratorfunction(dependency) or inspect.isasyncgenfunction(dependency):
        raise ConfigurationError(
            f"remember({name_of(dependency)}): a dependency with yield holds something open and "
            "has no value to keep; remember one that returns"
        )
    if not callable(dependency):
        if inspect.iscoroutine(dependency):
            dependency.close()
        raise ConfigurationError(
            f"remember() was given {dependency!r}, which is no function: give the dependency "
            "itself, without calling it, as in Depends(remember(current_user))"
        )
    name = f"remember:{getattr(dependency, '__module__', '')}.{name_of(dependency)}"
    known = codec_of(name, dependency)

    def codec() -> Codec:
        # A type may be defined further below: then it is known as the first request comes.
        return codec_of(name, dependency) if isinstance(known, Unresolved) else known

    if is_async(dependency):

        @functools.wraps(dependency)
        async def remembered_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            slot = _slot(name, codec())
            if slot.is_known:
                return slot.value
            return slot.keep(await dependency(*args, **kwargs))  # type: ignore[misc]

        return remembered_async  # type: ignore[return-value]

    @functools.wraps(dependency)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> Any:
        slot = _slot(name, codec())
        return slot.value if slot.is_known else slot.keep(dependency(*args, **kwargs))

    return remembered


class _Slot:
    """The place of one call's value in the run."""

    def __init__(
        self, door: Door | None, step: StepId, codec: Codec, known: StepRecord | None
    ) -> None:
        self._door = door
        self._step = step
        self._codec = codec
        self.is_known = known is not None
        self.value = None if known is None else fits(step.name, codec, known.value or b"null")

    def keep(self, value: Any) -> Any:
        """Keep the value, and return what a later pass will get. Raises `StepValueError`."""
        if self._door is None:
            return value
        name = self._step.name
        try:
            encoded, decoded = self._codec.encode(value)
        except NotJsonError as error:
            raise StepValueError(f"the value of {name!r} cannot be kept: {error}") from None
        self._door.remembered += (Remembered(self._step, encoded),)
        return decoded


def _slot(name: str, codec: Codec) -> _Slot:
    door = _door()
    if door is None:
        return _Slot(None, StepId("", name, 0), codec, None)
    if door.remember_ids is None:
        door.remember_ids = StepIds()
    step = door.remember_ids.next(name)
    memo = door.reentry.session.memo if door.reentry is not None else ()
    for place, record in enumerate(memo):
        if record.id.hash == step.hash:
            if not record.id.name and door.reentry is not None and isinstance(memo, list):
                memo[place] = record = named(door.reentry.session, record, step, StepKind.REMEMBER)
            if record.kind is not StepKind.REMEMBER:
                raise StepIdError(
                    f"{step.name!r} is the name under which this run remembers a dependency, and "
                    f"that of a step (a {record.kind}): give the step another name"
                )
            return _Slot(door, step, codec, record)
    return _Slot(door, step, codec, None)


def _door() -> Door | None:
    """The door of this request, as long as its handler has not been reached."""
    place = current.place
    return place if isinstance(place, Door) and place.execution is None else None
