"""Which event resolves which wait. Decided by the event's content and by time, never by luck.

Numbers, strings and booleans are compared by their JSON text, so that `?id=7` in a URL matches
`{"id": 7}` in an event.
"""

from __future__ import annotations

import orjson

from durable_endpoints.protocol.expressions import holds
from durable_endpoints_server.engine.model import Event, Wait


def text_of(value: object) -> str | None:
    """The text by which a value is compared, or None for one that cannot be compared."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode("ascii")
    return None


def value_at(document: object, path: str) -> object:
    """The value at a dotted path such as `data.order.id`, or None where there is none."""
    for key in path.split("."):
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document


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
    wanted = wait.alternative
    return (
        wanted.event == event.name
        and event.received_at < wait.deadline
        and all(text_of(value_at(document, path)) == text for path, text in wanted.pairs)
        and (not wanted.expression or holds(wanted.expression, document))
    )


def resolution(wait: Wait, event: Event) -> bytes:
    """What the handler gets: the event, and for `wait_for_any` which of the alternatives it is."""
    if wait.kind == "wait_for_any":
        label = orjson.dumps(wait.alternative.label)
        return b'{"name":' + label + b',"event":' + event.as_json() + b"}"
    return event.as_json()
