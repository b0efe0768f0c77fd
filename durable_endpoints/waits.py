"""What a wait for an event looks for: names, equalities, conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import orjson

from durable_endpoints.errors import StepValueError
from durable_endpoints.protocol import expressions
from durable_endpoints.protocol.events import check_event_name
from durable_endpoints.protocol.ops import Alternative
from durable_endpoints.requests import printable

Match = str | Mapping[str, Any]
"""`"data.order_id"`: the event's value there equals the run input's `order_id`; or a mapping of
such paths to the values that must stand there."""


class EventPattern(TypedDict, total=False):
    """One alternative of `wait_for_any`, where the event's name alone does not say it."""

    event: str
    match: Match
    if_exp: str


Inputs = Callable[[], dict[str, Any]]
"""Gives the run input: path parameters, query, and JSON object or form, later ones winning."""

_STRINGS = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?P<path>\bevent\.data(?:\.\w+)+)""")


def alternative_of(
    label: str, event: str, match: Match | None, if_exp: str | None, inputs: Inputs
) -> Alternative:
    """Check and complete one alternative. Raises `StepValueError` that says what is wrong."""
    try:
        check_event_name(event)
    except ValueError as error:
        raise StepValueError(str(error)) from None
    if if_exp is not None:
        _check_condition(if_exp)
    pairs = _pairs(match, inputs) if match is not None else ()
    expression = _written_in(if_exp, inputs) if if_exp else ""
    if expression:
        try:
            expressions.check(expression)
        except ValueError as error:
            raise StepValueError(
                f"if_exp={if_exp!r} is not CEL, which has &&, || and ! for and, or and not: {error}"
            ) from None
    return Alternative(label, event, pairs, expression)


def _check_condition(if_exp: Any) -> None:
    """Raise `StepValueError` for a condition that no event could ever meet."""
    example = 'its values are under `async`, as in "async.data.total > 100"'
    if not isinstance(if_exp, str):
        raise StepValueError(f"if_exp={if_exp!r}: give a CEL condition as text; {example}")
    if "async" not in _STRINGS.sub("", if_exp):
        raise StepValueError(f"if_exp={if_exp!r} looks at nothing of the event: {example}")


def alternatives_of(
    events: Sequence[str] | Mapping[str, str | EventPattern],
    match: Match | None,
    inputs: Inputs,
) -> tuple[Alternative, ...]:
    """The alternatives of `wait_for_any`, labelled by event name or by the mapping's keys."""
    if isinstance(events, str) or not events:
        raise StepValueError(
            f"wait_for_any was given {events!r}: give a list of event names, or a mapping from "
            "names of your own to them"
        )
    patterns: Mapping[str, str | EventPattern]
    patterns = events if isinstance(events, Mapping) else {name: name for name in events}
    return tuple(_of_pattern(label, pattern, match, inputs) for label, pattern in patterns.items())


def _of_pattern(
    label: str, pattern: str | EventPattern, match: Match | None, inputs: Inputs
) -> Alternative:
    if not isinstance(label, str):
        raise StepValueError(f"an alternative is named by a string, not by {label!r}")
    if isinstance(pattern, str):
        return alternative_of(label, pattern, match, None, inputs)
    unknown = set(pattern) - {"event", "match", "if_exp"}
    if unknown or "event" not in pattern:
        raise StepValueError(
            f"alternative {label!r}: give an event name, or a mapping with event=, match=, if_exp="
        )
    return alternative_of(
        label, pattern["event"], pattern.get("match", match), pattern.get("if_exp"), inputs
    )


def _pairs(match: Match, inputs: Inputs) -> tuple[tuple[str, str], ...]:
    if isinstance(match, str):
        value = _input_at(match, inputs)
        return ((match, _text(match, value)),)
    if not match or not isinstance(match, Mapping):
        raise StepValueError('match= is a path such as "data.id", or a mapping of paths to values')
    return tuple((_path(path), _text(path, value)) for path, value in sorted(match.items()))


def _path(path: str) -> str:
    if not isinstance(path, str) or not path.startswith("data.") or not all(path.split(".")):
        raise StepValueError(
            f'match path {path!r}: write "data." and the names below it, for instance "data.id"'
        )
    return path


def _input_at(path: str, inputs: Inputs) -> Any:
    value: Any = inputs()
    for name in _path(path).split(".")[1:]:
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(sorted(map(str, inputs()))) or "nothing"
            raise StepValueError(
                f"match={path!r} compares with the request's own {path.removeprefix('data.')!r}, "
                f"which this request has not (it has {known}): name an input, or write "
                f"match={{{path!r}: value}}"
            )
        value = value[name]
    return value


def _text(path: str, value: Any) -> str:
    """The text by which numbers, strings and booleans are compared."""
    if isinstance(value, str):
        if printable(value) != value:
            raise StepValueError(f"match on {path!r}: {value!r} is not valid Unicode")
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode("ascii")
    raise StepValueError(
        f"match on {path!r}: {type(value).__name__} cannot be compared, only strings, numbers and "
        "booleans can"
    )


def _written_in(expression: str, inputs: Inputs) -> str:
    """The condition with the run's own values (`event.data.…`) written in as literals."""

    def literal(found: re.Match[str]) -> str:
        path = found["path"]
        if path is None:
            return found[0]  # inside a string
        return orjson.dumps(_input_at(path.removeprefix("event."), inputs)).decode()

    return _STRINGS.sub(literal, expression)
