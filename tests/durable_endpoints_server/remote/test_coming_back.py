"""Connections that break, servers that end and processes that fall silent: nothing that was
acknowledged is lost, nothing is done twice, and one execution at a time has a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import Alternative, NewEvent, StepKind, WaitForEvent
from durable_endpoints.protocol.runs import Fail
from durable_endpoints.protocol.wire import Frame
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.dispatcher import Nobody, Place
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import Store
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints_server.remote.fakes import (
    LEASE,
    FakeProcess,
    chunks,
    done,
    end,
    failed,
    joined,
    memo,
    nap,
    pass_time,
    push,
    record,
    register,
    resume,
    serving,
    started,
    step_id,
    stored,
    suspend,
    until_status,
    wait,
)

pytestmark = pytest.mark.anyio

Reopen = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """What opens the store, as each new server process does."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "runs.db")
    kept = MemoryStore()
    return lambda: kept


WORDS = step_id("words").hash
SCRIPT: list[Frame] = [
    register("r"),
    ["follow", "r"],
    push("r", 0, '"begin"'),
    push("r", 0, '"w1"', '"w2"', step=WORDS, attempt=1),
    record("r", 2, done("words")),
    record("r", 3, nap("z", 1_000_000)),
    push("r", 1, '"after"'),
    record("r", 4, failed("last", 1)),
    record("r", 5, failed("last", 2)),
    record("r", 6, done("last", attempt=3)),
    end("r", 7),
]
"""All that a process says of a run."""
CHUNKS = ['"begin"', '"w1"', '"w2"', '"after"']


def again(script: list[Frame]) -> list[Frame]:
    """What is said after a break, when nothing of `script` was acknowledged."""
    leaving = any(frame[0] == "leave" for frame in script)
    back = resume("r", follows=True, base=0, leaving=leaving, open=[[step_id("z").hash, False]])
    return [back, *script]


def last_number(script: list[Frame]) -> int:
    """The number of the last frame that is to be acknowledged."""
    return max(frame[2] for frame in script if frame[0] in ("register", "record", "leave"))


async def check_the_end(store: Store, process: FakeProcess) -> None:
    """The whole script has happened, once."""
    await process.acked("r", 7)
    assert (await stored(store, "r")).status is Status.COMPLETED
    assert set(await memo(store, "r")) == {"words", "last", "z"}
    assert [attempt.attempt for attempt in await store.attempts("r")] == [1, 2]
    assert await chunks(store, "r") == CHUNKS
    run = await stored(store, "r")
    assert (run.generation, run.steps, run.memo_bytes) == (1, 3, 2)
    assert process.all("refused") == process.all("stopped") == []


