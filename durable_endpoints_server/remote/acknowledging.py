"""Acknowledgements: what a session has said is on disk.

Changes reach the disk in the order in which they were submitted, so one task that waits for one
after the other is enough for all sessions, and what one commit held is acknowledged together.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Ticket
from durable_endpoints_server.tasks import TaskSet


class Acknowledged(Protocol):
    """A session, as far as it matters here."""

    def acknowledge(self, number: int, tail: int) -> None:
        """Its frames up to this one are on disk, and its stream log up to the position `tail`."""
        ...

    def refuse(self, number: int, error: EngineError) -> None:
        """They are not, and never will be."""
        ...


class _Pending(NamedTuple):
    number: int
    live: LiveRun
    ticket: Ticket
    tail: int


class Acknowledger:
    """Waits for what sessions have submitted, and tells them."""

    def __init__(self) -> None:
        self._pending: dict[Acknowledged, _Pending] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, session: Acknowledged, number: int, live: LiveRun, tasks: TaskSet) -> None:
        """Tell `session` when all that `live` has submitted until now is on disk."""
        self._pending[session] = _Pending(number, live, live.ticket, live.stream_tail)
        if self._task is None or self._task.done():
            self._task = tasks.spawn(self._run(), "acknowledge")

    async def _run(self) -> None:
        while self._pending:
            pending, self._pending = self._pending, {}
            for session, (number, live, ticket, tail) in pending.items():
                try:
                    await live.until_written(ticket)
                except EngineError as error:
                    session.refuse(number, error)
                else:
                    session.acknowledge(number, tail)


def reason_of(error: EngineError) -> str:
    """The word for an error, as a session is told."""
    return "lost" if isinstance(error, LostRunError) else "storage"
