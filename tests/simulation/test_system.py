"""What we ship, in simulated histories: see `tests/simulation/system/`."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints_server.live import LiveRun
from tests.simulation.system.history import Mode, play, random_history
from tests.simulation.system.loop import Machine, Process, SimulatedLoop, StuckError
from tests.simulation.system.search import made_small, search, told

_SHARE = 50
_SHARES: list[tuple[Mode, int]] = [
    *[("embedded", first) for first in range(0, 300, _SHARE)],
    *[("remote", first) for first in range(0, 200, _SHARE)],
]


@pytest.mark.parametrize(("mode", "first"), _SHARES)
def test_all_is_right_whatever_goes_wrong(mode: Mode, first: int) -> None:
    found = search(mode, range(first, first + _SHARE))
    assert not found.wrong, f"python -m tests.simulation.system --system {mode} --replay SEED"
    for kind in ("RunEnded", "StepResolved", "EventUsed", "Streamed", "kill", "power", "clock"):
        assert found.counts[kind] > 0, kind


def test_a_bug_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, that nobody waits until a claim, a step or an end is on disk."""

    async def at_once(live: LiveRun, ticket: object) -> None:
        pass

    monkeypatch.setattr(LiveRun, "until_written", at_once)
    seed = next(seed for seed in range(100) if search("embedded", [seed]).wrong)
    history = random_history("embedded", seed)
    small = made_small(history, tries=25)
    assert play(small).wrong
    assert len(small.faults) <= len(history.faults)
    assert len(str(small.scenario)) <= len(str(history.scenario))
    assert "written: " in told(small)


@pytest.mark.parametrize("mode", ["embedded", "remote"])
def test_a_seed_gives_the_same_history_each_time(mode: Mode) -> None:
    for seed in range(3):
        first, second = (play(random_history(mode, seed)) for _ in range(2))
        assert first.trace == second.trace
        assert len(first.trace) > 5


def test_time_jumps_to_the_next_timer() -> None:
    loop = SimulatedLoop()

    async def work() -> float:
        await asyncio.sleep(86_400)
        return loop.time()

    assert loop.run(work(), within=100_000) == pytest.approx(86_400, abs=0.001)


def test_what_can_never_come_is_not_waited_for() -> None:
    loop = SimulatedLoop()
    with pytest.raises(StuckError):
        loop.run(asyncio.Event().wait(), within=1)
    loop.close()


def test_a_process_that_is_killed_is_not_unwound() -> None:
    loop = SimulatedLoop()
    process = Process(loop, "victim", Machine("m"))
    done: list[str] = []

    async def victim() -> None:
        try:
            done.append("begun")
            await asyncio.sleep(2)
        finally:
            done.append("unwound")

    async def killer() -> None:
        process.spawn(victim())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(5)

    loop.run(killer(), within=100)
    assert done == ["begun"]
    loop.close()


def test_a_process_that_is_held_goes_on_later() -> None:
    loop = SimulatedLoop()
    process = Process(loop, "sleeper", Machine("m"))
    done: list[float] = []

    async def sleeper() -> None:
        await asyncio.sleep(1)
        done.append(loop.time())

    async def holder() -> None:
        process.spawn(sleeper())
        await asyncio.sleep(0.5)
        process.hold()
        await asyncio.sleep(10)
        assert not done
        process.go_on()
        await asyncio.sleep(0.1)

    loop.run(holder(), within=100)
    assert done == [pytest.approx(10.5, abs=0.01)]
