"""An execution whose writes failed keeps its run until it notices: nobody else waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import (
    Alternative,
    Invoke,
    NewEvent,
    StepKind,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.host import Host
from durable_endpoints_server.live import LiveRun
from tests.durable_endpoints_server.helpers import (
    Executions,
    FlakyStore,
    anything,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


def wait_for(name: str, event: str, timeout: int = 60_000_000) -> WaitForEvent:
    return WaitForEvent(step(name), StepKind.WAIT, (Alternative("", event),), timeout)


@asynccontextmanager
async def executing(store: FlakyStore, clock: VirtualClock) -> AsyncIterator[tuple[Host, LiveRun]]:
    """An execution that waits for the event `paid`, and for another one that never comes. When it
    is executed again, it ends if it finds `paid` to be done, and waits if not."""

    async def again(live: LiveRun, _: object) -> None:
        live.listener = _Listener()
        for record in list(live.memo):
            if not record.is_final:
                live.watch(record)
        await (live.suspend() if live.awaited(hash_name("pay")) else live.end(Complete(200, b"")))

    async with serving(store, clock) as host:
        host.dispatcher.set_executor(Executions(again), lambda entry: True)
        live = host.register(new_run("r"))
        live.record(wait_for("never", "refunded", timeout=1_000))
        yield host, live


class _Listener:
    def resolved(self, step: object) -> bool:
        return False

    def stopped(self, reason: str) -> None: ...


async def notice(store: FlakyStore, clock: VirtualClock, host: Host, live: LiveRun) -> None:
    """What the SDK does: the execution gives way, finds that it cannot be written, and stops. Then
    the store works again."""
    clock.move_to(clock.now() + 1_000)
    leaving = asyncio.ensure_future(live.suspend())
    for _ in range(8):
        await asyncio.sleep(0.05)
        clock.move_to(clock.now() + 1_000)
    with pytest.raises(StorageError):
        await asyncio.wait_for(leaving, 5)
    await live.abandon()
    store.fails = None
    await until(lambda: host.live_run("r") is not live)


async def is_done(store: FlakyStore, name: str) -> bool:
    entry = await store.entry("r")
    assert entry is not None
    states = {record.id.name: record.state for record in entry.memo}
    return states.get(name) is StepState.DONE


async def until_done(store: FlakyStore, clock: VirtualClock, name: str) -> None:
    async with asyncio.timeout(10):
        while not await is_done(store, name):
            await asyncio.sleep(0.02)
            clock.move_to(clock.now() + 100)


async def test_an_event_that_it_could_not_take_keeps_no_wait_from_timing_out(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with executing(store, clock) as (host, live):
        live.record(wait_for("pay", "paid"))
        await until(lambda: not live.is_looking)
        await host.events.publish(NewEvent("e", "paid", b"7"))
        store.fails = anything  # before the event is matched a second time, and the run has it
        await until(lambda: live.has_failed)
        await notice(store, clock, host, live)
        await until_done(store, clock, "pay")


async def test_the_end_of_a_child_that_it_could_not_be_told_keeps_no_wait_from_timing_out(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with executing(store, clock) as (host, live):
        live.record(Invoke(step("child"), new_run("c")))
        await live.acknowledge()
        store.fails = lambda change: change.run_id == "r"
        await until(lambda: live.has_failed)  # the child has ended, and it was to be told
        host.recovery.settle_soon()
        await notice(store, clock, host, live)


async def test_a_signal_that_it_could_not_take_is_refused_at_once(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with executing(store, clock) as (host, live):
        wait = wait_for("pay", SIGNAL + "go")
        await live.open_signal(wait._replace(kind=StepKind.SIGNAL), replace=False)
        await until(lambda: not live.is_looking)
        store.fails = anything
        for _ in range(2):
            with pytest.raises(StorageError):
                await asyncio.wait_for(host.signals.send("go", b"1"), 5)
        await notice(store, clock, host, live)
