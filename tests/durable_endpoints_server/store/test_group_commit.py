"""Group commit: order, batches, failures, several event loops, the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import pytest

from durable_endpoints.protocol.errors import EngineClosedError, StorageError
from durable_endpoints_server.store import group_commit as module
from durable_endpoints_server.store.base import Lane, RefusedError
from durable_endpoints_server.store.group_commit import GroupCommit, WriteError

pytestmark = pytest.mark.anyio

Respond = Callable[[Sequence[str]], Collection[int]]


class Disk:
    """What the committer writes to: it notes batches, can be held up, and answers as told."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.respond: Respond = lambda changes: ()
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_writing = threading.Event()

    def write(self, changes: Sequence[str], is_relaxed: bool) -> Collection[int]:
        self.is_writing.set()
        assert self.may_write.wait(10)
        self.batches.append(list(changes))
        return self.respond(changes)

    @property
    def written(self) -> list[str]:
        return [change for batch in self.batches for change in batch]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def commits(disk: Disk) -> AsyncIterator[GroupCommit[str]]:
    commits = GroupCommit(disk.write, "writer of a test")
    yield commits
    disk.may_write.set()
    await asyncio.to_thread(commits.close)


async def hold_up(disk: Disk, commits: GroupCommit[str]) -> None:
    """Let the disk be busy with a batch of one change."""
    disk.may_write.clear()
    commits.submit("held up", None)
    assert await asyncio.to_thread(disk.is_writing.wait, 5)


# Batches


