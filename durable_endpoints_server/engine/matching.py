"""Which event resolves which wait. Decided by the event's content and by time, never by luck."""

from __future__ import annotations

import orjson

from durable_endpoints.protocol.matching import suits
from durable_endpoints_server.engine.model import Event, Wait


def document_of(event: Event) -> dict[str, object]:
    """The event as paths and expressions see it."""
    return {
        **orjson.loads(event.extra),
        "name": event.name,
        "data": orjson.loads(event.data),
        "id": event.id,
        "ts": event.ts,
    }


def matches(wait: Wait, event: Event, document: dict[str, object]) -> bool:
    """Whether `event` resolves `wait`. `document` is `document_of(event)`, computed once.

    An event received at or after the deadline comes too late, whichever of the two is looked at
    first; the event's own `ts` plays no part.
    """
    return event.received_at < wait.deadline and suits(wait.alternative, document)


def resolution(wait: Wait, event: Event) -> bytes:
    """What the handler gets: the event, and for `wait_for_any` which of the alternatives it is."""
    if wait.kind == "wait_for_any":
        label = orjson.dumps(wait.alternative.label)
        return b'{"name":' + label + b',"event":' + event.as_json() + b"}"
    return event.as_json()
