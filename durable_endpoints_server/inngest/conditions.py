"""The conditions of waits: `match` and `if` of `waitForEvent`, which come as one CEL expression
over `async`, the event that arrives, and `event`, the one that began the run."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from durable_endpoints.protocol import expressions
from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints.protocol.matching import text_of, value_at
from durable_endpoints_server.inngest.trigger import Trigger

Pairs = tuple[tuple[str, str], ...]

_PATH: Final = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_EQUALITY: Final = re.compile(rf"\s*event\.({_PATH})\s*==\s*async\.({_PATH})\s*")
_EVENT: Final = re.compile(r"\bevent\b")
_MAX_INTEGER: Final = 2**63 - 1
MAX_LENGTH: Final = 8_192


def condition(expression: str, trigger: Trigger) -> tuple[Pairs, str]:
    """A condition as the engine has it: equalities, and CEL that knows `async` only.

    A plain equality of the two events, which is what `match` is, becomes a pair: it needs no CEL,
    and finds its waits by an index. Otherwise what is asked of `event` is bound to its name.
    Raises `ValueError`.
    """
    if not expression:
        return (), ""
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the condition has more than {MAX_LENGTH:,} characters")
    equality = _EQUALITY.fullmatch(expression)
    if equality is not None:
        text = text_of(value_at(trigger.event, equality[1]))
        if text is not None:
            return ((equality[2], text),), ""
    if _EVENT.search(expression):
        known = _literal(_mentioned(trigger.event, expression))
        expression = f"[{known}].exists(event, {expression})"
    try:
        expressions.check(expression)
    except ConfigurationError as error:
        raise ValueError(error.explanation) from None
    return (), expression


def _mentioned(event: dict[str, Any], expression: str) -> dict[str, Any]:
    """The event without the parts of its data that the expression does not name: a request's body
    may be large."""
    data = {name: value for name, value in event["data"].items() if name in expression}
    return {**{name: event[name] for name in ("name", "id", "ts") if name in event}, "data": data}


def _literal(value: Any) -> str:
    """JSON that CEL reads as a literal: it has 64-bit integers only."""
    return orjson.dumps(_bounded(value)).decode("utf-8")


def _bounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _bounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_bounded(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if type(value) is int and abs(value) > _MAX_INTEGER:
        return float(value)
    return value
