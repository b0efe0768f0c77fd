"""Readers of stream logs, over random histories: whatever is streamed, withdrawn and committed, and
whenever a reader joins, leaves and comes back, it ends with what there is, and sees each position
as everybody does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_endpoints.protocol.ops import StepDone, StepKind, StepRetry
from durable_endpoints.protocol.runs import Complete, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.protocol.streams import (
    OUTSIDE,
    RecordKind,
    Silence,
    StreamRecord,
    StreamStart,
)
from durable_endpoints_server.engine.facts import Change, Streamed, states
from durable_endpoints_server.engine.model import Policy, Status
from durable_endpoints_server.engine.streams import Chunk, append, follow, started
from durable_endpoints_server.engine.transitions import (
    Claim,
    Command,
    Interrupt,
    Release,
    decide,
    register,
)
from durable_endpoints_server.store.base import Store, StreamPage
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.store.sqlite import SqliteStore
from durable_endpoints_server.stream_reader import Reader
from durable_endpoints_server.streams import Streams
from tests.durable_endpoints.streams import Frame, Held, frames_of

pytestmark = pytest.mark.anyio

POLICY = Policy()
STEPS = [StepId(hash_name(name), name, 0) for name in "abc"]
RUN = "run-1"


class History:
    """A run that streams, in a store, with its readers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.streams = Streams(store)
        decision = register(NewRun(RUN, "f", "", "GET", "/", b""), "me", None, 0)
        self.run = decision.run
        self.registered = store.submit(decision.change)
        self.stream = started(1)
        self.attempts = dict.fromkeys(STEPS, 1)
        self.count = 0
        self.truth: dict[str, Frame] = {}

    async def push(self, step: StepId | None, count: int) -> None:
        chunks = []
        for _ in range(count):
            self.count += 1
            key, attempt = (OUTSIDE, 0) if step is None else (step.hash, self.attempts[step])
            chunks.append(Chunk(key, attempt, b"%d" % self.count))
        self.stream, records = append(self.stream, chunks)
        run = self.run
        change = Change(
            (Streamed(tuple(records), self.stream),),
            RUN,
            run.generation,
            states(Status.RUNNING),
            is_relaxed=True,
        )
        await self.store.submit(change).wait()
        self.streams.publish(RUN, records)

    async def do(self, command: Command) -> None:
        decision = decide(self.run, command, 0, POLICY)
        self.stream, records = follow(self.stream, decision.change.facts)
        facts = (Streamed(tuple(records), self.stream), *decision.change.facts)
        await self.store.submit(decision.change._replace(facts=facts)).wait()
        self.run = decision.run
        self.streams.publish(RUN, records)
        self.streams.look_again(RUN)

    async def act(self, action: tuple[str, int, int]) -> None:
        what, n, count = action
        step = STEPS[n % 3]
        if what == "push":
            await self.push(step, count)
        elif what == "outside":
            await self.push(None, count)
        elif what == "done" and self.attempts[step]:
            await self.do(StepDone(step, StepKind.RUN, b"1", self.attempts[step]))
            self.attempts[step] += 1  # so that it can go on in this test
        elif what == "retry":
            await self.do(StepRetry(step, StepKind.RUN, b"{}", self.attempts[step]))
            self.attempts[step] += 1
        elif what == "release":
            await self.do(Release("x"))
            await self.do(Claim("me", None))
        elif what == "crash":
            interrupt = decide(self.run, Interrupt(False), 0, POLICY)
            await self.store.submit(interrupt.change).wait()
            self.run = interrupt.run._replace(interruptions=0)
            await self.do(Claim("me", None))


