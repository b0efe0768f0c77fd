"""What a step is given to call, and what that says it returns: for now, plain JSON values.

A step annotated with more than that (a model, a datetime, a tuple) would return something else
after a replay than what its annotation promises, so it is refused when it is called.
"""

from __future__ import annotations

import inspect
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
from typing import (
    Any,
    ForwardRef,
    Literal,
    NewType,
    NoReturn,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from durable_endpoints.calls import unwrap
from durable_endpoints.errors import StepValueError, UsageError

_MISSING = object()
_PLAIN = frozenset({None, type(None), bool, int, float, str, list, dict, object, Any, NoReturn})
_CONTAINERS = frozenset({list, dict, Sequence, Mapping, MutableSequence, MutableMapping})
_AWAITABLE = frozenset({Awaitable, Coroutine})
_TRANSPARENT = frozenset({Union, types.UnionType, Required, NotRequired})

_verdicts: dict[int, tuple[types.CodeType, Any, str]] = {}
"""By the identity of a function's code, which closures share: the code, so that the identity stays
its own, the annotation that was judged, and the verdict."""
_MOST_VERDICTS = 10_000
_NO_VERDICT = (None, _MISSING, "")


def check_function(step: str, function: Callable[..., Any]) -> None:
    """Raise `UsageError` for what is no function, and `StepValueError` for one that is annotated to
    return more than JSON."""
    function = unwrap(function)
    if not callable(function):
        _refuse(step, function)
    annotation = getattr(function, "__annotations__", {}).get("return", _MISSING)
    code = getattr(function, "__code__", None)
    if annotation is _MISSING or code is None:
        return
    _, judged, problem = _verdicts.get(id(code), _NO_VERDICT)
    if judged is not annotation and judged != annotation:
        problem = _problem_of(function)
        if len(_verdicts) >= _MOST_VERDICTS:  # functions that are made anew again and again
            _verdicts.clear()
        _verdicts[id(code)] = code, annotation, problem
    if problem:
        raise StepValueError(
            f"step {step!r}: its function says it returns {problem}, and only JSON values (dicts, "
            "lists, strings, numbers, booleans, None) can be remembered: return such a value, for "
            'instance model.model_dump(mode="json"), and build the rest from it outside the step'
        )


def _refuse(step: str, given: Any) -> NoReturn:
    if inspect.iscoroutine(given):
        given.close()
        what = f"the coroutine of {given.__qualname__}(…), which would run at once"
    else:
        what = repr(given)
    raise UsageError(
        f"step {step!r} was given {what}: pass the function itself, and its arguments after it, "
        f"as in step.run({step!r}, function, argument)"
    )


def _problem_of(function: Callable[..., Any]) -> str:
    try:
        annotation = get_type_hints(function).get("return", Any)
        return "" if _is_json(annotation) else _spell(annotation)
    except Exception:
        # A name that only type checkers see, or a type that contains itself, as JSON does: the
        # value itself is checked anyway.
        return ""


def _is_json(annotation: Any) -> bool:
    if isinstance(annotation, TypeVar | ForwardRef | str):
        return True
    alias = getattr(annotation, "__value__", None)  # `type X = …`, from Python 3.12
    if alias is not None and not isinstance(annotation, type):
        return _is_json(alias)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return all(type(value) in (str, int, bool, type(None)) for value in arguments)
    if origin in _AWAITABLE:  # a plain function that returns a coroutine
        return _is_json(arguments[-1])
    if isinstance(annotation, NewType):
        return _is_json(annotation.__supertype__)
    if origin in _CONTAINERS or origin in _TRANSPARENT:
        return all(_is_json(argument) for argument in arguments)
    if hasattr(annotation, "__metadata__"):  # Annotated[X, …]
        return _is_json(annotation.__origin__)
    if is_typeddict(annotation):
        return all(_is_json(hint) for hint in get_type_hints(annotation).values())
    try:
        return annotation in _PLAIN
    except TypeError:
        return False


def _spell(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
