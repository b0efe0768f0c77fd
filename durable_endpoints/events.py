"""Events: what a run can wait for, and anybody may send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from ulid import ULID

from durable_endpoints.errors import StepValueError
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.protocol.values import NotJsonError, encode

MAX_NAME_LENGTH = 512
MAX_DATA = 3 * 1024 * 1024
"""Bytes of JSON; as in Inngest's event API."""


@dataclass(frozen=True)
class Event:
    """An event as a waiting handler gets it."""

    name: str
    data: Any
    id: str
    ts: int
    """When it happened, by its sender: UTC epoch milliseconds."""


def event_from_json(text: bytes) -> Event | None:
    """Read what an engine remembered of a wait: an event, or null after a timeout."""
    return event_from_value(orjson.loads(text))


def event_from_value(value: Any) -> Event | None:
    """The same for a decoded value."""
    if value is None:
        return None
    return Event(value["name"], value.get("data"), value.get("id", ""), value.get("ts", 0))


def new_event(name: str, data: Any, id: str | None, ts: int | None) -> NewEvent:
    """Check an event that is to be sent. Raises `StepValueError`."""
    check_event_name(name)
    if id is not None and not (isinstance(id, str) and 0 < len(id) <= MAX_NAME_LENGTH):
        raise StepValueError(f"the event id {id!r} is not a text of 1 to {MAX_NAME_LENGTH} letters")
    if ts is not None and (isinstance(ts, bool) or not isinstance(ts, int) or ts < 0):
        raise StepValueError(f"ts={ts!r}: give UTC epoch milliseconds as a whole number")
    try:
        encoded = encode({} if data is None else data)
    except NotJsonError as error:
        raise StepValueError(f"the data of event {name!r} is not JSON: {error}") from None
    if len(encoded) > MAX_DATA:
        raise StepValueError(
            f"the data of event {name!r} has {len(encoded):,} bytes; {MAX_DATA:,} are allowed"
        )
    return NewEvent(id if id is not None else str(ULID()), name, encoded, ts)


def check_event_name(name: str) -> None:
    """Raise `StepValueError` for what cannot be an event's name."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise StepValueError(
            f"the event name {name!r} is not a printable text of 1 to {MAX_NAME_LENGTH} letters"
        )
