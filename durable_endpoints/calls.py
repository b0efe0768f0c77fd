"""Calling what users hand in: coroutine functions, plain functions, partials, callable objects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from types import FunctionType
from typing import Any, Never, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

T = TypeVar("T")

StepCall = Coroutine[Never, object, T]
"""What the call of a step gives: to be awaited, or given to a gather, a task group or create_task.
With `Any` for what is yielded and sent, mypy would make `Any` of a gather of different ones."""

_THREADS = 64
"""Plain step functions that run at once. They have threads of their own: plain handlers, which wait
for them, use those of the framework."""
_SOURCES = 512
"""Blocking sources that are read at once. They have others again, or many long streams would keep
all steps waiting."""
_HANDLERS = 512
"""Plain handlers that run at once inside hooks. The framework lets fewer of them run at once."""

_Limiter = RunVar[CapacityLimiter | None]
_limiter: _Limiter = RunVar("durable_endpoints_limiter")
_source_limiter: _Limiter = RunVar("durable_endpoints_source_limiter")
_handler_limiter: _Limiter = RunVar("durable_endpoints_handler_limiter")


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside any `functools.partial`s."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives a coroutine."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    function = unwrap(function)
    return inspect.iscoroutinefunction(function) or (
        not inspect.isfunction(function)
        and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    )


def name_of(function: Callable[..., Any]) -> str:
    """A readable name."""
    function = unwrap(function)
    return getattr(function, "__qualname__", type(function).__qualname__)


def fits_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `function` takes these arguments; True if that cannot be told."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `function` and await what it gives; a plain one runs in a worker thread."""
    if is_async(function):
        return await function(*args, **kwargs)
    return await call_in_thread(function, *args, **kwargs)


async def call_in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a plain function in a worker thread.

    A cancelled call does not wait for its thread, which cannot be stopped.
    """
    work = _Work(functools.partial(function, *args, **kwargs))
    limiter = _limiter_of(_limiter, _THREADS)
    try:
        result = await anyio.to_thread.run_sync(work.run, abandon_on_cancel=True, limiter=limiter)
    except BaseException:
        work.abandon()
        raise
    # `lambda: fetch(1)` is a plain function that gives a coroutine.
    return await result if inspect.isawaitable(result) else result


class _Work:
    """A call in a thread, which may be abandoned: then nobody awaits the coroutine that it gives,
    and Python would complain about that."""

    __slots__ = ("_call", "_is_abandoned", "_result")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._is_abandoned = False

    def run(self) -> Any:
        self._result = result = self._call()
        if self._is_abandoned:
            self._close()
        return result

    def abandon(self) -> None:
        self._is_abandoned = True
        self._close()

    def _close(self) -> None:
        if inspect.iscoroutine(self._result):
            self._result.close()


async def read_in_thread(function: Callable[[], None]) -> None:
    """Run what reads a blocking source in a worker thread. A cancelled call does not wait for
    it."""
    limiter = _limiter_of(_source_limiter, _SOURCES)
    await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limiter)


async def handle_in_thread(handler: Callable[[], Any]) -> Any:
    """Run a plain handler in a worker thread. A cancelled call does not wait for it."""
    limiter = _limiter_of(_handler_limiter, _HANDLERS)
    return await anyio.to_thread.run_sync(handler, abandon_on_cancel=True, limiter=limiter)


def _limiter_of(variable: _Limiter, capacity: int) -> CapacityLimiter:
    """The limiter of this event loop."""
    limiter = variable.get(None)
    if limiter is None:
        limiter = CapacityLimiter(capacity)
        variable.set(limiter)
    return limiter


async def call_here(function: Callable[..., Any], *args: Any) -> Any:
    """Call a hook or an option that may be async; a plain one runs on the event loop."""
    result = function(*args)
    return await result if inspect.isawaitable(result) else result
