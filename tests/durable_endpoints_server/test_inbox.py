"""The inbox: in order, once, whatever is in it, and through a store that fails."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from durable_endpoints.protocol.ops import Alternative, StepKind, WaitForEvent
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, InboxTaken
from durable_endpoints_server.engine.model import Event, Run, Status
from durable_endpoints_server.engine.transitions import Suspend, decide, register
from tests.durable_endpoints_server.helpers import (
    POLICY,
    FlakyStore,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio

FAST = {"inbox_interval": 0.005}


def leave(store: FlakyStore, at: int, kind: str, **data: object) -> None:
    store.leave_message(at, kind, orjson.dumps(data))


def leave_event(store: FlakyStore, at: int, event_id: str, n: int = 0) -> None:
    leave(store, at, "event", id=event_id, name="said", data={"n": n}, ts=None)


def waiting(store: FlakyStore, clock: VirtualClock, run_id: str) -> Run:
    step = StepId(hash_name("hear"), "hear", 0)
    wait = WaitForEvent(step, StepKind.WAIT, (Alternative("", "said"),), 3_600_000)
    decision = register(new_run(run_id), "me", None, clock.now())
    store.apply(decision.change)
    for command in (wait, Suspend()):
        decision = decide(decision.run, command, clock.now(), POLICY)
        assert store.apply(decision.change)
    return decision.run


async def status_of(store: FlakyStore, run_id: str) -> Status:
    run = await store.run(run_id)
    assert run is not None
    return run.status


async def test_messages_are_carried_out_in_order_and_taken(
    store: FlakyStore, clock: VirtualClock
) -> None:
    waiting(store, clock, "r")
    for n in range(250):  # more than a page
        leave_event(store, clock.now(), f"e{n}", n)
    async with serving(store, clock, **FAST):
        await until(lambda: not store._inbox)
        entry = await store.entry("r")
        assert entry is not None
        assert entry.memo[0].value is not None
        assert orjson.loads(entry.memo[0].value)["id"] == "e0"  # the first of them
        assert list(store._events) == [f"e{n}" for n in range(250)]


async def test_an_event_counts_from_when_it_was_left(
    store: FlakyStore, clock: VirtualClock
) -> None:
    at = clock.now()
    leave_event(store, at, "e")
    clock.move_to(at + 60_000)
    async with serving(store, clock, **FAST):
        await until(lambda: not store._inbox)
        event = store._events["e"].event
        assert (event.received_at, event.ts) == (at, at)


async def test_a_cancel_and_a_retry(store: FlakyStore, clock: VirtualClock) -> None:
    waiting(store, clock, "r")
    parked = waiting(store, clock, "p")._replace(status=Status.PARKED)
    store._rows["p"].run = parked
    leave(store, clock.now(), "cancel", run_id="r")
    leave(store, clock.now(), "retry", run_id="p")
    async with serving(store, clock, **FAST):
        await until(lambda: not store._inbox)
        assert await status_of(store, "r") is Status.CANCELLED
        assert await status_of(store, "p") is Status.READY


async def test_a_run_that_is_executed_is_cancelled_in_its_execution(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock, **FAST) as host:
        live = host.register(new_run("r"))
        await live.acknowledge()
        leave(store, clock.now(), "cancel", run_id="r")
        await until(lambda: not store._inbox)
        assert await status_of(store, "r") is Status.CANCELLED
        assert host.live == {}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("event", b"not json"),
        ("event", b"[]"),
        ("event", b"null"),
        ("event", b'{"id": "e"}'),
        ("cancel", b"{}"),
        ("retry", b'{"run": "r"}'),
        ("explode", b"{}"),
    ],
)
async def test_a_message_that_makes_no_sense_is_logged_and_holds_up_nobody(
    store: FlakyStore,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    data: bytes,
) -> None:
    store.leave_message(clock.now(), kind, data)
    leave_event(store, clock.now(), "after")
    async with serving(store, clock, **FAST):
        await until(lambda: not store._inbox)
        assert "after" in store._events
    assert "makes no sense" in caplog.text


@pytest.mark.parametrize("kind", ["cancel", "retry"])
async def test_a_command_for_a_run_that_is_unknown_or_over_does_nothing(
    store: FlakyStore, clock: VirtualClock, kind: str
) -> None:
    decision = register(new_run("over"), "me", None, clock.now())
    store.apply(decision.change)
    store.apply(decide(decision.run, Complete(200, b"x"), clock.now(), POLICY).change)
    leave(store, clock.now(), kind, run_id="nobody")
    leave(store, clock.now(), kind, run_id="over")
    async with serving(store, clock, **FAST):
        await until(lambda: not store._inbox)
        assert await status_of(store, "over") is Status.COMPLETED


async def test_a_message_whose_end_was_not_written_is_carried_out_once(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def taking(change: Change) -> bool:
        return isinstance(change.facts[0], InboxTaken)

    store.fails = taking
    leave_event(store, clock.now(), "e", 1)
    async with serving(store, clock, **FAST) as host:
        await until(lambda: len(store.refused) >= 2 and not host.events.is_busy)
        waiting(store, clock, "late")  # began after the event: it must not get a copy
        store.fails = None
        await until(lambda: not store._inbox)
        await asyncio.sleep(0.02)
        assert list(store._events) == ["e"]
        assert await status_of(store, "late") is Status.WAITING
    assert "could not be read" in caplog.text


async def test_reading_goes_on_after_a_store_that_was_away_which_is_told_once(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    leave_event(store, clock.now(), "e")
    async with serving(store, clock, **FAST):
        store.is_away = True
        await until(lambda: "could not be read" in caplog.text)
        await asyncio.sleep(20 * FAST["inbox_interval"])
        assert caplog.text.count("could not be read") == 1
        store.is_away = False
        await until(lambda: not store._inbox)


async def test_two_readers_do_not_carry_a_message_out_twice(
    store: FlakyStore, clock: VirtualClock
) -> None:
    taken: list[int] = []
    original = store.apply

    def apply(change: Change) -> bool:
        taken.extend(fact.id for fact in change.facts if isinstance(fact, InboxTaken))
        return original(change)

    store.apply = apply  # type: ignore[method-assign]
    async with serving(store, clock, inbox_interval=3_600.0) as host:
        for n in range(20):
            leave_event(store, clock.now(), f"e{n}")
        await asyncio.gather(*(host.events.catch_up() for _ in range(5)))
    assert sorted(taken) == list(range(1, 21))
    assert isinstance(store._events["e0"].event, Event)
