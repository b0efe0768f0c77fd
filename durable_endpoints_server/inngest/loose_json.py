"""JSON as JavaScript writes it: text cut in the middle of a character (a lone surrogate) is legal
there, and what other programs of the world send is not to be lost over it."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import orjson

_DEPTH: Final = 250
_TOO_DEEP: Final = f"it is nested more than {_DEPTH} levels deep"
_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def read(text: bytes) -> Any:
    """The value of a JSON text, which `write` can write again, within others too.

    Raises `ValueError` for what is no JSON, and for what is nested more than 250 levels deep.
    """
    try:
        value = orjson.loads(text)
    except ValueError:
        try:
            value = json.loads(text.decode("utf-8"), parse_float=_finite, parse_constant=_refuse)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
    if text.count(b"[") + text.count(b"{") > _DEPTH:
        _check_depth(value, text)
    return value


def write(value: Any) -> bytes:
    """The JSON text of what `read` gave."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # A lone surrogate, or an integer beyond 64 bits: escaped, as it came.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def is_strict(text: bytes) -> bool:
    """Whether a JSON text is one for those as well who take no half characters."""
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


def printable(text: str, limit: int) -> str:
    """A text that UTF-8 can hold, and no longer than `limit` characters."""
    return text[:limit].encode("utf-8", "replace").decode("utf-8")


def _check_depth(value: Any, text: bytes) -> None:
    try:
        orjson.dumps(value)  # fast, and refuses what is too deep
    except TypeError:
        depth = 0
        for found in _BRACKETS.finditer(text):
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
            if depth > _DEPTH:
                raise ValueError(_TOO_DEEP) from None


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
