"""Background tasks that are kept, logged and cancelled together; and the bell between threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextvars import ContextVar

import pytest

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.tasks import Bell, TaskSet

pytestmark = pytest.mark.anyio


# TaskSet


async def test_a_task_is_kept_alive_by_the_set_alone() -> None:
    tasks, ended = TaskSet(), asyncio.Event()

    async def work() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.02, future.set_result, None)
        await future
        ended.set()

    tasks.spawn(work(), "work")
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)
    await asyncio.wait_for(ended.wait(), 5)


async def test_what_a_task_raises_is_logged_with_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("no ink")

    task = TaskSet().spawn(fail(), "print the report")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == "print the report failed"
    assert "no ink" in caplog.text


async def test_a_store_that_fails_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise StorageError("runs.db: the disk is full")

    task = TaskSet().spawn(fail(), "receive an event")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert record.getMessage() == "receive an event failed: runs.db: the disk is full"
    assert record.exc_info is None


async def test_nothing_of_the_caller_leaks_into_a_task() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="clean")
    variable.set("of the request")

    async def look() -> str:
        return variable.get()

    assert await TaskSet().spawn(look(), "look") == "clean"


async def test_cancelling_waits_for_every_end_and_logs_no_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, ends = TaskSet(), list[int]()

    async def work(n: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ends.append(n)

    for n in range(3):
        tasks.spawn(work(n), f"work {n}")
    await asyncio.sleep(0)
    await tasks.cancel()
    assert sorted(ends) == [0, 1, 2]
    assert caplog.records == []


async def test_a_task_may_cancel_the_set_it_is_in() -> None:
    tasks, others = TaskSet(), list[str]()

    async def other() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            others.append("cancelled")
            raise

    async def end_all() -> str:
        await tasks.cancel()
        return "lived"

    tasks.spawn(other(), "other")
    await asyncio.sleep(0)
    assert await asyncio.wait_for(tasks.spawn(end_all(), "end all"), 5) == "lived"
    assert others == ["cancelled"]


# Bell


async def test_a_bell_that_was_rung_before_is_heard() -> None:
    bell = Bell()
    bell.ring()
    bell.listen()
    await asyncio.wait_for(bell.wait(), 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bell.wait(), 0.01)


async def test_many_rings_are_one_waking() -> None:
    bell, heard = Bell(), list[int]()
    bell.listen()

    async def listen() -> None:
        while True:
            await bell.wait()
            heard.append(1)

    listening = asyncio.create_task(listen())
    for _ in range(5):
        bell.ring()
    await asyncio.sleep(0.01)
    assert len(heard) == 1
    bell.ring()
    await asyncio.sleep(0.01)
    assert len(heard) == 2
    listening.cancel()


async def test_a_bell_is_heard_from_another_thread() -> None:
    bell = Bell()
    bell.listen()
    thread = threading.Thread(target=bell.ring)
    thread.start()
    await asyncio.wait_for(bell.wait(), 5)
    thread.join()


def test_a_ring_into_a_loop_that_is_gone_is_heard_on_the_next() -> None:
    bell = Bell()

    async def listen_once() -> None:
        bell.listen()

    async def listen_again() -> None:
        bell.listen()
        await asyncio.wait_for(bell.wait(), 1)

    asyncio.run(listen_once())
    bell.ring()
    asyncio.run(listen_again())
