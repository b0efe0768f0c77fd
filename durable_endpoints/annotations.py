"""What a function says that it returns, and whether JSON holds all values of that type."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from types import SimpleNamespace
from typing import (
    Any,
    ForwardRef,
    Literal,
    NamedTuple,
    NewType,
    NoReturn,
    NotRequired,
    Required,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from durable_endpoints.calls import unwrap

NOTHING: Any = object()
"""The annotation of a function that has none."""

_PLAIN = frozenset({None, type(None), bool, int, float, str, list, dict, object, Any, NoReturn})
_LISTS = frozenset({list, Sequence, MutableSequence})
_MAPPINGS = frozenset({dict, Mapping, MutableMapping})
_AWAITABLE = frozenset({Awaitable, Coroutine})
_TRANSPARENT = frozenset({Union, types.UnionType, Required, NotRequired})
_DEEP = 50
"""Levels of a type within types; one that contains itself, as JSON does, has no end."""


class ReturnType(NamedTuple):
    """What a function's return annotation stands for."""

    type: Any
    """The type; `Any` where it cannot be told."""
    problem: str = ""
    """Why it cannot be told."""
    is_local: bool = False
    """Whether it holds for this call only: names were looked up among the caller's variables, or
    it is the method's own class."""


def annotation_of(function: Callable[..., Any]) -> Any:
    """The return annotation as it is written, perhaps a text; `NOTHING` if there is none."""
    function = unwrap(function)
    if isinstance(function, type):
        return function  # what a class makes
    try:
        written = getattr(function, "__annotations__", None)
        if written is None:
            written = getattr(getattr(function, "__call__", None), "__annotations__", {})  # noqa: B004
        return written.get("return", NOTHING)
    except Exception:  # from Python 3.14 on, names are looked up here
        return NOTHING


def return_type(function: Callable[..., Any], annotation: Any) -> ReturnType:
    """Resolve a return annotation: of a coroutine's function, what it is awaited for."""
    function = unwrap(function)
    names = getattr(innermost(function), "__globals__", {})
    is_local = False
    try:
        found = _evaluate(annotation, names, None)
    except NameError:
        try:
            found, is_local = _evaluate(annotation, names, _callers_variables()), True
        except Exception as error:
            return ReturnType(Any, f"{type(error).__name__}: {error}", is_local=True)
    except Exception as error:
        return ReturnType(Any, f"{type(error).__name__}: {error}")
    if get_origin(found) in _AWAITABLE:  # a plain function that returns a coroutine
        found = get_args(found)[-1]
    if found is Self and (owner := getattr(function, "__self__", None)) is not None:
        return ReturnType(owner if isinstance(owner, type) else type(owner), is_local=True)
    return ReturnType(found, is_local=is_local)


def innermost(function: Any) -> Any:
    """The function that was written: inside methods, callable objects, and decorators that say
    what they wrap (`functools.wraps`), whose own module knows nothing of its annotations."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not hasattr(function, "__globals__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004
    return function


def is_json(annotation: Any, depth: int = 0) -> bool:
    """Whether every value of this type is the same after a round trip through JSON."""
    if depth > _DEEP or isinstance(annotation, TypeVar | ForwardRef | str):
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    alias = getattr(annotation, "__value__", None)  # `type X = …`, from Python 3.12
    if alias is not None and not isinstance(annotation, type):
        # Of `X[datetime]` the arguments count, wherever the alias has them.
        return all(is_json(each, depth + 1) for each in (alias, *arguments))
    if origin is Literal:
        return all(type(value) in (str, int, bool, type(None)) for value in arguments)
    if isinstance(annotation, NewType):
        return is_json(annotation.__supertype__, depth + 1)
    if origin in _MAPPINGS and arguments and not _is_text(arguments[0]):
        return False
    if origin in _LISTS or origin in _MAPPINGS or origin in _TRANSPARENT:
        return all(is_json(argument, depth + 1) for argument in arguments)
    if is_typeddict(annotation):
        return all(is_json(hint, depth + 1) for hint in get_type_hints(annotation).values())
    try:
        return annotation in _PLAIN
    except TypeError:
        return False


def spell(annotation: Any) -> str:
    """An annotation as people write it."""
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _is_text(key: Any) -> bool:
    return key is str or key is Any or isinstance(key, TypeVar)


def _evaluate(annotation: Any, names: dict[str, Any], local: Mapping[str, Any] | None) -> Any:
    holder: Any = SimpleNamespace(__annotations__={"return": annotation})
    return get_type_hints(holder, names, dict(local) if local else None, include_extras=True)[
        "return"
    ]


def _callers_variables() -> dict[str, Any]:
    """The variables of whoever calls into this package: a handler may define its types itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        "durable_endpoints"
    ):
        frame = frame.f_back
    return dict(frame.f_locals)
