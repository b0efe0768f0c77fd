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
"""Of the smallest portion. A run may have thousands of steps and a large response, or nothing."""
_MOST_RUNS = 160
_SHORT = 0.005
"""Seconds beyond a commit: after a portion that took no longer, the next has twice as many runs."""
_LONG = 0.01
"""Seconds beyond a commit: after a portion that took longer, the next has half as many."""
_LOOK = 50
"""After so many portions the smallest one shows again what a commit takes."""
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
        portions = Portions()
        while await host.store.is_sweepable(*instants):
            began = time.monotonic()
            sweep = Sweep(*instants, _LIMIT, portions.runs)
            await host.store.submit(Change((sweep,))).wait()
            portions.took(time.monotonic() - began)
            await asyncio.sleep(_PAUSE)


class Portions:
    """How many runs are deleted at once: as many as hold up writers for 5 to 10 ms.

    That is beyond what each commit takes anyway. Where that alone is longer, on a slow disk, small
    portions would spare nobody, and the file would grow faster than they delete.
    """

    def __init__(self) -> None:
        self.runs = _RUNS
        """Of the next portion."""
        self._usual = _RUNS
        self._commit = 0.0
        self._count = 0

    def took(self, seconds: float) -> None:
        """The portion is on disk, after so long."""
        if self._count % _LOOK == 0:
            self._commit = seconds
        self._commit = min(self._commit, seconds)
        extra = seconds - self._commit
        if self._count % _LOOK and extra < _SHORT:
            self._usual = min(2 * self._usual, _MOST_RUNS)
        elif extra > _LONG:
            self._usual = max(self._usual // 2, _RUNS)
        self._count += 1
        self.runs = self._usual if self._count % _LOOK else _RUNS
