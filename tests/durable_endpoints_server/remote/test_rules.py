"""What a peer may not do on the wire: it is told, and harms nobody but itself."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.wire import Frame
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.facts import Change, RunChanged
from durable_endpoints_server.engine.model import Policy, Status
from durable_endpoints_server.remote import connection as module
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints_server.helpers import FlakyStore, anything
from tests.durable_endpoints_server.remote.fakes import (
    LEASE,
    FakeProcess,
    done,
    end,
    joined,
    memo,
    pass_time,
    push,
    record,
    register,
    serving,
    stored,
    until_status,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


HELLO: Frame = ["hello", {"process": "p1", "app": "shop", "sdk": "1", "draining": False}]


@pytest.mark.parametrize(
    "message",
    [
        "nonsense",
        "{}",
        "[]",
        "[1]",
        "[[]]",
        '[["beat"]]',
        '[["hello"]]',
        '[["hello", {"process": "", "app": "shop"}]]',
        '[["hello", {"process": "p\\n", "app": "shop"}]]',
        '[["hello", {"process": "p"}]]',
        '[["hello", {"process": "p", "app": "https://shop.example"}]]',
    ],
)
async def test_a_connection_begins_with_hello(
    store: MemoryStore, clock: VirtualClock, message: str
) -> None:
    async with serving(store, clock) as server:
        process = FakeProcess(server)
        await process.end.send(message)
        closed = await process.until_closed()
        assert closed.code == 1008
        assert closed.reason


@pytest.mark.parametrize(
    "frame",
    [
        ["what"],
        ["record", "r", 3, ["done"]],
        record("r", 4, done("a")),  # a gap
        ["record", "r", 2, ["explode", 1]],
        ["record", "r", True, None],
        ["leave", "r", 2],
        ["leave", "r", 2, "fly", None],
        ["leave", "r", 2, "suspend"],
        push("r", 1, "1"),
        push("r", -1, "1"),
        ["push", "r", "", 0, 2, 0, ["1"]],
        push("r", 0, "not JSON"),
        push("r", 0, "[1,\n2]"),
        ["push", "r", "", 0, 1, 0, "1"],
        ["begin", "r", 9],
        ["resume", "r", 1, 0, None],
        ["read", 1, "r", [0], False],
        ["next", 7, 1, False, False],
        ["ask", 1, "outcome", []],
        ["executors", []],
        ["register", "r2", 2, wire.pack_new_run(wire.unpack_new_run(register("r2")[3]))],
        ["register", "other", 1, register("r2")[3]],
    ],
)
async def test_a_frame_that_breaks_the_rules_closes_the_connection_and_loses_nothing(
    store: MemoryStore, clock: VirtualClock, frame: Frame
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        await process.say(frame)
        closed = await process.until_closed()
        assert closed.code == 1008
        assert closed.reason
        assert (await stored(store, "r")).status is Status.RUNNING
        await process.come_back(server, ["resume", "r", 1, 1, {}], record("r", 2, done("a")))
        await process.acked("r", 2)


async def test_a_run_of_another_process_is_out_of_reach(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        owner, thief = FakeProcess(server, "p1"), FakeProcess(server, "p2")
        await owner.hello()
        await owner.begin("r")
        await thief.hello([["resume", "r", 1, 1, {"leaving": False}]])
        assert (await thief.until("refused", "r"))[3] == "lost"
        for frame in (register("r"), record("r", 2, done("stolen")), end("r", 3)):
            thief.heard.clear()
            await thief.say(frame)
            assert (await thief.until("refused", "r"))[3] == "lost"
        await thief.say(push("r", 0, '"stolen"'), ["watch", "r", "x"], ["follow", "r"])
        await owner.say(record("r", 2, done("mine")), end("r", 3))
        await owner.acked("r", 3)
        assert list(await memo(store, "r")) == ["mine"]


async def test_a_second_connection_of_a_process_takes_the_place_of_the_first(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        former = process.end
        await process.come_back(server, ["resume", "r", 1, 1, {}], record("r", 2, done("a")))
        await process.acked("r", 2)
        assert former.closed is not None
        assert former.closed.code == 1008
        assert list(await memo(store, "r")) == ["a"]


async def test_what_passes_a_limit_is_refused_and_the_run_goes_on_without_it(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        server.host.policy = Policy(max_result=100)
        process = await joined(server)
        await process.say(register("r"), record("r", 2, done("a")))
        await process.say(record("r", 3, done("b", b'"' + b"x" * 200 + b'"')))
        refused = await process.until("refused", "r")
        assert refused[2:4] == [3, "limit"]
        assert "max_result" in refused[4]
        given = await process.executes("r")
        assert [step[1] for step in given["memo"]] == ["a"]


async def test_questions_that_nobody_understands_are_answered(
    store: MemoryStore, clock: VirtualClock
) -> None:
    async with serving(store, clock) as server:
        process = await joined(server)
        asked: list[tuple[str, dict[str, Any]]] = [
            ("meaning", {}),
            ("outcome", {}),
            ("outcome", {"run": 1}),
            ("send_event", {"event": ["id", "name", "not JSON", None]}),
            ("send_signal", {"name": "x"}),
        ]
        await process.say(*(["ask", n, what, about] for n, (what, about) in enumerate(asked)))
        for n in range(len(asked)):
            assert (await process.until("failed", n))[2] == "bad_request"


async def test_a_peer_that_does_not_read_is_given_up(
    store: MemoryStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 100_000)
    async with serving(store, clock) as server:
        process = await joined(server)
        gate = asyncio.Event()

        async def never(message: str) -> None:
            await gate.wait()

        monkeypatch.setattr(process.end.peer, "send", never)
        await process.say(*(["ask", n, "what" * 10, {}] for n in range(2_000)))
        await until_closing(server.hub._connections)
        gate.set()
        assert (await process.until_closed()).code == 1008


async def test_a_peer_that_is_sent_one_message_for_too_long_is_given_up(
    store: MemoryStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    async with serving(store, clock) as server:
        process, other = await joined(server, "p1"), await joined(server, "p2")

        async def never(message: str) -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr(process.end.peer, "send", never)
        await process.say(register("r"))
        await other.say(register("s"))
        assert (await process.until_closed()).code == 1008
        await other.acked("s", 1)
        assert other.closed is None


async def test_what_is_large_waits_until_a_slow_peer_has_read(
    store: MemoryStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FULL", 50_000)
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("r"), end("r", 2, b"x" * 10_000))
        await process.acked("r", 2)
        (connection,) = server.hub._connections
        gate, send = asyncio.Event(), process.end.peer.send

        async def slowly(message: str) -> None:
            await gate.wait()
            await send(message)

        monkeypatch.setattr(process.end.peer, "send", slowly)
        about = {"run": "r", "timeout": 0}
        await process.say(*(["ask", n, "outcome", about] for n in range(100)))
        await asyncio.sleep(0.05)
        assert 50_000 < connection._size < 100_000
        gate.set()
        for n in range(100):
            await process.until("answer", n)


async def test_a_run_that_was_ended_before_its_process_could_be_told_is_not_executed(
    store: MemoryStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FULL", 50_000)
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.say(register("big"), end("big", 2, b"x" * 60_000), register("r"))
        await process.acked("r", 1)
        gate, send = asyncio.Event(), process.end.peer.send

        async def slowly(message: str) -> None:
            await gate.wait()
            await send(message)

        monkeypatch.setattr(process.end.peer, "send", slowly)
        await process.say(["ask", 1, "outcome", {"run": "big", "timeout": 0}])
        await process.say(["leave", "r", 2, "release", "x"])
        async with asyncio.timeout(3):
            while (await stored(store, "r")).generation == 1:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert await server.host.cancel("r", "cancelled")
        gate.set()
        await process.until("answer", 1)
        await asyncio.sleep(0.01)
        assert process.all("execute") == []


async def until_closing(connections: Any) -> None:
    async with asyncio.timeout(3):
        while not all(connection._closing for connection in connections):
            await asyncio.sleep(0.001)


async def test_a_store_that_fails_is_said_and_the_run_goes_on_once_it_works(
    clock: VirtualClock,
) -> None:
    store = FlakyStore()
    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        store.fails = anything
        await process.say(record("r", 2, done("lost")))
        refused = await process.until("refused", "r")
        assert refused[3] == "storage"
        assert "disk" in refused[4]
        store.fails = None
        assert (await process.executes("r"))["memo"] == []


async def test_a_claim_that_the_store_could_not_write_is_taken_back_and_made_again(
    clock: VirtualClock,
) -> None:
    store = FlakyStore()

    def is_claim(change: Change) -> bool:
        fact = change.facts[0] if change.facts else None
        return isinstance(fact, RunChanged) and fact.run.status is Status.RUNNING

    async with serving(store, clock) as server:
        process = await joined(server)
        await process.begin("r")
        store.fails = is_claim
        await process.say(["leave", "r", 2, "release", "x"])
        assert (await process.until("refused", "r"))[3] == "storage"
        assert ["ack", "r", 0] not in process.heard
        store.fails = None
        async with asyncio.timeout(3):
            while len(process.all("execute")) < 2:
                await asyncio.sleep(0.001)
        await process.until("ack", "r", lambda frame: frame[2] == 0)
        assert [frame[1]["generation"] for frame in process.all("execute")] == [2, 2]


@pytest.mark.parametrize("how", ["silent", "back without it"])
async def test_a_run_that_the_store_could_not_take_from_its_process_goes_on_once_it_works(
    clock: VirtualClock, how: str
) -> None:
    store = FlakyStore()
    async with serving(store, clock) as server:
        process, other = FakeProcess(server), FakeProcess(server, "p2")
        await process.hello()
        await process.say(register("r"))
        await process.acked("r", 1)
        store.fails = anything
        if how == "silent":
            await pass_time(clock, LEASE)
        else:
            await process.come_back(server)
        async with asyncio.timeout(3):
            while not store.refused:
                await asyncio.sleep(0.001)
        store.fails = None
        if how == "silent":
            await other.hello()
        assert (await (other if how == "silent" else process).executes("r"))["generation"] == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.just("r"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = [
    *("register", "record", "signal", "push", "withdraw", "follow", "watch", "leave", "resume"),
    *("begin", "ask", "forget", "read", "next", "poke", "close", "executors", "resumed", "drain"),
]
FRAMES = st.builds(
    lambda name, run, parts: [name, run, *parts],
    st.sampled_from(NAMES),
    st.just("r") | JSON,
    st.lists(JSON, max_size=6),
)


@settings(
    max_examples=int(os.environ.get("FRAMES_TO_TRY", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(frames=st.lists(FRAMES, min_size=1, max_size=4))
def test_no_frame_makes_the_server_fail(frames: list[Frame]) -> None:
    async def work() -> None:
        store, clock = MemoryStore(), VirtualClock()
        async with serving(store, clock) as server:
            process = FakeProcess(server)
            await process.say(HELLO, ["resumed"], register("r"))
            await process.acked("r", 1)
            await process.say(*frames)
            await process.say(["ask", 99_999, "outcome", {"run": "r", "timeout": 0}])
            async with asyncio.timeout(3):
                while process.closed is None and not process.all("answer", 99_999):
                    await asyncio.sleep(0)
            assert process.closed is None or process.closed.code == 1008, process.closed
            # Whoever behaves is served as before.
            other = FakeProcess(server, "p2")
            await other.say(["hello", {"process": "p2", "app": "bank"}], ["resumed"])
            await other.say(register("s"), record("s", 2, done("a")), end("s", 3))
            await other.acked("s", 3)
            await until_status(store, "s", Status.COMPLETED)

    asyncio.run(work())