class Follower:
    """A reader that may be gone for a while."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.held = Held()
        self.position = 0
        self.reader: Reader | None = None

    async def read(self, most: int) -> bool:
        """Read some; False when the run is over."""
        if self.reader is None:
            self.reader = Reader(self.history.streams, RUN, StreamStart(self.position))
        for _ in range(most):
            found = await self.reader.next(0)
            if isinstance(found, Silence):
                return found is not Silence.OVER
            frames = frames_of(found)
            for frame in frames:
                assert frame.id is not None
                assert self.history.truth.setdefault(frame.id, frame) == frame
            self.held.take(frames)
            assert int(frames[-1].id or 0) <= self.reader.position
        return True

    def leave(self) -> None:
        if self.reader is not None:
            self.position = int(self.held.last_id or 0)
            self.reader.close()
            self.reader = None


actions = st.tuples(
    st.sampled_from(
        ["push"] * 5 + ["outside", "done", "done", "retry", "retry", "release", "crash"]
    ),
    st.integers(0, 2),
    st.integers(1, 4),
)
readings = st.tuples(
    st.sampled_from(["read", "read", "leave"]), st.integers(0, 2), st.integers(1, 3)
)


async def play(store: Store, script: list[tuple[str, int, int]]) -> None:
    history = History(store)
    await history.registered.wait()
    followers = [Follower(history) for _ in range(3)]
    committed = Reader(history.streams, RUN, StreamStart(committed=True))
    final = Held()
    for item in script:
        if item[0] == "read":
            await followers[item[1]].read(item[2])
        elif item[0] == "leave":
            followers[item[1]].leave()
        else:
            await history.act(item)
    await history.do(Complete(200, None))
    late = Follower(history)
    for follower in [*followers, late]:
        while await follower.read(100):
            pass
        assert follower.held.committed == follower.held.data, "nothing is left open"
        follower.leave()
    while not isinstance(found := await committed.next(0), Silence):
        final.take(frames_of(found))
    assert found is Silence.OVER
    committed.close()
    for follower in followers:
        assert follower.held.chunks == late.held.chunks
    assert sorted(final.data) == sorted(late.held.data)
    assert history.streams._channels == {}
    if history.truth:
        assert max(map(int, history.truth)) <= history.stream.tail


@given(st.lists(st.one_of(actions, readings), max_size=60))
@settings(max_examples=150, deadline=None)
def test_every_reader_ends_with_the_same(script: list[tuple[str, int, int]]) -> None:
    asyncio.run(play(MemoryStore(), script))


@given(script=st.lists(st.one_of(actions, readings), max_size=40))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_same_on_disk(tmp_path: Path, script: list[tuple[str, int, int]]) -> None:
    async def on_disk() -> None:
        path = tmp_path / "runs.db"
        for file in tmp_path.iterdir():
            file.unlink()
        store = SqliteStore(path)
        try:
            await play(store, script)
        finally:
            await store.close()

    asyncio.run(on_disk())


async def history_of(*script: tuple[str, int, int]) -> History:
    history = History(MemoryStore())
    for action in script:
        await history.act(action)
    return history


async def read_all(history: History, start: StreamStart) -> list[Frame]:
    reader = Reader(history.streams, RUN, start)
    frames: list[Frame] = []
    while not isinstance(found := await reader.next(0), Silence):
        frames += frames_of(found)
    reader.close()
    return frames


def ids(frames: list[Frame]) -> list[Any]:
    return [frame.id for frame in frames]


async def test_who_joins_late_is_spared_what_was_withdrawn() -> None:
    history = await history_of(("push", 0, 3), ("retry", 0, 1), ("push", 0, 2), ("done", 0, 1))
    assert ids(await read_all(history, StreamStart())) == ["5", "6", "7"]
    # Who has a part of it is told of the rollback, and spared the rest.
    assert ids(await read_all(history, StreamStart(2))) == ["4", "5", "6", "7"]
    assert ids(await read_all(history, StreamStart(3))) == ["4", "5", "6", "7"]
    assert ids(await read_all(history, StreamStart(4))) == ["5", "6", "7"]


async def test_who_joins_in_the_middle_of_a_record_gets_the_rest_of_it() -> None:
    history = await history_of(("push", 0, 4))
    assert ids(await read_all(history, StreamStart(2))) == ["3", "4"]


async def test_the_view_of_what_is_committed_can_be_resumed_anywhere() -> None:
    script = [("push", 0, 3), ("push", 1, 2), ("retry", 1, 1), ("push", 1, 2), ("done", 1, 1)]
    history = await history_of(*script, ("push", 0, 2), ("done", 0, 1), ("push", 2, 1))
    whole = await read_all(history, StreamStart(committed=True))
    assert ids(whole) == ["9.1", "9.2", "9", "12.1", "12.2", "12.3", "12.4", "12.5", "12"]
    assert [f.data.get("data") for f in whole] == [6, 7, None, 1, 2, 3, 8, 9, None]
    for n, frame in enumerate(whole):
        at, _, passed = (frame.id or "").partition(".")
        start = StreamStart(int(at) - bool(passed), int(passed or 0), committed=True)
        assert await read_all(history, start) == whole[n + 1 :]


async def test_it_waits_for_what_comes() -> None:
    history = await history_of()
    reader = Reader(history.streams, RUN, StreamStart())
    assert await reader.next(1) is Silence.YET
    reading = asyncio.ensure_future(reader.next(5_000))
    await asyncio.sleep(0.01)
    await history.push(STEPS[0], 2)
    assert ids(frames_of(await reading)) == ["1", "2"]  # type: ignore[arg-type]
    reading = asyncio.ensure_future(reader.next(5_000))
    await asyncio.sleep(0.01)
    reader.poke()
    assert await reading is Silence.YET
    reading = asyncio.ensure_future(reader.next(5_000))
    await asyncio.sleep(0.01)
    history.streams.release_all()
    assert await reading is Silence.ELSEWHERE
    reader.stays = True
    await history.do(Complete(200, None))
    assert ids(frames_of(await reader.next(0))) == ["3"]  # type: ignore[arg-type]
    assert await reader.next(0) is Silence.OVER
    reader.close()


async def test_after_sync_begins_where_the_first_execution_left() -> None:
    history = await history_of(("push", 0, 2))
    reader = Reader(history.streams, RUN, StreamStart(skips_sync=True))
    assert reader.id == ""
    assert await reader.next(1) is Silence.YET
    await history.act(("release", 0, 1))
    await history.push(STEPS[0], 1)
    frames = frames_of(await reader.next(0))  # type: ignore[arg-type]
    assert ids(frames) == ["4"], "the rollback at 3 belongs to the first stream"
    assert reader.id == "4"
    reader.close()


async def test_who_falls_behind_reads_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_endpoints_server.streams._KEPT", 300)
    monkeypatch.setattr("durable_endpoints_server.stream_reader._PAGE", 200)
    history = await history_of()
    reader = Reader(history.streams, RUN, StreamStart())
    assert await reader.next(0) is Silence.YET
    for _ in range(20):
        await history.push(STEPS[0], 3)
    frames: list[Frame] = []
    while not isinstance(found := await reader.next(0), Silence):
        frames += frames_of(found)
    assert ids(frames) == [str(n) for n in range(1, 61)]
    reader.close()


async def test_after_sync_passes_over_a_sync_phase_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable_endpoints_server.stream_reader._PAGE", 200)
    history = await history_of(*[("push", 0, 4)] * 10, ("done", 0, 1), ("release", 0, 1))
    await history.push(STEPS[1], 2)
    assert ids(await read_all(history, StreamStart(skips_sync=True))) == ["42", "43"]
    await history.act(("done", 1, 1))
    await history.do(Complete(200, None))
    assert ids(await read_all(history, StreamStart(skips_sync=True))) == ["42", "43", "44"]


async def test_a_reader_with_a_limit_gets_nothing_beyond_it() -> None:
    history = await history_of(("push", 0, 2), ("done", 0, 1), ("release", 0, 1))
    reader = Reader(history.streams, RUN, StreamStart(), limit=lambda: history.stream.handed_over)
    await history.push(STEPS[0], 5)
    assert ids(frames_of(await reader.next(0))) == ["1", "2", "3"]  # type: ignore[arg-type]
    for _ in range(3):
        await history.push(STEPS[0], 1)
        assert await reader.next(0) is Silence.YET
    reader.close()


async def test_what_is_kept_in_memory_is_for_readers_who_lack_nothing_before_it() -> None:
    channel = Streams(MemoryStore()).enter(RUN)
    records = [
        StreamRecord(at, 2, RecordKind.DATA, OUTSIDE, 0, 0, b"%d\n%d" % (at, at + 1))
        for at in (3, 5, 7)
    ]
    channel.publish(records)
    known = {position: channel.after(position) for position in range(9)}
    assert [known[position] for position in (0, 1)] == [None, None]
    counts = [len(kept) for position in range(2, 9) if (kept := known[position]) is not None]
    assert counts == [3, 3, 2, 2, 1, 1, 0]


async def test_a_reader_that_waits_hears_at_once_of_what_is_written() -> None:
    history = History(MemoryStore())
    reader = Reader(history.streams, RUN, StreamStart())
    for number in range(1, 4):
        reading = asyncio.ensure_future(reader.next(60_000))
        await asyncio.sleep(0.01)
        await history.push(STEPS[0], 1)
        frames = await asyncio.wait_for(reading, 5)
        assert isinstance(frames, bytes)
        assert [frame.id for frame in frames_of(frames)] == [str(number)]
    reader.close()


async def test_an_end_that_comes_while_the_log_is_read_is_not_missed() -> None:
    store = MemoryStore()
    history = History(store)
    ask = store.stream_page

    async def slowly(run_id: str, after: int, size: int) -> StreamPage | None:
        found = await ask(run_id, after, size)
        if history.run.status is Status.RUNNING and size > 1:
            await history.do(Complete(200, b""))
        return found

    store.stream_page = slowly  # type: ignore[method-assign]
    reader = Reader(history.streams, RUN, StreamStart())
    assert await asyncio.wait_for(reader.next(60_000), 5) is Silence.OVER
    reader.close()
