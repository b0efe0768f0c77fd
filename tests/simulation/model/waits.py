"""What ends a wait for an event: the event that suits it, or its time, and never too early."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from durable_endpoints.protocol.ops import StepKind, StepRecord
from durable_endpoints_server.engine.facts import Change, EventUsed
from durable_endpoints_server.engine.model import Event
from tests.simulation.model.books import Books, ViolationError
from tests.simulation.programs import Wait, WaitAny


def check_wait(
    books: Books,
    change: Change,
    step: StepRecord,
    opened: StepRecord,
    events: Mapping[str, Event],
) -> None:
    """A wait has ended. `opened` is what was said of it at its begin, `events` are all on disk."""
    key, deadline = step.id.hash, opened.due or 0
    used = [fact.event_id for fact in change.facts if isinstance(fact, EventUsed)]
    if step.value == b"null":
        if (step.ended_at or 0) < deadline:
            raise ViolationError(f"wait {key} of {change.run_id} timed out early")
        books.timed_out[key] = deadline
        for received in events.values():
            check_missed(books, key, deadline, received)
        return
    got = orjson.loads(step.value or b"null")
    got = got["event"] if step.kind is StepKind.WAIT_ANY else got
    event = events.get(got["id"])
    if event is None:
        raise ViolationError(f"wait {key} of {change.run_id} got {got}, which is not on disk")
    if event.id not in used:
        raise ViolationError(f"wait {key} of {change.run_id} got {event.id}, recorded {used}")
    if not _suits(books, key, event) or event.received_at >= deadline:
        raise ViolationError(
            f"wait {key} of {change.run_id}, which ends at {deadline}, got {event}"
        )
    first = books.used.setdefault(event.id, key)
    if first != key and event.received_at < opened.began_at:
        raise ViolationError(
            f"event {event.id} resolved {first} and then {key} of {change.run_id}, which did "
            "not wait when it came"
        )


def _suits(books: Books, key: str, event: Event) -> bool:
    """Whether an event may end a wait of a run, by name, content and time of its begin."""
    node = books.nodes[key]
    if not isinstance(node, Wait | WaitAny) or event.received_at < books.run.began_at:
        return False
    names = (node.event,) if isinstance(node, Wait) else node.events
    return event.name in names and node.key in (None, orjson.loads(event.data)["key"])


def check_missed(books: Books, key: str, deadline: int, event: Event) -> None:
    """A wait has timed out: no event that suits it came before, but those that others have used."""
    if event.received_at < deadline and event.id not in books.used and _suits(books, key, event):
        raise ViolationError(
            f"wait {key} of {books.run.id} timed out at {deadline}, though event {event.id} "
            f"came at {event.received_at}"
        )
