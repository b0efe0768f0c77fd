"""Clients that wait for an answer, and how long they are let wait.

Nearly every client is answered long before its patience ends, so watching one must cost next to
nothing: those with the same patience stand in one queue in the order in which they came, and one
timer looks at its head.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable_endpoints.ending import Ending
    from durable_endpoints.engines.base import Engine


class Queue:
    """Clients of one event loop with the same patience."""

    __slots__ = ("_engine", "_is_timed", "_patience", "_waiting", "loop")

    def __init__(self, engine: Engine, patience: int, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._engine = engine
        self._patience = patience
        self._waiting: dict[Ending, int] = {}
        self._is_timed = False

    def add(self, ending: Ending, since: int) -> None:
        """Somebody waits, and has waited `since` that instant."""
        self._waiting[ending] = since + self._patience
        if not self._is_timed:
            self._look_in(self._patience)

    def remove(self, ending: Ending) -> None:
        """They wait no longer."""
        self._waiting.pop(ending, None)

    def _look_in(self, delay: int) -> None:
        self._is_timed = True
        self._engine.call_later(delay, self._answer_who_waited)

    def _answer_who_waited(self) -> None:
        self._is_timed = False
        if not self._waiting:
            return  # and the engine may have stopped meanwhile
        now = self._engine.now()
        for ending, instant in list(self._waiting.items()):
            if instant > now:
                self._look_in(instant - now)
                return
            del self._waiting[ending]
            ending.respond_now()


class Queues:
    """The queues of one application."""

    def __init__(self) -> None:
        self._queues: dict[int, Queue] = {}

    def of(self, engine: Engine, patience: int, loop: asyncio.AbstractEventLoop) -> Queue:
        """The queue on this event loop for clients that wait `patience` milliseconds."""
        queue = self._queues.get(patience)
        if queue is None or queue.loop is not loop:
            queue = self._queues[patience] = Queue(engine, patience, loop)
        return queue
