"""The producing end of a run's stream at a server: how much may be on its way."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from durable_endpoints.engines.remote.journal import Journal, Try
from durable_endpoints.engines.remote.link import Saying
from durable_endpoints.errors import LimitError
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind
from durable_endpoints_server.engine.model import Policy
from durable_endpoints_server.engine.streams import check_room, weight_of

_FULL = 256 * 1024
"""Bytes that are not known to be written, from which on a producer that can wait does."""
_MANY = 1_000
"""The same in chunks."""
_MOST = 8 * 1024 * 1024
"""Bytes that are not known to be written at the most: a producer that cannot wait gets an error."""
_PLENTY = 100
"""Chunks that are on their way, from which on new progress of a step replaces its last."""

logger = logging.getLogger("durable_endpoints")


class Speaks(Protocol):
    """A station, as far as it matters here."""

    @property
    def policy(self) -> Policy: ...

    def say(self, saying: Saying) -> None: ...


class Pushing:
    """What one execution streams. `push` is for any thread, the rest for the event loop."""

    def __init__(
        self, run_id: str, journal: Journal, speaks: Speaks, outside: int, streamed: int
    ) -> None:
        self.position = 0
        """The last position that is known to be written."""
        self.has_begun = False
        self._run_id = run_id
        self._journal = journal
        self._speaks = speaks
        self._replayed = outside
        """Chunks pushed outside steps by earlier executions: this one pushes them again first."""
        self._streamed = streamed
        self._ended: dict[str, int] = {}
        """The last try of each step that has ended: what it still pushes does not count."""
        self._is_closed = False
        self._has_left_out = False
        self._waiting: asyncio.Future[None] | None = None

    def push(self, step: str, attempt: int, values: list[bytes], kind: RecordKind) -> bool:
        """Add chunks, as `Session.push` does."""
        if self._is_closed:
            return False
        if step == OUTSIDE and self._replayed:
            known = min(self._replayed, len(values))
            self._replayed -= known
            values = values[known:]
        if not values or attempt <= self._ended.get(step, -1):
            return False
        self.has_begun = True
        weight = weight_of(values)
        try:
            self._check(weight)
        except LimitError as error:
            if kind is RecordKind.DATA:
                raise
            self._leave_out(error)
            return True
        replaces = (
            kind is RecordKind.PROGRESS and step != OUTSIDE and self._journal.chunks >= _PLENTY
        )
        source = step, attempt, kind
        saying, more = self._journal.push(self._run_id, source, values, replaces)
        self._streamed += more
        if saying is not None:
            self._speaks.say(saying)
        return True

    def _check(self, weight: int) -> None:
        check_room(self._streamed, weight, self._speaks.policy)
        waiting = self._journal.chunks_size
        if waiting and waiting + weight > _MOST:
            raise LimitError(
                f"more than {_MOST:,} bytes of chunks wait to be written (each counts 100 more "
                "than it has): let the handler wait for the server, with `await stream.pipe(…)` "
                "rather than `stream.push(…)`"
            )

    def _leave_out(self, error: LimitError) -> None:
        if not self._has_left_out:
            self._has_left_out = True
            logger.warning(
                "run %s: readers of its stream miss progress or log lines from here on: %s",
                self._run_id,
                error,
            )

    @property
    def is_full(self) -> bool:
        """Whether a producer that can wait should, for `room`."""
        return self._journal.chunks_size > _FULL or self._journal.chunks > _MANY

    async def room(self) -> None:
        """Return when more chunks may come, or none will be written any more."""
        while self.is_full and not self._is_closed:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiting)

    def ended(self, step: str, attempt: int) -> None:
        """A try of a step is over."""
        self._ended[step] = attempt

    def written(self, position: int, counts: dict[Try, int]) -> None:
        """The log is written up to a position, and so many of the chunks of each try."""
        self.position = max(self.position, position)
        self._journal.written(counts)
        self.look()

    def look(self) -> None:
        """There may be room."""
        if self._waiting is not None and (not self.is_full or self._is_closed):
            waiting, self._waiting = self._waiting, None
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Nothing more is pushed."""
        self._is_closed = True
        self.look()
