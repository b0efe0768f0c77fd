"""The system clock: rounding, alarms, and a wall clock that is stepped."""

from __future__ import annotations

import asyncio
import time

import pytest

from durable_endpoints.testing import VirtualClock
from durable_endpoints_server import clock as module
from durable_endpoints_server.clock import SystemClock

pytestmark = pytest.mark.anyio


def test_now_is_rounded_up_and_elapsed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is scheduled from the one has passed by the other never too early."""
    clock = SystemClock()
    for nanoseconds, now, elapsed in (
        (5_000_000, 5, 5),
        (5_000_001, 6, 5),
        (5_999_999, 6, 5),
    ):
        monkeypatch.setattr(time, "time_ns", lambda value=nanoseconds: value)
        assert (clock.now(), clock.elapsed()) == (now, elapsed)


async def test_an_alarm_rings_once_when_its_instant_has_passed() -> None:
    clock, rung = SystemClock(), asyncio.Event()
    calls: list[int] = []

    def ring() -> None:
        calls.append(clock.elapsed())
        rung.set()

    instant = clock.now() + 30
    clock.call_at(instant, ring)
    await asyncio.wait_for(rung.wait(), 5)
    await asyncio.sleep(0.02)
    assert len(calls) == 1
    assert calls[0] >= instant


async def test_an_alarm_of_the_past_rings_at_once_but_not_in_the_call() -> None:
    clock, calls = SystemClock(), list[int]()
    clock.call_at(clock.now() - 60_000, lambda: calls.append(1))
    assert calls == []
    await asyncio.sleep(0.01)
    assert calls == [1]


async def test_an_alarm_can_be_cancelled_before_and_after() -> None:
    clock, calls = SystemClock(), list[str]()
    before = clock.call_at(clock.now() + 10, lambda: calls.append("before"))
    before.cancel()
    before.cancel()
    after = clock.call_at(clock.now() + 5, lambda: calls.append("after"))
    await asyncio.sleep(0.04)
    after.cancel()
    assert calls == ["after"]


async def test_alarms_ring_in_the_order_of_their_instants() -> None:
    clock, calls = SystemClock(), list[int]()
    now = clock.now()
    for delay in (45, 15, 30):
        clock.call_at(now + delay, lambda delay=delay: calls.append(delay))  # type: ignore[misc]
    await asyncio.sleep(0.1)
    assert calls == [15, 30, 45]


async def test_an_alarm_follows_a_clock_that_is_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naps are short, so a step is noticed at the end of one, however far the instant was."""
    offset = 0.0
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + round(offset * 1e9))
    monkeypatch.setattr(module, "_LONGEST_NAP", 0.01)
    clock, calls = SystemClock(), list[int]()
    clock.call_at(clock.now() + 3_600_000, lambda: calls.append(1))
    await asyncio.sleep(0.05)
    assert calls == []
    offset = 3_601.0  # an hour forward
    await asyncio.sleep(0.05)
    assert calls == [1]

    calls.clear()
    clock.call_at(clock.now() + 30, lambda: calls.append(2))
    offset -= 60  # a minute back: then it is not due for that minute
    await asyncio.sleep(0.1)
    assert calls == []
    offset += 60
    await asyncio.sleep(0.1)
    assert calls == [2]


# The virtual clock of the tests


async def test_virtual_time_stands_still_until_it_is_moved() -> None:
    clock, calls = VirtualClock(), list[str]()
    start = clock.now()
    clock.call_at(start + 10, lambda: calls.append("ten"))
    clock.call_at(start + 5, lambda: calls.append("five"))
    gone = clock.call_at(start + 7, lambda: calls.append("seven"))
    gone.cancel()
    await asyncio.sleep(0.02)
    assert (clock.now(), calls) == (start, [])
    assert clock.next_alarm() == start + 5
    clock.move_to(start + 20)
    assert calls == ["five", "ten"]
    assert clock.next_alarm() is None
    clock.move_to(start)  # never back
    assert clock.now() == start + 20
