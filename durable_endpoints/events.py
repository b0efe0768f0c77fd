"""Events: what a run can wait for, and anybody may send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ulid import ULID

from durable_endpoints.errors import StepValueError
from durable_endpoints.protocol.events import check_event
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.protocol.values import NotJsonError, encode


@dataclass(frozen=True)
class Event:
    """An event as a waiting handler gets it."""

    name: str
    data: Any
    """The JSON value that was sent with it."""
    id: str
    """Its sender's, or a new one."""
    ts: int
    """When it happened, by its sender: UTC epoch milliseconds."""


def event_from_value(value: Any) -> Event | None:
    """Read what an engine remembered of a wait: an event, or None after a timeout."""
    if value is None:
        return None
    return Event(value["name"], value.get("data"), value.get("id", ""), value.get("ts", 0))


def new_event(name: str, data: Any, id: str | None, ts: int | None) -> NewEvent:
    """Check an event that is to be sent. Raises `StepValueError`."""
    try:
        encoded = encode({} if data is None else data)
    except NotJsonError as error:
        raise StepValueError(f"the data of event {name!r} is not JSON: {error}") from None
    try:
        check_event(name, id, ts, encoded)
    except ValueError as error:
        raise StepValueError(str(error)) from None
    return NewEvent(id if id is not None else str(ULID()), name, encoded, ts)
