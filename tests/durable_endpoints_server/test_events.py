"""Events at the engine: each is given to whoever waits, once, whatever comes in between."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints.protocol.ops import (
    Alternative,
    NewEvent,
    StepKind,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, EventReceived, EventUsed, StepResolved
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.engine.transitions import Suspend, decide, register
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Arrival
from tests.durable_endpoints_server.helpers import (
    POLICY,
    FlakyStore,
    anything,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


def hearing(name: str, *events: str, n: int | None = None, timeout: int = 60_000) -> WaitForEvent:
    """A wait for one of `events`, or for one that says `n`."""
    pairs = () if n is None else (("data.n", str(n)),)
    alternatives = tuple(Alternative(event, event, pairs) for event in events or ("said",))
    kind = StepKind.WAIT_ANY if len(alternatives) > 1 else StepKind.WAIT
    return WaitForEvent(StepId(hash_name(name), name, 0), kind, alternatives, timeout)


def kept(store: FlakyStore, at: int, id: str, name: str = "said", n: int = 0) -> None:
    """An event that was received and matched, while nobody waited for it."""
    event = Event(id, name, b'{"n":%d}' % n, at, at)
    assert store.apply(Change((EventReceived(event, settled=True),)))


def waiting(store: FlakyStore, clock: VirtualClock, run_id: str, *waits: WaitForEvent) -> None:
    """A run that is suspended."""
    decision = register(new_run(run_id), "me", None, clock.now())
    assert store.apply(decision.change)
    for command in (*waits, Suspend()):
        decision = decide(decision.run, command, clock.now(), POLICY)
        assert store.apply(decision.change)


async def heard(store: FlakyStore, run_id: str) -> dict[str, bytes]:
    """What the waits of a run were resolved with, by their names."""
    entry = await store.entry(run_id)
    assert entry is not None
    return {str(s.id): s.value or b"" for s in entry.memo if s.state is StepState.DONE}


async def looked_up(live: LiveRun) -> None:
    """Return once nothing of the run is being looked up any more."""
    await asyncio.sleep(0)
    await until(lambda: not live.is_looking)


async def test_of_two_waits_that_look_back_together_one_gets_the_event(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ask = store.unused_events

    async def slowly(*about: object) -> list[Event]:
        found = await ask(*about)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        return found

    store.unused_events = slowly  # type: ignore[method-assign]
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        kept(store, clock.now(), "e")
        for name in "ab":
            live.record(hearing(name))
        await looked_up(live)
        assert len(await heard(store, "r")) == 1


async def test_of_two_waits_that_opened_while_an_event_was_matched_one_gets_it(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """They are of an execution that goes on."""
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        event = Event("e", "said", b"{}", clock.now(), clock.now())
        clock.move_to(clock.now() + 5)
        for name in "ab":
            live.record(hearing(name))
        await looked_up(live)
        assert store.apply(Change((EventReceived(event, settled=False),)))
        await host.events.settle_all()
        assert len(await heard(store, "r")) == 1


async def test_of_the_kept_events_the_first_one_counts(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        kept(store, clock.now() + 1, "late", "a")
        kept(store, clock.now(), "early", "b")
        live.record(hearing("w", "a", "b"))
        await looked_up(live)
        assert b'"id":"early"' in (await heard(store, "r"))["w"]


async def test_an_event_is_found_behind_any_number_of_others(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        for n in range(1_100):
            kept(store, clock.now(), f"e{n:04}", n=n)
        live.record(hearing("w", n=1_099))
        await looked_up(live)
        assert b'"n":1099' in (await heard(store, "r"))["w"]


async def test_an_event_is_matched_once_the_store_works_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    waiting(store, clock, "r", hearing("w"))
    async with serving(store, clock) as host:
        store.fails = lambda change: any(isinstance(f, StepResolved) for f in change.facts)
        await host.events.publish(NewEvent("e", "said", b"{}"))
        await until(lambda: host.recovery.is_failing)
        store.fails = None
        await until(lambda: not host.recovery.is_behind)
        assert await heard(store, "r")


async def test_an_event_that_is_just_being_received_beats_the_timeout(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """It came in time; who waits for it is read slowly."""
    waiting(store, clock, "r", hearing("w", timeout=1_000))
    ask, found_out = store.arrival, asyncio.Event()

    async def slowly(event: Event) -> Arrival:
        await found_out.wait()
        return await ask(event)

    store.arrival = slowly  # type: ignore[method-assign]
    async with serving(store, clock) as host:
        clock.move_to(clock.now() + 999)
        sending = asyncio.ensure_future(host.events.publish(NewEvent("e", "said", b"{}")))
        await asyncio.sleep(0.01)
        clock.move_to(clock.now() + 1)
        await asyncio.sleep(0.05)
        assert await heard(store, "r") == {}
        found_out.set()
        await sending
        await until(lambda: not host.events.is_busy)
        assert b'"id":"e"' in (await heard(store, "r"))["w"]


async def test_an_event_that_could_not_be_matched_beats_the_timeout_that_waits_for_it(
    store: FlakyStore, clock: VirtualClock
) -> None:
    waiting(store, clock, "r", hearing("w", timeout=1_000))
    ask, found_out = store.arrival, asyncio.Event()

    async def slowly(event: Event) -> Arrival:
        await found_out.wait()
        return await ask(event)

    store.arrival = slowly  # type: ignore[method-assign]
    store.fails = lambda change: any(isinstance(fact, EventUsed) for fact in change.facts)
    async with serving(store, clock) as host:
        clock.move_to(clock.now() + 999)
        sending = asyncio.ensure_future(host.events.publish(NewEvent("e", "said", b"{}")))
        await asyncio.sleep(0.01)
        clock.move_to(clock.now() + 1)
        await asyncio.sleep(0.05)
        found_out.set()
        await sending
        await until(lambda: host.recovery.is_failing)
        await asyncio.sleep(0.05)
        assert await heard(store, "r") == {}
        store.fails = None
        await until(lambda: not host.recovery.is_behind)
        assert b'"id":"e"' in (await heard(store, "r"))["w"]


async def test_an_event_of_before_the_start_beats_the_timeout(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """The last process has kept it, and did not come to match it. What is kept is read slowly."""
    waiting(store, clock, "r", hearing("w", timeout=1_000))
    event = Event("e", "said", b"{}", clock.now(), clock.now() + 999)
    assert store.apply(Change((EventReceived(event, settled=False),)))
    ask = store.unsettled_events

    async def slowly(limit: int) -> list[Event]:
        await asyncio.sleep(0.05)
        return await ask(limit)

    store.unsettled_events = slowly  # type: ignore[method-assign]
    clock.move_to(clock.now() + 5_000)
    async with serving(store, clock):
        async with asyncio.timeout(5):
            while not (values := await heard(store, "r")):
                await asyncio.sleep(0.01)
        assert b'"id":"e"' in values["w"]


async def test_an_end_that_could_not_be_told_is_told_once_the_store_works_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """At the start, where events and ends of before are looked at."""
    waiting(store, clock, "r", hearing("w"))
    event = Event("e", "said", b"{}", clock.now(), clock.now())
    assert store.apply(Change((EventReceived(event, settled=False),)))
    store.fails = anything
    async with serving(store, clock) as host:
        await until(lambda: host.recovery.is_failing)
        store.fails = None
        await until(lambda: not host.recovery.is_behind)
        run = await store.run("r")
        assert run is not None
        assert run.status is Status.READY
