"""Step data is JSON: strict encoding, and the round trip that makes replay exact.

A value is decoded again at once, so that the first execution sees exactly what a replay will see.
Everything that JSON would change or drop without a word (NaN, a datetime, a set, an enum, a key
that is no string) is an error that names the place inside the value.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Coroutine, Iterator
from enum import Enum
from typing import Any
from uuid import UUID

import orjson

_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
)
_MAX_INTEGER = 2**64 - 1
_MIN_INTEGER = -(2**63)


class NotJsonError(ValueError):
    """A value that JSON cannot hold. `path` says where it is, as in `$.items[2].when`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"at {path}: {problem}")
        self.path = path
        self.problem = problem


def encode(value: Any) -> bytes:
    """Return `value` as JSON text. Raises `NotJsonError`."""
    return round_trip(value)[0]


def round_trip(value: Any) -> tuple[bytes, Any]:
    """Return the JSON text of `value` and what decoding it gives. Raises `NotJsonError`.

    The two differ in one way only: a tuple comes back as a list.
    """
    try:
        text = orjson.dumps(value, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError) as error:
        _explain(value, "$", 0)
        raise NotJsonError("$", str(error)) from None
    decoded = orjson.loads(text)
    # A plain comparison finds almost every silent change (NaN, UUID) without a walk in Python.
    if type(decoded) is not type(value) or decoded != value:
        _explain(value, "$", 0)
    return text, decoded


def decode(text: bytes) -> Any:
    """Return the value that `text` holds."""
    return orjson.loads(text)


def _explain(value: Any, path: str, depth: int) -> None:
    """Walk `value` and raise `NotJsonError` at the first place that JSON cannot hold."""
    if depth > 250:
        raise NotJsonError(path, "it is nested more than 250 levels deep")
    if value is None or type(value) in (bool, str):
        if isinstance(value, str) and not _is_unicode(value):
            raise NotJsonError(path, "the text is not valid Unicode (a lone surrogate)")
    elif type(value) is float:
        if not math.isfinite(value):
            raise NotJsonError(path, f"{value} has no JSON form; use None or a string")
    elif type(value) is int:
        if not _MIN_INTEGER <= value <= _MAX_INTEGER:
            raise NotJsonError(path, f"the integer {value} does not fit into 64 bits; use a string")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _explain(item, f"{path}[{index}]", depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise NotJsonError(path, f"the key {key!r} is not a string")
            _explain(item, f"{path}.{key}", depth + 1)
    else:
        raise NotJsonError(path, f"{article(value)} is not a JSON value{_advice(value)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def article(value: Any) -> str:
    """The value's type, as in "a set"."""
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _advice(value: Any) -> str:
    if hasattr(value, "model_dump"):
        return '; use value.model_dump(mode="json")'
    if isinstance(value, Enum):
        return "; use its .value"
    if isinstance(value, set | frozenset):
        return "; use a list"
    if isinstance(value, bytes | bytearray | memoryview):
        return "; use text, base64 for instance"
    if hasattr(value, "isoformat"):
        return "; use its isoformat()"
    if isinstance(value, UUID):
        return "; use str(value)"
    if isinstance(value, Coroutine):
        return "; await it: nothing of it has run"
    if isinstance(value, Iterator | AsyncIterator):
        return "; collect what it gives in a list"
    return "; use dicts, lists, strings, numbers, booleans or None"
