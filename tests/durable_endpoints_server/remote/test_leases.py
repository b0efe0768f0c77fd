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