@pytest.mark.parametrize("said", range(1, len(SCRIPT) + 1))
async def test_a_connection_cut_anywhere_is_as_if_it_had_held(
    said: int, clock: VirtualClock
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(*SCRIPT[:said])
        await asyncio.sleep(0.005)
        process.end.cut()
        await process.come_back(server, *again(SCRIPT[:said]))
        await process.acked("r", last_number(SCRIPT[:said]))  # without another word
        await process.say(*SCRIPT[said:])
        await check_the_end(store, process)


@pytest.mark.parametrize("said", range(1, len(SCRIPT) + 1))
async def test_a_server_that_ends_anywhere_is_as_if_it_had_not(
    said: int, reopen: Reopen, clock: VirtualClock
) -> None:
    store = reopen()
    server = await started(store, clock)
    process = await joined(server)
    await process.say(*SCRIPT[:said])
    await asyncio.sleep(0.02)
    await server.kill()
    await store.close()
    store = reopen()
    async with serving(store, clock, "boot/another") as later:
        await process.come_back(later, *again(SCRIPT[:said]))
        await process.acked("r", last_number(SCRIPT[:said]))  # without another word
        await process.say(*SCRIPT[said:])
        await check_the_end(store, process)


async def test_a_server_that_ends_before_anything_was_read(clock: VirtualClock) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = FakeProcess(server)
        await process.hello(again(SCRIPT))
        await check_the_end(store, process)


async def test_a_process_that_is_silent_for_its_lease_loses_its_runs_to_another(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        silent, other = await joined(server, "p1"), await joined(server, "p2")
        await silent.say(register("r"), record("r", 2, done("a")))
        await silent.acked("r", 2)
        await pass_time(clock, LEASE - 1_000)
        await other.say(["beat"])
        await asyncio.sleep(0.01)
        assert other.all("execute") == []
        await pass_time(clock, 1_000)
        given = await other.executes("r")
        assert given["generation"] == 2
        assert [step[1] for step in given["memo"]] == ["a"]
        assert (await stored(store, "r")).interruptions == 1
        # The zombie comes back, and is fenced.
        await silent.come_back(server, resume("r", 1, 2), record("r", 3, done("zombie")))
        assert (await silent.until("refused", "r"))[3] == "lost"
        await other.say(["begin", "r", 2], end("r", 1))
        await until_status(store, "r", Status.COMPLETED)
        assert list(await memo(store, "r")) == ["a"]


async def test_nothing_of_an_execution_is_left_at_the_server_when_its_process_was_silent(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        silent = await joined(server, "p1")
        await silent.say(register("r"), record("r", 2, nap("z", 1_000)), suspend("r", 3))
        await silent.acked("r", 3)
        await pass_time(clock, 1_000)
        await silent.executes("r")
        await silent.say(["begin", "r", 3])
        other = await joined(server, "p2")
        await pass_time(clock, LEASE - 1_000)
        await other.say(["beat"])
        await asyncio.sleep(0.01)
        await pass_time(clock, 1_000)
        given = await other.executes("r")
        await other.say(["begin", "r", given["generation"]], end("r", 1))
        await other.acked("r", 1)
        async with asyncio.timeout(3):
            while not server.host.is_quiet:
                await asyncio.sleep(0.001)


async def test_what_is_said_of_an_execution_that_was_taken_back_is_passed_over(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), record("r", 2, nap("z", 1_000)), suspend("r", 3))
        await process.acked("r", 3)
        await pass_time(clock, 1_000)
        assert (await process.executes("r"))["generation"] == 3
        await process.say(["begin", "r", 2], record("r", 1, done("of before")))
        await process.say(["begin", "r", 3], record("r", 1, done("of this one")), end("r", 2))
        await until_status(store, "r", Status.COMPLETED)
        assert set(await memo(store, "r")) == {"z", "of this one"}
        assert process.closed is None


async def test_a_heartbeat_beside_the_connection_keeps_the_lease(clock: VirtualClock) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        for _ in range(3):
            await pass_time(clock, LEASE - 1)
            assert server.hub.hear("p1")
        assert not server.hub.hear("somebody")
        await process.say(record("r", 2, done("a")))
        await process.acked("r", 2)


async def test_a_process_that_does_not_come_back_to_a_new_server_loses_its_runs_after_a_lease(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    first = await started(store, clock)
    gone = await joined(first, "p1")
    await gone.say(register("r"), record("r", 2, done("a")))
    await gone.acked("r", 2)
    await first.kill()
    async with serving(store, clock, "boot/another") as second:
        other = await joined(second, "p2")
        await pass_time(clock, LEASE - 1)
        await other.say(["beat"])
        await asyncio.sleep(0.01)
        assert (await stored(store, "r")).status is Status.RUNNING
        await pass_time(clock, 1)
        assert (await other.executes("r"))["generation"] == 2


async def test_after_a_new_start_of_the_machine_a_process_that_has_not_heard_of_it_has_its_lease(
    clock: VirtualClock,
) -> None:
    """Until that is over, it may begin the body that it has in hand."""
    store = MemoryStore()
    first = await started(store, clock)
    process = await joined(first)
    await process.say(register("r"), push("r", 0, '"lost"'), record("r", 2, done("a")))
    await process.acked("r", 2)
    await first.kill()
    async with serving(store, clock, "later/server") as second:
        other = await joined(second, "p2")
        await pass_time(clock, LEASE - 1)
        await other.say(["beat"])
        await asyncio.sleep(0.01)
        assert other.all("execute") == []
        await pass_time(clock, 1)
        assert (await other.executes("r"))["stream"]["tail"] > 1_000_000


async def test_what_a_process_does_not_come_back_for_is_released_at_once(
    clock: VirtualClock,
) -> None:
    """An `execute` that was lost with its connection, before and after a new start."""
    store = MemoryStore()
    first = await started(store, clock)
    process = await joined(first)
    await process.say(register("r"), ["leave", "r", 2, "release", "x"])
    assert (await process.executes("r"))["generation"] == 2
    process.end.cut()
    await process.come_back(first)
    assert (await process.executes("r"))["generation"] == 3
    await first.kill()
    async with serving(store, clock, "boot/another") as second:
        await process.come_back(second)
        assert (await process.executes("r"))["generation"] == 4


async def test_a_later_execution_of_what_a_process_comes_back_for_is_released_too(
    clock: VirtualClock,
) -> None:
    """It has left the run, and heard neither that this is on disk, nor of the next `execute`."""
    store = MemoryStore()
    first = await started(store, clock)
    process = await joined(first)
    leave: Frame = ["leave", "r", 2, "release", "x"]
    await process.say(register("r"), leave)
    assert (await process.executes("r"))["generation"] == 2
    await first.kill()
    async with serving(store, clock, "boot/another") as second:
        await process.come_back(second, resume("r", leaving=True), leave)
        assert (await process.until("refused", "r"))[3] == "lost"
        assert (await process.executes("r"))["generation"] == 3


async def test_frames_of_an_earlier_execution_are_not_taken_for_those_of_a_later_one(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), ["leave", "r", 2, "release", "x"])
        await process.executes("r")
        await process.say(record("r", 3, done("zombie")), push("r", 0, '"z"'))
        await process.say(["begin", "r", 2], record("r", 1, done("a")), end("r", 2))
        await until_status(store, "r", Status.COMPLETED)
        assert list(await memo(store, "r")) == ["a"]


async def test_what_was_resolved_while_a_connection_was_broken_is_told_after_it(
    reopen: Reopen, clock: VirtualClock
) -> None:
    store = reopen()
    server = await started(store, clock)
    process = await joined(server)
    await process.say(
        register("r"), record("r", 2, wait("w", "paid")), record("r", 3, wait("v", "sent"))
    )
    await process.acked("r", 3)
    process.end.cut()
    await server.host.events.publish(NewEvent("e1", "paid", b"1"))
    open_steps = [[step_id("w").hash, False], [step_id("v").hash, False]]
    back = resume("r", 1, 3, open=open_steps)
    await process.come_back(server, back)
    resolved = await process.until("resolved", "r")
    assert wire.unpack_step(resolved[2]).id.name == "w"
    await server.kill()
    await store.close()
    store = reopen()
    async with serving(store, clock, "boot/another") as second:
        await process.come_back(second, back)
        await process.until("resolved", "r", lambda frame: frame[2][1] == "w")
        await second.host.events.publish(NewEvent("e2", "sent", b"2"))
        await process.until("resolved", "r", lambda frame: frame[2][1] == "v")
        await process.say(suspend("r", 4, seen=2))
        await process.acked("r", 4)
        await process.executes("r")
    await store.close()


async def test_a_signal_is_told_again_if_the_answer_about_its_wait_was_lost(
    clock: VirtualClock,
) -> None:
    """The process does not know of the wait, so it does not ask what became of it."""
    op = WaitForEvent(step_id("go"), StepKind.SIGNAL, (Alternative("", SIGNAL + "go"),), 60_000)
    async with serving(store := MemoryStore(), clock) as server:
        process = await joined(server)
        await process.begin("r")
        opening = ["signal", "r", 2, wire.pack_op(op), False]
        await process.say(opening)
        await process.acked("r", 2)  # as the server sees it: this was lost
        process.end.cut()
        assert await server.host.signals.send("go", b"7")
        await process.come_back(server, resume("r", 1, 1), opening)
        assert (await process.until("signal", "r"))[3][1] == "go"
        assert (await process.until("resolved", "r"))[2][1] == "go"
        await process.say(suspend("r", 3, seen=0))
        await until_status(store, "r", Status.READY, Status.RUNNING)


async def test_a_leave_is_recognised_in_whatever_way(clock: VirtualClock) -> None:
    store = MemoryStore()
    leaves: dict[str, Frame] = {
        "r1": suspend("r1", 3),
        "r2": ["leave", "r2", 3, "park", "undecodable"],
        "r3": ["leave", "r3", 3, "end", wire.pack_end(_failure())],
    }
    async with serving(store, clock) as server:
        process = await joined(server)
        for run, leave in leaves.items():
            await process.say(register(run), record(run, 2, nap("z", 1_000_000)), leave)
            await process.acked(run, 3)
        process.end.cut()
        repeated = [
            frame
            for run, leave in leaves.items()
            for frame in (
                resume(run, 1, 1, leaving=True),
                record(run, 2, nap("z", 1_000_000)),
                leave,
            )
        ]
        await process.come_back(server, *repeated)
        for run in leaves:
            await process.acked(run, 3)
        assert process.all("refused") == []


def _failure() -> Fail:
    return Fail("exception", b'{"name":"ValueError"}')


async def test_a_run_that_was_cancelled_meanwhile_is_said_to_be(clock: VirtualClock) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        process.end.cut()
        await asyncio.sleep(0.01)
        assert await server.host.cancel("r", "cancelled")
        await process.come_back(server, resume("r", 1, 1))
        assert (await process.until("refused", "r"))[3] == "cancelled"


async def test_a_registration_that_its_client_was_refused_is_taken_back(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        process.end.cut()
        failure = wire.pack_end(_failure())
        await process.come_back(
            server,
            resume("r", 1, 0, only=["end", failure]),
            resume("unheard", 1, 0, only=["abandon"]),
        )
        await process.acked("r", 1)
        assert (await process.until("refused", "unheard"))[3] == "lost"
        assert (await stored(store, "r")).status is Status.FAILED
        assert await store.run("unheard") is None


async def test_who_comes_back_to_give_up_a_run_that_was_taken_over_may_execute_it_again(
    clock: VirtualClock,
) -> None:
    """What is said about the old execution comes before the new one begins."""
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        process.end.cut()
        await pass_time(clock, LEASE + 1)
        await until_status(store, "r", Status.READY)
        await process.come_back(server, resume("r", 1, 0, leaving=True, only=["abandon"]))
        execution = await process.executes("r")
        assert (await process.until("refused", "r"))[3] == "lost"
        named = [frame[0] for frame in process.heard]
        assert named.index("refused") < named.index("execute")
        await process.say(["begin", "r", execution["generation"]], record("r", 1, done("words")))
        await process.acked("r", 1)
        assert len(process.all("refused")) == 1


async def test_after_a_new_start_of_the_machine_no_execution_goes_on(
    clock: VirtualClock,
) -> None:
    """What was streamed last may be lost: the next one's positions are ones nobody has."""
    store = MemoryStore()
    first = await started(store, clock)
    process = await joined(first)
    await process.say(*SCRIPT[:4])
    await process.until("written", "r", lambda frame: frame[2] == 3)
    await first.kill()
    async with serving(store, clock, "later/server") as second:
        await process.come_back(second, *again(SCRIPT[:4]))
        assert (await process.until("refused", "r"))[3] == "lost"
        assert (await process.executes("r"))["stream"]["tail"] > 1_000_000


async def test_what_ends_a_run_after_a_new_start_of_the_machine_takes_no_position_again(
    clock: VirtualClock,
) -> None:
    """Its process is still waited for, and readers may have chunks that the disk has lost."""
    store = MemoryStore()
    first = await started(store, clock)
    process = await joined(first)
    await process.say(*SCRIPT[:4])
    await process.until("written", "r", lambda frame: frame[2] == 3)
    await first.kill()
    async with serving(store, clock, "later/server") as second:
        assert await second.host.cancel("r", "cancelled")
        page = await store.stream_page("r", 3, 1_000)
        assert page is not None
        assert all(record.position > 1_000_000 for record in page.records)
        assert page.records


async def test_a_run_that_takes_processes_down_is_executed_alone_and_then_parked(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        bystander = await joined(server, "bystander", capacity=0)
        names = iter(range(100))

        async def silence() -> None:
            for _ in range(2):
                await bystander.say(["beat"])
                await asyncio.sleep(0.005)
                await pass_time(clock, LEASE // 2)

        async def die() -> FakeProcess:
            """A process executes the run, and falls silent."""
            process = FakeProcess(server, f"p{next(names)}")
            await process.hello()
            given = await process.executes("poison")
            await process.say(["begin", "poison", given["generation"]])
            await asyncio.sleep(0.005)
            process.end.cut()
            await silence()
            return process

        first = await joined(server, "first")
        await first.begin("poison")
        first.end.cut()
        await silence()
        for _ in range(2):
            assert (await die()).all("hold") == []
        assert (await stored(store, "poison")).interruptions == 3
        for _ in range(3):
            assert ["hold", True] in (await die()).heard
        run = await stored(store, "poison")
        assert (run.status, run.lone_interruptions) == (Status.PARKED, 3)
        assert "runs retry poison" in caplog.text


async def test_a_run_that_must_be_alone_waits_for_its_process_to_be_done(
    clock: VirtualClock,
) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("busy"), register("poison"))
        await process.acked("poison", 1)
        await process.say(suspend("poison", 2))
        await process.acked("poison", 2)
        poison = (await stored(store, "poison"))._replace(interruptions=3, status=Status.READY)
        store._rows["poison"].run = poison
        server.host.announce(poison, None, None)
        await process.until("hold", True)
        await asyncio.sleep(0.01)
        assert process.all("execute") == []
        await process.say(end("busy", 2))
        given = await process.executes("poison")
        await process.say(["begin", "poison", given["generation"]], end("poison", 1))
        await process.until("hold", False)


async def test_the_wait_for_a_quiet_moment_ends(clock: VirtualClock) -> None:
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("busy"), register("poison"), suspend("poison", 2))
        await process.acked("poison", 2)
        poison = (await stored(store, "poison"))._replace(interruptions=3, status=Status.READY)
        store._rows["poison"].run = poison
        server.host.announce(poison, None, None)
        await process.until("hold", True)
        for _ in range(3):
            await pass_time(clock, 20_000)
            await process.say(["beat"])
            await asyncio.sleep(0.005)
        await process.executes("poison")
        await process.until("hold", False)


@pytest.mark.parametrize("kills", [False, True])
async def test_what_was_resolved_unseen_before_a_break_is_not_slept_through(
    kills: bool, clock: VirtualClock
) -> None:
    """The process knows it, so it does not ask; but its execution had departed before."""
    store = MemoryStore()
    server = await started(store, clock)
    process = await joined(server)
    await process.say(register("r"), record("r", 2, wait("w", "paid")))
    await process.acked("r", 2)
    await server.host.events.publish(NewEvent("e1", "paid", b"1"))
    await process.until("resolved", "r")
    process.end.cut()
    if kills:
        await server.kill()
        server = await started(store, clock, "boot/another")
    await process.come_back(server, resume("r", 1, 2, leaving=True), suspend("r", 3, seen=0))
    await process.executes("r")
    await server.stop()


async def test_a_run_that_was_taken_away_while_it_was_claimed_keeps_no_room(
    clock: VirtualClock,
) -> None:
    """Its deadline has come, say, while the claim was on its way to the disk."""
    store = MemoryStore()
    async with serving(store, clock) as server:
        process = await joined(server, capacity=1)
        await process.begin("r")
        entry, live = await store.entry("r"), server.host.live_run("r")
        assert entry is not None
        assert live is not None
        place = server.hub.place(entry)
        assert isinstance(place, Place)
        assert server.hub.place(entry) is Nobody.FREE
        live.run = live.run._replace(owner="")
        live.drop()
        await place.executor(live, entry)
        assert isinstance(server.hub.place(entry), Place)
        assert process.all("execute") == []
