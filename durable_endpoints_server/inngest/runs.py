"""Runs of Inngest's SDKs at this server: the services, put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import httpx

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints_server.inngest.apps import Apps
from durable_endpoints_server.inngest.backoff import Backoff
from durable_endpoints_server.inngest.caller import Caller
from durable_endpoints_server.inngest.checkpoints import Checkpoints
from durable_endpoints_server.inngest.execution import Means
from durable_endpoints_server.inngest.reentry import Reentries

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host
    from durable_endpoints_server.settings import ServerSettings
    from durable_endpoints_server.tees import Tees

logger = logging.getLogger("durable_endpoints")

_LOOK: Final = 60_000
"""Milliseconds between two looks for runs that nobody speaks of any more."""


class InngestRuns:
    """The part of a server that serves Inngest's SDKs."""

    def __init__(
        self,
        host: Host,
        settings: ServerSettings,
        tees: Tees,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport` replaces the network."""
        self._host = host
        self._settings = settings
        backoff = Backoff(settings.retry_interval)
        key = settings.signing_keys[0] if settings.signing_keys else None
        self._caller = Caller(key, transport)
        self.apps = Apps(host, settings.app_origins, dev=settings.dev)
        self.checkpoints = Checkpoints(host, self.apps, backoff)
        share = max(1, settings.max_executions * 3 // 4)
        self.reentries = Reentries(Means(host, self._caller, backoff, tees), self.apps, share)

    async def load(self) -> None:
        """Find out who may be called back. Before the host looks for runs to execute."""
        await self.apps.load()

    def start(self) -> None:
        """Look after silent runs, on the event loop of the host."""
        self._host.tasks.spawn(self._give_up_silent_runs(), "give up silent runs")

    async def stop(self) -> None:
        """Let the calls under way end, for a time."""
        await self.reentries.drain(self._settings.drain_timeout / 1_000)

    async def close(self) -> None:
        """Let go of the network."""
        await self._caller.close()

    async def _give_up_silent_runs(self) -> None:
        clock, patience = self._host.clock, self._settings.abandon_after
        while True:
            rung = asyncio.Event()
            alarm = clock.call_at(clock.now() + min(_LOOK, patience), rung.set)
            try:
                await rung.wait()
                await self.checkpoints.give_up(clock.now() - patience)
            except EngineError as error:
                logger.warning("silent runs could not be given up: %s", error)
            finally:
                alarm.cancel()
