"""Acknowledgements: what a session has said is on disk.

Changes reach the disk in the order in which they were submitted, so one task that waits for one
after the other is enough for all sessions, and what one commit held is acknowledged together.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.tasks import TaskSet


class Acknowledged(Protocol):
    """A session, as far as it matters here."""

    def acknowledge(self, number: int, tail: int) -> None:
        """Its frames up to this one are on disk, and its stream log up to the position `tail`."""
        ...

    def refuse(self, number: int, error: EngineError) -> None:
        """They are not, and never will be."""
        ...


class Acknowledger:
    """Waits for what sessions have submitted, and tells them."""

    def __init__(self) -> None:
        self._pending: dict[Acknowledged, tuple[int, LiveRun]] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, session: Acknowledged, number: int, live: LiveRun, tasks: TaskSet) -> None:
        """Tell `session` when all that `live` has submitted until now is on disk."""
        self._pending[session] = number, live
        if self._task is None or self._task.done():
            self._task = tasks.spawn(self._run(), "acknowledge")

    async def _run(self) -> None:
        while self._pending:
            # All that one message has made them submit: it is taken in one turn.
            submitted = [
                (session, number, live, live.ticket, live.stream_tail)
                for session, (number, live) in self._pending.items()
            ]
            self._pending = {}
            for session, number, live, ticket, tail in submitted:
                try:
                    await live.until_written(ticket)
                except EngineError as error:
                    session.refuse(number, error)
                else:
                    session.acknowledge(number, tail)


def reason_of(error: EngineError) -> str:
    """The word for an error, as a session is told."""
    return "lost" if isinstance(error, LostRunError) else "storage"
