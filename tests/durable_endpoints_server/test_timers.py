"""Timers: on time, in batches, after failures, and never for a run that somebody executes."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints.protocol.ops import (
    Alternative,
    NewEvent,
    Sleep,
    StepKind,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, EventReceived
from durable_endpoints_server.engine.model import Event, Run, Status
from durable_endpoints_server.engine.transitions import Command, Suspend, decide, register
from durable_endpoints_server.store.base import Store
from tests.durable_endpoints_server.helpers import (
    POLICY,
    FlakyStore,
    anything,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


def suspended(
    store: FlakyStore, clock: VirtualClock, run_id: str, *ops: Command, **new: int
) -> Run:
    """A run that waits for what `ops` opened."""
    decision = register(new_run(run_id, **new), "me", None, clock.now())
    store.apply(decision.change)
    for command in (*ops, Suspend()):
        decision = decide(decision.run, command, clock.now(), POLICY)
        assert store.apply(decision.change)
    return decision.run


async def status_of(store: Store, run_id: str) -> Status:
    run = await store.run(run_id)
    assert run is not None
    return run.status


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def move(clock: VirtualClock, milliseconds: int) -> None:
    clock.move_to(clock.now() + milliseconds)
    await settle()


async def test_a_sleep_ends_on_time_and_not_before(store: FlakyStore, clock: VirtualClock) -> None:
    suspended(store, clock, "r", Sleep(step("nap"), 1_000))
    async with serving(store, clock):
        await settle()
        await move(clock, 999)
        assert await status_of(store, "r") is Status.WAITING
        await move(clock, 1)
        assert await status_of(store, "r") is Status.READY


async def test_what_was_due_while_nobody_served_fires_at_the_start(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "r", Sleep(step("nap"), 1_000))
    clock.move_to(clock.now() + 5_000)
    async with serving(store, clock):
        await settle()
        assert await status_of(store, "r") is Status.READY


async def test_a_timer_that_is_armed_earlier_comes_earlier(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "late", Sleep(step("nap"), 60_000))
    async with serving(store, clock) as host:
        await settle()
        suspended(store, clock, "early", Sleep(step("nap"), 1_000))
        host.timers.arm(clock.now() + 1_000)
        await settle()
        await move(clock, 1_000)
        assert await status_of(store, "early") is Status.READY
        assert await status_of(store, "late") is Status.WAITING
        await move(clock, 59_000)
        assert await status_of(store, "late") is Status.READY


async def test_a_run_that_suspends_arms_what_comes_first_of_all_that_it_waits_for(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Some other run is due between the two."""
    suspended(store, clock, "between", Sleep(step("nap"), 60_000))
    async with serving(store, clock) as host:
        await settle()
        live = host.register(new_run("r"))
        for name, duration in (("long", 120_000), ("short", 1_000)):
            live.record(Sleep(step(name), duration))
        await live.suspend()
        await settle()
        await move(clock, 1_000)
        assert await status_of(store, "r") is Status.READY


async def test_a_run_that_suspends_arms_its_deadline_if_that_comes_first(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "between", Sleep(step("nap"), 60_000))
    async with serving(store, clock) as host:
        await settle()
        live = host.register(new_run("r", max_runtime=2_000))
        live.record(Sleep(step("nap"), 120_000))
        await live.suspend()
        await settle()
        await move(clock, 2_000)
        assert await status_of(store, "r") is Status.FAILED


async def test_what_is_armed_while_the_store_is_asked_is_not_overlooked(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "first", Sleep(step("nap"), 1_000))
    ask = store.next_due
    meanwhile = asyncio.Event()

    async def slowly() -> int | None:
        found = await ask()
        await meanwhile.wait()
        return found

    async with serving(store, clock) as host:
        await settle()
        store.next_due = slowly  # type: ignore[method-assign]
        await move(clock, 1_000)  # it has fired, and asks what comes next
        suspended(store, clock, "second", Sleep(step("nap"), 5_000))
        host.timers.arm(clock.now() + 5_000)
        meanwhile.set()
        await settle()
        await move(clock, 5_000)
        assert await status_of(store, "second") is Status.READY


async def test_the_store_is_not_asked_while_nothing_is_due(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "r", Sleep(step("nap"), 3_600_000))
    async with serving(store, clock, inbox_interval=60.0) as host:
        await settle()
        before = store.questions
        for _ in range(20):
            host.timers.arm(clock.now() + 7_200_000)  # later than what it waits for
            await move(clock, 60_000)
        assert store.questions == before


