"""Server-sent events (WHATWG HTML §9.2.6) out of bytes that come in any pieces. Pure.

A frame is given when its blank line has been seen, so whatever a cut connection leaves behind is
not there. Beyond that the rules are the specification's: any of LF, CR LF and CR ends a line, a
byte order mark may come first, unknown fields are nothing, broken UTF-8 is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = "\ufeff"


class Frame(NamedTuple):
    """One event."""

    event: str
    data: str
    id: str | None
    """The text of this very frame's `id` line."""


class Comment(NamedTuple):
    """A line for nobody; servers send it as a sign of life."""

    text: str


class FrameParser:
    """Takes the body of one response, from its first byte."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of a line that has not ended yet
        self._is_after_return = False
        self._is_first_line = True
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, data: bytes) -> Iterator[Frame | Comment]:
        """What is complete with `data`. Iterate to the end before the next call."""
        if self._is_after_return and data:
            self._is_after_return = False
            data = data.removeprefix(b"\n")
        if not data:
            return
        first, *others = _LINE_END.split(data)
        self._pieces.append(first)
        if not others:
            return
        # A carriage return ends its line at once: the line feed may be long in coming.
        self._is_after_return = data.endswith(b"\r")
        lines = [b"".join(self._pieces), *others]
        self._pieces = [lines.pop()]
        for line in lines:
            yield from self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> Iterator[Frame | Comment]:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            yield from self._dispatch()
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            yield Comment(value)
        elif name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and value.isprintable() and value:
            # One that cannot stand in a `Last-Event-ID` header would be of no use.
            self._id = value

    def _dispatch(self) -> Iterator[Frame]:
        if self._data:
            yield Frame(self._event or "message", "\n".join(self._data), self._id)
        self._forget()

    def _forget(self) -> None:
        self._event = ""
        self._data = []
        self._id = None
