"""Recovery: what lost its execution goes on, innocent or not, and through a store that fails."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.ops import Sleep, StepDone, StepKind
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.protocol.streams import RecordKind
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, Streamed, states
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.streams import Chunk, append, started
from durable_endpoints_server.engine.transitions import (
    STREAM_SKIP,
    Cancel,
    Claim,
    Release,
    Suspend,
    decide,
    register,
)
from durable_endpoints_server.host import Host, HostOptions
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints_server.helpers import (
    POLICY,
    FlakyStore,
    anything,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


def done(name: str) -> StepDone:
    return StepDone(StepId(hash_name(name), name, 0), StepKind.RUN, b"[1, 2]")


def running(store: FlakyStore, clock: VirtualClock, run_id: str, *steps: str) -> Run:
    """A run that an earlier process executed when it died."""
    decision = register(new_run(run_id), "they", None, clock.now())
    store.apply(decision.change)
    for name in steps:
        decision = decide(decision.run, done(name), clock.now(), POLICY)
        assert store.apply(decision.change)
    return decision.run


async def stored(store: FlakyStore, run_id: str) -> Run:
    run = await store.run(run_id)
    assert run is not None
    return run


async def test_a_run_that_is_just_being_left_is_cancelled_after_that(
    clock: VirtualClock, tmp_path: Path
) -> None:
    class SlowDisk(SqliteStore):
        def _write(self, changes: Any, is_relaxed: bool) -> Any:
            time.sleep(0.05)
            return super()._write(changes, is_relaxed)

    async with serving(SlowDisk(tmp_path / "runs.db"), clock) as host:
        live = host.register(new_run("r"))
        await live.acknowledge()
        live.record(Sleep(StepId(hash_name("nap"), "nap", 0), duration=60_000))
        live.push(hash_name("a"), 1, [b'"written"'])
        await until(lambda: live.stream_written == 1)
        live.push(hash_name("a"), 1, [b'"on its way"'])
        live.leave(Suspend())  # which is not on disk yet
        assert await host.cancel("r", "enough")
        page = await host.store.stream_page("r", 0, 1_000)
        assert page is not None
        assert (page.status, [record.position for record in page.records]) == (
            Status.CANCELLED,
            [1, 2, 3],
        )


async def test_every_run_of_a_dead_process_is_ready_at_the_start(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for n in range(1_200):
        running(store, clock, f"r{n}", "a")
    async with serving(store, clock):
        run = await stored(store, "r1199")
        assert (run.status, run.reason, run.owner) == (Status.READY, "interrupted", "")
        assert (run.interruptions, run.lone_interruptions) == (1, 0)
        assert (run.steps, run.memo_bytes, run.last_order) == (1, 6, 1)
        assert await store.in_status(Status.RUNNING, 10) == []


async def test_a_run_of_this_process_is_not_lost(store: FlakyStore, clock: VirtualClock) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("mine"))
        await live.acknowledge()
        assert await host.recovery.interrupt_lost_runs() == 0
        assert (await stored(store, "mine")).status is Status.RUNNING


async def test_a_crowd_is_never_parked_and_the_lonely_is(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten deaths in company prove nothing; three alone do, after three in doubt."""
    runs = [running(store, clock, run_id) for run_id in ("one", "two")]
    for _ in range(10):
        async with serving(store, clock):
            pass
        for run in runs:
            ready = await stored(store, run.id)
            assert ready.status is Status.READY
            assert store.apply(decide(ready, Claim("they", None), clock.now(), POLICY).change)
    store.apply(decide(await stored(store, "two"), Cancel("x"), clock.now(), POLICY).change)
    for death in range(1, 4):
        async with serving(store, clock):
            pass
        run = await stored(store, "one")
        assert run.lone_interruptions == death
        if death < 3:
            assert run.status is Status.READY
            assert store.apply(decide(run, Claim("they", None), clock.now(), POLICY).change)
    assert (run.status, run.reason) == (Status.PARKED, "interrupted_too_often")
    assert "durable-endpoints runs retry one" in caplog.text
    assert "GET /x" in caplog.text


async def test_a_start_whose_store_fails_fails_and_the_next_one_recovers(
    store: FlakyStore, clock: VirtualClock
) -> None:
    running(store, clock, "r")
    store.fails = anything
    with pytest.raises(StorageError):
        async with serving(store, clock):
            raise AssertionError("it started")
    store.fails = None
    async with serving(store, clock):
        assert (await stored(store, "r")).status is Status.READY


