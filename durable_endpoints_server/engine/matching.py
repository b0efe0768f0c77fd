"""Which event resolves which wait. Decided by the event's content and by time, never by luck."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import orjson

from durable_endpoints.protocol.matching import suits
from durable_endpoints_server.engine.model import Event, Match, Wait
from durable_endpoints_server.engine.transitions import Resolve


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


def hits(event: Event, found: Sequence[Match]) -> list[Match]:
    """Those of the open waits that `event` resolves: run by run, in the order in which the waits of
    each were opened. An event that is older than a run is nothing to it."""
    if not found:
        return []
    document = document_of(event)
    matching = [
        match
        for match in found
        if match.run.began_at <= event.received_at and matches(match.wait, event, document)
    ]
    return sorted(
        matching, key=lambda match: (match.run.id, match.step.began_at, match.step.id.hash)
    )


def was_open(match: Match, event: Event) -> bool:
    """Whether a wait was open when the event came: all such waits of a run get it. Of those that
    opened later, be it while the event was being matched, only the next one does."""
    return match.step.began_at <= event.received_at


def resolutions(event: Event, of_run: Iterable[Match]) -> list[Resolve]:
    """What `event` does to one run that nobody executes. `of_run` are its `hits` there."""
    taken: dict[str, Resolve] = {}
    for match in of_run:
        key = match.step.id.hash
        if key not in taken and (not taken or was_open(match, event)):
            taken[key] = Resolve(match.step, resolution(match.wait, event), event.id)
    return [*taken.values()]


def first_hit(
    events: Iterable[Event], waits: Sequence[Wait], has_used: Callable[[str], bool]
) -> tuple[Wait, Event] | None:
    """The first of these kept events that resolves one of the waits, and that the run has not used
    yet."""
    for event in events:
        if has_used(event.id):
            continue
        document = document_of(event)
        for wait in waits:
            if matches(wait, event, document):
                return wait, event
    return None
