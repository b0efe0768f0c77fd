"""The dispatcher: what is ready is executed, some at a time, in order, and the poisoned alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints.protocol.errors import LostRunError, StorageError
from durable_endpoints.protocol.ops import Alternative, NewEvent, StepKind, StepState, WaitForEvent
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server import dispatcher as module
from durable_endpoints_server.dispatcher import Nobody, Place
from durable_endpoints_server.engine.facts import Change, RunChanged, StepResolved
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Claim,
    Interrupt,
    Release,
    Resolve,
    Suspend,
    decide,
    register,
)
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry, Lane, Ticket
from durable_endpoints_server.store.sqlite import SqliteStore
from durable_endpoints_server.store.sqlite_rows import Cells
from tests.durable_endpoints_server.helpers import (
    POLICY,
    Executions,
    FlakyStore,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


def ready(
    store: FlakyStore, run_id: str, at: int = 1_000, interruptions: int = 0, **options: Any
) -> Run:
    decision = register(new_run(run_id, **options), "they", None, at)
    store.apply(decision.change)
    for _ in range(interruptions):
        for command in (Interrupt(alone=False), Claim("they", None)):
            decision = decide(decision.run, command, at, POLICY)
            assert store.apply(decision.change)
    decision = decide(decision.run, Release("released"), at, POLICY)
    assert store.apply(decision.change)
    return decision.run


def anybody(entry: Entry) -> bool:
    return True


async def complete(live: LiveRun, entry: Entry) -> None:
    await live.end(Complete(200, b"done"))


def held_up(gate: asyncio.Event) -> Callable[[LiveRun, Entry], Any]:
    async def leave(live: LiveRun, entry: Entry) -> None:
        await gate.wait()
        await complete(live, entry)

    return leave


async def statuses(store: FlakyStore) -> dict[str, Status]:
    return {
        line.run.id: line.run.status
        for line in (await store.list_runs(list(Status), None, 99)).lines
    }


async def test_what_was_ready_before_is_executed_longest_ready_first(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for n in (3, 1, 2):
        ready(store, f"r{n}", at=n * 1_000)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 3 and host.is_quiet)
        assert executions.began == ["r1", "r2", "r3"]
        assert set((await statuses(store)).values()) == {Status.COMPLETED}


async def test_nothing_is_executed_before_there_is_an_executor(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ready(store, "r")
    executions = Executions(complete)
    async with serving(store, clock) as host:
        await asyncio.sleep(0.02)
        assert (await statuses(store))["r"] is Status.READY
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: executions.began)


async def test_a_run_whose_application_is_not_there_waits_for_it(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for run_id in ("here", "elsewhere"):
        ready(store, run_id)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, lambda entry: entry.run.id == "here")
        await until(lambda: executions.began and host.is_quiet)
        assert (await statuses(store))["elsewhere"] is Status.READY
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 2)
        assert executions.began == ["here", "elsewhere"]


async def test_a_run_that_becomes_ready_is_executed_at_once(
    store: FlakyStore, clock: VirtualClock
) -> None:
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await asyncio.sleep(0.01)
        run = ready(store, "r")
        host.announce(run, None, None)
        await until(lambda: executions.began == ["r"], patience=0.5)


async def test_a_run_that_is_announced_twice_is_executed_once(
    store: FlakyStore, clock: VirtualClock
) -> None:
    gate = asyncio.Event()
    executions = Executions(held_up(gate))
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        run = ready(store, "r")
        for _ in range(3):
            host.announce(run, None, None)
        await until(lambda: executions.began)
        host.announce(run, None, None)  # while it is executed
        await asyncio.sleep(0.01)
        gate.set()
        await until(lambda: host.is_quiet)
        assert executions.began == ["r"]


async def test_so_many_at_once_and_no_more(store: FlakyStore, clock: VirtualClock) -> None:
    for n in range(20):
        ready(store, f"r{n:02}", at=n)

    async def leave(live: LiveRun, entry: Entry) -> None:
        await asyncio.sleep(0.002)
        await complete(live, entry)

    executions = Executions(leave)
    async with serving(store, clock, max_executions=4) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 20 and host.is_quiet)
        assert executions.most == 4
        assert executions.began == sorted(executions.began)


async def test_more_than_a_page_of_ready_runs_are_all_executed(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 10)
    executions = Executions(complete)
    async with serving(store, clock, max_executions=3) as host:
        runs = [ready(store, f"r{n:02}", at=n) for n in range(35)]
        for run in runs:
            host.announce(run, None, None)
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 35 and host.is_quiet)
        assert sorted(executions.began) == [run.id for run in runs]


async def test_a_run_that_nobody_announced_is_found(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESCAN", 0.02)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await asyncio.sleep(0.01)
        ready(store, "r")
        await until(lambda: executions.began == ["r"])


async def test_a_run_that_changed_meanwhile_is_not_executed(
    store: FlakyStore, clock: VirtualClock
) -> None:
    executions = Executions(complete)
    async with serving(store, clock) as host:
        run = ready(store, "r")
        store.apply(decide(run, Cancel("cancelled"), 2_000, POLICY).change)
        host.announce(run, None, None)
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: host.is_quiet)
        assert executions.began == []


async def test_a_claim_that_is_refused_is_looked_at_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """Something resolved a step between the read and the claim: the next read sees it."""
    run = ready(store, "r")

    async def leave(live: LiveRun, entry: Entry) -> None:
        with contextlib.suppress(LostRunError):
            await complete(live, entry)

    executions = Executions(leave)
    async with serving(store, clock) as host:
        host.announce(run, None, None)
        refuse = [True]
        original = store.apply

        def apply(change: Change) -> bool:
            claims = any(
                isinstance(fact, RunChanged) and fact.run.owner == "me" for fact in change.facts
            )
            if claims and refuse:
                refuse.pop()
                return False
            return original(change)

        store.apply = apply  # type: ignore[method-assign]
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 2 and host.is_quiet)
        assert (await statuses(store))["r"] is Status.COMPLETED


async def test_an_executor_that_raises_holds_up_nobody(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(3):
        ready(store, f"r{n}", at=n)

    async def leave(live: LiveRun, entry: Entry) -> None:
        if live.id == "r0":
            live._forget()
            raise ValueError("a bug of the executor's")
        await complete(live, entry)

    executions = Executions(leave)
    async with serving(store, clock, max_executions=1) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 3 and host.is_quiet)
    assert "execute r0 failed" in caplog.text


async def test_nothing_is_started_while_draining(store: FlakyStore, clock: VirtualClock) -> None:
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await asyncio.sleep(0.01)
        host.begin_drain()
        host.announce(ready(store, "r"), None, None)
        await asyncio.sleep(0.02)
        assert executions.began == []
        assert (await statuses(store))["r"] is Status.READY


async def test_a_store_that_is_away_delays_and_loses_nothing(
    store: FlakyStore,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RESCAN", 0.02)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        await asyncio.sleep(0.01)
        run = ready(store, "r")
        store.is_away = True
        host.dispatcher.set_executor(executions, anybody)
        host.announce(run, None, None)
        await asyncio.sleep(0.05)
        assert executions.began == []
        store.is_away = False
        await until(lambda: executions.began == ["r"])
        await until(lambda: host.is_quiet)
    assert "could not be executed" in caplog.text or "could not be read" in caplog.text


async def test_what_could_not_be_read_is_read_again_soon(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells of it once more, and the next look of the safety net is far away."""
    monkeypatch.setattr(module, "_AFTER_FAILURE", 0.02)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        await asyncio.sleep(0.01)
        ready(store, "r")
        store.is_away = True
        host.dispatcher.set_executor(executions, anybody)
        await asyncio.sleep(0.01)
        store.is_away = False
        await until(lambda: executions.began == ["r"])


