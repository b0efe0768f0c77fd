"""Values of settings, as people write them: in code, in the environment, in a file.

Each function returns the value, or raises `TypeError` or `ValueError` with what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from durable_endpoints.protocol.durations import parse_duration

_DEFAULT_PORTS = {"http": 80, "https": 443}


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError("give a string")
    return value


def key(value: Any) -> str:
    """A secret of some length."""
    if len(text(value)) < 16:
        raise ValueError("a key needs at least 16 characters; try `openssl rand -hex 32`")
    return str(value)


def url(value: Any) -> str:
    """An HTTP URL, without a slash at its end."""
    if not text(value).startswith(("http://", "https://")):
        raise ValueError("give a URL that begins with http:// or https://")
    return str(value).rstrip("/")


def whole(value: Any) -> int:
    """A whole number of at least 1."""
    written = str(value)
    if isinstance(value, bool) or not (written.isascii() and written.isdigit()) or int(written) < 1:
        raise ValueError("give a whole number of at least 1")
    return int(written)


def factor(value: Any) -> float:
    """A number from 1 to 100."""
    with suppress(TypeError, ValueError):
        if 1 <= (number := float(value)) <= 100:
            return number
    raise ValueError("give a number from 1 to 100")


def flag(value: Any) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    written = str(value).lower()
    if written not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("give true or false")
    return written in ("1", "true", "yes", "on")


def synchronous(value: Any) -> str:
    """How SQLite commits."""
    if value not in ("full", "normal"):
        raise ValueError('give "full" or "normal"')
    return str(value)


def interval(value: Any) -> int:
    """A duration that is longer than nothing, in milliseconds."""
    milliseconds = parse_duration(value)
    if not milliseconds:
        raise ValueError("give a duration longer than nothing")
    return milliseconds


def texts(value: Any) -> tuple[str, ...]:
    """Several strings: a list, or one string with commas."""
    given: Sequence[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise TypeError("give a string, or a list of strings")
    return tuple(text(item).strip() for item in given)


def origin(value: Any) -> str:
    """Where an application answers: scheme, host and port, as in `https://api.example.com`."""
    written = url(value)
    parts = urlsplit(written)
    if (
        not parts.hostname
        or parts.username is not None
        or written.count("/") != 2
        or "?" in written
    ):
        raise ValueError("give scheme, host and port only, as in https://api.example.com:8443")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = f":{parts.port}" if parts.port not in (None, _DEFAULT_PORTS[parts.scheme]) else ""
    return f"{parts.scheme}://{host}{port}"