async def test_an_abandoned_run_is_released_once_the_store_works(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(store, clock) as host:
        live = host.register(new_run("r"))
        live.record(done("kept"))
        await live.acknowledge()
        store.fails = anything
        live.record(done("lost"))
        await live.abandon()
        assert host.live == {}
        await until(lambda: "the store still fails" in caplog.text)
        assert (await stored(store, "r")).status is Status.RUNNING
        store.fails = None
        async with asyncio.timeout(5):
            while (await stored(store, "r")).status is Status.RUNNING:
                await asyncio.sleep(0.01)
        run = await stored(store, "r")
        assert (run.status, run.reason) == (Status.READY, "interrupted")
        assert run.interruptions == 0  # the disk was at fault, not the run
        assert (run.steps, run.memo_bytes, run.last_order) == (1, 6, 1)  # as on disk


async def test_a_run_that_was_never_written_needs_no_rescue(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as host:
        store.fails = anything
        live = host.register(new_run("r"))
        await live.abandon()
        store.fails = None
        await asyncio.sleep(0.3)
        assert await store.run("r") is None
        assert host.is_quiet
        assert host.recovery._stranded == set()


async def test_a_run_executed_elsewhere_outlives_this_process_and_can_be_held_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    running(store, clock, "theirs", "a")
    host = Host(store, HostOptions("me", executes_runs=False), clock)
    host.is_executed_elsewhere = lambda run: run.owner == "they"
    await host.attach()
    try:
        entry = await store.entry("theirs")
        assert entry is not None
        assert entry.run.status is Status.RUNNING
        live = host.resume(entry)
        live.record(done("b"))
        await live.acknowledge()
        assert [step.order for step in live.memo] == [1]
        live.drop()
        assert host.live == {}
        entry = await store.entry("theirs")
        assert entry is not None
        assert [str(step.id) for step in entry.memo] == ["a", "b"]
    finally:
        await host.stop()


async def test_where_no_handler_runs_the_end_of_the_process_is_held_against_no_run(
    store: FlakyStore, clock: VirtualClock
) -> None:
    running(store, clock, "r")
    host = Host(store, HostOptions("they/anew", executes_runs=False), clock)
    await host.attach()
    try:
        run = await stored(store, "r")
        assert (run.status, run.reason, run.interruptions) == (Status.READY, "interrupted", 0)
    finally:
        await host.stop()


async def test_a_ready_run_that_could_not_be_executed_is_announced_once_more(
    store: FlakyStore, clock: VirtualClock
) -> None:
    run = decide(running(store, clock, "r"), Release("x"), clock.now(), POLICY)
    assert store.apply(run.change)
    async with serving(store, clock) as host:
        announced: list[str] = []
        host.dispatcher.wake = lambda run: announced.append(run.id)  # type: ignore[method-assign]
        host.recovery.rescue_soon("r")
        await until(lambda: announced == ["r"])


async def test_runs_that_are_given_up_later_are_executed_at_once(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Not only when somebody looks into the store again."""
    async with serving(store, clock) as host:
        run = running(store, clock, "r")
        announced: list[str] = []
        host.dispatcher.wake = lambda run: announced.append(run.id)  # type: ignore[method-assign]
        await host.recovery.give_up([(run, Release("x"))])
        assert announced == ["r"]


async def test_after_a_start_of_the_machine_no_position_of_a_stream_is_given_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for run_id, boot in (("here", "this boot"), ("there", "another boot")):
        decision = register(new_run(run_id), f"{boot}/1", None, clock.now())
        store.apply(decision.change)
    host = Host(store, HostOptions("this boot/2"), clock)
    await host.attach()
    here, there = await store.stream("here"), await store.stream("there")
    assert here is None
    assert there is not None
    assert (there.tail, there.is_wary) == (STREAM_SKIP, True)
    await host.stop()


async def test_what_a_vanished_execution_has_streamed_is_withdrawn_if_its_run_is_cancelled(
    store: FlakyStore, clock: VirtualClock
) -> None:
    run = running(store, clock, "r")
    stream, records = append(started(1), [Chunk(hash_name("a"), 1, b"1")])
    fence = run.id, run.generation, states(Status.RUNNING)
    assert store.apply(Change((Streamed(tuple(records), stream),), *fence))
    async with serving(store, clock) as host:
        assert await host.cancel("r", "by hand")
        page = await store.stream_page("r", 0, 1_000)
        assert page is not None
        assert [record.kind for record in page.records] == [RecordKind.DATA, RecordKind.ROLLBACK]
