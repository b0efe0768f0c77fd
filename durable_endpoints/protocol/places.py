"""Places in the user's code: the line that called the SDK, and the line that raised.

The user's code is what lies neither in these two packages nor among installed libraries. Looking
outwards from a call, the search ends where an event loop, a thread or a web framework has called:
what stands beyond has to do with the server, not with the handler.
"""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Callable
from enum import Enum
from types import CodeType, FrameType
from typing import Any

_OURS = frozenset({"durable_endpoints", "durable_endpoints_server"})
_CALLERS = frozenset(
    {"starlette", "fastapi", "uvicorn", "hypercorn", "granian", "gunicorn", "uvloop", "_pytest"}
)
"""Packages that call handlers."""
_LOOPS = frozenset({"asyncio.base_events", "asyncio.events", "asyncio.runners", "threading"})
_GLUE = frozenset({"anyio"})
_LIBRARIES = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


class _Kind(Enum):
    """Whose code a file is."""

    OURS = "of these packages, or of what lies between them and their users"
    CALLER = "of what calls handlers"
    LIBRARY = "of an installed library"
    USER = "of the user"


_kinds: dict[str, _Kind] = {}
"""By the name of the file."""


def _kind_of(frame: FrameType) -> _Kind:
    file = frame.f_code.co_filename
    kind = _kinds.get(file)
    if kind is None:
        kind = _kinds[file] = _judge(frame.f_globals.get("__name__", ""), file)
    return kind


def _judge(module: str, file: str) -> _Kind:
    package = module.partition(".")[0]
    if package in _CALLERS or module in _LOOPS:
        return _Kind.CALLER
    if package in _OURS | _GLUE or file.startswith("<frozen "):
        return _Kind.OURS
    if "-packages" in file:
        return _Kind.LIBRARY
    return _Kind.OURS if file.startswith(_LIBRARIES) else _Kind.USER


CallSite = tuple[CodeType, int]
"""A call: its code, and where in that (`frame.f_lasti`). Cheap to take; the line is looked up when
somebody wants to read it."""


def site_in(frame: FrameType | None) -> CallSite | None:
    """The innermost call in the user's code, in `frame` or in one further out; None if there is
    none. An application that is installed as a library is found as well, if nothing else is."""
    library: CallSite | None = None
    while frame is not None:
        kind = _kinds.get(frame.f_code.co_filename) or _kind_of(frame)
        if kind is _Kind.USER:
            return frame.f_code, frame.f_lasti
        if kind is _Kind.CALLER:
            break
        if kind is _Kind.LIBRARY and library is None:
            library = frame.f_code, frame.f_lasti
        frame = frame.f_back
    return library


def spell(site: CallSite) -> str:
    """A call for people: "/srv/app.py:41, in report"."""
    return _spell(site[0], line_of(site))


def line_of(site: CallSite) -> int:
    """The line of a call."""
    code, instruction = site
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def caller() -> str:
    """The innermost call in the user's code that led here, for people; empty if there is none."""
    site = site_in(inspect.currentframe())
    return "" if site is None else spell(site)


def definition(function: Callable[..., Any]) -> str:
    """Where a function was written; empty for what is not written in Python."""
    code = getattr(function, "__code__", None)
    return "" if code is None else _spell(code, code.co_firstlineno)


def origin(error: BaseException) -> str:
    """Where in the user's code `error` was raised: its innermost line there, or else the innermost
    one of a library's. Empty if it was not raised yet."""
    found = library = ""
    trace = error.__traceback__
    while trace is not None:
        kind, place = _kind_of(trace.tb_frame), (trace.tb_frame.f_code, trace.tb_lineno)
        if kind is _Kind.USER:
            found = _spell(*place)
        elif kind is _Kind.LIBRARY:
            library = _spell(*place)
        trace = trace.tb_next
    return found or library


def _spell(code: CodeType, line: int) -> str:
    function = "" if code.co_name == "<module>" else f", in {code.co_name}"
    return f"{code.co_filename}:{line}{function}"
