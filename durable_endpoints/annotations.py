"""What a step function says it returns: for now, results are plain JSON values.

A step annotated with more than that (a model, a datetime, a tuple) would return something else
after a replay than what its annotation promises, so it is refused when it is called.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import (
    Any,
    Literal,
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
from weakref import WeakKeyDictionary

from durable_endpoints.calls import unwrap
from durable_endpoints.errors import StepValueError

_MISSING = object()
_PLAIN = frozenset({None, type(None), bool, int, float, str, list, dict, object, Any, NoReturn})
_CONTAINERS = frozenset({list, dict, Sequence, Mapping, MutableSequence, MutableMapping})
_TRANSPARENT = frozenset({Union, types.UnionType, Required, NotRequired})

_verdicts: WeakKeyDictionary[types.CodeType, str] = WeakKeyDictionary()


def check_annotation(step: str, function: Callable[..., Any]) -> None:
    """Raise `StepValueError` if `function` is annotated to return more than JSON."""
    function = unwrap(function)
    annotation = getattr(function, "__annotations__", {}).get("return", _MISSING)
    code = getattr(function, "__code__", None)
    if annotation is _MISSING or code is None:
        return
    problem = _verdicts.get(code)
    if problem is None:
        problem = _verdicts[code] = _problem_of(function)
    if problem:
        raise StepValueError(
            f"step {step!r}: its function says it returns {problem}, and only JSON values (dicts, "
            "lists, strings, numbers, booleans, None) can be remembered: return such a value, for "
            'instance model.model_dump(mode="json"), and build the rest from it outside the step'
        )


def _problem_of(function: Callable[..., Any]) -> str:
    try:
        annotation = get_type_hints(function).get("return", Any)
    except Exception:
        return ""  # a name that only type checkers see: the value itself is checked anyway
    return "" if _is_json(annotation) else _spell(annotation)


def _is_json(annotation: Any) -> bool:
    if isinstance(annotation, TypeVar):
        return True
    alias = getattr(annotation, "__value__", None)  # `type X = …`, from Python 3.12
    if alias is not None and not isinstance(annotation, type):
        return _is_json(alias)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return all(type(value) in (str, int, bool, type(None)) for value in arguments)
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