async def test_what_one_turn_submits_is_one_batch_in_order(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    changes = [f"change {n}" for n in range(500)]
    tickets = [commits.submit(change, None) for change in changes]
    await tickets[-1].wait()
    assert disk.batches == [changes]


async def test_what_comes_while_the_disk_is_busy_is_the_next_batch(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    await hold_up(disk, commits)
    tickets = []
    for n in range(10):
        tickets.append(commits.submit(f"{n}", None))
        await asyncio.sleep(0)
    disk.may_write.set()
    await asyncio.gather(*(ticket.wait() for ticket in tickets))
    assert disk.batches == [["held up"], [f"{n}" for n in range(10)]]


async def test_nobody_is_acknowledged_before_the_disk_is(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    disk.may_write.clear()
    calls: list[str] = []
    ticket = commits.submit("a", None)
    ticket.then(lambda: calls.append("then"))
    waiting = asyncio.create_task(ticket.wait())
    assert await asyncio.to_thread(disk.is_writing.wait, 5)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert calls == []
    disk.may_write.set()
    await waiting
    assert calls == ["then"]


async def test_a_ticket_may_be_asked_late_and_often(commits: GroupCommit[str]) -> None:
    calls: list[int] = []
    ticket = commits.submit("a", None)
    for n in range(3):
        await ticket.wait()
        ticket.then(lambda n=n: calls.append(n))  # type: ignore[misc]
    await asyncio.sleep(0)
    assert calls == [0, 1, 2]


async def test_a_waiter_that_gives_up_holds_up_nobody(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    disk.may_write.clear()
    first, second = commits.submit("a", None), commits.submit("b", None)
    impatient = asyncio.create_task(first.wait())
    patient = asyncio.create_task(second.wait())
    await asyncio.sleep(0)
    impatient.cancel()
    disk.may_write.set()
    await patient
    assert impatient.cancelled()
    assert disk.written == ["a", "b"]


# Refusals and failures


async def test_a_refusal_concerns_its_own_change_only(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    disk.respond = lambda changes: [changes.index("b")] if "b" in changes else ()
    calls: list[str] = []
    tickets = {name: commits.submit(name, None) for name in "abc"}
    for name, ticket in tickets.items():
        ticket.then(lambda name=name: calls.append(name))  # type: ignore[misc]
    await tickets["a"].wait()
    with pytest.raises(RefusedError):
        await tickets["b"].wait()
    await tickets["c"].wait()
    assert calls == ["a", "c"]
    assert commits.is_healthy


def out_of_space(changes: Sequence[str]) -> Collection[int]:
    raise WriteError(StorageError("the disk is full"), common=True)


async def test_a_failure_of_the_disk_fails_the_batch_and_no_later_one(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    disk.respond = out_of_space
    calls: list[str] = []
    tickets = [commits.submit(name, None) for name in "abc"]
    for ticket in tickets:
        ticket.then(lambda: calls.append("never"))
        with pytest.raises(StorageError, match="the disk is full"):
            await ticket.wait()
    assert disk.batches == [["a", "b", "c"]]  # it is not tried one by one
    assert not commits.is_healthy
    disk.respond = lambda changes: ()
    await commits.submit("d", None).wait()
    assert commits.is_healthy
    await asyncio.sleep(0)
    assert calls == []


async def test_one_change_that_cannot_be_written_does_not_fail_the_others(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    def respond(changes: Sequence[str]) -> Collection[int]:
        if "too big" in changes:
            raise WriteError(StorageError("string or blob too big"), common=False)
        return ()

    disk.respond = respond
    tickets = [commits.submit(name, None) for name in ("a", "too big", "c")]
    await tickets[0].wait()
    with pytest.raises(StorageError, match="too big"):
        await tickets[1].wait()
    await tickets[2].wait()
    assert disk.batches == [["a", "too big", "c"], ["a"], ["too big"], ["c"]]
    assert commits.is_healthy


async def test_an_error_of_the_writers_own_is_a_storage_error_and_the_thread_lives(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    def respond(changes: Sequence[str]) -> Collection[int]:
        raise KeyError("a bug")

    disk.respond = respond
    with pytest.raises(StorageError, match="a bug"):
        await commits.submit("a", None).wait()
    disk.respond = lambda changes: ()
    await commits.submit("b", None).wait()


async def test_a_value_that_cannot_be_written_hurts_nobody_else(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    def respond(changes: Sequence[str]) -> Collection[int]:
        if "bad" in changes:
            raise OverflowError("no database holds this")
        return ()

    disk.respond = respond
    tickets = [commits.submit(name, None) for name in ("good", "bad", "better")]
    await tickets[0].wait()
    with pytest.raises(StorageError, match="no database holds this"):
        await tickets[1].wait()
    await tickets[2].wait()
    assert commits.is_healthy


async def test_a_lane_that_failed_stays_failed(disk: Disk, commits: GroupCommit[str]) -> None:
    broken, whole = Lane(), Lane()
    disk.respond = out_of_space
    for lane in (broken, None):
        with pytest.raises(StorageError):
            await commits.submit("lost", lane).wait()
    disk.respond = lambda changes: ()
    tickets = [
        commits.submit("of the broken lane", broken),
        commits.submit("of another lane", whole),
        commits.submit("of none", None),
    ]
    with pytest.raises(StorageError, match="the disk is full"):
        await tickets[0].wait()
    await tickets[1].wait()
    await tickets[2].wait()
    assert disk.batches[-1] == ["of another lane", "of none"]


async def test_a_lane_that_fails_within_a_batch_takes_its_later_changes_along(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    def respond(changes: Sequence[str]) -> Collection[int]:
        if "bad" in changes:
            raise WriteError(StorageError("cannot be written"), common=False)
        return ()

    disk.respond = respond
    lane = Lane()
    names = [("before", lane), ("bad", lane), ("other", None), ("completion", lane)]
    tickets = {name: commits.submit(name, of) for name, of in names}
    await tickets["before"].wait()
    await tickets["other"].wait()
    for name in ("bad", "completion"):
        with pytest.raises(StorageError):
            await tickets[name].wait()
    assert ["completion"] not in disk.batches


async def test_a_batch_of_failed_lanes_only_writes_nothing(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    lane = Lane()
    lane.failure = StorageError("before")
    with pytest.raises(StorageError, match="before"):
        await commits.submit("a", lane).wait()
    assert disk.batches == []
    await commits.submit("b", None).wait()  # and the thread goes on
    assert disk.batches == [["b"]]


async def test_a_refused_change_does_not_break_its_lane(
    disk: Disk, commits: GroupCommit[str]
) -> None:
    lane = Lane()
    disk.respond = lambda changes: [0] if "a" in changes else ()
    with pytest.raises(RefusedError):
        await commits.submit("a", lane).wait()
    await commits.submit("b", lane).wait()


# Event loops


def test_changes_of_several_loops_are_all_acknowledged(disk: Disk) -> None:
    commits = GroupCommit(disk.write, "writer of a test")
    acknowledged: list[str] = []

    async def work(name: str) -> None:
        for n in range(50):
            await commits.submit(f"{name}{n}", None).wait()
            acknowledged.append(f"{name}{n}")

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(f"{n}-"))) for n in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    commits.close()
    assert sorted(acknowledged) == sorted(disk.written)
    assert len(acknowledged) == 200
    for n in range(4):  # the order of each is kept
        mine = [change for change in disk.written if change.startswith(f"{n}-")]
        assert mine == [f"{n}-{i}" for i in range(50)]


def test_a_loop_that_is_gone_holds_up_nobody(disk: Disk) -> None:
    commits = GroupCommit(disk.write, "writer of a test")

    async def leave() -> None:
        disk.may_write.clear()
        commits.submit("first", None)
        await asyncio.to_thread(disk.is_writing.wait, 5)
        ticket = commits.submit("second", None)
        ticket.then(lambda: None)
        asyncio.get_running_loop().call_soon(disk.may_write.set)

    async def come() -> None:
        await asyncio.wait_for(commits.submit("third", None).wait(), 5)

    asyncio.run(leave())
    asyncio.run(come())
    commits.close()
    assert disk.written == ["first", "second", "third"]


def test_what_a_dying_loop_submitted_last_is_written_with_the_next(disk: Disk) -> None:
    """Its loop closes before the turn ends in which the batch would have been kicked off."""
    commits = GroupCommit(disk.write, "writer of a test")
    loop = asyncio.new_event_loop()

    async def leave() -> None:
        commits.submit("last", None)
        loop.stop()

    loop.create_task(leave())
    try:
        loop.run_forever()
    finally:
        loop.close()

    async def come() -> None:
        await asyncio.wait_for(commits.submit("first", None).wait(), 5)

    asyncio.run(come())
    commits.close()
    assert disk.written == ["last", "first"]


# The end


async def test_closing_writes_what_was_submitted(disk: Disk) -> None:
    commits = GroupCommit(disk.write, "writer of a test")
    await hold_up(disk, commits)
    tickets = [commits.submit(name, None) for name in "abc"]
    closing = asyncio.create_task(asyncio.to_thread(commits.close))
    await asyncio.sleep(0.02)
    assert not closing.done()
    disk.may_write.set()
    await closing
    for ticket in tickets:
        await ticket.wait()
    assert disk.written == ["held up", "a", "b", "c"]


async def test_closing_in_the_turn_of_the_submission_writes_it(disk: Disk) -> None:
    commits = GroupCommit(disk.write, "writer of a test")
    commits.submit("a", None)
    commits.close()
    assert disk.written == ["a"]


async def test_closing_twice_is_closing_and_nothing_is_taken_after(disk: Disk) -> None:
    commits = GroupCommit(disk.write, "writer of a test")
    commits.close()
    commits.close()
    with pytest.raises(EngineClosedError, match="closed"):
        commits.submit("a", None)
    assert not [t for t in threading.enumerate() if t.name == "writer of a test"]


async def test_closing_with_a_failing_disk_ends_and_says_so(disk: Disk) -> None:
    commits = GroupCommit(disk.write, "writer of a test")
    disk.respond = out_of_space
    ticket = commits.submit("a", None)
    await asyncio.to_thread(commits.close)
    with pytest.raises(StorageError):
        await ticket.wait()


class Seconds:
    """A clock for the committer, which stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


async def test_a_stream_without_a_pause_is_synced_all_the_same(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is less than 30 ms between two chunks, and more between the first and the last."""
    clock, synced = Seconds(), threading.Event()
    monkeypatch.setattr(module, "time", clock)
    commits = GroupCommit(disk.write, "writer of a test", synced.set)
    for _ in range(3):
        assert not synced.is_set()
        await commits.submit("chunk", None, is_relaxed=True).wait()
        clock.now += 0.02
    await commits.submit("chunk", None, is_relaxed=True).wait()
    assert await asyncio.to_thread(synced.wait, 1)
    await asyncio.to_thread(commits.close)
