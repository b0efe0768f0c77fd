"""What a server asks its store, as often as it is timed: about runs, events and times that differ
each time, from everywhere in the file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from ulid import ULID

from benchmarks.growth.multiplying import Growing
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.host import Host
from durable_endpoints_server.listing import newest_runs
from durable_endpoints_server.store.base import NO_RECORDS

TURNS = 200
MINUTE = 60_000

Question = Callable[[], Awaitable[object]]


def questions(host: Host, growing: Growing) -> dict[str, list[Question]]:
    """By what is asked: some for each execution, the others at each start, each minute, or when
    somebody looks."""
    store, now = host.store, host.clock.now()
    runs = growing.some_runs(TURNS)
    data = [f'{{"order":"{text}"}}'.encode() for text in growing.some_awaited(TURNS)]
    events = [Event(str(ULID()), "order/paid", value, now, now) for value in data]
    every, failed = list(Status), [Status.FAILED]

    def listing(statuses: list[Status], before: str | None) -> Question:
        return partial(newest_runs, store, statuses, None, 20, before, 0.0)

    return {
        "a run for its next execution": _each(store.entry, runs),
        "an ended run's answer": _each(store.ended, runs),
        "the run of an idempotency key": _each(store.key_holder, growing.some_keys(TURNS)),
        "the end of a stream log": [
            partial(store.stream_page, run, NO_RECORDS - 1, 1_000) for run in runs
        ],
        "runs that a run invoked": _each(store.children, runs),
        "the wait that an event ends": _each(store.arrival, events),
        "events since the run began": [
            partial(store.unused_events, run, "order/paid", now - MINUTE, "", 100) for run in runs
        ],
        "events that are known": [partial(store.known_events, [event.id]) for event in events],
        "due steps": [partial(store.due_steps, now, 100)] * TURNS,
        "when the next is due": [store.next_due] * TURNS,
        "ready runs": [partial(store.in_status, Status.READY, 100)] * TURNS,
        "running runs": [partial(store.in_status, Status.RUNNING, 100)] * TURNS,
        "invocations to settle": [store.settled_invocations] * TURNS,
        "runs without a parent": [store.orphans] * TURNS,
        "the newest instant": [store.newest] * TURNS,
        "what retention may delete": [partial(store.is_sweepable, 0, 0, 0)] * TURNS,
        "the newest 20 runs": [listing(every, None)] * TURNS,
        "the newest 20 failed runs": [listing(failed, None)] * TURNS,
        "20 failed runs from the middle": [listing(failed, run) for run in runs],
        "all parked runs (there are none)": [listing([Status.PARKED], None)] * TURNS,
        "50,000 runs passed over for an endpoint": [
            partial(store.list_runs, every, "GET /x", 20, run) for run in runs[: TURNS // 20]
        ],
    }


def _each(ask: Callable[[Any], Awaitable[object]], about: Iterable[Any]) -> list[Question]:
    return [partial(ask, one) for one in about]
