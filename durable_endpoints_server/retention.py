"""Retention: ended runs, events and tracked requests go when their time is over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints_server.engine.facts import Change, Sweep

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")

_LIMIT = 500
_RUNS = 5
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
        while await host.store.is_sweepable(*instants):
            await host.store.submit(Change((Sweep(*instants, _LIMIT, _RUNS),))).wait()
            await asyncio.sleep(_PAUSE)
