"""A companion server: the engine, and everything that its routes talk to."""

from __future__ import annotations

from typing import Protocol

import httpx

from durable_endpoints_server.auth import Keys
from durable_endpoints_server.clock import Clock
from durable_endpoints_server.dispatcher import Nobody, Place
from durable_endpoints_server.engine.model import Policy, Run
from durable_endpoints_server.host import Host, HostOptions
from durable_endpoints_server.inngest.runs import InngestRuns
from durable_endpoints_server.owner import new_owner
from durable_endpoints_server.realtime import Topics
from durable_endpoints_server.remote.hub import Hub, HubOptions
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Entry, Store
from durable_endpoints_server.tees import Tees


class Executor(Protocol):
    """A way in which runs are executed: over a connection, or by calling an application back."""

    def place(self, entry: Entry) -> Place | Nobody:
        """Where a run that is ready can be executed in this way now."""
        ...

    def keeps(self, run: Run) -> bool:
        """Whether a run that was being executed when an earlier server ended may still be, and is
        not lost with that. Asked once for each, at the start."""
        ...


class Server:
    """One server. Its routes parse, ask something of this, and render."""

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport` replaces the network in calls of applications."""
        self.settings = settings
        self.keys = Keys(settings)
        policy = Policy(
            max_steps=settings.max_steps,
            max_result=settings.max_result,
            max_memo=settings.max_memo,
            max_stream=settings.max_stream,
            retry_base=settings.retry_base,
            retry_factor=settings.retry_factor,
            retry_cap=settings.retry_cap,
            run_retention=settings.retention,
            event_retention=settings.event_retention,
        )
        options = HostOptions(new_owner(), policy, settings.max_executions, executes_runs=False)
        self.host = Host(store, options, clock)
        self.host.is_executed_elsewhere = self._is_executed_elsewhere
        self.tees = Tees(self.host.streams)
        self.topics = Topics()
        self._executors: list[Executor] = []
        self.inngest = InngestRuns(self.host, settings, self.tees, transport)
        self.inngest.apps.changed = lambda: self.add_executor(self.inngest.reentries)
        self.hub = Hub(self.host, HubOptions(settings.lease, settings.heartbeat, settings.dev))
        self.add_executor(self.hub)

    def add_executor(self, executor: Executor) -> None:
        """Runs may be executed in one more way, or by more applications, from now on."""
        if executor not in self._executors:
            self._executors.append(executor)
        self.host.dispatcher.place_by(self._place)

    async def start(self) -> None:
        """Serve on this event loop: what an earlier process left goes on."""
        await self.inngest.load()
        self.add_executor(self.inngest.reentries)
        await self.host.attach()
        self.inngest.start()

    def begin_drain(self) -> None:
        """Start nothing new, and let go of whoever waits: they ask the next process."""
        self.hub.close()
        self.host.begin_drain()
        self.topics.release_all()

    async def stop(self) -> None:
        """Write what was recorded, and let go of the store."""
        self.begin_drain()
        await self.inngest.stop()
        await self.host.stop()
        await self.inngest.close()

    def _place(self, entry: Entry) -> Place | Nobody:
        why = Nobody.HERE
        for executor in self._executors:
            place = executor.place(entry)
            if isinstance(place, Place):
                return place
            if place is Nobody.FREE:
                why = place
        return why

    def _is_executed_elsewhere(self, run: Run) -> bool:
        return any(executor.keeps(run) for executor in self._executors)
