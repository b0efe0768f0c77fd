"""Retention: ended runs, events and tracked requests go when their time is over."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints_server.engine.facts import Change, Sweep

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

_LIMIT = 500
_RUNS = 5
"""Of the first portion. A run may have thousands of steps and a large response, or nothing."""
_MOST_RUNS = 160
_SHORT = 0.005
"""Seconds: after a portion that took no longer, the next one has twice as many runs."""
_LONG = 0.01
"""Seconds: after a portion that took longer, the next one has half as many."""
_PAUSE = 0.02
"""Seconds between two portions, which belong to everybody else."""
_RESPONSE_RETENTION = 3_600_000
"""How long a response that is kept only until delivered waits for somebody who asks."""


class Sweeper:
    """Deletes in small portions, every so often."""

    def __init__(self, host: Host, interval: float) -> None:
        self._host = host
        self._interval = interval

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            try:
                await self.sweep()
            except EngineError as error:
                logger.warning("what is past its retention could not be deleted: %s", error)
            await asyncio.sleep(self._interval)

    async def sweep(self) -> None:
        """Delete everything that is past its retention now."""
        host, now = self._host, self._host.clock.now()
        instants = (
            now - host.policy.run_retention,
            now - host.policy.event_retention,
            now - _RESPONSE_RETENTION,
        )
        runs = _RUNS
        while await host.store.is_sweepable(*instants):
            began = time.monotonic()
            await host.store.submit(Change((Sweep(*instants, _LIMIT, runs),))).wait()
            runs = _next_portion(runs, time.monotonic() - began)
            await asyncio.sleep(_PAUSE)


def _next_portion(runs: int, seconds: float) -> int:
    """How many runs are deleted at once, when `runs` took so long. Writers wait for a portion."""
    if seconds < _SHORT:
        return min(2 * runs, _MOST_RUNS)
    return max(runs // 2, _RUNS) if seconds > _LONG else runs
