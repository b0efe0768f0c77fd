"""Retention: what is past it goes in portions, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from durable_endpoints.protocol.ops import (
    Alternative,
    Sleep,
    StepKind,
    StepRetry,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server import retention as module
from durable_endpoints_server.engine.facts import (
    Change,
    EventReceived,
    RequestSeen,
    StepWritten,
    Streamed,
    Sweep,
    states,
)
from durable_endpoints_server.engine.model import Event, Policy, Status
from durable_endpoints_server.engine.streams import Chunk, append, started
from durable_endpoints_server.engine.transitions import Resolve, decide, register
from durable_endpoints_server.store.base import Store
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints_server.helpers import POLICY, FlakyStore, new_run, serving, until

pytestmark = pytest.mark.anyio

DAY = 86_400_000
HOUR = 3_600_000


async def end_run(store: Store, clock: VirtualClock, run_id: str, **how: bool) -> None:
    decision = register(new_run(run_id), "me", None, clock.now())
    store.submit(decision.change)
    decision = decide(decision.run, Complete(200, b"x", **how), clock.now(), POLICY)
    await store.submit(decision.change).wait()


async def ids(store: Store) -> set[str]:
    return {line.run.id for line in (await store.list_runs(list(Status), None, 10_000)).lines}


async def test_ended_runs_go_when_their_time_is_over(clock: VirtualClock) -> None:
    store = FlakyStore()
    async with serving(store, clock, sweep_interval=0.005):
        await end_run(store, clock, "old")
        clock.move_to(clock.now() + 1 * DAY)
        await end_run(store, clock, "young")
        clock.move_to(clock.now() + 6 * DAY)
        await asyncio.sleep(0.03)
        assert await ids(store) == {"old", "young"}  # seven days to the millisecond
        clock.move_to(clock.now() + 1)
        await asyncio.sleep(0.03)
        assert await ids(store) == {"young"}


async def test_a_run_that_has_not_ended_is_kept_for_ever(clock: VirtualClock) -> None:
    store = FlakyStore()
    store.apply(register(new_run("r"), "me", None, clock.now()).change)
    async with serving(store, clock, sweep_interval=0.005):
        clock.move_to(clock.now() + 400 * DAY)
        await asyncio.sleep(0.03)
        assert await ids(store) == {"r"}


async def test_retention_is_a_setting_for_runs_and_for_events(clock: VirtualClock) -> None:
    store = FlakyStore()
    policy = Policy(run_retention=2 * HOUR, event_retention=1 * HOUR)
    async with serving(store, clock, sweep_interval=0.005, policy=policy):
        await end_run(store, clock, "r")
        now = clock.now()
        store.apply(Change((EventReceived(Event("e", "e", b"{}", now, now), settled=True),)))
        store.apply(Change((RequestSeen(now, "GET", "/", 200, 5, None),)))
        clock.move_to(now + HOUR + 1)
        await until(lambda: not store._events)
        assert await ids(store) == {"r"}
        assert len(await store.requests(10)) == 1
        clock.move_to(now + 2 * HOUR + 1)
        await until(lambda: not store._rows)
        assert await store.requests(10) == []


async def test_a_response_that_nobody_fetched_goes_after_an_hour(clock: VirtualClock) -> None:
    store = FlakyStore()
    async with serving(store, clock, sweep_interval=0.005):
        await end_run(store, clock, "r", until_delivered=True)
        clock.move_to(clock.now() + HOUR)
        await asyncio.sleep(0.03)
        ended = await store.ended("r")
        assert ended is not None
        assert ended.response == b"x"
        clock.move_to(clock.now() + 1)
        await asyncio.sleep(0.03)
        ended = await store.ended("r")
        assert ended is not None
        assert (ended.response, ended.omitted) == (None, "delivered")


async def test_it_goes_in_portions(
    clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0)
    monkeypatch.setattr(module, "_SHORT", 0)
    sweeps: list[Change] = []

    class Counting(SqliteStore):
        def submit(self, change, lane=None):  # type: ignore[no-untyped-def]
            if isinstance(change.facts[0], Sweep):
                sweeps.append(change)
            return super().submit(change, lane)

    store = Counting(tmp_path / "runs.db")
    await asyncio.gather(*(end_run(store, clock, f"r{n}") for n in range(12)))
    clock.move_to(clock.now() + 8 * DAY)
    async with serving(store, clock):
        async with asyncio.timeout(10):
            while await ids(store):
                await asyncio.sleep(0.01)
        assert len(sweeps) == 3  # five runs at once


async def test_nothing_of_a_run_is_left_in_any_table(clock: VirtualClock, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    now = clock.now()
    event = Event("e", "said", b"{}", now, now + 8 * DAY)  # which is kept for longer
    await store.submit(Change((EventReceived(event, settled=True),))).wait()
    decision = register(new_run("r", key="k"), "me", None, now)
    await store.submit(decision.change).wait()
    said = Alternative("", "said")
    steps = {name: StepId(hash_name(name), name, 0) for name in ("wait", "heard", "try", "nap")}
    heard = WaitForEvent(steps["heard"], StepKind.WAIT, (said,), HOUR)
    decision = decide(decision.run, heard, now, POLICY)
    fact = decision.change.facts[0]
    assert isinstance(fact, StepWritten)
    await store.submit(decision.change).wait()
    for command in (
        Resolve(fact.step, b"1", "e"),
        WaitForEvent(steps["wait"], StepKind.WAIT, (said,), HOUR),
        StepRetry(steps["try"], StepKind.RUN, b"{}", 1, delay=HOUR),
        Sleep(steps["nap"], duration=HOUR),
    ):
        decision = decide(decision.run, command, now, POLICY)
        await store.submit(decision.change).wait()
    log, records = append(started(1), [Chunk(steps[name].hash, 2, b"1") for name in steps])
    fence = "r", decision.run.generation, states(Status.RUNNING)
    await store.submit(Change((Streamed(tuple(records), log),), *fence)).wait()
    await store.submit(decide(decision.run, Complete(200, b"x"), now, POLICY).change).wait()
    read = store._writer.execute
    names = [name for (name,) in read("select name from sqlite_master where type = 'table'")]
    of_runs = [
        name
        for name in names
        if any(column[1] == "run_id" for column in read(f"pragma table_info({name})"))
    ]
    assert {"steps", "payloads", "attempts", "event_uses", "streams", "chunks"} <= {*of_runs}
    assert read("select count(*) from waits").fetchone() == (0,)
    assert read("select count(*) from steps where due is not null").fetchone() == (0,)
    sweep = Sweep(now + 10 * DAY, now, now, limit=1, runs=5)
    for _ in range(len(records) + 1):  # first the records of its stream
        await store.submit(Change((sweep,))).wait()
    counts = {name: read(f"select count(*) from {name}").fetchone()[0] for name in of_runs}
    assert not any(counts.values()), counts
    assert read("select count(*) from runs").fetchone() == (0,)
    assert await store.known_events(["e"])
    await store.close()


def portions(commit: float, each_run: float, count: int) -> list[int]:
    """How many runs are deleted in each portion where a commit and a run take so many seconds."""
    sizes, growing = [], module.Portions()
    for _ in range(count):
        sizes.append(growing.runs)
        growing.took(commit + growing.runs * each_run)
    return sizes


def test_portions_grow_as_long_as_writers_hardly_notice() -> None:
    assert portions(0.001, 0.00003, 8) == [5, 5, 10, 20, 40, 80, 160, 160]
    assert portions(0.001, 0.0012, 6) == [5, 5, 10, 10, 10, 10]
    assert portions(0.001, 0.1, 5) == [5, 5, 10, 5, 10]


def test_portions_grow_on_a_disk_that_is_slow_for_everybody() -> None:
    """Or the file would grow faster than they delete."""
    assert portions(0.05, 0.00003, 8) == [5, 5, 10, 20, 40, 80, 160, 160]


def test_a_disk_that_was_slow_once_does_not_make_portions_long_for_ever() -> None:
    growing = module.Portions()
    growing.took(1.0)
    for _ in range(10):
        growing.took(0.001)
    assert growing.runs == 160
    growing.took(0.5)
    assert growing.runs == 80


async def test_the_sweeper_survives_a_store_that_fails(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FlakyStore()
    await end_run(store, clock, "r")
    clock.move_to(clock.now() + 8 * DAY)
    store.fails = lambda change: isinstance(change.facts[0], Sweep)
    async with serving(store, clock, sweep_interval=0.005):
        await until(lambda: "could not be deleted" in caplog.text)
        store.fails, store.is_away = None, True
        await asyncio.sleep(0.02)
        store.is_away = False
        await until(lambda: not store._rows)
