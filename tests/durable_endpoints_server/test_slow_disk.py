"""While the disk is slow, nobody is told of what is not on it yet."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import (
    Alternative,
    NewEvent,
    Sleep,
    StepKind,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import EventSettled
from durable_endpoints_server.engine.model import Event
from durable_endpoints_server.engine.transitions import register
from tests.durable_endpoints_server.helpers import (
    Executions,
    SlowStore,
    a_moment,
    new_run,
    serving,
    until,
)
from tests.durable_endpoints_server.remote import fakes

pytestmark = pytest.mark.anyio


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


async def test_a_sender_is_told_that_its_signal_was_taken_once_that_is_on_disk(
    store: SlowStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        go = Alternative("", f"{SIGNAL}go")
        step = StepId(hash_name("go"), "go", 0)
        await live.open_signal(WaitForEvent(step, StepKind.WAIT, (go,), 60_000), replace=False)
        await until(lambda: not live.is_looking)
        store.holds = True
        sending = asyncio.ensure_future(host.signals.send("go", b"1"))
        await until(lambda: store.held)
        await a_moment()
        assert not sending.done()
        store.let_go()
        assert await sending


async def test_a_reader_gets_a_chunk_once_it_is_written(
    store: SlowStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        reader = live.read_stream()
        await live.acknowledge()
        store.holds = True
        live.push(hash_name("a"), 1, [b'"word"'])
        reading = asyncio.ensure_future(reader.next(5_000))
        await until(lambda: store.held)
        await a_moment()
        assert not reading.done()
        store.let_go()
        frames = await reading
        assert isinstance(frames, bytes)
        assert b"word" in frames
        reader.close()


async def test_a_process_is_told_that_a_step_is_resolved_once_that_is_on_disk(
    store: SlowStore, clock: VirtualClock
) -> None:
    """Else a body could begin on what a crash of the server undoes."""
    async with fakes.serving(store, clock) as server:
        process = fakes.FakeProcess(server)
        await process.hello()
        await process.say(fakes.register("r"), fakes.record("r", 2, fakes.nap("z", 1_000)))
        await process.acked("r", 2)
        store.holds = True
        clock.move_to(clock.now() + 1_000)
        await until(lambda: store.held)
        await a_moment()
        assert process.all("resolved") == []
        store.let_go()
        frame = await process.until("resolved", "r")
        assert wire.unpack_step(frame[2]).state is StepState.DONE


async def test_a_run_whose_time_has_come_is_executed_once_that_is_on_disk(
    store: SlowStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        executions = Executions(lambda live, entry: live.end(Complete(200, b"")))
        host.dispatcher.set_executor(executions, lambda entry: True)
        live = host.register(new_run("r"))
        live.record(Sleep(StepId(hash_name("nap"), "nap", 0), duration=1_000))
        await live.suspend()
        store.holds = True
        clock.move_to(clock.now() + 1_000)
        await until(lambda: store.held)
        await a_moment()
        assert executions.began == []
        store.let_go()
        await until(lambda: executions.began)


async def test_events_that_meet_at_one_run_are_given_to_it_one_after_the_other(
    store: SlowStore, clock: VirtualClock
) -> None:
    """Each is decided upon the same state, so that all but the first are refused, twice."""
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        for name in "abc":
            step = StepId(hash_name(name), name, 0)
            live.record(WaitForEvent(step, StepKind.WAIT, (Alternative("", name),), 60_000))
        await live.suspend()
        store.holds = True
        sent = [asyncio.ensure_future(host.events.publish(NewEvent(n, n, b"{}"))) for n in "abc"]
        for left in (6, 2):
            async with asyncio.timeout(5):
                while len(store.held) < left:
                    await asyncio.sleep(0.001)
            store.let_go()
            store.holds = True
        store.let_go()
        await asyncio.gather(*sent)
        await until(lambda: not host.events.is_busy)
        entry = await store.entry("r")
        assert entry is not None
        assert [str(step.id) for step in entry.memo if step.is_final] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_sender_is_told_that_its_events_are_kept_once_they_are_on_disk(
    store: SlowStore, clock: VirtualClock, count: int
) -> None:
    now = clock.now()
    events = [Event(f"e{n}", "said", b"{}", now, now) for n in range(count)]
    async with serving(store, clock) as host:
        store.holds = True
        sending = asyncio.ensure_future(host.events.receive_all(events))
        await until(lambda: store.held)
        await a_moment()
        assert not sending.done()
        store.let_go()
        await sending
        assert len(await store.known_events([event.id for event in events])) == count


async def test_a_wait_finds_an_event_that_came_to_the_disk_right_before_it(
    store: SlowStore, clock: VirtualClock
) -> None:
    """When the wait was opened, the event could not be found; when the event was matched, the wait
    could not."""
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        await live.acknowledge()
        store.holds = True
        sending = asyncio.ensure_future(host.events.publish(NewEvent("e", "said", b"{}")))
        await until(lambda: store.held)
        step = StepId(hash_name("w"), "w", 0)
        live.record(WaitForEvent(step, StepKind.WAIT, (Alternative("", "said"),), 60_000))
        await a_moment()
        store.write(1)
        await sending
        await until(lambda: any(EventSettled("e") in held.change.facts for held in store.held))
        store.let_go()
        await until(lambda: live.awaited(step.hash) is None)


async def test_whoever_cancels_a_run_is_told_so_once_that_is_on_disk(
    store: SlowStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        host.register(new_run("executed"))
        idle = host.register(new_run("idle"))
        idle.record(Sleep(StepId(hash_name("nap"), "nap", 0), duration=60_000))
        await idle.suspend()
        for run_id in ("executed", "idle"):
            store.holds = True
            cancelling = asyncio.ensure_future(host.cancel(run_id, "by hand"))
            await until(lambda: store.held)
            await a_moment()
            assert not cancelling.done()
            store.let_go()
            assert await cancelling


async def test_what_may_have_ended_the_last_process_begins_once_its_claim_is_on_disk(
    store: SlowStore, clock: VirtualClock
) -> None:
    """Should it end this one as well, that has to count."""
    decision = register(new_run("r"), "they", None, clock.now())
    assert store.apply(decision.change)
    async with serving(store, clock) as host:
        executions = Executions(lambda live, entry: live.end(Complete(200, b"")))
        store.holds = True
        host.dispatcher.set_executor(executions, lambda entry: True)
        await until(lambda: store.held)
        await a_moment()
        assert executions.began == []
        store.let_go()
        await until(lambda: executions.began)
