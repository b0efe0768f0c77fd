"""What the frames of a durable stream mean. Pure.

The events are those of Inngest's durable endpoints, with ids, repeated headers and binary bodies
added, and our own `durable.progress` and `durable.log`. Events of other names are for readers that
know them.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from durable_endpoints.client.errors import StreamError
from durable_endpoints.client.events import Chunk, Commit, Log, Metadata, Progress, Rollback
from durable_endpoints.client.frames import Frame

METADATA = "inngest.metadata"


class RunAddress(NamedTuple):
    """Where the stream can be read on, for clients that did not see it in a header."""

    url: str


class Ending(NamedTuple):
    """The end of the run: the endpoint's own response."""

    status_code: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


Message = Metadata | Chunk | Commit | Rollback | Progress | Log | RunAddress | Ending


def read_frame(frame: Frame, position: str) -> Message | None:
    """What `frame` says; None if it is of an unknown kind. `position` is the last id seen.

    Raises `StreamError` for one that breaks the rules of its kind.
    """
    read = _READERS.get(frame.event)
    if read is None:
        return None
    try:
        return read(orjson.loads(frame.data), position)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"{frame.event} frame {frame.id or ''} makes no sense: {error!r}"
        raise StreamError(detail) from error


def _metadata(fields: dict[str, Any], position: str) -> Metadata:
    return Metadata(_text(fields["runId"]))


def _chunk(fields: dict[str, Any], position: str) -> Chunk:
    return Chunk(fields["data"], _step(fields), position)


def _commit(fields: dict[str, Any], position: str) -> Commit:
    return Commit(_step(fields), position)


def _rollback(fields: dict[str, Any], position: str) -> Rollback:
    return Rollback(_step(fields), position)


def _progress(fields: dict[str, Any], position: str) -> Progress:
    data = fields["data"]
    total, message = data.get("total"), data.get("message")
    return Progress(
        _number(data["current"]),
        None if total is None else _number(total),
        None if message is None else _text(message),
        _step(fields),
        position,
    )


def _log(fields: dict[str, Any], position: str) -> Log:
    line = fields["data"]
    data, time = line.get("data", {}), line["time"]
    if not isinstance(data, dict) or not isinstance(time, int):
        raise TypeError(f"data is {data!r}, and time is {time!r}")
    return Log(_text(line["level"]), _text(line["message"]), data, time, _step(fields), position)


def _address(fields: dict[str, Any], position: str) -> RunAddress:
    return RunAddress(_text(fields["url"]))


def _ending(fields: dict[str, Any], position: str) -> Ending:
    response = fields["response"]
    status_code = response["statusCode"]
    if not isinstance(status_code, int):
        raise TypeError(f"statusCode is {status_code!r}")
    pairs = response.get("headerList")
    if pairs is None:
        pairs = response["headers"].items()
    headers = [(_header(name), _header(value)) for name, value in pairs]
    return Ending(status_code, headers, _body(response))


def _body(response: dict[str, Any]) -> bytes:
    encoded = response.get("bodyBase64")
    if encoded is None:
        return _text(response["body"]).encode()
    try:
        return b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"bodyBase64: {error}") from None


def _step(fields: dict[str, Any]) -> str | None:
    step = fields.get("hashedStepId")
    return None if step is None else _text(step)


def _header(value: Any) -> bytes:
    """The bytes behind a header's text, which is Latin-1 as in ASGI servers and browsers."""
    text = _text(value)
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


_READERS: dict[str, Callable[[dict[str, Any], str], Message]] = {
    METADATA: _metadata,
    "inngest.stream": _chunk,
    "inngest.commit": _commit,
    "inngest.rollback": _rollback,
    "durable.progress": _progress,
    "durable.log": _log,
    "inngest.redirect_info": _address,
    "inngest.response": _ending,
}
