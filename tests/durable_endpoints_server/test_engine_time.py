"""Engine time and the machine's clock, where they differ: one of the two is asked, never both."""

from __future__ import annotations

import orjson
import pytest

from durable_endpoints.protocol.ops import Alternative, Sleep, StepKind, WaitForEvent
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints.testing.clock import EPOCH
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.engine.transitions import Suspend, register
from tests.durable_endpoints_server.helpers import FlakyStore, new_run, serving, until

pytestmark = pytest.mark.anyio

_HOUR = 3_600_000


class SetBack(VirtualClock):
    """That of an engine whose machine's clock was set back by an hour."""

    def of_machine(self, instant: int) -> int:
        return instant + _HOUR


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


async def test_an_instant_to_sleep_until_is_one_of_the_machines_clock(store: FlakyStore) -> None:
    clock = SetBack()
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        until_then = live.record(Sleep(step("until"), until=clock.now() + 1_000))
        assert until_then.due == clock.now() + _HOUR + 1_000
        for_a_while = live.record(Sleep(step("while"), duration=1_000))
        assert for_a_while.due == clock.now() + 1_000


async def test_an_event_in_the_inbox_was_left_by_the_machines_clock(store: FlakyStore) -> None:
    """It would seem to be older than the run that waits for it."""
    clock = SetBack()
    async with serving(store, clock, inbox_interval=0.005) as host:
        live = host.register(new_run("r"))
        said = Alternative("", "said")
        live.record(WaitForEvent(step("hear"), StepKind.WAIT, (said,), 2 * _HOUR))
        live.leave(Suspend())
        await live.written()
        by_the_machine = clock.now() - _HOUR + 1
        event = {"id": "e", "name": "said", "data": {}}
        store.leave_message(by_the_machine, "event", orjson.dumps(event))
        run = None
        while run is None or run.status is Status.WAITING:
            run = await store.run("r")
            await host.catch_up()
    kept = await store.event("e")
    assert kept is not None
    assert kept.received_at == clock.now() + 1


async def test_a_host_begins_no_earlier_than_what_it_finds(store: FlakyStore) -> None:
    late = EPOCH + 24 * _HOUR
    store.apply(register(new_run("r"), "they", None, late).change)
    clock = VirtualClock()
    async with serving(store, clock) as host:
        assert clock.now() == late
        assert host.attached_at == late


async def test_an_end_is_found_again_too(store: FlakyStore, clock: VirtualClock) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        await live.acknowledge()
        clock.move_to(clock.now() + _HOUR)
        await live.end(Complete(200, None))
    later = VirtualClock()
    async with serving(store, later):
        await until(lambda: later.now() == clock.now())
