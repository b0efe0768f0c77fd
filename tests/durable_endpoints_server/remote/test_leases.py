"""For how long a process may be silent, and when that does not matter."""

from __future__ import annotations

import pytest

from durable_endpoints.testing.clock import VirtualClock
from durable_endpoints_server.remote.leases import Leases

pytestmark = pytest.mark.anyio


async def test_a_process_is_silent_after_its_lease_unless_the_server_is_about_to_end() -> None:
    clock, silent = VirtualClock(), list[str]()
    leases = Leases(clock, 3_000, silent.append)
    leases.hear("one")
    clock.move_to(clock.now() + 2_000)
    leases.hear("two")
    clock.move_to(clock.now() + 1_000)
    assert silent == ["one"]
    leases.close()
    leases.hear("three")
    clock.move_to(clock.now() + 10_000)
    assert silent == ["one"]


async def test_each_process_is_watched_until_its_own_lease_is_over() -> None:
    clock, silent = VirtualClock(), list[str]()
    leases = Leases(clock, 3_000, silent.append)
    for name in ("one", "two", "three"):
        leases.hear(name)
        clock.move_to(clock.now() + 500)
    clock.move_to(clock.now() + 1_500)
    leases.forget("two")
    assert silent == ["one"]
    clock.move_to(clock.now() + 999)
    assert silent == ["one"]
    clock.move_to(clock.now() + 1)
    assert silent == ["one", "three"]


async def test_a_server_that_did_nothing_for_a_while_gives_each_process_a_whole_lease() -> None:
    """What it was told meanwhile is still to be read."""
    clock, silent = VirtualClock(), list[str]()
    leases = Leases(clock, 3_000, silent.append)
    leases.hear("one")
    clock.move_to(clock.now() + 60_000)
    assert silent == []
    clock.move_to(clock.now() + 2_999)
    assert silent == []
    clock.move_to(clock.now() + 1)
    assert silent == ["one"]
