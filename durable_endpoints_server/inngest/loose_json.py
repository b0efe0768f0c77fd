"""JSON as JavaScript writes it: text cut in the middle of a character (a lone surrogate) is legal
there, and what other programs of the world send is not to be lost over it."""

from __future__ import annotations

import json
from typing import Any

import orjson


def read(text: bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for what is none."""
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write(value: Any) -> bytes:
    """The JSON text of what `read` gave."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # A lone surrogate, or an integer beyond 64 bits: escaped, as it came.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def printable(text: str, limit: int) -> str:
    """A text that UTF-8 can hold, and no longer than `limit` characters."""
    return text[:limit].encode("utf-8", "replace").decode("utf-8")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
