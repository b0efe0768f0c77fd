"""Clients that wait for a run while time stands still: time is moved for them, or they are told.

A client that follows redirects waits at `/wait` for as long as its run does, which in a test is
until somebody lets time pass. If nobody will, the test must not hang without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from durable_endpoints.asgi_transport import current_exchange
from durable_endpoints.engines.base import StreamReader
from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.streams import Silence

if TYPE_CHECKING:
    from durable_endpoints.testing.engine import VirtualEngine

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds of real time in which nothing goes on, until a client that waits is told so."""
_LOOK = 0.1
_LOOK_OFTEN = 0.005


class Watch:
    """Looks after clients that wait."""

    def __init__(self, engine: VirtualEngine) -> None:
        self._engine = engine

    async def over(self, run_id: str, waiting: Coroutine[Any, Any, T]) -> T:
        """Await `waiting`, which is for a run. Raises `UsageError` if that may last for ever."""
        waits = asyncio.ensure_future(waiting)
        watches = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({waits, watches}, return_when=asyncio.FIRST_COMPLETED)
            if not waits.done():
                watches.result()
                raise self._told(await self._standstill(run_id))
            return waits.result()
        finally:
            waits.cancel()
            watches.cancel()
            await asyncio.gather(waits, watches, return_exceptions=True)

    async def _watch(self) -> None:
        """Return when nothing has gone on for long enough."""
        engine, loop = self._engine, asyncio.get_running_loop()
        since, seen = loop.time(), engine.clock.now()
        while loop.time() - since < PATIENCE:
            if engine.auto_advance and not engine.is_passing:
                await engine.pass_time()
            if not engine.is_quiet or engine.is_passing or engine.clock.now() != seen:
                since, seen = loop.time(), engine.clock.now()
            await asyncio.sleep(_LOOK_OFTEN if engine.auto_advance else _LOOK)

    async def _standstill(self, run_id: str) -> UsageError:
        return UsageError(
            f"a client waits for run {run_id}, and nothing has gone on for {PATIENCE:g} seconds: "
            f"{await self._engine.waits_of(run_id)}. Time passes in a test when you say so: `await "
            'engine.advance("24h")` while the client waits in a task of its own, engine.send_event'
            "(…) for an event, or VirtualEngine(auto_advance=True)"
        )

    @staticmethod
    def _told(error: UsageError) -> UsageError:
        """Raise it in the test too, where the client is one of the kit's."""
        if (exchange := current_exchange()) is not None:
            exchange.fail(error)
        return error


class WatchedReader:
    """A reader of a run's stream, looked after while it waits."""

    def __init__(self, reader: StreamReader, run_id: str, watch: Watch) -> None:
        self.stops_at_outcome = False
        self.stays = False
        self._reader = reader
        self._run_id = run_id
        self._watch = watch

    @property
    def position(self) -> int:
        return self._reader.position

    @property
    def id(self) -> str:
        return self._reader.id

    async def next(self, patience: int) -> bytes | Silence:
        reader = self._reader
        reader.stops_at_outcome, reader.stays = self.stops_at_outcome, self.stays
        try:
            return await self._watch.over(self._run_id, reader.next(patience))
        finally:
            self.stops_at_outcome = reader.stops_at_outcome

    def poke(self) -> None:
        self._reader.poke()

    def close(self) -> None:
        self._reader.close()
