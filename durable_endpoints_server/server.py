"""A companion server: the engine, and everything that its routes talk to."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from durable_endpoints_server.auth import Keys
from durable_endpoints_server.clock import Clock
from durable_endpoints_server.engine.model import Policy
from durable_endpoints_server.host import Host, HostOptions
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.owner import new_owner
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Entry, Store


class Executor(Protocol):
    """A way in which runs are executed: over a connection, or by calling an application back."""

    def can_execute(self, entry: Entry) -> bool:
        """Whether the run is of an application that can be reached in this way now."""
        ...

    def execute(self, live: LiveRun, entry: Entry) -> Awaitable[None]:
        """Execute a run that was claimed. Returns when this execution has left it."""
        ...


class Server:
    """One server. Its routes parse, ask something of this, and render."""

    def __init__(self, settings: ServerSettings, store: Store, clock: Clock | None = None) -> None:
        self.settings = settings
        self.keys = Keys(settings)
        policy = Policy(run_retention=settings.retention, event_retention=settings.event_retention)
        options = HostOptions(new_owner(), policy, settings.max_executions)
        self.host = Host(store, options, clock)
        self._executors: list[Executor] = []

    def add_executor(self, executor: Executor) -> None:
        """Runs may be executed in one more way, or by more applications, from now on."""
        if executor not in self._executors:
            self._executors.append(executor)
        self.host.dispatcher.set_executor(self._execute, self._can_execute)

    async def start(self) -> None:
        """Serve on this event loop: what an earlier process left goes on."""
        await self.host.attach()

    async def stop(self) -> None:
        """Write what was recorded, and let go of the store."""
        await self.host.stop()

    def _executor_for(self, entry: Entry) -> Executor | None:
        return next((one for one in self._executors if one.can_execute(entry)), None)

    def _can_execute(self, entry: Entry) -> bool:
        return self._executor_for(entry) is not None

    async def _execute(self, live: LiveRun, entry: Entry) -> None:
        executor = self._executor_for(entry)
        if executor is None:  # it went away in this very moment
            await live.release("released")
        else:
            await executor.execute(live, entry)