async def test_a_run_that_could_not_be_read_is_executed_once_it_can(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ask, fails = store.entry, True

    async def entry(run_id: str) -> Entry | None:
        if fails:
            raise StorageError("the disk reports an error")
        return await ask(run_id)

    store.entry = entry  # type: ignore[method-assign]
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        host.announce(ready(store, "r"), None, None)
        await until(lambda: host.recovery.will_rescue("r"))
        fails = False
        await until(lambda: executions.began == ["r"])


async def test_more_runs_than_a_page_that_become_ready_together_are_all_executed(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 5)
    executions = Executions(complete)
    async with serving(store, clock, max_executions=1) as host:
        host.dispatcher.set_executor(executions, anybody)
        await asyncio.sleep(0.01)
        for run in [ready(store, f"r{n}", at=n) for n in range(23)]:
            host.announce(run, None, None)
        await until(lambda: len(executions.began) == 23)


async def test_nothing_is_executed_that_was_read_as_draining_began(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ask, reading, may_go_on = store.entry, asyncio.Event(), asyncio.Event()

    async def slowly(run_id: str) -> Entry | None:
        found = await ask(run_id)
        reading.set()
        await may_go_on.wait()
        return found

    store.entry = slowly  # type: ignore[method-assign]
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        host.announce(ready(store, "r"), None, None)
        await reading.wait()
        host.begin_drain()
        may_go_on.set()
        await until(lambda: not host.dispatcher.is_busy)
        assert executions.began == []


# Quarantine


async def test_the_poisoned_wait_for_a_quiet_moment_and_are_executed_alone(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ready(store, "poison", at=1, interruptions=3)
    for n in range(5):
        ready(store, f"r{n}", at=10 + n)
    beside: dict[str, int] = {}
    executions: Executions

    async def leave(live: LiveRun, entry: Entry) -> None:
        beside[live.id] = executions.running
        await asyncio.sleep(0.005)
        beside[live.id] = max(beside[live.id], executions.running)
        await complete(live, entry)

    executions = Executions(leave)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 6 and host.is_quiet)
    assert executions.began[-1] == "poison"
    assert beside["poison"] == 1
    assert max(beside.values()) == 5


async def test_the_poisoned_wait_for_requests_too(store: FlakyStore, clock: VirtualClock) -> None:
    ready(store, "poison", at=1, interruptions=3)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        request = host.register(new_run("of a request"))
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: host.dispatcher.alone)
        await asyncio.sleep(0.06)  # it looks every 0.05 s
        assert executions.began == []
        await request.release("done")
        await until(lambda: "poison" in executions.began)


async def test_nothing_is_executed_beside_a_poisoned_run(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ready(store, "poison", at=1, interruptions=3)
    gate = asyncio.Event()
    executions = Executions(held_up(gate))
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: executions.began == ["poison"])
        host.announce(ready(store, "r"), None, None)
        await asyncio.sleep(0.02)
        assert executions.began == ["poison"]
        gate.set()
        await until(lambda: executions.began == ["poison", "r"])


async def test_several_poisoned_runs_are_executed_one_after_the_other(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for n in range(3):
        ready(store, f"p{n}", at=n, interruptions=3)

    async def leave(live: LiveRun, entry: Entry) -> None:
        await asyncio.sleep(0.005)
        await complete(live, entry)

    executions = Executions(leave)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: len(executions.began) == 3 and host.is_quiet)
    assert executions.most == 1
    assert executions.began == ["p0", "p1", "p2"]


async def test_a_new_request_is_held_back_while_one_is_alone_but_not_for_long(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ADMISSION", 0.2)
    gate = asyncio.Event()
    ready(store, "poison", interruptions=3)
    executions = Executions(held_up(gate))
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: executions.began)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await host.dispatcher.admit()
        assert 0.15 < loop.time() - began < 2
        waiting = asyncio.create_task(host.dispatcher.admit())
        gate.set()
        await asyncio.wait_for(waiting, 0.15)
        await host.dispatcher.admit()


async def test_a_run_for_which_nobody_is_free_waits_beside_those_of_its_own_app_only(
    store: FlakyStore, clock: VirtualClock
) -> None:
    gates = {name: asyncio.Event() for name in ("shop1", "shop2", "bank1")}
    free = {"shop": 1, "bank": 1}

    async def execute(live: LiveRun, entry: Entry) -> None:
        began.append(live.id)
        await gates[live.id].wait()
        await complete(live, entry)
        free[entry.app] += 1
        host.dispatcher.make_room(entry.app)

    def place(entry: Entry) -> Place | Nobody:
        if entry.app not in free:
            return Nobody.HERE
        if not free[entry.app]:
            return Nobody.FREE
        free[entry.app] -= 1
        return Place(f"worker of {entry.app}", execute)

    began: list[str] = []
    for n, (run_id, app) in enumerate(
        (("gone", "gone"), ("shop1", "shop"), ("shop2", "shop"), ("bank1", "bank"))
    ):
        ready(store, run_id, at=n, app=app)
    async with serving(store, clock) as host:
        host.dispatcher.place_by(place)
        await until(lambda: sorted(began) == ["bank1", "shop1"])
        run = await store.run("bank1")
        assert run is not None
        assert run.owner == "worker of bank"
        gates["bank1"].set()
        await asyncio.sleep(0.02)
        assert "shop2" not in began
        gates["shop1"].set()
        await until(lambda: "shop2" in began)
        gates["shop2"].set()
        await until(lambda: host.live == {})
        assert (await statuses(store))["gone"] is Status.READY


async def test_room_that_a_waiting_run_does_not_take_is_for_the_next(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """One was cancelled while it waited; the process of another has still enough to do."""
    gates = {name: asyncio.Event() for name in ("a1", "b1", "a2", "b2", "a3")}
    free = {"/a": 1, "/b": 1}

    async def execute(live: LiveRun, entry: Entry) -> None:
        began.append(live.id)
        await gates[live.id].wait()
        await complete(live, entry)
        free[entry.root_path] += 1
        host.dispatcher.make_room(entry.app)

    def place(entry: Entry) -> Place | Nobody:
        if not free[entry.root_path]:
            return Nobody.FREE
        free[entry.root_path] -= 1
        return Place("a worker", execute)

    began: list[str] = []
    for n, run_id in enumerate(("a1", "b1", "b2", "a2", "a3")):
        ready(store, run_id, at=n, app="shop", root_path=f"/{run_id[0]}")
    async with serving(store, clock) as host:
        host.dispatcher.place_by(place)
        await until(lambda: began == ["a1", "b1"])
        await asyncio.sleep(0.01)
        assert await host.cancel("a2", "cancelled")
        gates["a1"].set()
        await until(lambda: began == ["a1", "b1", "a3"])
        gates["b1"].set()
        await until(lambda: began == ["a1", "b1", "a3", "b2"])
        for gate in gates.values():
            gate.set()
        await until(lambda: host.live == {})


async def test_many_runs_that_have_no_place_hide_none_that_has(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 10)
    for n in range(25):
        ready(store, f"gone{n}", at=n, app="gone")
        ready(store, f"full{n}", at=n, app="full")
    for n in range(15):
        ready(store, f"shop{n:02}", at=100 + n, app="shop")
    executions = Executions(complete)

    def place(entry: Entry) -> Place | Nobody:
        if entry.app == "shop":
            return Place("worker", executions)
        return Nobody.HERE if entry.app == "gone" else Nobody.FREE

    async with serving(store, clock) as host:
        host.dispatcher.place_by(place)
        await until(lambda: len(executions.began) == 15)
        assert executions.began == sorted(executions.began)


async def test_what_comes_while_the_store_is_asked_is_not_overlooked(
    store: FlakyStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run becomes ready behind the back of a look into the store, and has no place; then there
    is one, before that look ends."""
    asked, answer = asyncio.Event(), asyncio.Event()
    look = store.in_status

    async def slow(status: Status, *more: Any) -> list[Run]:
        found = await look(status, *more)
        if status is Status.READY and not asked.is_set():
            asked.set()
            await answer.wait()
        return found

    monkeypatch.setattr(store, "in_status", slow)
    executions = Executions(complete)
    async with serving(store, clock) as host:
        host.dispatcher.set_executor(executions, anybody)
        await asked.wait()
        ready(store, "r")
        host.dispatcher.look_again()
        answer.set()
        await until(lambda: executions.began == ["r"])


# Claimed while what makes it ready is being written


def suspended(run_id: str, clock: VirtualClock) -> list[Change]:
    """What makes a run that waits for the event `go`."""
    wait = StepId(hash_name("w"), "w", 0)
    decision = register(new_run(run_id), "they", None, clock.now())
    changes = [decision.change]
    alternatives = (Alternative("go", "go", ()),)
    for command in (WaitForEvent(wait, StepKind.WAIT, alternatives, 60_000), Suspend()):
        decision = decide(decision.run, command, clock.now(), POLICY)
        changes.append(decision.change)
    return changes


def claims(change: Change) -> bool:
    return any(
        isinstance(fact, RunChanged) and fact.run.status is Status.RUNNING for fact in change.facts
    )


def resolves(change: Change) -> bool:
    return any(isinstance(fact, StepResolved) for fact in change.facts)


GO = NewEvent("e", "go", b"{}")


class Batches(SqliteStore):
    """A store that notes of how many changes each of its writes was."""

    def __init__(self, path: Path) -> None:
        self.sizes: list[int] = []
        super().__init__(path)

    def _write(self, changes: Sequence[list[Cells]], is_relaxed: bool) -> Collection[int]:
        self.sizes.append(len(changes))
        return super()._write(changes, is_relaxed)


async def test_a_run_that_an_event_wakes_is_claimed_in_the_same_write(
    tmp_path: Path, clock: VirtualClock
) -> None:
    store = Batches(tmp_path / "runs.db")
    for change in suspended("r", clock):
        await store.submit(change).wait()
    written: list[list[int]] = []
    seen: list[StepState] = []

    async def leave(live: LiveRun, entry: Entry) -> None:
        written.append([*store.sizes])
        seen.extend(step.state for step in entry.memo)
        await complete(live, entry)

    async with serving(store, clock) as host:
        host.dispatcher.set_executor(leave, anybody)
        await asyncio.sleep(0.05)
        store.sizes.clear()
        await host.events.publish(GO)
        await until(lambda: written)
        assert written == [[2]], "the event, and what it resolves with the claim"
        assert seen == [StepState.DONE]
        await until(lambda: host.is_quiet)


async def test_a_run_that_was_cancelled_just_before_its_event_came_is_not_executed(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for change in suspended("r", clock):
        assert store.apply(change)
    submit, executed = store.submit, 0

    def late(change: Change, lane: Lane | None = None) -> Ticket:
        if resolves(change):
            run = store._rows["r"].run
            assert store.apply(decide(run, Cancel("because"), clock.now(), POLICY).change)
        return submit(change, lane)

    async def leave(live: LiveRun, entry: Entry) -> None:
        nonlocal executed
        executed += not live.has_left

    async with serving(store, clock) as host:
        host.dispatcher.set_executor(leave, anybody)
        store.submit = late  # type: ignore[method-assign]
        await host.events.publish(GO)
        await until(lambda: host.is_quiet)
        assert not executed
        assert await statuses(store) == {"r": Status.CANCELLED}


async def test_a_run_whose_claim_cannot_be_written_goes_on_once_the_store_works_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    for change in suspended("r", clock):
        assert store.apply(change)
    began: list[Status] = []

    async def leave(live: LiveRun, entry: Entry) -> None:
        if not live.has_left:
            began.append(store._rows["r"].run.status)
            await complete(live, entry)

    async with serving(store, clock) as host:
        host.dispatcher.set_executor(leave, anybody)
        store.fails = claims
        await host.events.publish(GO)
        await until(lambda: store.refused)
        store.fails = None
        await until(lambda: began)
        assert began == [Status.RUNNING]
        await until(lambda: host.is_quiet)
        assert await statuses(store) == {"r": Status.COMPLETED}


async def test_a_run_that_an_event_wakes_waits_for_room(
    store: FlakyStore, clock: VirtualClock
) -> None:
    ready(store, "first")
    for change in suspended("r", clock):
        assert store.apply(change)
    gate = asyncio.Event()
    executions = Executions(held_up(gate))
    async with serving(store, clock, max_executions=1) as host:
        host.dispatcher.set_executor(executions, anybody)
        await until(lambda: executions.began)
        await host.events.publish(GO)
        await asyncio.sleep(0.02)
        assert executions.began == ["first"]
        gate.set()
        await until(lambda: len(executions.began) == 2)
        assert executions.most == 1
        await until(lambda: host.is_quiet)


async def test_what_a_run_was_resolved_with_just_before_its_event_came_is_what_is_executed(
    store: FlakyStore, clock: VirtualClock
) -> None:
    """The other resolution makes the very generation that a claim of this one would rely on."""
    for change in suspended("r", clock):
        assert store.apply(change)
    submit, seen = store.submit, list[bytes | None]()

    def late(change: Change, lane: Lane | None = None) -> Ticket:
        if resolves(change):
            store.submit = submit  # type: ignore[method-assign]
            [step] = store._rows["r"].steps.values()
            other = decide(store._rows["r"].run, Resolve(step, b'"other"'), clock.now(), POLICY)
            assert store.apply(other.change)
        return submit(change, lane)

    async def leave(live: LiveRun, entry: Entry) -> None:
        if not live.has_left:
            seen.extend(step.value for step in entry.memo)
            await complete(live, entry)

    async with serving(store, clock) as host:
        host.dispatcher.set_executor(leave, anybody)
        store.submit = late  # type: ignore[method-assign]
        await host.events.publish(GO)
        host.dispatcher.look_again()
        await until(lambda: seen)
        assert seen == [b'"other"']
        await until(lambda: host.is_quiet)
