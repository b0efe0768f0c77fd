"""Whether an event is one that a wait looks for, by what the event says.

Numbers, strings and booleans are compared by their JSON text, so that `?id=7` in a URL matches
`{"id": 7}` in an event.
"""

from __future__ import annotations

import orjson

from durable_endpoints.protocol.expressions import holds
from durable_endpoints.protocol.ops import Alternative


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


def suits(wanted: Alternative, document: dict[str, object]) -> bool:
    """Whether the event that `document` shows (its name, data, id and ts) is one of `wanted`."""
    return (
        wanted.event == document.get("name")
        and all(text_of(value_at(document, path)) == text for path, text in wanted.pairs)
        and (not wanted.expression or holds(wanted.expression, document))
    )
