"""The system clock: rounding, alarms, and a wall clock that is stepped."""

from __future__ import annotations

import asyncio
import time

import pytest

from durable_endpoints.testing import VirtualClock
from durable_endpoints_server import clock as module
from durable_endpoints_server.clock import SystemClock

pytestmark = pytest.mark.anyio


class Machine:
    """A machine whose clock can be set, and whose time stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown = 1_800_000_000_000_000_000
        self.up = 5_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda: self.shown)
        monkeypatch.setattr(time, "monotonic", lambda: self.up / 1e9)

    def set_by(self, seconds: float) -> None:
        self.shown += round(seconds * 1e9)

    def pass_by(self, seconds: float) -> None:
        self.up += round(seconds * 1e9)
        self.shown += round(seconds * 1e9)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_now_is_rounded_up_and_elapsed_down(machine: Machine) -> None:
    """So that what is scheduled from the one has passed by the other never too early."""
    for nanoseconds, now, elapsed in ((0, 5, 5), (1, 6, 5), (999_999, 6, 5)):
        machine.shown = 5_000_000 + nanoseconds
        clock = SystemClock()
        assert (clock.now(), clock.elapsed()) == (now, elapsed)


def test_time_goes_on_when_the_clock_is_set_back(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SystemClock()
    began = clock.now()
    machine.set_by(-3_600)
    assert clock.now() == began
    assert "set back by 3600 s" in caplog.text
    machine.pass_by(60)
    assert began + 60_000 * 0.95 <= clock.now() <= began + 60_000


def test_time_follows_when_the_clock_is_set_forward(machine: Machine) -> None:
    """As it does when the machine has slept."""
    clock = SystemClock()
    began = clock.now()
    machine.set_by(3_600)
    assert clock.now() == began + 3_600_000
    machine.set_by(-3_600)  # which was a mistake
    assert clock.now() == began + 3_600_000


def test_time_and_the_clock_come_together_again(machine: Machine) -> None:
    clock = SystemClock()
    machine.set_by(-60)
    last = clock.now()
    for _ in range(21 * 60):
        machine.pass_by(1)
        assert last < clock.now() <= last + 1_000
        last = clock.now()
    assert clock.now() == machine.shown // 1_000_000
    machine.set_by(-60)
    machine.set_by(60)
    assert clock.now() == machine.shown // 1_000_000


def test_an_instant_of_the_machines_clock_is_told_in_engine_time(machine: Machine) -> None:
    clock = SystemClock()
    machine.set_by(-60)
    assert clock.of_machine(machine.shown // 1_000_000) == clock.now()


def test_a_later_process_goes_on_where_an_earlier_one_was(machine: Machine) -> None:
    clock = SystemClock()
    before = clock.now()
    clock.reach(before - 1_000)
    assert clock.now() == before
    clock.reach(before + 60_000)
    assert clock.now() == before + 60_000


def test_small_differences_between_two_clocks_of_a_machine_add_up_to_nothing(
    machine: Machine,
) -> None:
    """A pause between the readings of the two looks as if one of them had been set."""
    clock = SystemClock()
    for _ in range(1_000):
        machine.up += 50_000_000
        clock.now()
        machine.shown += 50_000_000
        clock.now()
    assert clock.now() - machine.shown // 1_000_000 <= 50


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


async def test_an_alarm_follows_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naps are short, so a step is noticed at the end of one, however far the instant was."""
    offset = 0.0
    real_ns = time.time_ns
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
    offset -= 60  # a minute back
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
