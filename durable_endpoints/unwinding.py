"""Unwinding a handler that must wait, and one that will not be unwound."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Awaitable, Generator
from typing import Any, Protocol

MAX_SIGNALS = 8
"""How often a handler may catch what unwinds it and call a step again, before it is given up."""


class Suspended(BaseException):
    """Unwinds a handler. Not an error: a handler that catches it changes nothing."""


class CancelledInsideError(RuntimeError):
    """User code raised `CancelledError` although nobody had cancelled it: it awaited something
    that was. That is a failure like any other."""

    def __init__(self, what: str) -> None:
        super().__init__(f"CancelledError in {what}: something that it awaits was cancelled")


class MayBeGivenUp(Protocol):
    """A run through a handler, as far as it matters here."""

    is_given_up: bool


@types.coroutine
def drive(handler: Awaitable[Any], handling: MayBeGivenUp) -> Generator[Any, Any, Any]:
    """Await a handler, until it is given up: then its frames are left where they are.

    A handler that catches everything, again and again, can be stopped in no other way.
    """
    coroutine: Any = handler if type(handler) is types.CoroutineType else handler.__await__()
    advance, argument = coroutine.send, None
    while True:
        try:
            awaited = advance(argument)
        except StopIteration as end:
            return end.value
        try:
            argument = yield awaited
            advance = coroutine.send
        except BaseException as error:
            if handling.is_given_up:
                _throw_away(coroutine)
                raise Suspended from None
            advance, argument = coroutine.throw, error


def _throw_away(coroutine: Any) -> None:
    """Close it, if it lets itself be closed.

    One that does not would be closed again by the garbage collector, in the middle of some other
    code, where its steps fail at once, and so loop there for ever: it is kept for ever instead.
    """
    for _ in range(MAX_SIGNALS):
        try:
            coroutine.close()
        except RuntimeError:
            continue  # "coroutine ignored GeneratorExit"
        except BaseException:
            pass
        return
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))