async def test_many_that_are_due_together_are_read_in_pages(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for n in range(1_200):
        suspended(store, clock, f"r{n}", Sleep(step("nap"), 1_000))
    async with serving(store, clock, inbox_interval=60.0):
        await settle()
        before = store.questions
        await move(clock, 1_000)
        await until(lambda: store.questions >= before + 4)
        assert len(await store.in_status(Status.READY, 10_000)) == 1_200
        assert store.questions < before + 20


async def test_two_steps_of_one_run_that_are_due_together(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "r", Sleep(step("a"), 1_000), Sleep(step("b"), 500))
    clock.move_to(clock.now() + 2_000)
    async with serving(store, clock):
        await settle()
        entry = await store.entry("r")
        assert entry is not None
        assert entry.run.status is Status.READY
        assert [(s.id.name, s.state, s.order) for s in entry.memo] == [
            ("b", StepState.DONE, 1),
            ("a", StepState.DONE, 2),
        ]


async def test_a_retry_becomes_due_without_a_value(store: FlakyStore, clock: VirtualClock) -> None:
    suspended(store, clock, "r", StepRetry(step("a"), StepKind.RUN, b"{}", 1, delay=1_000))
    async with serving(store, clock):
        await settle()
        await move(clock, 1_000)
        entry = await store.entry("r")
        assert entry is not None
        assert entry.run.status is Status.READY
        assert (entry.memo[0].state, entry.memo[0].due) == (StepState.RETRYING, None)


async def test_a_deadline_ends_the_run_and_tells_who_waits(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "r", Sleep(step("nap"), 60_000), max_runtime=1_000)
    async with serving(store, clock) as host:
        waiting = asyncio.create_task(host.waiters.wait("r", 3_600_000))
        await settle()
        await move(clock, 1_000)
        ended = await asyncio.wait_for(waiting, 1)
        assert ended is not None
        assert (ended.run.status, ended.run.reason) == (Status.FAILED, "timed_out")
        assert clock.next_alarm() is None  # nor does the sleep ring any more


async def test_a_run_that_is_parked_ends_at_its_deadline(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        await settle()  # the timers have looked, and found nothing
        live = host.register(new_run("r", max_runtime=1_000))
        await live.park("broken")
        await settle()
        await move(clock, 1_000)
        run = await store.run("r")
        assert run is not None
        assert (run.status, run.reason) == (Status.FAILED, "timed_out")


async def test_an_event_that_came_in_time_beats_a_timeout_that_is_seen_first(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """It lies in the inbox when the timeout comes due."""
    wait = WaitForEvent(step("hear"), StepKind.WAIT, (Alternative("", "said"),), 1_000)
    suspended(store, clock, "r", wait)
    async with serving(store, clock, inbox_interval=3_600.0):
        await settle()
        clock.move_to(clock.now() + 500)
        message = b'{"id": "e", "name": "said", "data": {"n": 1}, "ts": null}'
        store.leave_message(clock.now(), "event", message)
        await move(clock, 10_000)
        await until(lambda: not store._inbox)
        await settle()
        entry = await store.entry("r")
        assert entry is not None
        assert entry.memo[0].value is not None
        assert b'"n":1' in entry.memo[0].value.replace(b" ", b"")


async def test_a_wait_whose_execution_vanished_before_it_looked_back(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """The event came before the wait, and the process ended before the one was given the other."""
    decision = register(new_run("r"), "somebody who is gone", None, clock.now())
    store.apply(decision.change)
    event = Event("e", "said", b"{}", clock.now(), clock.now() + 1)
    store.apply(Change((EventReceived(event, settled=True),)))
    for name in ("first", "second"):
        wait = WaitForEvent(step(name), StepKind.WAIT, (Alternative("", "said"),), 1_000)
        decision = decide(decision.run, wait, clock.now() + 2, POLICY)
        assert store.apply(decision.change)
    clock.move_to(clock.now() + 60_000)
    async with serving(store, clock):
        await settle()
        entry = await store.entry("r")
        assert entry is not None
        values = [record.value or b"" for record in entry.memo]
        assert sorted(b'"id":"e"' in value for value in values) == [False, True]
        assert b"null" in values  # each event resolves one of two waits that it came before


async def test_an_event_that_came_before_two_waits_resolves_the_next_of_them(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Both are open when it is matched at last, after a new start."""
    event = Event("e", "said", b"{}", clock.now(), clock.now() + 1)
    store.apply(Change((EventReceived(event, settled=False),)))
    decision = register(new_run("r"), "me", None, clock.now())
    store.apply(decision.change)
    for name, later in (("second", 9), ("first", 5)):
        wait = WaitForEvent(step(name), StepKind.WAIT, (Alternative("", "said"),), 60_000)
        decision = decide(decision.run, wait, clock.now() + later, POLICY)
        assert store.apply(decision.change)
    assert store.apply(decide(decision.run, Suspend(), clock.now() + 10, POLICY).change)
    clock.move_to(clock.now() + 20)
    async with serving(store, clock):
        await settle()
        entry = await store.entry("r")
        assert entry is not None
        assert {s.id.name: s.state for s in entry.memo} == {
            "first": StepState.DONE,
            "second": StepState.PENDING,
        }
        assert not await store.unsettled_events(1)


async def test_a_timeout_without_an_event_is_null(store: FlakyStore, clock: VirtualClock) -> None:
    wait = WaitForEvent(step("hear"), StepKind.WAIT, (Alternative("", "said"),), 1_000)
    suspended(store, clock, "r", wait)
    async with serving(store, clock) as host:
        await settle()
        await move(clock, 1_000)
        entry = await store.entry("r")
        assert entry is not None
        assert entry.memo[0].value == b"null"
        await host.events.publish(NewEvent("e", "said", b"{}"))
        entry = await store.entry("r")
        assert entry is not None
        assert entry.memo[0].value == b"null"


async def test_timers_survive_a_store_that_is_away(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    suspended(store, clock, "r", Sleep(step("nap"), 1_000))
    async with serving(store, clock):
        await settle()
        store.is_away = True
        await move(clock, 1_000)
        assert "timers stand still" in caplog.text
        store.is_away = False
        assert await status_of(store, "r") is Status.WAITING
        await move(clock, 1_000)
        assert await status_of(store, "r") is Status.READY


async def test_timers_survive_a_store_that_cannot_be_written(
    store: FlakyStore, clock: VirtualClock
) -> None:
    suspended(store, clock, "nap", Sleep(step("nap"), 1_000))
    suspended(store, clock, "late", Sleep(step("nap"), 60_000), max_runtime=1_000)
    async with serving(store, clock):
        await settle()
        store.fails = anything
        await move(clock, 1_000)
        await move(clock, 1_000)
        store.fails = None
        await move(clock, 1_000)
        assert await status_of(store, "nap") is Status.READY
        assert await status_of(store, "late") is Status.FAILED
