"""The frames of a stream as another SDK sends it to us: bytes in, whole frames out (Inngest
`publish/tee`: `event: <name>\\ndata: <JSON on one line>\\n\\n`).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

import orjson

MAX_FRAME: Final = 1_000 * 1_024
"""Bytes of one frame."""
_NAME = re.compile(r"[\w.:-]{1,100}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{40}")


class Metadata(NamedTuple):
    """A request begins to stream."""

    data: bytes


class Chunk(NamedTuple):
    """One value, of the step with this hash, or of none."""

    step: str
    value: bytes


class Outcome(NamedTuple):
    """The try of this step has ended, and what it has streamed is valid or withdrawn."""

    step: str
    is_commit: bool


class Answer(NamedTuple):
    """The run's response."""

    data: bytes


class Other(NamedTuple):
    """A frame that means nothing here."""

    event: str
    data: bytes


Frame = Metadata | Chunk | Outcome | Answer | Other


class FrameReader:
    """Cuts a body into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Frame]:
        """The frames that are whole now. Raises `ValueError` for what is none."""
        *whole, rest = (self._rest + piece).split(b"\n\n")
        if len(rest) > MAX_FRAME:
            raise ValueError(f"a frame is larger than {MAX_FRAME:,} bytes")
        self._rest = rest
        frames = (_frame(text) for text in whole)
        return [frame for frame in frames if frame is not None]


def _frame(text: bytes) -> Frame | None:
    event, data = "", b""
    for line in text.split(b"\n"):
        if line.startswith(b"event: "):
            event = line[7:].decode("utf-8", "replace")
        elif line.startswith(b"data: "):
            data = line[6:]
    if not event and not data:
        return None  # a comment, which keeps the connection alive
    if _NAME.fullmatch(event) is None:
        raise ValueError(f"a frame has the event {event[:100]!r}, which is no name")
    value, data = _json(event, data.strip())
    if event == "inngest.metadata":
        return Metadata(data)
    if event == "inngest.stream":
        step = value.get("hashedStepId") if isinstance(value, dict) else None
        if not isinstance(value, dict) or "data" not in value or not _is_step(step):
            raise _malformed(event)
        return Chunk(step or "", orjson.dumps(value["data"]))
    if event in ("inngest.commit", "inngest.rollback"):
        step = value.get("hashedStepId") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not _is_step(step):
            raise _malformed(event)
        return Outcome(step or "", event == "inngest.commit")
    if event == "inngest.response":
        if not _is_answer(value):
            raise _malformed(event)
        return Answer(data)
    return Other(event, data)


def _json(event: str, data: bytes) -> tuple[Any, bytes]:
    try:
        value = orjson.loads(data)
        return value, orjson.dumps(value) if b"\r" in data else data
    except ValueError:
        pass
    try:
        # JavaScript writes halves of surrogate pairs, which no UTF-8 can hold.
        data = json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace")
        return orjson.loads(data), data
    except (ValueError, RecursionError):
        raise _malformed(event) from None


def _is_step(step: Any) -> bool:
    return step is None or (isinstance(step, str) and _HASH.fullmatch(step) is not None)


def _is_answer(value: Any) -> bool:
    """Whether a client will understand it: what is not so, makes Inngest's throw."""
    if not isinstance(value, dict) or value.get("status") not in ("succeeded", "failed"):
        return False
    response = value.get("response")
    return (
        isinstance(response, dict)
        and isinstance(response.get("body"), str)
        and isinstance(response.get("statusCode"), int)
        and isinstance(headers := response.get("headers"), dict)
        and all(isinstance(header, str) for header in headers.values())
    )


def _malformed(event: str) -> ValueError:
    return ValueError(f"a frame {event!r} has not the form that such a frame has")
