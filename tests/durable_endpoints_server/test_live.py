"""An execution's hold on its run: what reaches it while it goes on, and what it leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import (
    Alternative,
    NewEvent,
    Sleep,
    StepDone,
    StepKind,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, EventReceived
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.engine.transitions import Cancel, Claim, decide
from durable_endpoints_server.host import Host
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Match
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


def hearing(name: str, event: str = "said", timeout: int = 1_000) -> WaitForEvent:
    return WaitForEvent(step(name), StepKind.WAIT, (Alternative("", event),), timeout)


class Listening:
    """An execution that notes what it is told."""

    def __init__(self, live: LiveRun) -> None:
        self.told: list[StepRecord] = []
        self.stop_reason = ""
        self.takes_it = True
        """Whether the handler will see what is resolved."""
        live.listener = self

    def resolved(self, step: StepRecord) -> bool:
        self.told.append(step)
        return self.takes_it

    def stopped(self, reason: str) -> None:
        self.stop_reason = reason


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def claimed(host: Host, run_id: str) -> LiveRun:
    """The next execution of a run that is ready."""
    entry = await host.store.entry(run_id)
    assert entry is not None
    decision = decide(entry.run, Claim("me", None), host.clock.now(), POLICY)
    return host.adopt(decision, entry.memo, entry.stream)


async def test_a_step_is_told_of_each_time_that_its_next_try_is_due(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        for attempt in (1, 2, 3):
            live.record(StepRetry(step("a"), StepKind.RUN, b"{}", attempt, delay=1_000))
            clock.move_to(clock.now() + 1_000)
            await until(lambda attempt=attempt: len(listening.told) == attempt)
            assert (listening.told[-1].state, listening.told[-1].due) == (StepState.RETRYING, None)


async def test_a_step_that_is_done_is_not_tried_again_when_its_next_try_was_due(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        live.record(StepRetry(step("a"), StepKind.RUN, b"{}", 1, delay=1_000))
        live.record(StepDone(step("a"), StepKind.RUN, b"1", attempt=2))
        clock.move_to(clock.now() + 1_000)
        await settle()
        assert listening.told == []


async def test_a_wait_of_an_earlier_execution_is_resolved_in_this_one(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Its handler has not come to it yet."""
    async with serving(store, clock) as host:
        first = host.register(new_run("r"))
        first.record(hearing("w"))
        await first.release("x")
        listening = Listening(await claimed(host, "r"))
        await host.events.publish(NewEvent("e", "said", b"{}"))
        await until(lambda: listening.told)
        assert listening.told[0].state is StepState.DONE


