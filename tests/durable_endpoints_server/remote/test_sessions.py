"""Sessions over a wire: what a process records is on disk before it is acknowledged, once."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import (
    Alternative,
    Invoke,
    NewEvent,
    StepKind,
    StepState,
    WaitForEvent,
)
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.store.base import Arrival
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints_server.remote.fakes import (
    FakeProcess,
    chunks,
    done,
    end,
    joined,
    memo,
    nap,
    new_run,
    pass_time,
    push,
    record,
    register,
    serving,
    step_id,
    stored,
    suspend,
    until_status,
    wait,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def test_a_run_is_registered_its_steps_recorded_and_its_response_kept(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(
            register("r"), record("r", 2, done("a", b'"x"')), record("r", 3, done("b"))
        )
        await process.acked("r", 3)
        assert await memo(store, "r") == {"a": b'"x"', "b": b"1"}
        run = await stored(store, "r")
        assert (run.status, run.owner) == (Status.RUNNING, "boot/remote/p1")
        await process.say(end("r", 4))
        await process.acked("r", 4)
        ended = await store.ended("r")
        assert ended is not None
        assert (ended.run.status, ended.status_code, ended.response) == (
            Status.COMPLETED,
            200,
            b"answer",
        )
        assert server.host.live == {}
        assert process.all("refused") == []


async def test_a_sleep_suspends_the_run_and_its_end_sends_it_to_a_process(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), record("r", 2, nap("z", 20_000)), suspend("r", 3))
        await process.acked("r", 3)
        assert (await stored(store, "r")).status is Status.WAITING
        await pass_time(clock, 20_000)
        given = await process.executes("r")
        assert given["generation"] == 3  # the resolution took one
        assert given["request"] == wire.pack_bytes(b"sealed")
        (step,) = [wire.unpack_step(step) for step in given["memo"]]
        assert (str(step.id), step.state) == ("z", StepState.DONE)
        await process.say(["begin", "r", 3], end("r", 1))
        await until_status(store, "r", Status.COMPLETED)


async def test_what_is_resolved_while_the_execution_goes_on_is_told(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), record("r", 2, wait("w", "paid")))
        await process.acked("r", 2)
        await server.host.events.publish(NewEvent("e1", "paid", b'{"n":1}'))
        resolved = await process.until("resolved", "r")
        step = wire.unpack_step(resolved[2])
        assert (str(step.id), step.state, resolved[3]) == ("w", StepState.DONE, 2)
        await process.say(suspend("r", 3, seen=1))
        await process.acked("r", 3)
        assert (await stored(store, "r")).status is Status.WAITING


async def test_what_was_resolved_unseen_has_the_run_executed_again_at_once(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), record("r", 2, wait("w", "paid")))
        await process.acked("r", 2)
        await server.host.events.publish(NewEvent("e1", "paid", b"1"))
        await process.until("resolved", "r")
        await process.say(suspend("r", 3, seen=0))
        await process.acked("r", 3)
        given = await process.executes("r")
        assert given["generation"] == 2
        assert wire.unpack_step(given["memo"][0]).is_final


async def test_chunks_are_told_as_written_before_what_was_recorded_after_them(
    store: MemoryStore, clock: VirtualClock
) -> None:
    key = step_id("a").hash
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(
            register("r"),
            ["follow", "r"],
            push("r", 0, "1", "2"),
            push("r", 0, '"x"', step=key, attempt=1),
            record("r", 2, done("a")),
        )
        await process.acked("r", 2)
        told = [frame for frame in process.heard if frame[0] in ("written", "ack")]
        assert [frame[0] for frame in told[-2:]] == ["written", "ack"]
        counts = {tuple(c[:3]): c[3] for f in process.all("written", "r") for c in f[3]}
        assert counts == {("", 0, 1): 2, (key, 1, 1): 1}
        assert await chunks(store, "r") == ["1", "2", '"x"']


async def test_the_end_of_a_run_from_outside_stops_its_execution(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        assert await server.host.cancel("r", "cancelled")
        assert (await process.until("stopped", "r"))[2] == "cancelled"
        await process.say(record("r", 2, done("late")))
        assert (await process.until("refused", "r"))[2:4] == [2, "lost"]
        assert await memo(store, "r") == {}


async def test_one_run_at_a_time_waits_for_a_signal(
    store: MemoryStore, clock: VirtualClock
) -> None:
    op = WaitForEvent(step_id("go"), StepKind.SIGNAL, (Alternative("", SIGNAL + "go"),), 60_000)
    async with serving(store, clock) as server:
        process = await joined(server)
        for run in ("r1", "r2"):
            await process.say(register(run), ["signal", run, 2, wire.pack_op(op), False])
            await process.until("signal", run)
            await process.say(record(run, 3, done("more")))
            await process.acked(run, 3)
        (taken,), (refused,) = process.all("signal", "r1"), process.all("signal", "r2")
        assert taken[4] is None
        assert refused[3:] == [None, "r1"]
        await process.say(["ask", 1, "send_signal", {"name": "go", "data": "7"}])
        assert (await process.until("answer", 1))[2] is True
        assert (await process.until("resolved", "r1"))[2][1] == "go"


async def test_what_is_said_after_a_signal_waits_for_it_and_so_does_its_acknowledgement(
    store: MemoryStore, clock: VirtualClock
) -> None:
    """To open a wait for a signal takes a look into the store."""
    ask, may_go_on = store.arrival, asyncio.Event()

    async def slowly(event: Event) -> Arrival:
        await may_go_on.wait()
        return await ask(event)

    store.arrival = slowly  # type: ignore[method-assign]
    op = WaitForEvent(step_id("go"), StepKind.SIGNAL, (Alternative("", SIGNAL + "go"),), 60_000)
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(
            register("r"),
            record("r", 2, done("before")),
            ["signal", "r", 3, wire.pack_op(op), False],
            record("r", 4, done("after")),
        )
        await process.acked("r", 2)
        await asyncio.sleep(0.02)
        assert set(await memo(store, "r")) == {"before"}
        assert [frame[2] for frame in process.all("ack", "r")] == [2]
        may_go_on.set()
        await process.acked("r", 4)
        assert list(await memo(store, "r")) == ["go", "before", "after"]
        assert process.heard.index(await process.until("signal", "r")) < process.heard.index(
            await process.until("ack", "r", lambda frame: frame[2] >= 3)
        )


async def test_an_invoked_run_belongs_to_the_same_app_and_wakes_the_one_above_it(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        op = Invoke(step_id("child"), new_run("c"))
        await process.say(register("r"), record("r", 2, op))
        given = await process.executes("c")
        assert (given["depth"], given["generation"]) == (1, 1)
        await process.say(["begin", "c", 1], end("c", 1))
        resolved = wire.unpack_step((await process.until("resolved", "r"))[2])
        assert (resolved.state, resolved.due) == (StepState.RETRYING, None)


async def test_the_process_with_the_least_to_do_gets_the_run_and_none_more_than_it_can_take(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        first, second = FakeProcess(server, "p1"), FakeProcess(server, "p2")
        await first.hello(capacity=1)
        await second.hello(capacity=1)
        for n in range(3):
            await first.say(register(f"r{n}"), ["leave", f"r{n}", 2, "release", "x"])
            await first.acked(f"r{n}", 2)
        await asyncio.sleep(0.02)
        given = [*first.all("execute"), *second.all("execute")]
        assert len(first.all("execute")) == len(second.all("execute")) == 1
        done_with = second.all("execute")[0][1]
        await second.say(
            ["begin", done_with["run"], done_with["generation"]], end(done_with["run"], 1)
        )
        (left,) = {"r0", "r1", "r2"} - {frame[1]["run"] for frame in given}
        await second.executes(left)


async def test_runs_wait_for_a_process_of_their_own_app(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        shop = await joined(server, "p1", "shop")
        await shop.say(register("r"), ["leave", "r", 2, "release", "x"], ["drain"])
        bank = await joined(server, "p2", "bank")
        await shop.acked("r", 2)
        await asyncio.sleep(0.02)
        assert (await stored(store, "r")).status is Status.READY
        assert bank.all("execute") == shop.all("execute") == []
        again = await joined(server, "p3", "shop")
        await again.executes("r")


async def test_idempotency_keys_are_those_of_an_app(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        for n, app in enumerate(("shop", "bank")):
            process = await joined(server, app, app)
            run = f"r{n}"
            options = {"key": "k", "key_scope": "me", "fingerprint": "f"}
            await process.say(register(run, **options))
            await process.acked(run, 1)
            await process.say(["ask", 1, "key_holder", {"key": "k"}])
            assert (await process.until("answer", 1))[2] == [run, "me", "f"]
            await process.say(register(f"again{n}", **options))
            await process.until("stopped", f"again{n}")


async def test_a_process_that_says_goodbye_gives_its_runs_to_others_at_once(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        going, staying = await joined(server, "p1"), await joined(server, "p2")
        await going.say(register("r"), record("r", 2, done("a")))
        await going.acked("r", 2)
        await going.say(["bye"])
        given = await staying.executes("r")
        assert [step[1] for step in given["memo"]] == ["a"]
        assert (await going.until_closed()).code == 1000


async def test_outcomes_are_told_when_they_are_there(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), ["ask", 1, "outcome", {"run": "r", "timeout": 5_000}])
        await process.acked("r", 1)
        assert process.all("answer") == []
        await process.say(end("r", 2))
        outcome = (await process.until("answer", 1))[2]
        assert (outcome["status"], outcome["response"]) == (
            "completed",
            wire.pack_bytes(b"answer"),
        )
        await process.say(["ask", 2, "outcome", {"run": "?", "timeout": 0}])
        assert (await process.until("answer", 2))[2] is None


async def test_a_reader_gets_what_another_process_streams(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        writer, reader = await joined(server, "p1"), await joined(server, "p2")
        await writer.say(register("r"), push("r", 0, '"one"'))
        await writer.until("written", "r")
        await reader.say(
            ["read", 1, "r", [0, 0, False, False], False], ["next", 1, 1_000, False, False]
        )
        frames = await reader.until("frames", 1)
        assert '"one"' in frames[2]
        assert frames[3:5] == [1, "1"]
        await reader.say(["next", 1, 1_000, False, False])
        await writer.say(end("r", 2))
        await reader.until("frames", 1, lambda frame: frame[3] == 2)
        await reader.say(["next", 1, 1_000, False, False])
        assert (await reader.until("silence", 1))[2] == "OVER"
        await until_status(store, "r", Status.COMPLETED)
