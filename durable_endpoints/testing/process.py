"""The process that an engine for tests plays: what it writes, and how it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from durable_endpoints.errors import StorageError
from durable_endpoints.testing.script import Script
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.host import Host
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Lane, Store, Ticket
from durable_endpoints_server.store.memory import MemoryStore


class _Disk:
    """A store as one process writes it, which may be lost while it does."""

    def __init__(self, store: Store, script: Script, lose: Callable[[], None]) -> None:
        self._store = store
        self._script = script
        self._lose = lose

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        when = self._script.crashes_in(change)
        if when is None:
            return self._store.submit(change, lane)
        if when == "recorded":
            self._store.submit(change, lane)
        self._lose()
        raise _crashed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def disk(store: Store, script: Script, lose: Callable[[], None]) -> Store:
    """`store` for one process: `lose` is called when the script wants it to crash at a write."""
    return cast("Store", _Disk(store, script, lose))


class _Gone(MemoryStore):
    """The store as a process sees it that has crashed."""

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        raise _crashed()


def _crashed() -> StorageError:
    return StorageError("this process has crashed")


def lose_process(host: Host) -> Coroutine[Any, Any, None]:
    """Let nothing be written any more, and stop whatever goes on: at once what is executed on this
    event loop, and the rest by awaiting what is returned."""
    host.store = _Gone()
    lives = list(host.live.values())
    for live in lives:
        _unwind(live)
    return _end(host, lives)


def _unwind(live: LiveRun) -> None:
    """Tell an execution that its run is no longer its own, on its event loop."""
    listener = live.listener
    if listener is None or live.is_stranded:
        return
    if live.loop is asyncio.get_running_loop():
        listener.stopped("lost")
    else:
        live.loop.call_soon_threadsafe(listener.stopped, "lost")


async def _end(host: Host, lives: list[LiveRun]) -> None:
    for live in lives:
        await live.abandon()
    await host.stop()