async def test_a_run_is_not_left_before_what_it_waits_for_was_looked_up(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        event = Event("e", "said", b"{}", clock.now(), clock.now())
        store.apply(Change((EventReceived(event, settled=True),)))
        live.record(hearing("w"))
        await live.suspend()
        run = await store.run("r")
        assert run is not None
        assert (run.status, run.reason) == (Status.READY, "resolved")


async def test_what_a_handler_does_not_see_any_more_is_for_the_next_execution(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        listening.takes_it = False
        live.record(hearing("w"))
        await settle()
        await host.events.publish(NewEvent("e", "said", b"{}"))
        await until(lambda: listening.told)
        await live.suspend()
        run = await store.run("r")
        assert run is not None
        assert (run.status, run.reason) == (Status.READY, "resolved")


async def test_a_timeout_gives_way_to_an_event_that_was_left_in_time(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock, inbox_interval=3_600.0) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        live.record(hearing("w"))
        await settle()
        clock.move_to(clock.now() + 999)
        message = b'{"id": "e", "name": "said", "data": 7, "ts": null}'
        store.leave_message(clock.now(), "event", message)
        clock.move_to(clock.now() + 1)
        await until(lambda: listening.told)
        assert b'"data":7' in (listening.told[0].value or b"")


async def test_a_timeout_looks_up_once_more_what_could_not_be_read(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """An event that came before its wait; first the disk fails, then nothing is wrong."""
    ask, fails = store.waits_of, True

    async def waits_of(run_id: str) -> list[Match]:
        if fails:
            raise StorageError("the disk reports an error")
        return await ask(run_id)

    store.waits_of = waits_of  # type: ignore[method-assign]
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        event = Event("e", "said", b"7", clock.now(), clock.now())
        store.apply(Change((EventReceived(event, settled=True),)))
        live.record(hearing("w"))
        await settle()
        clock.move_to(clock.now() + 1_000)  # it is looked at, and the disk fails still
        await settle()
        assert listening.told == []
        fails = False
        clock.move_to(clock.now() + 1_000)
        await until(lambda: listening.told)
        assert b'"data":7' in (listening.told[0].value or b"")


async def test_a_run_may_not_take_longer_in_a_later_execution(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        first = host.register(new_run("r", max_runtime=1_000))
        first.record(StepDone(step("a"), StepKind.RUN, b"1"))
        await first.release("x")
        listening = Listening(await claimed(host, "r"))
        clock.move_to(clock.now() + 1_000)
        await until(lambda: listening.stop_reason)
        assert listening.stop_reason == "timed_out"


async def test_nothing_rings_for_a_run_that_was_left(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Or each that sleeps for a year would be held in memory for a year."""
    async with serving(store, clock) as host:
        for number in range(5):
            live = host.register(new_run(f"r{number}", max_runtime=86_400_000))
            live.record(Sleep(step("nap"), duration=3_600_000))
            await live.suspend()
        await settle()
        assert len([alarm for *_, alarm in clock._alarms if not alarm.is_void]) == 1


async def test_whoever_waits_hears_of_a_run_that_is_stopped_while_it_is_executed(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        waiting = asyncio.ensure_future(host.waiters.wait("r", 3_600_000))
        await settle()
        assert await host.cancel("r", "by hand")
        ended = await asyncio.wait_for(waiting, 1)
        assert ended is not None
        assert (ended.run.status, listening.stop_reason) == (Status.CANCELLED, "cancelled")


async def test_a_run_that_could_not_be_stopped_goes_on_once_the_store_works(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        listening = Listening(live)
        store.fails = anything
        with pytest.raises(StorageError):
            await host.cancel("r", "by hand")
        assert listening.stop_reason == "lost"
        store.fails = None
        async with asyncio.timeout(5):
            while (run := await store.run("r")) is None or run.status is not Status.READY:
                await asyncio.sleep(0.01)


async def test_a_signal_that_is_lost_with_its_execution_was_not_taken(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Somebody else has changed the run, of which this execution does not know."""
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        go = Alternative("", f"{SIGNAL}go")
        wait = WaitForEvent(step("go"), StepKind.SIGNAL, (go,), 60_000)
        await live.open_signal(wait, replace=False)
        await until(lambda: not live.is_looking)
        assert store.apply(decide(live.run, Cancel("elsewhere"), clock.now(), POLICY).change)
        assert not await live.take(step("go").hash, b"1")
        assert live.was_refused


async def test_chunks_of_a_try_that_is_over_are_not_streamed(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Its thread goes on, although the try has failed."""
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        live.push(step("a").hash, 1, [b'"first"'])
        live.record(StepRetry(step("a"), StepKind.RUN, b"{}", 1, delay=1_000))
        live.push(step("a").hash, 1, [b'"late"'])
        live.push(step("a").hash, 2, [b'"second"'])
        live.record(StepDone(step("a"), StepKind.RUN, b"1", attempt=2))
        await live.acknowledge()
        data = [record.data for record in store._records("r")]
        assert data == [b'"first"', b"", b'"second"', b""]


async def test_each_chunk_is_written_soon(store: FlakyStore, clock: VirtualClock) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        for count in (1, 2, 3):
            live.push(step("a").hash, 1, [b'"word"'])
            await until(lambda count=count: live.stream_written == count)


async def test_an_event_that_meets_a_run_as_it_is_stopped_reaches_the_others(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(store, clock) as host:
        stopped, other = host.register(new_run("r")), host.register(new_run("s"))
        listening = Listening(other)
        for live in (stopped, other):
            live.record(hearing("w", timeout=60_000))
        await settle()
        stopped._apply(Cancel("by hand"))  # it is on its way to the disk
        assert await stopped.offer(step("w").hash, b"1", "e", again=False)
        await host.events.publish(NewEvent("e", "said", b"{}"))
        await until(lambda: listening.told)
        assert not caplog.records
